"""Explains why a path is no dataset in a known format, and what to do."""

from collections import Counter
from pathlib import Path

from kerasdet.data import yolo
from kerasdet.data.coco_exports import json_kind
from kerasdet.data.files import is_image, read_text, visible
from kerasdet.errors import UserError

_FORMATS = "COCO, Pascal VOC, YOLO, LabelMe, VIA or TFRecord"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")
_YAML = (".yaml", ".yml")
_SAMPLE = 20  # number of JSON files whose kind is looked up
# Contents of JSON files that are no dataset, by kind, and advice to the user
_OTHER_JSON = {
    "detections": ("detections", "Give the ground truth."),
    "label studio": ("tasks of Label Studio", "Export them as COCO or YOLO."),
    "createml": ("annotations of CreateML", "Export them as COCO or YOLO."),
}


def explain_unknown(path: Path) -> str:
    """Explains why a path is no dataset in a known format.

    Args:
        path: A file, a folder, or a pattern of file names.

    Returns:
        The error message: what the path holds, what was expected, and what to do.
    """
    expected = f"expected a dataset in the format {_FORMATS}"
    if path.is_dir():
        return _explain_folder(path, expected)
    if not path.is_file():
        return f"{path} is a pattern of file names; expected one path (patterns are for TFRecords). Give the folder."
    if path.suffix.lower() in _YAML:
        return _fault_of_yaml(path)
    if fault := _fault_of_json(path, expected):
        return fault
    if path.suffix.lower() in _ARCHIVES:
        return f"{path} is an archive; {expected}. Unpack it and give the folder."
    return f"{path} has an unknown format; {expected}. Pass the folder of the dataset."


def _explain_folder(path, expected):
    suffixes = Counter(file.suffix.lower() or "files without a suffix" for file in path.rglob("*") if file.is_file())
    if not suffixes:
        return f"The folder {path} is empty; {expected}. Check the path."
    files = [file for file in visible(path) if file.is_file()]
    if yamls := [file for file in files if file.parent == path and _describes_yolo(file)]:
        return _fault_of_yaml(min(yamls, key=lambda file: file.stem != "data"))
    for file in [file for file in files if file.suffix.lower() == ".json"][:_SAMPLE]:
        if fault := _fault_of_json(file, expected):
            return fault
    holds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    if all(is_image(Path(f"x{suffix}")) for suffix in suffixes):
        advice = "Put the annotations into the folder, or give the folder above it."
    elif any(_looks_like_labels(file) for file in visible(path, "*.txt")):
        advice = 'These look like YOLO labels without a class list: add a data.yaml with "names" and "train".'
    elif any("<annotations" in read_text(file)[:500] for file in visible(path, "*.xml")):
        advice = "This is CVAT's own XML: export the task as COCO 1.0."
    elif ".csv" in suffixes:
        advice = "Export the CSV again as COCO, VOC or YOLO."
    elif ".zip" in suffixes:
        advice = "Unpack the archive."
    else:
        advice = "Export the annotations in one of these formats, or name the file that holds them."
    return f"The folder {path} holds {holds}; {expected}. {advice}"


def _describes_yolo(file):
    """Returns whether a file describes a YOLO dataset, by its name or its keys."""
    if file.suffix.lower() not in _YAML:
        return False
    try:
        return file.stem == "data" or not {"names", "nc"}.isdisjoint(yolo.read_yaml(file))
    except UserError:
        return False


def _fault_of_yaml(file):
    """Returns what is wrong with the `data.yaml` of a YOLO dataset."""
    try:
        data = yolo.read_yaml(file)
    except UserError as error:
        return str(error)
    if "names" not in data:
        return f'{file} has no "names"; expected the class names, in the order of the class ids. Add names: [cat, dog].'
    return f'{file} names no folder of images; expected the keys "train" and "val". Add train: images/train.'


def _fault_of_json(file, expected):
    """Returns what a JSON file holds if it is of a known kind that is no dataset; None for another file."""
    kind = json_kind(file) if file.suffix.lower() == ".json" else None
    if kind not in _OTHER_JSON:
        return None
    holds, advice = _OTHER_JSON[kind]
    return f"{file} holds {holds}; {expected}. {advice}"


def _looks_like_labels(file):
    words = read_text(file)[:200].split()
    return len(words) >= 5 and words[0].isdigit() and words[1].replace(".", "").isdigit()
