"""Defines the head of RTMDet (https://arxiv.org/abs/2212.07784)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.heads import (
    DenseHead,
    Tower,
    check_attached,
    check_one_point,
    check_prior,
    per_anchor,
    prior_bias,
    small_normal,
)

_MOMENTUM = 0.9  # momentum of batch norms, the weight of the old average (PyTorch's default of 0.1 is the new value's)


@keras.saving.register_keras_serializable(package="kerasdet")
class RTMDetHead(ConfigFromInit, DenseHead):
    """Predicts classes and distances to the sides of a box for each point (RTMDet, https://arxiv.org/abs/2212.07784).

    The levels share the towers' convolutions; each level has its own predictors and batch norms. The head returns raw
    distances, which `DistanceCoder.activate` converts to distances, by default in strides.

    Args:
        num_convs: Number of convolutions in each tower.
        norm: Norm of the towers, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        box_tower: Whether distances have a separate tower. If False they are predicted from the class tower, as in
            RTMDet-Ins. mmdetection then runs the class tower twice per step, which updates the running averages of its
            norms twice. kerasdet runs it once, and squares the momentum so that one update has the same effect.
        box_bias: Raw distance that each point predicts before training.
        prior_probability: Probability of each class at each point before training, in (0, 1).

    Raises:
        UserError: If `num_convs` is negative, or `prior_probability` is not in (0, 1).

    Example:
        >>> model = kerasdet.RTMDet(80, head=RTMDetHead(norm="sync_bn"))
    """

    def __init__(
        self,
        num_convs: int = 2,
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        box_tower: bool = True,
        box_bias: float = 0.0,
        prior_probability: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_numbers("RTMDetHead", 0, num_convs=num_convs)
        check_prior("RTMDetHead", prior_probability)
        self.num_convs = num_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.box_tower = box_tower
        self.box_bias = box_bias
        self.prior_probability = prior_probability

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the towers and predictors.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: Number of points in each cell; must be 1.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.

        Raises:
            UserError: If `num_anchors` is not 1.
        """
        check_one_point(self, num_anchors)
        momentum = _MOMENTUM if self.box_tower else _MOMENTUM**2
        norm = {"norm": self.norm, "norm_epsilon": self.norm_epsilon, "norm_momentum": momentum, "activation": "silu"}
        self.towers = [
            Tower(self.num_convs, channels, levels, **norm, name=name)
            for name in ("class_tower", "box_tower")[: 2 if self.box_tower else 1]
        ]
        self.class_logits = LevelPredictors(num_classes, levels, prior_bias(self.prior_probability), "class_logits")
        self.box_distances = LevelPredictors(4, levels, self.box_bias, "box_distances")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for layer in (*self.towers, self.class_logits, self.box_distances):
            layer.build(input_shape)

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits and raw distances for every point.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Two dicts by level name, float32: ``class_logits`` with (B, h * w, K), and ``box_distances`` with
            (B, h * w, 4) raw distances as (t, l, b, r).
        """
        class_logits, box_distances = {}, {}
        for level, x in pyramid.items():
            features = [tower(x, level=level, training=training) for tower in self.towers]  # (B, h, w, C) each
            class_logits[level] = self.class_logits(features[0], level=level)
            box_distances[level] = self.box_distances(features[-1], level=level)
        return {"class_logits": class_logits, "box_distances": box_distances}


class LevelPredictors(keras.layers.Layer):
    """Predicts values for each cell by a 1x1 convolution; each level has its own convolution.

    Args:
        size: Number of values per cell.
        levels: Names of the pyramid's levels.
        bias: Initial value of all biases.
        name: Name of the layer.
    """

    def __init__(self, size: int, levels: Sequence[str], bias: float = 0.0, name: str | None = None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.size = size
        self.convs = {
            level: ConvNorm(
                size,
                1,
                kernel_initializer=small_normal(),
                bias_initializer=keras.initializers.Constant(bias),
                name=level,
            )
            for level in levels
        }

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for features of shape (B, h, w, C)."""
        for conv in self.convs.values():
            conv.build(input_shape)

    def call(self, x: tf.Tensor, level: str) -> tf.Tensor:
        """Predicts the values of one level.

        Args:
            x: (B, h, w, C) feature map.
            level: Name of the pyramid level.

        Returns:
            The values, (B, h * w, size) float32.
        """
        return per_anchor(self.convs[level](x), self.size)
