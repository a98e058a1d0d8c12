"""Defines the head of region proposal networks (https://arxiv.org/abs/1506.01497)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.heads import per_anchor, predictor, small_normal


class RPNHead(keras.layers.Layer):
    """Predicts objectness and box deltas for each anchor (Faster R-CNN, https://arxiv.org/abs/1506.01497).

    Args:
        num_anchors: A, number of anchors in each cell.
        num_convs: Number of 3x3 convolutions before the 1x1 predictors.
        channels: Number of output channels of each 3x3 convolution.
    """

    def __init__(self, num_anchors: int, num_convs: int = 1, channels: int = 256, **kwargs):
        super().__init__(**kwargs)
        self.convs = [
            ConvNorm(channels, 3, activation="relu", kernel_initializer=small_normal(), name=f"conv{i}")
            for i in range(num_convs)
        ]
        self.objectness = predictor(num_anchors, "objectness", kernel_size=1)
        self.box_deltas = predictor(num_anchors * 4, "box_deltas", kernel_size=1)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for features of shape (B, h, w, C)."""
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.conv.filters)
        self.objectness.build(shape)
        self.box_deltas.build(shape)

    def call(self, pyramid: Mapping[str, tf.Tensor]) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts objectness and box deltas for every anchor.

        Args:
            pyramid: Features (B, h, w, C) by level name.

        Returns:
            Two dicts by level name, float32: ``objectness`` with (B, h * w * A) logits, and ``box_deltas`` with
            (B, h * w * A, 4) as (dy, dx, dh, dw).
        """
        objectness, box_deltas = {}, {}
        for level, x in pyramid.items():
            for conv in self.convs:
                x = conv(x)
            objectness[level] = per_anchor(self.objectness(x), 1)[..., 0]
            box_deltas[level] = per_anchor(self.box_deltas(x), 4)
        return {"objectness": objectness, "box_deltas": box_deltas}
