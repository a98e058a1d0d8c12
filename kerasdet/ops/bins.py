"""Lists the feature map cells in each bin of a region, and computes rows in chunks to bound memory."""

from collections.abc import Callable

import tensorflow as tf


def cells_of_bins(y_counts: tf.Tensor, x_counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Lists every cell of every bin. The cells of a bin are the product of its rows and its columns.

    The caller holds two flat lists: the rows of all bins one after the other, and the columns of all bins.

    Args:
        y_counts: (N, h) int32, the number of feature map rows in each row of bins, for each of N regions.
        x_counts: (N, w) int32, the number of feature map columns in each column of bins.

    Returns:
        Three (E,) int32 tensors with one entry per cell: the index of the cell's bin in the flattened (N, h, w),
        ascending; the index of the cell's row in the flat list of rows; and the index of its column in the flat list of
        columns.
    """
    y_starts = tf.reshape(tf.cumsum(tf.reshape(y_counts, [-1]), exclusive=True), tf.shape(y_counts))
    x_starts = tf.reshape(tf.cumsum(tf.reshape(x_counts, [-1]), exclusive=True), tf.shape(x_counts))
    counts = y_counts[:, :, None] * x_counts[:, None, :]  # (N, h, w)
    shape = tf.shape(counts)
    starts = tf.cumsum(tf.reshape(counts, [-1]), exclusive=True)  # (N * h * w,)
    total = tf.reduce_sum(counts)
    # A cell's bin is the number of bins, without the first, that begin at or before it. An empty bin begins at the same
    # cell as the next bin, so no cell belongs to it.
    begins = tf.math.unsorted_segment_sum(tf.ones_like(starts[1:]), starts[1:], total + 1)
    bins = tf.cumsum(begins)[:total]  # (E,)
    bin_values = [y_starts[:, :, None], x_starts[:, None, :], x_counts[:, None, :]]
    bin_values = [tf.reshape(tf.broadcast_to(value, shape), [-1]) for value in bin_values]
    cell_values = tf.gather(tf.stack([starts, *bin_values], -1), bins)  # (E, 4)
    start, y_start, x_start, columns = tf.unstack(cell_values, axis=-1)
    within = tf.range(total) - start
    return bins, y_start + within // columns, x_start + within % columns


def map_chunks(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], count: tf.Tensor, chunk: tf.Tensor, row_shape: list
) -> tf.Tensor:
    """Computes rows chunk after chunk and concatenates them, so that temporary memory depends on the chunk only.

    Args:
        function: Takes `begin` and `end`, scalar int32 tensors, and returns the rows (end - begin, *row_shape) float32.
        count: Scalar int32, the number of rows.
        chunk: Scalar int32, the number of rows computed at a time.
        row_shape: Static shape of one row.

    Returns:
        The rows, (count, *row_shape) float32.
    """
    chunks = tf.maximum((count + chunk - 1) // chunk, 1)  # TensorArray.concat needs at least one chunk
    results = tf.TensorArray(tf.float32, chunks, infer_shape=False, element_shape=[None, *row_shape])

    def body(index, results):
        begin = index * chunk
        return index + 1, results.write(index, function(begin, tf.minimum(begin + chunk, count)))

    return tf.while_loop(lambda index, _: index < chunks, body, (0, results), parallel_iterations=1)[1].concat()


def sum_chunks(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], count: tf.Tensor, chunk: tf.Tensor, zeros: tf.Tensor
) -> tf.Tensor:
    """Sums over rows chunk after chunk, so that temporary memory depends on the chunk only.

    Args:
        function: Takes `begin` and `end`, scalar int32 tensors, and returns the sum over these rows, with the shape of
            `zeros`.
        count: Scalar int32, the number of rows.
        chunk: Scalar int32, the number of rows summed at a time.
        zeros: Initial value of the sum; defines its shape and dtype.

    Returns:
        The sum, with the shape and dtype of `zeros`.
    """

    def body(begin, total):
        return begin + chunk, total + function(begin, tf.minimum(begin + chunk, count))

    return tf.while_loop(lambda begin, _: begin < count, body, (0, zeros), parallel_iterations=1)[1]
