"""Computes targets for models that predict masks of the whole image (RTMDet-Ins), not masks inside boxes."""

import tensorflow as tf

from kerasdet.errors import UserError

_FULL = 255.0  # value of a crop's cell that the object covers
# Half of 255, minus the rounding error of crops: a pixel that is exactly half covered belongs to the object.
_THRESHOLD = _FULL / 2 - 0.5


def sample_crops(
    crops: tf.Tensor, boxes: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, stride: int
) -> tf.Tensor:
    """Samples masks on a coarse grid of pixels: tells for each sampled pixel whether it belongs to the object.

    The grid consists of every `stride`-th row and column of the image, starting with row and column ``stride // 2``.

    Args:
        crops: (B, M, S, S) uint8, the covered fraction of each cell of an object's box times 255, from
            `kerasdet.geometry.masks.crops_from_runs`.
        boxes: (B, M, 4) yxyx in pixels, the boxes of the objects.
        height: Number of rows of the grid.
        width: Number of columns of the grid.
        stride: Distance between neighbouring rows and columns of the grid, in pixels of the image.

    Returns:
        The sampled masks, (B, M, height, width) bool.
    """
    cells = crops.shape[-1]

    def weights(axis, count):
        low, high = boxes[..., axis, tf.newaxis], boxes[..., axis + 2, tf.newaxis]  # (B, M, 1)
        pixels = tf.cast(tf.range(count) * stride + stride // 2, boxes.dtype) + 0.5
        places = tf.math.divide_no_nan(pixels - low, high - low) * cells - 0.5  # (B, M, count)
        places = tf.where(high > low, places, -1.0)
        return tf.nn.relu(1 - tf.abs(places[..., tf.newaxis] - tf.range(cells, dtype=boxes.dtype)))

    rows, columns = weights(0, height), weights(1, width)
    values = tf.matmul(tf.matmul(rows, tf.cast(crops, boxes.dtype)), columns, transpose_b=True)
    return values >= _THRESHOLD


def mask_centers(crops: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Computes the centres of mass of masks, as means of pixel indices (mmdetection).

    Args:
        crops: (B, M, S, S) uint8, the covered fraction of each cell of an object's box times 255, from
            `kerasdet.geometry.masks.crops_from_runs`.
        boxes: (B, M, 4) yxyx in pixels, the boxes of the objects.

    Returns:
        The centres, (B, M, 2) as (y, x) in pixel indices, which are 0.5 less than kerasdet's continuous coordinates;
        (0, 0) for empty masks.
    """
    weights = tf.cast(crops, boxes.dtype)
    total = tf.reduce_sum(weights, [2, 3])  # (B, M)
    steps = (tf.range(crops.shape[-1], dtype=boxes.dtype) + 0.5) / crops.shape[-1]
    mean = tf.stack([tf.reduce_sum(weights, 3) @ steps[:, None], tf.reduce_sum(weights, 2) @ steps[:, None]], -1)
    mean = tf.math.divide_no_nan(mean[:, :, 0], total[..., tf.newaxis])  # (B, M, 2), fractions of the box
    centers = boxes[..., :2] + mean * (boxes[..., 2:] - boxes[..., :2]) - 0.5
    return tf.where(total[..., tf.newaxis] > 0, centers, 0.0)


def checked_crops(masks: tf.Tensor) -> tf.Tensor:
    """Converts crops of masks to uint8: the covered fraction of each cell, times 255.

    Args:
        masks: (..., S, S) bool or uint8.

    Returns:
        The crops, (..., S, S) uint8.

    Raises:
        UserError: If the crops have another dtype.
    """
    masks = tf.convert_to_tensor(masks)
    if masks.dtype.is_bool:
        return tf.cast(masks, tf.uint8) * 255
    if masks.dtype != tf.uint8:
        raise UserError(
            f"batch['masks'] has type {masks.dtype.name}: expected bool, or uint8 with the covered fraction of each "
            "cell times 255. Convert the masks to one of these types."
        )
    return masks
