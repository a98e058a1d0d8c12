"""Which devices a training runs on."""

import json
import logging
import os
import re
import signal
import threading
from concurrent.futures import Future, wait

import tensorflow as tf

log = logging.getLogger(__name__)

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """A `tf.distribute` strategy, in whose scope a model is to be built.

    Args:
        name: "one_device"; "mirrored", all GPUs of this machine, or its logical CPU devices where there are none;
            "multi_worker", the processes that the environment variable TF_CONFIG names, each with all of its GPUs;
            "tpu", the TPU that TensorFlow's resolver finds.

    Raises:
        ValueError: For another name, a TF_CONFIG that is none, a worker that cannot start, or no TPU.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    raise ValueError(f"There is no strategy {name!r}: set STRATEGY to one of {', '.join(STRATEGIES)}.")


def _multi_worker():
    address, workers = _addresses(os.environ.get("TF_CONFIG"))
    if len(workers) > 1:
        log.info("Waiting for %d workers at %s.", len(workers), ", ".join(workers))
    try:
        return _interruptible(tf.distribute.MultiWorkerMirroredStrategy)
    except tf.errors.OpError as error:
        raise ValueError(
            f"The worker at {address} of TF_CONFIG cannot start: is its port taken by another process, or another "
            f"worker missing? ({' '.join(str(error).split())[:200]})"
        ) from None


def _addresses(text):
    """Of this process, and of all workers."""
    try:
        config = json.loads(text or "")
        cluster, task = config["cluster"], config["task"]
        jobs, job, index = list(cluster.values()), cluster[task["type"]], int(task["index"])
    except (TypeError, AttributeError, KeyError, ValueError):
        raise _no_tf_config(text, "lacks a cluster, or a task of it") from None
    if not all(isinstance(addresses, list) and addresses for addresses in jobs):
        raise _no_tf_config(text, "does not list the workers")
    workers = [address for addresses in jobs for address in addresses]
    if wrong := [address for address in workers if not re.fullmatch(r"\S+:\d+", str(address))]:
        raise _no_tf_config(text, f"has {wrong[0]!r} where host:port of a worker should be")
    if not 0 <= index < len(job):
        raise _no_tf_config(text, f"has the index {index}, and of {len(job)} workers the first is 0")
    return job[index], workers


def _no_tf_config(text, fault):
    example = '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
    return ValueError(
        f"STRATEGY multi_worker finds the workers in the environment variable TF_CONFIG, which is {text!r} and "
        f"{fault}: set it as in {example}, or start local workers with kerasdet train --workers N."
    )


def _interruptible(make):
    """What `make` returns. It waits for all workers, and TensorFlow would keep SIGTERM from ending it."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None or threading.current_thread() is not threading.main_thread():
        return make()
    future = Future()

    def run():
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not future.done():
        signal.signal(signal.SIGTERM, handler)
        wait([future], timeout=0.2)
    signal.signal(signal.SIGTERM, handler)
    return future.result()


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"STRATEGY tpu finds no TPU ({' '.join(str(error).split())[:200]}).") from None
    return tf.distribute.TPUStrategy(resolver)
