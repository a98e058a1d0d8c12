"""Reads and writes YOLO's format: one text file of normalised boxes or polygons an image, and a `data.yaml`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kerasdet.data.files import image_entry, images_in, is_image, read_text, upright_sizes
from kerasdet.data.regions import box_of_polygons
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")


def read_yaml(path: Path) -> dict:
    """Parses a `data.yaml`.

    Args:
        path: Path of the file.

    Returns:
        Its contents.

    Raises:
        UserError: If it is not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct the file.") from None
    if not isinstance(data, dict):
        raise UserError(f'{path} holds {str(data)[:80]!r}; expected the keys "names" and "train". Correct the file.')
    return data


def class_names(data: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Reads the classes of a `data.yaml`.

    Args:
        data: Contents of the file.
        path: Path of the file, for messages.

    Returns:
        Names by class id.

    Raises:
        UserError: If names are missing, or differ in number from `nc`.
    """
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        names = {int(key): str(name) for key, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f'{path}: "names" is {str(data.get("names"))[:80]}; expected a list of class names, or a mapping from '
            "class id to name. Correct the file."
        ) from None
    count = data.get("nc", len(names))
    if count != len(names):
        raise UserError(f'{path}: "nc" is {count}, but "names" has {len(names)} classes. Correct one of the two.')
    if not names:
        raise UserError(f'{path}: "names" is empty; expected at least one class. Correct the file.')
    return names


def names_beside(root: Path) -> tuple[dict[int, str], Path] | None:
    """Reads the class list that LabelImg, Label Studio and Darknet write instead of a `data.yaml`.

    Args:
        root: Folder of the dataset.

    Returns:
        Names by class id and the file; None without such a file.
    """
    folders = (root, root / "labels", root / "train")
    for path in (folder / name for folder in folders for name in _NAME_FILES):
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            if any(names):
                return {number: name for number, name in enumerate(names) if name}, path
    return None


def split_images(data: Mapping[str, Any], path: Path, key: str, changes: Changes) -> list[Path]:
    """Lists the images of a split of a `data.yaml`.

    Args:
        data: Contents of the file.
        path: Path of the file.
        key: Key of the split, such as "train". Its value is a folder, a text file that lists images, or a list of
            both. The paths may be those of another machine: `path: /datasets/x`, `../train/images`.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Paths of the images.

    Raises:
        UserError: If a folder or list does not exist, or holds no images.
    """
    entries = data[key] if isinstance(data[key], list) else [data[key]]
    found = []
    for entry in entries:
        place = _place(str(entry), data.get("path"), path, key, changes)
        found += _listed(place, path.parent) if place.suffix == ".txt" else images_in(place)
        if not found:
            raise UserError(f"{path}: {key} leads to {place}, which holds no image. Correct the path.")
    return list(dict.fromkeys(found))


def _place(entry, base, path, key, changes):
    """Returns the folder or list that an entry of a `data.yaml` means."""
    root = path.parent
    entry = entry.replace("\\", "/")
    plain = [root / base / entry, root / entry] if base else [root / entry]
    for candidate in plain:
        if candidate.exists():
            return candidate
    parts = [part for part in f"{base or ''}/{entry}".split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        candidate = root.joinpath(*parts[start:])
        if candidate.exists():
            fact = f"is {entry!r}, which does not exist; {candidate} was taken"
            changes.add("split_paths_repaired", f"{key} of {path.name}", fact)
            return candidate
    raise UserError(f"{path}: {key} is {entry!r}, but {plain[0]} does not exist. Correct the path, or add the folder.")


def _listed(path, root):
    """Returns the images that a text file lists, relative to it or to the folder of the `data.yaml`."""
    lines = [line.strip().replace("\\", "/") for line in read_text(path).splitlines()]
    images = []
    for line in filter(None, lines):
        parts = [part for part in line.split("/") if part not in ("", ".", "..")]
        tails = [Path(*parts[start:]) for start in range(len(parts))]
        candidates = [
            path.parent / line,
            root / line,
            *(folder / tail for tail in tails for folder in (path.parent, root)),
        ]
        images.append(next((candidate for candidate in candidates if candidate.is_file()), candidates[0]))
    return images


def label_of(image: Path) -> Path:
    """Returns the label file of an image: in `labels/` instead of the last `images/` of its path, or beside it."""
    beside = image.with_suffix(".txt")
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() in ("images", "jpegimages"):
            parts[index] = "labels"
            other = Path(*parts).with_suffix(".txt")
            return other if other.is_file() or not beside.is_file() else beside
    return beside


def keypoint_shape(data: Mapping, file: Path) -> tuple[int, ...]:
    """Reads `kpt_shape` of a `data.yaml`.

    Args:
        data: Contents of the file.
        file: Path of the file, for messages.

    Returns:
        Number of keypoints and of values of each, or () without keypoints.

    Raises:
        UserError: If the value is neither.
    """
    shape = data.get("kpt_shape") or ()
    if not shape:
        return ()
    numbers = shape if isinstance(shape, list) and all(type(number) is int for number in shape) else ()
    if len(numbers) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
        raise UserError(
            f"{file}: kpt_shape is {str(shape)[:80]}; expected the number of keypoints and 2 or 3, such as [17, 3]. "
            "Correct it."
        )
    return tuple(numbers)


def read_yolo(
    images: Sequence[Path], names: Mapping[int, str], changes: Changes, keypoint_shape: Sequence[int] = ()
) -> dict:
    """Reads the label files of images. An image without a label file, or with an empty one, has no objects.

    A row is a class id and either a box (x centre, y centre, width, height), or the points of a polygon, or a box and
    keypoints. All are fractions of the image's width and height.

    Args:
        images: Paths of the images.
        names: Names by class id.
        changes: Counts the values that had to be converted or repaired.
        keypoint_shape: `kpt_shape` of the `data.yaml`: the number of keypoints and 2 or 3 values each; () without.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. The ids of the
        categories are YOLO's class ids.

    Raises:
        UserError: If a row is not of this form, naming the file and the line.
    """
    categories = [{"id": class_id, "name": name} for class_id, name in sorted(names.items())]
    if keypoint_shape:
        for category in categories:
            category["keypoints"] = [f"keypoint_{number}" for number in range(1, keypoint_shape[0] + 1)]
    entries, annotations, used = [], [], set()
    for image_id, (image, size) in enumerate(zip(images, upright_sizes(images), strict=True), 1):
        entries.append(image_entry(image_id, image, size))
        label = label_of(image)
        used.add(label)
        if size is None or not label.is_file():
            continue
        for number, line in enumerate(read_text(label).splitlines(), 1):
            if line.strip():
                row = _row(line.split(), names, size, keypoint_shape, f"{label}: line {number}", changes)
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **row})
    for folder in sorted({label.parent for label in used}):
        for label in sorted(folder.glob("*.txt")):
            if label not in used and label.name not in _NAME_FILES and _is_label(label):
                changes.add("labels_without_image", str(label), "has no image")
    return {"images": entries, "annotations": annotations, "categories": categories}


def _is_label(path):
    """Returns whether a text file beside labels holds labels: lists of images and notes do not."""
    words = read_text(path).split()
    return len(words) >= 5 and words[0].isdigit() and not any(is_image(Path(word)) for word in words[:5])


def _row(words, names, size, keypoint_shape, where, changes):
    """Returns category, box and polygon or keypoints of a row of a label file, in pixels."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UserError(f"{where} is {' '.join(words)[:80]!r}; expected numbers with spaces between. Correct the line.")
    class_id, values = values[0], values[1:]
    if class_id != int(class_id) or int(class_id) not in names:
        raise UserError(
            f"{where} has the class id {words[0]}; expected one of {min(names)} to {max(names)}. Correct the id, or "
            "add its name to the class list."
        )
    count = math.prod(keypoint_shape) if keypoint_shape else 0
    if len(values) == 5 and not count:
        changes.add("scores_ignored", where, f"ends with {words[5]}, as detections do with a score")
        values = values[:4]
    if len(values) != 4 + count and (count or len(values) < 6 or len(values) % 2):
        expected = f"4 + {count} for keypoints" if count else "4 for a box, or an even number from 6 for a polygon"
        raise UserError(f"{where} has {len(values)} numbers after the class id; expected {expected}. Correct the line.")
    coordinates = values[: 4 if count else None]
    if worst := next((value for value in coordinates if abs(value) > 2), None):
        raise UserError(
            f"{where} has the coordinate {worst:g}; expected fractions of the image's size, from 0 to 1. Divide pixels "
            "by width or height of the image."
        )
    height, width = size
    if len(values) - count == 4:
        x, y, w, h = values[:4]
        row = {"bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]}
        row["segmentation"] = []
    else:
        polygon = (np.array(values).reshape(-1, 2) * (width, height)).tolist()
        row = {"bbox": box_of_polygons([polygon]), "segmentation": [[value for point in polygon for value in point]]}
    if count:
        points = np.array(values[4:]).reshape(keypoint_shape)
        seen = points[:, 2] if keypoint_shape[1] == 3 else np.where((points > 0).any(1), 2.0, 0.0)
        row["keypoints"] = np.stack([points[:, 0] * width, points[:, 1] * height, seen], 1).ravel().tolist()
    return {"category_id": int(class_id), **row}
