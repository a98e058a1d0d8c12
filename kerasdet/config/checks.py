"""Finds mistakes in configurations that gin does not report: settings without effect, and values of the wrong type.

A "part" is a class or function with gin's scope: ``@train/CocoDataset()`` calls CocoDataset in the scope "train". The
parts to which its arguments refer are called in the same scope.
"""

import collections
import collections.abc
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasdet.errors import UserError

Part = tuple[str, str]  # (scope, name) of a class or function; the name of a macro begins with %

_SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
_MAX_CLASSES = 3  # largest number of classes that a message proposes
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, tuple, list)


def used_parts(references: Mapping[Part, Collection[Part]], roots: Collection[str]) -> set[Part]:
    """Finds the gin configurables and macros that a configuration uses, with the scopes that they are called in.

    Args:
        references: Maps each part, a pair (scope, name) of a gin configurable or macro, to the parts to which its
            bindings refer. A reference without a scope has the scope "".
        roots: Names of the parts that are called first, such as "train".

    Returns:
        The parts that are used, pairs (scope, name).
    """
    return _reach(references, [("", name) for name in roots])


def _reach(references, parts):
    """Returns parts with all parts that they use."""
    used: set[Part] = set()
    todo = list(parts)
    while todo:
        part = todo.pop()
        if part not in used:
            used.add(part)
            todo += _inner(references, part)
    return used


def _inner(references, part) -> Iterator[Part]:
    """Yields the parts to which the arguments of a part refer."""
    scope, name = part
    for prefix in _prefixes(scope):
        for other, target in references.get((prefix, name), ()):
            # gin evaluates the value of a macro in a scope of its name
            yield target[1:] if target.startswith("%") else other or scope, target


def _prefixes(scope):
    words = scope.split("/") if scope else []
    return ["/".join(words[:length]) for length in range(len(words) + 1)]


def has_effect(target: str, used: Collection[Part]) -> bool:
    """Tells whether the configuration uses the macro or the gin configurable that a binding sets.

    Args:
        target: Left side of a binding, such as "train/CocoDataset.masks" or "LR".
        used: Result of `used_parts`.

    Returns:
        True if the binding has an effect.
    """
    scope, _, name = part_of(target).rpartition("/")
    if name.startswith("%"):
        return any(name == other for _, other in used)
    return any(name == other and scope in _prefixes(inner) for inner, other in used)


def part_of(target: str) -> str:
    """Returns the gin configurable or macro that a binding sets.

    Args:
        target: Left side of a binding, such as "train/CocoDataset.masks" or "LR".

    Returns:
        The configurable with its scope, such as "train/CocoDataset"; for a macro its name, such as "%LR".
    """
    scope, slash, name = target.rpartition("/")
    if "." not in name:
        return f"%{name}"
    return f"{scope}{slash}{name.rpartition('.')[0].rpartition('.')[2]}"


def targets(text: str) -> list[str]:
    """Lists the left sides of the bindings in a gin file, without those in included files.

    Args:
        text: Contents of the file.

    Returns:
        Names such as "train/CocoDataset.masks" and "LR", in the order of the file.
    """
    return re.findall(r"^([A-Za-z_][\w./]*)\s*=", text, re.MULTILINE)


def check_text(text: str, path: Path) -> None:
    """Checks that the contents of a file can be a gin configuration, and that each binding has one value.

    Args:
        text: Contents of the file.
        path: Path of the file, for the error message.

    Raises:
        UserError: If the file is empty or JSON, or a binding has no value or two.
    """
    if not re.sub(r"#.*", "", text).strip():
        raise UserError(
            f"{path}: the file is empty: expected a gin configuration. Write settings into it, such as "
            "include 'finetune.gin'."
        )
    if text.lstrip().startswith(("{", "[")):
        raise UserError(
            f"{path}: the file is JSON, not a gin configuration. Pass a recipe such as finetune; if the file "
            "describes a dataset, pass it with --data."
        )
    place: dict[str, int] = {}
    lines = [*text.splitlines(), ""]
    for number, (line, following) in enumerate(itertools.pairwise(lines), 1):
        found = re.match(r"([A-Za-z_][\w./]*)\s*=\s*(#.*)?$", line)
        if found and not following.startswith((" ", "\t")):
            raise UserError(f"{path}: line {number}: {found[1]} has no value. Write a value after the =.")
        for target in targets(line):
            if (first := place.setdefault(target, number)) != number:
                raise UserError(
                    f"{path}: lines {first} and {number} both set {target}: expected one value. Delete one line."
                )


def check_includes(path: Path, find: Callable[[str], str | None], read: Callable[[str], str]) -> None:
    """Checks that all files that a gin file includes exist, and that no file includes itself.

    Args:
        path: Path of the gin file.
        find: Function that takes the name of an included file and returns its path, or None if there is no such file.
        read: Function that takes a path and returns the contents of the file.

    Raises:
        UserError: If an included file does not exist, or a file includes itself, also through other files.
    """

    def follow(file, outer):
        for number, line in enumerate(read(file).splitlines(), 1):
            name = _include(line)
            inner = find(name) if name else None
            if name and inner is None:
                raise UserError(
                    f"{path}: line {number} of {file} includes {name}, but there is no such file: expected a file "
                    f"beside {path.name}, or one of kerasdet such as finetune.gin. Correct the name."
                )
            if name and os.path.realpath(inner) in outer:
                raise UserError(
                    f"{path}: line {number} of {file} includes {name}, which includes this file again: expected "
                    "includes without a circle. Delete the line."
                )
            if name:
                follow(inner, {*outer, os.path.realpath(inner)})

    follow(path, {os.path.realpath(path)})


def check_circles(references: Mapping[Part, Collection[Part]], path: Path) -> None:
    """Checks that no macro, class or function refers to itself, directly or through others.

    Args:
        references: Maps each part to the parts to which its bindings refer, as for `used_parts`.
        path: Path of the gin file, for the error message.

    Raises:
        UserError: If a macro, class or function depends on itself.
    """
    for part in sorted(_reach(references, references)):
        if circle := _circle(references, part):
            names = [name.removeprefix("%") for _, name in circle]
            raise UserError(
                f"{path}: {names[0]} depends on itself ({' -> '.join(names)}): expected values that do not lead "
                f"back to {names[0]}. Change one of these references, in this file, in an included file or in --set."
            )


def _circle(references, part):
    """Returns the parts of the shortest path from a part back to itself, or None if no path leads back."""
    paths, seen = collections.deque([[part]]), set()
    while paths:
        path = paths.popleft()
        for inner in sorted(_inner(references, path[-1])):
            if inner == part:
                return [*path, part]
            if inner not in seen:
                seen.add(inner)
                paths.append([*path, inner])
    return None


def check_order(text: str, read: Callable[[str], str], path: Path) -> None:
    """Checks that no later `include` overwrites a binding of a gin file.

    Args:
        text: Contents of the file.
        read: Function that takes the name of an included file and returns its contents.
        path: Path of the file, for the error message.

    Raises:
        UserError: If an `include` overwrites a binding above it.
    """
    own: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"([A-Za-z_][\w./]*)\s*=", line):
            own[found[1]] = number
        elif name := _include(line):
            lost = own.keys() & set(_all_targets(name, read))
            for target in sorted(lost, key=own.get):
                raise UserError(
                    f"{path}: line {own[target]} sets {target}, and the include in line {number} sets {target} "
                    f"again: expected includes first. Move line {own[target]} below the includes."
                )


def _include(line):
    found = re.match(r"include\s+(['\"])(.+)\1", line)
    return found and found[2]


def _all_targets(name, read) -> Iterator[str]:
    text = read(name)
    yield from targets(text)
    for line in text.splitlines():
        if other := _include(line):
            yield from _all_targets(other, read)


def check_type(
    name: str, value: Any, item: Callable, argument: str, configurables: Mapping[str, Callable] | None = None
) -> None:
    """Checks that a value has the annotated type of an argument.

    The function checks numbers, strings and sequences. It also rejects a number or string in the place of an object of
    Keras or kerasdet.

    Args:
        name: Name of the binding, for the error message.
        value: Value to check. Objects that are not created yet appear as "@Name()" in the error message.
        item: Class or function that has the argument.
        argument: Name of the argument.
        configurables: Classes and functions by name, from which the error message proposes classes.

    Raises:
        UserError: If the value has another type, such as the string "false" for a bool.
    """
    kinds = _kinds(item, argument)
    if value is None or not kinds:
        return
    if all(kind in _SEQUENCES for kind in kinds):
        is_object = repr(value).startswith("@") and repr(value)[1:2].isupper()  # functions may return lists
        if is_object or isinstance(value, str | int | float):
            text = _called(repr(value))
            length = _length(item, argument)
            expected = f"{length} values. Write ({', '.join([text] * length)})" if length else f"a list. Write [{text}]"
            raise UserError(f"{name} is {value!r}: expected {expected}.")
        return
    if isinstance(value, str | int | float) and all(map(_is_part, kinds)):
        fitting = [f"@{key}()" for key, each in (configurables or {}).items() if _is_subclass(each, kinds)]
        # every model and backbone is a keras.Model: among many classes, most do not fit
        example = f", such as {' or '.join(fitting)}" if 0 < len(fitting) <= _MAX_CLASSES else ""
        raise UserError(f"{name} is {value!r}: expected an object{example}. Write @Name() with the name of the class.")
    if not all(kind in _SCALARS for kind in kinds) or repr(value).startswith(("@", "%")):
        return
    allowed = {*kinds} | ({int} if float in kinds else set())
    is_flag = kinds == {bool} and type(value) is int and value in (0, 1)
    if type(value) not in allowed and not is_flag:
        expected = " or ".join(text for kind, text in _SCALARS.items() if kind in kinds)
        raise UserError(f"{name} is {value!r}: expected {expected}. Change the value.")


def check_called(name: str, value: Any, references: Sequence[Any], item: Callable, argument: str) -> None:
    """Checks that a value contains objects and not their classes: @AdamW() and not @AdamW.

    Args:
        name: Name of the binding, for the error message.
        value: The value, for the error message.
        references: The gin references in the value, such as @AdamW; these are checked.
        item: Class or function that has the argument.
        argument: Name of the argument.

    Raises:
        UserError: If the value contains a class, but the argument does not take classes.
    """
    takes_classes = {type, collections.abc.Callable} & _kinds(item, argument)
    for reference in references:
        if not reference.evaluate and isinstance(reference.configurable.wrapped, type) and not takes_classes:
            is_list = isinstance(value, list | tuple)
            raise UserError(
                f"{name} {'has' if is_list else 'is'} {reference!r}, a class: expected an object. Write "
                f"{_called(repr(reference))}."
            )


def _called(text):
    """Appends the parentheses that make an object to a reference to a class, such as "@AdamW"."""
    is_class = text.startswith("@") and text.rpartition("/")[2].lstrip("@")[:1].isupper() and not text.endswith(")")
    return f"{text}()" if is_class else text


def _is_part(kind):
    return isinstance(kind, type) and kind.__module__.split(".")[0] in ("keras", "kerasdet")


def _is_subclass(item, kinds):
    return isinstance(item, type) and issubclass(item, tuple(kinds))


def _length(item, argument):
    """Returns the number of values of an argument that is annotated as a tuple such as tuple[int, int], or None."""
    for part in _annotated(item, argument):
        if typing.get_origin(part) is tuple and ... not in typing.get_args(part):
            return len(typing.get_args(part))
    return None


def _kinds(item, argument):
    """Returns the annotated types of an argument, without None; the empty set if they are unknown."""
    kinds = {typing.get_origin(part) or part for part in _annotated(item, argument)} - {type(None)}
    return set() if kinds & {Path, os.PathLike} else kinds  # `kerasdet.paths.expand` checks paths


def _annotated(item, argument):
    """Returns the annotated types of an argument with their own arguments; empty if they are unknown."""
    owners = [base.__init__ for base in item.__mro__ if "__init__" in vars(base)] if isinstance(item, type) else [item]
    for owner in owners:
        parameter = inspect.signature(owner).parameters.get(argument)
        if parameter is None:
            continue
        annotation = parameter.annotation
        if annotation is parameter.empty:
            return (bool,) if isinstance(parameter.default, bool) else ()
        is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        return typing.get_args(annotation) if is_union else (annotation,)
    return ()
