"""What models share: the normaliser of their losses and the checks of their parts."""

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.ops.distribute import global_sum

NORMALIZERS = ("ema", "batch", "image")


@keras.saving.register_keras_serializable(package="kerasdet")
class LossNormalizer(ConfigFromInit):
    """Computes what divides the losses of a dense detector; replicas count their positives together.

    Args:
        method: "ema" divides by the running mean of positives in a batch (detectron2), "batch" by the positives of
            this batch (mmdetection, torchvision's FCOS), "image" divides each image by its own positives and averages
            over images (torchvision's RetinaNet).
        momentum: Weight of the old running mean in the new one, in [0, 1); only for "ema".
        start: First value of the running mean, in anchors; only for "ema".

    Raises:
        ValueError: If `method` is unknown.
    """

    def __init__(self, method: str = "ema", momentum: float = 0.9, start: float = 100.0):
        if method not in NORMALIZERS:
            raise ValueError(f"LossNormalizer has no method {method!r}: choose 'ema', 'batch' or 'image'.")
        self.method = method
        self.momentum = momentum
        self.start = start

    def __call__(self, matched_gt: tf.Tensor, running_mean: tf.Tensor) -> tf.Tensor:
        """Returns the divisor of this batch.

        Args:
            matched_gt: (B, R) int32 from a matcher.
            running_mean: () mean of positives before this batch; only "ema" reads it.

        Returns:
            () or, for "image", (B, 1). For "ema" it is also the next running mean.
        """
        positives = tf.reduce_sum(tf.cast(matched_gt >= 0, float_dtype()), 1, keepdims=True)  # (B, 1)
        if self.method == "image":
            return tf.maximum(positives, 1.0) * global_sum(tf.cast(tf.shape(positives)[0], float_dtype()))
        total = tf.maximum(global_sum(tf.reduce_sum(positives)), 1.0)
        if self.method == "batch":
            return total
        return self.momentum * running_mean + (1 - self.momentum) * total
