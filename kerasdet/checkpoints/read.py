"""Reads PyTorch, caffe2, safetensors and NumPy checkpoints without torch."""

from pathlib import Path

from kerasdet.checkpoints.file_formats import read_pickles, read_safetensors, read_zip
from kerasdet.checkpoints.state_dict import StateDict, clean_names
from kerasdet.errors import UserError
from kerasdet.paths import expand

_PICKLE_STARTS = (b"\x80", b"(", b"}", b"]", b"c")
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ADVICE = (
    "Expected a .pth, .pt, .pkl, .safetensors or .npz file of tensors: download it again, or save model.state_dict() "
    "in the source framework."
)


def read(path: str | Path, weights: str | None = None) -> StateDict:
    """Reads the tensors of a checkpoint by name, without executing code in the file.

    The format is detected by the contents of the file, not by its suffix: torch's zip and legacy formats, pickles of
    NumPy arrays (detectron2, caffe2), `.safetensors` and `.npz`. The state dict may be an entry of a dictionary, such
    as `model`, `state_dict` or `model_ema`. Prefixes that wrappers add to names, such as `module.` and `_orig_mod.`,
    are removed.

    Files may contain a second set of weights, the running means (EMA) of the first. mmdetection saves the running means
    in `state_dict`, under the names without the prefix `ema_`, and they are read by default. For other files with two
    sets, pass `weights`.

    Example:
        >>> state = kerasdet.checkpoints.read("model_final_280758.pkl")
        >>> state["backbone.fpn_lateral2.weight"].shape
        (256, 256, 1, 1)

    Args:
        path: Path of a `.pth`, `.pt`, `.pkl`, `.safetensors` or `.npz` file.
        weights: Name of the entry that contains the weights, such as "model_ema", or a prefix of the names, such as
            "ema_model", with or without its last dot. None for a file of mmdetection or with only one set.

    Returns:
        A dict of arrays by name. Floats of any size become float32; other dtypes are kept. The dict's attribute
        `class_names` holds the class names in the file's `meta` (mmdetection), or None.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is damaged, contains no tensors or several sets of weights, contains objects other than
            tensors and plain containers, or has no entry or prefix `weights`.
    """
    path = expand(path)
    weights = weights and weights.removesuffix(".")
    if not path.exists():
        raise FileNotFoundError(f"{path}: the file does not exist. Check the path.")
    try:
        contents = _read_format(path.read_bytes(), path.suffix, weights)
        state = StateDict(clean_names(contents, weights), getattr(contents, "class_names", None))
        if not state:
            raise ValueError('the file contains no tensors by name, neither directly nor in an entry such as "model"')
    except UserError as error:  # these messages already say what to do
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {str(error)[:500]}. {_ADVICE}") from error
    except OSError as error:
        raise UserError(
            f"{path}: the file cannot be read ({error.strerror or error}). Pass a checkpoint file that you may read."
        ) from error
    except Exception as error:  # Damaged zip and NumPy headers raise many types of errors.
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: the file is damaged ({reason}). {_ADVICE}") from error
    return state


def looks_like_checkpoint(path: Path) -> bool:
    """Tells by the first bytes of a file whether it may be a checkpoint that `read` can read.

    Args:
        path: Path of the file.

    Returns:
        True if `read` would try to read it.
    """
    with path.open("rb") as file:
        head = file.read(9)
    return _is_safetensors(head, path.stat().st_size) or head.startswith(_ZIP_STARTS) or head[:1] in _PICKLE_STARTS


def _is_safetensors(head, size):
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size


def _read_format(data: bytes, suffix: str, weights: str | None) -> StateDict:
    if not data:
        raise ValueError("the file is empty")
    if _is_safetensors(data, len(data)):
        return read_safetensors(data)
    if data.startswith(_ZIP_STARTS):
        return read_zip(data, weights)
    if data.startswith(b"version https://git-lfs"):
        raise UserError("the file is a pointer of Git LFS, not the checkpoint itself. Fetch it with `git lfs pull`.")
    if data[:1024].lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UserError("the file is a web page, not a checkpoint. Download the file that the page links to.")
    if suffix == ".safetensors":
        return read_safetensors(data)
    if data[257:262] == b"ustar":
        raise ValueError("the file is a tar file of torch before 0.1.10, a format that kerasdet does not read")
    if data[:1] in _PICKLE_STARTS:
        return read_pickles(data, weights)
    raise ValueError("the file has none of the supported formats")
