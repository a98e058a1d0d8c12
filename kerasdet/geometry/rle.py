"""Converts COCO segmentations (polygons, RLE) to run lengths, and masks to compressed RLE and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as rle

if TYPE_CHECKING:  # scoring files of detections needs no TensorFlow
    import tensorflow as tf


def runs_from_segmentation(segmentation: Sequence | Mapping, height: int, width: int) -> np.ndarray:
    """Converts a COCO segmentation to run lengths, for exactly the mask that pycocotools makes of it.

    Args:
        segmentation: Polygons [[x, y, ...], ...] in pixels, or RLE {"size", "counts"}, compressed or not. Polygons with
            fewer than three points are dropped.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The run lengths, (R,) int32: lengths of alternating runs outside and inside the mask, column by column, starting
        outside; empty if the mask covers no pixel.

    Raises:
        ValueError: If the segmentation is invalid. The message begins with "has"; callers prepend the file and the
            annotation.
    """
    if isinstance(segmentation, Mapping):
        runs = _rle_runs(segmentation, height, width)
    else:
        polygons = [_checked_polygon(polygon) for polygon in segmentation]
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        if not polygons:
            return np.zeros(0, np.int32)
        runs = _uncompressed(rle.merge(rle.frPyObjects(polygons, height, width))["counts"])
    return runs.astype(np.int32) if runs[1::2].any() else np.zeros(0, np.int32)


def _checked_polygon(polygon):
    if not isinstance(polygon, Sequence) or isinstance(polygon, str):
        raise ValueError(f"has a polygon that is not a list of numbers: {str(polygon)[:80]}")
    try:
        numbers = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
        raise ValueError(f"has a polygon whose entries are not all pixel coordinates: {str(polygon)[:80]}")
    return numbers[: len(numbers) // 2 * 2].tolist()


def _rle_runs(segmentation, height, width):
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"has an RLE mask of size {size}, but the image has height and width {[height, width]}")
    if isinstance(counts, (str, bytes)):
        runs = _uncompressed(counts.encode("latin1") if isinstance(counts, str) else counts)
    elif isinstance(counts, Sequence) and all(isinstance(count, int) for count in counts):
        runs = np.array(counts, np.float64)
    else:
        raise ValueError('has an RLE mask whose "counts" are neither a string nor a list of integers')
    if len(runs) == 1 and runs[0] == -1:
        raise ValueError('has an RLE mask whose compressed "counts" are damaged; expected a string from pycocotools')
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(
            f'has an RLE mask of {runs.sum():.0f} pixels; expected run lengths ("counts") of 0 or more that sum to the '
            f"{height * width} pixels of the image"
        )
    return runs


def _uncompressed(counts: bytes) -> np.ndarray:
    """Decodes COCO's compressed RLE to run lengths (R,); returns [-1] if the bytes are invalid.

    The code of each character minus that of "0" has six bits: five bits of a number, low bits first, and one bit that
    is set if further characters of the number follow. From the fourth run on, a number is the difference to the run two
    places before.
    """
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (characters & 32) == 0
    if not len(last) or not last[-1] or ((characters < 0) | (characters > 63)).any():
        return np.array([-1])
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(characters))
    if lengths.max() > 8:
        return np.array([-1])
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((characters & 31) << (5 * places), starts)
    numbers -= np.where(characters[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode(masks: np.ndarray | tf.Tensor) -> list[dict]:
    """Encodes masks as compressed RLE.

    Args:
        masks: (D, H, W) bool.

    Returns:
        D dicts {"size": [H, W], "counts": str}, as in COCO's results files.
    """
    columns = np.asfortranarray(np.asarray(masks, np.uint8).transpose(1, 2, 0))  # (H, W, D)
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in rle.encode(columns)]


def decode(codes: Sequence[Mapping]) -> np.ndarray:
    """Decodes compressed RLE to masks.

    Args:
        codes: One or more dicts {"size": [H, W], "counts": str or bytes} of equal sizes.

    Returns:
        The masks, (D, H, W) bool.
    """
    return rle.decode(list(codes)).transpose(2, 0, 1).astype(bool)
