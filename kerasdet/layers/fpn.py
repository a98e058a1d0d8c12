"""Defines the feature pyramid network (FPN) (https://arxiv.org/abs/1612.03144)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_positive
from kerasdet.geometry.anchors import level_number
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.norm import make_norm
from kerasdet.ops.dispatch import composite


@keras.saving.register_keras_serializable(package="kerasdet")
class FPN(ConfigFromInit, keras.layers.Layer):
    """Merges backbone features ``c3``, ``c4`` ... into a pyramid ``p3``, ``p4`` ... with the same number of channels.

    The layer accepts any backbone that follows the protocol `kerasdet.layers.Backbone`. Feature maps may have odd
    sizes: an upsampled coarse level is cut to the size of the finer one.

    Args:
        in_features: Names of the backbone features to merge, finest first. A name is ``c`` and a level number, such as
            ``c5``. Of two features with the same stride, one has a suffix, such as ``c5_first``; the two are added
            without upsampling.
        channels: Number of channels of every merged level. Detectors need the same number in the levels of `top`.
        norm: Norm after each convolution, a name in `kerasdet.layers.norm.NORMS`. None: no norms.
        norm_epsilon: Constant that the norms add to variances.
        fusion: How a level is merged with the upsampled coarser one: "sum" or "average" of the two.
        upsampling: How a coarser level is resized: "nearest" or "bilinear".
        top: Layer that computes extra, coarser levels: `MaxPoolTop` or `ConvTop`. None for no extra levels.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `fusion`, `upsampling` or `norm` is unknown, or `channels` is not a positive integer.

    Example:
        >>> backbone = ResNet(50)
        >>> neck = FPN(("c3", "c4", "c5"), channels=64, top=ConvTop("c5", 64))
        >>> pyramid = neck(backbone(tf.zeros([1, 256, 320, 3])))
        >>> {name: tuple(level.shape) for name, level in pyramid.items()}
        {'p3': (1, 32, 40, 64), 'p4': (1, 16, 20, 64), 'p5': (1, 8, 10, 64), 'p6': (1, 4, 5, 64), 'p7': (1, 2, 3, 64)}
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
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if fusion not in ("sum", "average"):
            raise ValueError(f"FPN.fusion is {fusion!r}: choose 'sum' or 'average'.")
        if upsampling not in ("nearest", "bilinear"):
            raise ValueError(f"FPN.upsampling is {upsampling!r}: choose 'nearest' or 'bilinear'.")
        check_positive("FPN", channels=channels)
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
        """Names of the output levels, finest first."""
        own = tuple(f"p{name[1:]}" for name in self.in_features)
        first_extra = level_number(own[-1]) + 1
        return own + tuple(f"p{first_extra + i}" for i in range(self.top.num_levels if self.top else 0))

    def build(self, input_shape: dict[str, tuple[int | None, ...]]) -> None:
        """Creates the variables. `input_shape` maps the names of features to their shapes (B, h, w, C)."""
        for name, lateral, output in zip(self.in_features, self.laterals, self.outputs, strict=True):
            lateral.build(input_shape[name])
            output.build((None, None, None, self.channels))
        if self.top is not None and not self.top.built:
            inner = {f"p{name[1:]}": (None, None, None, self.channels) for name in self.in_features}
            self.top.build({**input_shape, **inner})

    def call(self, features: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Merges the features into a pyramid.

        Args:
            features: Feature maps (B, h, w, C) by name, the output of a backbone. Only `top` uses features that are not
                in `in_features`.
            training: Whether batch norms that are not frozen use the statistics of the batch.

        Returns:
            Features (B, h, w, C) by level name, in the order of `levels` (finest first). C is `channels`, or the number
            of channels of `top` for its levels.
        """
        merged = coarser = None
        pyramid = {}
        for name, lateral, output in reversed(list(zip(self.in_features, self.laterals, self.outputs, strict=True))):
            x = lateral(features[name], training=training)
            if merged is not None:
                x += merged if level_number(name) == level_number(coarser) else self._upsample(merged, x)
                if self.fusion == "average":
                    x /= 2
            merged, coarser = x, name
            pyramid[f"p{name[1:]}"] = output(x, training=training)
        pyramid = dict(reversed(pyramid.items()))
        extra = self.top({**features, **pyramid}) if self.top else []
        return dict(zip(self.levels, [*pyramid.values(), *extra], strict=True))

    def _upsample(self, coarse, fine):
        """Resizes `coarse` (B, h, w, C) to the size of `fine`, which may be odd: (B, H, W, C)."""
        if self.upsampling == "bilinear":
            return tf.cast(tf.image.resize(coarse, tf.shape(fine)[1:3]), coarse.dtype)
        return upsample_nearest(coarse, fine)


def upsample_nearest(coarse: tf.Tensor, fine: tf.Tensor) -> tf.Tensor:
    """Doubles the size of a feature map by repeating cells, and cuts the result to the size of the finer level.

    Args:
        coarse: (B, h, w, C) feature map of the coarser level.
        fine: (B, H, W, C) feature map of the finer level, with H = 2 * h or 2 * h - 1, and W = 2 * w or 2 * w - 1.

    Returns:
        The resized feature map, (B, H, W, C).
    """
    size = tf.shape(fine)[1:3]
    doubled = composite(_double, "Doubling")(coarse)
    return doubled[:, : size[0], : size[1]]


def _double(x):
    """Repeats each row and column of `x` (B, h, w, C)."""
    return tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)


@keras.saving.register_keras_serializable(package="kerasdet")
class MaxPoolTop(ConfigFromInit, keras.layers.Layer):
    """Adds one coarser level: every second row and column of another level (P6 of Faster R-CNN).

    Args:
        in_feature: Name of the level to subsample.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    num_levels = 1

    def __init__(self, in_feature: str = "p5", **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.in_feature = in_feature

    def call(self, features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Computes the extra level.

        Args:
            features: Feature maps (B, h, w, C) by name: those of the backbone and the levels of the FPN.

        Returns:
            A list of one tensor (B, ceil(h / 2), ceil(w / 2), C).
        """
        return [features[self.in_feature][:, ::2, ::2]]


@keras.saving.register_keras_serializable(package="kerasdet")
class ConvTop(ConfigFromInit, keras.layers.Layer):
    """Adds coarser levels by 3x3 convolutions of stride 2 (P6 and P7 of RetinaNet and FCOS).

    Args:
        in_feature: Name of the input of the first convolution: a backbone feature (``c5``) or a level (``p5``).
        channels: Number of channels of every extra level.
        num_levels: Number of extra levels, at least 1.
        activation: Name of a Keras activation, applied between two convolutions. None for no activation. The returned
            levels are not activated.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        in_feature: str = "c5",
        channels: int = 256,
        *,
        num_levels: int = 2,
        activation: str | None = "relu",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.channels = channels
        self.num_levels = num_levels
        self.activation = activation
        self.convs = [
            ConvNorm(channels, 3, strides=2, kernel_initializer="lecun_uniform", name=f"conv{i}")
            for i in range(num_levels)
        ]

    def build(self, input_shape: dict[str, tuple[int | None, ...]]) -> None:
        """Creates the variables. `input_shape` maps the names of features and levels to their shapes (B, h, w, C)."""
        shape = input_shape[self.in_feature]
        for conv in self.convs:
            conv.build(shape)
            shape = (None, None, None, self.channels)

    def call(self, features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Computes the extra levels.

        Args:
            features: Feature maps (B, h, w, C) by name: those of the backbone and the levels of the FPN.

        Returns:
            A list of one tensor (B, h, w, channels) per level, finest first; each level halves the height and width of
            the previous one.
        """
        activation = keras.activations.get(self.activation)
        extra = [self.convs[0](features[self.in_feature])]
        for conv in self.convs[1:]:
            extra.append(conv(activation(extra[-1])))
        return extra
