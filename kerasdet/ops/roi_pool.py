"""Defines ROIPool (https://arxiv.org/abs/1504.08083) on one feature map and on a pyramid, in stock TensorFlow ops."""

from collections.abc import Mapping

import tensorflow as tf

from kerasdet.ops.bins import cells_of_bins, map_chunks, sum_chunks
from kerasdet.ops.levels import assign_levels, level_numbers

_MAX_VALUES_PER_CHUNK = 2**25  # bounds temporary memory to 128 MB per float32 tensor
_OUTSIDE = -1e6  # pixels; outside every image


def roi_pool(
    features: tf.Tensor, boxes: tf.Tensor, *, output_size: int | tuple[int, int], spatial_scale: float
) -> tf.Tensor:
    """Pools each box into a grid of bins; a bin is the maximum of its cells. Only the features get gradients.

    Box coordinates are rounded to whole cells. A bin without cells of the map is 0. Of cells with the same maximum, the
    first in row-major order gets the gradient, as in torchvision.

    Args:
        features: (B, H, W, C) feature map.
        boxes: (B, P, 4) yxyx in pixels of the image.
        output_size: Number of bins as (h, w), or an int if both are equal.
        spatial_scale: Cells of the feature map per pixel of the image: 1 / stride.

    Returns:
        The pooled features, (B, P, h, w, C) of the dtype of `features`.
    """
    features, boxes = tf.convert_to_tensor(features), tf.convert_to_tensor(boxes)
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    shape, channels = tf.shape(features), features.shape[-1]
    table = tf.reshape(tf.cast(features, tf.float32), [-1, shape[3]])
    regions = tf.reshape(tf.cast(boxes, tf.float32), [-1, 4]) * spatial_scale
    regions = _round_half_away(tf.where(tf.math.is_finite(regions), regions, 0.0))
    y_begin, y_end = _lines(regions[:, 0], regions[:, 2], height, shape[1])
    x_begin, x_end = _lines(regions[:, 1], regions[:, 3], width, shape[2])
    image = tf.repeat(tf.range(shape[0]), tf.shape(boxes)[1])
    count = tf.size(boxes) // 4

    def cells(begin, end):
        """Lists the cells in the bins of regions `begin` to `end`: the indices of bins and of cells, (E,) each."""
        part = slice(begin, end)
        bins, y, x = cells_of_bins(y_end[part] - y_begin[part], x_end[part] - x_begin[part])
        rows = tf.ragged.range(tf.reshape(y_begin[part], [-1]), tf.reshape(y_end[part], [-1])).flat_values
        columns = tf.ragged.range(tf.reshape(x_begin[part], [-1]), tf.reshape(x_end[part], [-1])).flat_values
        row = tf.gather(image[part], bins // (height * width)) * shape[1] + tf.gather(rows, y)
        return bins, row * shape[2] + tf.gather(columns, x)

    num_cells = tf.reduce_sum(y_end - y_begin, 1) * tf.reduce_sum(x_end - x_begin, 1)  # (N,)
    most = tf.reduce_max(tf.concat([num_cells, [1]], 0)) * shape[3]
    chunk = tf.maximum(_MAX_VALUES_PER_CHUNK // tf.maximum(most, 1), 1)

    @tf.custom_gradient
    def pool(table):
        def maxima(begin, end):
            bins, cell = cells(begin, end)
            values = tf.gather(table, cell)  # (E, C)
            found = tf.math.unsorted_segment_max(values, bins, (end - begin) * height * width)
            return bins, cell, values, found

        def pool_chunk(begin, end):
            found = maxima(begin, end)[-1]
            found = tf.where(found == tf.float32.min, 0.0, found)
            return tf.reshape(found, [-1, height * width, shape[3]])

        def gradient(upstream):
            def to_table(begin, end):
                bins, cell, values, found = maxima(begin, end)
                number = tf.range(tf.size(cell))[:, None]
                candidates = tf.where(values == tf.gather(found, bins), number, tf.int32.max)
                first = tf.math.unsorted_segment_min(candidates, bins, tf.shape(found)[0])  # (bins, C)
                chosen = tf.where(first < tf.size(cell))  # (bins with cells * C, 2)
                place = tf.stack([tf.gather(cell, tf.gather_nd(first, chosen)), tf.cast(chosen[:, 1], tf.int32)], -1)
                dense = tf.reshape(upstream[begin:end], tf.shape(found))
                return tf.scatter_nd(place, tf.gather_nd(dense, chosen), tf.shape(table))

            return sum_chunks(to_table, count, chunk, tf.zeros_like(table))

        return map_chunks(pool_chunk, count, chunk, [height * width, channels]), gradient

    pooled = tf.reshape(pool(table), [shape[0], tf.shape(boxes)[1], height, width, shape[3]])
    return tf.ensure_shape(tf.cast(pooled, features.dtype), [*boxes.shape[:2], height, width, channels])


def multilevel_roi_pool(
    pyramid: Mapping[str, tf.Tensor],
    boxes: tf.Tensor,
    *,
    output_size: int | tuple[int, int],
    canonical_size: float = 224,
    canonical_level: int = 4,
    level_epsilon: float = 0.0,
) -> tf.Tensor:
    """Applies ROIPool to each box, on the pyramid level that suits its size, like `kerasdet.ops.multilevel_roi_align`.

    Args:
        pyramid: Features (B, H, W, C) by level name, "p2", "p3" ... without a gap. Level l has a stride of 2**l pixels.
        boxes: (B, P, 4) yxyx in pixels of the image.
        output_size: Number of bins as (h, w), or an int if both are equal.
        canonical_size: Side in pixels of the smallest square box that is pooled from `canonical_level`.
        canonical_level: Number of the level for boxes of `canonical_size`: 4 is "p4". Boxes of twice the side use the
            next level; boxes for a level that the pyramid lacks use its first or last level.
        level_epsilon: Constant added to the level before it is rounded down; torchvision adds 1e-6.

    Returns:
        The pooled features, (B, P, h, w, C) of the dtype of the pyramid.

    Raises:
        ValueError: If the levels have a gap, or a name is not a letter and a number.
    """
    numbers = level_numbers(pyramid, "multilevel_roi_pool")
    own = assign_levels(
        tf.reshape(boxes, [-1, 4]), numbers[0], numbers[-1], canonical_size, canonical_level, level_epsilon
    )
    own = tf.reshape(own, tf.shape(boxes)[:2])[..., None]  # (B, P, 1)
    # A box outside the map pools to 0, so the sum over levels is the result of the box's own level.
    parts = [tf.where(own == number, boxes, _OUTSIDE) for number in numbers]
    pooled = [
        roi_pool(pyramid[f"p{number}"], part, output_size=output_size, spatial_scale=2.0**-number)
        for number, part in zip(numbers, parts, strict=True)
    ]
    return tf.add_n(pooled)


def _lines(low, high, bins, limit):
    """Returns the first row (or column) of each bin, and the row after the last, (N, bins) int32 each, of N regions."""
    size = tf.maximum(high - low + 1, 1.0)
    # Divides in float64, because grappler turns a float32 division by a constant into an inexact multiplication.
    bin_size = tf.cast(tf.cast(size, tf.float64) / bins, tf.float32)[:, None]
    number = tf.range(bins, dtype=tf.float32)
    begin = tf.floor(number * bin_size) + low[:, None]
    end = tf.math.ceil((number + 1) * bin_size) + low[:, None]
    begin, end = (tf.cast(tf.clip_by_value(line, 0.0, tf.cast(limit, tf.float32)), tf.int32) for line in (begin, end))
    return begin, tf.maximum(begin, end)


def _round_half_away(x):
    return tf.sign(x) * tf.floor(tf.abs(x) + 0.5)
