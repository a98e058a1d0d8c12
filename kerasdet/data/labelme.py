"""Reads LabelMe's JSON: one file an image, with shapes of several kinds."""

import base64
import binascii
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kerasdet.data.annotations import read_json
from kerasdet.data.files import ImageFinder, image_entry, read_text, upright_size
from kerasdet.data.regions import box_of_mask, box_of_polygons, mask_of
from kerasdet.data.values import Changes
from kerasdet.errors import UserError
from kerasdet.geometry import rle

_NOT_CLASSES = ("__ignore__", "_background_")  # the first lines of LabelMe's labels.txt
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_SHAPES = ("polygon", "rectangle", "circle", "mask")


def is_labelme(data: Any) -> bool:
    """Returns whether the contents of a JSON file are LabelMe's."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def labels_of(data: Mapping[str, Any]) -> set[str]:
    """Returns the labels of the shapes in a file."""
    return {str(shape.get("label")) for shape in data["shapes"] if isinstance(shape, dict)}


def listed_labels(folder: Path) -> list[str]:
    """Reads LabelMe's `labels.txt`; returns [] if the folder has none."""
    path = folder / "labels.txt"
    lines = [line.strip() for line in read_text(path).splitlines()] if path.is_file() else []
    return [line for line in lines if line and line not in _NOT_CLASSES]


def read_labelme(files: Sequence[Path], names: Sequence[str], changes: Changes) -> dict:
    """Reads LabelMe files.

    Shapes with the same label and `group_id` are parts of one object. Points and lines have no area: they are counted
    and left out. An image that is missing on disk is read from the file's `imageData`.

    Args:
        files: Paths of the JSON files.
        names: The K names of the classes.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file; category ids are 1..K.

    Raises:
        UserError: If a file or a shape is invalid, naming it.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    category_of = {name: number for number, name in enumerate(names, 1)}
    entries, annotations = [], []
    finders = {}
    for image_id, path in enumerate(files, 1):
        data = read_json(path)
        if not is_labelme(data):
            raise UserError(f'{path} has no list "shapes" or no "imagePath"; expected a LabelMe file. Remove the file.')
        if path.parent not in finders:
            finders[path.parent] = ImageFinder([path.parent, path.parent.parent / "images"], changes)
        entry = _image(image_id, path, data, finders[path.parent])
        entries.append(entry)
        for parts in _objects(data, path, changes):
            label, polygons, masks = parts
            if label not in category_of:
                raise UserError(
                    f"{path} has a shape {label!r}; expected one of {', '.join(names)}. Correct the label, or the list "
                    "of classes."
                )
            size = entry.get("height", data.get("imageHeight")), entry.get("width", data.get("imageWidth"))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_of[label],
                    "iscrowd": 0,
                    **_region(polygons, masks, size, path),
                }
            )
    return {"images": entries, "annotations": annotations, "categories": categories}


def _image(image_id, path, data, finder):
    found = finder.find(str(data["imagePath"]), str(path))
    if found.is_file() or not data.get("imageData"):
        return image_entry(image_id, found, upright_size(found))
    content = functools.partial(image_data, path)
    with Image.open(io.BytesIO(content())) as image:
        size = image.height, image.width
    return {**image_entry(image_id, path.with_suffix(found.suffix), size), "content": content}


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
        raise UserError(
            f'{path}: "imageData" is not an image in base64 ({error}). Put the image file beside the JSON, or save it '
            "again with LabelMe."
        ) from None
    return content


def _objects(data, path, changes):
    """Yields (label, polygons, masks) of each object: shapes of a group are joined."""
    groups = {}
    for number, shape in enumerate(data["shapes"], 1):
        where = f"{path}: shape {number}"
        if not isinstance(shape, dict) or shape.get("label") in (None, "") or not isinstance(shape.get("points"), list):
            raise UserError(f'{where} is {str(shape)[:80]}; expected a "label" and "points". Correct the file.')
        kind = shape.get("shape_type") or "polygon"
        if kind in _WITHOUT_AREA:
            changes.add("shapes_without_area", where, f"is a {kind}")
            continue
        try:
            points = np.array(shape["points"], np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            points = np.full((1, 2), np.nan)
        least = {"rectangle": 2, "circle": 2, "mask": 2}.get(kind, 3)
        if kind not in _SHAPES or len(points) < least or not np.isfinite(points).all():
            raise UserError(
                f"{where} is a {kind} with the points {str(shape['points'])[:80]}; expected one of "
                f"{', '.join(_SHAPES)} with at least {least} points (x, y). Correct the shape."
            )
        group = shape.get("group_id")
        key = number if group in (None, "") else (str(shape["label"]), str(group))
        _, polygons, masks = groups.setdefault(key, (str(shape["label"]), [], []))
        if kind == "mask":
            masks.append(_mask(shape, points, where))
        else:
            polygons.append(_outline(kind, points))
    yield from groups.values()


def _outline(kind, points):
    """Returns the polygon (P, 2) of a shape."""
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        # As labelme2coco of LabelMe: an edge leaves the circle by at most a pixel
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
    if not all(isinstance(length, int) for length in size):
        raise UserError(f"{path}: its image is missing, and a mask needs the size of the image. Add the image.")
    whole = np.zeros(size, bool)
    if polygons:
        whole |= mask_of([polygon.ravel().tolist() for polygon in polygons], *size)
    for x, y, pixels in masks:
        target = whole[max(y, 0) : y + pixels.shape[0], max(x, 0) : x + pixels.shape[1]]
        target |= pixels[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return {"bbox": box_of_mask(whole), "segmentation": rle.encode(whole[None])[0]}
