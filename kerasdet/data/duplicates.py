"""Finds near duplicates: images that show the same picture, scaled, compressed or slightly changed."""

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from kerasdet.data.progress import progress
from kerasdet.data.records import Record

_SIDE = 8  # cells of the hash along each axis
_BITS = 2 * _SIDE * _SIDE
_MAX_DISTANCE = 10  # largest number of different bits, of 128, between near duplicates
_THUMBNAIL = 16  # side of the thumbnails in pixels
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_MAX_DIFFERENCE = 6.0  # largest mean difference of thumbnails; separates dark images with equal hashes


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Holds the features by which N images are compared.

    Args:
        bits: Difference hashes along rows and columns, (N, 128) bool.
        thumbnails: Gray thumbnails, (N, 256) float32 in 0..255.
    """

    bits: np.ndarray
    thumbnails: np.ndarray


def fingerprints(records: Sequence[Record]) -> Fingerprints:
    """Computes the fingerprints of images.

    The hash is the difference hash of the package imagehash, along both axes. It has one bit per axis and cell of an
    8x8 grid, which is 1 if the next cell along the axis is brighter.

    Args:
        records: Records of N images.

    Returns:
        The fingerprints, one row for each image.
    """
    with ThreadPoolExecutor() as pool:
        rows = list(progress(pool.map(_fingerprint, records), "Comparing images", len(records)))
    bits = np.array([bits for bits, _ in rows], bool).reshape(-1, _BITS)
    return Fingerprints(bits, np.array([thumbnail for _, thumbnail in rows], np.float32).reshape(-1, _THUMBNAIL**2))


def _fingerprint(record):
    gray = _gray(record)
    wide = np.asarray(gray.resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS), np.int16)
    high = np.asarray(gray.resize((_SIDE, _SIDE + 1), Image.Resampling.LANCZOS), np.int16)
    bits = np.concatenate([(np.diff(wide, axis=1) > 0).ravel(), (np.diff(high, axis=0) > 0).ravel()])
    thumbnail = np.asarray(gray.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.float32)
    return bits, thumbnail.ravel()


def _gray(record):
    """Decodes an image to gray; decodes a large JPEG at a reduced size, which is many times faster."""
    with Image.open(io.BytesIO(record.encoded())) as image:
        if image.mode not in _MODES:  # Pillow would clip 16 bits to 8
            return Image.fromarray(record.image()).convert("L")
        image.draft("L", (4 * _THUMBNAIL, 4 * _THUMBNAIL))
        return (ImageOps.exif_transpose(image) if record.exif else image).convert("RGB").convert("L")


def near_duplicates(prints: Fingerprints) -> list[list[int]]:
    """Groups near duplicates. Two images of a group are near duplicates, or are linked by other images of the group.

    Args:
        prints: Fingerprints of N images.

    Returns:
        The groups: lists of two or more image indices in ascending order. The groups are ordered by their first index.
    """
    count = len(prints.bits)
    parent = list(range(count))

    def root(index):
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for bucket in _buckets(prints.bits):
        if len({root(index) for index in bucket}) > 1:
            for i, j in _links(prints, bucket):
                parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = {}
    for index in range(count):
        groups.setdefault(root(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _buckets(bits):
    """Yields groups of images such that every pair of near duplicates is together in at least one group.

    If two hashes differ in at most 10 bits, at least one of 11 bands of bits is equal.
    """
    for band in np.array_split(np.arange(_BITS), _MAX_DISTANCE + 1):
        keys = bits[:, band] @ (1 << np.arange(len(band)))
        order = np.argsort(keys, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if len(bucket) > 1:
                yield bucket.tolist()


def _links(prints, bucket):
    """Yields pairs of images that connect all near duplicates of a bucket.

    An image that already belongs to a group is not compared with others of its group, so thousands of equal images take
    one pass.
    """
    left = np.array(bucket)
    while len(left):
        reached, left = [left[0]], left[1:]
        while reached and len(left):
            i = reached.pop()
            near = np.count_nonzero(prints.bits[left] != prints.bits[i], axis=1) <= _MAX_DISTANCE
            if not near.any():
                continue
            near[near] = np.abs(prints.thumbnails[left[near]] - prints.thumbnails[i]).mean(1) <= _MAX_DIFFERENCE
            yield from ((int(i), int(j)) for j in left[near])
            reached += left[near].tolist()
            left = left[~near]
