"""Sums the losses of detectors; the caller divides by its normalizer.

Functions are pure sums. ``weights`` multiplies each element's loss before the sum: 0 leaves an anchor out. Classes
carry a loss' options into a model; every box loss takes the same arguments, so one replaces another in a gin file.
"""

import keras
import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.keras_utils import ConfigFromInit


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


@keras.saving.register_keras_serializable(package="kerasdet")
class FocalLoss(ConfigFromInit):
    """Sums the sigmoid focal loss (https://arxiv.org/abs/1708.02002).

    Args:
        alpha: Weight of positives; negatives weigh 1 - alpha. A negative number turns both weights off.
        gamma: Exponent that reduces the loss of well-classified anchors; 0 is plain cross entropy.
        weight: Factor of the whole loss.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0):
        self.alpha = alpha
        self.gamma = gamma
        self.weight = weight

    def __call__(self, logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Returns the weighted sum, (); `logits` and `targets` are (..., K), `weights` broadcasts against them."""
        return self.weight * focal(logits, targets, weights, alpha=self.alpha, gamma=self.gamma)


@keras.saving.register_keras_serializable(package="kerasdet")
class SmoothL1Loss(ConfigFromInit):
    """Sums the smooth L1 loss between predicted and encoded boxes (Fast R-CNN, https://arxiv.org/abs/1504.08083).

    Args:
        beta: Error below which the loss is quadratic, in units of the box encoding; 0 is plain L1.
        weight: Factor of the whole loss.
    """

    def __init__(self, beta: float = 0.0, weight: float = 1.0):
        self.beta = beta
        self.weight = weight

    def __call__(self, predictions, anchors: tf.Tensor, boxes: tf.Tensor, weights: tf.Tensor, coder) -> tf.Tensor:
        """Returns the weighted sum, ().

        Args:
            predictions: (..., 4) encoded boxes.
            anchors: (R, 4) or (..., 4) boxes that the predictions are relative to.
            boxes: (..., 4) ground truth.
            weights: (...) factor of each box' loss.
            coder: Box coder with `encode` and `decode`.
        """
        targets = coder.encode(boxes, anchors)
        return self.weight * smooth_l1(predictions, targets, weights[..., None], beta=self.beta)


@keras.saving.register_keras_serializable(package="kerasdet")
class IoULoss(ConfigFromInit):
    """Sums -log(IoU) or 1 - IoU of decoded boxes (UnitBox, https://arxiv.org/abs/1608.01471).

    Args:
        linear: Whether the loss is 1 - IoU; otherwise it is -log(IoU).
        weight: Factor of the whole loss.
    """

    def __init__(self, linear: bool = False, weight: float = 1.0):
        self.linear = linear
        self.weight = weight

    def __call__(self, predictions, anchors: tf.Tensor, boxes: tf.Tensor, weights: tf.Tensor, coder) -> tf.Tensor:
        """Returns the weighted sum, (); see `SmoothL1Loss.__call__` for the arguments."""
        return self.weight * iou(coder.decode(predictions, anchors), boxes, weights, linear=self.linear)


@keras.saving.register_keras_serializable(package="kerasdet")
class GIoULoss(ConfigFromInit):
    """Sums 1 - GIoU of decoded boxes (https://arxiv.org/abs/1902.09630).

    Args:
        weight: Factor of the whole loss.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self, predictions, anchors: tf.Tensor, boxes: tf.Tensor, weights: tf.Tensor, coder) -> tf.Tensor:
        """Returns the weighted sum, (); see `SmoothL1Loss.__call__` for the arguments."""
        return self.weight * giou(coder.decode(predictions, anchors), boxes, weights)
