"""Reads the class names that users pass for a checkpoint."""

import os
from collections.abc import Sequence

from kerasdet.data.categories import UNUSED
from kerasdet.data.classes import check_class_list
from kerasdet.errors import UserError
from kerasdet.paths import expand


def read_labels(path: str | os.PathLike) -> list[str]:
    """Reads a text file with one class name per line.

    Args:
        path: Path of the file, in UTF-8. Empty lines at the end are skipped. Unused class ids have the name ``N/A``.

    Returns:
        The class names in the order of the lines.

    Raises:
        OSError: If the file cannot be read.
        UserError: If the file is not text in UTF-8, has no names or an empty line between names, has class ids before
            the names, or contains a name other than ``N/A`` twice.
    """
    path = expand(path, "--labels")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not a text file in UTF-8: expected one class name per line. Save it as text in UTF-8."
        ) from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    check_class_list([name for name in names if name], path)
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(
                f"{path}, line {number}: the line is empty; expected a class name. Write {UNUSED} for an unused class "
                "id."
            )
        if name != UNUSED and name in names[: number - 1]:
            raise UserError(
                f"{path}, line {number}: the name {name!r} is also in line {names.index(name) + 1}; expected "
                "different names. Change one of these lines."
            )
    return names


def names_of_classes(labels: Sequence[str], num_classes: int, path: str | os.PathLike) -> tuple[str, ...]:
    """Removes the name of the background from a list of class names, and checks the number of names.

    torchvision's own lists begin with ``__background__``, because torchvision counts the background as class 0.

    Args:
        labels: Result of `read_labels`. A first name ``__background__`` is removed, and a first name such as
            ``background`` if there are K + 1 names.
        num_classes: Number of classes K, without background.
        path: Path of the file, for the error message.

    Returns:
        Names of the K classes, in the order of the class ids.

    Raises:
        UserError: If the number of names is not K.
    """
    names = list(labels)
    is_extra = len(names) == num_classes + 1 and names[0].strip("_").lower() == "background"
    if names[0] == "__background__" or is_extra:
        del names[0]
    if len(names) != num_classes:
        raise UserError(
            f"{path} has {len(names)} class names{' after __background__' * (len(names) < len(labels))}, but the model "
            f"has {num_classes} classes: expected one name for each class. Write them in the order of the class ids, "
            f"with {UNUSED} for unused ids."
        )
    return tuple(names)
