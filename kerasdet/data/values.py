"""Converts values of annotation files that some tools write with another type, such as "1", 1.0 or true for 1."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from kerasdet.errors import UserError

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_FLAGS = {"": 0, "0": 0, "false": 0, "no": 0, "null": 0, "none": 0, "1": 1, "true": 1, "yes": 1}
MAX_LISTED = 200  # number of problems of a kind that are listed; all are counted
MAX_ID = 2**63 - 1

Name = Callable[[], str]  # returns the name of an item; called only if a message needs the name


def as_int(value: Any) -> int | None:
    """Converts a value of any type to an integer.

    Args:
        value: An integer, a float such as 3.0 or a string such as "3".

    Returns:
        The integer, or None if the value is a bool or is not an integer of at most 63 bits.
    """
    if isinstance(value, str):
        text = value.strip()
        value = int(text.split(".")[0]) if len(text) < 25 and _WHOLE.fullmatch(text) else None
    elif isinstance(value, float | np.floating):
        value = int(value) if float(value).is_integer() else None
    elif isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        value = None
    return int(value) if value is not None and abs(int(value)) <= MAX_ID else None


def as_float(value: Any) -> float | None:
    """Converts a value of any type to a number.

    Args:
        value: A number or a string such as "1.5".

    Returns:
        The float, which may be infinite or NaN; None if the value is a bool or not a number.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | str | np.number):
        return None
    if isinstance(value, str) and "_" in value:  # Python reads "1_000", other languages do not
        return None
    try:
        return float(value)
    except (ValueError, TypeError):
        return None
    except OverflowError:
        return np.inf


def as_flag(value: Any) -> int | None:
    """Converts a value of any type to a flag, 0 or 1.

    Args:
        value: 0, 1, a bool, None (which means 0), or a string such as "0", "1.0" or "true".

    Returns:
        0 or 1, or None if the value is not a flag.
    """
    if value is None:
        return 0
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower().removesuffix(".0"))
    return int(value) if isinstance(value, bool | int | float | np.number | np.bool_) and value in (0, 1) else None


def as_list(value: Any) -> list | None:
    """Converts a value of any type to a list.

    Args:
        value: A list, a tuple, an array, or a string with a JSON list.

    Returns:
        The list, or None if the value is not a list.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def as_floats(value: Any) -> list[float] | None:
    """Converts a value of any type to a list of numbers.

    Args:
        value: A list, a tuple, an array, or a string with a JSON list.

    Returns:
        The list of floats, or None if the value is not a list or an item is not a number.
    """
    values = as_list(value)
    numbers = None if values is None else [as_float(item) for item in values]
    return None if numbers is None or None in numbers else numbers


def is_plain(values: Any) -> bool:
    """Tells whether a value needs no conversion: it is a list of JSON numbers that fit into 64 bits.

    Args:
        values: Value of any type.

    Returns:
        True if the value is such a list.
    """
    return type(values) is list and all(
        type(value) is float or (type(value) is int and -MAX_ID <= value <= MAX_ID) for value in values
    )


def are_fractions(boxes: Sequence[Sequence[float]]) -> bool:
    """Tells whether boxes are fractions of the image size instead of pixels.

    Args:
        boxes: Lists of numbers.

    Returns:
        True if all numbers are in [0, 1], and not all are whole.
    """
    in_range = all(0 <= value <= 1 for box in boxes for value in box)  # ends at the first number in pixels
    return in_range and not all(float(value).is_integer() for box in boxes for value in box)


def is_missing(value: Any) -> bool:
    """Tells whether a value is missing.

    Args:
        value: Value of any type.

    Returns:
        True for None, and for an empty list, dict or string.
    """
    return value is None or (isinstance(value, Sequence | dict | np.ndarray) and len(value) == 0)


def _printable(text):
    """Replaces the bytes of file names that are not valid UTF-8, which logs and files cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclasses.dataclass(frozen=True)
class Problem:
    """Describes one fault of a dataset. The reader repaired the fault, or left the faulty item out.

    Args:
        kind: Kind of the fault, a key of `Dataset.counts`.
        item: Name of the item, such as "annotation 7" or the path of an image file.
        text: Description of the fault after the name, such as "has no name".
    """

    kind: str
    item: str
    text: str


class Changes:
    """Counts the values of a file that do not follow the file's format and had to be converted or repaired.

    Args:
        source: Path or name of the file for error messages.
        strict: Whether to raise an error at the first value that must be converted or repaired.
        on_bad_object: "error" or "skip", see `read_object`.

    Attributes:
        counts: Number of changes, by kind.
        problems: List of `Problem`s: the first `MAX_LISTED` changes of each kind.
    """

    def __init__(self, source: str, strict: bool = False, on_bad_object: str = "error") -> None:
        if on_bad_object not in ("error", "skip"):
            raise UserError(f'on_bad_object is {on_bad_object!r}; expected "error" or "skip". Change on_bad_object.')
        self.source = source
        self.strict = strict
        self.on_bad_object = on_bad_object
        self.counts: Counter = Counter()
        self.problems: list[Problem] = []

    def add(self, kind: str, name: str, fact: str) -> None:
        """Counts one change.

        Args:
            kind: Name of the kind of change, a key of `counts`.
            name: Name of the item, such as "annotation 7".
            fact: Description of the fault after the name, such as "has no name".

        Raises:
            UserError: If `strict` is set.
        """
        if self.strict:
            raise UserError(
                f"{self.source}: {name} {fact} (kind: {kind.replace('_', ' ')}), which --strict (Python and gin: "
                "strict=True) does not allow. Correct this item, or remove the option."
            )
        self.note(kind, name, fact)

    def note(self, kind: str, name: str, fact: str) -> None:
        """Counts a fact and records it for the log. Unlike `add`, this never raises an error, even if `strict` is set.

        Args:
            kind: Name of the kind of fact, a key of `counts`.
            name: Name of the item, such as "annotation 7".
            fact: Description of the fact after the name, such as "has no name".
        """
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_LISTED:
            self.problems.append(Problem(kind, *map(_printable, (name, fact))))

    def read_object(self, read: Callable[[], Any], name: str) -> Any:
        """Reads an annotation; skips it on a `UserError` if `on_bad_object` is "skip".

        Args:
            read: Function that reads the annotation, and raises a `UserError` if it is invalid.
            name: Name of the annotation, the first words of its error messages.

        Returns:
            The result of `read`, or None if the annotation is skipped.

        Raises:
            UserError: If the annotation cannot be read and `on_bad_object` is "error".
        """
        try:
            return read()
        except UserError as error:
            if self.on_bad_object == "error":
                raise
            self.note("bad_objects", name, str(error).removeprefix(f"{self.source}: ").removeprefix(name).lstrip())
            return None

    def without(self, kinds: Container[str]) -> "Changes":
        """Selects the changes of some kinds.

        Args:
            kinds: Kinds of changes to leave out.

        Returns:
            The changes of all other kinds.
        """
        others = Changes(self.source, self.strict, self.on_bad_object)
        others.counts.update({kind: count for kind, count in self.counts.items() if kind not in kinds})
        others.problems = [problem for problem in self.problems if problem.kind not in kinds]
        return others

    def merge(self, other: "Changes") -> None:
        """Adds the changes that another `Changes` counted for the same file.

        Args:
            other: The changes to add.
        """
        self.counts.update(other.counts)
        self.problems += other.problems

    def describe(self, phrases: dict[str, str]) -> list[str]:
        """Describes each kind of change by its count and its first item, for the log.

        Args:
            phrases: Maps each kind of change to its description, such as "values converted to the right type".

        Returns:
            One string per kind of change that occurred.
        """
        first = {each.kind: f"{each.item} {each.text}" for each in reversed(self.problems)}
        return [
            f"{self.counts[kind]} {text} (first: {first[kind]})" for kind, text in phrases.items() if self.counts[kind]
        ]

    def convert(self, value: Any, converter: Callable[[Any], Any], name: Name, key: str) -> Any:
        """Converts a value to the right type, and counts the change if it had another type.

        Args:
            value: The value to convert.
            converter: `as_int`, `as_float`, `as_flag` or `as_floats`.
            name: Function that returns the name of the item for error messages.
            key: Key of the value in the item.

        Returns:
            The converted value, or None if it cannot be converted.

        Raises:
            UserError: If `strict` is set and the value had another type.
        """
        converted = converter(value)
        if converted is not None and type(value) is not type(converted):
            self.add("converted_values", name(), f'has "{key}" {show(value)} instead of {show(converted)}')
        return converted


def show(value: Any) -> str:
    """Formats a value for an error message.

    Args:
        value: Value of any type.

    Returns:
        The `repr` of the value, shortened to 80 characters.
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
