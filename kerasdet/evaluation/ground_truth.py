"""Reads COCO ground truth and prepares it for scoring.

This module does not import TensorFlow.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.cocoeval import Params

from kerasdet.data.annotations import CHANGES, Contents, GroundTruth, name_of, read_contents, read_json
from kerasdet.data.values import Changes, is_missing
from kerasdet.errors import UserError
from kerasdet.evaluation.results import as_rle

_logger = logging.getLogger(__name__)

Source = str | os.PathLike | dict | list  # a path, or the content of the file
UNIFORM_SIGMA = 0.05  # sigma of keypoints other than COCO's 17, for which the spread of annotations is unknown


def read_ground_truth(source: Source) -> GroundTruth:
    """Reads COCO ground truth and checks its values.

    Args:
        source: Path of an annotation file, or its contents as a dict, which is not changed.

    Returns:
        The ground truth, a dict of the lists `images`, `categories` and `annotations` whose values have the right
        types.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not COCO ground truth.
    """
    content, name = open_source(source, "the ground truth")
    contents = read_contents(content, name)
    sections = {"images": contents.images, "categories": contents.categories, "annotations": contents.annotations}
    return GroundTruth(sections, name)


def check_ground_truth(source: Source, iou_types: Sequence[str]) -> None:
    """Checks, before training starts, that evaluations can read the ground truth.

    Args:
        source: Path of an annotation file, or its contents as a dict.
        iou_types: Types of geometry to score, such as ("bbox", "segm"). Types that the ground truth lacks are skipped,
            because `evaluate_all` does not score them.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the ground truth is invalid.
    """
    content, name = open_source(source, "the ground truth")
    for iou_type in types_in(content, iou_types):
        prepare(read_for(content, name, [iou_type], log=False), iou_type)


def open_source(source: Source, otherwise: str) -> tuple[Any, str]:
    """Opens a JSON file, if the source is a path.

    Args:
        source: Path of a file, or the contents of one.
        otherwise: Name of contents that come without a path, for messages.

    Returns:
        The contents, unchecked, and a name of the source for messages.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not JSON.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_json(source), os.fspath(source)
    return source, getattr(source, "source", otherwise)


def read_for(content: Any, name: str, iou_types: Sequence[str], log: bool = True) -> Contents:
    """Reads the ground truth for some types of geometry.

    Args:
        content: Contents of a COCO annotation file.
        name: Name of the file for messages.
        iou_types: Types of geometry to read, such as ("bbox", "segm").
        log: Whether to log missing and converted values.

    Returns:
        The checked contents.

    Raises:
        UserError: If the contents are not COCO ground truth.
    """
    contents = read_contents(content, name, masks="segm" in iou_types, keypoints="keypoints" in iou_types)
    without_mask = [a for a in contents.annotations if "segm" in iou_types and a["segmentation"] is None]
    if log:
        if not isinstance(content, GroundTruth):  # that of a dataset, which has counted them
            _count_repeats(contents)
        log_changes(contents.changes)
    if log and without_mask:
        _logger.warning(
            "%s: %d objects have no mask (first: %s): detected masks inside their boxes count neither as right nor as "
            "wrong.",
            name,
            len(without_mask),
            name_of(without_mask[0]),
        )
    return contents


def _count_repeats(contents):
    """Counts boxes and image files that occur more than once; detections of one copy are wrong for the other."""
    places = [(a["image_id"], a["category_id"], tuple(a["bbox"])) for a in contents.annotations]
    for place, annotation in zip(_repeated(places), contents.annotations, strict=True):
        if place:
            contents.changes.note("repeated_boxes", name_of(annotation), "has the image, class and box of another one")
    names = [image.get("file_name") for image in contents.images]
    for name, repeated in zip(names, _repeated(names), strict=True):
        if name and repeated:
            contents.changes.note("repeated_files", f"image {name}", "is in the dataset more than once")


def _repeated(values):
    """Returns for each value whether it occurred before."""
    known, repeated = set(), []
    for value in values:
        repeated.append(value in known)
        known.add(value)
    return repeated


def types_in(truth: Any, iou_types: Sequence[str]) -> list[str]:
    """Finds the types of geometry that ground truth has. `read_for` checks the values later.

    Args:
        truth: Contents of a COCO annotation file, unchecked.
        iou_types: Types of geometry to look for, such as ("bbox", "segm").

    Returns:
        The types of `iou_types` that the ground truth has, in the same order.
    """
    data = truth if isinstance(truth, Mapping) else {}

    def has_any(section, key):
        items = data.get(section)
        return isinstance(items, list) and any(isinstance(i, Mapping) and not is_missing(i.get(key)) for i in items)

    has = {
        "bbox": True,
        "segm": has_any("annotations", "segmentation"),
        "keypoints": has_any("categories", "keypoints"),
    }
    return [iou_type for iou_type in iou_types if has[iou_type]]


def log_changes(changes: Changes) -> None:
    """Logs the values of a file that were repaired or dropped, if there are any.

    Args:
        changes: Counts of these values.
    """
    if changes.counts:
        _logger.warning("%s: %s", changes.source, ", ".join(changes.describe(CHANGES)))


def prepare(
    contents: Contents, iou_type: str, image_ids: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> tuple[list[dict], list[int], list[int], np.ndarray | None]:
    """Checks ground truth, and selects the annotations to score.

    Args:
        contents: The ground truth.
        iou_type: "bbox", "segm" or "keypoints".
        image_ids: Ids of the images to score. None: all images.
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area. None: COCO's values for 17 keypoints, 0.05 for any other number.

    Returns:
        The annotations for COCOeval, the ids of the scored categories and images, both ascending, and the sigmas (None
        without keypoints).

    Raises:
        UserError: If the ground truth cannot be scored, or an id is unknown.
    """
    where = contents.changes.source
    categories, sigmas = _scored_categories(contents.categories, iou_type, sigmas, where)
    images = {image["id"]: image for image in contents.images}
    image_ids = sorted(images) if image_ids is None else _checked_image_ids(image_ids, images, where)
    scored = set(image_ids)
    if iou_type == "segm":
        _check_masks(contents, scored, where)
    annotations = [
        _for_coco(annotation, number, iou_type, images[annotation["image_id"]], sigmas, where)
        for number, annotation in enumerate(contents.annotations, 1)
        if annotation["image_id"] in scored and annotation["category_id"] in categories
    ]
    return annotations, sorted(categories), image_ids, sigmas


def _scored_categories(categories, iou_type, sigmas, where):
    """Returns the ids of the categories to score, and the sigma (J,) of each keypoint."""
    if iou_type != "keypoints":
        return [category["id"] for category in categories], None
    having = [category for category in categories if category["keypoints"]]
    if not having:
        raise UserError(f"{where} has no category with keypoints: score boxes or masks, or use a file with keypoints.")
    count = len(having[0]["keypoints"])
    if any(len(category["keypoints"]) != count for category in having):
        raise UserError(
            f"{where} has categories with different numbers of keypoints: score each of these categories from a "
            "separate file."
        )
    if sigmas is None:
        standard = Params(iouType="keypoints").kpt_oks_sigmas
        sigmas = standard if len(standard) == count else np.full(count, UNIFORM_SIGMA)
    if len(sigmas) != count:
        raise UserError(
            f"There are {len(sigmas)} sigmas, but {where} has {count} keypoints: pass one sigma per keypoint."
        )
    return [category["id"] for category in having], np.asarray(sigmas, np.float64)


def _checked_image_ids(image_ids, images, where):
    chosen = sorted(set(np.asarray(image_ids).tolist()))
    if not chosen:
        raise UserError(
            "image_ids is empty, so there is nothing to evaluate: pass at least one id, or None for all images."
        )
    for image_id in chosen:
        if image_id not in images:
            raise UserError(
                f"image_ids has {image_id!r}, but {where} has no image with this id: remove the id from image_ids."
            )
    return chosen


def _check_masks(contents, scored, where):
    """Checks that the ground truth has masks, and the sizes of the scored images."""
    for image in contents.images:
        if image["id"] in scored and image["height"] is None:
            raise UserError(
                f"{where}: image {image['id']} has no height and width, which are needed to score masks. Add height "
                "and width to the image."
            )
    if contents.annotations and all(annotation["segmentation"] is None for annotation in contents.annotations):
        raise UserError(
            f"{where}: {name_of(contents.annotations[0])} and all other annotations have no segmentation. Add masks, "
            "or score boxes."
        )


def _for_coco(annotation, number, iou_type, image, sigmas, where):
    """Returns an annotation as COCOeval needs it.

    Annotations get new ids from 1, because pycocotools 2.0 takes id 0 for "no match" and merges annotations that share
    an id. An object without a mask becomes a crowd that fills its box, so that a mask found there is neither right nor
    wrong. A difficult object gets an area outside all area ranges: it counts neither as found nor as missed but, unlike
    a crowd, is matched by ordinary IoU.
    """
    result = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "area", "iscrowd")}
    result |= {"id": number, "ignored": bool(annotation["difficult"])}
    if annotation.get("is_group_of"):
        result["is_group_of"] = True
    if result["ignored"] and iou_type != "keypoints":
        result["area"] = -1.0
    if iou_type == "segm":
        segmentation = annotation["segmentation"]
        if segmentation is None:
            x, y, w, h = annotation["bbox"]
            segmentation, result["iscrowd"] = [[x, y, x + w, y, x + w, y + h, x, y + h]], 1
        try:
            result["segmentation"] = as_rle(segmentation, image["height"], image["width"])
        except ValueError as error:
            raise UserError(f"{where}: {name_of(annotation)} {error}. Correct its segmentation.") from None
    if iou_type == "keypoints":
        keypoints = annotation["keypoints"] or [0] * (3 * len(sigmas))
        visible = sum(v > 0 for v in keypoints[2::3])
        result |= {"keypoints": keypoints, "num_keypoints": 0 if result["ignored"] else visible}
    return result
