"""Feature pyramid network (https://arxiv.org/abs/1612.03144)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.norm import make_norm


@keras.saving.register_keras_serializable(package="kerasdet")
class FPN(ConfigFromInit, keras.layers.Layer):
    """Backbone features ``c3`` ... in, a pyramid ``p3`` ... of equal channels out.

    Args:
        in_features: Which backbone features to merge, finest first.
        channels: Of every output.
        norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        norm_epsilon: Added to variances.
        fusion: How a level is joined with the coarser one: "sum" or "average".
        upsampling: "nearest" or "bilinear".
        top: What makes the levels above the last: None, `MaxPoolTop` or `ConvTop`.

    Raises:
        ValueError: If `fusion` or `upsampling` is unknown.
    """

    def __init__(
        self,
        in_features: Sequence[str] = ("c3", "c4", "c5"),
        channels: int = 256,
        *,
        norm: str | None = None,
        norm_epsilon: float = 1e-5,
        fusion: str = "sum",
        upsampling: str = "nearest",
        top: keras.layers.Layer | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if fusion not in ("sum", "average"):
            raise ValueError(f"FPN has no fusion {fusion!r}: choose 'sum' or 'average'.")
        if upsampling not in ("nearest", "bilinear"):
            raise ValueError(f"FPN has no upsampling {upsampling!r}: choose 'nearest' or 'bilinear'.")
        self.in_features = tuple(in_features)
        self.channels = channels
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.fusion = fusion
        self.upsampling = upsampling
        self.top = top

        def conv(kernel_size, name):
            return ConvNorm(
                channels,
                kernel_size,
                norm=make_norm(norm, norm_epsilon),
                kernel_initializer="lecun_uniform",
                name=name,
            )

        self.laterals = [conv(1, f"lateral_{name}") for name in self.in_features]
        self.outputs = [conv(3, f"output_{name}") for name in self.in_features]

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the outputs, finest first."""
        own = tuple(f"p{name[1:]}" for name in self.in_features)
        first_extra = int(own[-1][1:]) + 1
        return own + tuple(f"p{first_extra + i}" for i in range(self.top.num_levels if self.top else 0))

    def build(self, input_shape):
        for name, lateral, output in zip(self.in_features, self.laterals, self.outputs, strict=True):
            lateral.build(input_shape[name])
            output.build((None, None, None, self.channels))
        if self.top is not None and not self.top.built:
            inner = {f"p{name[1:]}": (None, None, None, self.channels) for name in self.in_features}
            self.top.build({**input_shape, **inner})

    def call(self, features, training=False):
        """The pyramid of `features`: level -> (B, h, w, channels)."""
        merged = None
        pyramid = {}
        for name, lateral, output in reversed(list(zip(self.in_features, self.laterals, self.outputs, strict=True))):
            x = lateral(features[name], training=training)
            if merged is not None:
                x += self._upsample(merged, x)
                if self.fusion == "average":
                    x /= 2
            merged = x
            pyramid[f"p{name[1:]}"] = output(x, training=training)
        pyramid = dict(reversed(pyramid.items()))
        extra = self.top({**features, **pyramid}) if self.top else []
        return dict(zip(self.levels, [*pyramid.values(), *extra], strict=True))

    def _upsample(self, coarse, fine):
        """`coarse` (B, h, w, C) at the size of `fine`, which may be odd: (B, H, W, C)."""
        size = tf.shape(fine)[1:3]
        if self.upsampling == "bilinear":
            return tf.cast(tf.image.resize(coarse, size), coarse.dtype)
        doubled = tf.repeat(tf.repeat(coarse, 2, axis=1), 2, axis=2)
        return doubled[:, : size[0], : size[1]]


@keras.saving.register_keras_serializable(package="kerasdet")
class MaxPoolTop(ConfigFromInit, keras.layers.Layer):
    """One more level by taking every second pixel of the last one: the P6 of Faster R-CNN.

    Args:
        in_feature: Whose pixels.
    """

    num_levels = 1

    def __init__(self, in_feature: str = "p5", **kwargs):
        super().__init__(**kwargs)
        self.in_feature = in_feature

    def call(self, features):
        return [features[self.in_feature][:, ::2, ::2]]


@keras.saving.register_keras_serializable(package="kerasdet")
class ConvTop(ConfigFromInit, keras.layers.Layer):
    """More levels, each by a 3x3 convolution of stride 2 on the one before: P6 and P7 of RetinaNet and FCOS.

    Args:
        in_feature: What the first is made of: ``c5`` or ``p5``.
        channels: Of every level.
        num_levels: How many.
        activation: Between two of them, "relu" or None.
    """

    def __init__(
        self,
        in_feature: str = "c5",
        channels: int = 256,
        *,
        num_levels: int = 2,
        activation: str | None = "relu",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.channels = channels
        self.num_levels = num_levels
        self.activation = activation
        self.convs = [
            ConvNorm(channels, 3, strides=2, kernel_initializer="lecun_uniform", name=f"conv{i}")
            for i in range(num_levels)
        ]

    def build(self, input_shape):
        shape = input_shape[self.in_feature]
        for conv in self.convs:
            conv.build(shape)
            shape = (None, None, None, self.channels)

    def call(self, features):
        activation = keras.activations.get(self.activation)
        extra = [self.convs[0](features[self.in_feature])]
        for conv in self.convs[1:]:
            extra.append(conv(activation(extra[-1])))
        return extra
