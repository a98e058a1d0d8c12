"""Defines CSPNeXt, the backbone of RTMDet, and the blocks that its neck shares (https://arxiv.org/abs/2212.07784)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.backbone import check_features
from kerasdet.layers.conv import ConvNorm, DepthwiseConvNorm
from kerasdet.layers.norm import make_norm

_BLOCKS = (3, 6, 6, 3)  # blocks of the stages c2 to c5 at a deepen_factor of 1
_CHANNELS = 64  # channels of the stem at a widen_factor of 1; each stage doubles them


def conv_norm_silu(filters: int, kernel_size: int, norm: str | None, norm_epsilon: float, **kwargs) -> ConvNorm:
    """Makes a convolution that is followed by a norm and a SiLU, and initialised like PyTorch's convolutions.

    Args:
        filters: Number of output channels.
        kernel_size: Height and width of the kernel in cells; odd.
        norm: Name of the norm, one of `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norm adds to variances.
        **kwargs: Arguments of `ConvNorm`.

    Returns:
        The layer, without variables yet.
    """
    return ConvNorm(
        filters,
        kernel_size,
        norm=make_norm(norm, norm_epsilon),
        activation="silu",
        use_bias=norm is None,
        kernel_initializer=_torch_uniform(),
        **kwargs,
    )


def _torch_uniform():
    """Returns a new initializer, uniform in +-1 / sqrt(fan-in): layers must not share an initializer object."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


class CSPNeXtBlock(keras.layers.Layer):
    """Applies a 3x3, a depthwise 5x5 and a 1x1 convolution, each with a norm and a SiLU.

    Args:
        channels: Number of channels of the input, of each convolution and of the output.
        identity: Whether the input is added to the output.
        norm: Name of the norms, one of `kerasdet.layers.norm.NORMS`, or None for no norms.
        norm_epsilon: Constant that the norms add to variances.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, channels: int, identity: bool, norm: str | None = "bn", norm_epsilon: float = 1e-5, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.identity = identity
        self.convs = [
            conv_norm_silu(channels, 3, norm, norm_epsilon, name="conv1"),
            DepthwiseConvNorm(
                5,
                norm=make_norm(norm, norm_epsilon),
                activation="silu",
                use_bias=norm is None,
                kernel_initializer=keras.initializers.RandomUniform(-0.2, 0.2),  # 1 / sqrt(5 * 5)
                name="depthwise",
            ),
            conv_norm_silu(channels, 1, norm, norm_epsilon, name="pointwise"),
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, h, w, channels)."""
        for conv in self.convs:
            conv.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies the block.

        Args:
            x: (B, h, w, channels).
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Features (B, h, w, channels).
        """
        y = x
        for conv in self.convs:
            y = conv(y, training=training)
        return x + y if self.identity else y


class CSPLayer(keras.layers.Layer):
    """Applies a cross-stage partial (CSP) layer (CSPNet, https://arxiv.org/abs/1911.11929).

    Two 1x1 convolutions project the input to two branches. Blocks process the first branch only; then both branches are
    concatenated, and a 1x1 convolution follows.

    Args:
        channels: Number of output channels; each branch has half as many.
        num_blocks: Number of `CSPNeXtBlock`s in the first branch.
        identity: Whether each block adds its input to its output.
        attention: Whether `ChannelAttention` weights the concatenated channels.
        norm: Name of the norms, one of `kerasdet.layers.norm.NORMS`, or None for no norms.
        norm_epsilon: Constant that the norms add to variances.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        channels: int,
        num_blocks: int,
        *,
        identity: bool,
        attention: bool = False,
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        half = channels // 2
        self.channels = channels
        self.half = half
        self.main = conv_norm_silu(half, 1, norm, norm_epsilon, name="main")
        self.short = conv_norm_silu(half, 1, norm, norm_epsilon, name="short")
        self.blocks = [CSPNeXtBlock(half, identity, norm, norm_epsilon, name=f"block{i}") for i in range(num_blocks)]
        self.attention = ChannelAttention(2 * half, name="attention") if attention else None
        self.final = conv_norm_silu(channels, 1, norm, norm_epsilon, name="final")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, h, w, C)."""
        self.main.build(input_shape)
        self.short.build(input_shape)
        for block in self.blocks:
            block.build((None, None, None, self.half))
        joined = (None, None, None, 2 * self.half)
        if self.attention is not None:
            self.attention.build(joined)
        self.final.build(joined)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies the layer.

        Args:
            x: (B, h, w, C).
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Features (B, h, w, channels).
        """
        main = self.main(x, training=training)
        for block in self.blocks:
            main = block(main, training=training)
        joined = tf.concat([main, self.short(x, training=training)], -1)
        if self.attention is not None:
            joined = self.attention(joined)
        return self.final(joined, training=training)


class ChannelAttention(keras.layers.Layer):
    """Multiplies each channel by a weight: the hard sigmoid of a 1x1 convolution of the channel means.

    Args:
        channels: Number of channels of the input.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, channels: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.fc = ConvNorm(channels, 1, kernel_initializer=_torch_uniform(), name="fc")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, h, w, channels)."""
        self.fc.build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies each channel by its weight.

        Args:
            x: (B, h, w, channels).

        Returns:
            Features (B, h, w, channels).
        """
        logits = self.fc(tf.reduce_mean(x, [1, 2], keepdims=True))  # (B, 1, 1, C)
        return x * (tf.nn.relu6(logits + 3) / 6)


class SPP(keras.layers.Layer):
    """Applies spatial pyramid pooling (https://arxiv.org/abs/1406.4729).

    The layer concatenates features with their maxima over 5x5, 9x9 and 13x13 cells.

    Args:
        channels: Number of channels of input and output; the pooled features have half as many.
        norm: Name of the norms, one of `kerasdet.layers.norm.NORMS`, or None for no norms.
        norm_epsilon: Constant that the norms add to variances.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, channels: int, norm: str | None = "bn", norm_epsilon: float = 1e-5, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.half = channels // 2
        self.conv1 = conv_norm_silu(self.half, 1, norm, norm_epsilon, name="conv1")
        self.conv2 = conv_norm_silu(channels, 1, norm, norm_epsilon, name="conv2")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, h, w, channels)."""
        self.conv1.build(input_shape)
        self.conv2.build((None, None, None, 4 * self.half))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies spatial pyramid pooling.

        Args:
            x: (B, h, w, channels).
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Features (B, h, w, channels).
        """
        pooled = [self.conv1(x, training=training)]
        for _ in range(3):  # 5x5 pooling twice is 9x9 pooling, three times 13x13
            pooled.append(tf.nn.max_pool2d(pooled[-1], 5, 1, "SAME"))
        return self.conv2(tf.concat(pooled, -1), training=training)


@keras.saving.register_keras_serializable(package="kerasdet")
class CSPNeXt(ConfigFromInit, keras.Model):
    """Computes the feature maps ``c2`` (stride 4) to ``c5`` (stride 32) of normalised images.

    This is the backbone of RTMDet (https://arxiv.org/abs/2212.07784). It follows the protocol
    `kerasdet.layers.Backbone`. RTMDet's released models have these sizes:

    | | tiny | s | m | l | x |
    |---|---|---|---|---|---|
    | deepen_factor | 0.167 | 0.33 | 0.67 | 1 | 1.33 |
    | widen_factor | 0.375 | 0.5 | 0.75 | 1 | 1.25 |

    Args:
        deepen_factor: Factor applied to the numbers of blocks, which are 3, 6, 6 and 3 for ``c2`` to ``c5``. The
            results are rounded, and at least 1.
        widen_factor: Factor applied to the numbers of channels, which are 128, 256, 512 and 1024 for ``c2`` to ``c5``.
            The results are rounded down.
        out_features: Names of the returned feature maps. Stages after the coarsest returned one are not built.
        norm: Norm after each convolution, a name in `kerasdet.layers.norm.NORMS`. None: no norms.
        norm_epsilon: Constant that the norms add to variances.
        freeze_at: Number of parts that are frozen (not trained), counted from the input: 1 freezes the stem, 2 also
            ``c2``, and so on. 0 freezes nothing.
        **kwargs: Arguments of `keras.Model`.

    Attributes:
        features: Names of the returned feature maps, in the order of `out_features`.
        channels: Number of channels of each returned feature map, by name.
        strides: Pixels of the image per cell of each returned feature map, by name.

    Raises:
        UserError: If a feature name is unknown, or `widen_factor` is below 1/32.
        ValueError: If `norm` is unknown.

    Example:
        >>> backbone = CSPNeXt(0.167, 0.375)
        >>> {name: tuple(x.shape) for name, x in backbone(tf.zeros([1, 256, 320, 3])).items()}
        {'c3': (1, 32, 40, 96), 'c4': (1, 16, 20, 192), 'c5': (1, 8, 10, 384)}
    """

    def __init__(
        self,
        deepen_factor: float = 1.0,
        widen_factor: float = 1.0,
        *,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        freeze_at: int = 0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        available = [f"c{i + 2}" for i in range(len(_BLOCKS))]
        check_features("CSPNeXt", out_features, available)
        width = int(_CHANNELS * widen_factor)
        if width < 2:
            raise UserError(
                f"CSPNeXt.widen_factor is {widen_factor}: expected at least 1/32, so that the stem has 2 channels. "
                "Increase widen_factor."
            )
        self.deepen_factor = deepen_factor
        self.widen_factor = widen_factor
        self.out_features = tuple(out_features)
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.freeze_at = freeze_at
        self.stem = [
            conv_norm_silu(filters, 3, norm, norm_epsilon, strides=strides, name=f"stem{i}")
            for i, (filters, strides) in enumerate([(width // 2, 2), (width // 2, 1), (width, 1)])
        ]
        self.stages = {}
        for index, name in enumerate(available[: max(map(available.index, out_features)) + 1]):
            channels = int(_CHANNELS * 2 ** (index + 1) * widen_factor)
            is_last = name == available[-1]  # the coarsest stage has an SPP and no residuals
            stage = [conv_norm_silu(channels, 3, norm, norm_epsilon, strides=2, name=f"{name}_down")]
            stage += [SPP(channels, norm, norm_epsilon, name=f"{name}_spp")] if is_last else []
            stage.append(
                CSPLayer(
                    channels,
                    max(round(_BLOCKS[index] * deepen_factor), 1),
                    identity=not is_last,
                    attention=True,
                    norm=norm,
                    norm_epsilon=norm_epsilon,
                    name=f"{name}_csp",
                )
            )
            self.stages[name] = stage
        self.features = self.out_features
        self.channels = {name: self.stages[name][-1].channels for name in self.features}
        self.strides = {name: 2 ** int(name[1:]) for name in self.features}
        for stage in [self.stem, *self.stages.values()][:freeze_at]:
            for layer in stage:
                layer.trainable = False
        self.build((None, None, None, 3))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for images of shape (B, H, W, 3); B, H and W may be None."""
        shape = input_shape
        for layer in [*self.stem, *(layer for stage in self.stages.values() for layer in stage)]:
            layer.build(shape)
            channels = layer.conv.filters if isinstance(layer, ConvNorm) else getattr(layer, "channels", shape[-1])
            shape = (None, None, None, channels)
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
        x = images
        for layer in self.stem:
            x = layer(x, training=training)
        features = {}
        for name, stage in self.stages.items():
            for layer in stage:
                x = layer(x, training=training)
            features[name] = x
        return {name: features[name] for name in self.out_features}
