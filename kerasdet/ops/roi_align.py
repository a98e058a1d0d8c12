"""Defines ROIAlign (https://arxiv.org/abs/1703.06870) on one feature map and on a pyramid.

In the stock TensorFlow implementation, a bin is the mean of bilinear samples on a regular grid. A bin is therefore a
weighted sum of cells, and the weight of a cell is the weight of its row times the weight of its column. All bins
together form one sparse matrix that is multiplied with the feature map; its transpose gives the gradient. The grid of
samples, which is large for a long thin box, is never created. XLA and TFLite have no sparse matrices; there, the
samples are summed one after the other.

`tf.image.crop_and_resize` would give the values but not the gradients: in TensorFlow 2.21 its CPU gradient loses
updates if several threads add to the same cell.
"""

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from kerasdet.ops.bins import cells_of_bins, map_chunks, sum_chunks
from kerasdet.ops.dispatch import compiled_ops, composite, in_onnx, raw_ops, static_shapes
from kerasdet.ops.levels import assign_levels, level_numbers
from kerasdet.ops.sparse import csr_matrix, matmul

_MAX_CELLS_PER_CHUNK = 2**22  # bounds the temporary memory of the sparse matrix
_COMPILED_TYPES = (tf.float32, tf.float16, tf.bfloat16)
_ATTRIBUTES = ("spatial_scales", "output_height", "output_width", "sampling_ratio", "aligned", "lowest_level")
_ATTRIBUTES += ("canonical_size", "canonical_level", "level_epsilon")


class _Rois(NamedTuple):
    """Holds regions in coordinates of their feature maps, and the position of each map in a table of all cells."""

    start: tf.Tensor  # (N, 2) in cells; 0 is the centre of the first cell
    size: tf.Tensor  # (N, 2) in cells
    map_size: tf.Tensor  # (N, 2) int32, height and width
    map_begin: tf.Tensor  # (N,) int32, index of the map's first cell


def roi_align(
    features: tf.Tensor,
    boxes: tf.Tensor,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> tf.Tensor:
    """Pools each box into a grid of bins; a bin is the mean of bilinear samples. Only the features get gradients.

    Samples up to one cell outside the map have the value of the border; samples further outside are 0.

    Args:
        features: (B, H, W, C) feature map.
        boxes: (B, P, 4) yxyx in pixels of the image.
        output_size: Number of bins as (h, w), or an int if both are equal.
        spatial_scale: Cells of the feature map per pixel of the image: 1 / stride.
        sampling_ratio: Number of samples per bin along each axis. 0 uses as many samples as a bin covers cells of the
            feature map, rounded up.
        aligned: Whether the centre of the first pixel is at coordinate 0.5 (detectron2, mmdetection). If False it is at
            0, and regions are at least one cell high and wide (torchvision).

    Returns:
        The pooled features, (B, P, h, w, C) of the dtype of `features`, computed in float32.

    Example:
        >>> features, boxes = tf.ones([1, 25, 40, 256]), tf.constant([[[16.0, 16, 200, 300]]])
        >>> roi_align(features, boxes, output_size=7, spatial_scale=1 / 16).shape
        TensorShape([1, 1, 7, 7, 256])
    """
    features, boxes = tf.convert_to_tensor(features), tf.convert_to_tensor(boxes)
    if compiled_ops() is not None:
        return _compiled(
            [features],
            boxes,
            output_size,
            spatial_scales=[spatial_scale],
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
    options = {"output_size": _pair(output_size), "sampling_ratio": sampling_ratio, "aligned": aligned}
    if in_onnx():
        return _align_each_level([features], boxes, tf.zeros_like(_batch_indices(boxes)), [spatial_scale], options)
    pooled = _pool_level(features, tf.reshape(boxes, [-1, 4]), _batch_indices(boxes), spatial_scale, **options)
    return _unflatten(pooled, boxes, features.dtype)


def multilevel_roi_align(
    pyramid: dict[str, tf.Tensor],
    boxes: tf.Tensor,
    *,
    output_size: int | tuple[int, int],
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_size: float = 224,
    canonical_level: int = 4,
    level_epsilon: float = 0.0,
) -> tf.Tensor:
    """Applies ROIAlign to each box, on the pyramid level that suits its size (equation 1 of FPN, arXiv 1612.03144).

    Args:
        pyramid: Features (B, H, W, C) by level name, "p2", "p3" ... without a gap. Level l has a stride of 2**l pixels.
        boxes: (B, P, 4) yxyx in pixels of the image.
        output_size: Number of bins as (h, w), or an int if both are equal.
        sampling_ratio: Number of samples per bin along each axis. 0 uses as many samples as a bin covers cells of the
            feature map, rounded up.
        aligned: Whether the centre of the first pixel is at coordinate 0.5 (detectron2, mmdetection). If False it is at
            0, and regions are at least one cell high and wide (torchvision).
        canonical_size: Side in pixels of the smallest square box that is pooled from `canonical_level`.
        canonical_level: Number of the level for boxes of `canonical_size`: 4 is "p4". Boxes of twice the side use the
            next level; boxes for a level that the pyramid lacks use its first or last level.
        level_epsilon: Constant added to the level before it is rounded down; torchvision adds 1e-6.

    Returns:
        The pooled features, (B, P, h, w, C) of the dtype of the pyramid, computed in float32.

    Raises:
        ValueError: If the levels have a gap, or a name is not a letter and a number.
    """
    boxes = tf.convert_to_tensor(boxes)
    levels = level_numbers(pyramid, "multilevel_roi_align")
    maps = [tf.convert_to_tensor(pyramid[f"p{level}"]) for level in levels]
    if compiled_ops() is not None:
        return _compiled(
            maps,
            boxes,
            output_size,
            spatial_scales=[2.0**-level for level in levels],
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            lowest_level=levels[0],
            canonical_size=canonical_size,
            canonical_level=canonical_level,
            level_epsilon=level_epsilon,
        )
    flat_boxes = tf.reshape(boxes, [-1, 4])
    level = assign_levels(flat_boxes, levels[0], levels[-1], canonical_size, canonical_level, level_epsilon) - levels[0]
    if in_onnx():
        options = {"output_size": _pair(output_size), "sampling_ratio": sampling_ratio, "aligned": aligned}
        return _align_each_level(maps, boxes, level, [2.0**-level for level in levels], options)
    sizes = tf.stack([tf.shape(x)[1:3] for x in maps])  # (L, 2)
    begins = tf.cumsum(tf.stack([tf.reduce_prod(tf.shape(x)[:3]) for x in maps]), exclusive=True)  # (L,)
    scales = tf.constant([[2.0**-level] for level in levels])  # (L, 1)
    map_size = tf.gather(sizes, level)  # (N, 2)
    rois = _make_rois(
        flat_boxes,
        tf.gather(scales, level),
        aligned,
        map_size=map_size,
        map_begin=tf.gather(begins, level) + _batch_indices(boxes) * map_size[:, 0] * map_size[:, 1],
    )
    pooled = _pool(tf.concat([_table(x) for x in maps], 0), rois, _pair(output_size), sampling_ratio)
    return _unflatten(pooled, boxes, maps[0].dtype)


def _align_each_level(maps, boxes, level, scales, options):
    """Pools the boxes of each level together, as a `composite` that becomes ONNX's RoiAlign.

    Args:
        maps: Feature maps (B, H, W, C) of all levels.
        boxes: (B, P, 4) yxyx in pixels.
        level: (B * P,) int32, index of each box's level in `maps`.
        scales: Cells per pixel of each level.
        options: `output_size`, `sampling_ratio` and `aligned`.
    """
    flat_boxes = tf.cast(tf.reshape(boxes, [-1, 4]), tf.float32)
    flat_boxes = tf.where(tf.math.is_finite(flat_boxes), flat_boxes, 0.0)
    pool = _pool_composite(**options)
    pooled, order = [], []
    for index, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        chosen = tf.cast(tf.where(level == index)[:, 0], tf.int32)  # (N,)
        cells = tf.gather(flat_boxes, chosen) * scale
        pooled.append(pool(features, cells, tf.gather(_batch_indices(boxes), chosen)))
        order.append(chosen)
    order = tf.concat(order, 0)  # (B * P,), a permutation; `position` is its inverse
    position = tf.scatter_nd(order[:, None], tf.range(tf.size(order)), [tf.size(order)])
    pooled = tf.gather(tf.concat(pooled, 0), position)
    return _unflatten(pooled, boxes, maps[0].dtype)


@functools.cache
def _pool_composite(output_size, sampling_ratio, aligned):
    """Returns `_pool_level` without scaling. The function is cached, because TensorFlow takes seconds to trace it."""
    pool = functools.partial(
        _pool_level, spatial_scale=1.0, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned
    )
    height, width = output_size
    return composite(
        pool,
        "RoiAlign",
        output_height=height,
        output_width=width,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def _pool_level(features, boxes, images, spatial_scale, output_size, sampling_ratio, aligned):
    """Pools N boxes (N, 4) of the images (N,) from features (B, H, W, C); returns (N, h, w, C)."""
    shape, count = tf.shape(features), tf.shape(boxes)[0]
    rois = _make_rois(
        boxes,
        tf.fill([count, 1], tf.constant(spatial_scale, tf.float32)),
        aligned,
        map_size=tf.broadcast_to(shape[1:3], [count, 2]),
        map_begin=images * shape[1] * shape[2],
    )
    return _pool(_table(features), rois, output_size, sampling_ratio)


def _compiled(maps, boxes, output_size, **attributes):
    one_level = {"lowest_level": 0, "canonical_size": 1.0, "canonical_level": 0, "level_epsilon": 0.0}
    height, width = _pair(output_size)
    dtype = maps[0].dtype
    pooled = compiled_ops().kerasdet_roi_align(
        features=[tf.cast(x, dtype if dtype in _COMPILED_TYPES else tf.float32) for x in maps],
        boxes=tf.stop_gradient(tf.cast(boxes, tf.float32)),
        output_height=height,
        output_width=width,
        **{**one_level, **attributes},
    )
    return tf.ensure_shape(tf.cast(pooled, dtype), [*boxes.shape[:2], height, width, maps[0].shape[-1]])


@tf.RegisterGradient("Kerasdet>RoiAlign")
def _compiled_gradient(op, upstream):
    *maps, boxes = op.inputs
    gradients = raw_ops().kerasdet_roi_align_grad(
        shapes=[tf.shape(x) for x in maps],
        boxes=boxes,
        grad=upstream,
        **{name: op.get_attr(name) for name in _ATTRIBUTES},
    )
    for gradient, x in zip(gradients, maps, strict=True):
        gradient.set_shape(x.shape)
    return [*gradients, None]


def _make_rois(boxes, scale, aligned, map_size, map_begin):
    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32))
    boxes = tf.where(tf.math.is_finite(boxes), boxes, 0.0) * scale - (0.5 if aligned else 0.0)
    size = boxes[:, 2:] - boxes[:, :2]
    return _Rois(boxes[:, :2], size if aligned else tf.maximum(size, 1.0), map_size, map_begin)


def _pool(table, rois, output_size, sampling_ratio):
    """Pools N regions from a table of cells (T, C) into bins (N, h, w, C)."""
    if static_shapes():
        return _pool_samples(table, rois, output_size, _num_samples(rois, output_size, sampling_ratio))
    return _pool_bins(table, rois, output_size, sampling_ratio)


def _pool_samples(table, rois, output_size, samples):
    """Pools with static shapes: adds one sample of every bin at a time, until the largest bin is complete."""
    table_size, channels = tf.shape(table)[0], table.shape[1]
    limit = tf.reduce_max(tf.reduce_prod(tf.pad(samples, [[0, 1], [0, 0]]), 1))
    columns_of_samples = tf.maximum(samples[:, 1], 1)

    def taps(index):
        """Returns cells and weights, (N * h * w, 4) each, of the sample `index` of each bin."""
        axes = []
        for axis, number in enumerate((index // columns_of_samples, index % columns_of_samples)):
            axis_inputs = (rois.start[:, axis], rois.size[:, axis], samples[:, axis], output_size[axis])
            lines, weights = _line_samples(*axis_inputs, rois.map_size[:, axis], number[:, None, None])
            axes.append((lines[:, :, 0], weights[:, :, 0]))  # (N, bins, 2)
        (rows, y_weights), (columns, x_weights) = axes
        rows = rois.map_begin[:, None, None] + rows * rois.map_size[:, 1, None, None]
        cells = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (N, h, w, 2, 2)
        weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        return tf.reshape(cells, [-1, 4]), tf.reshape(weights, [-1, 4])

    def sum_samples(sample_function, zeros):
        def body(index, total):
            return index + 1, total + sample_function(*taps(index))

        return tf.while_loop(lambda index, _: index < limit, body, (0, zeros))[1]

    @tf.custom_gradient
    def pool(table):
        def gradient(upstream):
            def to_table(cells, weights):
                return tf.math.unsorted_segment_sum(weights[:, :, None] * upstream[:, None], cells, table_size)

            upstream = tf.cast(upstream, tf.float32)
            return sum_samples(to_table, tf.zeros_like(table))

        def pooled(cells, weights):
            return tf.einsum("nk,nkc->nc", weights, tf.gather(table, cells))

        count = tf.shape(rois.start)[0] * math.prod(output_size)
        return sum_samples(pooled, tf.zeros([count, tf.shape(table)[1]])), gradient

    return tf.reshape(pool(table), [-1, *output_size, channels or tf.shape(table)[1]])


def _pool_bins(table, rois, output_size, sampling_ratio):
    """Pools with a sparse matrix of all bins, in chunks of regions."""
    num_bins, channels = math.prod(output_size), table.shape[1]
    wanted = tf.shape(rois.start)[0]
    rois = _at_least_one(rois)
    count = tf.shape(rois.start)[0]
    samples = _num_samples(rois, output_size, sampling_ratio)
    chunk = _chunk_size(rois, output_size, samples)
    table_shape = tf.shape(table)

    def matrix(begin, end):
        part = _Rois(*(value[begin:end] for value in rois))
        return _bin_matrix(part, samples[begin:end], output_size, table_shape[0])

    @tf.custom_gradient
    def pool(table):
        def gradient(upstream):
            def to_table(begin, end):
                dense = tf.reshape(upstream[begin:end], [-1, table_shape[1]])
                return matmul(matrix(begin, end), dense, transpose=True)

            upstream = tf.cast(upstream, tf.float32)
            return sum_chunks(to_table, count, chunk, tf.zeros(table_shape))

        def pool_chunk(begin, end):
            return tf.reshape(matmul(matrix(begin, end), table), [-1, num_bins, table_shape[1]])

        return map_chunks(pool_chunk, count, chunk, [num_bins, channels]), gradient

    return tf.reshape(pool(table)[:wanted], [-1, *output_size, channels or table_shape[1]])


def _at_least_one(rois):
    """Replaces an empty set of regions by one region outside the map.

    TensorFlow 2.16 crashes in a product with an empty sparse matrix. Remove this when 2.16 is no longer supported.
    """
    missing = tf.maximum(1 - tf.shape(rois.start)[0], 0)

    def padded(value, padding):
        return tf.pad(value, [[0, missing], *[[0, 0]] * (value.shape.rank - 1)], constant_values=padding)

    return _Rois(padded(rois.start, -9.0), padded(rois.size, 1.0), padded(rois.map_size, 1), padded(rois.map_begin, 0))


def _num_samples(rois, output_size, sampling_ratio):
    """Returns the number of samples per bin along y and x: (N, 2) int32."""
    if sampling_ratio > 0:
        return tf.fill(tf.shape(rois.size), sampling_ratio)
    # Rounds up. Uses floordiv, because grappler turns a plain division by a constant into an inexact multiplication.
    samples = tf.cast(-tf.math.floordiv(-rois.size, tf.constant(output_size, tf.float32)), tf.int32)
    # The limit matters only for regions that are more than `output_size` times as long as the map.
    return tf.clip_by_value(samples, 0, rois.map_size)


def _chunk_size(rois, output_size, samples):
    """Returns the number of regions pooled at once, which bounds the memory for cells, rows and columns."""
    bins = tf.constant(output_size, tf.float32)
    covered = tf.minimum(rois.size, tf.cast(rois.map_size, tf.float32)) + 3 * bins
    lines = tf.minimum(covered, 2 * bins * tf.cast(samples, tf.float32))  # (N, 2), at most
    cells = tf.reduce_max(tf.reduce_prod(tf.maximum(lines, 1.0), 1))
    weights = tf.reduce_max(tf.reduce_sum(bins * tf.cast(rois.map_size, tf.float32), 1))
    return tf.cast(tf.maximum(_MAX_CELLS_PER_CHUNK / tf.maximum(tf.maximum(cells, weights), 1.0), 1.0), tf.int32)


def _bin_matrix(rois, samples, output_size, table_size):
    """Creates the sparse matrix (N * h * w, T) with the weight of each cell in each bin."""
    axes = []
    for axis, bins in enumerate(output_size):
        weights = _line_weights(rois.start[:, axis], rois.size[:, axis], samples[:, axis], bins, rois.map_size[:, axis])
        lines = tf.cast(tf.where(weights > 0), tf.int32)  # (E, 3) as (region, bin, row or column)
        counts = tf.math.count_nonzero(weights > 0, 2, dtype=tf.int32)
        axes.append((counts, lines, tf.boolean_mask(weights, weights > 0)))
    (y_counts, rows, y_weights), (x_counts, columns, x_weights) = axes
    row_begins = tf.gather(rois.map_begin, rows[:, 0]) + rows[:, 2] * tf.gather(rois.map_size[:, 1], rows[:, 0])
    bins, y, x = cells_of_bins(y_counts, x_counts)
    cells = tf.gather(row_begins, y) + tf.gather(columns[:, 2], x)
    weights = tf.gather(y_weights, y) * tf.gather(x_weights, x)
    num_bins = tf.size(y_counts) * output_size[1]
    return csr_matrix(bins, cells, weights, tf.cast(tf.stack([num_bins, table_size]), tf.int64))


def _line_weights(start, size, samples, bins, limit):
    """Computes the weight of each row (or column) in each bin: the mean of its samples' bilinear weights.

    Args:
        start: (N,), starts of the regions along this axis in cells.
        size: (N,), lengths of the regions in cells.
        samples: (N,) int32, number of samples per bin.
        bins: Number of bins.
        limit: (N,) int32, number of rows (or columns) of each region's map.

    Returns:
        The weights, (N, bins, largest limit).
    """
    count, num_lines = tf.shape(start)[0], tf.maximum(tf.reduce_max(limit), 1)
    numbers = tf.range(tf.maximum(tf.reduce_max(samples), 1))
    lines, weights = _line_samples(start, size, samples, bins, limit, numbers)
    bin_begins = tf.reshape(tf.range(count * bins) * num_lines, [-1, bins, 1, 1])
    summed = tf.math.unsorted_segment_sum(
        tf.reshape(weights, [-1]), tf.reshape(lines + bin_begins, [-1]), count * bins * num_lines
    )
    return tf.reshape(summed, [-1, bins, num_lines])


def _line_samples(start, size, samples, bins, limit, numbers):
    """Finds the two rows (or columns) around samples of each bin, and their weights in the bin.

    Args:
        start: (N,), starts of the regions along this axis in cells.
        size: (N,), lengths of the regions in cells.
        samples: (N,) int32, number of samples per bin.
        bins: Number of bins.
        limit: (N,) int32, number of rows (or columns) of each region's map.
        numbers: (S,) or (N, 1, S) int32, indices of the samples to return. Indices of `samples` or more get weight 0.

    Returns:
        Rows (or columns), (N, bins, S, 2) int32, and weights, (N, bins, S, 2) float32.
    """
    start, size, samples, limit = (value[:, None, None] for value in (start, size, samples, limit))
    bin_size, num_samples = size / bins, tf.maximum(tf.cast(samples, tf.float32), 1.0)
    begin = start + tf.range(bins, dtype=tf.float32)[:, None] * bin_size  # (N, bins, 1)
    position = begin + (tf.cast(numbers, tf.float32) + 0.5) * bin_size / num_samples  # (N, bins, S)
    inside = (position >= -1) & (position <= tf.cast(limit, tf.float32)) & (numbers < samples)
    position = tf.clip_by_value(tf.where(inside, position, 0.0), 0.0, tf.cast(limit - 1, tf.float32))
    lower = tf.floor(position)
    weight = tf.where(inside, 1 / num_samples, 0.0)
    weights = tf.stack([(1 - position + lower) * weight, (position - lower) * weight], -1)
    line = tf.cast(lower, tf.int32)
    return tf.stack([line, tf.minimum(line + 1, limit - 1)], -1), weights


def _table(features):
    """Flattens features (B, H, W, C) into a table of cells (B * H * W, C) float32."""
    return tf.reshape(tf.cast(features, tf.float32), [-1, features.shape[-1] or tf.shape(features)[-1]])


def _batch_indices(boxes):
    """Returns the batch index of each box of (B, P, 4): (B * P,) int32."""
    return tf.repeat(tf.range(tf.shape(boxes)[0]), tf.shape(boxes)[1])


def _unflatten(pooled, boxes, dtype):
    """Reshapes (B * P, ...) to (B, P, ...)."""
    shape = tf.concat([tf.shape(boxes)[:2], tf.shape(pooled)[1:]], 0)
    result = tf.cast(tf.reshape(pooled, shape), dtype)
    return tf.ensure_shape(result, [*boxes.shape[:2], *pooled.shape[1:]])


def _pair(output_size):
    return (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
