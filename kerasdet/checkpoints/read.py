"""Reads PyTorch, caffe2, safetensors and NumPy checkpoints without torch."""

from pathlib import Path

import numpy as np

from kerasdet.checkpoints.file_formats import read_pickles, read_safetensors, read_zip
from kerasdet.checkpoints.state_dict import StateDict, clean_names
from kerasdet.errors import UserError
from kerasdet.paths import expand

_PICKLE_STARTS = b"\x80(}]c"
_ADVICE = (
    "Expected a .pth, .pkl, .safetensors or .npz file of tensors: download it again, or save model.state_dict() in the "
    "source framework."
)


def read(path: str | Path) -> StateDict:
    """Reads the tensors of a checkpoint by name, without executing code of the file.

    The contents decide about the format, not the file extension: torch's zip and legacy formats, pickles of NumPy
    arrays (detectron2, caffe2), `.safetensors` and `.npz`. The reader unwraps the containers around a state dict
    (`model`, `state_dict`, `model_state_dict`, `blobs`) and removes the prefix `module.` if every name has it.

    Files of mmdetection that were trained with running means of the weights hold two sets. `state_dict` and the names
    without the prefix `ema_` win, because mmdetection saves the means there; `ema_state_dict` counts only if a file has
    nothing else.

    Example:
        >>> state = kerasdet.checkpoints.read("model_final_280758.pkl")
        >>> state["backbone.fpn_lateral2.weight"].shape
        (256, 256, 1, 1)

    Args:
        path: Path of a `.pth`, `.pt`, `.pkl`, `.safetensors` or `.npz` file.

    Returns:
        Arrays by name, which share no memory. Floats of any size become float32; other types stay. `class_names` has
        the names in the file's `meta` (mmdetection), or None.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is damaged, holds no tensors, or asks for anything but tensors and plain containers.
    """
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: the file does not exist. Check the path.")
    try:
        contents = _read_format(path.read_bytes(), path.suffix)
        state = StateDict(clean_names(contents), getattr(contents, "class_names", None))
        if not state:
            raise ValueError("holds no tensors by name, neither at the top level nor in model, state_dict or blobs")
    except ValueError as error:
        raise UserError(f"{path}: {str(error)[:500]}. {_ADVICE}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {_ADVICE}") from error
    except Exception as error:  # Damaged zip and NumPy headers raise many types of errors.
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {str(error)[:200]}). {_ADVICE}") from error
    return state


def _read_format(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    if not data:
        raise ValueError("is an empty file")
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return read_safetensors(data)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_zip(data)
    if suffix == ".safetensors":
        return read_safetensors(data)
    if data[257:262] == b"ustar":
        raise ValueError("is a tar file of torch before 0.1.10")
    if data[0] in _PICKLE_STARTS:
        return read_pickles(data)
    raise ValueError("has none of the supported formats")
