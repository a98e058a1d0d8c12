"""Keras callbacks in `train`: which hooks are called when, CSVLogger from Python and gin, MLflow and W&B."""

import csv
import json
import math
import re
from pathlib import Path

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from kerasdet import config
from kerasdet.data import ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.training import SGD, Checkpointing, MLflowLogger, Validation, WandbLogger, train

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
STEPS = 5


class Recorder(keras.callbacks.Callback):
    """Writes down every call, with the names of its numbers."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.calls, self.numbers, self.stop_after = [], [], stop_after

    def on_train_begin(self, logs=None):
        self.calls.append("train begin")

    def on_train_end(self, logs=None):
        self.calls.append("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} begin")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} end")
        self.numbers.append(logs)
        self.model.stop_training |= epoch == self.stop_after

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch {batch}")
        assert float(logs["loss"]) > 0

    def on_test_begin(self, logs=None):
        self.calls.append("test begin")

    def on_test_end(self, logs=None):
        self.calls.append("test end" if "AP" in logs else "test without numbers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes") / "data", num_images=2)


def run(out_dir, data, callbacks=(), steps=STEPS, validate=True, **kwargs):
    return train(
        tiny.detector(),
        data,
        optimizer=SGD(0.01),
        steps=steps,
        batch_size=2,
        out_dir=out_dir,
        checkpointing=Checkpointing(steps_per_epoch=2),
        transforms=[ResizeShortestEdge((64,), 96)],
        validation=Validation(data) if validate else None,
        log_every=1,
        callbacks=callbacks,
        **kwargs,
    )


@pytest.fixture
def eager():
    """Runs steps without a graph: to trace one takes longer than the few that a test runs."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


WHOLE = """
train begin, epoch 0 begin, batch 0, batch 1, test begin, test end, epoch 0 end,
epoch 1 begin, batch 2, batch 3, test begin, test end, epoch 1 end,
epoch 2 begin, batch 4, test begin, test end, epoch 2 end,
train end
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A run of five steps with a recorder and a CSV file, and its weights."""
    out_dir, recorder = tmp_path_factory.mktemp("runs") / "whole", Recorder()
    logger = keras.callbacks.CSVLogger(str(out_dir / "log.csv"), append=True)
    model = run(out_dir, data, [recorder, logger])
    return out_dir, recorder, tiny.weights(model)


def test_hooks_are_called_in_order(whole):
    out_dir, recorder, _ = whole
    assert recorder.calls == WHOLE.replace("\n", " ").strip().split(", ")
    assert recorder.params["out_dir"] == str(out_dir)
    assert (recorder.params["steps"], recorder.params["epochs"], recorder.params["batch_size"]) == (5, 3, 2)


def test_epochs_have_the_numbers_of_the_log(whole):
    out_dir, recorder, _ = whole
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    assert [logs["step"] for logs in recorder.numbers] == [2, 4, 5]
    for logs in recorder.numbers:
        assert all(isinstance(value, float | int) for value in logs.values())
        trained, evaluated = (line for line in lines if line["step"] == logs["step"])
        assert logs["loss"] == pytest.approx(trained["loss"], rel=1e-6)
        assert logs["learning_rate"] == pytest.approx(0.01)
        for name in ("AP", "AP50", "val_loss"):
            assert logs[name] == pytest.approx(evaluated.get(name, math.nan), nan_ok=True)


def test_csv_logger_writes_every_number(whole):
    out_dir, recorder, _ = whole
    rows = list(csv.DictReader((out_dir / "log.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for row, logs in zip(rows, recorder.numbers, strict=True):
        assert float(row["AP50"]) == pytest.approx(logs["AP50"], nan_ok=True)
        assert float(row["val_loss"]) == pytest.approx(logs["val_loss"])
        assert float(row["step"]) == logs["step"]


def test_comparison_is_a_picture(whole):
    with Image.open(whole[0] / "comparison.png") as picture:
        assert min(picture.size) > 100


def test_stopping_and_resuming_do_not_change_the_training(whole, data, tmp_path):
    """The first run is stopped by its callback and has no validation, so the second begins with an evaluation."""
    first, second, third = Recorder(stop_after=0), Recorder(), Recorder()
    run(tmp_path, data, [first], validate=False)
    assert first.calls == ["train begin", "epoch 0 begin", "batch 0", "batch 1", "epoch 0 end", "train end"]
    assert "loss" in first.numbers[0] and "AP" not in first.numbers[0]
    model = run(tmp_path, data, [second])
    assert second.calls == [
        *["train begin", "epoch 0 begin", "test begin", "test end", "epoch 0 end"],
        *["epoch 1 begin", "batch 2", "batch 3", "test begin", "test end", "epoch 1 end"],
        *["epoch 2 begin", "batch 4", "test begin", "test end", "epoch 2 end", "train end"],
    ]
    assert [logs["step"] for logs in second.numbers] == [2, 4, 5]
    assert "AP" in second.numbers[0] and "loss" not in second.numbers[0]
    for ours, theirs in zip(tiny.weights(model), whole[2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    run(tmp_path, data, [third])
    assert third.calls == []  # the run is finished


class BatchStopper(Recorder):
    """Stops after the first step of this process."""

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch {batch}")
        self.model.stop_training = True


def test_callbacks_stop_a_run_within_an_epoch_and_before_its_first_step(data, tmp_path, eager):
    """The third run stops after the evaluation that the others, which have no validation, left out."""
    first, second, third = BatchStopper(), BatchStopper(), Recorder(stop_after=0)
    run(tmp_path, data, [first], validate=False)
    assert first.calls == ["train begin", "epoch 0 begin", "batch 0", "epoch 0 end", "train end"]
    run(tmp_path, data, [second], validate=False)
    assert second.calls == ["train begin", "epoch 0 begin", "batch 1", "epoch 0 end", "train end"]
    run(tmp_path, data, [third])
    assert third.calls == ["train begin", "epoch 0 begin", "test begin", "test end", "epoch 0 end", "train end"]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [keras.callbacks.CSVLogger],
            r"callbacks\[0\] is the class CSVLogger: .* write CSVLogger\(\) \(gin: @CSVLogger",
        ),
        ([Recorder(), "csv"], r"callbacks\[1\] is 'csv': expected a keras.callbacks.Callback object; give a Keras"),
        ([print], r"is <built-in function print>: .*; wrap the function, .*LambdaCallback"),
        (Recorder(), "callbacks is .*: expected a list"),
    ],
)
def test_no_callback_raises(data, tmp_path, callbacks, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", data, callbacks)
    assert not (tmp_path / "run").exists()


def test_gin_configures_callbacks(tmp_path):
    arguments = {"STEPS": 1, "BATCH_SIZE": 1, "OUT_DIR": tmp_path / "run", "CSVLogger.filename": tmp_path / "log.csv"}
    overrides = [f"{name}={value}" for name, value in arguments.items()]
    config.load("retinanet_r18_fpn_shapes", [*overrides, "train.callbacks=[@CSVLogger()]", "EarlyStopping.patience=3"])
    text = gin.config_str()
    assert re.search(r"train\.callbacks = +\\?\s*\[@(kerasdet\.)?CSVLogger\(\)\]", text) and "log.csv" in text
    with pytest.raises(UserError, match="CSVLogger has no argument file: choose one of"):
        config.load("retinanet_r18_fpn_shapes", [*overrides, "CSVLogger.file=x.csv"])


def test_logger_outside_of_a_run_raises():
    class Logger(MLflowLogger):
        def __init__(self):
            keras.callbacks.Callback.__init__(self)

    logger = Logger()
    logger.set_params({"epochs": 1})
    with pytest.raises(UserError, match=r"Logger works in kerasdet.train only"):
        logger.on_train_begin()


@pytest.mark.parametrize(("logger", "package"), [(MLflowLogger, "mlflow"), (WandbLogger, "wandb")])
def test_missing_package_raises(monkeypatch, logger, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed, but {logger.__name__} needs it: run pip"):
        logger()


def test_mlflow_gets_numbers_pictures_configuration_and_model(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    for steps in (2, 4):  # the second goes on with the run of the first
        run(tmp_path / "run", data, [MLflowLogger(store, experiment="shapes")], steps=steps, config="STEPS = 4\n")
    client = mlflow.MlflowClient(store)
    [found] = client.search_runs([client.get_experiment_by_name("shapes").experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["batch_size"] == "2" and found.data.params["model"] == "RetinaNet"
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [2, 4]
    assert {"AP50", "val_loss", "learning_rate", "epoch"} <= set(found.data.metrics)
    names = {each.path for folder in ("", "pictures") for each in client.list_artifacts(found.info.run_id, folder)}
    assert {"config.gin", "best.keras", "metrics.jsonl"} <= names
    assert {"pictures/step_00000002.png", "pictures/step_00000004.png"} <= names
    file = client.download_artifacts(found.info.run_id, "best.keras", tmp_path)
    assert Path(file).read_bytes() == (tmp_path / "run" / "best.keras").read_bytes()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with pytest.raises(UserError, match="MLflowLogger cannot log to file:"):
        run(tmp_path / "other", data, [MLflowLogger((tmp_path / "other_store").as_uri())], steps=2)


def test_wandb_gets_numbers_pictures_and_files_offline(data, tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    logged = []

    class Spy(WandbLogger):
        def on_train_end(self, logs=None):
            logged.append(dict(self._run.summary))
            super().on_train_end(logs)

    run(tmp_path / "run", data, [Spy("shapes", mode="offline")], steps=2, config="STEPS = 2\n")
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb")) and list(folder.glob("files/media/images/*.png"))
    assert {"step", "loss", "val_loss", "learning_rate"} <= set(logged[0])
    assert (tmp_path / "run" / "wandb_run_id").read_text().strip() in folder.name
    assert wandb.run is None
    with pytest.raises(UserError, match=r"WandbLogger\.mode is 'none'"):
        WandbLogger(mode="none")
