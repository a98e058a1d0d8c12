"""Matches points to ground truth by the network's predictions at the points: the dynamic assignment of RTMDet."""

import math
from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.matching import IGNORE, NEGATIVE, outside_padded_size, valid_gt_mask
from kerasdet.keras_utils import ConfigFromInit

_IOU_EPSILON = 1e-7


@keras.saving.register_keras_serializable(package="kerasdet")
class DynamicSoftLabelAssigner(ConfigFromInit):
    """Matches objects to the points whose predictions fit them best (RTMDet, https://arxiv.org/abs/2212.07784).

    Only points inside a ground-truth box (of any object) can be matched. The cost of matching a point to an object is
    the sum of three terms:

    * a quality focal loss whose target is the IoU of the predicted box with the object,
    * ``-iou_weight * log(IoU)``,
    * ``10 ** (distance - center_radius)``, with the distance from the object's centre in strides.

    Each object is matched to the points with the lowest costs. Their number is the sum of the object's `top_k` highest
    IoUs, rounded down, and at least 1. A point that is matched to several objects is assigned to the object with the
    lowest cost.

    Args:
        center_radius: Distance from an object's centre, in strides, at which the third term is 1.
        top_k: Number of highest IoUs of an object that are summed to get its number of points.
        iou_weight: Factor of -log(IoU) in the cost.
        padded_size_divisor: Points on or beyond the bottom or right border of the image's own size, rounded up to a
            multiple of this many pixels, are ignored. None: points in the padding of a batch can be matched, too.

    Raises:
        UserError: If a radius or weight is negative, or `top_k` or `padded_size_divisor` is not a positive integer.
    """

    def __init__(
        self,
        center_radius: float = 3.0,
        top_k: int = 13,
        iou_weight: float = 3.0,
        padded_size_divisor: int | None = 1,
    ):
        check_numbers("DynamicSoftLabelAssigner", 0, center_radius=center_radius, iou_weight=iou_weight)
        check_positive("DynamicSoftLabelAssigner", top_k=top_k, padded_size_divisor=padded_size_divisor)
        self.center_radius = center_radius
        self.top_k = top_k
        self.iou_weight = iou_weight
        self.padded_size_divisor = padded_size_divisor

    def __call__(
        self,
        logits: tf.Tensor,
        boxes: tf.Tensor,
        squares: tf.Tensor,
        batch: Mapping[str, tf.Tensor],
        centers: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Matches the points of a batch; no gradient flows through the result.

        Args:
            logits: (B, R, K) predicted class logits.
            boxes: (B, R, 4) predicted boxes yxyx in pixels. The IoU of a box with a negative height or width is 0.
            squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as
                side.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M). With
                `padded_size_divisor` also ``image_size`` (B, 2), heights and widths without padding, in pixels.
            centers: (B, M, 2) as (y, x) in pixels, the centres of the objects. None: the centres of the ground-truth
                boxes.

        Returns:
            Two tensors: the matches, (B, R) int32, indices into the image's ground truth, `NEGATIVE` (-1) or `IGNORE`
            (-2); and the IoU of each matched point's predicted box with its object, (B, R) float32, 0 for other points.
        """
        logits, boxes = tf.stop_gradient(logits), tf.stop_gradient(boxes)
        # one object that matches nothing, so that M may be 0
        gt_boxes = tf.pad(batch["boxes"], [[0, 0], [0, 1], [0, 0]])  # (B, M + 1, 4)
        gt_valid = tf.pad(valid_gt_mask(batch), [[0, 0], [0, 1]])  # (B, M + 1)
        class_ids = tf.pad(tf.maximum(batch["class_ids"], 0), [[0, 0], [0, 1]])
        centers = box_ops.centers(gt_boxes) if centers is None else tf.pad(centers, [[0, 0], [0, 1], [0, 0]])
        points = box_ops.centers(squares)  # (R, 2)

        takes_part = self._inside_any(points, gt_boxes, gt_valid)  # (B, R)
        ignored = None
        if self.padded_size_divisor is not None:
            ignored = outside_padded_size(squares, batch["image_size"], self.padded_size_divisor)
            takes_part &= ~ignored
        pairs = takes_part[..., None] & gt_valid[:, None]  # (B, R, M + 1)
        overlap = tf.where(pairs, box_ops.iou(boxes, gt_boxes), 0.0)
        cost = _class_cost(logits, class_ids, overlap) - self.iou_weight * tf.math.log(overlap + _IOU_EPSILON)
        stride = squares[:, 2:3] - squares[:, :1]  # (R, 1)
        distance = tf.norm(points[:, None] - centers[:, None], axis=-1) / stride  # (B, R, M + 1)
        # 10 to a larger power would overflow in float32
        cost += 10.0 ** tf.minimum(distance - self.center_radius, 38.0)
        cost = tf.where(pairs, cost, math.inf)

        matched = _owners(self._candidates(cost, overlap, pairs), cost)  # (B, R)
        soft_labels = tf.gather(overlap, tf.maximum(matched, 0), axis=2, batch_dims=2)
        soft_labels = tf.where(matched >= 0, soft_labels, 0.0)
        return matched if ignored is None else tf.where(ignored, IGNORE, matched), soft_labels

    def _inside_any(self, points, gt_boxes, gt_valid):
        """Marks the points (B, R) that lie inside any valid box (B, M, 4); points on a side do not count."""
        points, gt_boxes = points[:, None], gt_boxes[:, None]  # (R, 1, 2), (B, 1, M, 4)
        inside = tf.reduce_all((points > gt_boxes[..., :2]) & (points < gt_boxes[..., 2:]), -1)  # (B, R, M)
        return tf.reduce_any(inside & gt_valid[:, None], -1)

    def _candidates(self, cost, overlap, pairs):
        """Marks the points with the lowest costs of each object, (B, R, M) bool."""
        top_k = tf.minimum(self.top_k, tf.shape(cost)[1])
        best, _ = tf.math.top_k(tf.transpose(overlap, [0, 2, 1]), top_k)  # (B, M, k)
        number = tf.maximum(tf.cast(tf.reduce_sum(best, -1, keepdims=True), tf.int32), 1)  # (B, M, 1)
        _, nearest = tf.math.top_k(-tf.transpose(cost, [0, 2, 1]), top_k)  # (B, M, k)
        wanted = tf.range(top_k) < number  # (B, M, k)
        size = tf.shape(cost)
        image, object_id, _ = tf.meshgrid(*(tf.range(n) for n in (size[0], size[2], top_k)), indexing="ij")
        index = tf.stack([image, nearest, object_id], -1)  # (B, M, k, 3)
        return (tf.scatter_nd(index, tf.cast(wanted, tf.int32), size) > 0) & pairs


def _class_cost(logits, class_ids, overlap):
    """Computes the quality focal loss (B, R, M), summed over classes, with the IoU as target of the object's class."""
    probs = tf.sigmoid(logits)
    background = tf.nn.softplus(logits) * tf.square(probs)  # (B, R, K), the losses for a target of 0
    own_logits, own_probs, own_background = (
        tf.gather(values, class_ids, axis=2, batch_dims=1) for values in (logits, probs, background)
    )  # (B, R, M)
    own = tf.nn.sigmoid_cross_entropy_with_logits(overlap, own_logits) * tf.square(overlap - own_probs)
    return tf.reduce_sum(background, -1, keepdims=True) - own_background + own


def _owners(wanted, cost):
    """Returns the index of each point's object, (B, R): the cheapest of several objects, NEGATIVE without an object."""
    takers = tf.reduce_sum(tf.cast(wanted, tf.int32), -1)  # (B, R)
    only = tf.argmax(wanted, -1, output_type=tf.int32)
    cheapest = tf.argmin(cost, -1, output_type=tf.int32)
    return tf.where(takers > 1, cheapest, tf.where(takers == 1, only, NEGATIVE))
