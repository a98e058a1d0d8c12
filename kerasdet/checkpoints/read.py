"""Read a PyTorch, caffe2, safetensors or NumPy checkpoint without torch."""

from pathlib import Path

import numpy as np

from kerasdet.checkpoints.archives import read_pickles, read_safetensors, read_zip
from kerasdet.checkpoints.unwrap import strip_module

_PICKLE_STARTS = b"\x80(}]c"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint by name, and executes nothing that the file asks for.

    The contents decide how a file is read, not its extension: torch's zip and legacy formats, pickles of NumPy arrays
    (detectron2, caffe2), `.safetensors` and `.npz`. The containers around a state dict (`model`, `state_dict`,
    `model_state_dict`, `blobs`) and a `module.` before every name are taken away.

    Args:
        path: A `.pth`, `.pt`, `.pkl`, `.safetensors` or `.npz` file.

    Returns:
        Arrays by name, each with memory of its own: float32 for any float, other types as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds no tensors, or asks for something other than tensors and plain
            containers, which is named.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        state = strip_module(_read_layout(path.read_bytes(), path.suffix))
        if not state:
            raise ValueError("holds no tensors by name, neither at the top nor under model, state_dict or blobs")
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:500]}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        raise ValueError(f"{path}: damaged, cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    return state


def _read_layout(data: bytes, suffix: str) -> dict[str, np.ndarray]:
    if not data:
        raise ValueError("is an empty file")
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return read_safetensors(data)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_zip(data)
    if suffix == ".safetensors":
        return read_safetensors(data)
    if data[257:262] == b"ustar":
        raise ValueError("is a tar file (torch before 0.1.10); load it with torch and save the state_dict again")
    if data[0] in _PICKLE_STARTS:
        return read_pickles(data)
    raise ValueError("is none of the formats that are read: .pth, .pkl, .safetensors, .npz")
