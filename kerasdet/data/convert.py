"""Converts a dataset of any format to COCO, YOLO, Pascal VOC or TFRecord."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kerasdet.data import write_coco, write_tfrecord, write_voc, write_yolo
from kerasdet.data.classes import Classes
from kerasdet.data.portable import Part, further_values, make_part
from kerasdet.data.recognise import Source, read_source, recognise
from kerasdet.data.remote import is_remote
from kerasdet.data.values import Changes
from kerasdet.errors import UserError
from kerasdet.files import removing_on_failure, writing
from kerasdet.paths import expand, make_folder

WRITERS = {
    "coco": write_coco.write,
    "tfrecord": write_tfrecord.write,
    "voc": write_voc.write,
    "yolo": write_yolo.write,
}


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str,
    *,
    classes: Classes | None = None,
    on_bad_image: str = "error",
    strict: bool = False,
) -> dict[str, Counter]:
    """Writes a dataset of any format, with all its splits and a copy of its images, in another format.

    Example:
        >>> convert("downloads/labelme-folder", "data/cells", "coco")

    Args:
        source: A folder, or the file that describes the dataset, such as `data.yaml` or COCO's JSON.
        target: Folder to write to; it must be empty or not exist.
        to: Format to write: "coco", "tfrecord", "voc" or "yolo".
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.

    Returns:
        A dict from split name to counts by name: images, boxes and repaired values. The key "lost" holds the counts of
        values that the new format cannot store.

    Raises:
        FileNotFoundError: If the source does not exist.
        UserError: If the target is not empty or inside the source, the format is unknown, two splits have different
            classes, or an item is invalid.
        OSError: If the target cannot be written. Nothing stays in it.
    """
    folder = empty_folder(target, source)
    check_format(to)
    with writing_folder(folder):
        return write_parts(read_parts(recognise(source), classes, on_bad_image, strict), folder, to)


def check_format(to: str) -> None:
    """Checks the name of a format to write.

    Args:
        to: Name of the format.

    Raises:
        UserError: If there is no such format.
    """
    if to not in WRITERS:
        raise UserError(
            f"The format to write is {to!r}; expected one of {', '.join(WRITERS)}. Pass one of these "
            "as --to (Python: to=)."
        )


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[None]:
    """Creates the folder of a new dataset, and removes what the ``with`` block wrote to it if the block fails.

    Args:
        folder: Path of the folder, which is empty or does not exist.

    Yields:
        None.

    Raises:
        OSError: If the folder cannot be written. The block then does not run.
    """
    with removing_on_failure(folder):
        make_folder(folder, "TARGET (Python: target=)")
        yield


def write_parts(parts: Sequence[Part], folder: Path, to: str) -> dict[str, Counter]:
    """Writes splits in a format.

    Args:
        parts: Splits of the dataset.
        folder: Empty folder to write to.
        to: Format to write: "coco", "tfrecord", "voc" or "yolo".

    Returns:
        The counts of each split and of "lost", see `convert`.

    Raises:
        OSError: If a file cannot be written.
    """
    with writing(folder):
        lost = WRITERS[to](parts, folder)
    if to != "coco":
        lost += _further_values(parts)
    return {**{part.name: Counter(part.counts) for part in parts}, "lost": +lost}


def _further_values(parts):
    """Counts the values that only COCO files store, by name."""
    counts = Counter()
    for annotation in (each for part in parts for item in part.items for each in item.annotations):
        for key, value in further_values(annotation).items():
            if key != "is_group_of":
                counts[f"values of {key}"] += 1
            elif value:
                counts["group flags"] += 1
    return counts


def read_parts(
    source: Source, classes: Classes | None = None, on_bad_image: str = "error", strict: bool = False
) -> list[Part]:
    """Reads all splits of a dataset. Their classes must be the same.

    Args:
        source: Result of `recognise`.
        classes: Names of the classes to keep, in the order of the class ids; or a mapping from old to new names, in
            which None removes a class and equal new names merge classes. None keeps all classes.
        on_bad_image: What to do if an image file is missing, damaged or not of the annotated size: "error" raises a
            `UserError` that names it, "skip" leaves the image out.
        strict: Whether to raise an error instead of repairing or dropping invalid values, such as numbers written as
            strings.

    Returns:
        The splits of the dataset, with checked values.

    Raises:
        UserError: If two splits have different classes, or an item is invalid.
    """
    taken: set[str] = set()
    parts = []
    for name in source.splits:
        changes = Changes(str(source.path), strict)
        data = read_source(source, name, changes, classes)
        label = f"{source.path} ({name})"
        parts.append(make_part(name, data, label, taken, changes, on_bad_image=on_bad_image, strict=strict))
    first = parts[0]
    for part in parts[1:]:
        if _classes(part) != _classes(first):
            raise UserError(
                f"{source.path}: the splits {first.name} and {part.name} have different classes: "
                f"{_difference(_classes(first), _classes(part), first.name, part.name)}. Expected the same names and "
                "ids. Pass --classes (Python: classes=) with the names to keep."
            )
    return parts


def _difference(ours, theirs, our_name, their_name):
    """Describes the first id under which two splits have different classes."""
    ids = [each for each in sorted({*ours, *theirs}) if ours.get(each) != theirs.get(each)]
    further = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
    names = [f"{each.get(ids[0], 'missing')} in {name}" for each, name in ((ours, our_name), (theirs, their_name))]
    return f"id {ids[0]} is {' and '.join(names)}{further}"


def _classes(part: Part) -> Mapping[int, str]:
    return {category["id"]: category["name"] for category in part.categories}


def empty_folder(path: str | os.PathLike, source: str | os.PathLike) -> Path:
    """Checks that a folder is empty or does not exist, and is not part of the dataset that is read.

    Args:
        path: Path of the folder.
        source: Path of the dataset that is read.

    Returns:
        The path of the folder.

    Raises:
        UserError: If the path is a file, a folder with files, or inside the source.
    """
    path = expand(path)
    if not is_remote(source) and expand(source).resolve() in path.resolve().parents:
        raise UserError(f"{path} lies inside the source {source}; expected a folder outside it. Name another folder.")
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(
            f"{path} is a file or already holds files; expected a new or empty folder to write to. Name another folder."
        )
    return path
