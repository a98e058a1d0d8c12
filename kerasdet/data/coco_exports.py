"""Finds COCO files and their images in the folders that Roboflow, CVAT, Label Studio, FiftyOne and others export."""

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from kerasdet.data.annotations import read_json
from kerasdet.data.files import ImageFinder
from kerasdet.data.labelme import is_labelme
from kerasdet.data.splits import WHOLE, Reader, split_of, words_without_split
from kerasdet.data.values import Changes
from kerasdet.data.via import is_via
from kerasdet.errors import UserError

_logger = logging.getLogger("kerasdet.data")

_HEAD = 1 << 16  # number of bytes from which the kind of a large file is recognised
_LARGE = 1 << 25  # size in bytes; larger files are recognised by their beginning
# Beginnings of the names of COCO's own files for other tasks
_OTHER_TASKS = ("captions", "image_info", "stuff", "panoptic", "person_keypoints")
_IMAGE_FOLDERS = ("images", "data", "imgs", "img", "JPEGImages")


def json_kind(path: Path) -> str | None:
    """Detects the format of a JSON file. Only COCO is detected in files of more than 32 MiB.

    Args:
        path: Path of the file.

    Returns:
        "coco", "labelme", "via", "label studio", "createml", "detections", or None for another format.

    Raises:
        UserError: If the file is not valid JSON.
    """
    return _kind_and_scores(path)[0]


def _kind_and_scores(path):
    """Returns the kind of a JSON file, and whether it is a COCO file whose annotations have scores (no large file)."""
    stat = path.stat()
    return _examine(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)  # several formats are looked for in the same files
def _examine(path, _inode, _modified, size):
    if size > _LARGE:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return "coco" if re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head) else None, False
    data = read_json(path)
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        entries = data["annotations"] if isinstance(data["annotations"], list) else []
        return "coco", any(isinstance(each, Mapping) and "score" in each for each in entries)
    return _other_kind(data), False


def _other_kind(data):
    if is_labelme(data):
        return "labelme"
    if is_via(data):
        return "via"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        keys = {"detections": {"score"}, "label studio": {"data"}, "createml": {"image", "annotations"}}
        return next((kind for kind, own in keys.items() if own <= data[0].keys()), None)
    return None


def find_coco(path: Path, *, scored: bool = False) -> dict[str, Reader]:
    """Finds the COCO files of a dataset.

    Args:
        path: A COCO file, or a folder with such files: in the folder itself, in `annotations/`, or in one folder per
            split.
        scored: Whether to find the files in a folder whose annotations have scores, as ``kerasdet predict --coco``
            writes them, instead of the others.

    Returns:
        A dict from split name to the function that reads this split into a dict in the form of a COCO file; {} if there
        is no COCO file.

    Raises:
        UserError: If several files could be the annotations of a split, or the file of a split is damaged or no COCO
            file, although that of another split is one.
    """
    if path.is_file():
        files = [path]
    else:
        patterns = (
            "*.json",
            "[Aa]nnotations/*.json",
            "*/_annotations.coco.json",
            "*/labels.json",
            "*/annotations.json",
        )
        files = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    files = [file for file in dict.fromkeys(files) if not file.name.startswith(".")]
    own = [file for file in files if file == path or (_is_coco(file) and _has_scores(file) == scored)]
    for file in files:
        if file not in own and (sibling := next((each for each in own if _are_siblings(file, each)), None)):
            _check_sibling(file, sibling)
    found: dict[str, list[Path]] = {}
    for file in own:
        found.setdefault(_split(file), []).append(file)
    return {split: functools.partial(read_coco, _choose(files, split), split) for split, files in found.items()}


def _split(file):
    return split_of(file.stem, file.parent.name)


def _is_coco(file):
    try:
        return json_kind(file) == "coco"
    except UserError:  # not valid JSON, but it need not belong to the dataset
        return False


def _has_scores(file):
    return _kind_and_scores(file)[1]


def _are_siblings(file, other):
    """Returns whether the names of two files differ only in the split, as instances_train and instances_val."""
    splits = {_split(file), _split(other)}
    return (
        len(splits) == 2 and WHOLE not in splits and words_without_split(file.stem) == words_without_split(other.stem)
    )


def _check_sibling(file, sibling):
    """Checks that a file in whose place the annotations of a split are expected is not damaged."""
    kind = json_kind(file)  # raises an error if the file is damaged
    if kind == "coco":  # with scores, or without
        return
    data = read_json(file)
    if isinstance(data, dict) and "images" in data and _split(file) == "test":
        _logger.warning('%s has no "annotations" and is not read: it has only the images of a test.', file)
        return
    raise UserError(
        f'{file} is no COCO file, although {sibling} is one: expected the lists "images", "annotations" and '
        '"categories". Export it again, or move it out of the dataset.'
    )


def _choose(files, split):
    """Returns the annotation file of a split; prefers COCO's `instances` to its files for other tasks."""
    own = [file for file in files if not file.name.lower().startswith(_OTHER_TASKS)] or files
    if len(own) > 1:
        raise UserError(
            f"{own[0]} and {own[1]} could both be the annotations of the split {split}; expected one file per split. "
            "Give the path of the file instead of the folder."
        )
    return own[0]


def read_coco(path: Path, split: str, changes: Changes) -> dict:
    """Reads a COCO file and finds its images, even if the file contains the paths of another machine.

    Args:
        path: Path of the file.
        split: Name of the split that the file holds. The folder of this split is searched first.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. Each `file_name` becomes
        the full path of the image. Contents without a list `images` are returned unchanged; `Dataset` then reports the
        error.

    Raises:
        UserError: If the file is not valid JSON, or several image files match a name.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        return data
    finder = ImageFinder(_image_folders(path, split), changes, split)
    images = []
    for number, image in enumerate(data["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and image["file_name"]:
            where = f"{path}: image {image.get('id', f'number {number}')}"
            image = {**image, "file_name": str(finder.find(image["file_name"], where))}
        images.append(image)
    return {**data, "images": images}


def _image_folders(path, split):
    """Returns the folders that may hold the images of a COCO file, the most likely one first."""
    roots = [path.parent] if path.parent.name.lower() != "annotations" else [path.parent.parent, path.parent]
    folders = []
    for root in roots:
        own = [root / name for name in _IMAGE_FOLDERS]
        for folder in (*own, root):
            if folder.is_dir() and split != WHOLE:
                folders += sorted(
                    each for each in folder.iterdir() if each.is_dir() and split_of("", each.name) == split
                )
        folders += [folder / "default" for folder in own]  # CVAT's name for a task without subsets
        folders += own
    return [folder for folder in folders if folder.is_dir()] + roots
