"""Matches anchors, points and proposals to ground truth.

``matched_gt`` is (B, R) int32: an index into the image's ground truth, `NEGATIVE` or `IGNORE`.
"""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.keras_utils import ConfigFromInit, float_dtype

NEGATIVE = -1
IGNORE = -2

# Ground-truth rows compared with all points at once. Larger chunks need more memory, smaller ones more loop steps;
# 8 keeps the temporaries of an 800x1344 image (22,000 points) under 20 MB and costs no time against one pass.
_CHUNK = 8
_NO_AREA = 1e8  # in square pixels; no box is larger


def match_iou(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    allow_low_quality_matches: bool,
    ignored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Matches by IoU with two thresholds (Faster R-CNN, section 3.1.2).

    Args:
        anchors: (R, 4), shared by the images of the batch, or (B, R, 4).
        gt_boxes: (B, M, 4).
        gt_valid: (B, M) bool, false for padding and for objects that are not trained on, such as crowds.
        foreground_iou: Anchors that overlap their best object by at least this IoU are positive.
        background_iou: Anchors below this IoU are negative; those in between are ignored.
        allow_low_quality_matches: Whether the anchors that overlap an object most are positive, even at a low IoU. Such
            an anchor is still assigned to its own best object. If no anchor touches an object, all anchors tie at an
            IoU of 0 and become positive, as in detectron2 and torchvision.
        ignored: (B, R) bool, anchors to ignore regardless of overlap, such as the result of `covered`.

    Returns:
        matched_gt (B, R) int32.
    """
    gt_boxes = tf.pad(gt_boxes, [[0, 0], [0, 1], [0, 0]])  # one row that matches nothing, so that M may be 0
    gt_valid = tf.pad(gt_valid, [[0, 0], [0, 1]])
    overlap = box_ops.iou(anchors, gt_boxes)  # (B, R, M + 1)
    takes_part = gt_valid[:, None, :] if ignored is None else gt_valid[:, None, :] & ~ignored[:, :, None]
    overlap = tf.where(takes_part, overlap, -1.0)
    best = tf.reduce_max(overlap, -1)  # (B, R)
    best_gt = tf.argmax(overlap, -1, output_type=tf.int32)
    matched = tf.where(best >= foreground_iou, best_gt, tf.where(best < background_iou, NEGATIVE, IGNORE))
    if allow_low_quality_matches:
        best_of_gt = tf.reduce_max(overlap, 1, keepdims=True)  # (B, 1, M + 1)
        is_best = tf.reduce_any((overlap == best_of_gt) & takes_part, -1)
        matched = tf.where(is_best, best_gt, matched)
    return matched if ignored is None else tf.where(ignored, IGNORE, matched)


def match_fcos(
    squares: tf.Tensor,
    ranges: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    radius: float | None,
    convention: str,
    ignored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Matches every point to the smallest box that it lies in (FCOS, https://arxiv.org/abs/1904.01355).

    A loop compares the points with 8 objects at a time, so a temporary has at most 16 * B * R numbers for any number of
    objects.

    Args:
        squares: (R, 4), the points as squares as large as their strides.
        ranges: (R, 2) lower and upper bound, in pixels, of the largest distance from a point to the sides of its box.
        gt_boxes: (B, M, 4).
        gt_valid: (B, M) bool, false for padding and for objects that are not trained on, such as crowds.
        radius: Largest distance, in strides, of a point from the centre of its box in y and in x; None for no bound.
        convention: "detectron2" (and torchvision) has open ranges and compares 1e8 - area in float32, in which areas
            within about 8 square pixels tie and the first wins; "mmdet" has closed ranges and exact areas.
        ignored: (B, R) bool, points to ignore regardless of position, such as the result of `covered`.

    Returns:
        matched_gt (B, R) int32.

    Raises:
        UserError: If `convention` is unknown.
    """
    if convention not in ("detectron2", "mmdet"):
        raise UserError(f"match_fcos has no convention {convention!r}: choose 'detectron2' or 'mmdet'.")
    points = box_ops.centers(squares)[:, None, :]  # (R, 1, 2)
    stride = squares[:, None, 2] - squares[:, None, 0]  # (R, 1)
    lower, upper = ranges[:, None, 0], ranges[:, None, 1]
    from_area = _NO_AREA if convention == "detectron2" else 0.0

    def step(start, state, boxes, valid):
        quality, matched = state
        boxes = boxes[:, None]  # (B, 1, c, 4)
        before, after = points - boxes[..., :2], boxes[..., 2:] - points  # (B, R, c, 2)
        farthest = tf.reduce_max(tf.maximum(before, after), -1)  # (B, R, c)
        fits = (tf.reduce_min(tf.minimum(before, after), -1) > 0) & valid[:, None]
        if convention == "detectron2":
            fits &= (farthest > lower) & (farthest < upper)
        else:
            fits &= (farthest >= lower) & (farthest <= upper)
        if radius is not None:
            off_center = tf.reduce_max(tf.abs(points - box_ops.centers(boxes)), -1)  # (B, R, c)
            fits &= off_center < radius * stride
        own = tf.where(fits, from_area - box_ops.area(boxes), from_area - _NO_AREA)  # (B, R, c)
        best = tf.reduce_max(own, -1)
        index = start + tf.argmax(own, -1, output_type=tf.int32)
        better = best > quality  # the first of two that tie wins
        return tf.where(better, best, quality), tf.where(better, index, matched)

    size = [tf.shape(gt_boxes)[0], tf.shape(squares)[0]]
    state = (tf.fill(size, tf.constant(from_area - _NO_AREA, squares.dtype)), tf.fill(size, NEGATIVE))
    _, matched = _fold_gt(step, state, gt_boxes, gt_valid)
    return matched if ignored is None else tf.where(ignored, IGNORE, matched)


def covered(anchors: tf.Tensor, regions: tf.Tensor, is_region: tf.Tensor, *, min_iof: float) -> tf.Tensor:
    """Finds the anchors that lie in regions to ignore, such as crowds (mmdetection's ``ignore_iof_thr``).

    Args:
        anchors: (R, 4) or (B, R, 4); a point is a square as large as its stride.
        regions: (B, M, 4).
        is_region: (B, M) bool, false for rows that are not regions.
        min_iof: A region covers an anchor if more than this fraction of the anchor's area lies in it.

    Returns:
        (B, R) bool.
    """

    def step(start, state, boxes, valid):
        return (state[0] | tf.reduce_any((box_ops.iof(anchors, boxes) > min_iof) & valid[:, None], -1),)

    size = [tf.shape(regions)[0], tf.shape(anchors)[-2]]
    return _fold_gt(step, (tf.fill(size, False),), regions, is_region)[0]


def _fold_gt(step: Callable, state: tuple, boxes: tf.Tensor, valid: tf.Tensor) -> Sequence[tf.Tensor]:
    """Folds ``state = step(first row, state, boxes, valid)`` over chunks of ground truth; returns the last state."""
    batch, rows = tf.unstack(tf.shape(boxes)[:2])
    chunks = -(-rows // _CHUNK)
    missing = chunks * _CHUNK - rows
    boxes = tf.reshape(tf.pad(boxes, [[0, 0], [0, missing], [0, 0]]), [batch, chunks, _CHUNK, 4])  # (B, M / c, c, 4)
    valid = tf.reshape(tf.pad(valid, [[0, 0], [0, missing]]), [batch, chunks, _CHUNK])  # (B, M / c, c)
    shapes = [value.shape for value in state]

    def body(chunk, state):
        state = step(chunk * _CHUNK, state, boxes[:, chunk], valid[:, chunk])
        return chunk + 1, tuple(tf.ensure_shape(value, shape) for value, shape in zip(state, shapes, strict=True))

    _, state = tf.while_loop(lambda chunk, _: chunk < chunks, body, (0, state), parallel_iterations=1)
    return state


def gather_gt(values: tf.Tensor, matched_gt: tf.Tensor) -> tf.Tensor:
    """Gathers each anchor's ground-truth value; anchors without a match get zeros.

    Args:
        values: (B, M, ...).
        matched_gt: (B, R) int32.

    Returns:
        (B, R, ...).
    """
    values = tf.convert_to_tensor(values)
    padded = tf.pad(values, [[0, 0], [1, 0]] + [[0, 0]] * (values.shape.rank - 2))  # anchors without a match read row 0
    return tf.gather(padded, tf.maximum(matched_gt, NEGATIVE) + 1, batch_dims=1)


def valid_gt_mask(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Marks the ground truth that a detector trains on, neither padding nor crowds: (B, M) bool."""
    return (batch["class_ids"] >= 0) & ~batch["is_crowd"]


def ignore_mask(anchors: tf.Tensor, batch: Mapping[str, tf.Tensor], min_iof: float | None) -> tf.Tensor | None:
    """Marks the anchors that lie in crowds.

    Args:
        anchors: (R, 4) or (B, R, 4).
        batch: ``boxes`` (B, M, 4) and ``is_crowd`` (B, M).
        min_iof: An anchor is marked if more than this fraction of its area lies in one crowd. In [0, 1]. None disables
            the check.

    Returns:
        (B, R) bool, or None if `min_iof` is None.
    """
    return None if min_iof is None else covered(anchors, batch["boxes"], batch["is_crowd"], min_iof=min_iof)


@keras.saving.register_keras_serializable(package="kerasdet")
class IoUMatcher(ConfigFromInit):
    """Matches anchors or proposals to ground truth by IoU (Faster R-CNN, section 3.1.2).

    Args:
        foreground_iou: Anchors that overlap their best object by at least this IoU are positive. In [0, 1].
        background_iou: Anchors below this IoU are negative; those in between are ignored. In [0, 1].
        allow_low_quality_matches: Whether each object also gets the anchors that overlap it most, even at a low IoU.
        ignore_crowd_iof: Anchors with more than this fraction of their area inside a crowd are ignored (mmdetection's
            ``ignore_iof_thr``). None disables it: crowds then do not affect matching (torchvision, detectron2).
    """

    def __init__(
        self,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        allow_low_quality_matches: bool = True,
        ignore_crowd_iof: float | None = None,
    ):
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.allow_low_quality_matches = allow_low_quality_matches
        self.ignore_crowd_iof = ignore_crowd_iof

    def __call__(self, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches the anchors of a batch.

        Args:
            anchors: (R, 4), shared by all images, or (B, R, 4).
            batch: ``boxes`` (B, M, 4), ``class_ids`` (B, M) and ``is_crowd`` (B, M).

        Returns:
            matched_gt (B, R) int32: an index into the image's ground truth, `NEGATIVE` or `IGNORE`.
        """
        return match_iou(
            anchors,
            batch["boxes"],
            valid_gt_mask(batch),
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            allow_low_quality_matches=self.allow_low_quality_matches,
            ignored=ignore_mask(anchors, batch, self.ignore_crowd_iof),
        )


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOSMatcher(ConfigFromInit):
    """Matches each point to the smallest box around it (FCOS, https://arxiv.org/abs/1904.01355).

    Args:
        regress_ranges: One (low, high) pair per pyramid level, in pixels. A level is responsible for an object if the
            largest distance from the point to the sides of its box lies in the level's range.
        center_radius: Largest distance of a positive point from the centre of its box, in strides; None: anywhere
            inside the box.
        convention: "detectron2" (torchvision's too) or "mmdet"; `match_fcos` says how they differ.
        ignore_crowd_iof: Points with more than this fraction of their square inside a crowd are ignored; None
            disables it, as in all published FCOS.

    Raises:
        UserError: If `convention` is unknown.
    """

    def __init__(
        self,
        regress_ranges: Sequence[Sequence[float]] = ((0, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
        center_radius: float | None = 1.5,
        convention: str = "detectron2",
        ignore_crowd_iof: float | None = None,
    ):
        if convention not in ("detectron2", "mmdet"):
            raise UserError(f"FCOSMatcher has no convention {convention!r}: choose 'detectron2' or 'mmdet'.")
        self.regress_ranges = tuple(tuple(bounds) for bounds in regress_ranges)
        self.center_radius = center_radius
        self.convention = convention
        self.ignore_crowd_iof = ignore_crowd_iof

    def __call__(self, levels: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches the points of a batch.

        Args:
            levels: level -> (R_l, 4), points as squares as large as their strides, finest level first.
            batch: ``boxes`` (B, M, 4), ``class_ids`` (B, M) and ``is_crowd`` (B, M).

        Returns:
            matched_gt (B, R) int32: an index into the image's ground truth, `NEGATIVE` or `IGNORE`.
        """
        squares = tf.concat(list(levels.values()), 0)  # (R, 4)
        counts = [tf.shape(level)[0] for level in levels.values()]
        return match_fcos(
            squares,
            tf.repeat(tf.constant(self.regress_ranges, float_dtype()), counts, axis=0),  # (R, 2)
            batch["boxes"],
            valid_gt_mask(batch),
            radius=self.center_radius,
            convention=self.convention,
            ignored=ignore_mask(squares, batch, self.ignore_crowd_iof),
        )
