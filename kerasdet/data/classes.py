"""Reads lists of classes; selects, orders, renames and merges the classes of a dataset by name."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasdet.data.files import warn_of_encoding
from kerasdet.errors import UserError

Classes = Sequence[str] | Mapping[str, str | None]

_NUMBERED = re.compile(r"(\d+)(\s*[\s:,;=\t]\s*|[.)]\s+)\S")
# Lines of lists in Python and JSON, such as '"person",', and of CVAT's label maps, such as "person:128,2,3::"
_SYNTAX = (re.compile("([\"']).*\\1,?"), re.compile(r"[^:]*:\d+,\d+,\d+:[^:]*:[^:]*"))
_OTHER_SUFFIXES = (".json", ".yaml", ".yml", ".csv", ".tsv", ".pbtxt", ".xml")


def check_class_list(lines: Sequence[str], path: Path) -> None:
    """Checks that each line of a text file is a class name, without ids or the syntax of another format.

    Args:
        lines: Lines of the file, without empty lines.
        path: Path of the file, for error messages.

    Raises:
        UserError: If the lines start with ids, or the file is in another format.
    """
    warn_of_encoding(path)
    what, entries = None, [line for line in lines if not line.startswith("#")]
    if path.suffix.lower() in _OTHER_SUFFIXES:
        what = f"has the suffix {path.suffix}"
    elif numbered := next((part for part in (lines, lines[1:]) if _are_numbered(part)), None):  # line 1 may be a header
        what = f"begins its lines with class ids, such as {numbered[0]!r}"
    elif lines and (lines[0][0] in "[{" or lines[0].startswith("item {") or all(each[:2] == "- " for each in lines)):
        what = f"begins with {lines[0][:40]!r}"
    elif entries and any(all(map(syntax.fullmatch, entries)) for syntax in _SYNTAX):
        what = f"has more than names in its lines, such as {entries[0][:40]!r}"
    if what:
        raise UserError(
            f"{path} {what}; expected one class name per line, in the order of the class ids, without ids. Change "
            "the file."
        )


def _are_numbered(lines):
    """Returns whether all lines begin with a number, and the numbers are 0, 1, ... or 1, 2, ... in any order."""
    found = [_NUMBERED.match(line) for line in lines]
    numbers = sorted(int(match[1]) for match in found if match)
    return len(found) > 1 and all(found) and numbers in ([*range(len(found))], [*range(1, len(found) + 1)])


def select_classes(data: Mapping[str, Any], classes: Classes, source: str) -> dict[str, Any]:
    """Selects, orders, renames or merges the classes of a dataset. Images whose objects were all removed are kept.

    Example:
        >>> select_classes(data, ["dog", "cat"], "pets.json")  # only these two, in this order
        >>> select_classes(data, {"car": "vehicle", "bus": "vehicle", "sky": None}, "street.json")

    Args:
        data: Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. It is not changed.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names. In a
            mapping, None removes a class, equal new names merge classes, and classes that are not in the mapping are
            kept unchanged. The order of the classes does not change.
        source: Path or name of the dataset for error messages.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file with category ids 1..K.

    Raises:
        UserError: If `classes` is neither a list nor a mapping of names, the dataset lacks a named class, or no class
            is left.
    """
    old = sorted(data["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in old]
    _check_form(classes)
    for name in classes:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            hint = f"Did you mean {close[0]!r}?" if close else "Correct the name in classes."
            raise UserError(f"{source} has no class {name!r}; expected one of {', '.join(names[:20])}. {hint}")
    if isinstance(classes, Mapping):
        new_name = {name: classes.get(name, name) for name in names}
        new_name = {old_name: name and name.strip() for old_name, name in new_name.items()}
        new = list(dict.fromkeys(name for name in new_name.values() if name is not None))
    else:
        new = list(dict.fromkeys(classes))
        new_name = {name: name for name in new}
    if not new:
        raise UserError(
            f"{source}: classes={classes!r} leaves no class; expected at least one. Name one of "
            f"{', '.join(names[:20])}."
        )
    number = {name: index for index, name in enumerate(new, 1)}
    id_of = {category["id"]: number[new_name[category["name"]]] for category in old if new_name.get(category["name"])}
    details = {number[new_name[c["name"]]]: c for c in reversed(old) if new_name.get(c["name"])}
    return {
        **data,
        "categories": [{**details[index], "id": index, "name": name} for name, index in number.items()],
        "annotations": [
            {**annotation, "category_id": id_of[annotation["category_id"]]}
            for annotation in data["annotations"]
            if annotation["category_id"] in id_of
        ],
    }


def _check_form(classes):
    """Raises an error if `classes` is neither a list of names nor a mapping of names."""
    if isinstance(classes, str):
        raise UserError(
            f"classes is the string {classes!r}; expected a list of names, or a mapping from old to new names. Write "
            f"[{classes!r}]."
        )
    if not isinstance(classes, Mapping | Sequence):
        raise UserError(f"classes is {classes!r}; expected a list of names, or a mapping. Write ['cat', 'dog'].")
    if not isinstance(classes, Mapping):
        if twice := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
            raise UserError(f"classes has {twice[0]!r} twice; expected each name once. Remove one.")
        return
    for old, new in classes.items():
        if new is not None and not (isinstance(new, str) and new.strip()):
            raise UserError(
                f"classes maps {old!r} to {new!r}; expected the new name, or None to leave the class out. Change "
                "classes."
            )
