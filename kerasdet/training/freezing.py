"""Freezes layers by name, and rejects frozen layers that have random weights."""

import fnmatch
from collections.abc import Sequence

import keras
import numpy as np

from kerasdet.errors import UserError
from kerasdet.keras_compat import flatten_layers
from kerasdet.keras_utils import freeze

_INITIAL_NORM = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


def freeze_layers(model: keras.Model, patterns: Sequence[str]) -> None:
    """Freezes layers of a detector: their weights are not trained, and batch norms use stored statistics.

    Args:
        model: Detector.
        patterns: List of layers to freeze. An entry is the name of a part of the model, such as "backbone" or "rpn"; or
            ``PART/PATTERN`` for the layers of a part whose names match a pattern of `fnmatch`, such as "backbone/stem"
            and "backbone/c2_*".

    Raises:
        UserError: If a pattern matches nothing, or no layer is left to train.
    """
    for layer in _matches(model, patterns):
        freeze(layer)
    if not model.trainable_variables:
        raise UserError(
            f"train.freeze={list(patterns)} leaves no layer of {type(model).__name__} to train: remove a pattern."
        )


def check_frozen_layers(model: keras.Model, patterns: Sequence[str]) -> None:
    """Checks that frozen layers do not have random weights, unless `patterns` names them.

    Random weights are recognised by frozen norms whose variables all have their initial values: scale 1, offset 0 and,
    in a batch norm, mean 0 and variance 1. Pretrained norms have other values.

    Args:
        model: Detector, before `freeze_layers` runs. Only layers that the model froze itself, such as by `freeze_at`,
            are checked.
        patterns: Layers that the user freezes on purpose, as in `freeze_layers`; these may have random weights.

    Raises:
        UserError: If a frozen layer has random weights.
    """
    named = {id(layer) for match in _matches(model, patterns) for layer in flatten_layers(match)}
    for name, part in _parts(model).items():
        random = [layer.path for layer in flatten_layers(part) if id(layer) not in named and _is_frozen_initial(layer)]
        if random:
            raise UserError(
                f"{len(random)} frozen layers of {type(model).__name__}.{name} have random weights "
                f"({random[0]}{', ...' if len(random) > 1 else ''}) and would keep them, so the other layers would "
                "learn from noise. Load pretrained weights (gin: train.model = @pretrained() or @backbone_weights(); "
                "Python: kerasdet.loading.pretrained or backbone_weights), "
                f"build a ResNet with norm='bn' and freeze_at=0, or set train.freeze=['{name}'] (Python: freeze=) if "
                "these layers should stay random."
            )


def _is_frozen_initial(layer):
    """Returns whether a layer is a frozen norm with its initial values."""
    values = {variable.name: variable for variable in layer.weights}
    if "gamma" not in values or not values.keys() <= _INITIAL_NORM.keys() or layer.trainable_weights:
        return False
    return all(np.all(np.asarray(values[name]) == _INITIAL_NORM[name]) for name in values)


def _parts(model):
    """Returns the layers that are attributes of a model, by name."""
    return {name: value for name, value in vars(model).items() if isinstance(value, keras.layers.Layer)}


def _matches(model, patterns):
    """Returns the layers that match any of the patterns; layers inside a matching layer may be listed, too."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"train.freeze is {patterns!r}: give a list of names, such as ['backbone'].")
    return [layer for pattern in patterns for layer in _matches_one(model, pattern)]


def _matches_one(model, pattern):
    name, _, path = pattern.partition("/")
    parts = _parts(model)
    if name not in parts:
        raise UserError(
            f"train.freeze names {name!r}, but {type(model).__name__} has no such part: choose one of "
            f"{', '.join(parts)}."
        )
    if not path:
        return [parts[name]]
    inner = flatten_layers(parts[name], include_self=False)
    found = [layer for layer in inner if layer.path and fnmatch.fnmatchcase(f"/{layer.path}", f"*/{path}")]
    if not found:
        raise UserError(
            f"train.freeze has {pattern!r}, which matches no layer of {name}: call model.{name}.summary() to see the "
            "names."
        )
    return found
