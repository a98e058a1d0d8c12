import contextlib
import functools
import json
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from kerasdet import FPN, ResNet, evaluate, load
from kerasdet.data import CocoDataset, Dataset, RandomFlip, ResizeShortestEdge
from kerasdet.data.transforms import NumpyTransform
from kerasdet.errors import UserError
from kerasdet.evaluation import validation_losses
from kerasdet.files import locked
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.keras_compat import average_pairs
from kerasdet.layers import RetinaNetHead
from kerasdet.losses import FocalLoss
from kerasdet.models import KeypointBranch, Preprocessing, RetinaNet
from kerasdet.models.common import LossNormalizer
from kerasdet.training import SGD, Checkpointing, StepOptions, Validation, WarmupMultiStep, resume, train
from kerasdet.training.metrics_log import RunLog, ThroughputLogger
from kerasdet.training.resume import checkpoints
from kerasdet.training.validation import metric_names

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
STEPS = 6


def sgd():
    return SGD(WarmupMultiStep(0.02, milestones=(4,), warmup_steps=2), weight_decay=1e-3)


def detector(seed=0, **kwargs):
    """Makes a RetinaNet of two levels on few plain convolutions, whose training step is traced fast."""
    keras.utils.set_random_seed(seed)
    parts = {
        "backbone": tiny.PlainBackbone(norm="bn"),
        "neck": FPN(("c4", "c5"), channels=16),
        "anchors": AnchorGenerator(((32.0,), (64.0,)), levels=("p4", "p5")),
    }
    return tiny.detector(seed=seed, **{**parts, **kwargs})


def run(out_dir, data, model=None, **kwargs):
    arguments = {
        "optimizer": sgd(),
        "steps": STEPS,
        "batch_size": 2,
        "checkpointing": Checkpointing(steps_per_epoch=2),
        "log_every": 1,
        "transforms": [ResizeShortestEdge((48, 64), 96), RandomFlip()],
        **kwargs,
    }
    return train(model or detector(), data, out_dir=out_dir, **arguments)


def lines(out_dir, evaluations=False):
    """The lines of the log that training wrote, or those of evaluations."""
    every = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if ("learning_rate" not in line) == evaluations]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes") / "data", num_images=5)


@pytest.fixture
def eager():
    """Runs steps without a graph: to trace one takes longer than the few that a test runs."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    return out_dir, run(out_dir, data)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data):
    """A run of three steps and an interrupted save, resumed by a model with other random weights."""
    out_dir = tmp_path_factory.mktemp("runs") / "parts"
    run(out_dir, data, steps=3, validation=Validation(data, every=2), config="STEPS = 3\n")
    (out_dir / "checkpoints" / ".partial_step_00000004.keras").write_bytes(b"PK\x03\x04 half a file")
    with (out_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0, "learning_rate": 1.0}\n{"step": 4, "los')
    model = run(out_dir, data, model=detector(seed=7), checkpointing=Checkpointing(2, max_to_keep=2))
    return out_dir, model


def test_resumed_equals_uninterrupted(uninterrupted, resumed):
    whole, parts = tiny.weights(uninterrupted[1]), tiny.weights(resumed[1])
    start = tiny.weights(detector())
    assert max(np.abs(a - b).max() for a, b in zip(whole, start, strict=True)) > 1e-2
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_run_stops_at_a_step_inside_an_epoch(resumed):
    out_dir, model = resumed
    assert [line["step"] for line in lines(out_dir)] == [1, 2, 3, 4, 5, 6]  # step 4 was not saved: its line is replaced
    assert [line["step"] for line in lines(out_dir, evaluations=True)] == [3]
    assert int(model.optimizer.iterations) == STEPS


def test_only_the_last_checkpoints_stay(uninterrupted, resumed):
    assert [path.name for path in checkpoints(resumed[0] / "checkpoints")] == [
        "step_00000004.keras",
        "step_00000006.keras",
    ]
    assert not list((resumed[0] / "checkpoints").glob(".partial*"))
    assert [path.name for path in checkpoints(uninterrupted[0] / "checkpoints")] == [
        f"step_{step:08d}.keras" for step in (2, 4, 6)
    ]


def test_the_log_has_losses_rate_and_speed(resumed):
    *_, before, last = lines(resumed[0])
    for line in lines(resumed[0]):
        assert line["loss"] == pytest.approx(line["class_loss"] + line["box_loss"], rel=1e-5)
        assert line["gradient_norm"] > 0
        assert line["positives"] > 0
        assert line["images_per_second"] > 0
        assert line["data_wait"] >= 0
    assert before["learning_rate"] == pytest.approx(0.002)  # of the next step
    assert last["learning_rate"] == pytest.approx(0.002)


def test_validation_logs_losses_and_ap_and_keeps_the_best_model(resumed):
    out_dir, _ = resumed
    [line] = lines(out_dir, evaluations=True)
    assert 0 <= line["AP50"] <= 1
    assert line["val_loss"] == pytest.approx(line["val_class_loss"] + line["val_box_loss"], rel=1e-5)
    best, third = load(out_dir / "best.keras"), keras.models.load_model(out_dir / "best.keras")
    assert int(third.optimizer.iterations) == 3
    assert best.class_names == tiny.CLASS_NAMES


def test_tensorboard_has_curves_and_pictures(resumed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(path)).Reload() for path in (resumed[0] / "tensorboard").iterdir()]
    tags = {tag for each in events for tag in each.Tags()["tensors"]}
    assert {"loss", "learning_rate", "gradient_norm", "positives", "images_per_second", "data_wait"} <= tags
    assert {"AP", "val_loss", "ground truth and detections"} <= tags


def test_configuration_is_saved(resumed):
    assert (resumed[0] / "config.gin").read_text() == "STEPS = 3\n"


def test_finished_run_returns_at_once(resumed, data, caplog):
    out_dir, finished = resumed
    before = lines(out_dir)
    caplog.set_level("INFO", "kerasdet")
    model = run(out_dir, data, model=detector(seed=9))
    assert lines(out_dir) == before
    assert len(before) == STEPS
    for a, b in zip(tiny.weights(model), tiny.weights(finished), strict=True):
        np.testing.assert_array_equal(a, b)
    assert f"{out_dir} is finished: it has completed 6 steps, and STEPS is 6. To continue it, raise" in caplog.text


def test_finished_run_with_other_settings_raises(resumed, data, tmp_path, caplog):
    out_dir, _ = resumed
    before = (out_dir / "config.gin").read_text()
    others = tiny.shapes_data(tmp_path / "others", num_images=5, seed=1)  # with the same image ids and classes
    message = r"is finished: .* have no effect on it \(data was 5 images .* choose another OUT_DIR .*, or raise STEPS"
    with pytest.raises(UserError, match=message):
        run(out_dir, others, config="STEPS = 6")
    with pytest.raises(UserError, match=r"finished: .* \(learning_rate was WarmupMultiStep and is now 0\.5\)"):
        run(out_dir, data, optimizer=SGD(0.5, weight_decay=1e-3))
    assert (out_dir / "config.gin").read_text() == before
    assert "continues" not in caplog.text


def test_model_takes_class_names_of_the_data(resumed):
    assert resumed[1].class_names == tiny.CLASS_NAMES
    assert tuple(load(resumed[0]).class_names) == tiny.CLASS_NAMES


def test_resuming_with_another_model_raises(uninterrupted, data):
    out_dir = uninterrupted[0]
    with pytest.raises(ValueError, match=r"step_00000006\.keras does not fit this model .*: use another OUT_DIR"):
        run(out_dir, data, model=detector(head=RetinaNetHead(num_convs=1, norm="bn")), config="another")
    with pytest.raises(ValueError, match=r"step_00000006\.keras was saved with other optimizer settings"):
        run(out_dir, data, optimizer=keras.optimizers.AdamW(1e-3), config="another")
    other = CocoDataset(data.annotations)
    other.class_names = tuple(reversed(tiny.CLASS_NAMES))
    with pytest.raises(
        UserError, match=r"was trained on the classes disk, .* in this order, and the data now have arr"
    ):
        run(out_dir, other, config="another")
    assert not (out_dir / "config.gin").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_raises(tmp_path, uninterrupted, data, damage):
    content = checkpoints(uninterrupted[0] / "checkpoints")[-1].read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes(255 - byte for byte in content[middle : middle + 99]) + content[middle + 99 :]
    damaged = {"cut": content[:middle], "flipped": flipped, "empty": b""}
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_00000004.keras").write_bytes(content)
    (folder / "step_00000006.keras").write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"step_00000006\.keras is damaged .*: delete this file to resume from the"):
        run(tmp_path, data)


def test_nan_loss_raises_before_it_reaches_the_weights(tmp_path, data):
    class_loss = FocalLoss()
    class_loss.weight = float("nan")
    model = detector(class_loss=class_loss)
    before = tiny.weights(model)
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, data, model=model)
    message = str(error.value)
    assert "\n" not in message
    assert "iteration 0" in message
    assert "class_loss nan" in message
    assert float(message.split("box_loss ")[1].split()[0]) > 0
    shown = {int(word) for word in message.split("image ids ")[1].split()}
    assert len(shown) == 2
    assert shown <= {record.image_id for record in data.records}
    trained = {id(v) for v in model.trainable_variables}
    for variable, old in zip(model.variables, before, strict=True):
        assert np.isfinite(variable).all()
        if id(variable) in trained:
            np.testing.assert_array_equal(variable, old)
    assert not checkpoints(tmp_path / "checkpoints")


def test_other_number_of_classes_raises_before_anything_is_written(tmp_path, data):
    out_dir = tmp_path / "run"
    with pytest.raises(ValueError, match=r"The model has 3 classes, but .* has 5 \(disk, .*set NUM_CLASSES .* to 5"):
        run(out_dir, data, model=detector(num_classes=3))

    contents = json.loads(data.annotations.read_text())
    contents["categories"][0]["name"] = "moon"
    contents["categories"][1]["name"] = "disk"  # not in the place that it has in training
    other = Dataset(contents, data.annotations.parent / "images", source="val.json")
    with pytest.raises(UserError, match=r"val\.json has objects of moon; expected the classes of the model, disk"):
        run(out_dir, data, validation=Validation(other))
    assert not out_dir.exists()


@pytest.fixture(scope="module")
def data_with_parts(data):
    return CocoDataset(data.annotations, masks=True, keypoints=True)


def test_metric_names_skip_branches_without_a_metric(data):
    branch = KeypointBranch(4, num_convs=1, channels=8)
    branch.metric = None
    names = metric_names(evaluate, tiny.rcnn(branches=[branch]), data)
    assert "AP" in names and not any("/" in name for name in names)


def test_data_without_masks_or_keypoints_raises(tmp_path, data, data_with_parts):
    out_dir = tmp_path / "run"
    with pytest.raises(UserError, match=r"MaskBranch learns masks, .* without masks: set CocoDataset.masks=True"):
        run(out_dir, data, model=tiny.rcnn())
    with pytest.raises(ValueError, match=r"learns keypoints, .* set CocoDataset.keypoints=True"):
        run(out_dir, data, model=tiny.rcnn(branches=[KeypointBranch(4)]))
    with pytest.raises(ValueError, match=r"has 17 keypoints, but .* has 4: set KeypointBranch\.num_keypoints to 4"):
        run(out_dir, data_with_parts, model=tiny.rcnn(branches=[KeypointBranch(17)]))
    assert not out_dir.exists()


@pytest.mark.usefixtures("eager")
def test_model_takes_keypoint_names_of_the_data(tmp_path, data_with_parts):
    run(tmp_path, data_with_parts, model=tiny.rcnn(), steps=1)
    _, branch = load(tmp_path).branches
    assert branch.keypoint_names == ("tip", "left_wing", "right_wing", "tail")
    assert branch.skeleton == ((0, 1), (0, 2), (0, 3))


def test_counts_that_are_not_positive_whole_numbers_raise(tmp_path, data):
    model = detector()
    owners = {Checkpointing: ("steps_per_epoch", "max_to_keep"), StepOptions: ("max_boxes", "micro_batches")}
    for value in (-1, 1.5, "10", True):
        for name in ("steps", "batch_size", "log_every"):
            with pytest.raises(UserError, match=f"train.{name} is {value!r}: expected a positive integer"):
                run(tmp_path, data, model=model, **{name: value})
        for name in ("every", "patience"):
            with pytest.raises(UserError, match=f"Validation.{name} is {value!r}: expected a positive integer"):
                Validation(data, **{name: value})
        for owner, names in owners.items():
            for name in names:
                with pytest.raises(
                    UserError, match=f"{owner.__name__}.{name} is {value!r}: expected a positive integer"
                ):
                    owner(**{name: value})


@keras.saving.register_keras_serializable(package="kerasdet_tests")
class Traced(RetinaNet):
    """Records the shape of the image in each trace of the training step."""

    traces = []  # noqa: RUF012

    def train_step(self, data):
        self.traces.append(data["image"].shape)
        return super().train_step(data)


def test_new_image_sizes_do_not_retrace_in_bfloat16_with_adamw(tmp_path, data):
    Traced.traces.clear()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = detector(model_class=Traced)
        sizes = [ResizeShortestEdge((32, 64, 96, 128), 200)]
        run(
            tmp_path,
            data,
            model=model,
            optimizer=keras.optimizers.AdamW(1e-3, global_clipnorm=1.0),
            batch_size=1,
            transforms=sizes,
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert {shape[1:3] for shape in Traced.traces} == {(None, None)}
    assert len(Traced.traces) <= 2
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
    image = tiny.images()[1]
    loaded = load(tmp_path)
    assert loaded.detect(image).boxes.dtype == np.float32
    for a, b in zip(tiny.weights(loaded), tiny.weights(model), strict=True):
        np.testing.assert_array_equal(a, b)


class Summary:
    """Metrics of a user's own evaluation."""

    def __init__(self, value):
        self.summary = {"score": value}


@pytest.mark.usefixtures("eager")
def test_patience_stops_training_and_keeps_the_best_model(tmp_path, data):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    validation = Validation(data, lambda model, data: Summary(next(scores)), patience=2)
    arguments = {"validation": validation, "checkpointing": Checkpointing(steps_per_epoch=1)}
    run(tmp_path, data, **arguments)
    assert [line["score"] for line in lines(tmp_path, evaluations=True)] == [0.1, 0.5, 0.4, 0.3]
    assert int(keras.models.load_model(tmp_path / "best.keras").optimizer.iterations) == 2
    run(tmp_path, data, **arguments)  # the same command again has nothing to do
    with pytest.raises(UserError, match=r"is finished: score has not improved in 2 .* or raise Validation\.patience"):
        run(tmp_path, data, **arguments, seed=5)
    assert lines(tmp_path)[-1]["step"] == 4


def test_new_run_does_not_replace_the_best_model_of_another(tmp_path, data):
    (tmp_path / "best.keras").write_text("precious")
    with pytest.raises(UserError, match=r"holds best\.keras of an earlier run, but no checkpoint to resume it: a new"):
        run(tmp_path, data)
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]


def test_new_run_replaces_no_configuration_of_the_user_and_says_that_it_replaces_metrics(tmp_path, data, caplog):
    (tmp_path / "config.gin").write_text("include 'mine.gin'")
    with pytest.raises(
        UserError, match=r"config\.gin is not the file of a run, .* rename the file, or use another OUT"
    ):
        run(tmp_path, data, config="STEPS = 1")
    assert [path.name for path in tmp_path.iterdir()] == ["config.gin"]
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    RunLog(tmp_path, 0)
    assert "held 1 lines of a run that has no checkpoint, up to step 4: the new run begins at step 0" in caplog.text


@pytest.mark.usefixtures("eager")
def test_evaluations_before_another_monitor_do_not_count_for_the_best_model(tmp_path, data, caplog):
    values = iter([{"a": 0.5, "b": 0.9}, {"a": 0.4, "b": 0.3}, {"a": 0.6, "b": 0.2}])

    def best_step(steps, monitor):
        validation = Validation(data, lambda model, data: SimpleNamespace(summary=next(values)), monitor=monitor)
        run(tmp_path, data, steps=steps, validation=validation, checkpointing=Checkpointing(steps_per_epoch=1))
        return int(keras.models.load_model(tmp_path / "best.keras").optimizer.iterations)

    assert best_step(1, "a") == 1
    assert best_step(2, "b") == 2
    assert "Validation.monitor was a and is now b" in caplog.text
    assert "b of the evaluations up to step 1 does not compare with that of later ones" in caplog.text
    assert best_step(3, "b") == 2


@pytest.mark.usefixtures("eager")
def test_unknown_monitor_raises_after_the_first_evaluation(tmp_path, data):
    validation = Validation(data, lambda model, data: Summary(0.1), monitor="mAP")
    with pytest.raises(
        UserError, match=r"monitor is 'mAP', which is not a metric of the evaluation: choose one of score, val_loss"
    ):
        run(tmp_path, data, validation=validation, steps=1)


def test_misspelt_monitor_raises_before_the_first_step(tmp_path, data, data_with_parts):
    out_dir = tmp_path / "run"
    for evaluator in (evaluate, functools.wraps(evaluate)(lambda *arguments: evaluate(*arguments))):  # as gin has it
        with pytest.raises(UserError, match=r"monitor is 'AP5O', which .*: choose one of AP, AP50, .*, val_box_loss"):
            run(out_dir, data, validation=Validation(data, evaluator, monitor="AP5O"))
    with pytest.raises(
        UserError, match=r"monitor is 'segm/AP', which .*: choose one of AP, .*, keypoints/AP, .*, val_loss"
    ):
        model = tiny.rcnn(branches=[KeypointBranch(4)])
        run(out_dir, data_with_parts, model=model, validation=Validation(data_with_parts, monitor="segm/AP"))
    with pytest.raises(UserError, match=r"Validation\.data is None: expected a dataset"):
        Validation(None, monitor="AP")
    assert not out_dir.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_metric_names_equal_those_of_an_evaluation(data_with_parts):
    for model in (detector(), tiny.rcnn()):
        found = {**evaluate(model, data_with_parts).summary, **validation_losses(model, data_with_parts)}
        assert list(found) == metric_names(evaluate, model, data_with_parts)


@pytest.mark.usefixtures("eager")
def test_nan_metric_warns_and_is_not_an_improvement(tmp_path, data, caplog):
    content = json.loads(data.annotations.read_text())
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**content, "annotations": []}))
    eval_data = CocoDataset(empty, data.annotations.parent / "images")
    arguments = {
        "validation": Validation(eval_data, patience=1),
        "checkpointing": Checkpointing(steps_per_epoch=1),
        "steps": 4,
    }
    run(tmp_path, data, **arguments)
    message = "AP is not a number, because the validation data have no objects: best.keras is not replaced."
    assert message in caplog.messages
    assert [line["step"] for line in lines(tmp_path, evaluations=True)] == [1, 2]
    assert not (tmp_path / "best.keras").exists()
    run(tmp_path, data, **arguments)  # the same command again has nothing to do
    assert lines(tmp_path)[-1]["step"] == 2


def test_averaged_weights_are_evaluated_and_loaded(tmp_path, data):
    measured = []

    def evaluate(model, data):
        measured.append(tiny.weights(model))
        return Summary(1.0)

    optimizer = keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5)
    arguments = {"validation": Validation(data, evaluate), "checkpointing": Checkpointing(steps_per_epoch=3)}
    model = run(tmp_path, data, optimizer=optimizer, steps=3, **arguments)
    raw = detector(seed=5)
    raw.load_weights(checkpoints(tmp_path / "checkpoints")[-1])
    for trained, average in average_pairs(optimizer):
        np.testing.assert_array_equal(trained, average)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(tiny.weights(raw), tiny.weights(model), strict=True))
    for other in (measured[0], tiny.weights(load(tmp_path)), tiny.weights(load(tmp_path / "best.keras"))):
        for a, b in zip(other, tiny.weights(model), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [keras.optimizers.AdamW, keras.optimizers.Lamb])
def test_micro_batches_equal_the_whole_batch(tmp_path, data, optimizer):
    """Holds for norms with stored statistics and losses normalised by image."""
    models = []
    for parts in (1, 2):
        keras.utils.set_random_seed(0)
        model = detector(backbone=tiny.PlainBackbone(norm="bn_inference"), normalizer=LossNormalizer("image"))
        start = tiny.weights(model)
        step_options = StepOptions(pad_to=(96, 96), micro_batches=parts)
        arguments = {"batch_size": 4, "steps": 2, "step_options": step_options}
        made = optimizer(1e-3, global_clipnorm=1.0, epsilon=1e-3)
        models.append(run(tmp_path / str(parts), data, model=model, optimizer=made, **arguments))
    whole, parts = map(tiny.weights, models)
    assert max(np.abs(a - b).max() for a, b in zip(whole, start, strict=True)) > 1e-4
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_impossible_arguments_raise_before_anything_is_written(tmp_path, data):
    with pytest.raises(ValueError, match=r"batch_size=\) is 2, which cannot be divided evenly into 3 micro-batches"):
        run(tmp_path, data, step_options=StepOptions(micro_batches=3))
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2, .* set StepOptions\.micro_batches"):
        run(tmp_path, data, optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2))
    with pytest.raises(UserError, match=r"jit_compile needs batches of a constant shape: set StepOptions\.pad_to and"):
        StepOptions(pad_to=(96, 96), jit_compile=True)
    with pytest.raises(
        ValueError, match=r"freeze names 'bacbone', but RetinaNet has no such part: choose one of .*backbone"
    ):
        run(tmp_path, data, freeze=["bacbone"])
    with pytest.raises(ValueError, match=r"freeze has 'backbone/c9_\*', which matches no layer of backbone"):
        run(tmp_path, data, freeze=["backbone/c9_*"])
    for freeze, expected in (("backbone", "expected a list"), ([3], "give a list of names, such as")):
        with pytest.raises(ValueError, match=re.escape(f"freeze is {freeze!r}: {expected}")):
            run(tmp_path, data, freeze=freeze)
    with pytest.raises(ValueError, match=r"freeze=\[.*\] leaves no layer of RetinaNet to train"):
        run(tmp_path, data, freeze=["backbone", "neck", "head"])
    with pytest.raises(ValueError, match=r"global_clipnorm is -1\.0: expected a number above 0, or None for no clip"):
        run(tmp_path, data, optimizer=SGD(1e-3, global_clipnorm=-1.0))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"OUT_DIR \(Python: out_dir=\): .*file/run cannot be written: Not a directory"):
        run(tmp_path / "file" / "run", data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_the_configuration_intact(tmp_path, data, resumed):
    out_dir = shutil.copytree(resumed[0], tmp_path / "run")
    with pytest.raises(OSError, match=r"/config\.gin cannot be written: File too large"), tiny.disk(4096):
        run(out_dir, data, steps=STEPS + 1, config="STEPS = 7\n" * 900)
    assert (out_dir / "config.gin").read_text() == "STEPS = 3\n"
    assert not list(out_dir.glob(".partial*"))


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_file_in_place_of_a_folder_raises(tmp_path, data, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OSError, match=rf"OUT_DIR \(Python: out_dir=\): .*/{name} cannot be written: it is a file"):
        run(tmp_path, data, config="STEPS = 3\n")
    assert not (tmp_path / "config.gin").exists()
    assert (tmp_path / name).read_text() == "mine"


def test_folder_in_place_of_the_log_raises(tmp_path, data):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"/metrics\.jsonl cannot be written: Is a directory"):
        run(tmp_path, data)
    assert not list(tmp_path.glob(".partial*"))


def test_second_process_in_the_same_folder_raises(resumed, data):
    out_dir, _ = resumed
    files = {path.name: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    message = "Another process is training in .*: wait until it ends, or choose another OUT_DIR"
    with locked(out_dir), pytest.raises(ValueError, match=message):
        run(out_dir, data, config="another")
    assert {path.name: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()} == files


@pytest.mark.usefixtures("eager")
def test_resuming_with_other_settings_warns(tmp_path, data, caplog):
    run(tmp_path, data, steps=1)
    run(tmp_path, data, steps=1)
    assert not [message for message in caplog.messages if "other settings" in message]
    other = CocoDataset(data.annotations)
    other.records = other.records[1:]

    def go_on():
        model = detector(preprocessing=Preprocessing(shortest=64, longest=128), dtype="mixed_bfloat16")
        model.pretrained_path = "/runs/other"
        transforms = [ResizeShortestEdge((48,), 96), RandomFlip(), NumpyTransform(lambda image, seed: image, True)]
        run(tmp_path, other, model=model, steps=2, batch_size=1, seed=5, transforms=transforms)

    go_on()
    [message] = [message for message in caplog.messages if "continues with other settings: " in message]
    for words in (
        "data was 5 images of 5 classes (",
        "and is now 4 images",
        "batch_size was 2 and is now 1",
        "longest was 96 and is now 128",
        "precision was float32 and is now mixed_bfloat16",
        "transforms was ['ResizeShortestEdge', 'RandomFlip'] and is now [",
        "ResizeShortestEdge.shortest was (48, 64) and is now (48,)",
    ):
        assert words in message
    assert "began with random weights and resumes from its own checkpoint: the weights of /runs/other (" in caplog.text
    go_on()  # the run is finished, and a function of the same name is no other setting
    with pytest.raises(ValueError, match=r"other trainable weights .*freeze was \[\] and is now \['neck'\]"):
        run(tmp_path, data, steps=1, freeze=["neck"])


@pytest.mark.usefixtures("eager")
def test_frozen_layers_do_not_change_and_are_left_out_of_the_averages(tmp_path, data, recwarn):
    model = detector()
    before = {v.path: v.numpy() for v in model.variables}
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
    freeze = ["backbone/conv0", "backbone/conv[12]", "neck"]
    run(tmp_path, data, model=model, optimizer=optimizer, freeze=freeze, steps=2)
    names = ("conv0", "conv1", "conv2", "fpn")
    frozen = [v for v in model.variables if v.path.startswith(names)]
    assert len(frozen) > 10
    for variable in frozen:
        np.testing.assert_array_equal(variable, before[variable.path])
    assert any(np.abs(v.numpy() - before[v.path]).max() > 1e-3 for v in model.trainable_variables)
    for a, b in zip(tiny.weights(load(tmp_path)), tiny.weights(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message)]  # of Keras


def test_float16_scales_the_loss_and_skips_overflowing_steps(tmp_path, data):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = run(tmp_path, data, optimizer=keras.optimizers.SGD(1e-3), steps=4)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert float(model.optimizer.dynamic_scale) > 1
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
    assert all(np.isfinite(v).all() and v.dtype == "float32" for v in model.trainable_variables)
    assert load(tmp_path).detect(tiny.images()[0]).boxes.dtype == np.float32


@pytest.mark.slow
def test_xla_trains_like_tensorflow(tmp_path, data):
    models = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        backbone = tiny.PlainBackbone(norm="bn_inference")
        arguments = {"steps": 2, "step_options": StepOptions(pad_to=(96, 96), max_boxes=8, jit_compile=jit)}
        models.append(run(tmp_path / str(jit), data, model=detector(backbone=backbone), **arguments))
    for a, b in zip(*map(tiny.weights, models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_memory_stays_flat_over_300_steps_of_many_image_sizes(tmp_path, data):
    resident = []

    def evaluate(model, data):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize() / 2**20)
        return Summary(len(resident))

    sizes = ResizeShortestEdge(tuple(range(32, 224, 8)), 320)
    run(
        tmp_path,
        data,
        steps=300,
        checkpointing=Checkpointing(steps_per_epoch=25, max_to_keep=1),
        transforms=[sizes, RandomFlip()],
        validation=Validation(data, evaluate),
    )
    assert len(resident) == 12
    assert max(resident[4:]) - max(resident[:4]) < 40, resident  # MiB


def frozen_detector(**kwargs):
    return detector(backbone=tiny.backbone(**kwargs))


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "gn"])
def test_frozen_random_layers_raise(tmp_path, data, norm):
    """Each norm is recognised; the width makes 32 groups possible."""
    model = frozen_detector(norm=norm, freeze_at=2, width=32)
    with pytest.raises(UserError, match=r"RetinaNet\.backbone have random weights .* Load pretrained .*freeze="):
        run(tmp_path / "run", data, model=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("eager")
def test_freeze_by_name_allows_random_layers(tmp_path, data):
    model = frozen_detector(norm="bn", freeze_at=1)
    run(tmp_path, data, model=model, steps=1, freeze=["backbone/stem"])
    assert not model.backbone.stem.trainable_weights
    run(tmp_path, data, model=frozen_detector(norm="bn", freeze_at=1), steps=1, freeze=["backbone/stem"])


@pytest.mark.usefixtures("eager")
def test_frozen_pretrained_layers_train(tmp_path, data):
    model = frozen_detector(norm="frozen_bn", freeze_at=2)
    for variable in model.backbone.variables:
        if variable.name == "moving_mean":
            variable.assign_add(tf.ones_like(variable))
    run(tmp_path, data, model=model, steps=1)


@pytest.mark.usefixtures("eager")
def test_default_backbone_trains(tmp_path, data):
    model = detector(backbone=ResNet(18, stages=(1, 1, 1, 1), width=8))
    run(tmp_path, data, model=model, steps=1)
    assert model.backbone.stem.trainable_weights


@pytest.fixture
def sigterm_handler():
    """The handler of SIGTERM before the test, which is put back after it."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_then_exits(tmp_path, data, sigterm_handler, monkeypatch):
    log_step = ThroughputLogger.__call__

    def log_step_and_signal(logger, step, logs):
        log_step(logger, step, logs)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ThroughputLogger, "__call__", log_step_and_signal)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, data, checkpointing=Checkpointing(steps_per_epoch=100))
    assert error.value.code == 128 + signal.SIGTERM
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000003.keras"]
    assert signal.getsignal(signal.SIGTERM) is sigterm_handler


@pytest.mark.usefixtures("eager")
def test_sigterm_during_an_evaluation_exits_at_once(tmp_path, data, sigterm_handler):
    def evaluate(model, data):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("The evaluation went on.")

    with pytest.raises(SystemExit):
        run(tmp_path, data, steps=1, validation=Validation(data, evaluate))
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000001.keras"]


@pytest.mark.usefixtures("eager")
def test_full_disk_while_saving_leaves_the_last_checkpoint(tmp_path, data, monkeypatch):
    save = resume.save

    def save_on_a_small_disk(*arguments, step, **kwargs):
        with tiny.disk(100_000) if step > 2 else contextlib.nullcontext():
            save(*arguments, step=step, **kwargs)

    monkeypatch.setattr(resume, "save", save_on_a_small_disk)
    message = r"step_00000004\.keras cannot be written: File too large\. Files that were saved earlier are intact"
    with pytest.raises(OSError, match=message):
        run(tmp_path, data)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002.keras"]
