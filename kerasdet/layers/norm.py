"""Normalisation, chosen by name.

| name | statistics | scale and offset |
|---|---|---|
| ``frozen_bn`` | stored | stored |
| ``bn_inference`` | stored | trained |
| ``bn`` | of the batch on this replica while training | trained |
| ``sync_bn`` | of the batch on all replicas while training | trained |
| ``gn`` | of groups of channels of one image | trained |

Epsilons and momenta are PyTorch's (1e-5, 0.9 in Keras' sense), and so are the running averages, which keep the
unbiased variance.
"""

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.ops.distribute import global_mean, global_sum

NORMS = ("frozen_bn", "bn_inference", "bn", "sync_bn", "gn")


def make_norm(
    norm: str | None, epsilon: float = 1e-5, groups: int = 32, name: str = "norm"
) -> keras.layers.Layer | None:
    """The layer of a name in `NORMS`; none for None.

    Raises:
        ValueError: If the name is unknown.
    """
    if norm is None:
        return None
    if norm == "gn":
        return GroupNormalization(groups, epsilon, name=name)
    if norm in NORMS:
        return BatchNorm(norm, epsilon=epsilon, name=name)
    raise ValueError(f"Unknown norm {norm!r}: choose one of {', '.join(NORMS)}, or None.")


@keras.saving.register_keras_serializable(package="kerasdet")
class BatchNorm(ConfigFromInit, keras.layers.Layer):
    """Batch normalisation over the last axis (https://arxiv.org/abs/1502.03167), in one of the ways of `NORMS`.

    Args:
        mode: ``frozen_bn``, ``bn_inference``, ``bn`` or ``sync_bn``.
        epsilon: Added to the variance.
        momentum: Share of a running average that a training step keeps.
    """

    def __init__(self, mode: str = "bn", epsilon: float = 1e-5, momentum: float = 0.9, **kwargs):
        super().__init__(**kwargs)
        self.mode = mode
        self.epsilon = epsilon
        self.momentum = momentum

    def build(self, input_shape):
        shape, trainable = (input_shape[-1],), self.mode != "frozen_bn"
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones", trainable=trainable, autocast=False)
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", trainable=trainable, autocast=False)
        self.moving_mean = self.add_weight(
            name="moving_mean", shape=shape, initializer="zeros", trainable=False, autocast=False
        )
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", trainable=False, autocast=False
        )

    def call(self, x, training=False):
        if training and self.trainable and self.mode in ("bn", "sync_bn"):
            return self._normalize_by_batch(x)
        if not training:  # the fused kernel is what grappler folds into the convolution
            return self._fused(x, self.moving_mean, self.moving_variance, is_training=False).y
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        return x * tf.cast(scale, x.dtype) + tf.cast(self.beta - self.moving_mean * scale, x.dtype)

    def _fused(self, x, mean, variance, is_training):
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
            fused = self._fused(x, tf.zeros([0]), tf.zeros([0]), is_training=True)
            y, (mean, unbiased) = fused.y, global_mean([fused.batch_mean, fused.batch_variance])
        self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
        self.moving_variance.assign(self.momentum * self.moving_variance + (1 - self.momentum) * unbiased)
        return y

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="kerasdet")
class GroupNormalization(ConfigFromInit, keras.layers.Layer):
    """Normalisation of groups of channels of each image (https://arxiv.org/abs/1803.08494).

    Keras' layer of this name, whose weights it takes, needs ten times as long on CPUs, and loses digits where it
    subtracts the mean's square from that of the values.

    Args:
        groups: Their number, which divides that of the channels.
        epsilon: Added to the variance.
    """

    def __init__(self, groups: int = 32, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.groups:
            raise ValueError(f"GroupNormalization cannot split {channels} channels into {self.groups} groups.")
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)

    def call(self, x):
        shape, channels = tf.shape(x), x.shape[-1]
        cells = tf.cast(tf.reshape(x, [shape[0], -1, channels]), float_dtype())  # (B, H * W, C)
        centered = cells - self._group_means(cells)
        scale = self.gamma * tf.math.rsqrt(self._group_means(tf.square(centered)) + self.epsilon)  # (B, 1, C)
        return tf.cast(tf.reshape(centered * scale + self.beta, shape), x.dtype)

    def _group_means(self, cells):
        """The mean (B, 1, C) of each channel's group; the sum over cells is a product with ones, which is fast."""
        count, channels = tf.shape(cells)[1], cells.shape[-1]
        means = tf.matmul(tf.fill([1, 1, count], 1 / tf.cast(count, cells.dtype)), cells)  # (B, 1, C)
        size = channels // self.groups
        of_groups = tf.reduce_mean(tf.reshape(means, [-1, 1, self.groups, size]), -1, keepdims=True)
        return tf.reshape(tf.tile(of_groups, [1, 1, 1, size]), [-1, 1, channels])

    def compute_output_shape(self, input_shape):
        return input_shape


def _global_moments(x, center):
    """Mean, variance and unbiased variance over all replicas' batches, (C,) each, float32.

    The nearer `center`, (C,), is to the mean, the less is lost where squares are subtracted.
    """
    x = tf.cast(x, float_dtype()) - center
    count = tf.cast(tf.size(x) // tf.shape(x)[-1], float_dtype())
    sums = tf.concat([tf.reduce_sum(x, [0, 1, 2]), tf.reduce_sum(tf.square(x), [0, 1, 2]), [count]], 0)
    total, square, count = tf.split(global_sum(sums), [x.shape[-1], x.shape[-1], 1])
    mean = total / count
    variance = tf.maximum(square / count - tf.square(mean), 0.0)
    return mean + center, variance, variance * count / tf.maximum(count - 1, 1.0)
