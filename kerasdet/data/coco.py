"""COCO JSON to immutable records, one per image, with everything that is wrong counted or named."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from kerasdet.data.records import corners_inside, make_records, split_by_image
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import rle


class CocoDataset:
    """A data set in COCO format: one JSON file and a folder of images.

    Boxes that leave their image are cut at its border; boxes without area or wholly outside are dropped. The EXIF
    orientation of a JPEG is applied, unless height and width in the JSON are those of the pixels as stored. `counts`
    says how often each of these happened; one line of it goes to the log.

    With masks, objects whose mask covers no pixel are dropped, as their box says nothing about it; turning the
    polygons of all of COCO into run lengths takes about two minutes. With keypoints, pixel indices become the centres
    of pixels (+ 0.5), and objects without keypoints have those of visibility 0.

    Args:
        annotations: the JSON file.
        images: the folder that `file_name` starts from; by default `images` beside the JSON.
        keep_empty: whether to keep images without an object; crowds are no objects here, nor, if there are to be
            keypoints, objects without a labelled one.
        bad_images: what to do about missing and damaged image files and those of another size than the JSON says:
            "error" names them in one `ValueError`, "skip" leaves them out.
        masks: whether to read the segmentations.
        keypoints: whether to read the keypoints.

    Attributes:
        annotations: path of the JSON file.
        ground_truth: what to evaluate against, the same path.
        records: tuple of `Record`, in the order of the JSON.
        class_names: tuple of K names, by ascending category id.
        category_ids: tuple of K category ids of the JSON: `category_ids[class_id]`.
        num_classes: K.
        keypoint_names: tuple of J names; empty where keypoints were not asked for, as are the next two.
        skeleton: tuple of pairs of indices from 0.
        keypoint_flip: tuple of J indices, see `kerasdet.geometry.keypoints.flip_order`.
        counts: dict of how many images and boxes were kept, changed and dropped.

    Raises:
        FileNotFoundError: where the JSON or the folder does not exist.
        ValueError: for a file that is not COCO, naming the item, and for bad images.
    """

    def __init__(self, annotations, images=None, *, keep_empty=True, bad_images="error", masks=False, keypoints=False):
        self.annotations = self.ground_truth = Path(annotations)
        folder = self.annotations.parent / "images" if images is None else Path(images)
        data = _read(self.annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {folder} with the images of {self.annotations}: give images=FOLDER.")
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
            keep_empty=keep_empty,
            bad_images=bad_images,
            num_classes=self.num_classes,
            object_counts=counts,
        )

    def __len__(self):
        return len(self.records)


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


def _keypoint_names(data, path):
    """Names of the keypoints and pairs of indices joined by a line: those of all categories that have keypoints."""
    categories = [category for category in data["categories"] if category.get("keypoints")]
    if not categories:
        raise ValueError(f'{path}: no category has "keypoints", which keypoints=True needs.')
    first, *others = categories
    names = first["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path}: the "keypoints" of category {first["id"]} are not a list of names.')
    for other in others:
        if other["keypoints"] != names:
            raise ValueError(
                f"{path}: categories {first['id']} and {other['id']} have other keypoints: a model has one set."
            )
    try:
        skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in first.get("skeleton", []))
        valid = all(0 <= i < len(names) for pair in skeleton for i in pair)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f'{path}: the "skeleton" of category {first["id"]} needs pairs of numbers from 1 to {len(names)}.'
        )
    return tuple(names), skeleton


def _objects(data, sizes, category_ids, path, masks, num_keypoints):
    """The arrays of each image's objects, in the order of `sizes`, and what was counted."""
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
    boxes, keep, counts = corners_inside(np.array(xywh, np.float64).reshape(-1, 4), size)
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
    """(N, J, 3) float32 as (y, x, visibility) of all annotations, in continuous pixels."""
    keypoints = np.zeros((len(data["annotations"]), count, 3), np.float32)  # (x, y, visibility)
    for row, annotation in zip(keypoints, data["annotations"], strict=True):
        if not annotation.get("keypoints"):
            continue
        try:
            row[:] = np.array(annotation["keypoints"], np.float32).reshape(count, 3)
        except (TypeError, ValueError):
            row[:] = np.nan
        if not np.isfinite(row).all() or not np.isin(row[:, 2], (0, 1, 2)).all():
            raise ValueError(
                f"{path}: {_name(annotation)} needs {3 * count} numbers (x, y, visibility 0, 1 or 2 of each of the "
                f'{count} keypoints of its category) as "keypoints", has {str(annotation["keypoints"])[:80]}.'
            )
    labelled = keypoints[..., 2:] > 0
    return np.where(labelled, keypoints[..., [1, 0, 2]] + np.float32([0.5, 0.5, 0]), np.float32(0))


def _runs(data, sizes, path):
    """The run lengths of every annotation's mask; none where it covers no pixel."""
    runs = []
    for annotation in data["annotations"]:
        segmentation = annotation.get("segmentation")
        if not isinstance(segmentation, list | dict):
            raise ValueError(f'{path}: {_name(annotation)} has no "segmentation", which masks=True needs.')
        try:
            runs.append(rle.runs_from_segmentation(segmentation, *sizes[annotation["image_id"]]))
        except ValueError as error:
            raise ValueError(f"{path}: {_name(annotation)} {error}.") from None
    if runs and not any(map(len, runs)):
        raise ValueError(f"{path}: no annotation has a mask, which masks=True needs.")
    return runs


def _name(annotation):
    return f"annotation {annotation['id']}" if "id" in annotation else f"an annotation ({str(annotation)[:200]})"


def _what_is_wrong(annotation, image_ids, category_ids):
    """The sentence about an annotation that could not be read."""
    name = _name(annotation)
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
