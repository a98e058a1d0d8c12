"""What data sets are made of: records, one per image, and the checks that all of them share."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet.data import images

_logger = logging.getLogger("kerasdet.data")

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")
_JPEG_TAIL = 4096
_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An image with its objects; an object is one row in each array.

    Args:
        image_id: the id in the data set.
        path: the image file.
        height: in pixels, after rotation by EXIF.
        width: likewise.
        exif: whether the EXIF orientation is to be applied.
        boxes: (M, 4) float32 yxyx in pixels, inside the image, none empty.
        class_ids: (M,) int32 in 0..K-1.
        is_crowd: (M,) bool.
        num_runs: (M,) int32, how many of `runs` are each object's; None where masks were not asked for.
        runs: int32 run lengths of the masks of all objects, see `kerasdet.geometry.masks.crops_from_runs`.
        keypoints: (M, J, 3) float32 as (y, x, visibility); None where they were not asked for.
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


def split_by_image(columns: Mapping[str, np.ndarray], rows: np.ndarray, count: int) -> list[dict]:
    """Distributes objects among their images.

    Args:
        columns: arrays with one row per object.
        rows: (N,) the image of each object.
        count: of images.

    Returns:
        One dict of read-only arrays per image; objects stay in their order.
    """
    order = np.argsort(rows, kind="stable")
    borders = np.searchsorted(rows[order], np.arange(1, count))
    parts = {name: np.split(_frozen(column[order]), borders) for name, column in columns.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def corners_inside(xywh, size):
    """Boxes (N, 4) as (x, y, width, height) cut to images of `size` (N, 2).

    Returns:
        (N, 4) float32 yxyx, which to keep (N,) bool, and counts.
    """
    finite = np.isfinite(xywh).all(1)
    x, y, w, h = np.where(finite[:, None], xywh, 0.0).T
    corners = np.stack([y, x, y + h, x + w], 1)
    clipped = np.clip(corners, 0.0, np.concatenate([size, size], 1))
    boxes = clipped.astype(np.float32)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    zero_area = ~finite | (w <= 0) | (h <= 0)
    keep &= ~zero_area
    outside = ~keep & ~zero_area & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    moved = np.abs(clipped - corners).max(1, initial=0.0) > 0.01
    counts = {
        "zero_area_boxes": int((~keep & ~outside).sum()),
        "outside_boxes": int(outside.sum()),
        "clipped_boxes": int((keep & moved).sum()),
    }
    return boxes, keep, counts


def _frozen(array):
    array.flags.writeable = False
    return array


def make_records(
    source: str | Path,
    image_ids: Sequence[int],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    objects: Sequence[Mapping[str, np.ndarray]],
    *,
    keep_empty: bool,
    bad_images: str,
    num_classes: int,
    object_counts: Mapping[str, int],
) -> tuple[tuple[Record, ...], dict[str, int]]:
    """Checks the image files and makes a record of each image that is kept; one line about all goes to the log.

    Args:
        source: what to call the data set.
        image_ids: of N images.
        paths: of their files.
        sizes: their height and width as the annotations have it.
        objects: of each image, as `split_by_image` gives them.
        keep_empty: whether to keep images without an object that is no crowd, or, where there are keypoints, without
            a labelled keypoint.
        bad_images: "error" or "skip".
        num_classes: K.
        object_counts: what was counted when the objects were read.

    Returns:
        The records in their order, and how many images and boxes were kept, changed and dropped.

    Raises:
        ValueError: for bad images under "error", naming the first.
    """
    if bad_images not in ("error", "skip"):
        raise ValueError(f'bad_images is "error" or "skip", not {bad_images!r}.')
    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(_check_file, paths, sizes))
    bad = [f"{path}: {verdict}" for path, verdict in zip(paths, verdicts, strict=True) if isinstance(verdict, str)]
    if bad and bad_images == "error":
        raise ValueError(
            f"{len(bad)} of {len(paths)} images of {source} cannot be used "
            f'(bad_images="skip" leaves them out): {"; ".join(bad[:_NAMED])}{"; ..." if len(bad) > _NAMED else ""}'
        )
    records = [
        Record(image_id, path, *size, exif, **arrays)
        for image_id, path, size, exif, arrays in zip(image_ids, paths, sizes, verdicts, objects, strict=True)
        if not isinstance(exif, str)
    ]
    empty = [_is_empty(record) for record in records]
    kept = tuple(r for r, is_empty in zip(records, empty, strict=True) if keep_empty or not is_empty)
    counts = {
        "images": len(kept),
        "bad_images": len(bad),
        "images_without_objects": sum(empty),
        "boxes": sum(len(record.boxes) for record in kept),
        "crowd_boxes": sum(int(record.is_crowd.sum()) for record in kept),
        **object_counts,
    }
    _logger.info("%s", _describe(source, num_classes, counts, keep_empty, bad))
    return kept, counts


def _is_empty(record):
    objects = ~record.is_crowd
    if record.keypoints is not None:
        objects &= (record.keypoints[..., 2] > 0).any(1)
    return not objects.any()


def _describe(source, num_classes, counts, keep_empty, bad):
    parts = [
        f"{source}: {counts['images']} images, {counts['boxes']} boxes ({counts['crowd_boxes']} crowd)",
        f"{num_classes} classes",
        f"{counts['images_without_objects']} images without objects {'kept' if keep_empty else 'dropped'}",
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


def _check_file(path, size):
    """Looks at header and end of an image file.

    Returns:
        Whether its EXIF orientation is to be applied, or a str: why it cannot be used.
    """
    try:
        with Image.open(path) as image:
            orientation = int(_exif_orientation(_head(path))) if "exif" in image.info else 1
            stored = image.height, image.width
            upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
            problem = _damage(path, image)
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        return f"cannot be read ({error})"
    if problem:
        return problem
    if size not in (upright, stored):
        return f"is {upright[0]}x{upright[1]} (height x width), the annotations say {size[0]}x{size[1]}"
    return size == upright


_exif_orientation = tf.function(images.exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])


def _head(path):
    with open(path, "rb") as file:
        return file.read(images.EXIF_SEARCH)


def _damage(path, image):
    """What is wrong with an open image, or None."""
    if image.format not in _FORMATS:
        return f"is {image.format}; convert it to JPEG or PNG"
    if image.format == "BMP" and image.mode not in ("RGB", "L"):
        return f"is a BMP of mode {image.mode}; convert it to JPEG or PNG"
    if image.format == "PNG":
        image.verify()
    elif image.format in ("BMP", "GIF"):
        image.load()
    else:
        with open(path, "rb") as file:
            file.seek(-min(_JPEG_TAIL, file.seek(0, 2)), 2)
            if b"\xff\xd9" not in file.read() and not _decodes(path):
                return "is truncated (no end-of-image marker)"
    return None


def _decodes(path):
    """Whether TensorFlow accepts the file: the last word where something was appended to a JPEG."""
    try:
        images.decode(Path(path).read_bytes())
    except Exception:
        return False
    return True
