"""Which ground truth each anchor, point or proposal answers for.

``matched_gt`` is (B, R) int32: an index into the image's ground truth, `NEGATIVE` or `IGNORE`.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops

NEGATIVE = -1
IGNORE = -2

_CHUNK = 8  # ground-truth rows that are held against all points at once
_NO_AREA = 1e8  # in square pixels; no box is larger


def match_iou(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
    ignored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Matches by IoU with two thresholds (Faster R-CNN, section 3.1.2).

    Args:
        anchors: (R, 4), shared by the images of the batch, or (B, R, 4).
        gt_boxes: (B, M, 4).
        gt_valid: (B, M) bool, false for padding and for what must not be trained on.
        foreground_iou: At least this overlap with its best ground truth makes an anchor positive.
        background_iou: Less than this makes it negative; in between it is ignored.
        low_quality: Also make the anchors positive that no other overlaps a ground truth more than. Such an
            anchor still answers for its own best ground truth. A box that no anchor touches makes positives of all
            anchors without overlap with it, as in detectron2 and torchvision: the maximum they tie in is 0.
        ignored: (B, R) bool, anchors that are ignored whatever they overlap, such as those in `covered`.

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
    if low_quality:
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
    rule: str,
    ignored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Matches every point to the smallest box that it lies in (FCOS, https://arxiv.org/abs/1904.01355).

    Ground truth is gone through in chunks of 8 rows, so that temporaries have at most 16 * B * R numbers each,
    however many objects there are.

    Args:
        squares: (R, 4), the points as squares as large as their strides.
        ranges: (R, 2) in pixels: the largest of a point's distances to the sides of its box lies between them.
        gt_boxes: (B, M, 4).
        gt_valid: (B, M) bool, false for padding and for what must not be trained on.
        radius: In strides: how far a point may be from the centre of its box, in y and in x; None for no bound.
        rule: "detectron2" (and torchvision): ranges are open, and areas are compared as 1e8 - area in float32, in which
            those within about 8 square pixels tie and the first wins; "mmdet": ranges are closed, areas exact.
        ignored: (B, R) bool, points that are ignored wherever they lie, such as those in `covered`.

    Returns:
        matched_gt (B, R) int32.

    Raises:
        ValueError: If `rule` is unknown.
    """
    if rule not in ("detectron2", "mmdet"):
        raise ValueError(f"FCOS has no matching rule {rule!r}: choose 'detectron2' or 'mmdet'.")
    points = box_ops.centers(squares)[:, None, :]  # (R, 1, 2)
    stride = squares[:, None, 2] - squares[:, None, 0]  # (R, 1)
    lower, upper = ranges[:, None, 0], ranges[:, None, 1]
    from_area = _NO_AREA if rule == "detectron2" else 0.0

    def step(start, state, boxes, valid):
        quality, matched = state
        boxes = boxes[:, None]  # (B, 1, c, 4)
        before, after = points - boxes[..., :2], boxes[..., 2:] - points  # (B, R, c, 2)
        farthest = tf.reduce_max(tf.maximum(before, after), -1)  # (B, R, c)
        fits = (tf.reduce_min(tf.minimum(before, after), -1) > 0) & valid[:, None]
        if rule == "detectron2":
            fits &= (farthest > lower) & (farthest < upper)
        else:
            fits &= (farthest >= lower) & (farthest <= upper)
        if radius is not None:
            off_center = tf.reduce_max(tf.abs(points - box_ops.centers(boxes)), -1)  # (B, R, c)
            fits &= off_center < radius * stride
        own = tf.where(fits, from_area - box_ops.area(boxes), from_area - _NO_AREA)  # (B, R, c)
        best = tf.reduce_max(own, -1)
        index = start + tf.argmax(own, -1, output_type=tf.int32)
        better = best > quality  # of two that tie the first stays
        return tf.where(better, best, quality), tf.where(better, index, matched)

    size = [tf.shape(gt_boxes)[0], tf.shape(squares)[0]]
    state = (tf.fill(size, tf.constant(from_area - _NO_AREA, squares.dtype)), tf.fill(size, NEGATIVE))
    _, matched = _fold_gt(step, state, gt_boxes, gt_valid)
    return matched if ignored is None else tf.where(ignored, IGNORE, matched)


def covered(anchors: tf.Tensor, regions: tf.Tensor, is_region: tf.Tensor, *, min_iof: float) -> tf.Tensor:
    """Anchors that lie in regions to be ignored, such as crowds (mmdetection's ``ignore_iof_thr``).

    Args:
        anchors: (R, 4); a point is a square as large as its stride.
        regions: (B, M, 4).
        is_region: (B, M) bool; other rows are passed over.
        min_iof: A region covers an anchor if more than this share of the anchor's area lies in it.

    Returns:
        (B, R) bool.
    """

    def step(start, state, boxes, valid):
        return (state[0] | tf.reduce_any((box_ops.iof(anchors, boxes) > min_iof) & valid[:, None], -1),)

    size = [tf.shape(regions)[0], tf.shape(anchors)[0]]
    return _fold_gt(step, (tf.fill(size, False),), regions, is_region)[0]


def _fold_gt(step: Callable, state: tuple, boxes: tf.Tensor, valid: tf.Tensor) -> Sequence[tf.Tensor]:
    """`state` after ``step(first row, state, boxes, valid)`` over ground truth in chunks of equal size, one by one."""
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
    """Each anchor's ground-truth value; zeros where there is no match.

    Args:
        values: (B, M, ...).
        matched_gt: (B, R) int32.

    Returns:
        (B, R, ...).
    """
    values = tf.convert_to_tensor(values)
    padded = tf.pad(values, [[0, 0], [1, 0]] + [[0, 0]] * (values.shape.rank - 2))  # row 0 is for no match
    return tf.gather(padded, tf.maximum(matched_gt, NEGATIVE) + 1, batch_dims=1)
