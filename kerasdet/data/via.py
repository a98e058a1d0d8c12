"""Reads the JSON of the VGG Image Annotator (VIA): one file of regions for a folder of images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasdet.data.files import ImageFinder, image_entry, upright_sizes
from kerasdet.data.regions import box_of_polygons
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")
_UNNAMED = "object"
_CURVE_POINTS = 32


def is_via(data: Any) -> bool:
    """Returns whether the contents of a JSON file are a project or an export of VIA 1 or 2."""
    entries = _entries(data)
    return bool(entries) and all(
        isinstance(item, dict) and "filename" in item and "regions" in item for item in entries
    )


def _entries(data):
    if not isinstance(data, dict):
        return []
    return list(data.get("_via_img_metadata", data).values())


def read_via(data: Mapping[str, Any], path: Path, changes: Changes) -> dict:
    """Reads a project or an export of VIA.

    The class of a region is its attribute `class`, `label`, `name`, `type`, `category` or `object`, or else its only
    attribute. If no region has attributes, there is one class, "object".

    Args:
        data: Contents of the JSON file.
        path: Path of the file. The images are beside it, or in `images/`.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file.

    Raises:
        UserError: If a region is invalid, naming it.
    """
    finder = ImageFinder([path.parent, path.parent / "images"], changes)
    items = _entries(data)
    images = [finder.find(str(item["filename"]), f"{path}: item {number}") for number, item in enumerate(items, 1)]
    entries = [
        image_entry(i, image, size)
        for i, (image, size) in enumerate(zip(images, upright_sizes(images), strict=True), 1)
    ]
    key = _class_key(items, path)
    annotations = []
    for entry, item in zip(entries, items, strict=True):
        regions = item["regions"].values() if isinstance(item["regions"], dict) else item["regions"]
        for number, region in enumerate(regions, 1):
            where = f"{path}: region {number} of {item['filename']}"
            shape = _shape(region, where, changes)
            if shape is not None:
                name = _class_name(region.get("region_attributes"), key, where, changes)
                annotations.append({"image_id": entry["id"], "name": name, "iscrowd": 0, **shape})
    names = sorted({annotation["name"] for annotation in annotations}) or [_UNNAMED]
    category_of = {name: number for number, name in enumerate(names, 1)}
    for number, annotation in enumerate(annotations, 1):
        annotation.update(id=number, category_id=category_of[annotation.pop("name")])
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _class_key(items, path):
    """Returns the name of the attribute that holds the class, or None if no region has attributes."""
    regions = [
        r
        for item in items
        for r in (item["regions"].values() if isinstance(item["regions"], dict) else item["regions"])
    ]
    keys = {key for region in regions for key in (region.get("region_attributes") or {})}
    known = [key for key in _CLASS_KEYS for own in keys if own.lower() == key]
    if known or len(keys) < 2:
        return next((own for own in keys if not known or own.lower() == known[0]), None)
    raise UserError(
        f"{path}: regions have the attributes {', '.join(sorted(keys))}; expected one of {', '.join(_CLASS_KEYS)} to "
        "be the class. Rename the attribute that is the class."
    )


def _class_name(attributes, key, where, changes):
    value = (attributes or {}).get(key) if key else _UNNAMED
    if isinstance(value, dict):  # a check box: {"cat": true}
        value = next((name for name, chosen in value.items() if chosen), None)
    if value in (None, ""):
        changes.add("unnamed_shapes", where, f"has no {key}")
        return _UNNAMED
    return str(value)


def _shape(region, where, changes):
    """Returns box and segmentation of a region, or None if it has no area."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    kind = shape.get("name") if isinstance(shape, dict) else None
    if kind in ("point", "polyline"):
        changes.add("shapes_without_area", where, f"is a {kind}")
        return None
    try:
        if kind == "rect":
            x, y, w, h = (float(shape[name]) for name in ("x", "y", "width", "height"))
            points = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
        elif kind == "polygon":
            points = np.stack([shape["all_points_x"], shape["all_points_y"]], 1).astype(np.float64)
        elif kind in ("circle", "ellipse"):
            points = _ellipse(shape)
        else:
            raise ValueError
        if len(points) < 3 or not np.isfinite(points).all():
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where} is {str(region)[:120]}; expected a rect, polygon, circle or ellipse with its numbers. Correct "
            "the region."
        ) from None
    return {"bbox": box_of_polygons([points]), "segmentation": [points.ravel().tolist()]}


def _ellipse(shape):
    rx, ry = float(shape.get("rx", shape.get("r"))), float(shape.get("ry", shape.get("r")))
    angles = 2 * math.pi * np.arange(_CURVE_POINTS) / _CURVE_POINTS
    turn = float(shape.get("theta", 0))
    x, y = rx * np.cos(angles), ry * np.sin(angles)
    rotated = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], 1)
    return rotated + np.array([shape["cx"], shape["cy"]], np.float64)
