"""Recognises the splits of datasets by their names: tools write val, valid, validation or val2017."""

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
    """Derives a split from the name of a file, or of the folders around it.

    Example:
        >>> split_of("instances_val2017"), split_of("_annotations.coco", "valid"), split_of("labels", "my test")
        ('val', 'val', 'all')

    Args:
        name: Name of a file without suffix. One word in it may name the split.
        folders: Names of the folders around the file, the innermost first. The whole name must name the split.

    Returns:
        "train", "val", "test" or "trainval"; "all" if no name contains a split.
    """
    words = [_ALIASES.get(word) for word in re.split(r"[^a-z]+", name.lower())]
    words = [*reversed(words), *(_ALIASES.get(folder.lower().rstrip("0123456789_-")) for folder in folders)]
    return next(filter(None, words), WHOLE)


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Groups files by the split that the folders between `root` and the file name.

    If `root` has no such folders, its own name decides.

    Args:
        files: Paths of the files, inside `root`.
        root: Folder of the dataset.

    Returns:
        Split name -> paths.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = reversed(file.relative_to(root).parts[:-1])
        groups.setdefault(split_of("", *folders, root.name), []).append(file)
    return groups
