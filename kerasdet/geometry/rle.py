"""COCO segmentations: run lengths of polygons and RLE, and compressed RLE of masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from pycocotools import mask as rle


def runs_from_segmentation(segmentation: Sequence | Mapping, height: int, width: int) -> np.ndarray:
    """Run lengths of a COCO segmentation, exactly the mask that pycocotools makes of it.

    Args:
        segmentation: Polygons [[x, y, ...], ...], of which those with fewer than three points are left out, or RLE
            {"size", "counts"}, compressed or not.
        height: Of the image, in pixels.
        width: Likewise.

    Returns:
        (R,) int32, pixels outside and inside the mask by turns, column by column; empty where no pixel is covered.

    Raises:
        ValueError: What is wrong, as the end of a sentence.
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
        raise ValueError(f"has a polygon that is no list of numbers: {str(polygon)[:80]}")
    try:
        numbers = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
        raise ValueError(f"has a polygon with something else than pixel coordinates: {str(polygon)[:80]}")
    return numbers[: len(numbers) // 2 * 2].tolist()


def _rle_runs(segmentation, height, width):
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise ValueError(f"has an RLE mask of size {size}, but its image is {height}x{width}")
    if isinstance(counts, (str, bytes)):
        runs = _uncompressed(counts.encode("latin1") if isinstance(counts, str) else counts)
    elif isinstance(counts, Sequence) and all(isinstance(count, int) for count in counts):
        runs = np.array(counts, np.float64)
    else:
        raise ValueError('has an RLE mask whose "counts" are neither text nor a list of integers')
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(f"has an RLE mask of {runs.sum():.0f} pixels, but its image has {height * width}")
    return runs


def _uncompressed(counts: bytes) -> np.ndarray:
    """Run lengths (R,) of COCO's compressed RLE.

    Six bits a character from "0" on: five of the number, low ones first, and one that says that more follow. From the
    fourth on a number is the difference to the run two before it.
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
    """Compressed RLE, as in COCO's result files, of `masks` (D, H, W) bool."""
    columns = np.asfortranarray(np.asarray(masks, np.uint8).transpose(1, 2, 0))  # (H, W, D)
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in rle.encode(columns)]


def decode(codes: Sequence[Mapping]) -> np.ndarray:
    """The masks (D, H, W) bool of compressed RLE `codes`, at least one."""
    return rle.decode(list(codes)).transpose(2, 0, 1).astype(bool)
