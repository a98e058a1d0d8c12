"""Describes export formats without importing TensorFlow, for the command line and for recognising files.

`kerasdet --help` and usage errors respond immediately, because this module and every ``export/<name>/spec.py`` import
only the standard library.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GRAPH_PRECISIONS = ("float32", "bfloat16", "float16")  # precisions of `kerasdet.export.graph.InferenceGraph`
INPUT_TYPES = ("float32", "uint8")


@dataclasses.dataclass(frozen=True)
class Option:
    """Describes an option of some export formats: a keyword argument of `write` and an option of `kerasdet export`.

    Several formats may define an option with the same name. Its `kind`, `nargs`, `metavar` and `flag` must then be the
    same in all of them. The command line accepts the choices of all these formats, and shows the help text of each.

    Args:
        name: Name of the keyword argument, such as "max_pixels".
        default: Default value of the argument.
        help: Help of the option in ``kerasdet export --help``, which names the default.
        kind: Type of a value on the command line: "text", "path", "int" or "count" (a positive integer).
        choices: Permitted values. None: any value.
        nargs: Number of values: None for one value, "+" for one or more, or an integer.
        metavar: Name of the value in the help, or one name for each of `nargs` values.
        flag: Name on the command line. By default `name` with hyphens, such as "--max-pixels".
    """

    name: str
    default: Any
    help: str
    kind: str = "text"
    choices: Sequence[str] | None = None
    nargs: int | str | None = None
    metavar: str | tuple[str, ...] | None = None
    flag: str | None = None

    @property
    def option(self) -> str:
        """Name of the option on the command line."""
        return self.flag or f"--{self.name.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class FormatSpec:
    """Describes an export format. A folder of `export/` has one as `SPEC` in its `spec.py`.

    Args:
        name: Name of the format and of its folder, such as "tflite".
        suffix: File name suffix, such as ".tflite"; "" if the format writes a folder.
        precisions: Precisions that the format supports, the default first.
        recognizes: Function that takes a path and returns whether the file or folder has this format. It must be fast
            and must not raise errors.
        options: Command-line options of `kerasdet export` that this format accepts, besides those common to all
            formats.
        unreadable: Characters that the format's runtime cannot read in a path.
    """

    name: str
    suffix: str
    precisions: Sequence[str]
    recognizes: Callable[[Path], bool]
    options: Sequence[Option] = ()
    unreadable: str = ""


INPUT_TYPE = Option(
    "input_type",
    "float32",
    "type of the input's pixels (default float32)",
    choices=INPUT_TYPES,
    flag="--input",
)
CALIBRATION_IMAGES = Option(
    "calibration_images",
    (),
    "a few dozen typical images, or folders of images, on which --precision int8 measures ranges of values; of more "
    "than 100, only 100 are used",
    kind="path",
    nargs="+",
    metavar="IMAGE",
)
