"""Finds the state dict, tensors by name, inside the objects that training loops save."""

from collections.abc import Mapping

import numpy as np

from kerasdet.checkpoints.pickle_allowlist import Array
from kerasdet.checkpoints.tensors import Tensor

# The first that a file has wins. mmengine's EMAHook swaps weights when it saves: `state_dict` gets the running means,
# which are for inference, and `ema_state_dict` the weights that training goes on with.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs", "ema_state_dict")
_NOT_WEIGHTS = ("lr", "model_iter", "steps")  # caffe2's solver, and the counter of mmengine's running means
_MAX_CONTAINERS = 4


class StateDict(dict[str, np.ndarray]):
    """Tensors by name, and the class names if the file tells them.

    Args:
        tensors: Arrays by name.
        class_names: Names of the classes in the order of their ids, None if the file has none.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray] = (), class_names: tuple[str, ...] | None = None):
        super().__init__(tensors)
        self.class_names = class_names


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
        if isinstance(item, (Tensor, Array)) and not name.endswith("_momentum") and name not in _NOT_WEIGHTS
    }


def class_names(contents: object) -> tuple[str, ...] | None:
    """Finds the class names that mmdetection writes beside the weights.

    Args:
        contents: Object from a pickle.

    Returns:
        ``meta["dataset_meta"]["classes"]`` (mmdetection 3) or ``meta["CLASSES"]`` (mmdetection 2); None without either.
    """
    meta = contents.get("meta") if type(contents) is dict else None
    if type(meta) is not dict:
        return None
    dataset = meta.get("dataset_meta")
    for source in (dataset if type(dataset) is dict else {}, meta):
        for key in ("classes", "CLASSES"):
            names = source.get(key)
            names = [names] if type(names) is str else names  # ("cat") in a configuration is no tuple
            if type(names) in (list, tuple) and names and all(type(name) is str for name in names):
                return tuple(names)
    return None


def clean_names(state: Mapping[str, object]) -> dict[str, object]:
    """Removes what training wrappers add to names.

    Args:
        state: Objects by name.

    Returns:
        The same objects. Names lose the prefix `module.` of DataParallel if all of them have it. Objects whose name
        begins with `ema_` are left out: mmdetection 2 swaps weights before it saves, so that the others are the running
        means. If all begin with it, they stay and lose this prefix.
    """
    for prefix in ("module.", "ema_"):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith("ema_")}
