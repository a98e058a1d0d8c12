"""Defines the heads of R-CNNs, which predict for each region. N is the number of regions of all images in the batch."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.norm import make_norm


@keras.saving.register_keras_serializable(package="kerasdet")
class BoxHead(ConfigFromInit, keras.layers.Layer):
    """Converts pooled features to one vector per region by 3x3 convolutions, then fully connected layers.

    Args:
        num_convs: Number of 3x3 convolutions; the standard head has 0.
        conv_channels: Number of output channels of each convolution.
        num_fcs: Number of fully connected layers; the standard head has 2.
        fc_channels: Number of output channels of each fully connected layer.
        norm: Norm of the convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.

    Attributes:
        out_channels: Length of a region's vector, after `build`: `fc_channels`, or the size of the flattened features
            if `num_fcs` is 0.

    Raises:
        ValueError: If `num_convs` is not 0 and `norm` is unknown.
    """

    def __init__(
        self,
        num_convs: int = 0,
        conv_channels: int = 256,
        num_fcs: int = 2,
        fc_channels: int = 1024,
        norm: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_convs = num_convs
        self.conv_channels = conv_channels
        self.num_fcs = num_fcs
        self.fc_channels = fc_channels
        self.norm = norm
        self.convs = [_conv(conv_channels, norm, i) for i in range(num_convs)]
        self.fcs = [
            keras.layers.Dense(fc_channels, activation="relu", kernel_initializer="lecun_uniform", name=f"fc{i}")
            for i in range(num_fcs)
        ]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for pooled features of shape (N, h, w, C)."""
        shape = _build_all(self.convs, input_shape)
        size = shape[1] * shape[2] * shape[3]
        for fc in self.fcs:
            fc.build((None, size))
            size = self.fc_channels
        self.out_channels = size

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Computes one vector per region.

        Args:
            x: (N, h, w, C) pooled features of N regions.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            The vectors, (N, `out_channels`).
        """
        for conv in self.convs:
            x = conv(x, training=training)
        x = tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]])
        for fc in self.fcs:
            x = fc(x)
        return x


@keras.saving.register_keras_serializable(package="kerasdet")
class BoxPredictor(ConfigFromInit, keras.layers.Layer):
    """Predicts class logits and box deltas of a region from its vector.

    Args:
        num_classes: K, number of classes without background.
        class_agnostic: Whether a region has a single box for all classes instead of one box per class.
    """

    def __init__(self, num_classes: int, class_agnostic: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.class_logits = keras.layers.Dense(
            num_classes + 1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01), name="class_logits"
        )
        self.box_deltas = keras.layers.Dense(
            4 * (1 if class_agnostic else num_classes),
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
            name="box_deltas",
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for vectors of shape (N, C)."""
        self.class_logits.build(input_shape)
        self.box_deltas.build(input_shape)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Predicts classes and boxes of regions.

        Args:
            x: (N, C) one vector per region.

        Returns:
            Class logits (N, K + 1), background last, and box deltas (N, K, 4) as (dy, dx, dh, dw), or (N, 1, 4) if
            `class_agnostic`; float32.
        """
        deltas = tf.reshape(self.box_deltas(x), [-1, 1 if self.class_agnostic else self.num_classes, 4])
        return tf.cast(self.class_logits(x), float_dtype()), tf.cast(deltas, float_dtype())


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskHead(ConfigFromInit, keras.layers.Layer):
    """Predicts a mask of twice the pooled size for each class (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    Args:
        num_classes: K, number of classes without background.
        num_convs: Number of 3x3 convolutions before the transposed convolution.
        channels: Number of output channels of the 3x3 convolutions and of the transposed convolution.
        norm: Norm of the 3x3 convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.

    Raises:
        ValueError: If `num_convs` is not 0 and `norm` is unknown.
    """

    def __init__(self, num_classes: int, num_convs: int = 4, channels: int = 256, norm: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_convs = num_convs
        self.channels = channels
        self.norm = norm
        self.convs = [_conv(channels, norm, i) for i in range(num_convs)]
        self.deconv = keras.layers.Conv2DTranspose(
            channels,
            2,
            strides=2,
            activation="relu",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
            name="deconv",
        )
        self.mask_logits = ConvNorm(
            num_classes, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.001), name="mask_logits"
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for pooled features of shape (N, h, w, C)."""
        shape = _build_all(self.convs, input_shape)
        self.deconv.build(shape)
        self.mask_logits.build((*shape[:-1], self.channels))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Predicts a mask per class.

        Args:
            x: (N, h, w, C) pooled features of N regions.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Mask logits, (N, 2h, 2w, K) float32.
        """
        for conv in self.convs:
            x = conv(x, training=training)
        return tf.cast(self.mask_logits(self.deconv(x)), float_dtype())


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointHead(ConfigFromInit, keras.layers.Layer):
    """Predicts a heatmap of four times the pooled size for each keypoint (Mask R-CNN, section 5).

    Args:
        num_keypoints: J, number of keypoints of an object.
        num_convs: Number of 3x3 convolutions before the transposed convolution.
        channels: Number of output channels of the 3x3 convolutions.
    """

    def __init__(self, num_keypoints: int, num_convs: int = 8, channels: int = 512, **kwargs):
        super().__init__(**kwargs)
        self.num_keypoints = num_keypoints
        self.num_convs = num_convs
        self.channels = channels
        self.convs = [_conv(channels, None, i) for i in range(num_convs)]
        self.deconv = keras.layers.Conv2DTranspose(
            num_keypoints,
            4,
            strides=2,
            padding="same",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
            name="deconv",
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for pooled features of shape (N, h, w, C)."""
        self.deconv.build(_build_all(self.convs, input_shape))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Predicts a heatmap per keypoint.

        Args:
            x: (N, h, w, C) pooled features of N regions.

        Returns:
            Heatmaps of logits, (N, 4h, 4w, J) float32.
        """
        for conv in self.convs:
            x = conv(x)
        x = tf.cast(self.deconv(x), float_dtype())
        return tf.image.resize(x, 2 * tf.shape(x)[1:3])


def _conv(channels, norm, index):
    return ConvNorm(channels, 3, norm=make_norm(norm), activation="relu", name=f"conv{index}")


def _build_all(convs, shape):
    for conv in convs:
        conv.build(shape)
        shape = (*shape[:-1], conv.conv.filters)
    return shape
