"""Several processes of this machine that train together."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

log = logging.getLogger(__name__)

RESTARTS = 3


def run_workers(command: Sequence[str], count: int, num_gpus: int = 0) -> int:
    """Runs a command in `count` processes, each a worker of one TF_CONFIG, and ends when they do.

    When a worker is killed the others cannot go on: all are started again, three times at most, and go on from the
    last checkpoint. SIGTERM and SIGINT are handed on.

    Args:
        command: Such as ``kerasdet train``.
        count: How many.
        num_gpus: Of this machine, shared out among the workers; with 0 they run on the CPU.

    Returns:
        0, or the exit code of the first that failed.

    Raises:
        ValueError: If there are GPUs, but not one for each worker.
    """
    if 0 < num_gpus < count:
        raise ValueError(f"There are {num_gpus} GPUs for {count} workers: give --workers {num_gpus} or fewer.")
    for restarts in range(RESTARTS + 1):
        if restarts:
            log.warning("A worker was killed: starting all again (%d of %d times).", restarts, RESTARTS)
        workers = [
            subprocess.Popen(command, env={**os.environ, **environment})
            for environment in worker_environments(count, num_gpus)
        ]
        with _handing_on(workers) as asked_to_end:
            codes = _wait(workers)
        killed = any(code < 0 for code in codes)
        if not killed or asked_to_end:
            break
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def worker_environments(count: int, num_gpus: int) -> list[dict[str, str]]:
    """TF_CONFIG of each worker, on free ports, and its GPUs, if there are any."""
    with contextlib.ExitStack() as stack:  # all at once, so that they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
    environments = []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index::count])} if num_gpus else {}
        environments.append({"TF_CONFIG": json.dumps(task), **devices})
    return environments


def _wait(workers):
    """Exit codes, the first that failed before those of workers that are ended for it."""
    while True:
        codes = [worker.poll() for worker in workers]
        if failed := [code for code in codes if code]:
            for worker in workers:
                worker.kill()  # it may wait for the dead forever
                worker.wait()
            return sorted(failed)
        if None not in codes:
            return codes
        time.sleep(0.1)


@contextlib.contextmanager
def _handing_on(workers):
    """Within, signals to end go to the workers; a list of those that came."""
    received = []

    def hand_on(number, _):
        received.append(number)
        for worker in workers:
            worker.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
