"""From a source framework's tensors to a model."""

from collections.abc import Mapping

import keras
import numpy as np

from kerasdet.anchors import AnchorGenerator
from kerasdet.checkpoints.names import IGNORED, modern_names, source_name
from kerasdet.checkpoints.sources import SOURCES
from kerasdet.layers import FPN, ConvTop, ResNet
from kerasdet.models import Preprocessing, RetinaNet

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
    state = {names[name]: np.asarray(value) for name, value in state.items() if not IGNORED.search(names[name])}
    backbone = ResNet(**{**spec.backbone, **({} if norm_epsilon is None else {"norm_epsilon": norm_epsilon})})
    if spec.model is None:
        _assign(_named_variables({"backbone": backbone}), state, spec, source)
        return backbone
    anchors = AnchorGenerator(**spec.anchors)
    model = RetinaNet(
        num_classes or _count_classes(state, spec, source, anchors.num_anchors),
        backbone=backbone,
        neck=FPN(top=ConvTop(**spec.top)),
        anchors=anchors,
        preprocessing=Preprocessing(**spec.preprocessing),
        **spec.model,
    )
    variables = _named_variables({"backbone": model.backbone, "neck": model.neck, "head": model.head})
    if num_classes is not None:
        skipped = {name for name in variables if name.startswith("head/class_logits/")}
        for name in skipped:
            state.pop(_their_name(name, spec), None)
        variables = {name: variable for name, variable in variables.items() if name not in skipped}
    _assign(variables, state, spec, source)
    return model


def _named_variables(parts):
    """The variables of a model's parts by a name that depends on nothing but the structure."""
    variables = {}
    for part, layer in parts.items():
        for variable in layer.variables:
            path = variable.path.split("/")[1:]  # without the name of the part itself
            if part == "neck" and path[0] == layer.top.name:
                path[0] = "top"
            variables["/".join([part, *path])] = variable
    return variables


def _their_name(name, spec):
    return source_name(name, spec.framework, backbone_only=spec.model is None, finest=3)


def _count_classes(state, spec, source, num_anchors):
    name = _their_name("head/class_logits/conv/bias", spec)
    if name not in state:
        raise ValueError(f"The checkpoint has no {name}: is it of {source}? It holds {_list(sorted(state))}.")
    return len(state[name]) // num_anchors - spec.background_column


def _assign(variables, state, spec, source):
    """Puts every tensor in its place, or says by name what does not fit."""
    theirs = {name: _their_name(name, spec) for name in variables}
    if not any(name.endswith("running_var") for name in state):  # MSRA's affine-only norms
        statistics = {name: value for name, value in theirs.items() if "running" in value}
        state = {**state, **{value: _identity(name, variables[name].shape) for name, value in statistics.items()}}
    problems = []
    missing = [value for value in theirs.values() if value not in state]
    if missing:
        problems.append(f"missing: {_list(missing)}")
    left_over = sorted(set(state) - set(theirs.values()))
    if left_over:
        problems.append(f"unexpected: {_list(left_over)}")
    values = {name: _ours(name, state[theirs[name]], spec) for name in variables if theirs[name] in state}
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


def _ours(name, value, spec):
    """A tensor in our layout: HWIO kernels, deltas in the order y, x, h, w, no background column; None if it cannot."""
    if name.startswith("head/box_deltas/"):
        if value.shape[0] % 4:
            return None
        value = value.reshape(-1, 4, *value.shape[1:])[:, [1, 0, 3, 2]].reshape(value.shape)
    if name.startswith("head/class_logits/") and spec.background_column:
        anchors = AnchorGenerator(**spec.anchors).num_anchors
        if value.shape[0] % anchors:
            return None
        value = value.reshape(anchors, -1, *value.shape[1:])[:, 1:].reshape(-1, *value.shape[1:])
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _list(names):
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
