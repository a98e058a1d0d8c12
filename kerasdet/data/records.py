"""Defines the records that datasets consist of, one per image, and the checks that all formats share."""

import dataclasses
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet.data import images
from kerasdet.errors import UserError

_logger = logging.getLogger("kerasdet.data")

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")
_JPEG_TAIL = 4096
_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Holds an image and its objects; each object is one row in each array.

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
        keypoints: Keypoints as (y, x, visibility), in pixels, (M, J, 3) float32. None if keypoints were not read.
        content: Function that reads the bytes of the image if it is no file of its own, but part of a TFRecord or in
            memory; `path` is then only a name for messages.
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
    content: Callable[[], bytes] | None = None

    def encoded(self) -> bytes:
        """Reads the bytes of the image file."""
        return Path(self.path).read_bytes() if self.content is None else self.content()

    def image(self) -> np.ndarray:
        """Decodes the image, (height, width, 3) uint8 RGB, to the pixels that training sees."""
        return images.decode(self.encoded(), self.exif).numpy()


def split_by_image(columns: Mapping[str, np.ndarray], rows: np.ndarray, count: int) -> list[dict]:
    """Distributes objects among their images.

    Args:
        columns: Arrays with one row per object, by name.
        rows: Index of the image that each object belongs to, (N,) int.
        count: Number of images.

    Returns:
        One dict of read-only arrays per image. Objects keep their order.
    """
    order = np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows[order], np.arange(1, count))
    parts = {name: np.split(_read_only(column[order]), borders) for name, column in columns.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def clip_boxes(xywh: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Clips boxes to their images and finds those that are left without area.

    Args:
        xywh: Boxes as (x, y, width, height) in pixels, (N, 4) float64.
        size: Height and width of the image of each box, in pixels, (N, 2).

    Returns:
        Clipped boxes, (N, 4) float32 yxyx; whether to keep each, (N,) bool; counts of clipped and unusable boxes.
    """
    finite = np.isfinite(xywh).all(1)
    x, y, w, h = np.where(finite[:, None], xywh, 0.0).T
    corners = np.stack([y, x, y + h, x + w], 1)
    clipped = np.clip(corners, 0.0, np.concatenate([size, size], 1))
    boxes = clipped.astype(np.float32)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    zero_area = ~finite | (w <= 0) | (h <= 0)
    keep &= ~zero_area
    # A box that only float32 rounds to nothing counts as one without area, not as one outside.
    outside = ~keep & ~zero_area & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    moved = np.abs(clipped - corners).max(1, initial=0.0) > 0.01
    counts = {
        "zero_area_boxes": int((~keep & ~outside).sum()),
        "outside_boxes": int(outside.sum()),
        "clipped_boxes": int((keep & moved).sum()),
    }
    return boxes, keep, counts


def _read_only(array):
    array.flags.writeable = False
    return array


def make_records(
    source: str | Path,
    image_ids: Sequence[int],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    objects: Sequence[Mapping[str, np.ndarray]],
    *,
    contents: Sequence[Callable[[], bytes] | None],
    keep_images_without_objects: bool,
    on_bad_image: str,
    num_classes: int,
    object_counts: Mapping[str, int],
) -> tuple[tuple[Record, ...], dict[str, int]]:
    """Checks the image files, makes a record of each image to keep and logs one line of counts.

    Args:
        source: Name of the dataset in messages, such as the path of its annotations.
        image_ids: Ids of the N images.
        paths: Paths of the N image files.
        sizes: Height and width of the N images in pixels, as the annotations state them.
        objects: Arrays of the objects of each image, from `split_by_image`.
        contents: Functions that read the bytes of the N images, or None for those that are files; see `Record`.
        keep_images_without_objects: Whether to keep images without an object. A crowd does not count as an object; if
            keypoints were read, neither does an object without a labelled keypoint.
        on_bad_image: "error" raises an error that names unusable image files, "skip" leaves them out.
        num_classes: Number of classes, K, for the log line.
        object_counts: Counts made while the objects were read, by name.

    Returns:
        Records in the order of the images; number of images and boxes that were kept, changed and dropped, by name.

    Raises:
        UserError: If `on_bad_image` is unknown, or is "error" and there are unusable image files.
    """
    if on_bad_image not in ("error", "skip"):
        raise UserError(f'on_bad_image is {on_bad_image!r}; expected "error" or "skip". Choose one of the two.')
    with ThreadPoolExecutor(16) as pool:
        checks = list(pool.map(_check_image, paths, sizes, contents))
    bad = [f"{path}: {check}" for path, check in zip(paths, checks, strict=True) if isinstance(check, str)]
    if bad and on_bad_image == "error":
        raise UserError(
            f"{len(bad)} of {len(paths)} images of {source} cannot be used: {'; '.join(bad[:_MAX_NAMED])}"
            f'{"; ..." if len(bad) > _MAX_NAMED else ""}. Repair them, or pass on_bad_image="skip" to leave them out.'
        )
    records = [
        Record(image_id, path, *size, exif, **arrays, content=content)
        for image_id, path, size, exif, arrays, content in zip(
            image_ids, paths, sizes, checks, objects, contents, strict=True
        )
        if not isinstance(exif, str)
    ]
    empty = [_is_empty(record) for record in records]
    kept = tuple(r for r, is_empty in zip(records, empty, strict=True) if keep_images_without_objects or not is_empty)
    counts = {
        "images": len(kept),
        "bad_images": len(bad),
        "images_without_objects": sum(empty),
        "boxes": sum(len(record.boxes) for record in kept),
        "crowd_boxes": sum(int(record.is_crowd.sum()) for record in kept),
        **object_counts,
    }
    _logger.info("%s", _describe(source, num_classes, counts, keep_images_without_objects, bad))
    return kept, counts


def _is_empty(record):
    objects = ~record.is_crowd
    if record.keypoints is not None:
        objects &= (record.keypoints[..., 2] > 0).any(1)
    return not objects.any()


def _describe(source, num_classes, counts, keep_images_without_objects, bad):
    parts = [
        f"{source}: {counts['images']} images, {counts['boxes']} boxes ({counts['crowd_boxes']} crowd)",
        f"{num_classes} classes",
        f"{counts['images_without_objects']} images without objects "
        f"{'kept' if keep_images_without_objects else 'dropped'}",
    ]
    notes = {
        "clipped_boxes": "boxes clipped to their image",
        "zero_area_boxes": "boxes without area dropped",
        "outside_boxes": "boxes outside their image dropped",
        "objects_without_mask": "objects without a mask dropped",
        "difficult_boxes": "difficult boxes",
        "duplicate_annotation_ids": "duplicate annotation ids",
    }
    parts += [f"{counts[key]} {note}" for key, note in notes.items() if counts.get(key)]
    parts += [f"{len(bad)} bad images skipped (first {bad[0]})"] if bad else []
    return ", ".join(parts)


def _check_image(path, size, content):
    """Checks header and end of an image, without decoding it if possible.

    Returns:
        Whether decoding applies its EXIF orientation, or a str that says why the image cannot be used.
    """
    try:
        with open(path, "rb") if content is None else io.BytesIO(content()) as file:
            return _check_file(file, size)
    except FileNotFoundError:
        return "does not exist"
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        return f"cannot be read ({error})"


def _check_file(file, size):
    with Image.open(file) as image:
        orientation = 1
        if "exif" in image.info:
            file.seek(0)
            orientation = int(_exif_orientation(file.read(images.EXIF_SEARCH)))
        stored = image.height, image.width
        upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
        problem = _damage(file, image)
    if problem:
        return problem
    if size not in (upright, stored):
        return f"is {upright[0]}x{upright[1]} (height x width), but the annotations say {size[0]}x{size[1]}"
    return size == upright


_exif_orientation = tf.function(images.exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])


def _damage(file, image):
    """Returns what is wrong with an open image, or None."""
    if image.format not in _FORMATS:
        return f"is {image.format}; convert it to JPEG or PNG"
    if image.format == "BMP" and image.mode not in ("RGB", "L"):
        return f"is a BMP of mode {image.mode}; convert it to JPEG or PNG"
    file.seek(0)
    if image.format == "PNG":
        image.verify()
    elif image.format in ("BMP", "GIF"):
        image.load()
    else:
        file.seek(-min(_JPEG_TAIL, file.seek(0, 2)), 2)
        if b"\xff\xd9" not in file.read() and not _decodes(file):
            return "is truncated (no end-of-image marker)"
    return None


def _decodes(file):
    """Returns whether TensorFlow decodes the file, which decides about a JPEG with appended data."""
    file.seek(0)
    try:
        images.decode(file.read())
    except Exception:
        return False
    return True
