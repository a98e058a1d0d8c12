"""Checks numbers, lists of names and objects that users pass, so that an invalid value raises an error immediately."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from kerasdet.errors import UserError

_MAX_SHOWN = 60  # longest value in characters that a message quotes


def check_positive(owner: str, **counts: int | None) -> None:
    """Checks that arguments are positive integers or None.

    Args:
        owner: Name of the function or class that takes the arguments, for the error message.
        counts: Values of the arguments by name. None is allowed: it turns an option off.

    Raises:
        UserError: If a count is neither a positive integer nor None.
    """
    for name, value in counts.items():
        if value is not None and not (_is(value, Integral) and value >= 1):
            raise UserError(f"{owner}.{name} is {value!r}: expected a positive integer.")


def check_numbers(owner: str, low: float, high: float = float("inf"), /, **values: Any) -> None:
    """Checks that arguments are numbers within limits, or sequences of such numbers.

    Args:
        owner: Name of the function or class that takes the arguments, for the error message.
        low: Smallest value allowed.
        high: Largest value allowed. Infinity: no limit.
        values: Values of the arguments by name. None is allowed: it turns an option off.

    Raises:
        UserError: If a value is not a number, is not finite or is outside the limits.
    """
    limits = f"from {low:g} to {high:g}" if high < float("inf") else f"of {low:g} or more"
    limits = "that is finite" if low == -float("inf") and high == float("inf") else limits
    for name, value in values.items():
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if not all(
            each is None or (_is(each, Real) and low <= each <= high and abs(each) < float("inf")) for each in numbers
        ):
            raise UserError(f"{owner}.{name} is {value!r}: expected a number {limits}.")


def check_seed(owner: str, seed: Any) -> None:
    """Checks that a value is the seed of random numbers.

    Args:
        owner: Name of the function or class that takes the seed, for the error message.
        seed: Value of the argument.

    Raises:
        UserError: If the value is not an integer from 0 to 2**32 - 1.
    """
    if not _is(seed, Integral) or not 0 <= seed < 2**32:
        raise UserError(f"{owner}.seed is {seed!r}: expected an integer from 0 to 2**32 - 1.")


def check_names(argument: str, values: Any) -> None:
    """Checks that a value is a sequence of strings. A single string would otherwise count as a list of its letters.

    Args:
        argument: Name of the argument, for the error message.
        values: Value of the argument.

    Raises:
        UserError: If the value is a string, is not a sequence, or has an item that is not a string.
    """
    if isinstance(values, str):
        raise UserError(f"{argument} is the string {values!r}; expected a list of names. Write [{values!r}].")
    if not isinstance(values, Sequence):
        raise UserError(f"{argument} is {values!r}; expected a list of names. Write a list such as ['cat', 'dog'].")
    if other := [each for each in values if not isinstance(each, str)]:
        raise UserError(f"{argument} has the item {other[0]!r}; expected a string. Change {argument}.")


def check_object(name: str, value: Any, fits: bool, expected: str, example: str) -> None:
    """Checks that an argument is an object of the right kind, and not its class.

    Args:
        name: Name of the argument, such as "train.optimizer", for the error message.
        value: Value of the argument.
        fits: Whether the value is of the right kind.
        expected: Kind of object, such as "a Keras optimizer", for the error message.
        example: Expression for such an object, such as "SGD(0.01)", for the error message.

    Raises:
        UserError: If `fits` is False, or the value is a class.
    """
    if isinstance(value, type):
        raise UserError(
            f"{name} is the class {value.__name__}, not an object: expected {expected}. Write "
            f"{value.__name__}(...) (gin: @{value.__name__}())."
        )
    if not fits:
        text = repr(value)
        text = text if len(text) <= _MAX_SHOWN else f"an object of the class {type(value).__name__}"
        raise UserError(f"{name} is {text}: expected {expected}. Pass {example}.")


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)
