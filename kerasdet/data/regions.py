"""Converts between polygons, masks and boxes, because annotation formats store different ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.geometry import rle


def box_of_polygons(polygons: Sequence[Sequence[float] | np.ndarray]) -> list[float]:
    """Computes the tight box around polygons.

    Args:
        polygons: At least one polygon in pixels, [x, y, x, y, ...] or (P, 2) as (x, y).

    Returns:
        The box [x, y, width, height] in pixels.
    """
    points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def box_of_mask(mask: np.ndarray) -> list[float]:
    """Computes the tight box around a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        The box [x, y, width, height] in pixels; zeros if the mask is empty.
    """
    if not mask.any():
        return [0.0, 0.0, 0.0, 0.0]
    (y1, y2), (x1, x2) = (np.flatnonzero(mask.any(axis))[[0, -1]].tolist() for axis in (1, 0))
    return [float(x1), float(y1), float(x2 - x1 + 1), float(y2 - y1 + 1)]


def mask_of(segmentation: Sequence | Mapping, height: int, width: int) -> np.ndarray:
    """Converts a COCO segmentation to the mask that pycocotools creates from it.

    Args:
        segmentation: Polygons [[x, y, ...], ...] in pixels, or RLE {"size", "counts"}.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The mask, (H, W) bool.

    Raises:
        ValueError: If the segmentation is invalid. The message begins with "has"; callers put the file and the
            annotation before it.
    """
    runs = rle.runs_from_segmentation(segmentation, height, width)
    if not len(runs):
        return np.zeros((height, width), bool)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def polygons_of(mask: np.ndarray) -> list[np.ndarray]:
    """Traces the outlines of a mask along the edges of its pixels.

    Holes are left out, because polygons of YOLO and COCO have none. Pixels that touch only at a corner are traced as
    separate parts.

    Args:
        mask: (H, W) bool.

    Returns:
        One polygon (P, 2) float64 per part, its corners as (x, y) in pixels.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    # Each border between a pixel of the mask and another pixel is an edge that has the mask on its right; y points down
    edges = {}
    for axis, step in ((0, (1, 0)), (1, (0, 1))):
        change = np.diff(padded, axis=axis)
        for y, x in np.argwhere(change):
            entering = change[y, x] > 0
            # In padded coordinates; the corner (x, y) of the image is (x + 1, y + 1) there
            corner = (int(x) - 1, int(y)) if axis == 0 else (int(x), int(y) - 1)
            end = (corner[0] + step[0], corner[1] + step[1])
            start, stop = (corner, end) if entering == (axis == 0) else (end, corner)
            edges.setdefault(start, []).append(stop)
    loops = []
    while edges:
        start = next(iter(edges))
        loop, previous = [start], None
        while True:
            current = loop[-1]
            choices = edges[current]
            following = choices[0] if len(choices) == 1 else _right_turn(previous, current, choices)
            choices.remove(following)
            if not choices:
                del edges[current]
            if following == start:
                break
            previous = current
            loop.append(following)
        loops.append(_corners(np.array(loop, np.float64)))
    return [loop for loop in loops if _area(loop) > 0]


def _right_turn(previous, current, choices):
    """Chooses the edge that turns right; pixels that touch only at a corner then stay separate."""
    if previous is None:
        return choices[0]
    dx, dy = current[0] - previous[0], current[1] - previous[1]
    right = (current[0] - dy, current[1] + dx)
    return right if right in choices else choices[0]


def _corners(loop):
    """Drops the points of a closed loop (P, 2) where it goes straight on."""
    turns = (np.roll(loop, -1, 0) - loop != loop - np.roll(loop, 1, 0)).any(1)
    return loop[turns]


def _area(polygon):
    """Returns the area of a polygon (P, 2), which is negative for holes."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def join_polygons(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Joins polygons into one by bridges of zero width between their nearest points, like Ultralytics for YOLO.

    Args:
        polygons: At least one polygon (P, 2), as (x, y) in pixels.

    Returns:
        One polygon (P, 2) float64.
    """
    joined = np.asarray(polygons[0], np.float64)
    for polygon in polygons[1:]:
        polygon = np.asarray(polygon, np.float64)
        distances = ((joined[:, None] - polygon[None]) ** 2).sum(-1)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        detour = np.concatenate([polygon[j:], polygon[: j + 1]])
        joined = np.concatenate([joined[: i + 1], detour, joined[i:]])
    return joined
