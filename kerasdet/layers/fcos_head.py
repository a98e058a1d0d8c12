"""Defines the head of FCOS (https://arxiv.org/abs/1904.01355)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.heads import (
    DenseHead,
    Tower,
    check_attached,
    check_one_point,
    check_prior,
    class_predictor,
    per_anchor,
    predictor,
)


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOSHead(ConfigFromInit, DenseHead):
    """Predicts classes, distances to the sides of a box, and centerness for each point (FCOS, arXiv 2006.09214).

    The head returns raw distances, which may be negative. `DistanceCoder.activate` converts them to distances.

    Args:
        num_convs: Number of convolutions in each of the two towers.
        norm: Norm of the towers, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        use_bias: Whether the towers' convolutions have biases in addition to a norm. If `norm` is None, they have
            biases in any case.
        deform_last: Whether the last convolution of each tower is a modulated deformable convolution (DCNv2).
        centerness_on_boxes: Whether centerness is predicted from the box tower. If False it is predicted from the class
            tower.
        level_scales: Whether the raw distances of each level are multiplied by a trainable scalar, which starts at 1.
        prior_probability: Probability of each class at each point before training, in (0, 1).

    Raises:
        UserError: If `num_convs` is negative, or `prior_probability` is not in (0, 1).

    Example:
        >>> model = kerasdet.FCOS(80, head=FCOSHead(num_convs=2, level_scales=True))
    """

    def __init__(
        self,
        num_convs: int = 4,
        norm: str | None = "gn",
        norm_epsilon: float = 1e-5,
        use_bias: bool = True,
        deform_last: bool = False,
        centerness_on_boxes: bool = True,
        level_scales: bool = False,
        prior_probability: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_numbers("FCOSHead", 0, num_convs=num_convs)
        check_prior("FCOSHead", prior_probability)
        self.num_convs = num_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.use_bias = use_bias
        self.deform_last = deform_last
        self.centerness_on_boxes = centerness_on_boxes
        self.level_scales = level_scales
        self.prior_probability = prior_probability

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the towers, predictors and level scales.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: Number of points in each cell; must be 1.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.

        Raises:
            UserError: If `num_anchors` is not 1.
        """
        check_one_point(self, num_anchors)
        self.num_classes = num_classes
        use_bias = self.use_bias or None  # None: biases only if there is no norm
        tower = (self.num_convs, channels, levels, self.norm, self.norm_epsilon, self.deform_last, use_bias)
        self.class_tower = Tower(*tower, name="class_tower")
        self.box_tower = Tower(*tower, name="box_tower")
        self.class_logits = class_predictor(num_classes, self.prior_probability)
        self.box_distances = predictor(4, "box_distances")
        self.centerness = predictor(1, "centerness")
        self.scales = {level: Scale(name=f"scale_{level}") for level in levels} if self.level_scales else {}

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for tower in (self.class_tower, self.box_tower):
            tower.build(input_shape)
        for last in (self.class_logits, self.box_distances, self.centerness):
            last.build((*input_shape[:-1], self.class_tower.channels))
        for scale in self.scales.values():
            scale.build(())

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits, raw distances and centerness for every point.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Three dicts by level name, float32: ``class_logits`` with (B, h * w, K), ``box_distances`` with (B, h * w,
            4) raw distances as (t, l, b, r), and ``centerness`` with (B, h * w) logits.
        """
        class_logits, box_distances, centerness = {}, {}, {}
        for level, x in pyramid.items():
            of_classes = self.class_tower(x, level=level, training=training)  # (B, h, w, C)
            of_boxes = self.box_tower(x, level=level, training=training)  # (B, h, w, C)
            class_logits[level] = per_anchor(self.class_logits(of_classes), self.num_classes)
            distances = per_anchor(self.box_distances(of_boxes), 4)
            box_distances[level] = self.scales[level](distances) if level in self.scales else distances
            logits = self.centerness(of_boxes if self.centerness_on_boxes else of_classes)  # (B, h, w, 1)
            centerness[level] = per_anchor(logits, 1)[..., 0]
        return {"class_logits": class_logits, "box_distances": box_distances, "centerness": centerness}


class Scale(keras.layers.Layer):
    """Multiplies by one trainable scalar that starts at 1, in float32 under every precision policy."""

    def __init__(self, **kwargs):
        # Under a mixed policy Keras would round inputs to 16 bits, which are too few digits for distances in pixels
        super().__init__(**{"autocast": False, **kwargs})

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the trainable scalar, for inputs of any shape."""
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies `x`, of any shape, by the trainable scalar."""
        return x * self.scale
