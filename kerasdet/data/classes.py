"""Selects, orders, renames and merges the classes of a dataset by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from kerasdet.errors import UserError

Classes = Sequence[str] | Mapping[str, str | None]


def select_classes(data: Mapping[str, Any], classes: Classes, source: str) -> dict[str, Any]:
    """Selects, orders, renames or merges the classes of a dataset. All images stay, also those without objects left.

    Example:
        >>> select_classes(data, ["dog", "cat"], "pets.json")  # only these two, in this order
        >>> select_classes(data, {"car": "vehicle", "bus": "vehicle", "sky": None}, "street.json")

    Args:
        data: Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. It is not changed.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names. In a
            mapping, None removes a class, equal new names merge classes, and classes that it lacks stay as they are.
        source: Path or name of the dataset for error messages.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file with category ids 1..K.

    Raises:
        UserError: If the dataset lacks a named class, or no class is left.
    """
    old = sorted(data["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in old]
    if isinstance(classes, str):
        raise UserError(
            f"classes is the text {classes!r}; expected a list of names, or a mapping from old to new names. Write "
            f"[{classes!r}]."
        )
    for name in classes:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            hint = f"Did you mean {close[0]!r}?" if close else "Correct the name in classes."
            raise UserError(f"{source} has no class {name!r}; expected one of {', '.join(names[:20])}. {hint}")
    if isinstance(classes, Mapping):
        new_name = {name: classes.get(name, name) for name in names}
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
