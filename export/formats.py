"""Lists the export formats: the folders of `export/` that have a ``spec.py``.

Importing this module imports no TensorFlow: `specs` and `recognize` read the light ``spec.py`` of each folder, and
`format_named` imports the ``format.py`` of one format.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kerasdet.errors import UserError
from kerasdet.export.spec import FormatSpec
from kerasdet.paths import expand

if TYPE_CHECKING:
    from kerasdet.export.protocol import Format

_DEFAULT = "saved_model"  # for paths without a known suffix
_FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/spec.py"))
FORMATS = (_DEFAULT, *(name for name in _FOLDERS if name != _DEFAULT))
# Suffixes of other tools' model files. A folder with such a name would be mistaken for one of these files.
MODEL_SUFFIXES = (
    *(".onnx", ".h5", ".hdf5", ".pb", ".pbtxt", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".safetensors", ".torchscript"),
    *(".lite", ".engine", ".trt", ".plan", ".mlmodel", ".mlpackage", ".xml", ".bin", ".zip", ".tar", ".gz"),
)


def specs() -> list[FormatSpec]:
    """Lists the descriptions of all export formats.

    Returns:
        The `SPEC` of every format.
    """
    return [importlib.import_module(f"kerasdet.export.{name}.spec").SPEC for name in FORMATS]


def default_spec() -> FormatSpec:
    """Returns the default format, for paths without a known suffix.

    Returns:
        The `SPEC` of the format.
    """
    return _spec_named(_DEFAULT)


def choose_spec(path: str | os.PathLike, name: str | None = None) -> FormatSpec:
    """Chooses the format of an export by its name or by the suffix of the path, which must not contradict each other.

    Args:
        path: Path of the file or folder to write.
        name: Name of the format. None: the format is chosen by the suffix.

    Returns:
        The `SPEC` of the format.

    Raises:
        UserError: If the format does not exist, the path lacks its suffix, or the suffix is that of another file type.
    """
    suffix = Path(path).suffix.lower()
    by_suffix = next((spec for spec in specs() if spec.suffix and spec.suffix == suffix), None)
    if name is None and by_suffix is not None:
        return by_suffix
    spec = default_spec() if name is None else _spec_named(name)
    if spec.suffix and suffix != spec.suffix:
        raise UserError(f"Format {spec.name} writes a file, but {path} does not end in {spec.suffix}: change the path.")
    if not spec.suffix and by_suffix is not None:
        raise UserError(
            f"Format {spec.name} writes a folder, but {path} ends in {suffix}: change the path, or choose format "
            f"{by_suffix.name}."
        )
    if not spec.suffix and suffix in (*MODEL_SUFFIXES, ".keras"):
        files = ", ".join(f"{spec.suffix} ({spec.name})" for spec in specs() if spec.suffix)
        raise UserError(
            f"{path} ends in {suffix}, which no export format writes: expected a folder ({default_spec().name}) or a "
            f"file that ends in {files}. Change the path."
        )
    whole = str(expand(path).resolve())
    if found := next((character for character in spec.unreadable if character in whole), None):
        raise UserError(
            f"{whole} contains {found}, with which the export could not be loaded: expected a path without this "
            "character. Change the path."
        )
    return spec


def _spec_named(name):
    spec = next((spec for spec in specs() if spec.name == name), None)
    if spec is None:
        raise UserError(f"The export format is {name!r}: choose one of {', '.join(FORMATS)}.")
    return spec


def format_named(name: str) -> "Format":
    """Looks up an export format by its name.

    Args:
        name: Name of the format, such as "onnx".

    Returns:
        The format, with its functions.

    Raises:
        UserError: If the format does not exist.
    """
    return importlib.import_module(f"kerasdet.export.{_spec_named(name).name}.format").FORMAT


def format_of(path: str | Path) -> "Format | None":
    """Detects the export format of an existing file or folder.

    Args:
        path: Path of the file or folder.

    Returns:
        The format, or None if the path is not an export.
    """
    name = next((spec.name for spec in specs() if spec.recognizes(expand(path))), None)
    return None if name is None else format_named(name)
