import json

import keras
import numpy as np
import pytest
import tiny

from kerasdet import evaluate, load
from kerasdet.data import CocoDataset, RandomFlip, ResizeShortestEdge
from kerasdet.models import KeypointBranch, RetinaNet
from kerasdet.training import SGD, WarmupMultiStep, train
from kerasdet.training.checkpoints import checkpoints

STEPS = 6


def sgd():
    return SGD(WarmupMultiStep(0.02, milestones=(4,), warmup_steps=2), weight_decay=1e-3)


def run(out_dir, data, model=None, **kwargs):
    arguments = {
        "optimizer": sgd(),
        "steps": STEPS,
        "batch_size": 2,
        "epoch_steps": 2,
        "transforms": [ResizeShortestEdge((48, 64), 96), RandomFlip()],
        **kwargs,
    }
    return train(model or tiny.detector(), data, out_dir=out_dir, **arguments)


def lines(out_dir):
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.shapes_data(tmp_path_factory.mktemp("shapes") / "data", num_images=5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    out_dir = tmp_path_factory.mktemp("runs") / "whole"
    return out_dir, run(out_dir, data)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, data):
    """Three steps, an interrupted save, then the rest: of a model with other random weights."""
    out_dir = tmp_path_factory.mktemp("runs") / "parts"
    run(out_dir, data, steps=3, eval_data=data, evaluate=evaluate, eval_every=2, config="STEPS = 3\n")
    (out_dir / "checkpoints" / ".partial_step_00000004.keras").write_bytes(b"PK\x03\x04 half a file")
    model = run(out_dir, data, model=tiny.detector(seed=7), keep_checkpoints=2)
    return out_dir, model


def test_resumed_equals_uninterrupted(uninterrupted, resumed):
    whole, parts = tiny.weights(uninterrupted[1]), tiny.weights(resumed[1])
    start = tiny.weights(tiny.detector())
    assert max(np.abs(a - b).max() for a, b in zip(whole, start, strict=True)) > 1e-2
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_stops_at_steps_that_are_no_multiple_of_an_epoch(resumed):
    out_dir, model = resumed
    assert [line["step"] for line in lines(out_dir)] == [2, 3, 5, 6]
    assert int(model.optimizer.iterations) == STEPS


def test_only_the_last_checkpoints_stay(uninterrupted, resumed):
    assert [path.name for path in checkpoints(resumed[0] / "checkpoints")] == [
        "step_00000005.keras",
        "step_00000006.keras",
    ]
    assert [path.name for path in checkpoints(uninterrupted[0] / "checkpoints")] == [
        f"step_{step:08d}.keras" for step in (2, 4, 6)
    ]


def test_the_log_has_losses_rate_and_evaluation(resumed):
    first, second, *_, last = lines(resumed[0])
    for line in (first, second, last):
        assert line["loss"] == pytest.approx(line["class_loss"] + line["box_loss"], rel=1e-5)
    assert first["learning_rate"] == pytest.approx(0.02)  # of the next step
    assert last["learning_rate"] == pytest.approx(0.002)
    assert "AP50" not in first
    assert 0 <= second["AP50"] <= 1  # the last epoch is always evaluated
    assert list((resumed[0] / "tensorboard" / "train").iterdir())


def test_the_configuration_is_kept(resumed):
    assert (resumed[0] / "config.gin").read_text() == "STEPS = 3\n"


def test_a_finished_run_returns_at_once(resumed, data):
    out_dir, finished = resumed
    before = lines(out_dir)
    model = run(out_dir, data, model=tiny.detector(seed=9))
    assert lines(out_dir) == before
    for a, b in zip(tiny.weights(model), tiny.weights(finished), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_model_learns_the_names_of_classes(resumed):
    assert resumed[1].class_names == tiny.CLASS_NAMES
    assert tuple(load(resumed[0]).class_names) == tiny.CLASS_NAMES


def test_another_model_does_not_resume(uninterrupted, data):
    out_dir = uninterrupted[0]
    with pytest.raises(ValueError, match=r"step_00000006\.keras does not fit this model: choose another OUT_DIR"):
        run(out_dir, data, model=tiny.detector(head_norm="bn"), config="another")
    with pytest.raises(ValueError, match=r"step_00000006\.keras is of another optimizer"):
        run(out_dir, data, optimizer=keras.optimizers.AdamW(1e-3), config="another")
    assert not (out_dir / "config.gin").exists()


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty"])
def test_a_damaged_checkpoint_is_named(tmp_path, uninterrupted, data, damage):
    content = checkpoints(uninterrupted[0] / "checkpoints")[-1].read_bytes()
    middle = len(content) // 2
    damaged = {"cut": content[:middle], "zeros": content[:middle] + bytes(99) + content[middle + 99 :], "empty": b""}
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_00000004.keras").write_bytes(content)
    (folder / "step_00000006.keras").write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"step_00000006\.keras is damaged .*: delete it to go on from the one before"):
        run(tmp_path, data)


def test_a_loss_that_is_not_finite_stops_before_it_hurts(tmp_path, data):
    model = tiny.detector(class_loss_weight=float("nan"))
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


def test_classes_must_match_before_anything_is_written(tmp_path, data):
    out_dir = tmp_path / "run"
    with pytest.raises(ValueError, match=r"The model has 3 classes and .* has 5 \(disk, .*set NUM_CLASSES .* to 5"):
        run(out_dir, data, model=tiny.detector(num_classes=3))

    class Fewer:
        num_classes, class_names, annotations = 2, ("a", "b"), "val.json"

    with pytest.raises(ValueError, match=r"5 classes and val\.json has 2"):
        run(out_dir, data, eval_data=Fewer(), evaluate=evaluate)
    assert not out_dir.exists()


@pytest.fixture(scope="module")
def data_with_parts(data):
    return CocoDataset(data.annotations, masks=True, keypoints=True)


def test_masks_and_keypoints_must_have_been_read(tmp_path, data, data_with_parts):
    out_dir = tmp_path / "run"
    with pytest.raises(ValueError, match=r"learns masks, and .* was read without them: set CocoDataset.masks=True"):
        run(out_dir, data, model=tiny.rcnn())
    with pytest.raises(ValueError, match=r"learns keypoints, .* set CocoDataset.keypoints=True"):
        run(out_dir, data, model=tiny.rcnn(branches=[KeypointBranch(4)]))
    with pytest.raises(ValueError, match=r"has 17 keypoints and .* has 4: set KeypointBranch\.num_keypoints to 4"):
        run(out_dir, data_with_parts, model=tiny.rcnn(branches=[KeypointBranch(17)]))
    assert not out_dir.exists()


def test_the_model_learns_the_names_of_keypoints(tmp_path, data_with_parts):
    run(tmp_path, data_with_parts, model=tiny.rcnn(), steps=1)
    _, branch = load(tmp_path).branches
    assert branch.keypoint_names == ("tip", "left_wing", "right_wing", "tail")
    assert branch.skeleton == ((0, 1), (0, 2), (0, 3))


def test_counts_are_whole_and_positive(tmp_path, data):
    model = tiny.detector()
    for name in ("steps", "batch_size", "epoch_steps", "eval_every", "keep_checkpoints"):
        for value in (-1, 1.5, "10"):
            with pytest.raises(ValueError, match=f"{name} is {value!r}: it must be a whole number from 1"):
                run(tmp_path, data, model=model, **{name: value})


@keras.saving.register_keras_serializable(package="kerasdet_tests")
class Traced(RetinaNet):
    """Notes the shape of the image in each trace of the training step."""

    traces = []  # noqa: RUF012

    def train_step(self, data):
        self.traces.append(data["image"].shape)
        return super().train_step(data)


def test_other_image_sizes_are_no_new_trace_in_bfloat16_with_adamw(tmp_path, data):
    Traced.traces.clear()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tiny.detector(model_class=Traced)
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
    assert loaded.detect(image)["boxes"].dtype == np.float32
    for a, b in zip(tiny.weights(loaded), tiny.weights(model), strict=True):
        np.testing.assert_array_equal(a, b)
