"""Reads COCO JSON into immutable records, one per image; counts or names everything that is wrong."""

import json
import os
from collections import Counter

import numpy as np

from kerasdet.data.records import clip_boxes, make_records, split_by_image
from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import rle
from kerasdet.paths import expand


class CocoDataset:
    """Reads a dataset in COCO format: one JSON file and a folder of images.

    The reader clips boxes that leave their image and drops boxes that have no area or lie outside. It applies the EXIF
    orientation of a JPEG, unless the JSON gives height and width of the pixels as stored. `counts` says how often each
    of these happened, and one log line sums them up.

    With masks, the reader drops objects whose mask covers no pixel, because their box is then meaningless; converting
    all polygons of COCO to run lengths takes about two minutes. With keypoints, pixel indices become pixel centres
    (+ 0.5), and objects without keypoints get keypoints of visibility 0.

    Example:
        >>> dataset = CocoDataset("coco/annotations/instances_train2017.json", "coco/train2017", masks=True)
        >>> dataset.class_names[:3]
        ('person', 'bicycle', 'car')

    Args:
        annotations: Path of the JSON file.
        images: Folder that each `file_name` of the JSON is relative to. Default: `images` next to the JSON.
        keep_images_without_objects: Whether to keep images without an object. A crowd does not count as an object;
            with `keypoints=True`, neither does an object without a labelled keypoint.
        on_bad_image: What to do if an image file is missing, damaged or not of the size in the JSON: "error" raises
            one `UserError` that names them, "skip" leaves them out.
        masks: Whether to read the segmentations.
        keypoints: Whether to read the keypoints.

    Attributes:
        annotations: Path of the JSON file.
        ground_truth: Path of the JSON file, for evaluation.
        records: Tuple of `Record`, in the order of the JSON.
        class_names: Tuple of K names, by ascending category id.
        category_ids: Tuple of K category ids of the JSON; `category_ids[class_id]` is the id of a class.
        num_classes: Number of classes, K.
        keypoint_names: Tuple of J names; () if keypoints are not read.
        skeleton: Tuple of pairs of keypoint indices from 0; () if keypoints are not read.
        keypoint_flip: Tuple of J indices that swaps left and right, see `kerasdet.geometry.keypoints.flip_order`; ()
            if keypoints are not read.
        counts: Number of images and boxes that were kept, changed and dropped, by name.

    Raises:
        FileNotFoundError: If the JSON or the folder does not exist.
        UserError: If the JSON is not in COCO format, naming the item, or if images are bad.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike | None = None,
        *,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
        masks: bool = False,
        keypoints: bool = False,
    ) -> None:
        self.annotations = self.ground_truth = expand(annotations, "annotations")
        folder = self.annotations.parent / "images" if images is None else expand(images, "images")
        data = _read(self.annotations)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The image folder {folder} of {self.annotations} does not exist. Pass the folder as images=FOLDER."
            )
        self.category_ids, self.class_names = _categories(data, self.annotations)
        self.num_classes = len(self.category_ids)
        self.keypoint_names, self.skeleton = _keypoint_names(data, self.annotations) if keypoints else ((), ())
        self.keypoint_flip = keypoint_ops.flip_order(self.keypoint_names)
        sizes = _image_sizes(data, self.annotations)
        objects, counts = _objects(data, sizes, self.category_ids, self.annotations, masks, len(self.keypoint_names))
        self.records, self.counts = make_records(
            self.annotations,
            list(sizes),
            [str(folder / item["file_name"]) for item in data["images"]],
            list(sizes.values()),
            objects,
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
            num_classes=self.num_classes,
            object_counts=counts,
        )

    def __len__(self) -> int:
        return len(self.records)


def _read(path):
    """Parses the JSON and checks that its three sections are lists of objects."""
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist. Check the path.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}. Export or download the annotations again.") from None
    if isinstance(data, list):
        raise UserError(
            f"{path} holds a list, as files of detections do; expected a COCO dataset with images, annotations and "
            "categories. Give the ground-truth file."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or key not in data:
            raise UserError(
                f'{path} has no "{key}"; a COCO dataset has images, annotations and categories. Convert the file to '
                "COCO format."
            )
        if not isinstance(data[key], list) or not all(isinstance(item, dict) for item in data[key]):
            raise UserError(f'{path}: "{key}" is not a list of JSON objects, as COCO requires. Correct the file.')
    for key in ("images", "categories"):
        if not data[key]:
            raise UserError(f'{path}: "{key}" is empty; expected at least one entry. Correct the file.')
    return data


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(data, path):
    """Returns the category ids in ascending order and their names."""
    names = {}
    for number, category in enumerate(data["categories"]):
        category_id, name = category.get("id"), category.get("name")
        if not _is_int(category_id) or not isinstance(name, str):
            raise UserError(
                f'{path}: category number {number} is {category}; it needs an integer "id" and a string "name". Add '
                "them to the file."
            )
        if category_id in names:
            raise UserError(
                f'{path}: categories "{names[category_id]}" and "{name}" share the id {category_id}. Give each '
                "category an id of its own."
            )
        names[category_id] = name
    ids = tuple(sorted(names))
    return ids, tuple(names[i] for i in ids)


def _image_sizes(data, path):
    """Maps image id to (height, width), in the order of the JSON."""
    sizes = {}
    for number, image in enumerate(data["images"]):
        image_id, size = image.get("id"), (image.get("height"), image.get("width"))
        if not _is_int(image_id) or not image.get("file_name") or not isinstance(image["file_name"], str):
            raise UserError(
                f'{path}: image number {number} is {image}; it needs an integer "id" and a "file_name". Add them to '
                "the file."
            )
        if not all(_is_int(length) and length > 0 for length in size):
            raise UserError(
                f'{path}: image {image_id} has (height, width) {size}; expected positive integers. Correct "height" '
                'and "width".'
            )
        if image_id in sizes:
            raise UserError(
                f"{path}: two images share the id {image_id}; the second is {image['file_name']}. Give each image an "
                "id of its own."
            )
        sizes[image_id] = size
    return sizes


def _keypoint_names(data, path):
    """Returns names and skeleton of the keypoints, which all categories with keypoints must share."""
    categories = [category for category in data["categories"] if category.get("keypoints")]
    if not categories:
        raise UserError(
            f'{path}: no category has "keypoints", which keypoints=True needs. Add the names of the keypoints to the '
            "category, or read the dataset without keypoints."
        )
    first, *others = categories
    names = first["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path}: the "keypoints" of category {first["id"]} are not a list of names. Correct the category.'
        )
    for other in others:
        if other["keypoints"] != names:
            raise UserError(
                f"{path}: categories {first['id']} and {other['id']} have different keypoints, but a model has one "
                "set. Keep the keypoints of one of the two."
            )
    try:
        skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in first.get("skeleton", []))
        valid = all(0 <= i < len(names) for pair in skeleton for i in pair)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError(
            f'{path}: the "skeleton" of category {first["id"]} is not a list of pairs of numbers from 1 to '
            f"{len(names)}. Correct the category."
        )
    return tuple(names), skeleton


def _objects(data, sizes, category_ids, path, masks, num_keypoints):
    """Returns the arrays of each image's objects, in the order of `sizes`, and the counts."""
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
            raise UserError(f"{path}: {_annotation_error(annotation, row_of, class_of)}") from None
        crowd.append(bool(annotation.get("iscrowd", 0)))

    rows = np.array(rows, np.int64)
    size = np.array(list(sizes.values()), np.float64)[rows]
    boxes, keep, counts = clip_boxes(np.array(xywh, np.float64).reshape(-1, 4), size)
    columns = {"boxes": boxes, "class_ids": np.array(class_ids, np.int32), "is_crowd": np.array(crowd, bool)}
    if num_keypoints:
        columns["keypoints"] = _keypoints(data, num_keypoints, path)
    if masks:
        runs = _runs(data, sizes, path)
        columns["num_runs"] = np.array([len(part) for part in runs], np.int32)
        counts["objects_without_mask"] = int((keep & (columns["num_runs"] == 0)).sum())
        keep &= columns["num_runs"] > 0
    ids = Counter(str(annotation["id"]) for annotation in data["annotations"] if "id" in annotation)
    counts["duplicate_annotation_ids"] = ids.total() - len(ids)

    kept = np.flatnonzero(keep)
    objects = split_by_image({name: column[kept] for name, column in columns.items()}, rows[kept], len(sizes))
    if masks:
        runs = [runs[i] for i in kept]
        owners = np.repeat(rows[kept], columns["num_runs"][kept])
        flat = split_by_image({"runs": np.concatenate(runs or [np.zeros(0, np.int32)])}, owners, len(sizes))
        objects = [{**arrays, **part} for arrays, part in zip(objects, flat, strict=True)]
    return objects, counts


def _keypoints(data, count, path):
    """Returns the keypoints of all annotations: (N, J, 3) float32 as (y, x, visibility), in continuous pixels."""
    keypoints = np.zeros((len(data["annotations"]), count, 3), np.float32)  # (x, y, visibility)
    for row, annotation in zip(keypoints, data["annotations"], strict=True):
        if not annotation.get("keypoints"):
            continue
        try:
            row[:] = np.array(annotation["keypoints"], np.float32).reshape(count, 3)
        except (TypeError, ValueError):
            row[:] = np.nan
        if not np.isfinite(row).all() or not np.isin(row[:, 2], (0, 1, 2)).all():
            raise UserError(
                f'{path}: {_name(annotation)} has "keypoints" {str(annotation["keypoints"])[:80]}; expected '
                f"{3 * count} numbers, x, y and visibility (0, 1 or 2) for each of the {count} keypoints of its "
                "category. Correct the annotation."
            )
    labelled = keypoints[..., 2:] > 0
    return np.where(labelled, keypoints[..., [1, 0, 2]] + np.float32([0.5, 0.5, 0]), np.float32(0))


def _runs(data, sizes, path):
    """Returns the run lengths of every annotation's mask; an empty array if the mask covers no pixel."""
    runs = []
    for annotation in data["annotations"]:
        segmentation = annotation.get("segmentation")
        if not isinstance(segmentation, list | dict):
            raise UserError(
                f'{path}: {_name(annotation)} has no "segmentation", which masks=True needs. Add polygons or an RLE, '
                "or read the dataset without masks."
            )
        try:
            runs.append(rle.runs_from_segmentation(segmentation, *sizes[annotation["image_id"]]))
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise UserError(f"{path}: {_name(annotation)} {reason}. Correct its segmentation.") from None
    if runs and not any(map(len, runs)):
        raise UserError(
            f"{path}: no annotation has a mask, which masks=True needs. Add segmentations, or read the dataset "
            "without masks."
        )
    return runs


def _name(annotation):
    return f"annotation {annotation['id']}" if "id" in annotation else f"an annotation ({str(annotation)[:200]})"


def _annotation_error(annotation, image_ids, category_ids):
    """Returns the error message for an annotation that could not be read."""
    name = _name(annotation)
    for key, section, known in (("image_id", "images", image_ids), ("category_id", "categories", category_ids)):
        if key not in annotation:
            return f'{name} has no "{key}". Add the id of an entry of "{section}".'
        if not _is_int(annotation[key]) or annotation[key] not in known:
            return (
                f'{name} has the {key} {annotation[key]!r}, but no entry of "{section}" has that id. Correct the id '
                "or add the entry."
            )
    if "bbox" not in annotation:
        return f'{name} has no "bbox". Add the four numbers [x, y, width, height] in pixels.'
    return (
        f'{name} has "bbox" {annotation["bbox"]!r}; expected four numbers [x, y, width, height] in pixels. Correct '
        "the annotation."
    )
