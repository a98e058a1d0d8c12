"""Defines the head of RetinaNet (https://arxiv.org/abs/1708.02002)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.heads import DenseHead, Tower, check_attached, check_prior, class_predictor, per_anchor, predictor


@keras.saving.register_keras_serializable(package="kerasdet")
class RetinaNetHead(ConfigFromInit, DenseHead):
    """Predicts classes and box deltas for each anchor (RetinaNet, https://arxiv.org/abs/1708.02002).

    Args:
        num_convs: Number of convolutions in each of the two towers.
        norm: Norm of the towers, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        deform_last: Whether the last convolution of each tower is a modulated deformable convolution (DCNv2).
        prior_probability: Probability of each class at each anchor before training, in (0, 1). A small value keeps
            the many negatives from dominating the first losses.

    Raises:
        UserError: If `num_convs` is negative, or `prior_probability` is not in (0, 1).

    Example:
        >>> model = kerasdet.RetinaNet(80, head=RetinaNetHead(num_convs=2, norm="gn"))
    """

    def __init__(
        self,
        num_convs: int = 4,
        norm: str | None = None,
        norm_epsilon: float = 1e-5,
        deform_last: bool = False,
        prior_probability: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_numbers("RetinaNetHead", 0, num_convs=num_convs)
        check_prior("RetinaNetHead", prior_probability)
        self.num_convs = num_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.deform_last = deform_last
        self.prior_probability = prior_probability

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the towers and predictors.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: A, number of anchors in each cell.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.
        """
        self.num_classes = num_classes
        tower = (self.num_convs, channels, levels, self.norm, self.norm_epsilon, self.deform_last)
        self.class_tower = Tower(*tower, name="class_tower")
        self.box_tower = Tower(*tower, name="box_tower")
        self.class_logits = class_predictor(num_anchors * num_classes, self.prior_probability)
        self.box_deltas = predictor(num_anchors * 4, "box_deltas")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for tower, last in ((self.class_tower, self.class_logits), (self.box_tower, self.box_deltas)):
            tower.build(input_shape)
            last.build((*input_shape[:-1], tower.channels))

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits and box deltas for every anchor.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Two dicts by level name, float32: ``class_logits`` with (B, h * w * A, K), and ``box_deltas`` with
            (B, h * w * A, 4) as (dy, dx, dh, dw). A is the number of anchors in each cell.
        """
        class_logits, box_deltas = {}, {}
        for level, x in pyramid.items():
            logits = self.class_logits(self.class_tower(x, level=level, training=training))  # (B, h, w, A * K)
            class_logits[level] = per_anchor(logits, self.num_classes)
            deltas = self.box_deltas(self.box_tower(x, level=level, training=training))  # (B, h, w, A * 4)
            box_deltas[level] = per_anchor(deltas, 4)
        return {"class_logits": class_logits, "box_deltas": box_deltas}
