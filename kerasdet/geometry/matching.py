"""Matches anchors, points and proposals to ground truth.

All matchers return ``matched_gt`` (B, R) int32 for B images and R anchors, points or proposals. An entry is the index
of the matched object in the image's ground truth, `NEGATIVE` (-1) for background, or `IGNORE` (-2) for an anchor that
is excluded from the losses. Boxes are yxyx in pixels.
"""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.keras_utils import ConfigFromInit, float_dtype

NEGATIVE = -1
IGNORE = -2

LOW_QUALITY_OWNERS = ("best", "forcing")

# Number of objects compared with all points at once. Larger chunks need more memory, smaller ones more loop steps;
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
    low_quality_owner: str = "best",
    min_low_quality_iou: float = 0.0,
    ignored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Matches anchors by IoU with two thresholds (Faster R-CNN, section 3.1.2).

    Args:
        anchors: (R, 4) yxyx in pixels, shared by the images of the batch, or (B, R, 4).
        gt_boxes: (B, M, 4) yxyx in pixels.
        gt_valid: (B, M) bool, false for padding and for objects that are excluded from training, such as crowds.
        foreground_iou: Anchors whose highest IoU with an object is at least this are positive.
        background_iou: Anchors whose highest IoU is below this are negative; anchors between the two thresholds are
            ignored.
        allow_low_quality_matches: Whether each object is also matched to the anchors with its highest IoU, even if this
            IoU is below `foreground_iou`. If no anchor touches an object, all anchors tie at an IoU of 0 and become
            positive, unless `min_low_quality_iou` is above 0.
        low_quality_owner: Object to which `allow_low_quality_matches` matches an anchor. "best": the object with which
            the anchor has the highest IoU (detectron2, torchvision). "forcing": the object that has no better anchor;
            of several such objects, the last one (mmdetection).
        min_low_quality_iou: Objects whose highest IoU with an anchor is below this get no low-quality match
            (mmdetection's ``min_pos_iou``).
        ignored: (B, R) bool, anchors to ignore regardless of their IoUs, such as the result of `covered`. None: no
            anchor.

    Returns:
        The matches, (B, R) int32: an index into the image's ground truth, `NEGATIVE` (-1) or `IGNORE` (-2).

    Raises:
        UserError: If `low_quality_owner` is unknown.
    """
    if low_quality_owner not in LOW_QUALITY_OWNERS:
        raise UserError(f"low_quality_owner of match_iou is {low_quality_owner!r}: choose 'best' or 'forcing'.")
    gt_boxes = tf.pad(gt_boxes, [[0, 0], [0, 1], [0, 0]])  # one object that matches nothing, so that M may be 0
    gt_valid = tf.pad(gt_valid, [[0, 0], [0, 1]])
    overlap = box_ops.iou(anchors, gt_boxes)  # (B, R, M + 1)
    takes_part = gt_valid[:, None, :] if ignored is None else gt_valid[:, None, :] & ~ignored[:, :, None]
    overlap = tf.where(takes_part, overlap, -1.0)
    best = tf.reduce_max(overlap, -1)  # (B, R)
    best_gt = tf.argmax(overlap, -1, output_type=tf.int32)
    matched = tf.where(best >= foreground_iou, best_gt, tf.where(best < background_iou, NEGATIVE, IGNORE))
    if allow_low_quality_matches:
        best_of_gt = tf.reduce_max(overlap, 1, keepdims=True)  # (B, 1, M + 1)
        forces = (overlap == best_of_gt) & takes_part & (best_of_gt >= min_low_quality_iou)  # (B, R, M + 1)
        owner = best_gt
        if low_quality_owner == "forcing":
            owner = tf.reduce_max(tf.where(forces, tf.range(tf.shape(forces)[-1]), NEGATIVE), -1)
        matched = tf.where(tf.reduce_any(forces, -1), owner, matched)
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
    """Matches every point to the smallest of the boxes that fit it (FCOS, https://arxiv.org/abs/1904.01355).

    A box fits a point if the point lies inside it, within `ranges` and within `radius`. A loop compares the points with
    8 objects at a time, so a temporary tensor has at most 16 * B * R values, for any number of objects.

    Args:
        squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as side.
        ranges: (R, 2), lower and upper bound, in pixels, of the largest distance from a point to the sides of its box.
        gt_boxes: (B, M, 4) yxyx in pixels.
        gt_valid: (B, M) bool, false for padding and for objects that are excluded from training, such as crowds.
        radius: Bound, in strides, of the distances along y and x from a point to the centre of its box; both distances
            must be smaller. None: no bound.
        convention: Source framework whose ranges and ties are reproduced. "detectron2" (also for torchvision) excludes
            the bounds of a range and compares ``1e8 - area`` in float32: areas that differ by less than about 8 square
            pixels tie, and the first object wins. "mmdet" includes the bounds and compares exact areas.
        ignored: (B, R) bool, points to ignore regardless of their position, such as the result of `covered`. None: no
            point.

    Returns:
        The matches, (B, R) int32: an index into the image's ground truth, `NEGATIVE` (-1) or `IGNORE` (-2).

    Raises:
        UserError: If `convention` is unknown.
    """
    if convention not in ("detectron2", "mmdet"):
        raise UserError(f"convention of match_fcos is {convention!r}: choose 'detectron2' or 'mmdet'.")
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
        better = best > quality  # of objects that tie, the first wins
        return tf.where(better, best, quality), tf.where(better, index, matched)

    size = [tf.shape(gt_boxes)[0], tf.shape(squares)[0]]
    state = (tf.fill(size, tf.constant(from_area - _NO_AREA, squares.dtype)), tf.fill(size, NEGATIVE))
    _, matched = _fold_gt(step, state, gt_boxes, gt_valid)
    return matched if ignored is None else tf.where(ignored, IGNORE, matched)


def covered(anchors: tf.Tensor, regions: tf.Tensor, is_region: tf.Tensor, *, min_iof: float) -> tf.Tensor:
    """Marks the anchors that lie in given regions, such as crowds (mmdetection's ``ignore_iof_thr``).

    Args:
        anchors: (R, 4) or (B, R, 4) yxyx in pixels.
        regions: (B, M, 4) yxyx in pixels.
        is_region: (B, M) bool, false for rows of `regions` to skip, such as padding.
        min_iof: A region covers an anchor if it contains more than this fraction of the anchor's area. In [0, 1].

    Returns:
        A mask, (B, R) bool, true for anchors that a region covers.
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


def outside_padded_size(anchors: tf.Tensor, image_size: tf.Tensor, divisor: int) -> tf.Tensor:
    """Marks the anchors in padding that exists only because other images of the batch are larger.

    Args:
        anchors: (R, 4) or (B, R, 4) yxyx in pixels.
        image_size: (B, 2) heights and widths without padding, in pixels.
        divisor: An image that is alone in its batch is padded to multiples of this number of pixels.

    Returns:
        A mask, (B, R) bool, true if an anchor's centre lies on or beyond the bottom or right border of the image size
        rounded up to multiples of `divisor`.
    """
    limit = tf.cast(-(-image_size // divisor) * divisor, anchors.dtype)[:, None]  # (B, 1, 2)
    # Centres are multiples of half a pixel. The margin of 0.25 covers the rounding error of a centre on the limit.
    return tf.reduce_any(box_ops.centers(anchors) > limit - 0.25, -1)


def gather_gt(values: tf.Tensor, matched_gt: tf.Tensor) -> tf.Tensor:
    """Gathers the ground-truth value of each anchor's matched object; anchors without a match get zeros.

    Args:
        values: (B, M, ...), one value per object, such as boxes or class ids.
        matched_gt: (B, R) int32 from a matcher: the index of each anchor's object, negative for anchors without an
            object.

    Returns:
        The gathered values, (B, R, ...) of the dtype of `values`.
    """
    values = tf.convert_to_tensor(values)
    padded = tf.pad(values, [[0, 0], [1, 0]] + [[0, 0]] * (values.shape.rank - 2))  # anchors without a match read row 0
    return tf.gather(padded, tf.maximum(matched_gt, NEGATIVE) + 1, batch_dims=1)


def valid_gt_mask(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Marks the objects that a detector is trained on, which are neither padding nor crowds.

    Args:
        batch: ``class_ids`` (B, M), -1 for padding, and ``is_crowd`` (B, M) bool.

    Returns:
        A mask, (B, M) bool, true for objects to train on.
    """
    return (batch["class_ids"] >= 0) & ~batch["is_crowd"]


def ignore_mask(anchors: tf.Tensor, batch: Mapping[str, tf.Tensor], min_iof: float | None) -> tf.Tensor | None:
    """Marks the anchors that lie inside crowds.

    Args:
        anchors: (R, 4) or (B, R, 4) yxyx in pixels.
        batch: ``boxes`` (B, M, 4) yxyx in pixels and ``is_crowd`` (B, M) bool.
        min_iof: An anchor is marked if more than this fraction of its area lies in one crowd, in [0, 1]. None: no
            anchor is marked.

    Returns:
        A mask, (B, R) bool, true for anchors to ignore; None if `min_iof` is None.
    """
    return None if min_iof is None else covered(anchors, batch["boxes"], batch["is_crowd"], min_iof=min_iof)


@keras.saving.register_keras_serializable(package="kerasdet")
class IoUMatcher(ConfigFromInit):
    """Matches anchors or proposals to ground truth by IoU (Faster R-CNN, section 3.1.2).

    Args:
        foreground_iou: Anchors whose highest IoU with an object is at least this are positive. In [0, 1].
        background_iou: Anchors whose highest IoU is below this are negative; anchors between the two thresholds are
            ignored. In [0, 1].
        allow_low_quality_matches: Whether each object is also matched to the anchors with its highest IoU, even if this
            IoU is below `foreground_iou`.
        ignore_crowd_iof: Anchors with more than this fraction of their area inside a crowd are ignored (mmdetection's
            ``ignore_iof_thr``), unless the image has no object to train on. None: crowds have no effect (torchvision,
            detectron2).
        low_quality_owner: Object to which `allow_low_quality_matches` matches an anchor. "best": the object with which
            the anchor has the highest IoU (detectron2, torchvision). "forcing": the object that has no better anchor;
            of several such objects, the last one (mmdetection).
        min_low_quality_iou: Objects whose highest IoU with an anchor is below this get no low-quality match
            (mmdetection's ``min_pos_iou``). In [0, 1].
        padded_size_divisor: Anchors whose centre lies on or beyond the bottom or right border of the image's own size,
            rounded up to a multiple of this many pixels, are ignored (mmdetection). The matches of an image then do not
            depend on the batch. None: anchors in the padding are matched, too (torchvision, detectron2).

    Raises:
        UserError: If `low_quality_owner` is unknown, a threshold is outside [0, 1], or `background_iou` is above
            `foreground_iou`.
    """

    def __init__(
        self,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        allow_low_quality_matches: bool = True,
        ignore_crowd_iof: float | None = None,
        low_quality_owner: str = "best",
        min_low_quality_iou: float = 0.0,
        padded_size_divisor: int | None = None,
    ):
        if low_quality_owner not in LOW_QUALITY_OWNERS:
            raise UserError(f"IoUMatcher.low_quality_owner is {low_quality_owner!r}: choose 'best' or 'forcing'.")
        check_numbers("IoUMatcher", 0, 1, foreground_iou=foreground_iou, ignore_crowd_iof=ignore_crowd_iof)
        check_numbers("IoUMatcher", 0, 1, background_iou=background_iou, min_low_quality_iou=min_low_quality_iou)
        if background_iou > foreground_iou:
            raise UserError(
                f"IoUMatcher.background_iou is {background_iou}: expected a number from 0 to foreground_iou, which is "
                f"{foreground_iou}. Lower background_iou or raise foreground_iou."
            )
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.allow_low_quality_matches = allow_low_quality_matches
        self.ignore_crowd_iof = ignore_crowd_iof
        self.low_quality_owner = low_quality_owner
        self.min_low_quality_iou = min_low_quality_iou
        self.padded_size_divisor = padded_size_divisor

    def __call__(self, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches the anchors of a batch.

        Args:
            anchors: (R, 4) yxyx in pixels, shared by all images, or (B, R, 4).
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M). With
                `padded_size_divisor` also ``image_size`` (B, 2), heights and widths without padding, in pixels.

        Returns:
            The matches, (B, R) int32: an index into the image's ground truth, `NEGATIVE` (-1) or `IGNORE` (-2).
        """
        valid = valid_gt_mask(batch)
        ignored = ignore_mask(anchors, batch, self.ignore_crowd_iof)
        if ignored is not None:  # in mmdetection, every anchor of an image without objects to train on is background
            ignored &= tf.reduce_any(valid, 1, keepdims=True)
        if self.padded_size_divisor is not None:
            outside = outside_padded_size(anchors, batch["image_size"], self.padded_size_divisor)
            ignored = outside if ignored is None else ignored | outside
        return match_iou(
            anchors,
            batch["boxes"],
            valid,
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            allow_low_quality_matches=self.allow_low_quality_matches,
            low_quality_owner=self.low_quality_owner,
            min_low_quality_iou=self.min_low_quality_iou,
            ignored=ignored,
        )


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOSMatcher(ConfigFromInit):
    """Matches each point to the smallest box around it that suits the point's level (FCOS, arXiv 1904.01355).

    Args:
        regress_ranges: One (low, high) pair per pyramid level, in pixels. A point of a level can be matched to an
            object if the largest distance from the point to the sides of the object's box lies in the level's range.
        center_radius: A positive point is nearer than this to the centre of its box along y and along x, in strides.
            None: points anywhere inside the box can be positive.
        convention: Source framework whose ranges and ties are reproduced: "detectron2" (also for torchvision) or
            "mmdet", see `match_fcos`.
        ignore_crowd_iof: Points with more than this fraction of their square inside a crowd are ignored. None: crowds
            have no effect, as in all published FCOS models.

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
            raise UserError(f"FCOSMatcher.convention is {convention!r}: choose 'detectron2' or 'mmdet'.")
        self.regress_ranges = tuple(tuple(bounds) for bounds in regress_ranges)
        self.center_radius = center_radius
        self.convention = convention
        self.ignore_crowd_iof = ignore_crowd_iof

    def __call__(self, levels: Mapping[str, tf.Tensor], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches the points of a batch.

        Args:
            levels: The squares (R_l, 4) yxyx in pixels by level name, finest level first. Each square is centred on a
                point and has the stride of its level as side.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M).

        Returns:
            The matches, (B, R) int32 for the points of all levels one after the other: an index into the image's ground
            truth, `NEGATIVE` (-1) or `IGNORE` (-2).
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
