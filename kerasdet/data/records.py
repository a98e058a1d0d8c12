"""Defines `Record`: an image of a dataset and its objects."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kerasdet.data import images


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Holds an image and its M objects; each object is one row in each array.

    Args:
        image_id: Id of the image in the dataset.
        path: Path of the image file.
        height: Height of the image in pixels, after rotation by EXIF.
        width: Width of the image in pixels, after rotation by EXIF.
        exif: Whether decoding applies the EXIF orientation.
        boxes: Boxes inside the image with an area above 0, in pixels, (M, 4) float32 yxyx.
        class_ids: Class ids in 0..K-1, (M,) int32.
        is_crowd: Whether an object is a crowd, (M,) bool.
        num_runs: Number of entries of `runs` that belong to each object, (M,) int32. None if masks were not read.
        runs: Run lengths of the masks of all objects, one object after the other, int32; see
            `kerasdet.geometry.masks.crops_from_runs`. None if masks were not read.
        keypoints: The J keypoints of each object as (y, x, visibility), in pixels, (M, J, 3) float32. None if keypoints
            were not read.
        extra_values: V further numbers of each object, see `kerasdet.data.extra_values`, (M, V) float32. None if none
            were read.
        by_pil: Whether Pillow decodes the image, because TensorFlow cannot decode it or would give other pixels.
        content: Function that returns the bytes of the encoded image, if the image is not a separate file but in memory
            or part of a TFRecord. `path` is then only used in error messages. None: `path` is the image file.
    """

    image_id: int
    path: str
    height: int
    width: int
    exif: bool
    boxes: np.ndarray
    class_ids: np.ndarray
    is_crowd: np.ndarray
    num_runs: np.ndarray | None = None
    runs: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    extra_values: np.ndarray | None = None
    by_pil: bool = False
    content: Callable[[], bytes] | None = None

    def encoded(self) -> bytes:
        """Reads the bytes of the image file."""
        return Path(self.path).read_bytes() if self.content is None else self.content()

    def image(self) -> np.ndarray:
        """Decodes the image to the pixels that training sees, (height, width, 3) uint8 RGB."""
        decode = images.decode_by_pil if self.by_pil else images.decode
        return np.asarray(decode(self.encoded(), self.exif))

    @property
    def is_empty(self) -> bool:
        """Whether the image has no object to train on. Crowds do not count as objects.

        If the dataset was read with keypoints, objects without labelled keypoints do not count either.
        """
        objects = ~self.is_crowd
        if self.keypoints is not None:
            objects &= (self.keypoints[..., 2] > 0).any(1)
        return not objects.any()


def split_by_image(columns: Mapping[str, np.ndarray], rows: np.ndarray, count: int) -> list[dict]:
    """Distributes objects among their images.

    Args:
        columns: Arrays with one row per object, by name.
        rows: Index of the image that each object belongs to, (N,) int.
        count: Number of images.

    Returns:
        One dict per image, from the name of a column to the read-only array of the image's objects, in their original
        order.
    """
    order = np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows[order], np.arange(1, count))
    parts = {name: np.split(_read_only(column[order]), borders) for name, column in columns.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)][:count]


def clip_boxes(xywh: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Clips boxes to their images, and marks boxes that have no area left.

    Args:
        xywh: Boxes as (x, y, width, height) in pixels, (N, 4) float64.
        size: Height and width of the image of each box, in pixels, (N, 2).

    Returns:
        The clipped boxes, (N, 4) float32 yxyx; a mask of the boxes to keep, (N,) bool; and a dict from kind of change
        (such as "clipped_boxes") to a mask of the changed or unusable boxes, (N,) bool.
    """
    finite = np.isfinite(xywh).all(1)
    x, y, w, h = np.where(finite[:, None], xywh, 0.0).T
    corners = np.stack([y, x, y + h, x + w], 1)
    clipped = np.clip(corners, 0.0, np.concatenate([size, size], 1))
    boxes = clipped.astype(np.float32)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    negative = (w < 0) | (h < 0)
    zero_area = ~finite | (w <= 0) | (h <= 0)
    keep &= ~zero_area
    # A box whose area only becomes 0 by rounding to float32 counts as a box without area, not as a box outside.
    outside = ~keep & ~zero_area & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    moved = np.abs(clipped - corners).max(1, initial=0.0) > 0.01
    faults = {
        "zero_area_boxes": ~keep & ~outside & ~negative,
        "negative_boxes": negative,
        "outside_boxes": outside,
        "clipped_boxes": keep & moved,
    }
    return boxes, keep, faults


def _read_only(array):
    array.flags.writeable = False
    return array
