"""Sums over the replicas of a `tf.distribute` strategy, so that N replicas count like one with the whole batch."""

import tensorflow as tf


def global_sum(x: tf.Tensor) -> tf.Tensor:
    """The sum of all replicas' `x`; `x` itself where there is one replica."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return x
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, x)


def num_replicas() -> int:
    """How many replicas share a batch."""
    return tf.distribute.get_strategy().num_replicas_in_sync
