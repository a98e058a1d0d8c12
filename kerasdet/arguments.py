"""Checks numbers that users set, so that an invalid number raises an error immediately."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from kerasdet.errors import UserError


def check_positive(owner: str, **counts: int | None) -> None:
    """Checks that counts are positive integers, or None for an option that is off.

    Args:
        owner: Name of the function or class that takes the counts, for the error message.
        counts: Counts by name.

    Raises:
        UserError: If a count is neither a positive integer nor None.
    """
    for name, value in counts.items():
        if value is not None and not (_is(value, Integral) and value >= 1):
            raise UserError(f"{owner}.{name} is {value!r}: expected a positive integer.")


def check_numbers(owner: str, low: float, high: float = float("inf"), /, **values: Any) -> None:
    """Checks that numbers, or all numbers of sequences, are within limits, or None for an option that is off.

    Args:
        owner: Name of the function or class that takes the numbers, for the error message.
        low: Smallest value allowed.
        high: Largest value allowed.
        values: Numbers or sequences of numbers by name.

    Raises:
        UserError: If a value is not a number, is not finite or is outside the limits.
    """
    limits = f"from {low:g} to {high:g}" if high < float("inf") else f"of {low:g} or more"
    limits = "that is finite" if low == -float("inf") and high == float("inf") else limits
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if not all(
            each is None or (_is(each, Real) and low <= each <= high and each < float("inf")) for each in numbers
        ):
            raise UserError(f"{owner}.{name} is {value!r}: expected a number {limits}.")


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)
