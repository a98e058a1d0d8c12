"""Checks the arguments that many transforms share."""

from collections.abc import Sequence
from typing import Any

from kerasdet.errors import UserError


def check_probabilities(owner: object, *names: str) -> None:
    """Checks that attributes of a transform are probabilities.

    Args:
        owner: Transform that has the attributes.
        names: Names of the attributes.

    Raises:
        UserError: If an attribute is not a number in [0, 1].
    """
    values = {name: getattr(owner, name) for name in names}
    if not all(_is_number(value) and 0 <= value <= 1 for value in values.values()):
        raise UserError(
            f"{type(owner).__name__} got {_listed(values)}; expected probabilities, numbers in [0, 1]. Change "
            f"{', '.join(names)}."
        )


def check_range(owner: object, name: str, low: float, high: float = float("inf"), unit: str = "numbers") -> None:
    """Checks that an attribute is a pair (smallest, largest) within limits.

    Args:
        owner: Transform that has the attribute.
        name: Name of the attribute.
        low: Smallest value allowed.
        high: Largest value allowed. Infinity: no limit.
        unit: Name of the values for the error message, such as "degrees".

    Raises:
        UserError: If the attribute is not such a pair.
    """
    value = getattr(owner, name)
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value))
    if not (is_pair and low <= value[0] <= value[1] <= high):
        limits = f"between {low:g} and {high:g}" if high < float("inf") else f"of {low:g} or more"
        raise UserError(
            f"{type(owner).__name__} got {name}={value!r}; expected (smallest, largest), two {unit} {limits} in "
            f"ascending order. Correct {name}."
        )


def check_at_least(owner: object, low: float, *names: str, high: float = float("inf")) -> None:
    """Checks that attributes are numbers, or sequences of numbers, of at least `low`.

    Args:
        owner: Transform that has the attributes.
        low: Smallest value allowed.
        names: Names of the attributes.
        high: Largest value allowed. Infinity: no limit.

    Raises:
        UserError: If a value is not a number or is outside the limits, or a sequence is empty.
    """
    for name in names:
        value = getattr(owner, name)
        numbers = value if isinstance(value, Sequence) else (value,)
        if not numbers or not all(_is_number(number) and low <= number <= high for number in numbers):
            limits = f"from {low:g} to {high:g}" if high < float("inf") else f"of {low:g} or more"
            raise UserError(f"{type(owner).__name__} got {name}={value!r}; expected a number {limits}. Correct {name}.")


def check_counts(owner: object, *names: str) -> None:
    """Checks that attributes are positive integers.

    Args:
        owner: Transform that has the attributes.
        names: Names of the attributes.

    Raises:
        UserError: If an attribute is not a positive integer.
    """
    for name in names:
        value = getattr(owner, name)
        if not (isinstance(value, int) and _is_number(value) and value > 0):
            raise UserError(
                f"{type(owner).__name__} got {name}={value!r}; expected a positive integer. Correct {name}."
            )


def check_size(owner: object, name: str) -> None:
    """Checks that an attribute is a height and a width in pixels.

    Args:
        owner: Transform that has the attribute.
        name: Name of the attribute.

    Raises:
        UserError: If the attribute is not a pair of positive integers.
    """
    value = getattr(owner, name)
    if not (isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value)):
        raise UserError(
            f"{type(owner).__name__} got {name}={value!r}; expected (height, width), two positive integers. Correct "
            f"{name}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(values):
    *first, last = [f"{name}={value!r}" for name, value in values.items()]
    return f"{', '.join(first)} and {last}" if first else last
