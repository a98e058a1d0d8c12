"""Reads the JSON of the VGG Image Annotator (VIA): one file of regions for a folder of images."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasdet.data.annotations import read_json
from kerasdet.data.files import ImageFinder, image_entry, upright_sizes
from kerasdet.data.regions import box_of_polygons
from kerasdet.data.values import Changes
from kerasdet.errors import UserError

_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")
_UNNAMED = "object"
_CURVE_POINTS = 32  # number of corners of the polygon that replaces a circle or an ellipse


def is_via(data: Any) -> bool:
    """Tells whether a JSON file is a project or an export of VIA (VGG Image Annotator) 1 or 2.

    Args:
        data: Parsed JSON.

    Returns:
        True for VIA's format.
    """
    entries = _entries(data)
    return bool(entries) and all(
        isinstance(item, dict) and "filename" in item and "regions" in item for item in entries
    )


def _entries(data):
    if not isinstance(data, dict):
        return []
    return list(data.get("_via_img_metadata", data).values())


def read_via(files: Sequence[Path], changes: Changes) -> dict:
    """Reads projects or exports of VIA (VGG Image Annotator) and joins them.

    One attribute of the regions in a file holds the class: the first of `class`, `label`, `name`, `type`, `category`
    and `object` that occurs, or else the only attribute. Regions without this attribute get the class "object".

    Args:
        files: Paths of the JSON files of a split. The images are beside each file, or in `images/`.
        changes: Counts the values that had to be converted or repaired.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file.

    Raises:
        UserError: If a region is invalid, or two files annotate the same image. The message names the file and the
            region.
    """
    entries, annotations, file_of = [], [], {}
    for file in files:
        own, regions = _read_file(read_json(file), file, changes)
        for entry in own:
            if (other := file_of.setdefault(entry["file_name"], file)) != file:
                raise UserError(
                    f"{other} and {file} both annotate the image {entry['file_name']}; expected one VIA file for each "
                    "image. Remove the older file, or give the path of one file instead of the folder."
                )
        annotations += [{**region, "image_id": region["image_id"] + len(entries)} for region in regions]
        entries += [{**entry, "id": entry["id"] + len(entries)} for entry in own]
    names = sorted({annotation["name"] for annotation in annotations}) or [_UNNAMED]
    category_of = {name: number for number, name in enumerate(names, 1)}
    for number, annotation in enumerate(annotations, 1):
        annotation.update(id=number, category_id=category_of[annotation.pop("name")])
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _read_file(data, path, changes):
    """Returns the images of a file, and its regions with the name of their class; ids of images count from 1."""
    finder = ImageFinder([path.parent, path.parent / "images"], changes)
    items = _entries(data)
    images = [finder.find(str(item["filename"]), f"{path}: item {number}") for number, item in enumerate(items, 1)]
    entries = [
        image_entry(i, image, size)
        for i, (image, size) in enumerate(zip(images, upright_sizes(images), strict=True), 1)
    ]
    key = _class_key(items, path, changes)
    options = _options(data, key)
    annotations = []
    for entry, item in zip(entries, items, strict=True):
        regions = item["regions"].values() if isinstance(item["regions"], dict) else item["regions"]
        for number, region in enumerate(regions, 1):
            where = f"{path}: region {number} of {item['filename']}"
            shape = changes.read_object(functools.partial(_shape, region, where, changes), where)
            if shape is None:
                continue
            name = changes.read_object(functools.partial(_class_name, _attributes(region), key, where, changes), where)
            if name is not None:
                if options.get(name, name) != name:
                    changes.note("mapped_options", where, f"has {key} {name!r}, which is {options[name]!r}")
                    name = options[name]
                annotations.append({"image_id": entry["id"], "name": name, "iscrowd": 0, **shape})
    return entries, annotations


def _class_key(items, path, changes):
    """Returns the name of the attribute that holds the class, or None if no region has attributes."""
    regions = [
        r
        for item in items
        for r in (item["regions"].values() if isinstance(item["regions"], dict) else item["regions"])
    ]
    keys = sorted({key for region in regions if isinstance(region, dict) for key in _attributes(region)})
    known = [own for key in _CLASS_KEYS for own in keys if own.strip().lower() == key]
    first = [own for own in known if own.strip().lower() == known[0].strip().lower()] or keys
    if len(first) < 2:
        if others := [key for key in keys if key not in first]:
            changes.note("other_attributes", str(path), f"has the classes in {first[0]}; {', '.join(others)} left out")
        return next(iter(first), None)
    raise UserError(
        f"{path}: regions have the attributes {', '.join(first)}; expected one of {', '.join(_CLASS_KEYS)} for the "
        "class. Rename the attribute that holds the class."
    )


def _attributes(region):
    attributes = region.get("region_attributes")
    return attributes if isinstance(attributes, dict) else {}


def _options(data, key):
    """Returns the names of the options of a class attribute by their numbers; {} if the options have no numbers."""
    attributes = data.get("_via_attributes")
    regions = attributes.get("region") if isinstance(attributes, dict) else None
    attribute = regions.get(key) if isinstance(regions, dict) and key else None
    options = attribute.get("options") if isinstance(attribute, dict) else None
    if not isinstance(options, dict) or not all(str(number).isdigit() for number in options):
        return {}
    return {number: str(name).strip() for number, name in options.items() if str(name or "").strip()}


def _class_name(attributes, key, where, changes):
    value = attributes.get(key) if key else _UNNAMED
    if isinstance(value, dict):  # a check box: {"cat": true}
        value = [name for name, chosen in value.items() if chosen]
    if isinstance(value, list):
        if len(value) > 1:
            raise UserError(f"{where} has {key} {', '.join(map(str, value))}; expected one class. Keep only one.")
        value = next(iter(value), None)
    if value is None or not str(value).strip():
        changes.add("unnamed_shapes", where, f"has no {key}")
        return _UNNAMED
    return str(value).strip()


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
            f"{where} is {str(region)[:120]}; expected a rect, polygon, circle or ellipse with its coordinates. "
            "Change or remove the region."
        ) from None
    return {"bbox": box_of_polygons([points]), "segmentation": [points.ravel().tolist()]}


def _ellipse(shape):
    rx, ry = float(shape.get("rx", shape.get("r"))), float(shape.get("ry", shape.get("r")))
    angles = 2 * math.pi * np.arange(_CURVE_POINTS) / _CURVE_POINTS
    turn = float(shape.get("theta", 0))
    x, y = rx * np.cos(angles), ry * np.sin(angles)
    rotated = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], 1)
    return rotated + np.array([shape["cx"], shape["cy"]], np.float64)
