"""Reads LabelMe's JSON: one file per image, with shapes of several kinds."""

import base64
import binascii
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from kerasdet.data.annotations import read_json
from kerasdet.data.classes import check_class_list
from kerasdet.data.files import ImageFinder, image_entry, is_image, read_text, upright_size
from kerasdet.data.images import SUFFIXES
from kerasdet.data.regions import box_of_mask, box_of_polygons, mask_of
from kerasdet.data.values import Changes, as_int
from kerasdet.errors import UserError
from kerasdet.geometry import rle

_NOT_CLASSES = ("__ignore__", "_background_")  # labels of LabelMe that mean no object
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_SHAPES = ("polygon", "rectangle", "circle", "mask")


def is_labelme(data: Any) -> bool:
    """Tells whether a JSON file is in LabelMe's format.

    Args:
        data: Parsed JSON.

    Returns:
        True for LabelMe's format.
    """
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def labels_of(data: Mapping[str, Any]) -> set[str]:
    """Collects the labels of the shapes in a file that are objects: points and lines have no area.

    Args:
        data: Parsed JSON of a LabelMe file.

    Returns:
        The labels, without duplicates, and without `__ignore__` and `_background_`.
    """
    shapes = [shape for shape in data["shapes"] if isinstance(shape, dict) and _kind(shape) not in _WITHOUT_AREA]
    return {_label(shape) for shape in shapes} - {"", *_NOT_CLASSES}


def listed_labels(folder: Path) -> list[str]:
    """Reads LabelMe's list of classes, `labels.txt`.

    Args:
        folder: Folder that may contain the file.

    Returns:
        Class names in their order; [] if the folder has no such file.

    Raises:
        UserError: If the file does not hold one class name per line.
    """
    path = folder / "labels.txt"
    if not path.is_file():
        return []
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if line and line not in _NOT_CLASSES]
    check_class_list(names, path)
    return names


def read_labelme(files: Sequence[Path], names: Sequence[str], changes: Changes) -> dict:
    """Reads LabelMe files.

    Shapes with the same label and `group_id` are parts of one object, unless all shapes of a file have the id 0, which
    other tools write for "no group". Points and lines, which have no area, and shapes with the labels `__ignore__` and
    `_background_` are counted and left out. If the image file is missing, the image is read from `imageData` in the
    JSON.

    Args:
        files: Paths of the JSON files.
        names: Names of the K classes, in the order of the class ids.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file; category ids are 1..K.

    Raises:
        UserError: If a file or a shape is invalid. The message names the file and the shape.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    category_of = {name: number for number, name in enumerate(names, 1)}
    entries, annotations = [], []
    finders: dict[Path, ImageFinder] = {}
    for image_id, path in enumerate(files, 1):
        data = read_json(path)
        if not is_labelme(data):
            raise UserError(
                f'{path} has no list "shapes" or no "imagePath"; expected a LabelMe file. Add these keys, or remove '
                "the file from the folder."
            )
        if path.parent not in finders:
            finders[path.parent] = ImageFinder([path.parent, path.parent.parent / "images"], changes)
        entry = _image(image_id, path, data, finders[path.parent])
        entries.append(entry)
        for label, polygons, masks in _objects(data, path, category_of, changes):
            region = _region(polygons, masks, (entry.get("height"), entry.get("width")), path)
            own = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_of[label], "iscrowd": 0}
            annotations.append({**own, **region})
    _count_images_without_file(files, entries, changes)
    return {"images": entries, "annotations": annotations, "categories": categories}


def _image(image_id, path, data, finder):
    """Returns the entry of an image with the size that the file states, which `Dataset` compares with the image's."""
    found = finder.find(str(data["imagePath"]), str(path))
    own = next((each for suffix in SUFFIXES if (each := path.with_suffix(suffix)).is_file()), found)
    if own.stem != found.stem and found.is_file():
        raise UserError(
            f"{path} refers to {data['imagePath']!r} in imagePath, but {own.name}, which also exists, matches the "
            f"file name; it is unclear which image is meant. Set imagePath to {own.name!r}, or remove the wrong image."
        )
    stated = as_int(data.get("imageHeight")), as_int(data.get("imageWidth"))
    size = stated if all(length is not None and length > 0 for length in stated) else None
    if found.is_file() or not data.get("imageData"):
        return image_entry(image_id, found, size or upright_size(found))
    content = functools.partial(image_data, path)
    with Image.open(io.BytesIO(content())) as image:
        size = size or (image.height, image.width)
    return {**image_entry(image_id, path.with_suffix(found.suffix), size), "content": content}


def _count_images_without_file(files, entries, changes):
    """Counts images without a LabelMe file: LabelMe writes no file for an image without objects."""
    named = {entry["file_name"] for entry in entries}
    for folder in sorted({path.parent for path in files}):
        for path in sorted(folder.iterdir()):
            if is_image(path) and str(path) not in named:
                changes.add("images_without_file", str(path), "has no LabelMe file")


def image_data(path: Path) -> bytes:
    """Reads the image inside a LabelMe file.

    Args:
        path: Path of the JSON file.

    Returns:
        Bytes of the image file.

    Raises:
        UserError: If `imageData` is not an image in base64.
    """
    try:
        content = base64.b64decode(read_json(path)["imageData"], validate=False)
        Image.open(io.BytesIO(content)).close()
    except (binascii.Error, OSError, TypeError, ValueError, KeyError) as error:
        reason = "its bytes are no image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f'{path}: "imageData" is not an image in base64 ({reason}). Put the image beside the JSON, or save the '
            "JSON again with LabelMe."
        ) from None
    return content


def _objects(data, path, names, changes):
    """Returns (label, polygons, masks) of each object; shapes of the same group are joined."""
    ids = [shape.get("group_id") for shape in data["shapes"] if isinstance(shape, dict)]
    is_default = len(ids) > 1 and all(str(group) == "0" for group in ids)
    if is_default:
        changes.note("default_groups", str(path), f"has {len(ids)} shapes with group_id 0")
    groups = {}
    for number, shape in enumerate(data["shapes"], 1):
        where = f"{path}: shape {number}"
        part = changes.read_object(functools.partial(_part, shape, where, names, changes), where)
        if part is None:
            continue
        label, polygons, masks = part
        group = None if is_default else shape.get("group_id")
        key = number if group in (None, "") else (label, str(group))
        if key in groups:
            changes.note("joined_shapes", where, f"has the group_id {group} of another {label!r}")
        _, *known = groups.setdefault(key, (label, [], []))
        known[0].extend(polygons)
        known[1].extend(masks)
    return list(groups.values())


def _label(shape):
    return str(shape.get("label") or "").strip()


def _kind(shape):
    return str(shape.get("shape_type") or "polygon")


def _part(shape, where, names, changes):
    """Returns (label, polygons, masks) of a shape, one of the lists empty; None if the shape is no object."""
    label = _label(shape) if isinstance(shape, dict) else ""
    if not label or not isinstance(shape.get("points"), list):
        raise UserError(
            f'{where} is {str(shape)[:80]}; expected an object with a "label" and "points". Change or remove the shape.'
        )
    kind = _kind(shape)
    if kind in _WITHOUT_AREA:
        changes.add("shapes_without_area", where, f"is a {kind}")
        return None
    if label in _NOT_CLASSES:
        changes.note("ignored_shapes", where, f"has the label {label}")
        return None
    if label not in names:
        raise UserError(
            f"{where} has the label {label!r}; expected one of {', '.join(names)}. Change the label, or add it to "
            "labels.txt."
        )
    try:
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.full((1, 2), np.nan)
    if kind == "rotation":
        raise UserError(
            f"{where} is a rotation, a rotated rectangle of X-AnyLabeling; expected one of {', '.join(_SHAPES)}, "
            "because boxes are upright. Change its shape_type to polygon."
        )
    least = {"rectangle": 2, "circle": 2, "mask": 2}.get(kind, 3)
    if kind not in _SHAPES or len(points) < least or not np.isfinite(points).all():
        raise UserError(
            f"{where} is a {kind} with the points {str(shape['points'])[:80]}; expected one of {', '.join(_SHAPES)}, "
            f"and at least {least} points (x, y). Change or remove the shape."
        )
    return (label, [], [_mask(shape, points, where)]) if kind == "mask" else (label, [_outline(kind, points)], [])


def _outline(kind, points):
    """Returns the polygon (P, 2) of a shape."""
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        # Like LabelMe's labelme2coco: an edge of the polygon differs from the circle by at most a pixel
        count = max(int(math.pi / math.acos(1 - 1 / radius)), 12) if radius > 1 else 12
        angles = 2 * np.pi * np.arange(count) / count
        return points[0] + radius * np.stack([np.sin(angles), np.cos(angles)], 1)
    return points


def _mask(shape, points, where):
    """Returns the top left corner (x, y) and the pixels of a mask shape."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            pixels = np.array(image.convert("L")) > 0
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise UserError(f'{where} has no "mask" that is an image in base64 ({error}). Draw the mask again.') from None
    x, y = points.min(0)
    return round(x), round(y), pixels


def _region(polygons, masks, size, path):
    """Returns box and segmentation of an object."""
    if not masks:
        return {"bbox": box_of_polygons(polygons), "segmentation": [polygon.ravel().tolist() for polygon in polygons]}
    if None in size:
        raise UserError(
            f"{path}: its image is missing or cannot be read, and imageHeight and imageWidth are missing; the size is "
            "needed to read the masks. Add the image, or both keys."
        )
    whole = np.zeros(size, bool)
    if polygons:
        whole |= mask_of([polygon.ravel().tolist() for polygon in polygons], *size)
    for x, y, pixels in masks:
        target = whole[max(y, 0) : y + pixels.shape[0], max(x, 0) : x + pixels.shape[1]]
        target |= pixels[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return {"bbox": box_of_mask(whole), "segmentation": rle.encode(whole[None])[0]}
