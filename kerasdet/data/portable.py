"""Defines `Part`, a split of a dataset with checked values: the input of the writers of all formats."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from kerasdet.data.annotations import name_of, read_contents
from kerasdet.data.dataset import Dataset, read_runs
from kerasdet.data.images import SUFFIXES
from kerasdet.data.records import Record
from kerasdet.data.segmentation import box_of
from kerasdet.data.values import Changes, as_float, as_floats

_SURROGATE = "[\ud800-\udfff]"  # stands for a byte of a file name that is not valid UTF-8
_OWN_KEYS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints"}
_OWN_KEYS |= {"difficult", "isgroupof", "IsGroupOf", "name"}  # the flags of groups are also under `is_group_of`
_SUFFIX_OF = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"BM": ".bmp",
    b"GI": ".gif",
    b"RI": ".webp",
    b"II": ".tif",
    b"MM": ".tif",
}


@dataclasses.dataclass(frozen=True)
class Item:
    """Holds an image and its objects.

    Args:
        record: Record of the image: its size and how to read it.
        name: Name of the image file, unique in the dataset and without folders.
        annotations: COCO annotations of the image with checked values. Boxes lie inside the image.
    """

    record: Record
    name: str
    annotations: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        """Writes the image file without changing its bytes.

        Args:
            path: Path of the new file.
        """
        path.write_bytes(self.record.encoded())


@dataclasses.dataclass(frozen=True)
class Part:
    """Holds a split of a dataset.

    Args:
        name: Name of the split.
        items: Images with their objects.
        categories: COCO categories with an int `id` and a str `name`, by ascending id.
        counts: Numbers of repaired and dropped values, by kind.
    """

    name: str
    items: list[Item]
    categories: list[dict[str, Any]]
    counts: Mapping[str, int]


def make_part(
    name: str,
    data: Mapping[str, Any],
    source: str,
    taken: set[str],
    changes: Changes,
    *,
    on_bad_image: str = "error",
    strict: bool = False,
) -> Part:
    """Checks a split of a dataset and chooses unique names for its images.

    Args:
        name: Name of the split.
        data: Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file with full paths of
            the images.
        source: Path of the dataset for error messages.
        taken: Names of the images of other splits. The function adds the names of this split to the set.
        changes: Repairs that the reader of the format made. The function logs and counts them.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.

    Returns:
        The checked split.

    Raises:
        UserError: If a value or an image is invalid.
    """
    categories = data.get("categories") or ()  # which `Dataset` checks
    keypoints = any(isinstance(category, Mapping) and category.get("keypoints") for category in categories)
    dataset = Dataset(data, None, source=source, on_bad_image=on_bad_image, keypoints=keypoints, strict=strict)
    contents = read_contents(data, source, masks=True, keypoints=keypoints, strict=strict)
    changes.merge(contents.changes.without(dataset.counts))  # `dataset` has logged and counted all but those of masks
    sizes = {record.image_id: (record.height, record.width) for record in dataset.records}
    annotations = [annotation for annotation in contents.annotations if annotation["image_id"] in sizes]
    of_image: dict[int, list] = {}
    for annotation, runs in zip(annotations, read_runs(annotations, sizes, source), strict=True):
        if annotation["segmentation"] and not len(runs) and not _fits_box(annotation):
            changes.add("empty_masks", name_of(annotation), "has a mask that covers no pixel of its image")
            annotation = {**annotation, "segmentation": None}
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    items = []
    for record in dataset.records:
        clean = [clip(annotation, record.height, record.width) for annotation in of_image.get(record.image_id, [])]
        file_name = _name(record, taken, changes)
        items.append(Item(record, file_name, [annotation for annotation in clean if annotation is not None]))
    dataset.add_changes(changes)
    return Part(name, items, contents.categories, dataset.counts)


def _fits_box(annotation):
    """Returns whether a mask is as large as its box within a pixel; masks of tiny objects may cover no pixel."""
    return np.allclose(box_of(annotation["segmentation"]), annotation["bbox"], rtol=0, atol=1)


def clip(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any] | None:
    """Clips the box of an annotation to its image.

    Args:
        annotation: COCO annotation with `bbox` as [x, y, width, height] in pixels. It is not changed.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The annotation with a clipped box, or None if the box has no area left.
    """
    x, y, w, h = annotation["bbox"]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if not (w > 0 and h > 0 and x1 < x2 and y1 < y2):
        return None
    inside = (x1, y1) == (x, y) and (x2, y2) == (x + w, y + h)
    return {**annotation, "bbox": [x, y, w, h] if inside else [x1, y1, x2 - x1, y2 - y1]}


def further_values(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the values that only COCO files store: `is_group_of` and what `extra_annotation_keys` can read.

    Args:
        annotation: COCO annotation with checked values.

    Returns:
        A dict of numbers and lists of numbers by key.
    """
    return {
        key: value
        for key, value in annotation.items()
        if key not in _OWN_KEYS
        and (isinstance(value, bool) or as_float(value) is not None or as_floats(value) is not None)
    }


def _name(record, taken, changes):
    """Returns a name for an image file that no other image has, even where the file system ignores case."""
    name = PureWindowsPath(record.path.rpartition(":")[2] if record.content else record.path).name
    stem, dot, suffix = name.rpartition(".")
    if not dot or f".{suffix.lower()}" not in SUFFIXES:
        stem, suffix = name, _SUFFIX_OF.get(record.encoded()[:2], ".jpg")[1:]
    stem = re.sub(_SURROGATE, "_", stem.lstrip(".")) or "image"  # readers skip hidden files
    number, unique = 1, stem
    while unique.casefold() in taken:  # label files have the name without suffix
        number += 1
        unique = f"{stem}_{number}"
    taken.add(unique.casefold())
    if re.search(_SURROGATE, name):
        changes.note("undecodable_names", record.path, f"is written as {unique}.{suffix}")
    elif number > 1:
        changes.note("renamed_images", record.path, f"is written as {unique}.{suffix}")
    return f"{unique}.{suffix}"
