"""Which devices a training runs on."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import time

import tensorflow as tf

from kerasdet.training.signals import handle_sigterm

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
    _meet(address, workers)
    before = signal.getsignal(signal.SIGTERM)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The worker at {address} of TF_CONFIG cannot start ({reason}).") from None
    handle_sigterm(before)  # TensorFlow has installed its own, which does nothing here
    return strategy


def _meet(address, workers):
    """Returns when all workers listen: TensorFlow waits for them, too, but says nothing and cannot be interrupted."""
    others = [worker for worker in workers if worker != address]
    everywhere = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        server = socket.create_server(("", _split(address)[1]), backlog=len(workers), **everywhere)
    except OSError as error:
        reason = os.strerror(error.errno)
        raise ValueError(f"The worker at {address} of TF_CONFIG cannot have its port: {reason}.") from None
    with server:
        if others:
            log.info("Worker %s waits for %s.", address, ", ".join(others))
        while others := [worker for worker in others if not _listens(worker)]:
            time.sleep(0.2)


def _listens(address):
    with contextlib.suppress(OSError), socket.create_connection(_split(address), timeout=1):
        return True
    return False


def _split(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _addresses(text):
    """Of this process, and of all workers."""
    try:
        config = json.loads(text or "")
        cluster, task = config["cluster"], config["task"]
        jobs = {name: cluster[name] for name in ("chief", "worker") if name in cluster}
        job, index = jobs[task["type"]], int(task["index"])
    except (TypeError, AttributeError, KeyError, ValueError):
        raise _no_tf_config(text, "lacks a cluster, or a task of it") from None
    if not all(isinstance(addresses, list) and addresses for addresses in jobs.values()):
        raise _no_tf_config(text, "does not list the workers")
    workers = [address for addresses in jobs.values() for address in addresses]
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


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"STRATEGY tpu finds no TPU ({' '.join(str(error).split())[:200]}).") from None
    return tf.distribute.TPUStrategy(resolver)
