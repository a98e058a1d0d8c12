"""From what a training loop saved to the names of a model's tensors."""

from collections.abc import Mapping

from kerasdet.checkpoints.constructors import Array
from kerasdet.checkpoints.tensors import Tensor

_CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs")
_SOLVER_BLOBS = ("lr", "model_iter")
_MAX_CONTAINERS = 4


def named_tensors(contents: object) -> dict[str, Tensor | Array]:
    """Finds the tensors inside the containers that frameworks put around a state dict.

    Args:
        contents: What a pickle held.

    Returns:
        Tensors by name; scalars, texts, nested dictionaries and caffe2's solver state are left out.

    Raises:
        ValueError: There is no dictionary.
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
    """Takes away the `module.` that DataParallel puts before every name.

    Args:
        state: Anything by name.

    Returns:
        The same, without the prefix where every name has it.
    """
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)
