"""Two devices, and two processes, against one with the whole batch."""

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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return tiny.shapes_data(folder, num_images=7, seed=3, image_size=(100, 130)).annotations


def run(folder, strategy, way, precision, data):
    """What each process wrote down."""
    environments = worker_environments(2, 0) if strategy == "multi_worker" else ONE_PROCESS
    outputs = [folder / f"{strategy}_{precision}_{number}.npz" for number in range(len(environments))]
    shared = folder / f"{strategy}_{precision}"
    processes = []
    for number, environment in enumerate(environments):
        common = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment}
        command = [sys.executable, str(RUN), strategy, way, precision, str(data), str(outputs[number]), str(shared)]
        processes.append(subprocess.Popen(command, env=common, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    return [dict(np.load(output)) for output in outputs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data):
    made = {}

    def of(precision):
        if precision not in made:
            [made[precision]] = run(tmp_path_factory.mktemp("alone"), "one_device", "train", precision, data)
        return made[precision]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_two_make_the_steps_of_one_and_measure_as_it_does(tmp_path, data, alone, strategy, precision):
    way = "fit" if (strategy, precision) == ("mirrored", "float32") else "train"
    tolerance = {"float32": 1e-5, "float64": 1e-9}[precision]
    expected = alone(precision)
    assert expected["retinanet moved"] > 1e-3
    assert expected["mask_rcnn moved"] > 1e-3
    for found in run(tmp_path, strategy, way, precision, data):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


ENDLESS = """
import logging, os, sys, time
tests, annotations, out_dir = sys.argv[1:]
sys.path.insert(0, tests)
import tiny
from kerasdet.data import CocoDataset
from kerasdet.training import SGD, make_strategy, train
logging.basicConfig(format="%(message)s", level=logging.INFO)
fsync = os.fsync
def slow(handle):
    time.sleep(2)
    fsync(handle)
os.fsync = slow
arguments = {"steps": 10**6, "epoch_steps": 10**6, "batch_size": 2, "log_every": 1, "out_dir": out_dir}
with make_strategy("multi_worker").scope():
    train(tiny.detector(), CocoDataset(annotations), optimizer=SGD(1e-4), **arguments)
"""


def after_some_steps(data, out_dir, number):
    """Two workers that trained until the second got a signal: their exit codes and errors."""
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
def test_sigterm_to_one_worker_has_all_end_after_the_same_step_once_it_is_saved(tmp_path, data):
    codes, errors = after_some_steps(data, tmp_path, signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM] * 2, errors[0][-3000:]
    assert all("the state is saved" in text for text in errors)
    steps = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [f"step_{steps:08d}.keras"]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_in_a_sentence_to_the_others(tmp_path, data):
    codes, errors = after_some_steps(data, tmp_path, signal.SIGKILL)
    assert codes == [1, -signal.SIGKILL]
    assert "RuntimeError: Another worker has ended, or cannot be reached any more" in errors[0]
