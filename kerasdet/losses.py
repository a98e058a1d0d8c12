"""Defines the losses of detectors as sums, which the caller divides by a normalizer such as the number of positives.

The functions are pure. ``weights`` multiplies each element's loss before the sum; an anchor of weight 0 has no effect.
The classes hold the options of a loss, so that a model can take the loss as an argument. All box losses
(`SmoothL1Loss`, `IoULoss`, `GIoULoss`) are called with the same arguments, so a gin file can replace one by another.
"""

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.coders import DeltaCoder, DistanceCoder
from kerasdet.keras_utils import ConfigFromInit


def focal(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, alpha: float = 0.25, gamma: float = 2.0
) -> tf.Tensor:
    """Sums the sigmoid focal loss (https://arxiv.org/abs/1708.02002).

    Args:
        logits: (..., K) class logits.
        targets: (..., K), 0 or 1, of the dtype of `logits`.
        weights: Factor of each element's loss, broadcast against (..., K).
        alpha: Weight of positives, at most 1; negatives have the weight 1 - alpha. If `alpha` is negative, all weights
            are 1.
        gamma: Exponent that reduces the loss of well-classified anchors; 0 gives cross entropy, weighted by `alpha`.

    Returns:
        The weighted sum, a scalar.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    # (1 - p_t) ** gamma by way of the logarithm, because the gradient of tf.pow is not finite at 0
    loss = cross_entropy * tf.exp(gamma * tf.math.log_sigmoid(logits * (1 - 2 * targets)))
    if alpha >= 0:
        loss *= alpha * targets + (1 - alpha) * (1 - targets)
    return tf.reduce_sum(loss * weights)


def quality_focal(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, beta: float = 2.0
) -> tf.Tensor:
    """Sums the quality focal loss, a focal loss for soft targets (https://arxiv.org/abs/2006.04388).

    Args:
        logits: (..., K) class logits.
        targets: (..., K) in [0, 1]: for the true class the IoU of the predicted box with the object, 0 for other
            classes.
        weights: Factor of each element's loss, broadcast against (..., K).
        beta: Exponent that reduces the loss of probabilities near their targets; 0 gives plain cross entropy.

    Returns:
        The weighted sum, a scalar.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    return tf.reduce_sum(cross_entropy * tf.abs(targets - tf.sigmoid(logits)) ** beta * weights)


def dice(
    logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, epsilon: float = 5e-6
) -> tf.Tensor:
    """Sums the dice loss of pairs of masks, with squared masks in the denominator (https://arxiv.org/abs/1606.04797).

    Args:
        logits: (..., h, w) mask logits.
        targets: (..., h, w) masks in [0, 1].
        weights: (...), factor of each pair's loss.
        epsilon: Constant added to each of the two sums in the denominator.

    Returns:
        The weighted sum, a scalar.
    """
    probs = tf.sigmoid(logits)
    common, predicted, true = (
        tf.reduce_sum(product, [-2, -1]) for product in (probs * targets, tf.square(probs), tf.square(targets))
    )
    return tf.reduce_sum((1 - 2 * common / (predicted + true + 2 * epsilon)) * weights)


def smooth_l1(
    predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, beta: float = 1.0
) -> tf.Tensor:
    """Sums the smooth L1 loss (Fast R-CNN, https://arxiv.org/abs/1504.08083).

    Args:
        predictions: (...), values of any shape.
        targets: (...), values of the same shape.
        weights: Factor of each element's loss, broadcast against (...).
        beta: Error below which the loss is quadratic; 0 gives plain L1.

    Returns:
        The weighted sum, a scalar.
    """
    error = tf.abs(predictions - targets)
    if beta > 0:
        error = tf.where(error < beta, 0.5 * tf.square(error) / beta, error - 0.5 * beta)
    return tf.reduce_sum(error * weights)


def iou(
    predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0, *, linear: bool = False
) -> tf.Tensor:
    """Sums -log(IoU) or 1 - IoU of pairs of boxes (UnitBox, https://arxiv.org/abs/1608.01471).

    Args:
        predictions: (..., 4) boxes yxyx in pixels.
        targets: (..., 4) boxes yxyx in pixels. A box is the target of the prediction at the same position.
        weights: (...), factor of each pair's loss.
        linear: Whether the loss of a pair is 1 - IoU. If False it is -log(IoU), which is constant for IoUs below 1e-6.

    Returns:
        The weighted sum, a scalar.
    """
    overlap = box_ops.paired_iou(predictions, targets)
    each = 1 - overlap if linear else -tf.math.log(tf.maximum(overlap, 1e-6))
    return tf.reduce_sum(each * weights)


def giou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Sums 1 - GIoU of pairs of boxes (https://arxiv.org/abs/1902.09630).

    Args:
        predictions: (..., 4) boxes yxyx in pixels.
        targets: (..., 4) boxes yxyx in pixels. A box is the target of the prediction at the same position.
        weights: (...), factor of each pair's loss.

    Returns:
        The weighted sum, a scalar.
    """
    return tf.reduce_sum((1 - box_ops.paired_giou(predictions, targets)) * weights)


def diou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Sums 1 - DIoU of pairs of boxes (https://arxiv.org/abs/1911.08287).

    Args:
        predictions: (..., 4) boxes yxyx in pixels.
        targets: (..., 4) boxes yxyx in pixels. A box is the target of the prediction at the same position.
        weights: (...), factor of each pair's loss.

    Returns:
        The weighted sum, a scalar.
    """
    return tf.reduce_sum((1 - box_ops.paired_diou(predictions, targets)) * weights)


def ciou(predictions: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Sums 1 - CIoU of pairs of boxes (https://arxiv.org/abs/1911.08287).

    Args:
        predictions: (..., 4) boxes yxyx in pixels.
        targets: (..., 4) boxes yxyx in pixels. A box is the target of the prediction at the same position.
        weights: (...), factor of each pair's loss.

    Returns:
        The weighted sum, a scalar.
    """
    return tf.reduce_sum((1 - box_ops.paired_ciou(predictions, targets)) * weights)


def centerness(logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Sums the binary cross entropy of centerness (FCOS, https://arxiv.org/abs/1904.01355).

    Args:
        logits: (...), predicted centerness before the sigmoid.
        targets: (...), centerness in [0, 1]. The loss of a perfect prediction is 0 only for targets of 0 and 1.
        weights: (...), factor of each element's loss.

    Returns:
        The weighted sum, a scalar.
    """
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits) * weights)


@keras.saving.register_keras_serializable(package="kerasdet")
class FocalLoss(ConfigFromInit):
    """Sums the sigmoid focal loss (https://arxiv.org/abs/1708.02002).

    Args:
        alpha: Weight of positives, at most 1; negatives have the weight 1 - alpha. If `alpha` is negative, all weights
            are 1.
        gamma: Exponent that reduces the loss of well-classified anchors; 0 gives cross entropy, weighted by `alpha`.
        weight: Factor of the whole loss.

    Raises:
        UserError: If `alpha` is above 1, or `gamma` or `weight` is negative.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, weight: float = 1.0):
        check_numbers("FocalLoss", -float("inf"), 1, alpha=alpha)
        check_numbers("FocalLoss", 0, gamma=gamma, weight=weight)
        self.alpha = alpha
        self.gamma = gamma
        self.weight = weight

    def __call__(self, logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Computes the loss.

        Args:
            logits: (..., K) class logits.
            targets: (..., K), 0 or 1, of the dtype of `logits`.
            weights: Factor of each element's loss, broadcast against (..., K).

        Returns:
            The weighted sum, a scalar.
        """
        return self.weight * focal(logits, targets, weights, alpha=self.alpha, gamma=self.gamma)


@keras.saving.register_keras_serializable(package="kerasdet")
class QualityFocalLoss(ConfigFromInit):
    """Sums the quality focal loss, a focal loss for soft targets (https://arxiv.org/abs/2006.04388).

    Args:
        beta: Exponent that reduces the loss of probabilities near their targets; 0 gives plain cross entropy.
        weight: Factor of the whole loss.

    Raises:
        UserError: If `beta` or `weight` is negative.
    """

    def __init__(self, beta: float = 2.0, weight: float = 1.0):
        check_numbers("QualityFocalLoss", 0, beta=beta, weight=weight)
        self.beta = beta
        self.weight = weight

    def __call__(self, logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Computes the loss.

        Args:
            logits: (..., K) class logits.
            targets: (..., K) in [0, 1]: for the true class the IoU of the predicted box with the object, 0 for other
                classes.
            weights: Factor of each element's loss, broadcast against (..., K).

        Returns:
            The weighted sum, a scalar.
        """
        return self.weight * quality_focal(logits, targets, weights, beta=self.beta)


@keras.saving.register_keras_serializable(package="kerasdet")
class SmoothL1Loss(ConfigFromInit):
    """Sums the smooth L1 loss between predicted and encoded boxes (Fast R-CNN, https://arxiv.org/abs/1504.08083).

    Args:
        beta: Error below which the loss is quadratic, in the units of the coder's deltas or distances; 0 gives plain
            L1.
        weight: Factor of the whole loss.

    Raises:
        UserError: If `beta` or `weight` is negative.
    """

    def __init__(self, beta: float = 0.0, weight: float = 1.0):
        check_numbers("SmoothL1Loss", 0, beta=beta, weight=weight)
        self.beta = beta
        self.weight = weight

    def __call__(
        self,
        predictions: tf.Tensor,
        anchors: tf.Tensor,
        boxes: tf.Tensor,
        weights: tf.Tensor,
        coder: DeltaCoder | DistanceCoder,
    ) -> tf.Tensor:
        """Computes the loss of predicted boxes.

        Args:
            predictions: (..., 4), predicted boxes in the encoding of `coder`.
            anchors: (R, 4), shared by all images, or (..., 4) yxyx in pixels: the anchors of the predictions.
            boxes: (..., 4) ground-truth boxes yxyx in pixels.
            weights: (...), factor of each box's loss.
            coder: Box coder; its `encode` computes the targets.

        Returns:
            The weighted sum, a scalar.
        """
        targets = coder.encode(boxes, anchors)
        return self.weight * smooth_l1(predictions, targets, weights[..., None], beta=self.beta)


@keras.saving.register_keras_serializable(package="kerasdet")
class IoULoss(ConfigFromInit):
    """Sums -log(IoU) or 1 - IoU of decoded boxes (UnitBox, https://arxiv.org/abs/1608.01471).

    Args:
        linear: Whether the loss of a box is 1 - IoU. If False it is -log(IoU), which is constant for IoUs below 1e-6.
        weight: Factor of the whole loss.

    Raises:
        UserError: If `weight` is negative.
    """

    def __init__(self, linear: bool = False, weight: float = 1.0):
        check_numbers("IoULoss", 0, weight=weight)
        self.linear = linear
        self.weight = weight

    def __call__(
        self,
        predictions: tf.Tensor,
        anchors: tf.Tensor,
        boxes: tf.Tensor,
        weights: tf.Tensor,
        coder: DeltaCoder | DistanceCoder,
    ) -> tf.Tensor:
        """Decodes the predicted boxes and computes their loss.

        Args:
            predictions: (..., 4), predicted boxes in the encoding of `coder`.
            anchors: (R, 4), shared by all images, or (..., 4) yxyx in pixels: the anchors of the predictions.
            boxes: (..., 4) ground-truth boxes yxyx in pixels.
            weights: (...), factor of each box's loss.
            coder: Box coder; its `decode` computes the boxes.

        Returns:
            The weighted sum, a scalar.
        """
        return self.weight * iou(coder.decode(predictions, anchors), boxes, weights, linear=self.linear)


@keras.saving.register_keras_serializable(package="kerasdet")
class GIoULoss(ConfigFromInit):
    """Sums 1 - GIoU of decoded boxes (https://arxiv.org/abs/1902.09630).

    Args:
        weight: Factor of the whole loss.

    Raises:
        UserError: If `weight` is negative.
    """

    def __init__(self, weight: float = 1.0):
        check_numbers("GIoULoss", 0, weight=weight)
        self.weight = weight

    def __call__(
        self,
        predictions: tf.Tensor,
        anchors: tf.Tensor,
        boxes: tf.Tensor,
        weights: tf.Tensor,
        coder: DeltaCoder | DistanceCoder,
    ) -> tf.Tensor:
        """Decodes the predicted boxes and computes their loss.

        Args:
            predictions: (..., 4), predicted boxes in the encoding of `coder`.
            anchors: (R, 4), shared by all images, or (..., 4) yxyx in pixels: the anchors of the predictions.
            boxes: (..., 4) ground-truth boxes yxyx in pixels.
            weights: (...), factor of each box's loss.
            coder: Box coder; its `decode` computes the boxes.

        Returns:
            The weighted sum, a scalar.
        """
        return self.weight * giou(coder.decode(predictions, anchors), boxes, weights)
