"""Converts detections to and from the classes of supervision, for its annotators, trackers, slicers and metrics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdet.errors import UserError, require_extra

if TYPE_CHECKING:
    import supervision

    from kerasdet.inference.detections import Detections

TRACK_ID = "track_id"  # key in `Detections.extras` of the ids from a tracker; -1 for an object without id


def to_detections(found: "Detections") -> "supervision.Detections":
    """Converts a `Detections` to a `supervision.Detections`.

    This is the implementation of `Detections.to_supervision`.

    Args:
        found: Detections of one image.

    Returns:
        A `supervision.Detections` with boxes (x1, y1, x2, y2), scores, class ids, names, masks and tracker ids.

    Raises:
        UserError: If supervision is not installed.
    """
    supervision = require_extra("supervision", "to_supervision", "supervision")
    extras = dict(found.extras)
    tracker_id = extras.pop(TRACK_ID, None)
    return supervision.Detections(
        xyxy=found.xyxy,
        mask=found.masks,
        confidence=found.scores,
        class_id=found.class_ids.astype(int),
        tracker_id=None if tracker_id is None else tracker_id.astype(int),
        data={**extras, "class_name": np.array(found.labels, str)},
    )


def to_key_points(found: "Detections") -> "supervision.KeyPoints":
    """Converts the keypoints of a `Detections` to a `supervision.KeyPoints`.

    This is the implementation of `Detections.to_supervision_keypoints`.

    Args:
        found: Detections with keypoints.

    Returns:
        A `supervision.KeyPoints`. Its `data` holds the class names under "class_name".

    Raises:
        UserError: If supervision is not installed.
        ValueError: If the detections have no keypoints.
    """
    supervision = require_extra("supervision", "to_supervision_keypoints", "supervision")
    if found.keypoints is None:
        raise ValueError("These detections have no keypoints: use a model with a KeypointBranch, such as KeypointRCNN.")
    return supervision.KeyPoints(
        xy=found.keypoints[..., [1, 0]],
        class_id=found.class_ids.astype(int),
        keypoint_confidence=found.keypoints[..., 2],
        detection_confidence=found.scores,
        data={"class_name": np.array(found.labels, str)},
    )


def fields_from_supervision(
    detections: "supervision.Detections",
    image_size: tuple[int, int],
    class_names: Sequence[str] | None,
    key_points: "supervision.KeyPoints | None",
) -> dict[str, Any]:
    """Converts a `supervision.Detections` to keyword arguments of `Detections`.

    This is the implementation of `Detections.from_supervision`, which explains the arguments.

    Args:
        detections: A `supervision.Detections`.
        image_size: Height and width of the image in pixels.
        class_names: Class names, in the order of the class ids. None: the names in ``data["class_name"]``.
        key_points: Keypoints of the same objects, in the same order. None: no keypoints.

    Returns:
        The arguments, a dict from name to value.

    Raises:
        UserError: If the sizes or numbers of masks, keypoints or names contradict the detections.
    """
    count = len(detections)
    scores = np.ones(count) if detections.confidence is None else detections.confidence
    class_ids = np.zeros(count, int) if detections.class_id is None else detections.class_id
    data = {name: np.asarray(value) for name, value in detections.data.items()}
    labels = data.pop("class_name", None)
    if detections.tracker_id is not None:
        data[TRACK_ID] = detections.tracker_id
    fields = {
        "boxes": np.asarray(detections.xyxy)[:, [1, 0, 3, 2]],
        "scores": scores,
        "class_ids": class_ids,
        "image_size": image_size,
        "class_names": _class_names(class_names, labels, class_ids),
        "extras": {name: value for name, value in data.items() if value.ndim and len(value) == count},
    }
    if detections.mask is not None:
        fields |= _mask_fields(np.asarray(detections.mask, bool), image_size)
    if key_points is not None:
        fields["keypoints"] = _keypoint_fields(key_points, count)
    return fields


def _class_names(class_names, labels, class_ids):
    """Returns class names in the order of the class ids; a class without objects gets its id as name."""
    if class_names is not None:
        highest = max(np.asarray(class_ids).tolist(), default=-1)
        if highest >= len(class_names):
            raise UserError(
                f"An object has class id {highest}, but there are {len(class_names)} class_names: pass a name for "
                f"every class id from 0 to {highest}."
            )
        return tuple(class_names)
    if labels is None or not len(labels):
        return None
    known = dict(zip(np.asarray(class_ids).tolist(), labels.tolist(), strict=True))
    return tuple(str(known.get(k, k)) for k in range(max(known) + 1))


def _mask_fields(masks, image_size):
    """Crops full masks (N, H, W) to a square window around each object, so that pasting restores the same pixels."""
    if masks.shape[1:] != tuple(image_size):
        raise UserError(
            f"The masks have height and width {masks.shape[1:]}, but image_size is {tuple(image_size)}: pass the "
            "height and width of the image of the masks."
        )
    corners, side = np.zeros((len(masks), 2), int), 1
    for index, mask in enumerate(masks):
        if mask.any():
            spans = [np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)]
            corners[index] = [low for low, _ in spans]
            side = max(side, *(high - low + 1 for low, high in spans))
    windows = np.zeros((len(masks), side, side), bool)
    for window, mask, (y, x) in zip(windows, masks, corners, strict=True):
        part = mask[y : y + side, x : x + side]
        window[: part.shape[0], : part.shape[1]] = part
    return {
        "mask_probs": windows.astype(np.float32),
        "mask_boxes": np.concatenate([corners, corners + side], 1),
        "mask_convention": "detectron2",
    }


def _keypoint_fields(key_points, count):
    if len(key_points) != count:
        raise UserError(
            f"There are {len(key_points)} objects with keypoints, but {count} detections: pass keypoints and "
            "detections of the same objects."
        )
    xy = np.asarray(key_points.xy, np.float32)
    scores = key_points.keypoint_confidence
    scores = np.ones(xy.shape[:2], np.float32) if scores is None else np.asarray(scores, np.float32)
    return np.concatenate([xy[..., ::-1], scores[..., None]], -1)  # (N, J, 3)
