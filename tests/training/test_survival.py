"""Runs that are killed at any moment lose no bit."""

import json
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

RUN = Path(__file__).with_name("survival_run.py")
SAVE_EVERY = 5
KILLS = (0, 2)  # checkpoints that the process may write before it is killed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes") / "data", num_images=9)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(data, out_dir))
    return out_dir


def start(data, out_dir, way="whole"):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, str(RUN), str(data.annotations), str(out_dir), str(SAVE_EVERY), way]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def last_step(out_dir):
    saved = checkpoints(out_dir / "checkpoints")
    return int(saved[-1].stem.removeprefix("step_")) if saved else 0


def logged_steps(out_dir):
    return [json.loads(line)["step"] for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(out_dir, uninterrupted):
    """Every bit of the weights is equal, every step is logged exactly once, and no partial file is left."""
    expected, found = (np.load(folder / "final.npz") for folder in (uninterrupted, out_dir))
    assert expected.files == found.files
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])
    assert logged_steps(out_dir) == logged_steps(uninterrupted)
    assert not list(out_dir.rglob(".partial_*"))


@pytest.mark.slow
def test_killed_processes_resume_bit_for_bit(tmp_path, data, uninterrupted):
    rng = np.random.default_rng(0)
    for new_checkpoints in KILLS:
        process, goal = start(data, tmp_path), last_step(tmp_path) + SAVE_EVERY * new_checkpoints
        log = tmp_path / "metrics.jsonl"
        before = log.stat().st_mtime_ns if log.is_file() else 0
        while process.poll() is None and (
            last_step(tmp_path) < goal or not log.is_file() or log.stat().st_mtime_ns == before
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors[-3000:]  # it was alive
    assert last_step(tmp_path) > 0
    finish(start(data, tmp_path))
    assert_equal_runs(tmp_path, uninterrupted)


@pytest.mark.slow
def test_faults_at_chosen_points_of_saving_resume_bit_for_bit(tmp_path, data, uninterrupted):
    finish(start(data, tmp_path, way="faults"))
    assert_equal_runs(tmp_path, uninterrupted)
