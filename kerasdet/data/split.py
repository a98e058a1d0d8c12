"""Splits a dataset into parts with the same mix of classes; near duplicates stay in the same part."""

import dataclasses
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np

from kerasdet.arguments import check_seed
from kerasdet.data.classes import Classes
from kerasdet.data.convert import check_format, empty_folder, read_parts, write_parts, writing_folder
from kerasdet.data.duplicates import fingerprints, near_duplicates
from kerasdet.data.portable import Item, Part
from kerasdet.data.recognise import recognise
from kerasdet.data.splits import WHOLE, split_of
from kerasdet.errors import UserError

_logger = logging.getLogger("kerasdet.data")


def split(
    source: str | os.PathLike,
    target: str | os.PathLike,
    parts: Mapping[str, float],
    *,
    to: str = "coco",
    seed: int = 0,
    classes: Classes | None = None,
    on_bad_image: str = "error",
    strict: bool = False,
) -> dict[str, Counter]:
    """Splits a dataset into parts, and writes the parts with a copy of the images.

    Each part gets its share of every class and of the images, as closely as possible (iterative stratification,
    Sechidis et al., 2011). Near duplicates, such as frames of a video, stay in the same part, so that evaluation does
    not see training images. If the source is already split, its splits are joined first.

    Example:
        >>> split("downloads/cells", "data/cells", {"train": 0.8, "val": 0.2})

    Args:
        source: A folder, or the file that describes the dataset, such as `data.yaml` or COCO's JSON.
        target: Folder to write to; it must be empty or not exist.
        parts: Maps the name of each part, such as "train", to its share of the images. The shares sum to 1.
        to: Format to write: "coco", "tfrecord", "voc" or "yolo".
        seed: Seed of the order in which images are assigned to parts, in 0..2**32-1.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.

    Returns:
        A dict from part name to counts: "images", and "boxes of NAME" for each class. The key "lost" holds the counts
        of values that the new format cannot store. The key "all" holds "near_duplicates", the number of images that
        have a near duplicate.

    Raises:
        FileNotFoundError: If the source does not exist.
        UserError: If the shares do not sum to 1, there are fewer images than parts, the seed is out of range, the
            target is not empty, the format is unknown, or an item is invalid.
        OSError: If the target cannot be written. Nothing stays in it.
    """
    check_shares(parts)
    check_seed("split", seed)
    folder = empty_folder(target, source)
    check_format(to)
    with writing_folder(folder):
        whole = read_parts(recognise(source), classes, on_bad_image, strict)
        made, duplicates = _divide(whole, parts, seed, source)
        return {**write_parts(made, folder, to), "all": Counter({"near_duplicates": duplicates})}


def _divide(whole, shares, seed, source):
    """Divides the images of all splits into new parts; returns these and the number of near duplicates."""
    items = _with_unique_ids(_without_repeats([item for part in whole for item in part.items]))
    duplicates = near_duplicates(fingerprints([item.record for item in items]))
    category_ids = [category["id"] for category in whole[0].categories]
    table = np.array([_class_counts(item, category_ids) for item in items]).reshape(-1, len(category_ids))
    owners = assign(table, duplicates, list(shares.values()), seed)
    if missing := [name for index, name in enumerate(shares) if index not in owners]:
        raise UserError(
            f"The part {missing[0]} gets none of the {len(items)} images in {source}"
            f"{' (near duplicates stay together)' if duplicates else ''}; expected at least one image for each "
            "part. Give the part a larger share, or add images."
        )
    made = []
    for index, name in enumerate(shares):
        own = [item for item, owner in zip(items, owners, strict=True) if owner == index]
        totals = table[owners == index].sum(0)
        classes_of = {f"boxes of {c['name']}": int(n) for c, n in zip(whole[0].categories, totals, strict=True)}
        made.append(Part(name, own, whole[0].categories, Counter({"images": len(own), **classes_of})))
    return made, sum(map(len, duplicates))


def check_shares(parts: Mapping[str, float]) -> None:
    """Checks that shares are positive and sum to 1.

    Args:
        parts: Maps the name of each part to its share.

    Raises:
        UserError: If `parts` is not such a mapping, a share is not positive, the sum is not 1, or two names mean the
            same split ("val" and "valid").
    """
    if not isinstance(parts, Mapping) or not all(isinstance(share, Real) for share in parts.values()):
        raise UserError(
            f"The parts are {parts!r}; expected a share for each name. Write a dict such as "
            "{'train': 0.8, 'val': 0.2}."
        )
    for name, other in itertools.combinations(parts, 2):
        if split_of(name) == split_of(other) != WHOLE:
            raise UserError(
                f"The names {name} and {other} mean the same split; expected different splits. Rename the part {other}."
            )
    total = sum(parts.values())
    if not parts or min(parts.values()) <= 0 or not math.isclose(total, 1, abs_tol=1e-6):
        listed = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(
            f"The shares {listed} sum to {total:g}; expected positive numbers that sum to 1. Correct the shares."
        )


def _without_repeats(items):
    """Drops images that several splits hold with the same objects, such as VOC's trainval and train."""
    unique = {}
    for item in items:
        objects = sorted((each["category_id"], *each["bbox"]) for each in item.annotations)
        unique.setdefault((item.record.path, item.record.content, str(objects)), item)
    if len(unique) < len(items):
        _logger.info("%d images are in several splits, and count once", len(items) - len(unique))
    return list(unique.values())


def _with_unique_ids(items: Sequence[Item]) -> list[Item]:
    """Renumbers the images if two joined splits use the same id."""
    if len({item.record.image_id for item in items}) == len(items):
        return list(items)
    renumbered = []
    for number, item in enumerate(items, 1):
        annotations = [{**annotation, "image_id": number} for annotation in item.annotations]
        record = dataclasses.replace(item.record, image_id=number)
        renumbered.append(dataclasses.replace(item, record=record, annotations=annotations))
    return renumbered


def _class_counts(item, category_ids):
    found = Counter(annotation["category_id"] for annotation in item.annotations)
    return [found[category_id] for category_id in category_ids]


def assign(table: np.ndarray, groups: Sequence[Sequence[int]], shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Assigns images to parts by iterative stratification.

    Args:
        table: Number of objects of each of K classes in each of N images, (N, K).
        groups: Lists of indices of images that must stay together.
        shares: Share of each part. The shares sum to 1.
        seed: Seed of the order of images.

    Returns:
        The index of the part of each image, (N,).
    """
    grouped = {index for group in groups for index in group}
    units = [list(group) for group in groups] + [[index] for index in range(len(table)) if index not in grouped]
    order = np.random.default_rng(seed).permutation(len(units))
    units = sorted((units[i] for i in order), key=len, reverse=True)  # large groups first, while all parts have room
    # The last column counts images, so that images without objects are divided as well
    counts = np.array([[*table[unit].sum(0), len(unit)] for unit in units], np.float64).reshape(len(units), -1)
    wanted = np.array(shares)[:, None] * counts.sum(0)  # (parts, K + 1)
    owners, left = np.zeros(len(table), int), np.ones(len(units), bool)
    while left.any():
        remaining = counts[left].sum(0)
        present = np.flatnonzero(remaining[:-1])
        column = present[remaining[present].argmin()] if len(present) else -1  # the rarest class
        for index in np.flatnonzero(left & (counts[:, column] > 0)):
            part = np.lexsort((wanted[:, -1], wanted[:, column]))[-1]
            owners[units[index]] = part
            wanted[part] -= counts[index]
            left[index] = False
    return owners
