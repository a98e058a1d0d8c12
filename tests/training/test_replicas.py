"""Compares two devices, and two processes, with one device that has the whole batch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from kerasdet.training.resume import checkpoints
from kerasdet.training.workers import worker_environments

RUN = Path(__file__).with_name("replica_run.py")
ONE_PROCESS = [{}]
TOLERANCES = {"float32": 1e-5, "float64": 1e-9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return tiny.shapes_data(folder, num_images=7, seed=3, image_size=(100, 130)).annotations


def run(folder, strategy, data):
    """The arrays that each process of a strategy saved."""
    environments = worker_environments(2, 0) if strategy == "multi_worker" else ONE_PROCESS
    outputs = [folder / f"{strategy}_{rank}.npz" for rank in range(len(environments))]
    processes = []
    for output, environment in zip(outputs, environments, strict=True):
        common = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment}
        command = [sys.executable, str(RUN), strategy, str(data), str(output), str(folder / strategy)]
        processes.append(subprocess.Popen(command, env=common, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    return [dict(np.load(output)) for output in outputs]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, data):
    [arrays] = run(tmp_path_factory.mktemp("one_device"), "one_device", data)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_two_replicas_train_and_evaluate_like_one(tmp_path, data, one_device, strategy):
    for trained in ("float32 retinanet", "float64 mask_rcnn"):
        assert one_device[f"{trained} moved"] > 1e-3
    for found in run(tmp_path, strategy, data):
        assert found.keys() == one_device.keys()
        for name, value in one_device.items():
            tolerance = TOLERANCES[name.split()[0]]
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


ENDLESS = """
import logging, os, sys, time
tests, annotations, out_dir = sys.argv[1:]
sys.path.insert(0, tests)
import tiny
from kerasdet.data import CocoDataset
from kerasdet.training import SGD, Checkpointing, make_strategy, train
logging.basicConfig(format="%(message)s", level=logging.INFO)
fsync = os.fsync
def slow_fsync(handle):  # gives a worker that does not wait for the checkpoint the time to leave
    time.sleep(2)
    fsync(handle)
os.fsync = slow_fsync
arguments = {"steps": 10**6, "batch_size": 2, "log_every": 1, "out_dir": out_dir}
arguments["checkpointing"] = Checkpointing(steps_per_epoch=10**6)
with make_strategy("multi_worker").scope():
    train(tiny.detector(), CocoDataset(annotations), optimizer=SGD(1e-4), **arguments)
"""


def signal_second_worker(data, out_dir, number):
    """Trains with two workers and sends the second a signal; returns their exit codes and error output."""
    command = [sys.executable, "-c", ENDLESS, str(RUN.parents[1]), str(data), str(out_dir)]
    common = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environments = worker_environments(2, 0)
    processes = [
        subprocess.Popen(command, env={**common, **environment}, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]
    log = out_dir / "metrics.jsonl"
    while all(process.poll() is None for process in processes) and not (log.is_file() and log.read_text()):
        time.sleep(0.05)
    processes[1].send_signal(number)
    errors = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_all_after_the_same_saved_step(tmp_path, data):
    codes, errors = signal_second_worker(data, tmp_path, signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM] * 2, errors[0][-3000:]
    assert all("the run has saved a checkpoint" in text for text in errors)
    steps = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [f"step_{steps:08d}.keras"]


@pytest.mark.slow
def test_killed_worker_is_an_error_of_the_others(tmp_path, data):
    codes, errors = signal_second_worker(data, tmp_path, signal.SIGKILL)
    assert codes == [1, -signal.SIGKILL]
    assert "RuntimeError: Another worker has ended or cannot be reached" in errors[0]
