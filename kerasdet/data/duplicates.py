"""Finds images that look alike, such as two frames of a video, a copy at another size or a file saved twice."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

SIDE = 32  # edge length of the thumbnail that confirms a pair, in pixels
MAX_DISTANCE = 6
MIN_CORRELATION = 0.95
_BANDS = MAX_DISTANCE + 1  # two hashes that differ in 6 bits agree in at least one of 7 bands
_THREADS = 8
_BLOCK = 256  # hashes compared with all others of a band at once


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
    """Holds what the comparison of images needs: N hashes and N thumbnails.

    Args:
        hashes: Difference hashes of the images, (N,) uint64.
        thumbnails: Gray thumbnails of the images, (N, SIDE, SIDE) uint8.
        readable: Whether an image file could be read, (N,) bool. The others have a hash and a thumbnail of zeros.
    """

    hashes: np.ndarray
    thumbnails: np.ndarray
    readable: np.ndarray


def difference_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Computes a 64-bit difference hash (dHash): whether brightness grows from one cell of a 9 x 8 grid to the next.

    The hash depends neither on the size of the image nor on brightness and contrast.

    Args:
        thumbnails: Gray images, (N, SIDE, SIDE) uint8.

    Returns:
        (N,) uint64.
    """
    rows = thumbnails.reshape(len(thumbnails), 8, SIDE // 8, SIDE).mean(2)  # (N, 8, SIDE)
    edges = np.linspace(0, SIDE, 10).round().astype(int)[:-1]
    cells = np.add.reduceat(rows, edges, axis=2) / np.diff(np.append(edges, SIDE))  # (N, 8, 9)
    bits = cells[:, :, 1:] > cells[:, :, :-1]  # (N, 8, 8)
    return np.packbits(bits.reshape(-1, 64), axis=1).view(">u8").reshape(-1).astype(np.uint64)


def fingerprints(
    paths: Sequence[str | os.PathLike], on_progress: Callable[[int], None] = lambda done: None
) -> Fingerprints:
    """Reads images at a reduced size and computes their fingerprints.

    Args:
        paths: Paths of N image files. A file that cannot be read matches no other.
        on_progress: Called with the number of images read so far.

    Returns:
        The fingerprints, in the order of the paths.
    """
    thumbnails = np.zeros((len(paths), SIDE, SIDE), np.uint8)
    readable = np.zeros(len(paths), bool)
    with ThreadPoolExecutor(_THREADS) as pool:
        for i, thumbnail in enumerate(pool.map(_thumbnail, paths)):
            if thumbnail is not None:
                thumbnails[i], readable[i] = thumbnail, True
            on_progress(i + 1)
    return Fingerprints(difference_hash(thumbnails), thumbnails, readable)


def find_pairs(prints: Fingerprints) -> np.ndarray:
    """Finds all pairs of images that look alike.

    Two images look alike if their hashes differ in at most `MAX_DISTANCE` bits and their thumbnails correlate by at
    least `MIN_CORRELATION`. Hashes are compared only if they agree in a band of bits, so the time grows much more
    slowly than the number of pairs.

    Args:
        prints: Fingerprints of N images, from `fingerprints`.

    Returns:
        (P, 2) int64 pairs of indices, the smaller one first, in ascending order. A set of equal images appears as
        pairs with the first of them, not as all pairs.

    Example:
        >>> pairs = find_pairs(fingerprints(["a.jpg", "a_copy.jpg", "b.jpg"]))
    """
    chosen = np.flatnonzero(prints.readable)
    if len(chosen) < 2:
        return np.zeros((0, 2), np.int64)
    contents = np.ascontiguousarray(prints.thumbnails[chosen].reshape(len(chosen), -1)).view(f"V{SIDE * SIDE}")[:, 0]
    _, first, group = np.unique(contents, return_index=True, return_inverse=True)
    copies = np.stack([first[group], np.arange(len(chosen))], 1)
    copies = copies[copies[:, 0] != copies[:, 1]]
    distinct = np.sort(first)
    hashes, thumbnails = prints.hashes[chosen], prints.thumbnails[chosen]
    similar = [distinct[pairs] for pairs in _near_hashes(hashes[distinct])]
    similar = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *similar]), axis=0)
    similar = similar[_correlate(thumbnails, similar)]
    pairs = np.sort(chosen[np.concatenate([copies, similar])], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _thumbnail(path):
    """Returns a gray thumbnail, upright by EXIF, or None if the file cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (2 * SIDE, 2 * SIDE))  # a JPEG decodes at an eighth of its size in a fraction of the time
            orientation = image.getexif().get(0x0112, 1)
            gray = image.convert("RGB").convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception:  # Pillow's readers raise almost anything on damaged files
        return None
    turn = _TURNS.get(orientation)
    return np.asarray(gray if turn is None else gray.transpose(turn))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _near_hashes(hashes) -> Iterator[np.ndarray]:
    """Yields (P, 2) pairs of indices whose hashes differ in at most `MAX_DISTANCE` bits, some of them repeatedly."""
    edges = np.linspace(0, 64, _BANDS + 1).round().astype(int)
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(bucket), _BLOCK):
                rows, others = bucket[start : start + _BLOCK], bucket[start:]
                near = _bit_count(hashes[rows, None] ^ hashes[others]) <= MAX_DISTANCE
                i, j = np.nonzero(np.triu(near, 1))
                yield np.stack([rows[i], others[j]], 1)


def _bit_count(numbers):
    """Counts the bits that are set in uint64 numbers. NumPy has `bitwise_count` from 2.0 only."""
    return _BITS_OF_16[numbers[..., None].view(np.uint16)].sum(-1)


_BITS_OF_16 = (
    np.unpackbits(np.arange(1 << 16, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(1).astype(np.uint8)
)


def _correlate(thumbnails, pairs, chunk=4096):
    """Returns whether the thumbnails of each pair correlate, (P,) bool. Images of one colour match one another."""
    keep = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), chunk):
        part = pairs[start : start + chunk]
        a, b = (thumbnails[part[:, i]].reshape(len(part), -1).astype(np.float32) for i in (0, 1))
        level = np.abs(a.mean(1) - b.mean(1))
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        energy = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        flat = (np.maximum(*energy) < SIDE) & (level < 2)  # neither varies by more than about one gray level
        alike = (a * b).sum(1) >= MIN_CORRELATION * np.maximum(energy[0] * energy[1], 1e-6)
        keep[start : start + chunk] = flat | (alike & (np.minimum(*energy) > 0))
    return keep
