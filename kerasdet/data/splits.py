"""Names the parts of datasets: tools call the same part val, valid, validation or val2017."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kerasdet.data.values import Changes

Reader = Callable[[Changes], dict[str, Any]]  # reads one part into the contents of a COCO file

WHOLE = "all"  # the part of a dataset that is not split
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


def split_of(*names: str) -> str:
    """Finds the split that names of files and folders tell.

    Example:
        >>> split_of("instances_val2017"), split_of("_annotations.coco", "valid"), split_of("labels")
        ('val', 'val', 'all')

    Args:
        names: Names, the most telling first.

    Returns:
        "train", "val", "test", "trainval", or "all" if no name tells a split.
    """
    for name in names:
        words = [_ALIASES.get(word) for word in re.split(r"[^a-z]+", name.lower())]
        if found := next(filter(None, reversed(words)), None):
            return found
    return WHOLE


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Groups files by the split that the folders between `root` and the file tell.

    If `root` has no such folders, its own name tells the split.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = reversed(file.relative_to(root).parts[:-1])
        groups.setdefault(split_of(*folders, root.name), []).append(file)
    return groups
