"""Makes `tf.distribute` strategies, which choose the devices of a training run, by name."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Sequence

import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.training.loop import handle_sigterm

log = logging.getLogger(__name__)

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Makes a `tf.distribute` strategy. Build and train the model in the scope of the strategy.

    Example:
        >>> with make_strategy("mirrored").scope():
        ...     train(kerasdet.RetinaNet(num_classes=3), data, ...)

    Args:
        name: "one_device" for the first GPU, or the CPU if there is no GPU; "mirrored" for all GPUs of this machine, or
            for its logical CPU devices if it has no GPU; "multi_worker" for the processes that the environment variable
            TF_CONFIG lists, each with all of its GPUs; "tpu" for the TPU that TensorFlow's resolver finds.

    Returns:
        The `tf.distribute` strategy.

    Raises:
        UserError: If the name is unknown, TF_CONFIG is not valid, a worker cannot start, or there is no TPU.
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
    raise UserError(f"STRATEGY is {name!r}: choose one of {', '.join(STRATEGIES)}.")


def wait_for_workers(address: str, workers: Sequence[str]) -> None:
    """Waits until all workers listen on their ports.

    TensorFlow waits for workers, too, but logs nothing while it waits, and cannot be interrupted.

    Args:
        address: ``host:port`` of this worker.
        workers: ``host:port`` of all workers, including this worker.

    Raises:
        UserError: If another process uses the port of this worker.
    """
    others = [worker for worker in workers if worker != address]
    all_interfaces = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        server = socket.create_server(("", _split(address)[1]), backlog=len(workers), **all_interfaces)
    except OSError as error:
        raise UserError(
            f"The worker at {address} of TF_CONFIG cannot use its port ({os.strerror(error.errno)}): end the process "
            "that uses this port, or set another port in the TF_CONFIG of all workers."
        ) from None
    with server:
        if others:
            log.info("Worker %s waits for %s.", address, ", ".join(others))
        while others := [worker for worker in others if not _listens(worker)]:
            time.sleep(0.2)


def _multi_worker():
    address, workers = _addresses(os.environ.get("TF_CONFIG"))
    wait_for_workers(address, workers)
    handler_before = signal.getsignal(signal.SIGTERM)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The worker at {address} of TF_CONFIG cannot start ({reason}): check that all workers run and can reach "
            "each other over the network."
        ) from None
    handle_sigterm(handler_before)  # TensorFlow 2.21 installs its own handler, which swallows the signal
    return strategy


def _listens(address):
    with contextlib.suppress(OSError), socket.create_connection(_split(address), timeout=1):
        return True
    return False


def _split(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _addresses(text):
    """Returns the address of this process and the addresses of all workers, parsed from TF_CONFIG."""
    try:
        config = json.loads(text or "")
        cluster, task = config["cluster"], config["task"]
        jobs = {name: cluster[name] for name in ("chief", "worker") if name in cluster}
        job, index = jobs[task["type"]], int(task["index"])
    except (TypeError, AttributeError, KeyError, ValueError):
        raise _bad_tf_config(text, "lacks a cluster, or a task that is in the cluster") from None
    if not all(isinstance(addresses, list) and addresses for addresses in jobs.values()):
        raise _bad_tf_config(text, "does not list the workers")
    workers = [address for addresses in jobs.values() for address in addresses]
    if wrong := [address for address in workers if not re.fullmatch(r"\S+:\d+", str(address))]:
        raise _bad_tf_config(text, f"has {wrong[0]!r} instead of host:port of a worker")
    if not 0 <= index < len(job):
        raise _bad_tf_config(
            text, f"has the task index {index}; expected 0 to {len(job) - 1}, the index of an address in the cluster"
        )
    return job[index], workers


def _bad_tf_config(text, fault):
    example = '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
    return UserError(
        "STRATEGY multi_worker reads the workers from the environment variable TF_CONFIG, but its value "
        f"{text!r} {fault}: set it as in {example}, or start local workers with kerasdet train --workers N."
    )


def _tpu():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"STRATEGY is tpu, but there is no TPU ({' '.join(str(error).split())[:200]}): run on a machine with a "
            "TPU, or choose another STRATEGY."
        ) from None
    return tf.distribute.TPUStrategy(resolver)
