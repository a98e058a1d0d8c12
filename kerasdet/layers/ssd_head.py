"""Defines the head of SSD (https://arxiv.org/abs/1512.02325) and SSDLite (https://arxiv.org/abs/1801.04381)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm, DepthwiseConvNorm
from kerasdet.layers.heads import DenseHead, check_attached, per_anchor
from kerasdet.layers.norm import make_norm


@keras.saving.register_keras_serializable(package="kerasdet")
class SSDHead(ConfigFromInit, DenseHead):
    """Predicts class logits (with background) and box deltas for each default box; each level has its own layers.

    Args:
        separable: Whether each predictor is a depthwise 3x3 convolution with ReLU6 followed by a 1x1 convolution
            (SSDLite). If False it is a 3x3 convolution.
        norm: Norm after the depthwise convolutions, a name in `kerasdet.layers.norm.NORMS`. None: no norms. Only for
            `separable` heads.
        norm_epsilon: Constant that the norms add to variances.
        norm_momentum: Weight of the old value when a training step updates a running average of the norms, in [0, 1].

    Example:
        >>> model = kerasdet.SSD(80, head=SSDHead(separable=True, norm="bn"))
    """

    def __init__(
        self,
        separable: bool = False,
        norm: str | None = None,
        norm_epsilon: float = 1e-3,
        norm_momentum: float = 0.97,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.separable = separable
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.norm_momentum = norm_momentum

    def create_layers(
        self, num_classes: int, num_anchors: Sequence[int], levels: tuple[str, ...], channels: Sequence[int]
    ) -> None:
        """Creates the predictors.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: Number of default boxes per cell of each level.
            levels: Names of the levels, finest first.
            channels: Number of channels of each level.
        """
        self.num_classes = num_classes
        self.class_logits = self._predictors([count * (num_classes + 1) for count in num_anchors], "class_logits")
        self.box_deltas = self._predictors([count * 4 for count in num_anchors], "box_deltas")
        self.class_depthwise = self._depthwise("class_depthwise") if self.separable else None
        self.box_depthwise = self._depthwise("box_depthwise") if self.separable else None

    def _predictors(self, filters, name):
        size = 1 if self.separable else 3

        def initializer():
            return keras.initializers.RandomNormal(stddev=0.03) if self.separable else "glorot_uniform"

        _, _, levels, _ = self.attached_to
        convs = [
            ConvNorm(count, size, kernel_initializer=initializer(), name=level)
            for level, count in zip(levels, filters, strict=True)
        ]
        return _EachLevel(convs, name=name)

    def _depthwise(self, name):
        def conv(level):
            norm = make_norm(self.norm, self.norm_epsilon, momentum=self.norm_momentum)
            initializer = keras.initializers.RandomNormal(stddev=0.03)
            return DepthwiseConvNorm(
                3, norm=norm, activation="relu6", use_bias=norm is None, kernel_initializer=initializer, name=level
            )

        _, _, levels, _ = self.attached_to
        return _EachLevel([conv(level) for level in levels], name=name)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for layers in (self.class_depthwise, self.box_depthwise, self.class_logits, self.box_deltas):
            if layers is not None:
                layers.build(self.attached_to[-1])

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits and box deltas for every default box.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Two dicts by level name, float32: ``class_logits`` (B, h * w * A, K + 1), background last, and
            ``box_deltas`` (B, h * w * A, 4) as (dy, dx, dh, dw). A is the number of default boxes per cell of the
            level.
        """
        of_classes = of_boxes = pyramid
        if self.separable:
            of_classes = self.class_depthwise(pyramid, training=training)
            of_boxes = self.box_depthwise(pyramid, training=training)
        logits, deltas = self.class_logits(of_classes), self.box_deltas(of_boxes)
        return {
            "class_logits": {level: per_anchor(x, self.num_classes + 1) for level, x in logits.items()},
            "box_deltas": {level: per_anchor(x, 4) for level, x in deltas.items()},
        }


class _EachLevel(keras.layers.Layer):
    """Applies to each level the layer that has the level's name."""

    def __init__(self, convs, name):
        super().__init__(name=name)
        self.convs = convs

    def build(self, channels: Sequence[int]) -> None:
        for layer, count in zip(self.convs, channels, strict=True):
            layer.build((None, None, None, count))

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        return {layer.name: layer(pyramid[layer.name], training=training) for layer in self.convs}
