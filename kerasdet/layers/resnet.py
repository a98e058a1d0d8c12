"""Defines ResNet backbones (https://arxiv.org/abs/1512.03385)."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.backbone import check_features
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.deform import DeformConvNorm
from kerasdet.layers.norm import make_norm

_BLOCKS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


@keras.saving.register_keras_serializable(package="kerasdet")
class ResNet(ConfigFromInit, keras.Model):
    """Computes the feature maps ``c2`` (stride 4), ``c3`` (stride 8) and so on of normalised images.

    The model follows the protocol `kerasdet.layers.Backbone`. The defaults suit training from random weights: no part
    is frozen, and the norms are trained. For pretrained weights, the source frameworks use ``norm="frozen_bn"`` and
    ``freeze_at=2``; pass both.

    Args:
        depth: 18, 34, 50, 101 or 152. Defines the defaults of `stages` and `block`.
        stages: Number of residual blocks of each stage, finest first: ``c2``, ``c3`` and so on. A fifth stage creates
            ``c6``. None: the numbers of a ResNet of this `depth`.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, and 1x1 with four times the width). None: the
            block of a ResNet of this `depth`.
        width: Number of channels of the stem, and of the 3x3 convolutions of the first stage; every further stage
            doubles it.
        out_features: Names of the returned feature maps. Stages after the coarsest returned one are not built.
        stride_in_1x1: Whether the first 1x1 convolution of a bottleneck has the stride (Caffe, MSRA). If False the 3x3
            convolution has the stride (torchvision).
        dilate_last: Whether the last built stage has a dilation of 2 in place of its stride, so that its feature map
            keeps the stride of the previous stage.
        groups: Number of channel groups of a bottleneck's 3x3 convolution (ResNeXt). Must be 1 for basic blocks.
        deform_stages: Names of the stages, such as "c3", in whose blocks ``conv2``, the second convolution, is
            deformable.
        deform_version: Version of the deformable convolutions: 1 for offsets, 2 for offsets and a mask.
        deform_groups: Number of input channel groups of the deformable convolutions; each group has its own offsets.
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
        ValueError: If `depth`, `block`, `norm` or a feature name is unknown, if basic blocks have `groups` > 1, or if a
            number is out of its range.

    Example:
        >>> backbone = ResNet(50)
        >>> {name: tuple(x.shape) for name, x in backbone(tf.zeros([1, 256, 320, 3])).items()}
        {'c3': (1, 32, 40, 512), 'c4': (1, 16, 20, 1024), 'c5': (1, 8, 10, 2048)}
        >>> backbone.strides
        {'c3': 8, 'c4': 16, 'c5': 32}
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        stages: Sequence[int] | None = None,
        block: str | None = None,
        width: int = 64,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        stride_in_1x1: bool = False,
        dilate_last: bool = False,
        groups: int = 1,
        deform_stages: Sequence[str] = (),
        deform_version: int = 1,
        deform_groups: int = 1,
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        freeze_at: int = 0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if depth not in _BLOCKS:
            raise ValueError(f"ResNet.depth is {depth}: choose one of {', '.join(map(str, _BLOCKS))}.")
        self.depth = depth
        self.stages = tuple(stages or _BLOCKS[depth][1])
        self.block = block or _BLOCKS[depth][0]
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"ResNet.block is {self.block!r}: choose 'basic' or 'bottleneck'.")
        available = [f"c{i + 2}" for i in range(len(self.stages))]
        if groups > 1 and self.block == "basic":
            raise ValueError(
                f"ResNet.groups is {groups}, but basic blocks allow only 1: set groups=1 or block='bottleneck'."
            )
        check_features("ResNet", out_features, available)
        if unknown := set(deform_stages) - set(available):
            raise ValueError(
                f"ResNet.deform_stages has {', '.join(sorted(unknown))}: expected some of {', '.join(available)}. "
                "Change deform_stages, or add stages."
            )
        check_positive("ResNet", width=width, groups=groups)
        check_numbers("ResNet", 0, len(self.stages) + 1, freeze_at=freeze_at)
        self.width = width
        self.out_features = tuple(out_features)
        self.stride_in_1x1 = stride_in_1x1
        self.dilate_last = dilate_last
        self.groups = groups
        self.deform_stages = tuple(deform_stages)
        self.deform_version = deform_version
        self.deform_groups = deform_groups
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.freeze_at = freeze_at

        def norm_layer():
            return make_norm(norm, norm_epsilon)

        deform = {"deform_version": deform_version, "deform_groups": deform_groups}
        self.stem = ConvNorm(width, 7, strides=2, norm=norm_layer(), activation="relu", use_bias=False, name="stem")
        self.pool_pad = keras.layers.ZeroPadding2D(1)
        self.pool = keras.layers.MaxPooling2D(3, 2)
        self.blocks = []
        stage_channels, stage_strides = {}, {}
        last = max(available.index(name) for name in out_features)
        expansion = 4 if self.block == "bottleneck" else 1
        for index, num_blocks in enumerate(self.stages[: last + 1]):
            dilated = dilate_last and index == last
            stage_channels[available[index]] = width * 2**index * expansion
            stage_strides[available[index]] = 2 ** (index + (1 if dilated else 2))
            self.blocks += [
                _Block(
                    self.block,
                    width * 2**index,
                    strides=2 if index > 0 and number == 0 and not dilated else 1,
                    dilation=2 if dilated else 1,
                    groups=groups,
                    deform=deform if available[index] in deform_stages else None,
                    shortcut=number == 0 and (index > 0 or expansion > 1),
                    stride_in_1x1=stride_in_1x1,
                    norm_layer=norm_layer,
                    name=f"{available[index]}_{number}",
                )
                for number in range(num_blocks)
            ]
        self.features = self.out_features
        self.channels = {name: stage_channels[name] for name in self.features}
        self.strides = {name: stage_strides[name] for name in self.features}
        frozen_stages = available[: max(freeze_at - 1, 0)]
        for part in [self.stem, *self.blocks] if freeze_at else []:
            part.trainable = part is not self.stem and _stage(part) not in frozen_stages
        self.build((None, None, None, 3))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for images of shape (B, H, W, 3); B, H and W may be None."""
        self.stem.build(input_shape)
        shape = (None, None, None, self.width)
        for block in self.blocks:
            block.build(shape)
            shape = (None, None, None, block.out_channels)
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
        x = self.pool(self.pool_pad(self.stem(images, training=training)))
        features = {}
        for block in self.blocks:
            x = block(x, training=training)
            features[_stage(block)] = x
        return {name: features[name] for name in self.out_features}


def _stage(block):
    """Returns the name of the feature map that a block computes: "c4" for "c4_2"."""
    return block.name.split("_")[0]


class _Block(keras.layers.Layer):
    """Computes a residual block: ``relu(shortcut(x) + convs(x))``."""

    def __init__(self, kind, width, *, strides, dilation, groups, deform, shortcut, stride_in_1x1, norm_layer, name):
        super().__init__(name=name)
        self.out_channels = out_channels = width * (4 if kind == "bottleneck" else 1)

        def conv(filters, kernel_size, name, layer=ConvNorm, **options):
            return layer(filters, kernel_size, norm=norm_layer(), use_bias=False, name=name, **options)

        def conv2(**options):
            if deform is None:
                return conv(width, 3, "conv2", dilation=dilation, **options)
            return conv(width, 3, "conv2", DeformConvNorm, dilation=dilation, **deform, **options)

        if kind == "bottleneck":
            first, second = (strides, 1) if stride_in_1x1 else (1, strides)
            self.convs = [
                conv(width, 1, "conv1", strides=first, activation="relu"),
                conv2(strides=second, groups=groups, activation="relu"),
                conv(out_channels, 1, "conv3"),
            ]
        else:
            self.convs = [
                conv(width, 3, "conv1", strides=strides, dilation=dilation, activation="relu"),
                conv2(),
            ]
        self.shortcut = conv(out_channels, 1, "shortcut", strides=strides) if shortcut else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.conv.filters)
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        y = x
        for conv in self.convs:
            y = conv(y, training=training)
        if self.shortcut is not None:
            x = self.shortcut(x, training=training)
        return keras.ops.relu(x + y)
