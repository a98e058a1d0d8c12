"""Losses as plain sums, in float32; whoever calls them divides.

``weights`` multiplies each element's loss before it is summed: 0 leaves an anchor out.
"""

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops


def focal(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, alpha: float = 0.25, gamma: float = 2.0
) -> tf.Tensor:
    """Sigmoid focal loss, summed (https://arxiv.org/abs/1708.02002).

    Args:
        logits: (..., K).
        targets: (..., K), 0 or 1.
        weights: Broadcast against (..., K).
        alpha: Weight of the positives, 1 - alpha that of the negatives; negative for none.
        gamma: Exponent that plays down what is already well classified; 0 is cross entropy.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    # 1 - p_t is the probability given to the wrong answer; its power by logarithms, as pow has no gradient at 0
    loss = cross_entropy * tf.exp(gamma * tf.math.log_sigmoid(logits * (1 - 2 * targets)))
    if alpha >= 0:
        loss *= alpha * targets + (1 - alpha) * (1 - targets)
    return tf.reduce_sum(loss * weights)


def smooth_l1(
    predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, beta: float = 1.0
) -> tf.Tensor:
    """Smooth L1 loss, summed: quadratic below `beta`, linear above; `beta` 0 is L1 (Fast R-CNN, arXiv 1504.08083)."""
    error = tf.abs(predictions - targets)
    if beta > 0:
        error = tf.where(error < beta, 0.5 * tf.square(error) / beta, error - 0.5 * beta)
    return tf.reduce_sum(error * weights)


def iou(
    predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, linear: bool = False
) -> tf.Tensor:
    """-log(IoU), or 1 - IoU if `linear`, of box i with box i, summed (UnitBox, https://arxiv.org/abs/1608.01471).

    `predictions` and `targets` (..., 4), `weights` (...). Below an IoU of 1e-6 the logarithm is constant.
    """
    overlap = box_ops.paired_iou(predictions, targets)
    each = 1 - overlap if linear else -tf.math.log(tf.maximum(overlap, 1e-6))
    return tf.reduce_sum(each * weights)


def giou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """1 - GIoU of box i with box i, summed; `predictions` and `targets` (..., 4), `weights` (...)."""
    return tf.reduce_sum((1 - box_ops.paired_giou(predictions, targets)) * weights)


def diou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """1 - DIoU of box i with box i, summed; `predictions` and `targets` (..., 4), `weights` (...)."""
    return tf.reduce_sum((1 - box_ops.paired_diou(predictions, targets)) * weights)


def ciou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """1 - CIoU of box i with box i, summed; `predictions` and `targets` (..., 4), `weights` (...)."""
    return tf.reduce_sum((1 - box_ops.paired_ciou(predictions, targets)) * weights)


def centerness(logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Binary cross entropy with targets between 0 and 1, summed; not 0 at its best (https://arxiv.org/abs/1904.01355).

    `logits`, `targets` and `weights` (...).
    """
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits) * weights)
