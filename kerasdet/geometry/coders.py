"""Translates between boxes and the numbers that a network regresses."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit

MAX_LOG_SCALE = math.log(1000.0 / 16)
_ACTIVATIONS = {"relu": tf.nn.relu, "exp": tf.exp, "linear": tf.identity}


@keras.saving.register_keras_serializable(package="kerasdet")
class DeltaCoder(ConfigFromInit):
    """Encodes a box as deltas (dy, dx, dh, dw) from an anchor (R-CNN, https://arxiv.org/abs/1311.2524, appendix C).

    Args:
        weights: Factors of (dy, dx, dh, dw); larger ones make the network predict larger numbers.
        max_log_scale: Upper bound of dh and dw in decoding, so that no box overflows.
        min_log_scale: Lower bound of dh and dw in decoding (mmdetection: minus the upper bound); None for no bound.
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        max_log_scale: float = MAX_LOG_SCALE,
        min_log_scale: float | None = None,
    ):
        check_numbers("DeltaCoder", 1e-6, weights=weights)
        if len(weights) != 4:
            raise UserError(f"DeltaCoder.weights are {tuple(weights)}: give four numbers, of y, x, height and width.")
        self.weights = tuple(weights)
        self.max_log_scale = max_log_scale
        self.min_log_scale = min_log_scale

    def encode(self, boxes: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Returns the deltas (..., 4) of `boxes` (..., 4) from `anchors` (..., 4); both must have positive sizes."""
        center, size = _center_size(boxes)
        anchor_center, anchor_size = _center_size(anchors)
        deltas = tf.concat([(center - anchor_center) / anchor_size, tf.math.log(size / anchor_size)], -1)
        return deltas * self.weights

    def decode(self, deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Decodes deltas to boxes.

        Args:
            deltas: (..., 4) as (dy, dx, dh, dw), multiplied by `weights`.
            anchors: (..., 4) yxyx.

        Returns:
            (..., 4) yxyx in the unit of the anchors.
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
    """Encodes a box as distances (t, l, b, r) from a point to its sides (FCOS, https://arxiv.org/abs/1904.01355).

    A point is the centre of a square as large as its stride.

    Args:
        normalize: Whether distances are in strides; otherwise they are in pixels.
        activation: How raw predictions become distances: "relu", "exp" or "linear", with which distances may be
            negative. None is "relu" for distances in strides and "exp" for those in pixels.

    Raises:
        UserError: If `activation` is unknown.
    """

    def __init__(self, normalize: bool = True, activation: str | None = None):
        if activation not in (None, *_ACTIVATIONS):
            raise UserError(
                f"DistanceCoder has no activation {activation!r}: choose one of {', '.join(map(repr, _ACTIVATIONS))}."
            )
        self.normalize = normalize
        self.activation = activation

    def activate(self, raw: tf.Tensor) -> tf.Tensor:
        """Returns the distances that a network's raw predictions, (..., 4), stand for."""
        return _ACTIVATIONS[self.activation or ("relu" if self.normalize else "exp")](raw)

    def encode(self, boxes: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        """Returns the distances (..., 4) from the centres of `squares` (..., 4) to the sides of `boxes` (..., 4)."""
        corner, opposite = tf.split(boxes, 2, -1)
        center, size = _center_size(squares)
        distances = tf.concat([center - corner, opposite - center], -1)
        return distances / tf.concat([size, size], -1) if self.normalize else distances

    def decode(self, distances: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        """Returns the boxes (..., 4) at `distances` (..., 4) around the centres of `squares` (..., 4)."""
        center, size = _center_size(squares)
        if self.normalize:
            distances = distances * tf.concat([size, size], -1)
        before, after = tf.split(distances, 2, -1)
        return tf.concat([center - before, center + after], -1)


def centerness(distances: tf.Tensor) -> tf.Tensor:
    """Returns how central a point inside a box lies, 1 at the centre and 0 at the sides, (...).

    Args:
        distances: (..., 4) from the point to the sides, in any unit.
    """
    before, after = tf.split(distances, 2, -1)  # (..., 2)
    return tf.sqrt(tf.reduce_prod(tf.minimum(before, after) / tf.maximum(before, after), -1))
