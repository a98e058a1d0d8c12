"""Defines the neck of SSD (https://arxiv.org/abs/1512.02325) and SSDLite (https://arxiv.org/abs/1801.04381)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry.anchors import level_number
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm, DepthwiseConvNorm
from kerasdet.layers.norm import make_norm


@keras.saving.register_keras_serializable(package="kerasdet")
class SSDNeck(ConfigFromInit, keras.layers.Layer):
    """Returns backbone features as the finest levels ``p3``, ``p4`` ..., and adds coarser levels by convolutions.

    Each extra level is computed from the previous level: a 1x1 convolution to half of the extra level's channels, then
    a 3x3 convolution with a stride of 2.

    Args:
        in_features: Names of the backbone features, finest first. Each is ``c`` and a level number, such as ``c3``.
        extra_channels: Number of channels of each extra level.
        unpadded: Number of extra levels, counted from the coarsest, whose 3x3 convolution has a stride of 1 and no
            padding. It reduces height and width by two cells, such as from 3x3 to 1x1. SSD300 has 2 such levels.
            Must be 0 if `separable` is True.
        separable: Whether each 3x3 convolution is a depthwise one with ReLU6, followed by a 1x1 convolution (SSDLite).
        norm: Norm after each convolution of the extra levels, a name in `kerasdet.layers.norm.NORMS`. None: no norms.
        norm_epsilon: Constant that the norms add to variances.
        norm_momentum: Weight of the old value when a training step updates a running average of the norms, in [0, 1].
        finest_scale: Initial value of a trainable factor per channel, by which the finest level is multiplied after an
            L2 normalisation of each cell (ParseNet, https://arxiv.org/abs/1506.04579). SSD300 has 20. None leaves the
            level unchanged.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        UserError: If there is no extra level, `unpadded` is negative or exceeds the number of extra levels, or the
            neck is `separable` and `unpadded` is not 0.
        ValueError: If `norm` is unknown.

    Example:
        >>> neck = SSDNeck(("c3", "c4"), (512, 256, 256, 256), unpadded=2, finest_scale=20.0)
        >>> neck.levels
        ('p3', 'p4', 'p5', 'p6', 'p7', 'p8')
    """

    def __init__(
        self,
        in_features: Sequence[str] = ("c3", "c4"),
        extra_channels: Sequence[int] = (512, 256, 256, 256),
        *,
        unpadded: int = 0,
        separable: bool = False,
        norm: str | None = None,
        norm_epsilon: float = 1e-3,
        norm_momentum: float = 0.97,
        finest_scale: float | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if not extra_channels or not 0 <= unpadded <= len(extra_channels):
            raise UserError(
                f"SSDNeck got extra_channels={tuple(extra_channels)} and unpadded={unpadded}: expected at least one "
                f"entry in extra_channels, and unpadded from 0 to the number of these entries. Change unpadded or "
                "extra_channels."
            )
        if separable and unpadded:
            raise UserError(
                f"SSDNeck got separable=True and unpadded={unpadded}: expected unpadded=0, because depthwise "
                "convolutions are always padded. Set unpadded=0 or separable=False."
            )
        self.in_features = tuple(in_features)
        self.extra_channels = tuple(extra_channels)
        self.unpadded = unpadded
        self.separable = separable
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.norm_momentum = norm_momentum
        self.finest_scale = finest_scale
        self.levels = tuple(f"p{level_number(name)}" for name in self.in_features)
        first = level_number(self.levels[-1]) + 1
        self.levels += tuple(f"p{first + i}" for i in range(len(self.extra_channels)))
        self.extra = [
            self._convs(index, channels, padded=index < len(self.extra_channels) - unpadded)
            for index, channels in enumerate(self.extra_channels)
        ]

    def _convs(self, index, channels, padded):
        def options(name):
            norm = make_norm(self.norm, self.norm_epsilon, momentum=self.norm_momentum)
            activation = "relu6" if self.separable else "relu"
            initializer = keras.initializers.RandomNormal(stddev=0.03) if self.separable else "glorot_uniform"
            return {
                "norm": norm,
                "activation": activation,
                "use_bias": norm is None,
                "kernel_initializer": initializer,
                "name": f"extra{index}_{name}",
            }

        reduce = ConvNorm(channels // 2, 1, **options("reduce"))
        if self.separable:
            depthwise = DepthwiseConvNorm(3, strides=2, **options("depthwise"))
            return [reduce, depthwise, ConvNorm(channels, 1, **options("expand"))]
        return [reduce, ConvNorm(channels, 3, strides=2 if padded else 1, padded=padded, **options("conv"))]

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each level, after `build`."""
        return self._in_channels + self.extra_channels

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        """Creates the variables. `input_shape` maps the names of features to their shapes (B, h, w, C)."""
        self._in_channels = tuple(input_shape[name][-1] for name in self.in_features)
        if self.finest_scale is not None:
            self.scale_weight = self.add_weight(
                name="scale_weight",
                shape=self._in_channels[:1],
                initializer=keras.initializers.Constant(self.finest_scale),
            )
        channels = self._in_channels[-1]
        for convs in self.extra:
            for conv in convs:
                conv.build((None, None, None, channels))
                channels = conv.conv.filters if isinstance(conv, ConvNorm) else channels

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Computes the levels.

        Args:
            features: Feature maps (B, h, w, C) by name, the output of a backbone.
            training: Whether batch norms that are not frozen use the statistics of the batch.

        Returns:
            Features (B, h, w, C) by level name, in the order of `levels` (finest first).
        """
        maps = [features[name] for name in self.in_features]
        if self.finest_scale is not None:
            x = tf.cast(maps[0], tf.float32)  # sums of squares overflow in float16
            norm = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x), -1, keepdims=True), 1e-24))  # (B, h, w, 1)
            maps[0] = tf.cast(x / norm, maps[0].dtype) * tf.cast(self.scale_weight, maps[0].dtype)
        x = features[self.in_features[-1]]
        for convs in self.extra:
            for conv in convs:
                x = conv(x, training=training)
            maps.append(x)
        return dict(zip(self.levels, maps, strict=True))
