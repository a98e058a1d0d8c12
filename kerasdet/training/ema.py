"""Exponential moving averages of the weights, which Keras' optimizers keep when they have `use_ema`."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Within, the model has the averages for weights; where its optimizer keeps none, its own.

    Keras' `SwapEMAWeights` swaps by addition, after which the weights are not quite what they were.
    """
    pairs = _pairs(model)
    own = [tf.identity(variable.value) for variable, _ in pairs]
    use_averages(model)
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)


def use_averages(model: keras.Model) -> None:
    """Gives the model the averages for weights, where its optimizer keeps any."""
    for variable, average in _pairs(model):
        variable.assign(average)


def _pairs(model):
    """Each trained weight and its average."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "use_ema", False) or int(optimizer.iterations.numpy()) == 0:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))
