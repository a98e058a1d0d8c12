"""Runs several training processes on this machine as one cluster."""

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

from kerasdet.errors import UserError

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
GRACE_SECONDS = 120  # time for the other workers to save after a signal ended the first one


def run_workers(command: Sequence[str], count: int, num_gpus: int = 0) -> int:
    """Runs a command in several processes that train together as workers, until all have ended.

    If a worker is killed, the others cannot continue. All workers are then restarted, up to 3 times, and resume from
    the last checkpoint. SIGTERM, SIGINT and SIGHUP are passed on to the workers. When the first worker has ended, the
    others have 120 seconds to save a checkpoint. The workers run in their own sessions, so that Ctrl-C in a terminal
    reaches them only once.

    Args:
        command: Command of a worker, such as ``["kerasdet", "train", "recipe.gin"]``.
        count: Number of workers.
        num_gpus: Number of GPUs of this machine, which are divided among the workers. 0: all workers run on the CPU.

    Returns:
        The exit code: 0 if no worker failed, otherwise the code of a failed worker. Codes of killed workers, 128 plus
        the number of the signal, come first.

    Raises:
        UserError: If the machine has GPUs, but fewer than `count`.
    """
    if 0 < num_gpus < count:
        raise UserError(
            f"There are {count} workers, but only {num_gpus} GPUs: expected at most one worker per GPU. "
            f"Pass --workers {num_gpus} (Python: count=) or fewer."
        )
    for restarts in range(MAX_RESTARTS + 1):
        if restarts:
            log.warning("A worker was killed: restarting all workers (restart %d of %d).", restarts, MAX_RESTARTS)
        with _received_signals() as received:
            workers = [
                subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
                for environment in worker_environments(count, num_gpus)
            ]
            failed = _wait(workers, received)
        if received or not any(code < 0 for code in failed):
            break
    return next((code if code > 0 else 128 - code for code in failed), 0)


def worker_environments(count: int, num_gpus: int) -> list[dict[str, str]]:
    """Makes the environment variables of local workers: TF_CONFIG with free ports, and their GPUs.

    Args:
        count: Number of workers.
        num_gpus: Number of GPUs to divide among the workers. 0: CUDA_VISIBLE_DEVICES is not changed.

    Returns:
        One dict of environment variables per worker.
    """
    with contextlib.ExitStack() as stack:  # all sockets are open at once, so that their ports differ
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
    """Waits for all workers; returns the sorted exit codes of the workers that failed before this function ends any."""
    passed_on, deadline = 0, math.inf
    while True:
        for number in received[passed_on:]:
            for worker in workers:
                worker.send_signal(number)
            passed_on += 1
        codes = [worker.poll() for worker in workers]
        failed = sorted(code for code in codes if code)
        if None not in codes:
            return failed
        codes_of_signals = {code for number in received for code in (-number, 128 + number)}
        is_as_asked = codes_of_signals.issuperset(failed)
        if failed and deadline == math.inf:
            deadline = time.monotonic() + (GRACE_SECONDS if is_as_asked else 0)
        if failed and (time.monotonic() >= deadline or not is_as_asked):
            for worker in workers:
                worker.kill()  # it may wait for the lost worker forever
                worker.wait()
            return failed
        time.sleep(0.1)


@contextlib.contextmanager
def _received_signals():
    """Collects termination signals that arrive inside the block; ignored signals, as under nohup, stay ignored."""
    received = []
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
