import keras
import numpy as np
import pytest

from kerasdet.training import checkpoints


def model(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(optimizer=keras.optimizers.AdamW(0.1, use_ema=True), loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made


def train(made, steps):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)), rng.normal(size=(16, 1))
    for _ in range(steps):
        made.train_on_batch(x, y)
    return [variable.numpy() for variable in [*made.variables, *made.optimizer.variables]]


def test_everything_goes_on_where_it_was_dropout_included(tmp_path):
    first = model()
    train(first, 3)
    checkpoints.save(first, tmp_path, keep=2, step=3, images=48)
    other = model(seed=1)
    assert checkpoints.restore(other, tmp_path) == (3, 48)
    for a, b in zip(train(first, 3), train(other, 3), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_lost_where_a_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"file/run/step_00000003\.keras cannot be written: Not a directory"):
        checkpoints.save(model(), tmp_path / "file" / "run", keep=2, step=3, images=48)
    assert (tmp_path / "file").read_text() == "mine"


def test_no_checkpoint_is_the_beginning(tmp_path):
    assert checkpoints.restore(model(), tmp_path / "none") == (0, 0)
