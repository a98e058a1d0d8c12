"""Layers that are not trained."""

import fnmatch
from collections.abc import Sequence

import keras

from kerasdet.keras_utils import freeze


def freeze_layers(model: keras.Model, patterns: Sequence[str]) -> None:
    """Makes layers of a detector untrainable, and their norms use what they have stored.

    Args:
        model: A detector.
        patterns: A part of it, such as "backbone" or "rpn", or layers within, such as "backbone/stem" and
            "backbone/c2_*".

    Raises:
        ValueError: If a pattern matches nothing, or nothing is left to train.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"freeze is {patterns!r}: it must be a list of names, such as ['backbone'].")
    for pattern in patterns:
        name, _, path = pattern.partition("/")
        part = getattr(model, name, None)
        if not isinstance(part, keras.layers.Layer):
            parts = [key for key, value in vars(model).items() if isinstance(value, keras.layers.Layer)]
            raise ValueError(f"freeze: {type(model).__name__} has no part {name!r}: it has {', '.join(parts)}.")
        found = [part] if not path else _inner_layers(part, path)
        if not found:
            raise ValueError(f"freeze: {pattern!r} matches no layer of {name}.")
        for layer in found:
            freeze(layer)
    if not model.trainable_variables:
        raise ValueError(f"freeze: nothing of {type(model).__name__} is left to train.")


def _inner_layers(part, pattern):
    inner = part._flatten_layers(include_self=False)
    return [layer for layer in inner if layer.path and fnmatch.fnmatchcase(layer.path, f"*/{pattern}")]
