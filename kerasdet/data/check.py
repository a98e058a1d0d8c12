"""Reads all of a dataset and reports what is in it and what is wrong with it."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from kerasdet.data.annotations import CHANGES, read_contents
from kerasdet.data.dataset import Dataset
from kerasdet.data.duplicates import fingerprints, near_duplicates
from kerasdet.data.files import REPAIRS
from kerasdet.data.image_files import check_file
from kerasdet.data.progress import progress
from kerasdet.data.recognise import Source, read_source, recognise
from kerasdet.data.records import Record
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

_MAX_NAMED = 10
_RARE = 10  # a class with fewer objects is named


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """Says what a split holds and what is wrong with it.

    Args:
        name: Name of the split.
        errors: What has to be corrected before the split can be used.
        notes: What was repaired, or is worth a look.
        counts: Counts of the dataset.
        objects: Number of objects by class.
        records: Records of the usable images.
    """

    name: str
    errors: list[str]
    notes: list[str]
    counts: Mapping[str, int]
    objects: Mapping[str, int]
    records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Report:
    """Says what a dataset holds and what is wrong with it; `str` makes it a text.

    Args:
        source: Format and place of the dataset.
        splits: Reports of the splits.
        notes: What concerns several splits.
    """

    source: Source
    splits: list[SplitReport]
    notes: list[str]

    @property
    def errors(self) -> list[str]:
        """What has to be corrected before the dataset can be used."""
        return [error for split in self.splits for error in split.errors]

    def __str__(self) -> str:
        lines = [str(self.source)]
        for split in self.splits:
            counts = split.counts
            lines += ["", f"{split.name}: {counts.get('images', 0)} images, {counts.get('boxes', 0)} objects"]
            width = max(map(len, split.objects), default=0)
            lines += [f"  {name:<{width}}  {count}" for name, count in split.objects.items()]
            lines += [f"  error: {error}" for error in split.errors]
            lines += [f"  note: {note}" for note in split.notes]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)


def check(path: str | os.PathLike, *, strict: bool = False) -> Report:
    """Reads all annotations and images of a dataset.

    Example:
        >>> print(check("downloads/my-data"))

    Args:
        path: Path of the dataset, see `open_dataset`.
        strict: Whether each repair is an error.

    Returns:
        The report. Of annotations that cannot be read, it names the first of each split; of images, all.

    Raises:
        FileNotFoundError: If the path does not exist.
        UserError: If the format is not known.
    """
    source = recognise(path)
    splits = [_check_split(source, name, strict) for name in progress(source.splits, "Reading")]
    return Report(source, splits, _across(splits))


def _check_split(source, name, strict):
    label = f"{source.path} ({name})"
    changes = Changes(label, strict)
    try:
        data = read_source(source, name, changes)
        dataset = Dataset(data, None, source=label, on_bad_image="skip", strict=strict)
        has_masks = any(annotation.get("segmentation") for annotation in data["annotations"])
        keypoints = any(category.get("keypoints") for category in data["categories"])
        contents = read_contents(data, label, masks=has_masks, keypoints=keypoints, strict=strict)
    except (UserError, FileNotFoundError) as error:
        return SplitReport(name, [str(error)], [], {}, {}, ())
    changes.merge(contents.changes)
    errors = _bad_images(contents, dataset)
    objects = Counter(int(class_id) for record in dataset.records for class_id in record.class_ids)
    named = {class_name: objects[i] for i, class_name in enumerate(dataset.class_names)}
    notes = changes.describe({**CHANGES, **REPAIRS})
    for key, text in (
        ("clipped_boxes", "boxes leave their image and are clipped"),
        ("zero_area_boxes", "boxes have no area and are dropped"),
        ("outside_boxes", "boxes lie outside their image and are dropped"),
        ("duplicate_annotation_ids", "ids of annotations are used twice"),
        ("images_without_objects", "images have no objects"),
    ):
        if dataset.counts[key]:
            line = f"{dataset.counts[key]} {text}"
            (errors if strict and key != "images_without_objects" else notes).append(line)
    rare = [f"{class_name} ({count})" for class_name, count in named.items() if count < _RARE]
    if rare:
        notes.append(f"classes with fewer than {_RARE} objects: {_listed(rare)}")
    return SplitReport(name, errors, notes, dataset.counts, named, dataset.records)


def _bad_images(contents, dataset):
    """Returns a sentence about each image that cannot be used."""
    usable = {record.image_id for record in dataset.records}
    errors = []
    for image in contents.images:
        if image["id"] not in usable:
            size = image["height"], image["width"]
            problem = check_file(image["file_name"], image.get("content"), size).problem
            errors.append(f"{image['file_name']} {problem}")
    return errors


def _across(splits):
    """Returns what concerns several splits: other classes, and pictures that are in more than one."""
    notes = []
    first, *others = [split for split in splits if split.objects] or [None]
    for split in others:
        if list(split.objects) != list(first.objects):
            notes.append(f"{first.name} and {split.name} have different classes; pass classes with the names to keep")
    records = [(split.name, record) for split in splits for record in split.records]
    groups = near_duplicates(fingerprints([record for _, record in records]))
    copies = sum(map(len, groups)) - len(groups)
    if copies:
        notes.append(f"{copies} images are near duplicates of others")
    shared = [group for group in groups if len({records[index][0] for index in group}) > 1]
    for group in shared[:_MAX_NAMED]:
        pair = {records[index][0]: records[index][1].path for index in group}
        notes.append(f"near duplicates in {_listed([f'{name} ({path})' for name, path in pair.items()])}")
    if shared:
        notes.append(
            f"{len(shared)} pictures are in several splits, so that the AP on them is too high; `kerasdet data split` "
            "keeps near duplicates together"
        )
    return notes


def _listed(items):
    return ", ".join(items[:_MAX_NAMED]) + (f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else "")
