"""Finds the state dict, tensors by name, inside the objects that training loops save."""

import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.checkpoints.pickle_allowlist import Array
from kerasdet.checkpoints.tensors import Tensor
from kerasdet.errors import UserError

log = logging.getLogger(__name__)

# Entries in which training loops save weights. mmengine's EMAHook swaps weights when it saves: `state_dict` gets the
# running means, which are for inference, and `ema_state_dict` the weights with which training continues.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs", "net", "network", "weights", "module", "params")
_SWAPPED = {"state_dict", "ema_state_dict"}
_AVERAGES = {"ema", "swa"}  # words in names of entries that hold running means
_NOT_WEIGHTS = ("lr", "model_iter", "steps", "n_averaged")  # state of caffe2's solver, and counters of running means
_MAX_CONTAINERS = 4
# Prefixes that wrappers of models add to the names of tensors; the first three also occur inside names
_INNER_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WRAPPERS = ("module.", "model.", "net.", "ema_model.", "model_ema.", "ema.", "ema_")


class StateDict(dict[str, np.ndarray]):
    """Holds tensors by name, and the class names if the file has them.

    Args:
        tensors: Arrays by name.
        class_names: Names of the classes in the order of their ids. None: the file has no class names.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray] = (), class_names: tuple[str, ...] | None = None):
        super().__init__(tensors)
        self.class_names = class_names


def named_tensors(contents: object, weights: str | None = None) -> dict[str, Tensor | Array]:
    """Finds the tensors inside the containers in which frameworks save a state dict.

    Args:
        contents: Object from a pickle.
        weights: Name of the container to use, such as "model_ema". If it is None or not the name of a container, the
            only container is used, or `state_dict` if mmengine saved the pair `state_dict` and `ema_state_dict`.

    Returns:
        The tensors by name, without scalars, strings, nested dictionaries and caffe2's solver state. If `weights` is
        the name of a container, it is put before all names, as in ``model_ema.backbone.conv1.weight``.

    Raises:
        UserError: If several other containers hold weights and `weights` is not the name of one of these.
        ValueError: If the object is not a dictionary.
    """
    prefix = ""
    for _ in range(_MAX_CONTAINERS):
        if type(contents) is not dict:
            raise ValueError(f"the file holds a {type(contents).__name__}, not a dictionary of tensors")
        key = _container(contents, weights)
        if key is None:
            break
        prefix = f"{weights}." if key == weights else prefix
        contents = contents[key]
    return {
        f"{prefix}{name}": item
        for name, item in contents.items()
        if _is_tensor(item) and not name.endswith("_momentum") and name not in _NOT_WEIGHTS
    }


def _is_tensor(item):
    return isinstance(item, (Tensor, Array))


def _container(contents, weights):
    """Returns the key of the dictionary that holds the weights, or None if `contents` itself holds the weights."""
    inside = {key: value for key, value in contents.items() if type(key) is str and type(value) is dict}
    if weights in inside:
        return weights
    known = [key for key in inside if key in _CONTAINERS or _AVERAGES & {*key.lower().split("_")}]
    full = [key for key in known if any(_is_tensor(item) or name in _CONTAINERS for name, item in inside[key].items())]
    if not full and any(map(_is_tensor, contents.values())):
        return None
    if not full:  # an entry of another name
        full = [key for key in inside if "optim" not in key and any(map(_is_tensor, inside[key].values()))]
    if {*full} == _SWAPPED:
        return "state_dict"
    if len(full) > 1:
        raise UserError(_ask(full))
    return next(iter([*full, *known]), None)


def _ask(names):
    return (
        f"the file holds several sets of weights, {' and '.join(names)}. Expected one set. Choose one with --weights "
        f"(Python: weights=), such as --weights {names[-1]}."
    )


def class_names(contents: object) -> tuple[str, ...] | None:
    """Finds the class names that mmdetection saves with the weights.

    Args:
        contents: Object from a pickle.

    Returns:
        ``meta["dataset_meta"]["classes"]`` (mmdetection 3) or ``meta["CLASSES"]`` (mmdetection 2); None if the file has
        neither.
    """
    meta = contents.get("meta") if type(contents) is dict else None
    if type(meta) is not dict:
        return None
    dataset = meta.get("dataset_meta")
    for source in (dataset if type(dataset) is dict else {}, meta):
        for key in ("classes", "CLASSES"):
            names = source.get(key)
            names = [names] if type(names) is str else names  # ("cat") in a configuration is a string, not a tuple
            if type(names) in (list, tuple) and names and all(type(name) is str for name in names):
                return tuple(names)
    return None


def clean_names(state: Mapping[str, object], weights: str | None = None) -> dict[str, object]:
    """Removes the prefixes that wrappers of a model add to the names of tensors in training.

    The function removes ``_orig_mod.`` and similar prefixes (`torch.compile`, FSDP, activation checkpointing). If all
    names share a prefix such as ``module.`` (DataParallel), ``model.`` and ``net.`` (Lightning) or ``ema_``, it removes
    this prefix, too. Tensors such as ``ema_backbone_conv1_weight`` are left out: mmdetection 2 saves the last weights
    under such names, and the running means, which are for inference, under the names without ``ema_``.

    Args:
        state: Objects by name.
        weights: Prefix of the names to use, without its dot. None: all names.

    Returns:
        The objects by their new names.

    Raises:
        UserError: If no name has the prefix `weights`, or two names become equal.
    """
    bare = {}
    for name in state:
        if (other := bare.setdefault(_INNER_WRAPPERS.sub(r"\1", name), name)) != name:
            raise UserError(
                f"the file has {other} and {name}, whose names are equal without the prefixes of wrappers. Save the "
                "model without its wrapper."
            )
    state = {name: state[wrapped] for name, wrapped in bare.items()}
    if weights is not None:
        tops = dict.fromkeys(name.partition(".")[0] for name in state)
        inside = {name: re.fullmatch(rf"(?:.*?\.)??{re.escape(weights)}\.(.*)", name) for name in state}
        state = {found[1]: state[name] for name, found in inside.items() if found}
        if not state:
            raise UserError(
                f"the file has no entry or name prefix {weights!r}, which --weights (Python: weights=) asked for; "
                f"its names start with {', '.join(list(tops)[:9])}{', ...' if len(tops) > 9 else ''}. Pass one of "
                "these, or remove --weights."
            )
    while prefix := next((prefix for prefix in _WRAPPERS if _all_have(state, prefix)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    is_buffer = {name: name.startswith("ema_") and "." not in name for name in state}
    return {name: value for name, value in state.items() if not is_buffer[name]}


def _all_have(state, prefix):
    return bool(state) and all(name.startswith(prefix) for name in state)


def take_model(state: Mapping[str, object], needed: Sequence[str]) -> dict[str, object]:
    """Selects the tensors of a model that is a part of a larger module, such as a training module with a loss.

    The model's tensors are recognised by a common prefix of all names in `needed`.

    Args:
        state: Objects by name.
        needed: Some names of the model's tensors, without prefix.

    Returns:
        The objects whose names begin with the prefix, by their names without the prefix; all objects if there is no
        such prefix.

    Raises:
        UserError: If several prefixes are possible.
    """
    found = {name.removesuffix(needed[0]) for name in state if f".{name}".endswith(f".{needed[0]}")}
    prefixes = sorted(prefix for prefix in found if all(f"{prefix}{name}" in state for name in needed))
    if len(prefixes) > 1:
        raise UserError(_ask([prefix.removesuffix(".") or "(no prefix)" for prefix in prefixes]))
    if prefixes in ([], [""]):
        return dict(state)
    [prefix] = prefixes
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        log.warning(
            "The checkpoint's tensors with the prefix %s are used; these tensors are left out: %s%s.",
            prefix,
            ", ".join(others[:3]),
            f" and {len(others) - 3} more" if len(others) > 3 else "",
        )
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
