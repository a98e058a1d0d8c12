"""Reads YOLO's format: per image one text file of normalised boxes or polygons, and a `data.yaml` for the dataset."""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kerasdet.data.classes import check_class_list
from kerasdet.data.files import image_entry, images_in, is_image, read_text, upright_sizes, warn_of_encoding
from kerasdet.data.regions import box_of_polygons
from kerasdet.data.splits import WHOLE, split_of
from kerasdet.data.values import Changes, as_int, as_list
from kerasdet.errors import UserError

SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")


def read_yaml(path: Path) -> dict:
    """Parses the `data.yaml` of a YOLO dataset.

    Args:
        path: Path of the file.

    Returns:
        The contents, a dict. Class names are strings as written in the file: `yes`, `null` and `007` stay strings.

    Raises:
        UserError: If the file is not YAML, is not a mapping, or has a key twice.
    """
    try:
        text = read_text(path)
        warn_of_encoding(path)
        if twice := _repeated_key(yaml.compose(text, yaml.BaseLoader)):
            raise UserError(f"{path} has the key {twice!r} twice; expected each key once. Remove or rename a key.")
        data = yaml.safe_load(text)
        if isinstance(data, dict) and "names" in data:
            data["names"] = yaml.load(text, yaml.BaseLoader)["names"]
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct the file.") from None
    if not isinstance(data, dict):
        raise UserError(f'{path} holds {str(data)[:80]!r}; expected the keys "names" and "train". Add these keys.')
    return data


def _repeated_key(node):
    """Returns a key that occurs twice in a mapping (YAML would silently use the last value), or None."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        return twice or next(filter(None, (_repeated_key(value) for _, value in node.value)), None)
    return None


def class_names(data: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Reads the classes of a `data.yaml`.

    Args:
        data: Result of `read_yaml`.
        path: Path of the file, for error messages.

    Returns:
        A dict from class id to class name.

    Raises:
        UserError: If names are missing or empty, or differ in number from `nc`.
    """
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        names = {int(key): name.strip() for key, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f'{path}: "names" is {str(data.get("names"))[:80]}; expected a list of class names, or a mapping from '
            'class id to name. Change "names".'
        ) from None
    if nameless := [number for number, name in names.items() if not name]:
        raise UserError(
            f'{path}: class {nameless[0]} of "names" has an empty name; expected a non-empty string. Change "names".'
        )
    count = data.get("nc", len(names))
    if as_int(count) != len(names):
        raise UserError(
            f'{path}: "nc" is {count!r}, but "names" has {len(names)} classes; expected the same number. Change "nc" '
            'or "names".'
        )
    if not names:
        raise UserError(f'{path}: "names" is empty; expected at least one class. Add the class names.')
    return names


def names_beside(root: Path) -> tuple[dict[int, str], Path] | None:
    """Reads the class list that LabelImg, Label Studio and Darknet write instead of a `data.yaml`.

    Args:
        root: Folder of the dataset. Its folders `labels` and `train` may also hold the list.

    Returns:
        A dict from class id to class name, and the path of the file; None if the folder has no class list.

    Raises:
        UserError: If the list does not hold one class name per line.
    """
    folders = (root, root / "labels", root / "train")
    for path in (folder / name for folder in folders for name in _NAME_FILES):
        if path.is_file():
            names = [line.strip() for line in read_text(path).splitlines()]
            check_class_list(list(filter(None, names)), path)
            if any(names):
                return {number: name for number, name in enumerate(names) if name}, path
    return None


def split_keys(data: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Finds the keys of a `data.yaml` that name splits: the usual ones, and others whose folder has images.

    Args:
        data: Result of `read_yaml`.
        path: Path of the file.

    Returns:
        A dict from split name to key.

    Raises:
        UserError: If two keys name the same split, such as "val" and "valid", and differ in their value.
    """
    found: dict[str, str] = {}
    for key, value in data.items():
        if not (value if key in SPLIT_KEYS else _is_image_folder(key, value, path.parent)):
            continue
        split = key if (known := split_of(key)) == WHOLE else known
        first = found.setdefault(split, key)
        if data[first] != value:
            raise UserError(
                f"{path} has the keys {first!r} and {key!r}, which both mean the split {split}; expected one key for "
                f"each split. Write both folders as a list, {first}: [{data[first]}, {value}], or remove a key."
            )
    return found


def _is_image_folder(key, value, root):
    if key == "path" or not isinstance(key, str) or not isinstance(value, str) or not value:
        return False
    return bool(images_in(root / value)) if (root / value).is_dir() else False


def split_images(data: Mapping[str, Any], path: Path, key: str, changes: Changes) -> list[Path]:
    """Lists the images of a split of a `data.yaml`.

    Args:
        data: Result of `read_yaml`.
        path: Path of the file.
        key: Key of the split, such as "train". Its value is a folder, a text file that lists images, or a list of
            these. The paths may be those of another machine, such as `/datasets/x` or `../train/images`.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Paths of the images.

    Raises:
        UserError: If a folder or list does not exist, or contains no images.
    """
    entries = data[key] if isinstance(data[key], list) else [data[key]]
    found = []
    for entry in entries:
        place = _place(str(entry), data.get("path"), path, key, changes)
        own = _listed(place, path.parent) if place.suffix == ".txt" else images_in(place)
        found += own
        if not own:
            raise UserError(
                f"{path}: {key} is the path {place}, which contains no image. Correct the path, or add images."
            )
    return list(dict.fromkeys(found))


def _place(entry, base, path, key, changes):
    """Returns the path of the folder or list that an entry of a `data.yaml` refers to."""
    root = path.parent
    entry = entry.replace("\\", "/")
    plain = [root / base / entry, root / entry] if base else [root / entry]
    inner = root / entry.removeprefix("../")
    if not base and inner != plain[0] and inner.exists() and plain[0].exists():
        # Roboflow writes ../train/images for train/images
        fact = f"is {entry!r}, which may be {plain[0].resolve()} or {inner}; {inner} was taken"
        changes.add("split_paths_repaired", f"{key} of {path.name}", fact)
        return inner
    for candidate in plain:
        if candidate.exists():
            return candidate
    parts = [part for part in f"{base or ''}/{entry}".split("/") if part not in ("", ".", "..")]
    for start in _starts([each.removesuffix(".txt") for each in parts], root):
        candidate = root.joinpath(*parts[start:])
        if candidate.exists():
            fact = f"is {entry!r}, which does not exist; {candidate} was taken"
            changes.add("split_paths_repaired", f"{key} of {path.name}", fact)
            return candidate
    raise UserError(f"{path}: {key} is {entry!r}, but {plain[0]} does not exist. Correct the path, or add the folder.")


def _starts(parts, root):
    """Yields how many leading parts of another machine's path may be dropped; a part that names the split must stay."""
    split = split_of("", *reversed(parts))
    for start in range(len(parts)):
        if split_of("", *reversed(parts[start:]), root.name) == split:
            yield start


def _listed(path, root):
    """Returns the images in a text file, with paths relative to the text file or to the folder of the `data.yaml`."""
    lines = [line.strip().replace("\\", "/") for line in read_text(path).splitlines()]
    images = []
    for line in filter(None, lines):
        parts = [part for part in line.split("/") if part not in ("", ".", "..")]
        tails = [Path(*parts[start:]) for start in _starts(parts, root)]
        candidates = [
            path.parent / line,
            root / line,
            *(folder / tail for tail in tails for folder in (path.parent, root)),
        ]
        images.append(next((candidate for candidate in candidates if candidate.is_file()), candidates[0]))
    return images


def label_of(image: Path) -> Path:
    """Returns the path of the label file of an image.

    Args:
        image: Path of the image.

    Returns:
        The first label file (.txt or .TXT) that exists in two places: the image's path with its last folder `images`
        (or `JPEGImages`) replaced by `labels`, then the folder of the image. If no file exists, the path in `labels`,
        or beside the image if its path has no folder `images`.
    """
    places = [image]
    for index in range(len(image.parts) - 2, -1, -1):
        if image.parts[index].lower() in ("images", "jpegimages"):
            folders = ("labels", "Labels", "LABELS")
            places = [Path(*image.parts[:index], name, *image.parts[index + 1 :]) for name in folders] + places
            break
    candidates = [place.with_suffix(suffix) for place in places for suffix in (".txt", ".TXT")]
    return next((path for path in candidates if path.is_file()), candidates[0])


def keypoint_shape(data: Mapping, file: Path) -> tuple[int, ...]:
    """Reads `kpt_shape` of a `data.yaml`.

    Args:
        data: Result of `read_yaml`.
        file: Path of the file, for error messages.

    Returns:
        The number of keypoints and the number of values per keypoint (2 or 3); () without keypoints.

    Raises:
        UserError: If `kpt_shape` has another form.
    """
    shape = data.get("kpt_shape") or ()
    if not shape:
        return ()
    numbers = [as_int(number) for number in as_list(shape) or ()]
    if None in numbers or len(numbers) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
        raise UserError(
            f"{file}: kpt_shape is {str(shape)[:80]}; expected the number of keypoints and 2 or 3, such as [17, 3]. "
            "Correct kpt_shape."
        )
    return tuple(numbers)


def keypoint_names(data: Mapping, file: Path) -> list[str]:
    """Names the keypoints of a `data.yaml`, so that `flip_order` finds the pairs of its `flip_idx`.

    Args:
        data: Result of `read_yaml`.
        file: Path of the file, for error messages.

    Returns:
        A name for each keypoint, such as "keypoint_1", "left_keypoint_2" and "right_keypoint_2".

    Raises:
        UserError: If `flip_idx` does not exchange pairs of keypoints.
    """
    count = sum(keypoint_shape(data, file)[:1])
    names = [f"keypoint_{number}" for number in range(1, count + 1)]
    flip = data.get("flip_idx")
    if not count or flip is None:
        return names
    order = [as_int(number) for number in as_list(flip) or ()]
    if sorted(order, key=str) != sorted(range(count), key=str) or any(order[j] != i for i, j in enumerate(order)):
        raise UserError(
            f"{file}: flip_idx is {str(flip)[:80]}; expected the index of the keypoint on the other side, from 0, for "
            f"each of the {count} keypoints, such as [0, 2, 1]. Correct flip_idx."
        )
    for i, j in enumerate(order):
        if i < j:
            names[i], names[j] = f"left_{names[i]}", f"right_{names[i]}"
    return names


def read_yolo(
    images: Sequence[Path],
    names: Mapping[int, str],
    changes: Changes,
    keypoint_shape: Sequence[int] = (),
    keypoint_names: Sequence[str] = (),
) -> dict:
    """Reads the label files of images. An image without a label file, or with an empty one, has no objects.

    A row is a class id and either a box (x centre, y centre, width, height), or the points of a polygon, or a box and
    keypoints. All coordinates are fractions of the image's width and height.

    Args:
        images: Paths of the images.
        names: Maps class ids to class names.
        changes: Counts the values that had to be converted or repaired.
        keypoint_shape: Result of `keypoint_shape`: the number of keypoints and of values per keypoint; () for none.
        keypoint_names: Result of `keypoint_names`.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. The ids of the
        categories are YOLO's class ids.

    Raises:
        UserError: If a row does not have one of these forms. The message names file and line.
    """
    categories = [{"id": class_id, "name": name} for class_id, name in sorted(names.items())]
    if keypoint_shape:
        for category in categories:
            category["keypoints"] = list(keypoint_names)
    entries, annotations, used = [], [], set()
    image_folders = defaultdict(set)  # folders of the images, by folder of their labels
    for image_id, (image, size) in enumerate(zip(images, upright_sizes(images), strict=True), 1):
        entries.append(image_entry(image_id, image, size))
        label = label_of(image)
        if label in used and label.is_file():
            changes.note("shared_labels", str(label), f"is for {image.name} and another image with the same stem")
        used.add(label)
        image_folders[label.parent].add(image.parent)
        if size is None or not label.is_file():
            continue
        for number, line in enumerate(read_text(label).splitlines(), 1):
            if line.strip():
                where = f"{label}: line {number}"
                read = functools.partial(_row, line.split(), names, size, keypoint_shape, where, changes)
                if (row := changes.read_object(read, where)) is not None:
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **row})
    if used and not any(label.is_file() for label in used):
        first = min(used)
        changes.note("no_labels", str(images[0]), f"and all others have no label file; {first} was looked for")
    for folder, places in sorted(image_folders.items()):
        stems = {path.stem for place in places if place.is_dir() for path in place.iterdir() if is_image(path)}
        for label in sorted(folder.glob("*.[tT][xX][tT]")):
            known = label in used or label.stem in stems  # the image may be of another split
            if not known and label.name not in _NAME_FILES and _is_label(label):
                changes.add("labels_without_image", str(label), "has no image")
    return {"images": entries, "annotations": annotations, "categories": categories}


def _is_label(path):
    """Returns whether a text file beside labels holds labels; lists of images and notes do not."""
    words = read_text(path).split()
    return len(words) >= 5 and words[0].isdigit() and not any(is_image(Path(word)) for word in words[:5])


def _row(words, names, size, keypoint_shape, where, changes):
    """Returns category, box and polygon or keypoints of a row of a label file, in pixels."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{where} is {' '.join(words)[:80]!r}; expected numbers separated by spaces. Change or remove the line."
        )
    class_id, values = values[0], values[1:]
    if class_id != int(class_id) or int(class_id) not in names:
        raise UserError(
            f"{where} has the class id {words[0]}; expected one of {min(names)} to {max(names)}. Change the id, or "
            "add its name to the class list."
        )
    count = math.prod(keypoint_shape) if keypoint_shape else 0
    if len(values) == 5 and not count:
        changes.add("scores_ignored", where, f"ends with {words[5]}, as detections do with a score")
        values = values[:4]
    if len(values) != 4 + count and (count or len(values) < 6 or len(values) % 2):
        expected = "4 for a box, or an even number, 6 or more, for a polygon"
        if count:
            expected = f"4 for the box and {count} for the keypoints"
        raise UserError(
            f"{where} has {len(values)} numbers after the class id; expected {expected}. Change or remove the line."
        )
    coordinates = values[: 4 if count else None]
    if worst := next((value for value in coordinates if abs(value) > 2), None):
        raise UserError(
            f"{where} has the coordinate {worst:g}; expected fractions of the image size, in [0, 1]. Divide pixel "
            "coordinates by the width or height of the image."
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
