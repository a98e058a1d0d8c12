"""Reads a whole dataset and reports its contents and its errors."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from kerasdet.data.annotations import CHANGES
from kerasdet.data.dataset import NOTES
from kerasdet.data.duplicates import fingerprints, near_duplicates
from kerasdet.data.files import REPAIRS
from kerasdet.data.progress import progress
from kerasdet.data.recognise import Source, open_dataset, recognise
from kerasdet.data.records import Record
from kerasdet.errors import UserError

_MAX_NAMED = 10  # number of items that a line of the report names
_RARE = 10  # the report names classes with fewer objects
_PHRASES = {**NOTES, **CHANGES, **REPAIRS}
_HARMLESS = ("difficult_boxes",)  # kinds of notes that are no errors even in strict mode


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """Reports the contents and the errors of a split.

    Args:
        name: Name of the split, such as "train".
        errors: Sentences about errors that must be corrected before the split can be used.
        notes: Sentences about repaired values and about facts to check.
        objects: Number of objects by class name.
        records: Records of the usable images.
    """

    name: str
    errors: list[str]
    notes: list[str]
    objects: Mapping[str, int]
    records: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Report:
    """Reports the contents and the errors of a dataset; `str(report)` is the text to print.

    Args:
        source: Format and path of the dataset.
        splits: Reports of the splits.
        notes: Sentences that concern several splits.
    """

    source: Source
    splits: list[SplitReport]
    notes: list[str]

    @property
    def errors(self) -> list[str]:
        """Sentences about errors that must be corrected before the dataset can be used."""
        return [error for split in self.splits for error in split.errors]

    def __str__(self) -> str:
        lines = [str(self.source)]
        for split in self.splits:
            lines += ["", f"{split.name}: {len(split.records)} images, {sum(split.objects.values())} objects"]
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
        path: A folder, or the file that describes the dataset, such as `data.yaml` or COCO's JSON.
        strict: Whether repaired and dropped values are listed as errors instead of notes.

    Returns:
        The report. It lists up to 200 bad images and up to 200 bad annotations of each split.

    Raises:
        FileNotFoundError: If the path does not exist.
        UserError: If the format is not known.
    """
    source = recognise(path)
    splits = [_check_split(source, name, strict) for name in progress(source.splits, "Reading")]
    return Report(source, splits, _across(splits))


def _check_split(source, name, strict):
    try:
        skipping = {"on_bad_image": "skip", "on_bad_object": "skip"}
        dataset = open_dataset(source, name, **skipping, masks=None, keypoints=None)
    except (UserError, FileNotFoundError) as error:
        return SplitReport(name, [str(error)], [], {}, ())
    by_kind: dict[str, list[str]] = {}
    for problem in dataset.problems:
        by_kind.setdefault(problem.kind, []).append(f"{problem.item} {problem.text}")
    errors, notes = [*by_kind.pop("bad_images", []), *by_kind.pop("bad_objects", [])], []
    for kind, phrase in _PHRASES.items():
        if dataset.counts.get(kind) and kind != "bad_objects":
            line = f"{dataset.counts[kind]} {phrase}: {_listed(by_kind.get(kind, []))}".removesuffix(": ")
            (errors if strict and kind not in _HARMLESS else notes).append(line)
    if not any(len(record.boxes) for record in dataset.records) and name not in ("val", "test"):
        errors.append("no image has an object, so there is nothing to train on: annotate objects")
    if dataset.counts["images_without_objects"]:
        notes.append(f"{dataset.counts['images_without_objects']} images without objects")
    numbers = Counter(int(class_id) for record in dataset.records for class_id in record.class_ids)
    objects = {class_name: numbers[i] for i, class_name in enumerate(dataset.class_names)}
    rare = [f"{class_name} ({count})" for class_name, count in objects.items() if count < _RARE]
    if rare:
        notes.append(f"classes with fewer than {_RARE} objects: {_listed(rare)}")
    return SplitReport(name, errors, notes, objects, dataset.records)


def _across(splits):
    """Returns sentences about several splits: different classes, and images that are in more than one split."""
    notes = []
    readable = [split for split in splits if split.objects]
    for split in readable[1:]:
        if list(split.objects) != list(readable[0].objects):
            notes.append(
                f"{readable[0].name} and {split.name} have different classes: name the classes to keep with "
                "`kerasdet data convert --classes` (Python and gin: open_dataset.classes)"
            )
    records = [(split.name, record) for split in splits for record in split.records]
    groups = near_duplicates(fingerprints([record for _, record in records]))
    if groups:
        notes.append(f"images that are near duplicates of others: {sum(map(len, groups))}")
    inside: list[list[int]] = []
    shared: list[list[int]] = []
    for group in groups:
        (inside if len({records[index][0] for index in group}) == 1 else shared).append(group)
    for group in inside[:_MAX_NAMED]:
        paths = [str(records[index][1].path) for index in group]
        notes.append(f"near duplicates in {records[group[0]][0]}: {_listed(paths)}")
    for group in shared[:_MAX_NAMED]:
        pair = {records[index][0]: records[index][1].path for index in group}
        notes.append(f"near duplicates in {_listed([f'{name} ({path})' for name, path in pair.items()])}")
    if shared:
        notes.append(
            f"groups of near duplicates in several splits: {len(shared)}, which makes the AP too high: split the "
            "data with `kerasdet data split`, which keeps near duplicates together"
        )
    return notes


def _listed(items):
    return ", ".join(items[:_MAX_NAMED]) + (f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else "")
