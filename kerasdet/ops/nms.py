"""Defines non-maximum suppression (NMS)."""

import functools
import math

import numpy as np
import tensorflow as tf

from kerasdet.ops.dispatch import compiled_ops, composite, in_tflite

tf.no_gradient("Kerasdet>Nms")
# TFLite's NonMaxSuppression kernel selects an empty box again and again, because the box does not overlap itself.
# Sides of at least 0.02 pixels give every box an area; real detections are not that small.
_MIN_SIDE = 0.02
# TensorFlow's GPU kernel ignores thresholds that are not above the lowest float32, and would then keep padding.
_LOWEST_THRESHOLD = float(np.nextafter(np.finfo(np.float32).min, np.float32(0)))


def nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    class_ids: tf.Tensor | None = None,
    *,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float = -math.inf,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies greedy non-maximum suppression to every image of a batch, in float32.

    Of overlapping boxes with equal scores, the first is kept. The IoU of a box with a non-finite coordinate is 0. A NaN
    score is below every threshold.

    Args:
        boxes: (B, N, 4) yxyx in pixels.
        scores: (B, N) scores.
        class_ids: (B, N) integers from 0. Boxes of different classes never suppress each other. None: all boxes belong
            to one class.
        iou_threshold: A box is dropped if its IoU with a kept box of a higher score is above this. In [0, 1].
        max_detections: D, the largest number of boxes kept per image.
        score_threshold: Boxes with a score at or below this are dropped.

    Returns:
        The indices of the kept boxes in descending order of score, (B, D) int32 padded with -1, and the number of kept
        boxes per image, (B,) int32.

    Example:
        >>> boxes = tf.constant([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        >>> indices, counts = nms(boxes, tf.constant([[0.5, 0.6, 0.7]]), iou_threshold=0.5, max_detections=3)
        >>> indices.numpy().tolist(), counts.numpy().tolist()
        ([[2, 1, -1]], [2])
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    library = compiled_ops()
    if library is None:
        return _nms(boxes, scores, class_ids, iou_threshold, max_detections, score_threshold)
    indices, counts = library.kerasdet_nms(
        boxes=boxes,
        scores=scores,
        class_ids=tf.zeros([0, 0], tf.int32) if class_ids is None else tf.cast(class_ids, tf.int32),
        max_detections=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        by_class=class_ids is not None,
    )
    batch = boxes.shape[:1]
    return tf.ensure_shape(indices, [*batch, max_detections]), tf.ensure_shape(counts, batch)


def _nms(boxes, scores, class_ids, iou_threshold, max_detections, score_threshold):
    finite = tf.reduce_all(tf.math.is_finite(boxes), -1, keepdims=True)
    boxes = tf.where(finite, boxes, 0.0)  # an empty box overlaps nothing
    scores = tf.where(tf.math.is_nan(scores), -math.inf, scores)  # on GPUs, NaN would be the best score
    if class_ids is not None:
        boxes = _separate(boxes, class_ids)
    if in_tflite():
        low, high = tf.split(boxes, 2, -1)
        boxes = tf.concat([low, tf.maximum(high, low + _MIN_SIDE)], -1)

    # XLA's kernel needs at least as many boxes as `max_detections`.
    missing = tf.maximum(max_detections - tf.shape(scores)[1], 0)
    boxes = tf.pad(boxes, [[0, 0], [0, missing], [0, 0]])
    scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=-math.inf)

    options = {"iou_threshold": iou_threshold, "max_detections": max_detections, "score_threshold": score_threshold}
    return composite(functools.partial(_each_image, **options), "NonMaxSuppression", **options)(boxes, scores)


def _each_image(boxes, scores, iou_threshold, max_detections, score_threshold):
    def one_image(image):
        kept, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image[0],
            scores=image[1],
            max_output_size=max_detections,
            iou_threshold=iou_threshold,
            score_threshold=max(score_threshold, _LOWEST_THRESHOLD),
            pad_to_max_output_size=True,
        )
        kept = tf.where(tf.range(max_detections) < count, kept, -1)
        return tf.ensure_shape(kept, [max_detections]), count

    if boxes.shape[0] == 1:  # TFLite cannot convert the loop of map_fn
        kept, count = one_image((boxes[0], scores[0]))
        return kept[None], count[None]
    indices, counts = tf.map_fn(one_image, (boxes, scores), fn_output_signature=(tf.int32, tf.int32))
    return tf.reshape(indices, [tf.shape(boxes)[0], max_detections]), counts


def _separate(boxes, class_ids):
    """Shifts the boxes of each class to a separate area, so that boxes of different classes do not overlap.

    The areas form a square grid instead of a row, because smaller coordinates lose fewer digits in float32.
    """
    low = tf.reduce_min(boxes[..., :2], axis=[1, 2], keepdims=True)
    high = tf.reduce_max(boxes[..., 2:], axis=[1, 2], keepdims=True)
    columns = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(tf.reduce_max(class_ids) + 1, tf.float32))), tf.int32)
    columns = tf.maximum(columns, 1)
    place = tf.stack([class_ids // columns, class_ids % columns] * 2, -1)  # (B, N, 4)
    return boxes - low + tf.cast(place, tf.float32) * (high - low + 1)
