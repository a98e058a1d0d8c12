import json
import random
import zipfile

import keras
import numpy as np
import pytest

from kerasdet.errors import UserError
from kerasdet.training import WarmupCosine, resume

SETTINGS = {"data": "40 images", "batch_size": 4, "seed": 0, "freeze": []}


def model(seed=0, optimizer=None):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(optimizer=optimizer or keras.optimizers.AdamW(0.1, use_ema=True), loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made


def train(made, steps):
    """The variables after some steps on fixed data."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)), rng.normal(size=(16, 1))
    for _ in range(steps):
        made.train_on_batch(x, y)
    return [variable.numpy() for variable in [*made.variables, *made.optimizer.variables]]


def test_restored_model_trains_on_bit_for_bit_with_dropout(tmp_path):
    first = model()
    train(first, 3)
    resume.save(first, tmp_path, max_to_keep=2, step=3, images=48)
    other = model(seed=1)
    assert resume.restore(other, tmp_path)[:3] == (3, 48, "")
    for a, b in zip(train(first, 3), train(other, 3), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saving_to_a_folder_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"file/run/step_00000003\.keras cannot be written: Not a directory"):
        resume.save(model(), tmp_path / "file" / "run", max_to_keep=2, step=3, images=48)
    assert (tmp_path / "file").read_text() == "mine"


def test_restoring_without_a_checkpoint_starts_at_zero(tmp_path):
    assert resume.restore(model(), tmp_path / "none")[:3] == (0, 0, "")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the folder with its checkpoint of step 3."""
    made, folder = model(), tmp_path_factory.mktemp("saved")
    train(made, 3)
    resume.save(made, folder, max_to_keep=2, step=3, images=48, settings=SETTINGS)
    return made, folder


def test_flipped_bit_raises_or_changes_nothing(tmp_path, saved):
    made, [path] = saved[0], resume.checkpoints(saved[1])
    content, rng = path.read_bytes(), random.Random(0)
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    places = [rng.randrange(directory, len(content)) for _ in range(120)]
    places += [rng.randrange(len(content)) for _ in range(20)]
    other, damaged = model(seed=1), 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        (tmp_path / path.name).write_bytes(flipped)
        try:
            assert resume.restore(other, tmp_path)[:3] == (3, 48, "")
        except ValueError as error:
            assert f"{path.name} is damaged (" in str(error), (place, str(error))
            assert "()" not in str(error)
            damaged += 1
            continue
        for a, b in zip(made.variables, other.variables, strict=True):
            np.testing.assert_array_equal(a, b)
    assert damaged > 60


def test_restoring_with_another_optimizer_raises(saved, recwarn):
    adamw = keras.optimizers.AdamW
    scaled = keras.optimizers.LossScaleOptimizer(adamw(use_ema=True))
    others = {
        "optimizer was AdamW and is now SGD": keras.optimizers.SGD(use_ema=True),
        "use_ema was True and is now False": adamw(),
        r"loss scaling was none and is now dynamic \(PRECISION mixed_float16\)": scaled,
    }
    for message, optimizer in others.items():
        with pytest.raises(ValueError, match=rf"with other optimizer settings: {message}\. Restore"):
            resume.restore(model(optimizer=optimizer), saved[1])
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message)]  # of Keras


def test_other_settings_are_listed(saved):
    assert resume.restore(model(), saved[1], SETTINGS)[:3] == (3, 48, "")
    progress = resume.restore(model(), saved[1], {**SETTINGS, "seed": 5, "data": "30 images"})
    assert progress.changes == "data was 40 images and is now 30 images, seed was 0 and is now 5"


@pytest.mark.parametrize(
    "new, message",
    [
        (
            ["cat", "fox"],
            "trained on the classes cat, dog, and the data now have cat, fox: .* same classes. Resume with",
        ),
        (["cat", "dog", "fox"], "the classes cat, dog, and the data now have cat, dog, fox: expected the same classes"),
        (["dog", "cat"], r"in this order, and the data now have dog, cat: .* Set CLASSES .* to \('cat', 'dog'\), or"),
    ],
)
def test_other_classes_than_those_of_the_checkpoint_raise(tmp_path, saved, new, message):
    [path] = resume.checkpoints(saved[1])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / path.name, "w") as named:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = json.dumps({"config": {**json.loads(content)["config"], "class_names": ["cat", "dog"]}})
            named.writestr(name, content)
    other = model()
    other.class_names = new
    with pytest.raises(UserError, match=message):
        resume.restore(other, tmp_path)


def test_checkpoint_without_settings_restores(tmp_path, saved):
    [path] = resume.checkpoints(saved[1])
    kept = ("step", "images", "freeze", "random", "optimizer", "iterations")
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(tmp_path / path.name, "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name == "training.json":
                content = json.dumps({key: json.loads(content)[key] for key in kept})
            old.writestr(name, content)
    assert resume.restore(model(seed=1), tmp_path, {**SETTINGS, "seed": 5})[:3] == (3, 48, "")


CHANGED_RATES = {
    "constant": (0.25, 0.125, "learning_rate was 0.25 and is now 0.125"),
    "schedule": (
        WarmupCosine(0.25, 8),
        WarmupCosine(0.125, 8),
        "WarmupCosine.base_lr was 0.25 and is now 0.125",
    ),
    "constant_to_schedule": (0.25, WarmupCosine(0.125, 8), "learning_rate was 0.25 and is now WarmupCosine"),
    "schedule_to_constant": (WarmupCosine(0.25, 8), 0.125, "learning_rate was WarmupCosine and is now 0.125"),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("case", CHANGED_RATES)
def test_new_learning_rate_applies_and_the_rest_of_the_optimizer_resumes(tmp_path, case, scaled, recwarn):
    old_rate, new_rate, message = CHANGED_RATES[case]

    def made(rate, seed):
        adam = keras.optimizers.AdamW(rate, weight_decay=0.5)
        return model(seed, keras.optimizers.LossScaleOptimizer(adam, initial_scale=4.0) if scaled else adam)

    first = made(old_rate, 0)
    train(first, 3)
    resume.save(first, tmp_path, max_to_keep=1, step=3, images=48)
    second, unchanged = made(new_rate, 1), made(old_rate, 1)
    assert resume.restore(unchanged, tmp_path)[:3] == (3, 48, "")
    assert resume.restore(second, tmp_path)[:3] == (3, 48, message)
    expected = new_rate if isinstance(new_rate, float) else new_rate(3)
    np.testing.assert_allclose(second.optimizer.learning_rate, expected, rtol=1e-6)

    def state(made):
        return [v.numpy() for v in [*made.variables, *made.optimizer.variables] if "learning_rate" not in v.path]

    for a, b in zip(state(first), state(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message)]  # of Keras


def test_other_settings_of_the_optimizer_apply_and_are_listed(saved):
    other = model(optimizer=keras.optimizers.AdamW(0.1, use_ema=True, weight_decay=0.25, clipnorm=2.0))
    changes = resume.restore(other, saved[1]).changes
    assert changes == "weight_decay was 0.004 and is now 0.25, clipnorm was None and is now 2"
    assert other.optimizer.weight_decay == 0.25
