"""From a source framework's tensors to a model."""

from collections.abc import Mapping

import keras
import numpy as np

from kerasdet.checkpoints.build import CLASS_LAYERS, COUNTING_BIAS, build, named_variables, our_layout
from kerasdet.checkpoints.names import is_ignored, modern_names, source_name
from kerasdet.checkpoints.sources import SOURCES
from kerasdet.geometry.anchors import AnchorGenerator

_LISTED = 10


def to_model(
    state: Mapping[str, np.ndarray],
    source: str,
    *,
    num_classes: int | None = None,
    norm_epsilon: float | None = None,
) -> keras.Model:
    """Builds the model that the source framework would have built, with the weights in place.

    Args:
        state: Tensors by the framework's names, as `kerasdet.checkpoints.read` returns them.
        source: A key of `kerasdet.checkpoints.SOURCES`.
        num_classes: None for the file's own classes. A number: the classification layer is made for so many classes
            and keeps its random weights, for fine-tuning.
        norm_epsilon: Of the backbone's norms, where it is not the one of the published files: torchvision's v1
            detectors are published with 0, and have 1e-5 when trained by oneself.

    Returns:
        A detector, or a `ResNet` where the source is a backbone.

    Raises:
        ValueError: If the source is unknown, or entries are missing, left over or of another shape, by name.
    """
    if source not in SOURCES:
        raise ValueError(f"There is no source {source!r}: choose one of {', '.join(SOURCES)}.")
    spec = SOURCES[source]
    names = modern_names(state, spec.framework)
    state = {
        names[name]: np.asarray(value) for name, value in state.items() if not is_ignored(names[name], spec.framework)
    }
    classes = num_classes
    if classes is None and spec.kind != "backbone":
        classes = _count_classes(state, spec, source)
    model = build(spec, classes, _free_shapes(state, spec, source), norm_epsilon)
    variables = named_variables(model, spec.kind)
    if num_classes is not None:
        skipped = {name for name in variables if name.startswith(CLASS_LAYERS[spec.kind])}
        for name in skipped:
            state.pop(_their_name(name, spec), None)
        variables = {name: variable for name, variable in variables.items() if name not in skipped}
    _assign(variables, state, spec, source)
    return model


def _their_name(name, spec):
    finest = 2 if spec.kind == "rcnn" else 3
    return source_name(name, spec.framework, spec.names, backbone_only=spec.kind == "backbone", finest=finest)


def _entry(state, name, spec, source):
    theirs = _their_name(name, spec)
    if theirs not in state:
        raise ValueError(f"The checkpoint has no {theirs}: is it of {source}? It holds {_list(sorted(state))}.")
    return theirs, state[theirs]


def _free_shapes(state, spec, source):
    """Shapes that the source leaves to the file."""
    names = ["keypoint_branch/head/deconv/bias"] if spec.keypoint is not None else []
    return {name: _entry(state, name, spec, source)[1].shape for name in names}


def _count_classes(state, spec, source):
    name, bias = _entry(state, COUNTING_BIAS[spec.kind], spec, source)
    if spec.kind == "rcnn":
        if bias.size < 2:
            raise ValueError(f"The checkpoint's {name} has shape {bias.shape}: {source} has one for background, too.")
        return bias.size - 1
    num_anchors = AnchorGenerator(**spec.anchors).num_anchors
    columns, rest = divmod(bias.size, num_anchors)
    if rest or columns <= spec.background_first:
        raise ValueError(
            f"The checkpoint's {name} has shape {bias.shape}: {source} has {num_anchors} anchors a cell and as "
            f"many logits for each class{', background included' if spec.background_first else ''}."
        )
    return columns - spec.background_first


def _assign(variables, state, spec, source):
    """Puts every tensor in its place, or says by name what does not fit."""
    theirs = {name: _their_name(name, spec) for name in variables}
    if spec.framework == "detectron2" and not any(name.endswith("running_var") for name in state):
        # affine-only norms, as in MSRA's files
        statistics = {name: value for name, value in theirs.items() if "running" in value}
        state = {**state, **{value: _identity(name, variables[name].shape) for name, value in statistics.items()}}
    problems = []
    missing = [value for value in theirs.values() if value not in state]
    if missing:
        problems.append(f"missing: {_list(missing)}")
    left_over = sorted(set(state) - set(theirs.values()))
    if left_over:
        problems.append(f"unexpected: {_list(left_over)}")
    values = {name: our_layout(name, state[theirs[name]], spec) for name in variables if theirs[name] in state}
    misshapen = [
        f"{theirs[name]} {state[theirs[name]].shape}"
        for name, value in values.items()
        if value is None or value.shape != tuple(variables[name].shape)
    ]
    if misshapen:
        problems.append(f"of another shape: {_list(misshapen)}")
    if problems:
        raise ValueError(f"The checkpoint does not fit {source}: {'; '.join(problems)}.")
    for name, value in values.items():
        variables[name].assign(value)


def _identity(name, shape):
    return np.ones(shape, np.float32) if name.endswith("variance") else np.zeros(shape, np.float32)


def _list(names):
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
