"""Defines box coders, which convert between boxes and the regression targets of a network."""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit

MAX_LOG_SCALE = math.log(1000.0 / 16)
_ACTIVATIONS = {"relu": tf.nn.relu, "exp": tf.exp, "linear": tf.identity}


@keras.saving.register_keras_serializable(package="kerasdet")
class DeltaCoder(ConfigFromInit):
    """Converts between boxes and deltas (dy, dx, dh, dw) relative to anchors (R-CNN, https://arxiv.org/abs/1311.2524).

    Args:
        weights: Factors by which (dy, dx, dh, dw) are multiplied; with larger weights the network predicts larger
            values.
        max_log_scale: Upper bound of dh / weight and dw / weight in decoding, which keeps the exponential function from
            overflowing. The default limits a side to 62.5 times the anchor's side.
        min_log_scale: Lower bound of dh / weight and dw / weight in decoding. mmdetection uses ``-max_log_scale``.
            None: no bound.

    Raises:
        UserError: If `weights` does not hold four numbers of 1e-6 or more.
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        max_log_scale: float = MAX_LOG_SCALE,
        min_log_scale: float | None = None,
    ):
        check_numbers("DeltaCoder", 1e-6, weights=weights)
        if np.shape(weights) != (4,):
            raise UserError(
                f"DeltaCoder.weights is {weights!r}: expected four numbers, the factors of (dy, dx, dh, dw)."
            )
        self.weights = tuple(weights)
        self.max_log_scale = max_log_scale
        self.min_log_scale = min_log_scale

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Encodes boxes as deltas from anchors.

        Args:
            boxes: (..., 4) yxyx in pixels, with heights and widths above 0.
            anchors: (..., 4) yxyx in pixels, with heights and widths above 0.

        Returns:
            The deltas, (..., 4) as (dy, dx, dh, dw), multiplied by `weights`.
        """
        center, size = _center_size(boxes)
        anchor_center, anchor_size = _center_size(anchors)
        deltas = tf.concat([(center - anchor_center) / anchor_size, tf.math.log(size / anchor_size)], -1)
        return deltas * self.weights

    def decode(self, deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Decodes deltas to boxes.

        Args:
            deltas: (..., 4) as (dy, dx, dh, dw), multiplied by `weights`.
            anchors: (..., 4) yxyx in pixels.

        Returns:
            The boxes, (..., 4) yxyx in pixels.
        """
        shift, log_scale = tf.split(deltas / tf.constant(self.weights, deltas.dtype), 2, -1)
        anchor_center, anchor_size = _center_size(anchors)
        center = shift * anchor_size + anchor_center
        log_scale = tf.minimum(log_scale, self.max_log_scale)
        if self.min_log_scale is not None:
            log_scale = tf.maximum(log_scale, self.min_log_scale)
        half = tf.exp(log_scale) * anchor_size / 2
        return tf.concat([center - half, center + half], -1)


def _center_size(boxes):
    corner, opposite = tf.split(boxes, 2, -1)
    size = opposite - corner
    return corner + size / 2, size


@keras.saving.register_keras_serializable(package="kerasdet")
class DistanceCoder(ConfigFromInit):
    """Converts between boxes and distances (t, l, b, r) from points to box sides (FCOS, arXiv 1904.01355).

    A point is given as a square: its centre is the point, and its side is the stride of the pyramid level in pixels.

    Args:
        normalize: Whether distances are in strides of the level. If False they are in pixels.
        activation: Function that converts raw predictions to distances: "relu", "exp" or "linear". With "linear",
            distances can be negative. None: "relu" if `normalize`, else "exp".

    Raises:
        UserError: If `activation` is unknown.
    """

    def __init__(self, normalize: bool = True, activation: str | None = None):
        if activation not in (None, *_ACTIVATIONS):
            raise UserError(
                f"DistanceCoder.activation is {activation!r}: choose one of {', '.join(map(repr, _ACTIVATIONS))}."
            )
        self.normalize = normalize
        self.activation = activation

    def activate(self, raw: tf.Tensor) -> tf.Tensor:
        """Converts raw predictions to distances.

        Args:
            raw: (..., 4) raw predictions of the network.

        Returns:
            The distances, (..., 4) as (t, l, b, r), in strides if `normalize` is True, else in pixels.
        """
        return _ACTIVATIONS[self.activation or ("relu" if self.normalize else "exp")](raw)

    def encode(self, boxes: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        """Encodes boxes as distances from points to the sides of the boxes.

        Args:
            boxes: (..., 4) yxyx in pixels.
            squares: (..., 4) yxyx in pixels, one square per point: centred on it, with the stride of its level as
                side.

        Returns:
            The distances, (..., 4) as (t, l, b, r), in strides if `normalize` is True, else in pixels; negative for a
            side if the point lies outside the box on that side.
        """
        corner, opposite = tf.split(boxes, 2, -1)
        center, size = _center_size(squares)
        distances = tf.concat([center - corner, opposite - center], -1)
        return distances / tf.concat([size, size], -1) if self.normalize else distances

    def decode(self, distances: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        """Decodes distances to boxes.

        Args:
            distances: (..., 4) as (t, l, b, r), in strides if `normalize` is True, else in pixels. Convert raw
                predictions by `activate` first.
            squares: (..., 4) yxyx in pixels, one square per point: centred on it, with the stride of its level as
                side.

        Returns:
            The boxes, (..., 4) yxyx in pixels.
        """
        center, size = _center_size(squares)
        if self.normalize:
            distances = distances * tf.concat([size, size], -1)
        before, after = tf.split(distances, 2, -1)
        return tf.concat([center - before, center + after], -1)


def centerness(distances: tf.Tensor) -> tf.Tensor:
    """Computes the centerness of points in their boxes (FCOS, https://arxiv.org/abs/1904.01355).

    Args:
        distances: (..., 4) as (t, l, b, r), from a point inside the box to the sides, in any unit.

    Returns:
        The centerness, (...): 1 at the centre of the box and 0 on its sides.
    """
    before, after = tf.split(distances, 2, -1)  # (..., 2)
    return tf.sqrt(tf.reduce_prod(tf.minimum(before, after) / tf.maximum(before, after), -1))
