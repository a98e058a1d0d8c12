"""Boxes, and THE coordinate convention of kerasdet.

A box is ``(y1, x1, y2, x2)`` in absolute pixels of the image it belongs to, float32 and continuous: the
image spans ``[0, height] x [0, width]``, the centre of pixel (i, j) is (i + 0.5, j + 0.5), and a box is
``y2 - y1`` high and ``x2 - x1`` wide. There is no "+ 1" anywhere. COCO's xywh is converted in
`kerasdet.data`, PyTorch's xyxy in `kerasdet.checkpoints`, normalised corners in `kerasdet.export`.

Every function takes tensors of any leading shape; ``image_size`` is (height, width).
"""

import math

import tensorflow as tf

_EPSILON = 1e-7


def area(boxes):
    """Areas of `boxes` (..., 4) in square pixels, (...)."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return (y2 - y1) * (x2 - x1)


def iou(boxes1, boxes2):
    """Intersection over union of every pair; 0 where both boxes are empty.

    Args:
        boxes1: (..., N, 4).
        boxes2: (..., M, 4).

    Returns:
        (..., N, M) float32 in [0, 1].
    """
    boxes1, boxes2 = tf.expand_dims(boxes1, -2), tf.expand_dims(boxes2, -3)  # (..., N, 1, 4), (..., 1, M, 4)
    intersection = _intersection(boxes1, boxes2)  # (..., N, M)
    return tf.math.divide_no_nan(intersection, area(boxes1) + area(boxes2) - intersection)


def iof(boxes1, boxes2):
    """Intersection over the area of the first of every pair, (..., N, M); arguments as those of `iou`."""
    boxes1, boxes2 = tf.expand_dims(boxes1, -2), tf.expand_dims(boxes2, -3)  # (..., N, 1, 4), (..., 1, M, 4)
    return tf.math.divide_no_nan(_intersection(boxes1, boxes2), area(boxes1))


def _intersection(boxes1, boxes2):
    """Areas of the intersections of broadcast boxes, (...)."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    height = tf.maximum(tf.minimum(y2, v2) - tf.maximum(y1, v1), 0.0)
    width = tf.maximum(tf.minimum(x2, u2) - tf.maximum(x1, u1), 0.0)
    return height * width


@tf.custom_gradient
def _maximum(x, y):
    """Elementwise maximum whose gradient is shared at a tie, so that equal boxes have no gradient (as in PyTorch)."""
    share = 0.5 * (tf.cast(x > y, x.dtype) + tf.cast(x >= y, x.dtype))
    return tf.maximum(x, y), lambda upstream: (upstream * share, upstream * (1 - share))


def _minimum(x, y):
    return -_maximum(-x, -y)


def _paired_iou(boxes1, boxes2):
    """IoU and union of box i with box i, (...) each."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    height, width = _minimum(y2, v2) - _maximum(y1, v1), _minimum(x2, u2) - _maximum(x1, u1)
    intersection = tf.where((height > 0) & (width > 0), height * width, 0.0)
    union = area(boxes1) + area(boxes2) - intersection
    return intersection / (union + _EPSILON), union


def _enclosing_size(boxes1, boxes2):
    """Height and width of the smallest box around box i of both, (...) each."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    return _maximum(y2, v2) - _minimum(y1, v1), _maximum(x2, u2) - _minimum(x1, u1)


def paired_iou(boxes1, boxes2):
    """IoU of box i with box i, (...) in [0, 1]."""
    return _paired_iou(boxes1, boxes2)[0]


def paired_giou(boxes1, boxes2):
    """Generalised IoU of box i with box i, (...) in [-1, 1] (Rezatofighi et al., https://arxiv.org/abs/1902.09630)."""
    overlap, union = _paired_iou(boxes1, boxes2)
    height, width = _enclosing_size(boxes1, boxes2)
    enclosing = height * width
    return overlap - (enclosing - union) / (enclosing + _EPSILON)


def paired_diou(boxes1, boxes2):
    """Distance IoU of box i with box i, (...) (Zheng et al., https://arxiv.org/abs/1911.08287)."""
    overlap, _ = _paired_iou(boxes1, boxes2)
    height, width = _enclosing_size(boxes1, boxes2)
    diagonal = tf.square(height) + tf.square(width) + _EPSILON
    distance = tf.reduce_sum(tf.square(centers(boxes1) - centers(boxes2)), -1)
    return overlap - distance / diagonal


def paired_ciou(boxes1, boxes2):
    """Complete IoU of box i with box i, (...): DIoU less an aspect-ratio penalty with a constant weight."""
    overlap, _ = _paired_iou(boxes1, boxes2)
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    angle = tf.atan((x2 - x1) / (y2 - y1)) - tf.atan((u2 - u1) / (v2 - v1))
    aspect = 4 / math.pi**2 * tf.square(angle)
    weight = tf.stop_gradient(aspect / (1 - overlap + aspect + _EPSILON))
    return paired_diou(boxes1, boxes2) - weight * aspect


def centers(boxes):
    """Centres (y, x) of `boxes` (..., 4), (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip(boxes, image_size):
    """Cuts `boxes` (..., N, 4) at the borders of an image of `image_size` (..., 2)."""
    limit = tf.cast(image_size, boxes.dtype)
    limit = tf.expand_dims(tf.concat([limit, limit], -1), -2)  # (..., 1, 4)
    return tf.clip_by_value(boxes, tf.zeros_like(limit), limit)


def scale(boxes, factor):
    """Multiplies y by ``factor[..., 0]`` and x by ``factor[..., 1]``: `boxes` (..., N, 4), `factor` (..., 2)."""
    factor = tf.cast(factor, boxes.dtype)
    return boxes * tf.expand_dims(tf.concat([factor, factor], -1), -2)


def flip_left_right(boxes, width):
    """Mirrors `boxes` (..., 4) in an image `width` pixels wide."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    width = tf.cast(width, boxes.dtype)
    return tf.stack([y1, width - x2, y2, width - x1], -1)


def flip_up_down(boxes, height):
    """Turns `boxes` (..., 4) upside down in an image `height` pixels high."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    height = tf.cast(height, boxes.dtype)
    return tf.stack([height - y2, x1, height - y1, x2], -1)
