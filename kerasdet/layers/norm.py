"""Defines normalisation layers, which are selected by name.

| name | statistics | scale and offset |
|---|---|---|
| ``frozen_bn`` | stored | stored |
| ``bn_inference`` | stored | trained |
| ``bn`` | training: batch on this replica; inference: stored | trained |
| ``sync_bn`` | training: batch on all replicas; inference: stored | trained |
| ``gn`` | groups of channels of one image | trained |

``frozen_bn`` and ``bn_inference`` need pretrained statistics: with the initial mean 0 and variance 1 they normalise
nothing. As in PyTorch, the default epsilon is 1e-5, and running averages hold the unbiased variance. The default
momentum of 0.9 corresponds to PyTorch's 0.1, because PyTorch gives the weight of the new value.
"""

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.ops.dispatch import composite
from kerasdet.ops.distribute import global_mean, global_sum

NORMS = ("frozen_bn", "bn_inference", "bn", "sync_bn", "gn")


def make_norm(
    norm: str | None, epsilon: float = 1e-5, groups: int = 32, momentum: float = 0.9, name: str = "norm"
) -> keras.layers.Layer | None:
    """Creates a normalisation layer by its name.

    Args:
        norm: A name in `NORMS`, such as "bn". None: no norm.
        epsilon: Constant added to variances.
        groups: Number of channel groups of "gn". Must divide the number of channels.
        momentum: Weight of the old value when a training step updates a running average, in [0, 1]. Only "bn" and
            "sync_bn" update running averages.
        name: Name of the layer.

    Returns:
        The layer, or None if `norm` is None.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> make_norm("gn", groups=32)(tf.ones([1, 4, 4, 64])).shape
        TensorShape([1, 4, 4, 64])
    """
    if norm is None:
        return None
    if norm == "gn":
        return GroupNormalization(groups, epsilon, name=name)
    if norm in NORMS:
        return BatchNorm(norm, epsilon=epsilon, momentum=momentum, name=name)
    raise ValueError(
        f"Unknown norm {norm!r}: choose one of {', '.join(NORMS)}, or None. Change the argument norm of the backbone, "
        "neck or head, such as ResNet.norm or RetinaNetHead.norm."
    )


@keras.saving.register_keras_serializable(package="kerasdet")
class BatchNorm(ConfigFromInit, keras.layers.Layer):
    """Normalises each channel (the last axis) by batch statistics or stored ones (https://arxiv.org/abs/1502.03167).

    The variables are created with ``autocast=False``, so statistics and parameters stay float32. Under a 16-bit policy
    Keras would otherwise round them before the normalisation, which shifts every channel.

    Args:
        mode: "frozen_bn", "bn_inference", "bn" or "sync_bn", see the table in `kerasdet.layers.norm`.
        epsilon: Constant added to the variance.
        momentum: Weight of the old value when a training step updates a running average, in [0, 1].
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, mode: str = "bn", epsilon: float = 1e-5, momentum: float = 0.9, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self.epsilon = epsilon
        self.momentum = momentum

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates gamma, beta, moving_mean and moving_variance, each (C,), for inputs (B, H, W, C)."""
        shape, trainable = (input_shape[-1],), self.mode != "frozen_bn"
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", trainable=trainable, autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", trainable=trainable, autocast=False)
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=shape, initializer="zeros", trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False, autocast=False
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Normalises features. A layer that is not trainable always uses the stored statistics.

        Args:
            x: (B, H, W, C).
            training: Whether to use the statistics of the batch, in the modes "bn" and "sync_bn".

        Returns:
            The normalised features, (B, H, W, C).
        """
        if training and self.trainable and self.mode in ("bn", "sync_bn"):
            return self._normalize_by_batch(x)
        if not training:  # Grappler folds a norm into the preceding convolution only if the norm is this fused op
            return self._fused_batch_norm(x, self.moving_mean, self.moving_variance, is_training=False).y
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        return x * tf.cast(scale, x.dtype) + tf.cast(self.beta - self.moving_mean * scale, x.dtype)

    def _fused_batch_norm(self, x, mean, variance, is_training):
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(mean),
            variance=tf.convert_to_tensor(variance),
            epsilon=self.epsilon,
            is_training=is_training,
        )

    def _normalize_by_batch(self, x):
        if self.mode == "sync_bn":
            mean, variance, unbiased = _global_moments(x, tf.convert_to_tensor(self.moving_mean))
            y = tf.nn.batch_normalization(
                tf.cast(x, float_dtype()), mean, variance, self.beta, self.gamma, self.epsilon
            )
            y = tf.cast(y, x.dtype)
        else:
            fused = self._fused_batch_norm(x, tf.zeros([0]), tf.zeros([0]), is_training=True)
            y, (mean, unbiased) = fused.y, global_mean([fused.batch_mean, fused.batch_variance])
        self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
        self.moving_variance.assign(self.momentum * self.moving_variance + (1 - self.momentum) * unbiased)
        return y

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `input_shape`: normalisation keeps the shape."""
        return input_shape


@keras.saving.register_keras_serializable(package="kerasdet")
class GroupNormalization(ConfigFromInit, keras.layers.Layer):
    """Normalises groups of channels of each image (https://arxiv.org/abs/1803.08494).

    The weights have the same layout as those of `keras.layers.GroupNormalization`. In Keras 3.15.1 that layer takes ten
    times as long on CPUs. It also has errors of 2e-4 for values far from zero, because it computes the variance as the
    mean of squares minus the squared mean. This layer can be removed when Keras subtracts the mean first and is as
    fast.

    Args:
        groups: Number of channel groups. Must divide the number of channels.
        epsilon: Constant added to the variance.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates gamma and beta, each (C,), for inputs (B, H, W, C).

        Raises:
            ValueError: If `groups` does not divide C.
        """
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"GroupNormalization cannot split {channels} channels into {self.groups} groups: the number of "
                f"groups must divide the number of channels. Change the channels of the layer before this norm (in "
                f"recipes HEAD_CHANNELS) to a multiple of {self.groups}, or choose another norm."
            )
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalises features, in float32.

        Args:
            x: (B, H, W, C).

        Returns:
            The normalised features, (B, H, W, C) of the dtype of `x`.
        """
        normalize = composite(self._normalize, "GroupNormalization", groups=self.groups, epsilon=self.epsilon)
        return normalize(x, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta))

    def _normalize(self, x, gamma, beta):
        shape, channels = tf.shape(x), x.shape[-1]
        cells = tf.cast(tf.reshape(x, [shape[0], -1, channels]), float_dtype())  # (B, H * W, C)
        centered = cells - self._group_means(cells)
        scale = gamma * tf.math.rsqrt(self._group_means(tf.square(centered)) + self.epsilon)  # (B, 1, C)
        return tf.cast(tf.reshape(centered * scale + beta, shape), x.dtype)

    def _group_means(self, cells):
        """Returns the mean of each channel's group, (B, 1, C), of `cells` (B, H * W, C)."""
        count, channels = tf.shape(cells)[1], cells.shape[-1]
        # A product with a row of ones sums over the cells; on CPUs it is faster than tf.reduce_mean.
        means = tf.matmul(tf.fill([1, 1, count], 1 / tf.cast(count, cells.dtype)), cells)  # (B, 1, C)
        size = channels // self.groups
        group_means = tf.reduce_mean(tf.reshape(means, [-1, 1, self.groups, size]), -1, keepdims=True)
        return tf.reshape(tf.tile(group_means, [1, 1, 1, size]), [-1, 1, channels])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `input_shape`: normalisation keeps the shape."""
        return input_shape


def _global_moments(x, center):
    """Computes mean, variance and unbiased variance, (C,) float32 each, of `x` (B, H, W, C) over all replicas.

    `center` (C,), an estimate of the mean, is subtracted from the values first. The variance is a difference of
    squares; the nearer `center` is to the mean, the fewer digits cancel.
    """
    x = tf.cast(x, float_dtype()) - center
    count = tf.cast(tf.size(x) // tf.shape(x)[-1], float_dtype())
    sums = tf.concat([tf.reduce_sum(x, [0, 1, 2]), tf.reduce_sum(tf.square(x), [0, 1, 2]), [count]], 0)
    total, square, count = tf.split(global_sum(sums), [x.shape[-1], x.shape[-1], 1])
    mean = total / count
    variance = tf.maximum(square / count - tf.square(mean), 0.0)
    return mean + center, variance, variance * count / tf.maximum(count - 1, 1.0)
