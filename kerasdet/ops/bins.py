"""Bins of regions of interest: which cells of a feature map fall into each, in bounded memory."""

from collections.abc import Callable

import tensorflow as tf


def cells_of_bins(y_counts: tf.Tensor, x_counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Every cell of every bin of a grid, where a bin's cells are the product of its rows and its columns.

    Args:
        y_counts: (N, h) int32, rows in each row of bins. The rows themselves are in a flat list, one after the other.
        x_counts: (N, w) int32, likewise columns.

    Returns:
        For each of E cells the bin in (N, h, w) flattened, ascending, and its places in the flat lists of rows and of
        columns: three of (E,) int32.
    """
    y_starts = tf.reshape(tf.cumsum(tf.reshape(y_counts, [-1]), exclusive=True), tf.shape(y_counts))
    x_starts = tf.reshape(tf.cumsum(tf.reshape(x_counts, [-1]), exclusive=True), tf.shape(x_counts))
    counts = y_counts[:, :, None] * x_counts[:, None, :]  # (N, h, w)
    shape = tf.shape(counts)
    starts = tf.cumsum(tf.reshape(counts, [-1]), exclusive=True)  # (N * h * w,)
    total = tf.reduce_sum(counts)
    # A bin's number is how many bins after the first begin at or before the cell; empty bins begin together.
    begins = tf.math.unsorted_segment_sum(tf.ones_like(starts[1:]), starts[1:], total + 1)
    bins = tf.cumsum(begins)[:total]  # (E,)
    of_bins = [y_starts[:, :, None], x_starts[:, None, :], x_counts[:, None, :]]
    of_bins = [tf.reshape(tf.broadcast_to(value, shape), [-1]) for value in of_bins]
    of_cells = tf.gather(tf.stack([starts, *of_bins], -1), bins)  # (E, 4)
    start, y_start, x_start, columns = tf.unstack(of_cells, axis=-1)
    within = tf.range(total) - start
    return bins, y_start + within // columns, x_start + within % columns


def map_chunks(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], count: tf.Tensor, chunk: tf.Tensor, row_shape: list
) -> tf.Tensor:
    """Results for the rows `begin` to `end`, chunk after chunk, concatenated.

    Args:
        function: Of `begin` and `end`, giving (end - begin, *row_shape) float32.
        count: Rows in all.
        chunk: Rows at a time.
        row_shape: Static shape of a row's result.

    Returns:
        (count, *row_shape).
    """
    chunks = tf.maximum((count + chunk - 1) // chunk, 1)  # an empty result is a chunk, too
    results = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=[None, *row_shape])

    def body(index, results):
        begin = index * chunk
        return index + 1, results.write(index, function(begin, tf.minimum(begin + chunk, count)))

    return tf.while_loop(lambda index, _: index < chunks, body, (0, results), parallel_iterations=1)[1].concat()


def sum_chunks(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], count: tf.Tensor, chunk: tf.Tensor, zeros: tf.Tensor
) -> tf.Tensor:
    """Sum of the results for the rows `begin` to `end`, chunk after chunk.

    Args:
        function: Of `begin` and `end`, giving a tensor like `zeros`.
        count: Rows in all.
        chunk: Rows at a time.
        zeros: The sum of nothing.

    Returns:
        A tensor like `zeros`.
    """

    def body(begin, total):
        return begin + chunk, total + function(begin, tf.minimum(begin + chunk, count))

    return tf.while_loop(lambda begin, _: begin < count, body, (0, zeros), parallel_iterations=1)[1]
