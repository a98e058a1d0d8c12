"""The whole way as a user goes it, each step a process of its own: data, training, measuring, looking, shipping."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SETTINGS = {
    "OUT_DIR": "run",
    "TRAIN_DIR": "data/train",
    "EVAL_DIR": "data/eval",
    "STEPS": 260,
    "BATCH_SIZE": 4,
    "SHORTEST_EDGE": 64,
    "LONGEST_EDGE": 64,
    "BACKBONE_WIDTH": 16,
    "HEAD_CHANNELS": 32,
    "LR": 0.003,
    "train/shapes_dataset.num_images": 200,
    "eval/shapes_dataset.num_images": 24,
    "WarmupCosine.warmup_steps": 20,
    "Checkpointing.steps_per_epoch": 130,
    "Validation.every": 1,
}


def kerasdet(folder, *arguments):
    """Runs the command and returns what it prints."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.run(
        [sys.executable, "-m", "kerasdet.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def overrides(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished training in run/."""
    folder = tmp_path_factory.mktemp("journey")
    kerasdet(folder, "train", "retinanet_r18_fpn_shapes", *overrides(SETTINGS))
    return folder


def log(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_learns_and_writes_down_what_it_did(folder):
    losses = [line["loss"] for line in log(folder) if "loss" in line]
    measured = [line for line in log(folder) if "AP50" in line]
    assert [line["step"] for line in measured] == [130, 260]
    assert losses[-1] < 0.8 * losses[0]
    assert measured[-1]["AP50"] > 0.02
    assert measured[-1]["val_loss"] > 0
    assert "STEPS = 260" in (folder / "run" / "config.gin").read_text()
    assert [path.name for path in sorted((folder / "run" / "checkpoints").iterdir())] == [
        "step_00000130.keras",
        "step_00000260.keras",
    ]


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_do(folder):
    before = log(folder)
    kerasdet(folder, "train", "retinanet_r18_fpn_shapes", *overrides(SETTINGS))
    assert log(folder) == before


@pytest.mark.slow
def test_eval_gives_the_number_of_the_training(folder):
    printed = kerasdet(folder, "eval", "run", "--json", "metrics.json", "--batch-size", 8)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["summary"]["AP50"] == pytest.approx(log(folder)[-1]["AP50"], abs=2e-3)
    assert set(metrics["per_class"]) == {"disk", "square", "triangle", "star", "arrow"}
    assert "AP50" in printed


@pytest.mark.slow
def test_predict_finds_and_draws(folder):
    pictures = [f"data/eval/images/00000{n}.jpg" for n in (1, 2, 3)]
    printed = kerasdet(folder, "predict", "run", *pictures, "--score", 0.05, "--draw", "drawn")
    assert all(f"{path}: " in printed for path in pictures)
    assert any(name in printed for name in ("disk", "square", "triangle", "star", "arrow"))
    assert len(list((folder / "drawn").iterdir())) == 3
    assert np.asarray(Image.open(folder / "drawn" / "000001.png")).shape[2] == 3


@pytest.mark.slow
def test_export_verifies_with_tensorflow_alone(folder):
    printed = kerasdet(folder, "export", "run", "served", "--verify", "data/eval/images/000001.jpg")
    numbers = re.search(r"TensorFlow alone: (\d+) detections compared, (\d+) found by one side only", printed)
    compared, lonely = numbers.groups()
    assert int(compared) > 0
    assert int(lonely) == 0
    assert (folder / "served" / "assets" / "labels.txt").read_text().split()[0] == "disk"
