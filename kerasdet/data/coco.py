"""COCO JSON to immutable records, one per image, with everything that is wrong counted or named."""

import dataclasses
import json
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet import images

_logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF")
_JPEG_TAIL = 4096
_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An image with its objects; an object is one row in each array.

    Args:
        image_id: the id in the JSON.
        path: the image file.
        height: in pixels, after rotation by EXIF.
        width: likewise.
        exif: whether the EXIF orientation is to be applied.
        boxes: (M, 4) float32 yxyx in pixels, inside the image, none empty.
        class_ids: (M,) int32 in 0..K-1.
        is_crowd: (M,) bool.
    """

    image_id: int
    path: str
    height: int
    width: int
    exif: bool
    boxes: np.ndarray
    class_ids: np.ndarray
    is_crowd: np.ndarray


class CocoDataset:
    """A data set in COCO format: one JSON file and a folder of images.

    Boxes that leave their image are cut at its border; boxes without area or wholly outside are dropped. The EXIF
    orientation of a JPEG is applied, unless height and width in the JSON are those of the pixels as stored. `counts`
    says how often each of these happened; one line of it goes to the log.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` starts from; by default `images` beside the JSON.
        keep_empty: whether to keep images without an object; crowds are no objects here.
        bad_images: what to do about missing and damaged image files and those of another size than the JSON says:
            "error" names them in one `ValueError`, "skip" leaves them out.

    Attributes:
        annotations: path of the JSON file.
        records: tuple of `Record`, in the order of the JSON.
        class_names: tuple of K names, by ascending category id.
        category_ids: tuple of K category ids of the JSON: `category_ids[class_id]`.
        num_classes: K.
        counts: dict of how many images and boxes were kept, changed and dropped.

    Raises:
        FileNotFoundError: where the JSON or the folder does not exist.
        ValueError: for a file that is not COCO, naming the item, and for bad images.
    """

    def __init__(self, annotations, images=None, *, keep_empty=True, bad_images="error"):
        if bad_images not in ("error", "skip"):
            raise ValueError(f'bad_images is "error" or "skip", not {bad_images!r}.')
        self.annotations = Path(annotations)
        folder = self.annotations.parent / "images" if images is None else Path(images)
        data = _read(self.annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {folder} with the images of {self.annotations}: give images=FOLDER.")
        self.category_ids, self.class_names = _categories(data, self.annotations)
        self.num_classes = len(self.category_ids)
        sizes = _image_sizes(data, self.annotations)
        objects, box_counts = _objects(data, sizes, self.category_ids, self.annotations)
        paths = [str(folder / item["file_name"]) for item in data["images"]]
        with ThreadPoolExecutor(16) as pool:
            verdicts = list(pool.map(_check_file, paths, sizes.values()))
        bad = [f"{path}: {verdict}" for path, verdict in zip(paths, verdicts, strict=True) if isinstance(verdict, str)]
        if bad and bad_images == "error":
            raise ValueError(
                f"{len(bad)} of {len(paths)} images of {self.annotations} cannot be used "
                f'(bad_images="skip" leaves them out): {"; ".join(bad[:_NAMED])}{"; ..." if len(bad) > _NAMED else ""}'
            )
        records = [
            Record(image_id, path, *sizes[image_id], exif, *rows)
            for image_id, path, exif, rows in zip(sizes, paths, verdicts, objects, strict=True)
            if not isinstance(exif, str)
        ]
        empty = [record.is_crowd.all() for record in records]
        self.records = tuple(r for r, is_empty in zip(records, empty, strict=True) if keep_empty or not is_empty)
        self.counts = {
            "images": len(self.records),
            "bad_images": len(bad),
            "images_without_objects": int(sum(empty)),
            "boxes": sum(len(record.boxes) for record in self.records),
            "crowd_boxes": sum(int(record.is_crowd.sum()) for record in self.records),
            **box_counts,
        }
        _logger.info("%s", _describe(self.annotations, self.num_classes, self.counts, keep_empty, bad))

    def __len__(self):
        return len(self.records)


def _describe(path, num_classes, counts, keep_empty, bad):
    parts = [
        f"{path}: {counts['images']} images, {counts['boxes']} boxes ({counts['crowd_boxes']} crowd)",
        f"{num_classes} classes",
        f"{counts['images_without_objects']} images without objects {'kept' if keep_empty else 'dropped'}",
    ]
    notes = {
        "clipped_boxes": "boxes clipped to their image",
        "zero_area_boxes": "boxes without area dropped",
        "outside_boxes": "boxes outside their image dropped",
        "duplicate_annotation_ids": "duplicate annotation ids",
    }
    parts += [f"{counts[key]} {note}" for key, note in notes.items() if counts[key]]
    parts += [f"{len(bad)} bad images skipped (first {bad[0]})"] if bad else []
    return ", ".join(parts)


def _read(path):
    """Parses the JSON and checks that its parts are lists of objects."""
    if not path.is_file():
        raise FileNotFoundError(f"No annotation file {path}.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if isinstance(data, list):
        raise ValueError(f"{path} holds a list (of detections?), not a COCO data set.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f'{path} is not a COCO data set: it has no "{key}".')
        if not isinstance(data[key], list) or not all(isinstance(item, dict) for item in data[key]):
            raise ValueError(f'{path}: "{key}" is not a list of objects.')
    for key in ("images", "categories"):
        if not data[key]:
            raise ValueError(f'{path}: "{key}" is empty.')
    return data


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(data, path):
    """Category ids in ascending order and their names."""
    names = {}
    for number, category in enumerate(data["categories"]):
        category_id, name = category.get("id"), category.get("name")
        if not _is_int(category_id) or not isinstance(name, str):
            raise ValueError(f'{path}: category number {number} needs an integer "id" and a "name": {category}.')
        if category_id in names:
            raise ValueError(f'{path}: categories "{names[category_id]}" and "{name}" share the id {category_id}.')
        names[category_id] = name
    ids = tuple(sorted(names))
    return ids, tuple(names[i] for i in ids)


def _image_sizes(data, path):
    """Image id to (height, width), in the order of the JSON."""
    sizes = {}
    for number, image in enumerate(data["images"]):
        image_id, size = image.get("id"), (image.get("height"), image.get("width"))
        if not _is_int(image_id) or not image.get("file_name") or not isinstance(image["file_name"], str):
            raise ValueError(f'{path}: image number {number} needs an integer "id" and a "file_name": {image}.')
        if not all(_is_int(length) and length > 0 for length in size):
            raise ValueError(f'{path}: image {image_id} needs a positive integer "height" and "width", has {size}.')
        if image_id in sizes:
            raise ValueError(f"{path}: two images share the id {image_id}; the second is {image['file_name']}.")
        sizes[image_id] = size
    return sizes


def _objects(data, sizes, category_ids, path):
    """One (boxes, class_ids, is_crowd) per image, in the order of `sizes`, and what was counted."""
    row_of = {image_id: row for row, image_id in enumerate(sizes)}
    class_of = {category_id: class_id for class_id, category_id in enumerate(category_ids)}
    rows, class_ids, xywh, crowd = [], [], [], []
    for annotation in data["annotations"]:
        try:
            rows.append(row_of[annotation["image_id"]])
            class_ids.append(class_of[annotation["category_id"]])
            x, y, w, h = annotation["bbox"]
            xywh.append((float(x), float(y), float(w), float(h)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"{path}: {_what_is_wrong(annotation, row_of, class_of)}") from None
        crowd.append(bool(annotation.get("iscrowd", 0)))

    rows = np.array(rows, np.int64)
    size = np.array(list(sizes.values()), np.float64)[rows]
    boxes, keep, counts = _corners_inside(np.array(xywh, np.float64).reshape(-1, 4), size)
    ids = Counter(str(annotation["id"]) for annotation in data["annotations"] if "id" in annotation)
    counts["duplicate_annotation_ids"] = ids.total() - len(ids)

    order = np.argsort(rows[keep], kind="stable")
    borders = np.searchsorted(rows[keep][order], np.arange(1, len(sizes)))
    columns = [
        np.split(_frozen(column[keep][order]), borders)
        for column in (boxes, np.array(class_ids, np.int32), np.array(crowd, bool))
    ]
    return list(zip(*columns, strict=True)), counts


def _corners_inside(xywh, size):
    """COCO's boxes as yxyx cut to images of `size` (N, 2): float32 (N, 4), which to keep (N,), counts."""
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


def _what_is_wrong(annotation, image_ids, category_ids):
    """The sentence about an annotation that could not be read."""
    name = f"annotation {annotation['id']}" if "id" in annotation else f"an annotation ({str(annotation)[:200]})"
    for key, known in (("image_id", image_ids), ("category_id", category_ids)):
        if key not in annotation:
            return f'{name} has no "{key}".'
        if not _is_int(annotation[key]) or annotation[key] not in known:
            return (
                f'{name} has the unknown {key} {annotation[key]!r}: no entry of "images" or "categories" has that id.'
            )
    if "bbox" not in annotation:
        return f'{name} has no "bbox".'
    return f'{name} needs four numbers [x, y, width, height] as "bbox", has {annotation["bbox"]!r}.'


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
        return f"is {upright[0]}x{upright[1]} (height x width), the JSON says {size[0]}x{size[1]}"
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
