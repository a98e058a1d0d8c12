"""Names the parts of datasets: tools call the same part val, valid, validation or val2017."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kerasdet.data.values import Changes

Reader = Callable[[Changes], dict[str, Any]]  # reads one part into a dict in the form of a COCO file

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


def split_of(name: str, *folders: str) -> str:
    """Finds the split that the name of a file or of the folders around it tells.

    Example:
        >>> split_of("instances_val2017"), split_of("_annotations.coco", "valid"), split_of("labels", "my test")
        ('val', 'val', 'all')

    Args:
        name: Name of a file without suffix, of which one word may tell the split.
        folders: Names of folders, the innermost first. The whole name must tell the split.

    Returns:
        "train", "val", "test", "trainval", or "all" if no name tells a split.
    """
    words = [_ALIASES.get(word) for word in re.split(r"[^a-z]+", name.lower())]
    words = [*reversed(words), *(_ALIASES.get(folder.lower().rstrip("0123456789_-")) for folder in folders)]
    return next(filter(None, words), WHOLE)


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Groups files by the split that the folders between `root` and the file tell.

    If `root` has no such folders, its own name tells the split.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = reversed(file.relative_to(root).parts[:-1])
        groups.setdefault(split_of("", *folders, root.name), []).append(file)
    return groups
