"""Reads segmentations in the forms that annotation tools write: polygons as flat lists or lists of points, and RLE."""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as rle

from kerasdet.data.values import Changes, Name, as_float, as_int, as_list, is_missing, is_plain, show

_MAX_PIXEL = 1e6

Segmentation = list[list[float]] | dict


def read_segmentation(value: Any, changes: Changes, name: Name) -> Segmentation | None:
    """Converts a segmentation to COCO's documented form.

    Args:
        value: Polygons, one flat polygon, a polygon of points, or RLE {"size", "counts"}, compressed or not.
        changes: Counts the values that had to be converted or repaired.
        name: Function that returns the name of the annotation for error messages.

    Returns:
        Polygons [[x, y, ...], ...] with at least three points each, or RLE {"size", "counts"}; None if `value` holds no
        mask.

    Raises:
        ValueError: If the value is not a segmentation. The message begins with "has"; callers put the file and the
            annotation before it.
        UserError: If `changes` is strict and the value must be converted. The message is complete.
    """
    if isinstance(value, str) and value.strip():
        changes.add("converted_values", name(), 'has a "segmentation" as a string')
        value = _parsed(value)
        if not isinstance(value, list | dict):
            raise ValueError('has a "segmentation" that is neither a list of polygons nor an RLE')
    if is_missing(value):
        return None
    if isinstance(value, Mapping):
        return _read_rle(value, changes, name)
    polygons = as_list(value)
    if polygons is None:
        raise ValueError(f'has the "segmentation" {show(value)}, which is neither a list of polygons nor an RLE')
    if type(value) is list and all(map(_is_polygon, value)):
        return value
    polygons = _as_polygons(polygons, changes, name)
    kept = [polygon for polygon in polygons if len(polygon) >= 6]
    if len(kept) < len(polygons):
        changes.add("short_polygons", name(), "has a polygon of fewer than three points")
    if odd := [polygon for polygon in kept if len(polygon) % 2]:
        changes.add("odd_polygons", name(), f"has a polygon of {len(odd[0])} numbers")
    return [polygon[: len(polygon) // 2 * 2] for polygon in kept] or None


def box_of(segmentation: Segmentation) -> list[float]:
    """Computes the tight box around a segmentation.

    Args:
        segmentation: Result of `read_segmentation`.

    Returns:
        The box [x, y, width, height] in pixels.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        code = rle.frPyObjects(segmentation, *segmentation["size"]) if isinstance(counts, list) else segmentation
        return rle.toBbox(code).tolist()
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    return [*points.min(0).tolist(), *np.ptp(points, 0).tolist()]


def _parsed(text):
    """Parses JSON; returns None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_polygon(value):
    """Returns whether a polygon is in COCO's form, by a fast check: NaN in the list makes its sum NaN."""
    plain = is_plain(value) and len(value) >= 6 and len(value) % 2 == 0
    return plain and min(value) >= -_MAX_PIXEL and max(value) <= _MAX_PIXEL and not math.isnan(sum(value))


def _as_polygons(items, changes, name):
    """Returns polygons as lists of numbers; `items` are polygons, or the numbers or the points of one polygon."""
    if as_float(items[0]) is not None:
        changes.add("flat_polygons", name(), "has one polygon outside a list of polygons")
        items = [items]
    polygons = []
    for item in items:
        polygon = as_list(item)
        if polygon is None:
            raise ValueError(f"has a polygon that is not a list of numbers: {show(item)}")
        if polygon and isinstance(polygon[0], list | tuple):
            changes.add("flat_polygons", name(), "has a polygon as a list of points")
            polygon = _joined(polygon)
        polygons.append(polygon)
    if len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons):
        changes.add("flat_polygons", name(), "has one polygon as a list of points")
        polygons = [_joined(polygons)]
    return [_numbers(polygon, changes, name) for polygon in polygons]


def _joined(points):
    if not all(isinstance(point, list | tuple) and len(point) == 2 for point in points):
        raise ValueError(f"has a polygon whose points are not all pairs of numbers: {show(points)}")
    return list(itertools.chain.from_iterable(points))


def _numbers(polygon, changes, name):
    numbers = [as_float(item) for item in polygon]
    if None in numbers or not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > _MAX_PIXEL:
        wrong = next(
            item
            for item, number in zip(polygon, numbers, strict=True)
            if number is None or not abs(number) <= _MAX_PIXEL
        )
        raise ValueError(
            f"has a polygon with the entry {show(wrong)}; expected finite numbers in pixels, at most {_MAX_PIXEL:g}"
        )
    if not is_plain(polygon):
        changes.add("converted_values", name(), f"has the polygon {show(polygon)}")
    return numbers


def _read_rle(value, changes, name):
    size, counts = as_list(value.get("size")), value.get("counts")
    whole = None if size is None else [as_int(length) for length in size]
    if whole is None or len(whole) != 2 or None in whole:
        raise ValueError(f"has an RLE mask of size {show(value.get('size'))}; expected two integers, [height, width]")
    if isinstance(counts, str) and not counts.isascii():
        raise ValueError(f'has an RLE mask whose "counts" are not an ASCII string: {show(counts)}')
    if not isinstance(counts, str | bytes):
        listed = as_list(counts)
        runs = None if listed is None else [as_int(count) for count in listed]
        if runs is None or None in runs:
            raise ValueError('has an RLE mask whose "counts" are neither a string nor a list of integers')
        if min(runs, default=0) < 0:
            raise ValueError(f'has an RLE mask whose "counts" contain {min(runs)}; expected lengths of 0 or more')
        if not all(type(count) is int for count in listed):
            changes.add("converted_values", name(), 'has RLE "counts" of another type')
        counts = runs
    if any(type(length) is not int for length in size):
        changes.add("converted_values", name(), f'has the RLE "size" {show(size)}')
    return {"size": whole, "counts": counts}
