"""Copies the class-specific weights of classes that a new dataset shares with an old model, matched by name."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from kerasdet.data.categories import UNUSED

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """Holds the weights of a detector that depend on its classes.

    Args:
        class_names: Names of the K classes, in the order of the class ids.
        values: Maps the index of a variable in `model.variables` to its value. The last axis of this array contains
            the classes, times the anchors of a cell or the four values of a box.
        origin: Name of the model for log messages.
    """

    class_names: tuple[str, ...]
    values: Mapping[int, np.ndarray]
    origin: str


def class_weights(model: keras.Model, origin: str) -> ClassWeights | None:
    """Reads the weights of a detector that depend on its classes.

    Args:
        model: Detector.
        origin: Name of the model for log messages.

    Returns:
        The weights that depend on the classes; None if the class names of the model are unknown.
    """
    if not model.class_names:
        return None
    values = {i: v.numpy() for i, v in enumerate(model.variables) if _split(model, v) is not None}
    return ClassWeights(tuple(model.class_names), values, origin)


def keep_shared_classes(model: keras.Model, class_names: Sequence[str], old: ClassWeights) -> None:
    """Copies the weights of classes that the old model also has, matched by name, and logs the names.

    Other classes keep the current weights of the model: random weights, or the weights of another class if the number
    of classes did not change. If a class is shared and the model has a background, the weights of the background are
    copied as well. If both models have the same classes in the same order, nothing is copied or logged.

    Args:
        model: Detector with K classes and the architecture of the old model.
        class_names: Names of the K classes, in the order of the class ids.
        old: Result of `class_weights` for the old model.
    """
    pairs = [
        (new, old.class_names.index(name))
        for new, name in enumerate(class_names)
        if name != UNUSED and name in old.class_names
    ]
    if tuple(class_names) == old.class_names:
        return
    shared = [class_names[new] for new, _ in pairs]
    missing = [name for name in class_names if name not in shared]
    log.info(
        "Classes whose weights are copied from %s, matched by name: %s. Classes that start %s: %s.",
        old.origin,
        _listed(shared),
        "with random weights" if len(class_names) != len(old.class_names) else "with the weights of other classes",
        _listed(missing),
    )
    if not pairs:
        return
    if model.has_background:
        pairs.append((len(class_names), len(old.class_names)))
    for index, value in old.values.items():
        variable = model.variables[index]
        groups, columns, unit = _split(model, variable)
        now = variable.numpy().reshape(*variable.shape[:-1], groups, columns, unit)
        before = value.reshape(*value.shape[:-1], groups, -1, unit)
        for new, known in pairs:
            if new < columns:  # boxes and masks have no background
                now[..., new, :] = before[..., known, :]
        variable.assign(now.reshape(variable.shape))


def _split(model, variable):
    """Returns the numbers of groups, classes and values per class in a variable's last axis; None without class axis.

    Dense heads have one group per anchor of a cell, the box predictors of R-CNNs four values per class.
    """
    if not len(variable.shape):  # a scalar; `not shape` would not do, because bool(tf.TensorShape([])) is True
        return None
    path, size, num_classes = f"/{variable.path}", int(variable.shape[-1]), model.num_classes
    if "/class_logits/" in path:
        columns = num_classes + model.has_background
        return size // columns, columns, 1
    if "/mask_logits/" in path:
        return 1, num_classes, 1
    if "/box_predictor/box_deltas/" in path and size == 4 * num_classes:
        return 1, num_classes, 4
    return None


def _listed(names):
    return f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else "none"
