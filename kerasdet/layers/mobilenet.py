"""Defines MobileNetV3, a backbone (https://arxiv.org/abs/1905.02244)."""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.backbone import check_features
from kerasdet.layers.conv import ConvNorm, DepthwiseConvNorm
from kerasdet.layers.norm import make_norm

# Each block: kernel size, expanded channels, output channels, squeeze-and-excitation, hard swish, stride
_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
_TAIL = 13  # first block of c5, counted from 1
_LAST_OF_STAGE = {1: "c1", 3: "c2", 6: "c3", 12: "c4"}  # number of a block -> the feature that it returns
_FEATURES = ("c1", "c2", "c3", "c4", "c4_expanded", "c5_first", "c5")
_STRIDES = {"c4_expanded": 16, "c5_first": 32, **{f"c{i}": 2**i for i in range(1, 6)}}


@keras.saving.register_keras_serializable(package="kerasdet")
class MobileNetV3(ConfigFromInit, keras.Model):
    """Computes the feature maps of MobileNetV3-Large, the backbone of torchvision's mobile detectors.

    The model (https://arxiv.org/abs/1905.02244) follows the protocol `kerasdet.layers.Backbone`. Its features are
    ``c1`` (stride 2) to ``c5`` (stride 32, the output of the last convolution), and two more. ``c4_expanded`` (stride
    16) is the input of the strided convolution in the first block of ``c5``; SSDLite predicts from it. ``c5_first``
    (stride 32) is the output of this block; torchvision's FPN merges it with ``c5``.

    Args:
        width_factor: Factor applied to all numbers of channels, which are then rounded to multiples of 8.
        reduced_tail: Whether the blocks of ``c5`` have half as many channels, as in SSDLite.
        out_features: Names of the returned feature maps.
        norm: Norm after each convolution, a name in `kerasdet.layers.norm.NORMS`. None: no norms.
        norm_epsilon: Constant that the norms add to variances.
        norm_momentum: Weight of the old value when a training step updates a running average of the norms, in [0, 1].
        freeze_at: Number of parts that are frozen (not trained), counted from the input: 1 freezes the stem with
            ``c1``, 2 also ``c2``, and so on. 0 freezes nothing.
        **kwargs: Arguments of `keras.Model`.

    Attributes:
        features: Names of the returned feature maps, in the order of `out_features`.
        channels: Number of channels of each returned feature map, by name.
        strides: Pixels of the image per cell of each returned feature map, by name.

    Raises:
        UserError: If `out_features` is empty or a name is unknown, or `width_factor` is not positive.
        ValueError: If `norm` is unknown.

    Example:
        >>> backbone = MobileNetV3()
        >>> {name: tuple(x.shape) for name, x in backbone(tf.zeros([1, 256, 320, 3])).items()}
        {'c3': (1, 32, 40, 40), 'c4': (1, 16, 20, 112), 'c5': (1, 8, 10, 960)}
    """

    def __init__(
        self,
        *,
        width_factor: float = 1.0,
        reduced_tail: bool = False,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        norm: str | None = "bn",
        norm_epsilon: float = 1e-3,
        norm_momentum: float = 0.99,
        freeze_at: int = 0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        check_features("MobileNetV3", out_features, _FEATURES)
        if width_factor <= 0:
            raise UserError(f"MobileNetV3.width_factor is {width_factor}: expected a number above 0, such as 0.5 or 1.")
        self.width_factor = width_factor
        self.reduced_tail = reduced_tail
        self.out_features = tuple(out_features)
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.norm_momentum = norm_momentum
        self.freeze_at = freeze_at

        def norm_layer():
            return make_norm(norm, norm_epsilon, momentum=norm_momentum)

        def conv(filters, kernel_size, name, **options):
            return ConvNorm(
                filters,
                kernel_size,
                norm=norm_layer(),
                activation="hard_silu",
                use_bias=norm is None,
                name=name,
                **options,
            )

        width = _divisible_by_8(16 * width_factor)
        self.stem = conv(width, 3, "stem", strides=2)
        self.blocks = []
        for number, (kernel_size, inner, outer, excite, swish, strides) in enumerate(_LARGE, start=1):
            if reduced_tail and number >= _TAIL:
                inner, outer = (inner if number == _TAIL else inner // 2), outer // 2
            block = _Block(
                width,
                _divisible_by_8(inner * width_factor),
                _divisible_by_8(outer * width_factor),
                kernel_size,
                strides,
                excite=excite,
                activation="hard_silu" if swish else "relu",
                norm_layer=norm_layer,
                name=f"block{number}",
            )
            self.blocks.append(block)
            width = block.out_channels
        self.last = conv(6 * width, 1, "last")
        self.features = self.out_features
        tail = self.blocks[_TAIL - 1]
        channels = {
            **{name: self.blocks[number - 1].out_channels for number, name in _LAST_OF_STAGE.items()},
            **{"c4_expanded": tail.inner_channels, "c5_first": tail.out_channels, "c5": 6 * width},
        }
        self.channels = {name: channels[name] for name in self.features}
        self.strides = {name: _STRIDES[name] for name in self.features}
        for part in self._parts()[:freeze_at]:
            for layer in part:
                layer.trainable = False
        self.build((None, None, None, 3))

    def _parts(self):
        """Lists the layers of the stages c1 (with the stem) to c5."""
        ends = [0, *_LAST_OF_STAGE, len(self.blocks)]
        stages = [self.blocks[begin:end] for begin, end in itertools.pairwise(ends)]
        return [[self.stem, *stages[0]], *stages[1:-1], [*stages[-1], self.last]]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for images of shape (B, H, W, 3); B, H and W may be None."""
        self.stem.build(input_shape)
        channels = self.stem.conv.filters
        for block in self.blocks:
            block.build((None, None, None, channels))
            channels = block.out_channels
        self.last.build((None, None, None, channels))
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Computes the feature maps of normalised images.

        Args:
            images: (B, H, W, 3) float, normalised.
            training: Whether batch norms that are not frozen use the statistics of the batch.

        Returns:
            Feature maps (B, h, w, C) by name, in the order of `out_features`; h and w are H and W divided by the
            stride, rounded up.
        """
        x, features = self.stem(images, training=training), {}
        for number, block in enumerate(self.blocks, start=1):
            expanded = block.expanded(x, training=training)
            x = block.reduced(x, expanded, training=training)
            if number == _TAIL:
                features |= {"c4_expanded": expanded, "c5_first": x}
            elif number in _LAST_OF_STAGE:
                features[_LAST_OF_STAGE[number]] = x
        features["c5"] = self.last(x, training=training)
        return {name: features[name] for name in self.out_features}


def _divisible_by_8(channels):
    """Rounds a number of channels to a multiple of 8 that is at least 90 % of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class _Block(keras.layers.Layer):
    """Computes an inverted residual block: expansion, depthwise convolution, squeeze-and-excitation, projection."""

    def __init__(
        self, channels, inner_channels, out_channels, kernel_size, strides, *, excite, activation, norm_layer, name
    ):
        super().__init__(name=name)
        self.inner_channels = inner_channels
        self.out_channels = out_channels
        self.residual = strides == 1 and channels == out_channels

        def conv(filters, activation, name):
            norm = norm_layer()
            return ConvNorm(filters, 1, norm=norm, activation=activation, use_bias=norm is None, name=name)

        self.expand = conv(inner_channels, activation, "expand") if inner_channels != channels else None
        norm = norm_layer()
        self.depthwise = DepthwiseConvNorm(
            kernel_size,
            strides=strides,
            norm=norm,
            activation=activation,
            use_bias=norm is None,
            kernel_initializer=keras.initializers.RandomNormal(stddev=(2 / kernel_size**2) ** 0.5),
            name="depthwise",
        )
        self.excite = _Excite(_divisible_by_8(inner_channels // 4), name="excite") if excite else None
        self.reduce = conv(out_channels, None, "reduce")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inner = (*input_shape[:-1], self.inner_channels)
        if self.expand is not None:
            self.expand.build(input_shape)
        for layer in (self.depthwise, self.excite, self.reduce):
            if layer is not None:
                layer.build(inner)
        self.built = True

    def expanded(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return x if self.expand is None else self.expand(x, training=training)

    def reduced(self, x: tf.Tensor, expanded: tf.Tensor, training: bool) -> tf.Tensor:
        y = self.depthwise(expanded, training=training)
        y = y if self.excite is None else self.excite(y)
        y = self.reduce(y, training=training)
        return x + y if self.residual else y


class _Excite(keras.layers.Layer):
    """Applies squeeze-and-excitation: weights each channel by a function of all channel means (arXiv 1709.01507)."""

    def __init__(self, squeezed, name):
        super().__init__(name=name)
        self.squeeze = ConvNorm(squeezed, 1, activation="relu", name="squeeze")
        self.squeezed = squeezed

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.weigh = ConvNorm(input_shape[-1], 1, activation="hard_sigmoid", name="weigh")
        self.squeeze.build(input_shape)
        self.weigh.build((*input_shape[:-1], self.squeezed))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # TensorFlow sums the cells of a large map one by one in float32 and loses digits; sums of row means keep them
        means = tf.reduce_mean(tf.reduce_mean(x, 2, keepdims=True), 1, keepdims=True)  # (B, 1, 1, C)
        return x * self.weigh(self.squeeze(means))
