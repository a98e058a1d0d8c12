"""Several processes of this machine that train together."""

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

log = logging.getLogger(__name__)

RESTARTS = 3
GRACE = 120  # seconds in which all save and leave, from when the first has left as it was asked to


def run_workers(command: Sequence[str], count: int, num_gpus: int = 0) -> int:
    """Runs a command in `count` processes, each a worker of one TF_CONFIG, and ends when they do.

    When a worker is killed the others cannot go on: all are started again, three times at most, and go on from the
    last checkpoint. SIGTERM, SIGINT and SIGHUP are handed on, and the workers have time to save: they are in sessions
    of their own, where Ctrl-C reaches them once.

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
        with _signals_to_end() as received:
            workers = [
                subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
                for environment in worker_environments(count, num_gpus)
            ]
            failed = _wait(workers, received)
        if received or not any(code < 0 for code in failed):
            break
    return next((code if code > 0 else 128 - code for code in failed), 0)


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


def _wait(workers, received):
    """Exit codes of the workers that failed, lowest first, without those that are ended for it."""
    handed_on, deadline = 0, math.inf
    while True:
        for number in received[handed_on:]:
            for worker in workers:
                worker.send_signal(number)
            handed_on += 1
        codes = [worker.poll() for worker in workers]
        failed = sorted(code for code in codes if code)
        if None not in codes:
            return failed
        as_asked = {code for number in received for code in (-number, 128 + number)}
        if failed and deadline == math.inf:
            deadline = time.monotonic() + (GRACE if as_asked.issuperset(failed) else 0)
        if failed and (time.monotonic() >= deadline or not as_asked.issuperset(failed)):
            for worker in workers:
                worker.kill()  # it may wait for the dead forever
                worker.wait()
            return failed
        time.sleep(0.1)


@contextlib.contextmanager
def _signals_to_end():
    """A list of the signals to end that come within; those that this process ignores, as under nohup, stay ignored."""
    received = []
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
