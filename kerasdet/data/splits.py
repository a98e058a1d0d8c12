"""Recognises splits by their names: tools write val, valid, validation or val2017."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kerasdet.data.values import Changes

Reader = Callable[[Changes], dict[str, Any]]  # reads one split into a dict in the form of a COCO file

WHOLE = "all"  # name for all images of a dataset without splits
_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
    "minival": "val",
}


def split_of(name: str, *folders: str) -> str:
    """Derives a split from the name of a file, or from the names of its parent folders.

    Example:
        >>> split_of("instances_val2017"), split_of("_annotations.coco", "valid"), split_of("labels", "my test")
        ('val', 'val', 'all')

    Args:
        name: Name of a file without suffix. One word of it may be the name of a split.
        folders: Names of the parent folders, the innermost first. Only a folder whose whole name is that of a split
            counts, such as "valid", "val2017", or "obj_train_data" as CVAT writes it.

    Returns:
        "train", "val", "test" or "trainval"; "all" if no name contains a split.
    """
    words = [_ALIASES.get(word) for word in re.split(r"[^a-z]+", name.lower())]
    words = [*reversed(words), *map(_split_of_folder, folders)]
    return next(filter(None, words), WHOLE)


def words_without_split(name: str) -> tuple[str, ...]:
    """Returns the words of a file name that name no split.

    Example:
        >>> words_without_split("instances_val2017")
        ('instances',)

    Args:
        name: Name of a file without suffix.

    Returns:
        The words in lower case, without numbers.
    """
    return tuple(word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in _ALIASES)


def _split_of_folder(name):
    name = re.sub(r"^obj_(.+)_data$", r"\1", name.lower())
    return _ALIASES.get(name.rstrip("0123456789_-"))


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Groups files by split, according to the folders between `root` and the file.

    If no folder between `root` and the file names a split, the name of `root` is used.

    Args:
        files: Paths of the files, inside `root`.
        root: Folder of the dataset.

    Returns:
        A dict from split name to the paths of its files.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = reversed(file.relative_to(root).parts[:-1])
        groups.setdefault(split_of("", *folders, root.name), []).append(file)
    return groups
