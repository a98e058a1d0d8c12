"""Lists the export formats. A new format is a new folder in `export/` and one line in `FORMATS`."""

from pathlib import Path

from kerasdet.export.protocol import Format
from kerasdet.export.saved_model.format import FORMAT as SAVED_MODEL
from kerasdet.export.tflite.format import FORMAT as TFLITE

from kerasdet.errors import UserError

FORMATS: tuple[Format, ...] = (SAVED_MODEL, TFLITE)


def format_named(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        UserError: If there is none.
    """
    for each in FORMATS:
        if each.name == name:
            return each
    raise UserError(f"There is no export format {name!r}: choose one of {', '.join(each.name for each in FORMATS)}.")


def format_of(path: str | Path) -> Format | None:
    """Returns the format of an existing file or folder, or None if it is no export."""
    return next((each for each in FORMATS if each.recognizes(Path(path))), None)
