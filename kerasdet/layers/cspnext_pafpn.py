"""Defines CSPNeXtPAFPN, the neck of RTMDet (https://arxiv.org/abs/2212.07784)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, freeze, policy_scope
from kerasdet.layers.cspnext import CSPLayer, conv_norm_silu
from kerasdet.layers.fpn import upsample_nearest


@keras.saving.register_keras_serializable(package="kerasdet")
class CSPNeXtPAFPN(ConfigFromInit, keras.layers.Layer):
    """Merges backbone features into a pyramid by a path aggregation network (https://arxiv.org/abs/1803.01534).

    `CSPLayer`s merge the features top-down, then bottom-up. All levels ``p3``, ``p4`` ... of the pyramid have the same
    number of channels. The layer accepts any backbone that follows the protocol `kerasdet.layers.Backbone`. Feature
    maps may have odd sizes: an upsampled coarse level is cut to the size of the finer one.

    Args:
        in_features: Names of the backbone features to merge, finest first. Each is ``c`` and a level number, such as
            ``c5``.
        channels: Number of channels of every output level.
        num_blocks: Number of blocks in each `CSPLayer`.
        norm: Norm after each convolution, a name in `kerasdet.layers.norm.NORMS`. None: no norms.
        norm_epsilon: Constant that the norms add to variances.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> backbone = CSPNeXt(0.167, 0.375)
        >>> pyramid = CSPNeXtPAFPN(channels=96, num_blocks=1)(backbone(tf.zeros([1, 256, 320, 3])))
        >>> {name: tuple(level.shape) for name, level in pyramid.items()}
        {'p3': (1, 32, 40, 96), 'p4': (1, 16, 20, 96), 'p5': (1, 8, 10, 96)}
    """

    def __init__(
        self,
        in_features: Sequence[str] = ("c3", "c4", "c5"),
        channels: int = 256,
        *,
        num_blocks: int = 3,
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = tuple(in_features)
        self.channels = channels
        self.num_blocks = num_blocks
        self.norm = norm
        self.norm_epsilon = norm_epsilon

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the output levels, finest first."""
        return tuple(f"p{name[1:]}" for name in self.in_features)

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        """Creates the layers and variables. `input_shape` maps the names of features to their shapes (B, h, w, C)."""
        widths = [input_shape[name][-1] for name in self.in_features]
        with policy_scope(self.dtype_policy):
            self._create_layers(widths)
        for index, (width, coarser) in enumerate(pairwise(widths)):
            self.reductions[index].build((None, None, None, coarser))
            self.top_down[index].build((None, None, None, 2 * width))
            self.downsamples[index].build((None, None, None, width))
            self.bottom_up[index].build((None, None, None, 2 * width))
        for output, width in zip(self.outputs, widths, strict=True):
            output.build((None, None, None, width))
        if not self.trainable:
            freeze(self)

    def _create_layers(self, widths):
        """Creates the layers for features with `widths` channels; both paths keep the channels of each level."""

        def conv(filters, kernel_size, name, **options):
            return conv_norm_silu(filters, kernel_size, self.norm, self.norm_epsilon, name=name, **options)

        def merge(filters, name):
            options = {"identity": False, "norm": self.norm, "norm_epsilon": self.norm_epsilon, "name": name}
            return CSPLayer(filters, self.num_blocks, **options)

        levels = list(zip(self.levels, widths, strict=True))
        self.reductions = [conv(width, 1, f"reduce_{level}") for (_, width), (level, _) in pairwise(levels)]
        self.top_down = [merge(width, f"top_down_{level}") for level, width in levels[:-1]]
        self.downsamples = [conv(width, 3, f"down_{level}", strides=2) for level, width in levels[:-1]]
        self.bottom_up = [merge(width, f"bottom_up_{level}") for level, width in levels[1:]]
        self.outputs = [conv(self.channels, 3, f"output_{level}") for level in self.levels]

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Merges the features into a pyramid.

        Args:
            features: Feature maps (B, h, w, C) by name, the output of a backbone.
            training: Whether batch norms that are not frozen use the statistics of the batch.

        Returns:
            Features (B, h, w, channels) by level name, in the order of `levels` (finest first).
        """
        fine = [features[name] for name in self.in_features]
        x, reduced = fine[-1], []
        for index in reversed(range(len(self.reductions))):
            x = self.reductions[index](x, training=training)
            reduced.insert(0, x)
            joined = tf.concat([upsample_nearest(x, fine[index]), fine[index]], -1)
            x = self.top_down[index](joined, training=training)
        merged = [x]
        for index, coarse in enumerate(reduced):
            down = self.downsamples[index](merged[-1], training=training)
            merged.append(self.bottom_up[index](tf.concat([down, coarse], -1), training=training))
        levels = zip(self.levels, self.outputs, merged, strict=True)
        return {level: output(x, training=training) for level, output, x in levels}
