"""Reads the values of macros and checks them."""

import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gin

from kerasdet.config.checks import Part
from kerasdet.errors import UserError

OPTIONAL = {"DETERMINISTIC": False, "STRATEGY": "one_device"}  # defaults of macros that a file may leave out
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_OF_FOLDER = ("DATA", "CLASSES", "TRAIN_SPLIT", "EVAL_SPLIT")  # macros of gin_configs/dataset/folder.gin
# Macros that kerasdet reads itself, so that they have an effect even if no binding refers to them
READ_BY_KERASDET = (*OPTIONAL, "DATA", "CLASSES", "NUM_CLASSES", "PRECISION", "SEED")
WHOLE_NUMBERS = ("BATCH_SIZE", "LONGEST_EDGE", "NUM_CLASSES", "SHORTEST_EDGE", "STEPS")


def macro(name: str) -> Any:
    """Returns the value of a macro of the current configuration.

    Args:
        name: Name of the macro, such as "BATCH_SIZE".

    Returns:
        The value of the macro, or its default in `OPTIONAL` if the configuration does not set it.

    Raises:
        ValueError: If the configuration does not set the macro, and it has no default.
    """
    try:
        return gin.query_parameter(f"%{name}")
    except ValueError:
        if name in OPTIONAL:
            return OPTIONAL[name]
        raise


def is_set(name: str) -> bool:
    """Tells whether a macro of the configuration has a value other than %gin.REQUIRED.

    Args:
        name: Name of the macro.

    Returns:
        False if the value is still %gin.REQUIRED.

    Raises:
        ValueError: If the configuration does not set the macro, and it has no default.
    """
    return "gin.REQUIRED" not in repr(macro(name))


def has_value(name: str) -> bool:
    """Returns whether the configuration has a macro of this name, with a value other than None.

    Args:
        name: Name that may be a macro.

    Returns:
        True if the macro has a value.
    """
    try:
        return macro(name) is not None
    except ValueError:
        return False


def require_macro(name: str) -> None:
    """Checks that the configuration has a macro.

    Args:
        name: Name of the macro.

    Raises:
        UserError: If there is no such macro.
    """
    try:
        macro(name)
    except ValueError:
        near = difflib.get_close_matches(name.upper(), used_macros(), 1)
        meant = f"did you mean {near[0]}? Otherwise " if near else ""
        if "STEPS" not in used_macros():
            meant = "include a recipe that has it, such as include 'finetune.gin', or "
        raise UserError(
            f"the configuration has no macro {name}: {meant}set a macro of the file, or an argument as "
            "Name.argument=value."
        ) from None


def used_macros() -> list[str]:
    """Lists the macros that the bindings of the configuration or kerasdet itself refer to.

    Returns:
        Names in alphabetical order.
    """
    found = {name[1:] for names in find_references().values() for _, name in names if name.startswith("%")}
    return sorted(found | {"PRECISION", "SEED", *OPTIONAL})


def find_references() -> dict[Part, list[Part]]:
    """Finds the classes, functions and macros to which the bindings of the current configuration refer.

    Returns:
        Maps each part to the parts to which its bindings refer, in the form that `kerasdet.config.checks.used_parts`
        takes.
    """
    references = {}
    for (scope, selector), values in gin.config._CONFIG.items():
        part = ("", f"%{scope}") if selector == "gin.macro" else (scope, selector.rpartition(".")[2])
        references[part] = [
            ("", f"%{'/'.join(each.scopes)}")
            if each.configurable.selector == "gin.macro"
            else ("/".join(each.scopes), each.configurable.selector.rpartition(".")[2])
            for each in gin.config.iterate_references(values)
        ]
    return references


def check_own_macros(text: str, used: Collection[str]) -> None:
    """Rejects macros that a file sets but nothing uses, because a misspelt macro would have no effect.

    Args:
        text: Contents of the file.
        used: Names of the macros that are used.

    Raises:
        UserError: If a macro is never used.
    """
    for name in re.findall(r"^(\w+)\s*=", text, re.MULTILINE):
        if name not in used:
            hint = "pass --data, include 'dataset/folder.gin'" if name in _OF_FOLDER else "correct its name"
            raise UserError(f"the macro {name} is set but never used: {hint}, or delete the line.")


def check_macros(path: Path) -> None:
    """Checks that all used macros have valid values.

    Args:
        path: Path of the file, for the error message.

    Raises:
        UserError: If a macro has no value or an invalid one.
    """
    missing = []
    for name in used_macros():
        try:
            value = macro(name)
        except ValueError:
            raise UserError(
                f"{path}: the macro {name} is used but never set: add a line {name} = ..., or correct the name."
            ) from None
        if "gin.REQUIRED" in repr(value) or value is gin.REQUIRED:
            missing.append(name)
        elif isinstance(value, gin.config.ConfigurableReference):
            continue
        elif requirement := _violated_requirement(name, value):
            raise UserError(f"{path}: {name} is {value!r}: expected {requirement}.")
    if missing:
        settings = " ".join(f"--set {name}=..." for name in missing)
        hint = " --data DATA sets NUM_CLASSES and the annotations." if "TRAIN_ANNOTATIONS" in missing else ""
        if "CHECKPOINT" in missing:
            hint += " CHECKPOINT is a name that `kerasdet zoo` lists, a run or a .keras file."
        raise UserError(f"{path}: {', '.join(missing)} must be set: add {settings} or lines in the file.{hint}")


def _violated_requirement(name, value):
    """Returns the requirement that the value of a macro violates, or None if it is valid."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in WHOLE_NUMBERS and not (is_number and isinstance(value, int) and value >= 1):
        return "a positive integer"
    if name == "SEED" and not (is_number and isinstance(value, int) and 0 <= value < 2**32):
        return "an integer from 0 to 2**32 - 1"
    if name == "LR" and not (is_number and 0 < value < math.inf):
        return "a number above 0"
    if name == "DETERMINISTIC" and not isinstance(value, bool):
        return "True or False"
    if name == "PRECISION" and value not in PRECISIONS:
        return f"one of {', '.join(PRECISIONS)}"
    return None
