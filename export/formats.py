"""Lists the export formats. A new format is a new folder in `export/` and its name in `FORMATS`.

Importing this module imports no TensorFlow: `specs` and `recognize` read the light ``spec.py`` of each folder, and
`format_named` imports the ``format.py`` of one.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from kerasdet.errors import UserError
from kerasdet.export.spec import FormatSpec

if TYPE_CHECKING:
    from kerasdet.export.protocol import Format

FORMATS = (
    "saved_model",
    "tflite",
    "onnx",
    "openvino",
)


def specs() -> list[FormatSpec]:
    """Returns the `SPEC` of every format."""
    return [importlib.import_module(f"kerasdet.export.{name}.spec").SPEC for name in FORMATS]


def default_spec() -> FormatSpec:
    """Returns the `SPEC` of the format of paths without a known suffix: the first that writes folders."""
    return next(spec for spec in specs() if not spec.suffix)


def format_named(name: str) -> "Format":
    """Returns the format of a name.

    Raises:
        UserError: If there is none.
    """
    if name not in FORMATS:
        raise UserError(f"There is no export format {name!r}: choose one of {', '.join(FORMATS)}.")
    return importlib.import_module(f"kerasdet.export.{name}.format").FORMAT


def format_of(path: str | Path) -> "Format | None":
    """Returns the format of an existing file or folder, or None if it is no export."""
    name = next((spec.name for spec in specs() if spec.recognizes(Path(path))), None)
    return None if name is None else format_named(name)
