"""Non-maximum suppression."""

import math

import tensorflow as tf

from kerasdet.ops.dispatch import compiled_ops, in_tflite

tf.no_gradient("Kerasdet>Nms")
_SMALLEST = 0.02  # pixels


def nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    class_ids: tf.Tensor | None = None,
    *,
    iou_threshold: float,
    max_detections: int,
    score_threshold: float = -math.inf,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Greedy non-maximum suppression, in float32, of every image of a batch.

    A box goes when its IoU with a better one that stays is above the threshold. Equal scores: the first comes first.
    A box with a coordinate that is not finite overlaps nothing; a score that is NaN is not above any threshold.

    Args:
        boxes: (B, N, 4).
        scores: (B, N).
        class_ids: (B, N); boxes of different classes leave one another alone. None: all are of one class.
        iou_threshold: Of suppression.
        max_detections: D, how many are kept at most.
        score_threshold: Boxes need a score above it.

    Returns:
        Indices into N by descending score, (B, D) int32 padded with -1, and how many there are, (B,) int32.
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
    if class_ids is not None:
        boxes = _separate(boxes, class_ids)
    if in_tflite():  # it keeps an empty box again and again, since that does not overlap itself
        low, high = tf.split(boxes, 2, -1)
        boxes = tf.concat([low, tf.maximum(high, low + _SMALLEST)], -1)

    missing = tf.maximum(max_detections - tf.shape(scores)[1], 0)  # XLA wants as many boxes as it may keep
    boxes = tf.pad(boxes, [[0, 0], [0, missing], [0, 0]])
    scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=-math.inf)

    def one_image(image):
        kept, count = tf.raw_ops.NonMaxSuppressionV4(
            boxes=image[0],
            scores=image[1],
            max_output_size=max_detections,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            pad_to_max_output_size=True,
        )
        kept = tf.where(tf.range(max_detections) < count, kept, -1)
        return tf.ensure_shape(kept, [max_detections]), count

    if boxes.shape[0] == 1:  # TFLite runs no loop over images
        kept, count = one_image((boxes[0], scores[0]))
        return kept[None], count[None]
    indices, counts = tf.map_fn(one_image, (boxes, scores), fn_output_signature=(tf.int32, tf.int32))
    return tf.reshape(indices, [tf.shape(boxes)[0], max_detections]), counts


def _separate(boxes, class_ids):
    """Moves the boxes of each class to a place of its own, so that classes do not overlap.

    The places form a square grid and not a row: the smaller the coordinates, the less precision the move costs.
    """
    low = tf.reduce_min(boxes[..., :2], axis=[1, 2], keepdims=True)
    high = tf.reduce_max(boxes[..., 2:], axis=[1, 2], keepdims=True)
    columns = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(tf.reduce_max(class_ids) + 1, tf.float32))), tf.int32)
    columns = tf.maximum(columns, 1)
    place = tf.stack([class_ids // columns, class_ids % columns] * 2, -1)  # (B, N, 4)
    return boxes - low + tf.cast(place, tf.float32) * (high - low + 1)
