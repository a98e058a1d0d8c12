"""Which ground truth each anchor or proposal answers for.

``matched_gt`` is (B, R) int32: an index into the image's ground truth, `NEGATIVE` or `IGNORE`.
"""

import tensorflow as tf

from kerasdet import boxes as box_ops

NEGATIVE = -1
IGNORE = -2


def match_iou(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality: bool,
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

    Returns:
        matched_gt (B, R) int32.
    """
    gt_boxes = tf.pad(gt_boxes, [[0, 0], [0, 1], [0, 0]])  # one row that matches nothing, so that M may be 0
    gt_valid = tf.pad(gt_valid, [[0, 0], [0, 1]])
    overlap = box_ops.iou(anchors, gt_boxes)  # (B, R, M + 1)
    overlap = tf.where(gt_valid[:, None, :], overlap, -1.0)
    best = tf.reduce_max(overlap, -1)  # (B, R)
    best_gt = tf.argmax(overlap, -1, output_type=tf.int32)
    matched = tf.where(best >= foreground_iou, best_gt, tf.where(best < background_iou, NEGATIVE, IGNORE))
    if low_quality:
        best_of_gt = tf.reduce_max(overlap, 1, keepdims=True)  # (B, 1, M + 1)
        is_best = tf.reduce_any((overlap == best_of_gt) & gt_valid[:, None, :], -1)
        matched = tf.where(is_best, best_gt, matched)
    return matched


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
