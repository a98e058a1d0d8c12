"""Builds a model from the tensors of a source framework."""

import logging
from collections.abc import Mapping

import keras
import numpy as np

from kerasdet.arguments import check_numbers
from kerasdet.checkpoints.build import CLASS_LAYERS, COUNTING_BIAS, build, named_variables, our_layout
from kerasdet.checkpoints.names import is_ignored, modern_names, source_name, untied_name
from kerasdet.checkpoints.sources import SOURCES, Source
from kerasdet.checkpoints.state_dict import take_model
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator, level_number
from kerasdet.geometry.default_boxes import DefaultBoxes

log = logging.getLogger(__name__)

_MAX_LISTED = 10
# Tensors of every backbone of a kind; their names in a file reveal a prefix that all names share
_RESNET_TENSORS = ("backbone/c2_0/conv1/conv/kernel", "backbone/stem/conv/kernel")
_CSPNEXT_TENSORS = ("backbone/stem0/conv/kernel", "backbone/stem1/conv/kernel")


def to_model(
    state: Mapping[str, np.ndarray],
    source: str,
    *,
    num_classes: int | None = None,
    norm_epsilon: float | None = None,
) -> keras.Model:
    """Builds the kerasdet model that corresponds to a model of a source framework, and assigns its weights.

    Example:
        >>> state = kerasdet.checkpoints.read("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
        >>> model = kerasdet.checkpoints.to_model(state, "torchvision/fasterrcnn_resnet50_fpn")
        >>> model.save("fasterrcnn.keras")

    Args:
        state: Tensors by the framework's names, the result of `kerasdet.checkpoints.read`. If the model is a part of a
            larger module, so that the names of its tensors have a common prefix, only these tensors are used, and a
            warning names some of the others. This works for models with a ResNet and for RTMDet. If the file has a
            name for each class and `num_classes` is None, these names become the model's class names.
        source: Name of the model in its framework, a key of `kerasdet.checkpoints.SOURCES`.
        num_classes: Number of classes K, to fine-tune the model: its layers for K classes get random weights. None: the
            number of classes of the file. Backbones and proposal networks have no classes and ignore it.
        norm_epsilon: Epsilon of the backbone's norms, in [0, 1]. None: the epsilon of the published files. Pass 1e-5
            for a torchvision v1 detector that you trained yourself, because the published files have 0. A VGG has no
            norms, so its models need None.

    Returns:
        The model: a detector, or a backbone if the source is a backbone.

    Raises:
        UserError: If an argument is invalid, or tensors are missing, unexpected or of another shape. The message names
            the tensors.
    """
    if source not in SOURCES:
        raise UserError(f"source is {source!r}; expected one of {', '.join(SOURCES)}. Pass one of them.")
    check_numbers("to_model", 0.0, 1.0, norm_epsilon=norm_epsilon)  # 0 is the value of torchvision's published files
    spec = SOURCES[source]
    class_names = getattr(state, "class_names", None)
    tensors = _CSPNEXT_TENSORS if spec.kind == "rtmdet" else _RESNET_TENSORS
    state = take_model(state, [name_in_source(name, spec) for name in tensors])
    names = modern_names(state, spec.framework)
    state = {
        names[name]: np.asarray(value) for name, value in state.items() if not is_ignored(names[name], spec.framework)
    }
    _check_finite(state)
    state = _untied(state, spec, source)
    classes = num_classes
    if classes is None and spec.kind in COUNTING_BIAS:
        classes = _count_classes(state, spec, source)
    model = build(spec, classes, _free_shapes(state, spec, source), norm_epsilon)
    variables = named_variables(model, spec.kind)
    if num_classes is not None:
        skipped = {name for name in variables if name.startswith(CLASS_LAYERS[spec.kind])}
        for name in skipped:
            state.pop(name_in_source(name, spec), None)
        variables = {name: variable for name, variable in variables.items() if name not in skipped}
    _assign(variables, state, spec, source)
    _warn_of_kind(variables, spec, source)
    if num_classes is None and classes is not None and class_names:
        if len(class_names) == classes:
            model.class_names = class_names
        else:
            log.warning(
                "The checkpoint has %d class names (%s), but its head has %d classes, so the model gets no class "
                "names. Pass one name per class with --labels (Python: model.class_names = ...).",
                len(class_names),
                _list(class_names),
                classes,
            )
    return model


def _untied(state, spec, source):
    """Drops duplicates of tensors that the file lists under several names; raises an error if their values differ."""
    names = {name: untied_name(name, spec.tied) for name in state}
    for name, first in names.items():
        if first in state and not np.array_equal(state[name], state[first]):
            raise UserError(
                f"The tensors {name} and {first} of the checkpoint differ, but in {source} they are the same tensor. "
                "Pass the model of the file with --source (Python: source=)."
            )
    return {name: value for name, value in state.items() if names[name] == name}


def name_in_source(name: str, spec: Source) -> str:
    """Returns the name of a variable in the checkpoints of a source.

    Args:
        name: Name of the variable in kerasdet, from `named_variables`.
        spec: A value of `SOURCES`.

    Returns:
        The name of the tensor.
    """
    finest = {"rcnn": 2, "rpn": 2, "ssd": level_number(_finest_level(spec))}.get(spec.kind, 3)
    return source_name(name, spec.framework, spec.names, backbone_only=spec.kind == "backbone", finest=finest)


def _finest_level(spec):
    """Returns the name of SSD's finest level of default boxes. For other kinds, the result "p3" has no effect."""
    return DefaultBoxes(**spec.anchors).levels[0] if spec.kind == "ssd" else "p3"


def _entry(state, name, spec, source):
    theirs = name_in_source(name, spec)
    if theirs not in state:
        raise UserError(
            f"The checkpoint has no tensor {theirs}, which {source} needs; it has {_list(sorted(state))}. Pass the "
            "model of the file with --source (Python: source=)."
        )
    return theirs, state[theirs]


def _free_shapes(state, spec, source):
    """Returns the shapes of tensors that depend on the file, not only on the source."""
    names = ["keypoint_branch/head/deconv/bias"] if spec.keypoint is not None else []
    return {name: _entry(state, name, spec, source)[1].shape for name in names}


def _check_finite(state):
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"The tensor {name} of the checkpoint has values that are NaN or infinite; expected finite weights. "
                "Use a checkpoint from before the training diverged."
            )


def _count_classes(state, spec, source):
    name, bias = _entry(state, COUNTING_BIAS[spec.kind].format(finest=_finest_level(spec)), spec, source)
    if spec.kind == "rcnn":
        if bias.size < 2:
            raise UserError(
                f"The tensor {name} of the checkpoint has shape {bias.shape}; {source} needs an entry for each class "
                "and one for the background. Pass the model of the file with --source (Python: source=)."
            )
        return bias.size - 1
    num_anchors = _anchors_of_finest_level(spec)
    columns, rest = divmod(bias.size, num_anchors)
    if rest or columns <= spec.background_first:
        raise UserError(
            f"The tensor {name} of the checkpoint has {bias.size} entries; {source} needs a multiple of {num_anchors}: "
            f"an entry per anchor for each class{' and for the background' if spec.background_first else ''}. Pass the "
            "model of the file with --source (Python: source=)."
        )
    return columns - spec.background_first


def _anchors_of_finest_level(spec):
    if spec.kind == "rtmdet":
        return 1
    if spec.kind == "ssd":
        return DefaultBoxes(**spec.anchors).num_anchors[0]
    return AnchorGenerator(**spec.anchors).num_anchors


def _assign(variables, state, spec, source):
    """Assigns every tensor to its variable; raises an error that names missing, unexpected or misshapen tensors."""
    theirs = {name: name_in_source(name, spec) for name in variables}
    if spec.framework == "detectron2" and not any(name.endswith("running_var") for name in state):
        # The norms in MSRA's files have scale and offset but no statistics; detectron2 then uses mean 0 and variance 1.
        statistics = {name: value for name, value in theirs.items() if "running" in value}
        state = {
            **state,
            **{value: _default_statistic(name, variables[name].shape) for name, value in statistics.items()},
        }
    problems = []
    missing = [value for value in theirs.values() if value not in state]
    if missing:
        problems.append(f"missing: {_list(missing)}")
    unexpected = sorted(set(state) - set(theirs.values()))
    if unexpected:
        problems.append(f"unexpected: {_list(unexpected)}")
    values = {name: our_layout(name, state[theirs[name]], spec) for name in variables if theirs[name] in state}
    misshapen = [
        f"{theirs[name]} {state[theirs[name]].shape}{_expected(value, variables[name].shape)}"
        for name, value in values.items()
        if value is None or value.shape != tuple(variables[name].shape)
    ]
    if misshapen:
        problems.append(f"of another shape: {_list(misshapen)}")
    if problems:
        raise UserError(
            f"The checkpoint does not fit {source}: {'; '.join(problems)}. Pass the model of the file with --source "
            "(Python: source=)."
        )
    for name, value in values.items():
        _check_trained(name, value, theirs[name])
        variables[name].assign(value)


def _warn_of_kind(variables, spec, source):
    """Warns if the norms of a ResNet show that the weights are of the other kind (MSRA or torchvision).

    Both kinds have the same names and shapes. The norms of MSRA's ResNets (detectron2, "caffe" in mmdetection) have
    mean 0 and variance 1; those of torchvision and of mmdetection's "pytorch" models have other statistics.
    """
    moments = {
        name: variable.numpy() for name, variable in variables.items() if name.endswith("stem/norm/moving_variance")
    }
    is_msra = spec.backbone.get("stride_in_1x1", False)
    for variance in moments.values():
        if bool(np.allclose(variance, 1, atol=1e-3)) != is_msra:
            kinds = ("of the MSRA (caffe) kind", "of the torchvision (pytorch) kind")
            log.warning(
                "The norms of the checkpoint are %s, but %s is %s, with other pixel statistics and strides. Check "
                "--source (Python: source=).",
                *(kinds[is_msra], source, kinds[not is_msra]),
            )


def _expected(value, shape):
    """Describes the expected shape of a misshapen tensor; `value` is the tensor in the layout of Keras, or None."""
    if len(shape) < 2:
        return f" (expected {tuple(shape)})"
    found = "" if value is None or value.ndim < 2 else f"{value.shape}, "
    return f" (in Keras' layout {found}expected {tuple(shape)})"


def _check_trained(name, value, source):
    """Raises an error if a tensor has values that cannot result from training."""
    if value.dtype.kind != "f":
        problem = f"holds {value.dtype} values, as quantised weights do: expected floats"
    elif name.endswith("variance") and (value < 0).any():
        problem = f"is a variance and has the value {value.min():g}: expected 0 or more"
    elif name.endswith("/kernel") and "/offset/" not in name and not value.any():
        problem = "is zero everywhere: expected trained weights"
    else:
        return
    raise UserError(f"The checkpoint's tensor {source} {problem}. Use the trained checkpoint in float32 or float16.")


def _default_statistic(name, shape):
    return np.ones(shape, np.float32) if name.endswith("variance") else np.zeros(shape, np.float32)


def _list(names):
    names = list(names)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
