"""Defines cross-replica collectives that make N replicas train like one device with the whole batch."""

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_thread = threading.local()  # a strategy traces each replica in a thread of its own


def num_replicas() -> int:
    """Returns the number of replicas over which the collectives reduce.

    Returns:
        The number of replicas of the current strategy; 1 inside a ``with`` block of `local_reductions`.
    """
    return 1 if getattr(_thread, "local_only", False) else tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def local_reductions() -> Iterator[None]:
    """Disables the collectives of this module inside the ``with`` block: each replica reduces alone.

    Evaluation needs this: each replica processes its own batches, and replicas may process different numbers of
    batches. The setting belongs to the current thread, so use it inside the function that each replica runs.

    Yields:
        None.
    """
    before, _thread.local_only = getattr(_thread, "local_only", False), True
    try:
        yield
    finally:
        _thread.local_only = before


def global_sum(x: tf.Tensor | Sequence[tf.Tensor]) -> tf.Tensor | list[tf.Tensor]:
    """Sums tensors over all replicas.

    Args:
        x: Tensor or list of tensors, with the same shapes on all replicas.

    Returns:
        The sums, with the structure and shapes of `x`; `x` itself on a single replica.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or num_replicas() == 1:
        return x
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, x)


def global_mean(x: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Averages tensors over all replicas.

    Args:
        x: List of tensors, with the same shapes on all replicas.

    Returns:
        The means, with the shapes of `x`; on a single replica the tensors themselves.
    """
    return [value / num_replicas() for value in global_sum(x)] if num_replicas() > 1 else list(x)


def global_max(x: tf.Tensor) -> tf.Tensor:
    """Computes the elementwise maximum over all replicas.

    Args:
        x: Tensor, with the same shape on all replicas.

    Returns:
        The maximum, with the shape of `x`; `x` itself on a single replica.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or num_replicas() == 1:
        return x
    return tf.reduce_max(replica.all_gather(x[None], axis=0), 0)  # `all_reduce` supports only sums and means


def worker_rank(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns the rank of this process and the number of processes that train together.

    Args:
        strategy: `tf.distribute` strategy that the model was built in.

    Returns:
        The rank, from 0, and the number of workers. The worker of rank 0 writes the files.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    chiefs, workers = (len(cluster.get(name, [])) for name in ("chief", "worker"))
    return (0 if resolver.task_type == "chief" else chiefs + (resolver.task_id or 0)), max(chiefs + workers, 1)


def all_gather_object(strategy: tf.distribute.Strategy, value: Any) -> list:
    """Gathers a value from every worker. All workers must call this function, so it also acts as a barrier.

    Args:
        strategy: `tf.distribute` strategy that the model was built in.
        value: A value that `json.dumps` accepts.

    Returns:
        A list of the values of all workers, in the order of their ranks.
    """
    if worker_rank(strategy)[1] == 1:
        return [value]
    text = json.dumps(value).encode()
    # Collectives gather numbers, not bytes: the text is padded to whole int32.
    content = np.frombuffer(text + b"\n" * (4 - len(text) % 4), np.int32)
    gathered = strategy.experimental_local_results(_gather(strategy)(tf.constant(content)))[0]
    return [json.loads(line) for line in gathered.numpy().tobytes().split(b"\n") if line]


@functools.cache  # a new function for each call would trace again, and TensorFlow never frees a collective
def _gather(strategy):
    """Returns a function that concatenates the (N,) int32 of all workers; N may differ between them."""

    def of_replica(content):
        replica = tf.distribute.get_replica_context()
        # A worker with several replicas contributes once.
        is_first = tf.cast(replica.replica_id_in_sync_group % local_replicas(strategy) == 0, tf.int32)
        return replica.all_gather(content[: is_first * tf.size(content)], axis=0)

    signature = [tf.TensorSpec([None], tf.int32)]
    return tf.function(lambda content: strategy.run(of_replica, args=(content,)), signature, autograph=False)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Returns how many replicas run in this process.

    Args:
        strategy: `tf.distribute` strategy that the model was built in.

    Returns:
        The number of replicas, at least 1.
    """
    return strategy.num_replicas_in_sync // worker_rank(strategy)[1]
