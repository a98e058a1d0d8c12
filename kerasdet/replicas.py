"""What the replicas of a `tf.distribute` strategy tell one another, so that N train like one with the whole batch."""

import contextlib
import functools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

_thread = threading.local()  # a strategy traces each replica in a thread of its own


def num_replicas() -> int:
    """How many replicas share a batch."""
    return 1 if getattr(_thread, "alone", False) else tf.distribute.get_strategy().num_replicas_in_sync


@contextlib.contextmanager
def counted_alone() -> Iterator[None]:
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


def padded_alike(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The batch, its images padded to the largest height and width on any replica, as in one batch of them all."""
    image = tf.convert_to_tensor(batch["image"])
    if num_replicas() == 1 or image.shape[1:3].is_fully_defined():
        return {**batch, "image": image}
    size = tf.shape(image)[1:3]
    missing = tf.pad(tf.stack([tf.zeros(2, tf.int32), global_max(size) - size], 1), [[1, 1], [0, 0]])
    padded = tf.ensure_shape(tf.pad(image, missing), image.shape)
    return {**batch, "image": padded}


def with_an_image(batch: Mapping[str, tf.Tensor] | tf.Tensor) -> tuple[Mapping | tf.Tensor, tf.Tensor | None]:
    """A batch that is never empty, as the last of a data set is on the replicas beyond its images.

    Returns:
        The batch, or an image of zeros without objects; and 0 where it is that image, else 1, for `kept` to drop what
        is made of it. The batch itself and None where there is one replica.
    """
    if num_replicas() == 1:
        return batch, None
    batch = batch if isinstance(batch, Mapping) else {"image": batch}
    share = tf.minimum(tf.shape(batch["image"])[0], 1)
    filled = {}
    for name, value in batch.items():
        smallest = [1, 32, 32, 3] if name == "image" else [1] * value.shape.rank
        missing = tf.maximum((1 - share) * smallest - tf.shape(value), 0)
        nothing = tf.cast(-1 if name == "class_ids" else 0, value.dtype)
        padded = tf.pad(value, tf.stack([tf.zeros_like(missing), missing], 1), constant_values=nothing)
        filled[name] = tf.ensure_shape(padded, [None, *value.shape[1:]])
    return filled, share


def kept(outputs, share: tf.Tensor | None):
    """What a model makes of the images, nothing of the one that `with_an_image` added; anchors are of no image."""
    if share is None:
        return outputs
    if isinstance(outputs, Mapping):
        return {name: value if name == "anchors" else kept(value, share) for name, value in outputs.items()}
    return outputs[: share * tf.shape(outputs)[0]]


def apply_sum(optimizer: keras.Optimizer, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]) -> None:
    """One step of a Keras optimizer by gradients that are summed over the replicas already.

    Keras would clip what each replica has before it sums; so it gets the sum, and is told not to sum again.
    """
    if num_replicas() > 1:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not hasattr(inner, "_all_reduce_sum_gradients"):
            raise NotImplementedError(
                f"{type(inner).__name__} of Keras {keras.__version__} does not sum over replicas."
            )
        inner._all_reduce_sum_gradients = list
    optimizer.apply(gradients, variables)


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """The number of this process, and how many train together; number 0 is the one that writes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    chiefs, workers = (len(cluster.get(name, [])) for name in ("chief", "worker"))
    return (0 if resolver.task_type == "chief" else chiefs + (resolver.task_id or 0)), max(chiefs + workers, 1)


def all_workers(strategy: tf.distribute.Strategy, value) -> list:
    """What each process has for `value`, anything that JSON can hold, in the order of the workers."""
    if worker(strategy)[1] == 1:
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
    return strategy.num_replicas_in_sync // worker(strategy)[1]
