"""Describes export formats without importing TensorFlow, for the command line and for recognising files.

`kerasdet --help` and usage errors answer at once because this module and every ``export/<name>/spec.py`` import nothing
but the standard library.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GRAPH_PRECISIONS = ("float32", "bfloat16", "float16")  # precisions of `kerasdet.export.graph.InferenceGraph`


@dataclasses.dataclass(frozen=True)
class Option:
    """Describes an option of some export formats: a keyword argument of `write` and an option of `kerasdet export`.

    Args:
        name: Name of the keyword argument, such as "max_pixels".
        default: Default value of the argument.
        help: Text of ``kerasdet export --help``. It names the default.
        kind: Type of a value on the command line: "text", "path", "int" or "count" (a positive integer).
        choices: Permitted values, or None for any.
        nargs: Number of values: None for one, "+" for one or more, or a number.
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
        """The name on the command line."""
        return self.flag or f"--{self.name.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class FormatSpec:
    """Describes an export format. A folder of `export/` has one as `SPEC` in its `spec.py`.

    Args:
        name: Name of the format and of its folder, such as "tflite".
        suffix: Suffix of the files, such as ".tflite", or "" if the format writes a folder.
        precisions: Precisions that the format can be written in, the default one first.
        recognizes: Function from a path to a bool: whether the file or folder has this format. It must be fast and
            raise no error.
        options: Options that not all formats have.
    """

    name: str
    suffix: str
    precisions: Sequence[str]
    recognizes: Callable[[Path], bool]
    options: Sequence[Option] = ()
