"""Finds COCO files and their images in the folders that Roboflow, CVAT, Label Studio, FiftyOne and others export."""

import functools
import re
from pathlib import Path

from kerasdet.data.annotations import read_json
from kerasdet.data.files import ImageFinder
from kerasdet.data.labelme import is_labelme
from kerasdet.data.splits import WHOLE, Reader, split_of
from kerasdet.data.values import Changes
from kerasdet.data.via import is_via
from kerasdet.errors import UserError

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
    if path.stat().st_size > _LARGE:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return "coco" if re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head) else None
    data = read_json(path)
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        return "coco"
    if is_labelme(data):
        return "labelme"
    if is_via(data):
        return "via"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        keys = {"detections": {"score"}, "label studio": {"data"}, "createml": {"image", "annotations"}}
        return next((kind for kind, own in keys.items() if own <= data[0].keys()), None)
    return None


def find_coco(path: Path) -> dict[str, Reader]:
    """Finds the COCO files of a dataset.

    Args:
        path: A COCO file, or a folder with such files: in the folder itself, in `annotations/`, or in one folder per
            split.

    Returns:
        A dict from split name to the function that reads this split into a dict in the form of a COCO file; {} if there
        is no COCO file.

    Raises:
        UserError: If several files could be the annotations of a split.
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
    found: dict[str, list[Path]] = {}
    for file in dict.fromkeys(files):
        if not file.name.startswith((".", "._")) and (file == path or _is_coco(file)):
            found.setdefault(split_of(file.stem, file.parent.name), []).append(file)
    return {split: functools.partial(read_coco, _choose(files, split), split) for split, files in found.items()}


def _is_coco(file):
    try:
        return json_kind(file) == "coco"
    except UserError:  # not valid JSON, but it need not belong to the dataset
        return False


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
