"""Turns scored boxes into padded detections by filters and non-maximum suppression (NMS).

Padded detections are a dict of ``boxes`` (B, D, 4) yxyx in pixels, ``scores`` (B, D) in descending order, ``class_ids``
(B, D) int32 with -1 for padding, and ``valid`` (B,) int32, the number of detections per image.
"""

from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.ops import nms


def top_candidates(
    logits: tf.Tensor, k: int, score: Callable[[tf.Tensor], tf.Tensor] = tf.sigmoid
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the best (anchor, class) pairs of one level.

    Each of the k best pairs belongs to one of the k anchors with the largest maximum over classes. The function first
    selects these anchors, then sorts only their classes.

    Args:
        logits: (B, R, K) class logits.
        k: Maximum number of pairs to return per image.
        score: Increasing function that converts logits to scores.

    Returns:
        Scores, anchor indices and class ids, (B, min(k, R * K)) each, in descending order of score.
    """
    num_classes = tf.shape(logits)[2]
    num_anchors = tf.minimum(k, tf.shape(logits)[1])
    _, anchors = tf.math.top_k(tf.reduce_max(logits, -1), num_anchors)  # (B, a)
    anchors = tf.sort(anchors)  # equal scores stay in the order of the anchors
    logits = tf.reshape(tf.gather(logits, anchors, batch_dims=1), [tf.shape(logits)[0], -1])  # (B, a * K)
    values, pairs = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[1]))
    return score(values), tf.gather(anchors, pairs // num_classes, batch_dims=1), pairs % num_classes


def best_class_only(scores: tf.Tensor) -> tf.Tensor:
    """Keeps only the score of the best class of each anchor.

    Args:
        scores: (B, R, K) logits or probabilities.

    Returns:
        The scores, (B, R, K), with the most negative float for all classes but the best one. Classes that tie for the
        best score all keep it.
    """
    best = tf.reduce_max(scores, -1, keepdims=True)
    return tf.where(scores == best, scores, scores.dtype.min)


EMPTY_BOXES = ("drop_after_nms", "drop_before_nms", "keep")


@keras.saving.register_keras_serializable(package="kerasdet")
class Postprocessing(ConfigFromInit):
    """Turns scored boxes into detections by per-class non-maximum suppression (NMS).

    Args:
        score_threshold: Detections with a score at or below this are dropped. In [0, 1].
        pre_nms_top_k: Maximum number of candidates before NMS, per pyramid level or, in SSD, per class. R-CNNs ignore
            it.
        nms_threshold: A box is dropped if its IoU with a better box of the same class is above this. In [0, 1].
        max_detections: D, maximum number of detections per image.
        min_size: Boxes that have a side below this many pixels after clipping to the image are dropped before NMS.
            None keeps them.
        clip_before_nms: Whether boxes are clipped to the image before NMS (torchvision, mmdetection) or after it
            (detectron2's dense models).
        empty_boxes: What happens to boxes that are empty after clipping: "drop_after_nms" (detectron2, all R-CNNs),
            "drop_before_nms" (mmdetection's dense models) or "keep" (torchvision's dense models).
        multi_label: Whether one anchor or point may give detections of several classes. If False, only its best class
            is used. R-CNNs ignore it.

    Raises:
        UserError: If `empty_boxes` is unknown, or is "drop_before_nms" without `clip_before_nms`; or if a number is out
            of its range.
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        pre_nms_top_k: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        min_size: float | None = None,
        clip_before_nms: bool = False,
        empty_boxes: str = "drop_after_nms",
        multi_label: bool = True,
    ):
        if empty_boxes not in EMPTY_BOXES:
            raise UserError(
                f"Postprocessing.empty_boxes is {empty_boxes!r}: choose one of {', '.join(map(repr, EMPTY_BOXES))}."
            )
        if empty_boxes == "drop_before_nms" and not clip_before_nms:
            raise UserError(
                "Postprocessing has empty_boxes='drop_before_nms' without clipping before NMS: set "
                "clip_before_nms=True, or choose another value of empty_boxes."
            )
        check_numbers("Postprocessing", 0, 1, score_threshold=score_threshold, nms_threshold=nms_threshold)
        check_positive("Postprocessing", pre_nms_top_k=pre_nms_top_k, max_detections=max_detections)
        check_numbers("Postprocessing", 0, min_size=min_size)
        self.score_threshold = score_threshold
        self.pre_nms_top_k = pre_nms_top_k
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.min_size = min_size
        self.clip_before_nms = clip_before_nms
        self.empty_boxes = empty_boxes
        self.multi_label = multi_label

    def box_mask(self, boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor | None:
        """Marks the boxes that take part in NMS.

        Args:
            boxes: (B, N, 4) yxyx in pixels of the network's input.
            image_size: (B, 2) heights and widths without padding, in pixels.

        Returns:
            (B, N) bool: false for boxes below `min_size`, and for empty boxes if `empty_boxes` is "drop_before_nms".
            None if every box takes part.
        """
        if self.min_size is None and self.empty_boxes != "drop_before_nms":
            return None
        boxes = box_ops.clip(boxes, image_size)
        mask = _has_area(boxes) if self.empty_boxes == "drop_before_nms" else tf.ones(tf.shape(boxes)[:-1], tf.bool)
        if self.min_size is None:
            return mask
        return mask & tf.reduce_all(boxes[..., 2:] - boxes[..., :2] >= self.min_size, -1)

    def apply_nms(
        self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor, score_threshold: float | None = None
    ) -> dict[str, tf.Tensor]:
        """Applies NMS to each class separately, and clips the remaining boxes to the image.

        Args:
            candidates: ``boxes`` (B, N, 4) yxyx in pixels, ``scores`` (B, N), ``class_ids`` (B, N), and possibly
                further tensors (B, N, ...).
            image_size: (B, 2) heights and widths without padding, in pixels.
            score_threshold: Used instead of `self.score_threshold` by models that have already applied that threshold
                to another score. None: `self.score_threshold`.

        Returns:
            Padded detections in the coordinates of the candidates, with the further tensors as (B, D, ...).
        """
        boxes, scores = candidates["boxes"], candidates["scores"]
        if self.clip_before_nms:
            boxes = box_ops.clip(boxes, image_size)
        mask = self.box_mask(boxes, image_size)
        if mask is not None:
            scores = tf.where(mask, scores, -1.0)
        indices, counts = nms(
            boxes,
            scores,
            candidates["class_ids"],
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            score_threshold=self.score_threshold if score_threshold is None else score_threshold,
        )
        chosen = tf.maximum(indices, 0)
        candidates = {**candidates, "boxes": boxes, "scores": scores}
        detections = {name: tf.gather(value, chosen, batch_dims=1) for name, value in candidates.items()}
        detections["boxes"] = box_ops.clip(detections["boxes"], image_size)
        keep = tf.sequence_mask(counts, self.max_detections)  # (B, D)
        if self.empty_boxes == "drop_after_nms":
            keep &= _has_area(detections["boxes"])
        return compact(detections, keep)


def _has_area(boxes):
    return tf.reduce_all(boxes[..., 2:] > boxes[..., :2], -1)


def compact(detections: Mapping[str, tf.Tensor], keep: tf.Tensor) -> dict[str, tf.Tensor]:
    """Drops detections, moves the remaining ones to the front without changing their order, and pads the rest.

    Args:
        detections: Tensors (B, D, ...) by name, such as ``boxes`` and ``scores``.
        keep: (B, D) bool, false for detections to drop.

    Returns:
        The padded detections, with -1 as class id and 0 elsewhere in padding; ``valid`` (B,) holds the new number of
        detections of each image.
    """
    order = tf.argsort(tf.cast(~keep, tf.int32), axis=-1, stable=True)
    valid = tf.reduce_sum(tf.cast(keep, tf.int32), -1)
    mask = tf.sequence_mask(valid, tf.shape(keep)[1])

    def move(name, value):
        value = tf.gather(value, order, batch_dims=1)
        blank = tf.constant(-1, value.dtype) if name == "class_ids" else tf.zeros([], value.dtype)  # or False
        return tf.where(tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (value.shape.rank - 2)], 0)), value, blank)

    return {**{name: move(name, value) for name, value in detections.items()}, "valid": valid}


def drop_empty(detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Drops detections with empty boxes, such as boxes that lay in the padding before they were clipped to the image.

    Args:
        detections: Padded detections, a dict with ``boxes`` (B, D, 4) yxyx in pixels.

    Returns:
        The padded detections without empty boxes.
    """
    keep = _has_area(detections["boxes"]) & tf.sequence_mask(detections["valid"], tf.shape(detections["boxes"])[1])
    return compact({name: value for name, value in detections.items() if name != "valid"}, keep)
