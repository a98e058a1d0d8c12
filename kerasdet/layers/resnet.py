"""ResNet, as detectors use it (https://arxiv.org/abs/1512.03385)."""

from collections.abc import Sequence

import keras

from kerasdet.keras_utils import ConfigFromInit
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
    """A normalised image in, feature maps ``c2`` (stride 4), ``c3`` (stride 8) ... out.

    Args:
        depth: 18, 34, 50, 101 or 152; ignored where `stages` and `block` say it all.
        stages: Blocks of each stage, by default those of `depth`. A fifth stage makes ``c6``.
        block: "basic" (two 3x3) or "bottleneck" (1x1, 3x3, 1x1 with four times the width), by default that of `depth`.
        width: Channels of the stem and inner width of the first stage; every stage doubles it.
        out_features: Names of the maps that are returned; later stages than these are not built.
        stride_in_1x1: Stride in a bottleneck's first convolution (caffe, MSRA), not in the 3x3 (torchvision).
        dilate_last: Replace the last built stage's stride by a dilation of 2, so that its map keeps the stride of
            the stage before.
        groups: Of a bottleneck's 3x3 convolution.
        deform_stages: Names of the maps whose blocks have a deformable convolution (as their ``conv2``).
        deform_version: 1, or 2 with a mask.
        deform_groups: Parts of the channels with offsets of their own.
        norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        norm_epsilon: Added to variances.
        freeze_at: How many parts are not trained, the stem counting as the first and ``c2`` as the second.

    Raises:
        ValueError: If the depth, a feature or `block` is unknown, or basic blocks are given groups.
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
        norm: str | None = "frozen_bn",
        norm_epsilon: float = 1e-5,
        freeze_at: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if depth not in _BLOCKS:
            raise ValueError(f"ResNet has no depth {depth}: choose one of {', '.join(map(str, _BLOCKS))}.")
        self.depth = depth
        self.stages = tuple(stages or _BLOCKS[depth][1])
        self.block = block or _BLOCKS[depth][0]
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"ResNet has no block {self.block!r}: choose 'basic' or 'bottleneck'.")
        available = [f"c{i + 2}" for i in range(len(self.stages))]
        if groups > 1 and self.block == "basic":
            raise ValueError(f"ResNet cannot have {groups} groups in basic blocks: choose block='bottleneck'.")
        if unknown := {*out_features, *deform_stages} - set(available):
            raise ValueError(f"ResNet has no feature {sorted(unknown)}: this one has {', '.join(available)}.")
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
        self.channels = {}  # of each feature
        self.blocks = []
        last = max(available.index(name) for name in out_features)
        expansion = 4 if self.block == "bottleneck" else 1
        for index, num_blocks in enumerate(self.stages[: last + 1]):
            dilated = dilate_last and index == last
            self.channels[available[index]] = width * 2**index * expansion
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
        frozen_stages = available[: max(freeze_at - 1, 0)]
        for part in [self.stem, *self.blocks] if freeze_at else []:
            part.trainable = part is not self.stem and _stage(part) not in frozen_stages
        self.build((None, None, None, 3))

    def build(self, input_shape):
        self.stem.build(input_shape)
        shape = (None, None, None, self.width)
        for block in self.blocks:
            block.build(shape)
            shape = (None, None, None, self.channels[_stage(block)])
        self.built = True

    def call(self, images, training=False):
        """Feature maps of `images` (B, H, W, 3): name -> (B, h, w, C)."""
        x = self.pool(self.pool_pad(self.stem(images, training=training)))
        features = {}
        for block in self.blocks:
            x = block(x, training=training)
            features[_stage(block)] = x
        return {name: features[name] for name in self.out_features}


def _stage(block):
    """The feature that a block works on: "c4" for "c4_2"."""
    return block.name.split("_")[0]


class _Block(keras.layers.Layer):
    """A residual block: ``relu(shortcut(x) + convs(x))``."""

    def __init__(self, kind, width, *, strides, dilation, groups, deform, shortcut, stride_in_1x1, norm_layer, name):
        super().__init__(name=name)
        out_channels = width * (4 if kind == "bottleneck" else 1)

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

    def build(self, input_shape):
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.conv.filters)
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def call(self, x, training=False):
        y = x
        for conv in self.convs:
            y = conv(y, training=training)
        if self.shortcut is not None:
            x = self.shortcut(x, training=training)
        return keras.ops.relu(x + y)
