"""The whole journey of a user: train, evaluate, predict and export from the command line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasdet import cli

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_workers")]
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


def kerasdet(*arguments):
    """Runs a command in this process: `tests/cli/test_commands.py` starts one as a process of its own."""
    assert cli.main([str(argument) for argument in arguments]) == 0


def overrides(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory):
    """A finished training in run/ of the current folder."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("journey"))
    try:
        kerasdet("train", "retinanet_r18_fpn_shapes", *overrides(SETTINGS))
        yield Path("run")
    finally:
        os.chdir(before)


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_logs_its_progress(run):
    losses = [line["loss"] for line in log(run) if "loss" in line]
    measured = [line for line in log(run) if "AP50" in line]
    assert [line["step"] for line in measured] == [130, 260]
    assert losses[-1] < 0.8 * losses[0]
    assert measured[-1]["AP50"] > 0.04  # two runs gave 0.067 and 0.075
    assert measured[-1]["val_loss"] > 0
    assert "STEPS = 260" in (run / "config.gin").read_text()
    checkpoints = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert checkpoints == ["step_00000130.keras", "step_00000260.keras"]


def test_repeated_command_finds_the_run_finished(run):
    before = log(run)
    kerasdet("train", "retinanet_r18_fpn_shapes", *overrides(SETTINGS))
    assert log(run) == before


def test_eval_gives_the_numbers_of_the_training(capsys, run):
    kerasdet("eval", run, "--json", "metrics.json", "--batch-size", 8)
    metrics = json.loads(Path("metrics.json").read_text())
    assert metrics["summary"]["AP50"] == pytest.approx(log(run)[-1]["AP50"], abs=2e-3)
    assert set(metrics["per_class"]) == {"disk", "square", "triangle", "star", "arrow"}
    assert "AP50" in capsys.readouterr().out


def test_predict_finds_and_draws_objects(capsys, run):
    pictures = [f"data/eval/images/00000{n}.jpg" for n in (1, 2, 3)]
    kerasdet("predict", run, *pictures, "--score-threshold", 0.05, "--draw", "drawn")
    printed = capsys.readouterr().out
    assert all(f"{path}: " in printed for path in pictures)
    assert any(name in printed for name in ("disk", "square", "triangle", "star", "arrow"))
    assert len(list(Path("drawn").iterdir())) == 3
    assert np.asarray(Image.open("drawn/000001.png")).shape[2] == 3


def test_export_verifies_and_evaluates_like_the_model(capsys, run):
    kerasdet("export", run, "served", "--verify-images", "data/eval/images/000001.jpg")
    assert "served: " in capsys.readouterr().out
    assert Path("served/assets/labels.txt").read_text().split()[0] == "disk"
    kerasdet("eval", "served", "--json", "export.json")
    measured = json.loads(Path("export.json").read_text())["summary"]["AP50"]
    assert measured == pytest.approx(log(run)[-1]["AP50"], abs=2e-3)
