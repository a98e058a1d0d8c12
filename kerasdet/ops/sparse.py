"""Multiplies with sparse matrices: weighted sums of table rows, without copying the rows out of the table.

TensorFlow's CSR matrices are several times faster than `tf.sparse.sparse_dense_matmul` and than gathering rows.
"""

import tensorflow as tf

from kerasdet.ops.dispatch import static_shapes


def csr_matrix(rows: tf.Tensor, columns: tf.Tensor, values: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Creates a sparse matrix in compressed sparse row (CSR) format.

    Args:
        rows: (N,) int32, the row of each value, ascending.
        columns: (N,) int32, the column of each value, in any order within a row.
        values: (N,) float32.
        shape: (2,) int64, the numbers of rows and columns.

    Returns:
        A scalar tensor of dtype variant, TensorFlow's handle of a sparse matrix, for `matmul`.
    """
    indices = tf.stack([tf.cast(rows, tf.int64), tf.cast(columns, tf.int64)], -1)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=shape)


def matmul(matrix: tf.Tensor, dense: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    """Computes ``matrix @ dense`` or ``matrix.T @ dense``.

    The product has no gradient. It is bit-identical in every run.

    Args:
        matrix: Sparse matrix from `csr_matrix`, (M, K), or (K, M) if `transpose`.
        dense: (K, C) float32.
        transpose: Whether to transpose `matrix`.

    Returns:
        The product, (M, C) float32.
    """
    if transpose:
        # SparseMatrixMatMul(transpose_a=True) in TensorFlow 2.21 adds partial sums in the order in which its threads
        # end, so results differ between runs. Transposing first avoids it.
        matrix = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
    return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=dense)


def weighted_rows(table: tf.Tensor, indices: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Computes N weighted sums of K table rows each, with gradients to the table and to the weights.

    Args:
        table: (T, C) float32.
        indices: (N, K) int32, indices of table rows.
        weights: (N, K) float32, the weight of each row.

    Returns:
        The sums, (N, C) float32.
    """
    if static_shapes():
        return tf.einsum("nkc,nk->nc", tf.gather(table, indices), weights)

    @tf.custom_gradient
    def product(table, weights):
        count, taps = tf.shape(indices)[0], indices.shape[1]
        rows = tf.repeat(tf.range(count), taps)  # (N * K,)
        # A sum may use a table row twice, but cuSPARSE rejects more values than the matrix has elements. Therefore the
        # matrix gets empty rows if the table has fewer than K rows.
        empty = count * ((taps - 1) // tf.maximum(tf.shape(table)[0], 1))
        shape = tf.cast(tf.stack([count + empty, tf.shape(table)[0]]), tf.int64)
        matrix = csr_matrix(rows, tf.reshape(indices, [-1]), tf.reshape(weights, [-1]), shape)

        def gradient(upstream):
            to_weights = [tf.reduce_sum(tf.gather(table, indices[:, tap]) * upstream, 1) for tap in range(taps)]
            to_rows = tf.pad(upstream, [[0, empty], [0, 0]])
            return matmul(matrix, to_rows, transpose=True), tf.stack(to_weights, 1)

        return matmul(matrix, table)[:count], gradient

    return product(table, weights)
