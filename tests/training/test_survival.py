"""What a run survives: being killed, asked to end, a full disk, a folder that cannot be written."""

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
KILLS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes") / "data", num_images=9)


def start(data, out_dir, save_every=5):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, str(RUN), str(data.annotations), str(out_dir), str(save_every)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def last_step(out_dir):
    saved = checkpoints(out_dir / "checkpoints")
    return int(saved[-1].stem.removeprefix("step_")) if saved else 0


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path, data):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(data, whole))
    rng = np.random.default_rng(0)
    steps_at_kill = []
    for _ in range(KILLS):
        goal = int(rng.integers(0, 3))  # checkpoints that it may still write; a third of the kills hits the start
        process, before = start(data, killed), last_step(killed)
        while process.poll() is None and goal and last_step(killed) < before + 5 * goal:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3 if goal else 6.0))
        process.kill()
        process.communicate()
        steps_at_kill.append(last_step(killed))
    assert len(set(steps_at_kill)) > 1
    finish(start(data, killed))
    expected, found = (np.load(folder / "final.npz") for folder in (whole, killed))
    assert expected.files == found.files
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])
    steps, again = (
        [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    )
    assert set(steps) <= set(again)
    assert len(again) == len(set(again))  # what was made again is not told twice


DISK_FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, sys.argv[1])
import survival_run
from kerasdet.training import checkpoints, run
save = checkpoints.save
def save_on_a_small_disk(model, folder, keep, *, step, **kwargs):
    if step > 5:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    save(model, folder, keep, step=step, **kwargs)
checkpoints.save = save_on_a_small_disk
try:
    survival_run.main(*sys.argv[2:])
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole_is_an_error_and_leaves_the_last(tmp_path, data):
    """Of a limit on the size of files, which is met where a disk is full: within a write."""
    command = [sys.executable, "-c", DISK_FULL, str(RUN.parent), str(data.annotations), str(tmp_path), "5"]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})
    message = process.stdout.splitlines()[-1]
    assert "step_00000010.keras cannot be written: File too large. What was saved before is untouched." in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.keras"]


@pytest.mark.slow
def test_sigterm_saves_first(tmp_path, data):
    process, log = start(data, tmp_path, save_every=10**6), tmp_path / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert last_step(tmp_path) >= json.loads(log.read_text().splitlines()[-1])["step"]
    assert (tmp_path / "checkpoints").is_dir()
