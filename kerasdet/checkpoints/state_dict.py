"""Finds the state dict, tensors by name, inside the objects that training loops save."""

from collections.abc import Mapping

from kerasdet.checkpoints.pickle_allowlist import Array
from kerasdet.checkpoints.tensors import Tensor

_CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs")
_SOLVER_BLOBS = ("lr", "model_iter")
_MAX_CONTAINERS = 4


def named_tensors(contents: object) -> dict[str, Tensor | Array]:
    """Finds the tensors inside the containers that frameworks put around a state dict.

    Args:
        contents: Object from a pickle.

    Returns:
        Tensors by name, without scalars, texts, nested dictionaries and caffe2's solver state.

    Raises:
        ValueError: If the object is not a dictionary.
    """
    for _ in range(_MAX_CONTAINERS):
        if type(contents) is not dict:
            raise ValueError(f"holds a {type(contents).__name__}, not a dictionary of tensors")
        inner = next((contents[key] for key in _CONTAINERS if type(contents.get(key)) is dict), None)
        if inner is None:
            break
        contents = inner
    return {
        name: item
        for name, item in contents.items()
        if isinstance(item, (Tensor, Array)) and not name.endswith("_momentum") and name not in _SOLVER_BLOBS
    }


def strip_module(state: Mapping[str, object]) -> dict[str, object]:
    """Removes the prefix `module.`, which DataParallel adds to every name.

    Args:
        state: Objects by name.

    Returns:
        The same objects; names lose the prefix if all of them have it.
    """
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)
