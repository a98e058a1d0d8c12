"""What the replicas of a `tf.distribute` strategy tell one another, so that N train like one with the whole batch."""

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

_thread = threading.local()  # a strategy traces each replica in a thread of its own


def num_replicas() -> int:
    """How many replicas share a batch."""
    return 1 if getattr(_thread, "alone", False) else tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def local_reductions() -> Iterator[None]:
    """Within, what is counted on all replicas is counted on this one: its batch is nobody else's."""
    before, _thread.alone = getattr(_thread, "alone", False), True
    try:
        yield
    finally:
        _thread.alone = before


def global_sum(x):
    """The sum of all replicas' `x`, a tensor or a list of tensors; `x` itself where there is one replica."""
    replica = tf.distribute.get_replica_context()
    if replica is None or num_replicas() == 1:
        return x
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, x)


def global_mean(x: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The means of all replicas' tensors."""
    return [value / num_replicas() for value in global_sum(x)] if num_replicas() > 1 else list(x)


def global_max(x: tf.Tensor) -> tf.Tensor:
    """The elementwise maximum of all replicas' `x`."""
    replica = tf.distribute.get_replica_context()
    if replica is None or num_replicas() == 1:
        return x
    return tf.reduce_max(replica.all_gather(x[None], axis=0), 0)


def worker_rank(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """The number of this process, and how many train together; number 0 is the one that writes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    chiefs, workers = (len(cluster.get(name, [])) for name in ("chief", "worker"))
    return (0 if resolver.task_type == "chief" else chiefs + (resolver.task_id or 0)), max(chiefs + workers, 1)


def all_gather_object(strategy: tf.distribute.Strategy, value) -> list:
    """What each process has for `value`, anything that JSON can hold, in the order of the workers."""
    if worker_rank(strategy)[1] == 1:
        return [value]
    text = json.dumps(value).encode()
    content = np.frombuffer(text + b"\n" * (4 - len(text) % 4), np.int32)  # which can be gathered, as bytes cannot
    gathered = strategy.experimental_local_results(_gather(strategy)(tf.constant(content)))[0]
    return [json.loads(line) for line in gathered.numpy().tobytes().split(b"\n") if line]


@functools.cache  # or else each call would be a trace, and a collective that is never freed
def _gather(strategy):
    """A function of this worker's (N,) int32, the N of each its own, to those of all workers one after the other."""

    def of_replica(content):
        replica = tf.distribute.get_replica_context()
        is_first = tf.cast(replica.replica_id_in_sync_group % local_replicas(strategy) == 0, tf.int32)
        return replica.all_gather(content[: is_first * tf.size(content)], axis=0)

    signature = [tf.TensorSpec([None], tf.int32)]
    return tf.function(lambda content: strategy.run(of_replica, args=(content,)), signature, autograph=False)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many replicas this process has."""
    return strategy.num_replicas_in_sync // worker_rank(strategy)[1]
