"""Defines box arithmetic and the coordinate convention of kerasdet.

A box is ``(y1, x1, y2, x2)``: float32, in absolute pixels of its image. Coordinates are continuous:

* An image of H x W pixels spans ``[0, H] x [0, W]``.
* The centre of pixel (i, j), row i and column j, is ``(i + 0.5, j + 0.5)``.
* A box is ``y2 - y1`` high and ``x2 - x1`` wide, with no "+ 1" anywhere.
* ``image_size`` is (height, width).

Other conventions exist only where data enters or leaves the library: `kerasdet.data` converts COCO's (x, y, width,
height), `kerasdet.checkpoints` converts PyTorch's (x1, y1, x2, y2), and `kerasdet.export` writes normalised corners.

The functions accept any leading dimensions, written "..." in the shapes.
"""

import math

import tensorflow as tf

_EPSILON = 1e-7  # torchvision's value; avoids divisions by 0 for empty boxes


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Computes the areas of boxes.

    Args:
        boxes: (..., 4) yxyx in pixels.

    Returns:
        The areas, (...), in square pixels.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return (y2 - y1) * (x2 - x1)


def iou(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the intersection over union of every pair of boxes.

    Args:
        boxes1: (..., N, 4) yxyx in pixels.
        boxes2: (..., M, 4) yxyx in pixels.

    Returns:
        The IoUs, (..., N, M) float32 in [0, 1]; 0 if both boxes are empty.

    Example:
        >>> iou(tf.constant([[0.0, 0, 10, 10]]), tf.constant([[0.0, 0, 10, 5]])).numpy().tolist()
        [[0.5]]
    """
    boxes1, boxes2 = tf.expand_dims(boxes1, -2), tf.expand_dims(boxes2, -3)  # (..., N, 1, 4), (..., 1, M, 4)
    intersection = _intersection(boxes1, boxes2)  # (..., N, M)
    return tf.math.divide_no_nan(intersection, area(boxes1) + area(boxes2) - intersection)


def iof(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the intersection over foreground (IoF) of every pair: the fraction of the first box inside the second.

    Args:
        boxes1: (..., N, 4) yxyx in pixels.
        boxes2: (..., M, 4) yxyx in pixels.

    Returns:
        The IoFs, (..., N, M) float32 in [0, 1]; 0 if the first box is empty.
    """
    boxes1, boxes2 = tf.expand_dims(boxes1, -2), tf.expand_dims(boxes2, -3)  # (..., N, 1, 4), (..., 1, M, 4)
    return tf.math.divide_no_nan(_intersection(boxes1, boxes2), area(boxes1))


def _intersection(boxes1, boxes2):
    """Computes the areas of the intersections of broadcast boxes, (...)."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    height = tf.maximum(tf.minimum(y2, v2) - tf.maximum(y1, v1), 0.0)
    width = tf.maximum(tf.minimum(x2, u2) - tf.maximum(x1, u1), 0.0)
    return height * width


@tf.custom_gradient
def _maximum(x, y):
    """Computes the maximum; ties split the gradient evenly, as in PyTorch, so that equal boxes get a gradient of 0."""
    share = 0.5 * (tf.cast(x > y, x.dtype) + tf.cast(x >= y, x.dtype))
    return tf.maximum(x, y), lambda upstream: (upstream * share, upstream * (1 - share))


def _minimum(x, y):
    return -_maximum(-x, -y)


def _paired_iou(boxes1, boxes2):
    """Computes IoU and union of each pair of boxes, (...) each."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    height, width = _minimum(y2, v2) - _maximum(y1, v1), _minimum(x2, u2) - _maximum(x1, u1)
    intersection = tf.where((height > 0) & (width > 0), height * width, 0.0)
    union = area(boxes1) + area(boxes2) - intersection
    return intersection / (union + _EPSILON), union


def _enclosing_size(boxes1, boxes2):
    """Computes height and width of the smallest box that encloses each pair of boxes, (...) each."""
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    return _maximum(y2, v2) - _minimum(y1, v1), _maximum(x2, u2) - _minimum(x1, u1)


def paired_iou(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the IoU of each box in `boxes1` with the box at the same position in `boxes2`; differentiable.

    Args:
        boxes1: (..., 4) yxyx in pixels.
        boxes2: (..., 4) yxyx in pixels.

    Returns:
        The IoUs, (...), in [0, 1].
    """
    return _paired_iou(boxes1, boxes2)[0]


def paired_giou(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the generalised IoU of boxes at the same positions (https://arxiv.org/abs/1902.09630).

    Args:
        boxes1: (..., 4) yxyx in pixels.
        boxes2: (..., 4) yxyx in pixels.

    Returns:
        The values, (...), in [-1, 1].
    """
    overlap, union = _paired_iou(boxes1, boxes2)
    height, width = _enclosing_size(boxes1, boxes2)
    enclosing = height * width
    return overlap - (enclosing - union) / (enclosing + _EPSILON)


def paired_diou(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the distance IoU of boxes at the same positions (https://arxiv.org/abs/1911.08287).

    Args:
        boxes1: (..., 4) yxyx in pixels.
        boxes2: (..., 4) yxyx in pixels.

    Returns:
        The values, (...), in [-1, 1].
    """
    overlap, _ = _paired_iou(boxes1, boxes2)
    height, width = _enclosing_size(boxes1, boxes2)
    diagonal = tf.square(height) + tf.square(width) + _EPSILON
    distance = tf.reduce_sum(tf.square(centers(boxes1) - centers(boxes2)), -1)
    return overlap - distance / diagonal


def paired_ciou(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Computes the complete IoU of boxes at the same positions (https://arxiv.org/abs/1911.08287).

    It is the distance IoU minus a penalty for different aspect ratios. The gradient does not flow through the weight of
    the penalty.

    Args:
        boxes1: (..., 4) yxyx in pixels.
        boxes2: (..., 4) yxyx in pixels.

    Returns:
        The values, (...), at most 1; nan if a box has height 0 and width 0.
    """
    overlap, _ = _paired_iou(boxes1, boxes2)
    y1, x1, y2, x2 = tf.unstack(boxes1, axis=-1)
    v1, u1, v2, u2 = tf.unstack(boxes2, axis=-1)
    angle = tf.atan((x2 - x1) / (y2 - y1)) - tf.atan((u2 - u1) / (v2 - v1))
    aspect = 4 / math.pi**2 * tf.square(angle)
    weight = tf.stop_gradient(aspect / (1 - overlap + aspect + _EPSILON))
    return paired_diou(boxes1, boxes2) - weight * aspect


def centers(boxes: tf.Tensor) -> tf.Tensor:
    """Computes the centres of boxes.

    Args:
        boxes: (..., 4) yxyx in pixels.

    Returns:
        The centres, (..., 2) as (y, x) in pixels.
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip(boxes: tf.Tensor, image_size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Clips boxes to the borders of their image.

    Args:
        boxes: (..., N, 4) yxyx in pixels.
        image_size: (..., 2), height and width of each image in pixels.

    Returns:
        The new boxes, (..., N, 4) of the dtype of `boxes`.
    """
    limit = tf.cast(image_size, boxes.dtype)
    limit = tf.expand_dims(tf.concat([limit, limit], -1), -2)  # (..., 1, 4)
    return tf.clip_by_value(boxes, tf.zeros_like(limit), limit)


def scale(boxes: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales boxes to a resized image.

    Args:
        boxes: (..., N, 4) yxyx in pixels.
        factor: (..., 2), factors of y and x coordinates: the new size of the image divided by the old size.

    Returns:
        The new boxes, (..., N, 4) of the dtype of `boxes`.
    """
    factor = tf.cast(factor, boxes.dtype)
    return boxes * tf.expand_dims(tf.concat([factor, factor], -1), -2)


def flip_left_right(boxes: tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Flips boxes horizontally, together with their image.

    Args:
        boxes: (..., 4) yxyx in pixels.
        width: Width of the image in pixels, an int or a scalar tensor.

    Returns:
        The new boxes, (..., 4) of the dtype of `boxes`.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    width = tf.cast(width, boxes.dtype)
    return tf.stack([y1, width - x2, y2, width - x1], -1)


def flip_up_down(boxes: tf.Tensor, height: int | tf.Tensor) -> tf.Tensor:
    """Flips boxes vertically, together with their image.

    Args:
        boxes: (..., 4) yxyx in pixels.
        height: Height of the image in pixels, an int or a scalar tensor.

    Returns:
        The new boxes, (..., 4) of the dtype of `boxes`.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    height = tf.cast(height, boxes.dtype)
    return tf.stack([height - y2, x1, height - y1, x2], -1)
