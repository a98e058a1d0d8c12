"""Uses the exponential moving averages of the weights that Keras' optimizers keep with `use_ema`."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from kerasdet.keras_compat import average_pairs, inner_optimizer


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Uses the averaged weights inside the ``with`` block, and restores the trained weights afterwards.

    Before the first step, or if the optimizer keeps no averages, the weights do not change. Keras' `SwapEMAWeights`
    (3.15.1) swaps by adding and subtracting, so rounding changes the trained weights. This function restores them bit
    for bit.

    Args:
        model: Compiled model.

    Yields:
        None.
    """
    pairs = _pairs(model)
    trained = [tf.identity(variable.value) for variable, _ in pairs]
    use_averages(model)
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, trained, strict=True):
            variable.assign(value)


def use_averages(model: keras.Model) -> None:
    """Overwrites the model's weights with their averages, if the optimizer keeps averages.

    Args:
        model: Compiled model, or a model without an optimizer.
    """
    for variable, average in _pairs(model):
        variable.assign(average)


def _pairs(model):
    """Pairs each averaged variable with its average; returns no pairs before the first step, when averages are 0."""
    optimizer = inner_optimizer(getattr(model, "optimizer", None))
    if not getattr(optimizer, "use_ema", False) or int(optimizer.iterations.numpy()) == 0:
        return []
    return average_pairs(optimizer)
