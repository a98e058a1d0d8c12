"""Defines the one type of dataset. Every format is read into the contents of a COCO file, which this type takes."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kerasdet.data import annotations as reader
from kerasdet.data.records import clip_boxes, make_records, split_by_image
from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops


class Dataset:
    """Makes records of the contents of a COCO file.

    It clips boxes that leave their image and drops boxes that have no area or lie outside. It applies the EXIF
    orientation of a JPEG, unless the annotations give height and width of the pixels as stored. `counts` says how
    often each of these happened, and one log line sums them up.

    With masks, it drops objects whose mask covers no pixel, because their box is then meaningless; converting all
    polygons of COCO to run lengths takes about two minutes. With keypoints, pixel indices become pixel centres (+ 0.5),
    and objects without keypoints get keypoints of visibility 0.

    A new format is a function that reads it into such a dict, and a subclass whose constructor calls this one.

    Example:
        >>> data = {
        ...     "images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
        ...     "annotations": [{"image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ... }
        >>> dataset = Dataset(data, "photos", source="my data")

    Args:
        data: Contents of a COCO file: dict of the lists `images`, `annotations` and `categories`. It is not changed. An
            annotation may have a true `difficult`, as in Pascal VOC: training uses it, evaluation ignores it. An image
            may have a function `content` that reads its bytes, if it is no file of its own.
        images: Folder that each relative `file_name` is in. None takes each `file_name` as a path.
        source: Path or name of the dataset in messages.
        keep_images_without_objects: Whether to keep images without an object. A crowd does not count as an object;
            with `keypoints=True`, neither does an object without a labelled keypoint.
        on_bad_image: What to do if an image file is missing, damaged or not of the size in the annotations: "error"
            raises one `UserError` that names them, "skip" leaves them out.
        masks: Whether to read the segmentations.
        keypoints: Whether to read the keypoints.
        strict: Whether to refuse contents that differ from COCO's format and can still be read, such as numbers as
            text. By default they are read, counted and named in the log.

    Attributes:
        annotations: Path or name of the dataset, for messages.
        ground_truth: Contents of a COCO file for evaluation, or its path.
        records: Tuple of `Record`, in the order of `images`.
        class_names: Tuple of K names, by ascending category id.
        category_ids: Tuple of K category ids; `category_ids[class_id]` is the id of a class.
        num_classes: Number of classes, K.
        keypoint_names: Tuple of J names; () if keypoints are not read.
        skeleton: Tuple of pairs of keypoint indices from 0; () if keypoints are not read.
        keypoint_flip: Tuple of J indices that swaps left and right, see `kerasdet.geometry.keypoints.flip_order`; ()
            if keypoints are not read.
        counts: Number of images and boxes that were kept, changed and dropped, by name.

    Raises:
        FileNotFoundError: If the folder does not exist.
        UserError: If the contents are not COCO's, naming the item, or if images are bad.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        images: str | os.PathLike | None,
        *,
        source: str | os.PathLike,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
        masks: bool = False,
        keypoints: bool = False,
        strict: bool = False,
    ) -> None:
        self.annotations, self.ground_truth = source, data
        folder = Path("" if images is None else images)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"The image folder {folder} of {source} does not exist. Pass the folder as images=FOLDER."
            )
        reader.check_sections(data, source)
        self.category_ids, self.class_names = reader.categories(data, source)
        self.num_classes = len(self.category_ids)
        self.keypoint_names, self.skeleton = reader.keypoint_names(data, source) if keypoints else ((), ())
        self.keypoint_flip = keypoint_ops.flip_order(self.keypoint_names)
        sizes = reader.image_sizes(data, source)
        objects, counts = _objects(data, sizes, self.category_ids, source, masks, len(self.keypoint_names))
        self.records, self.counts = make_records(
            source,
            list(sizes),
            [str(folder / item["file_name"]) for item in data["images"]],
            list(sizes.values()),
            objects,
            keep_images_without_objects=keep_images_without_objects,
            on_bad_image=on_bad_image,
            contents=[item.get("content") for item in data["images"]],
            num_classes=self.num_classes,
            object_counts=counts,
        )

    def __len__(self) -> int:
        return len(self.records)


def _objects(data, sizes, category_ids, path, masks, num_keypoints):
    """Returns the arrays of each image's objects, in the order of `sizes`, and the counts."""
    row_of = {image_id: row for row, image_id in enumerate(sizes)}
    class_of = {category_id: class_id for class_id, category_id in enumerate(category_ids)}
    rows, class_ids, xywh, crowd, difficult = [], [], [], [], []
    for annotation in data["annotations"]:
        try:
            rows.append(row_of[annotation["image_id"]])
            class_ids.append(class_of[annotation["category_id"]])
            x, y, w, h = annotation["bbox"]
            xywh.append((float(x), float(y), float(w), float(h)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(f"{path}: {reader.annotation_error(annotation, row_of, class_of)}") from None
        crowd.append(bool(annotation.get("iscrowd", 0)))
        difficult.append(bool(annotation.get("difficult", 0)))

    rows = np.array(rows, np.int64)
    size = np.array(list(sizes.values()), np.float64)[rows]
    boxes, keep, counts = clip_boxes(np.array(xywh, np.float64).reshape(-1, 4), size)
    columns = {"boxes": boxes, "class_ids": np.array(class_ids, np.int32), "is_crowd": np.array(crowd, bool)}
    if num_keypoints:
        columns["keypoints"] = reader.keypoints(data, num_keypoints, path)
    if masks:
        runs = reader.runs(data, sizes, path)
        columns["num_runs"] = np.array([len(part) for part in runs], np.int32)
        counts["objects_without_mask"] = int((keep & (columns["num_runs"] == 0)).sum())
        keep &= columns["num_runs"] > 0
    if any(difficult):
        counts["difficult_boxes"] = int((keep & np.array(difficult, bool)).sum())
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
