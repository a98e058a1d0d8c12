"""Products with sparse matrices: weighted sums of rows of a table, without the rows being copied out of it.

TensorFlow's compressed rows (CSR) run several times faster than `tf.sparse.sparse_dense_matmul`, and than gathers.
"""

import tensorflow as tf

from kerasdet.ops.dispatch import static_shapes


def csr_matrix(rows: tf.Tensor, columns: tf.Tensor, values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """A sparse matrix.

    Args:
        rows: (N,) int32, ascending.
        columns: (N,) int32; within a row in any order.
        values: (N,) float32.
        shape: (2,) int64.

    Returns:
        A variant for `matmul`.
    """
    indices = tf.stack([tf.cast(rows, tf.int64), tf.cast(columns, tf.int64)], -1)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=shape)


def matmul(matrix: tf.Tensor, dense: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    """``matrix @ dense`` or ``matrix.T @ dense``, without a gradient; the same bits each time.

    TensorFlow's own product with a transposed matrix adds up what its threads find in the order in which they end.

    Args:
        matrix: From `csr_matrix`.
        dense: (K, C) float32.
        transpose: The matrix.

    Returns:
        (M, C).
    """
    if transpose:
        matrix = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
    return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=dense)


def weighted_rows(table: tf.Tensor, indices: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sums of a few rows of a table, with gradients to the table and to the weights.

    Args:
        table: (T, C) float32.
        indices: (N, K) int32 into the rows.
        weights: (N, K) float32.

    Returns:
        (N, C).
    """

    if static_shapes():
        return tf.einsum("nkc,nk->nc", tf.gather(table, indices), weights)

    @tf.custom_gradient
    def product(table, weights):
        count, taps = tf.shape(indices)[0], indices.shape[1]
        rows = tf.repeat(tf.range(count), taps)  # (N * K,)
        shape = tf.stack([tf.shape(indices, tf.int64)[0], tf.shape(table, tf.int64)[0]])
        matrix = csr_matrix(rows, tf.reshape(indices, [-1]), tf.reshape(weights, [-1]), shape)

        def gradient(upstream):
            to_weights = [tf.reduce_sum(tf.gather(table, indices[:, tap]) * upstream, 1) for tap in range(taps)]
            return matmul(matrix, upstream, transpose=True), tf.stack(to_weights, 1)

        return matmul(matrix, table), gradient

    return product(table, weights)
