"""Defines `Dataset`, the class of all datasets: every format is first read into the form of a COCO file."""

import copy
import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerasdet.arguments import check_names, check_numbers
from kerasdet.data.annotations import CHANGES, GroundTruth, name_of, read_contents
from kerasdet.data.categories import match_classes, read_skeleton
from kerasdet.data.extra_values import read_extra_values
from kerasdet.data.files import REPAIRS
from kerasdet.data.image_files import check_files, find_paths
from kerasdet.data.images import MAX_PIXELS
from kerasdet.data.records import Record, clip_boxes, split_by_image
from kerasdet.data.values import MAX_LISTED, Changes, Problem, show
from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import rle

_logger = logging.getLogger("kerasdet.data")

# Names of the arguments of `Dataset` that make it read more than boxes
OPTIONAL_GROUND_TRUTH = ("masks", "keypoints", "extra_annotation_keys")
# Text in the log for each kind of count that is not in `CHANGES`
NOTES = {
    "clipped_boxes": "boxes clipped to their image",
    "zero_area_boxes": "boxes without area dropped",
    "negative_boxes": "boxes of negative width or height dropped",
    "outside_boxes": "boxes outside their image dropped",
    "objects_without_mask": "objects without a mask dropped",
    "difficult_boxes": "difficult boxes",
    "repeated_boxes": CHANGES["repeated_boxes"],
    "duplicate_annotation_ids": "duplicate annotation ids",
}


class Dataset:
    """Makes records from a dict in the form of a COCO file.

    Boxes are clipped to their image; boxes without area and boxes outside their image are dropped. EXIF rotation is
    applied, unless the annotated height and width are those of the unrotated pixels. Values that differ from COCO's
    format are converted if their meaning is clear, such as numbers written as strings. `counts` holds the number of
    each kind of repair; one log line summarises them.

    With masks, objects whose mask covers no pixel are dropped, because the box is then meaningless. Converting all
    polygons of COCO to run lengths takes about two minutes. With keypoints, pixel indices become pixel centres (+ 0.5),
    and objects without keypoints get keypoints of visibility 0.

    To add a format, write a function that reads it into a dict in the form of a COCO file, and a subclass that passes
    the dict to this constructor.

    Example:
        >>> data = {
        ...     "images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
        ...     "annotations": [{"image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ... }
        >>> dataset = Dataset(data, "photos", source="my data")

    Args:
        data: Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. It is not changed.
            If an image lacks `height` and `width`, they are read from its file. An annotation may have ``"difficult":
            True``, as in Pascal VOC: training uses the object, evaluation ignores it. An image that is not a separate
            file has the key `content`, a function that returns the bytes of the encoded image; `file_name` is then only
            used in error messages.
        images: Folder that each `file_name` is relative to. None: each `file_name` is already a path.
        source: Path or name of the dataset for error messages.
        keep_images_without_objects: Whether to keep images without an object. A crowd does not count as an object;
            with `keypoints=True`, neither does an object without a labelled keypoint.
        on_bad_image: What to do if an image file is missing, damaged or not of the size in the annotations: "error"
            raises one `UserError` that names the first of these images, "skip" leaves them out.
        on_bad_object: What to do if an annotation cannot be read, such as one with a box of three numbers: "error"
            raises a `UserError` that names the annotation, "skip" leaves it out of training and evaluation.
        masks: Whether to read the segmentations.
        keypoints: Whether to read the keypoints.
        extra_annotation_keys: Keys of further values in the annotations, such as "age", for branches of your own. A
            value is a number, or a list of numbers that has the same length in all annotations. Batches hold the values
            as float32 under the same keys.
        strict: Whether to raise an error for values that would be converted, such as numbers written as strings, and
            for objects that would be clipped or dropped. By default these are counted and logged.
        max_pixels: Images with more pixels than this count as damaged, because a malicious file can claim any size.
            Default: Pillow's limit, about 179 million.

    Attributes:
        annotations: Path of the annotation file, or the name in `source`; used in messages.
        records: Tuple of `Record`, one per usable image, in the order of ``data["images"]``.
        class_names: Tuple of the K class names, by ascending category id.
        category_ids: Tuple of the K category ids, ascending; ``category_ids[class_id]`` is the category id of a class.
        num_classes: Number of classes, K.
        keypoint_names: Tuple of the J keypoint names; () if keypoints are not read.
        skeleton: Tuple of pairs of keypoint indices from 0; () if keypoints are not read.
        keypoint_flip: Tuple of J indices, the permutation that swaps left and right keypoints, see
            `kerasdet.geometry.keypoints.flip_order`; () if keypoints are not read.
        extra_shapes: Maps each of `extra_annotation_keys` to the shape of its value for one object: () for a number,
            (n,) for a list of n numbers.
        counts: Numbers of images and boxes that were kept, changed and dropped, by kind.
        problems: Tuple of `Problem`: the image files and annotations that were changed or dropped, up to
            `kerasdet.data.values.MAX_LISTED` of each kind.

    Raises:
        FileNotFoundError: If the folder does not exist.
        UserError: If `data` does not have the form of a COCO file, or image files cannot be used. The message names the
            image or annotation.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        images: str | os.PathLike | None,
        *,
        source: str | os.PathLike,
        keep_images_without_objects: bool = True,
        on_bad_image: str = "error",
        on_bad_object: str = "error",
        masks: bool = False,
        keypoints: bool = False,
        extra_annotation_keys: Sequence[str] = (),
        strict: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_numbers("Dataset", 1, max_pixels=max_pixels)
        self.annotations = source
        self._data = data
        folder = Path("" if images is None else images)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{source}: the image folder {folder} does not exist, or is not a folder. Pass the folder that holds "
                "the images (--images; gin: TRAIN_IMAGES or EVAL_IMAGES; Python: images=)."
            )
        contents = read_contents(
            data, source, masks=masks, keypoints=keypoints, strict=strict, on_bad_object=on_bad_object
        )
        if contents.bad:
            readable = [each for place, each in enumerate(data["annotations"]) if place not in contents.bad]
            self._data = {**data, "annotations": readable}
        self._categories = contents.categories
        self.category_ids = tuple(category["id"] for category in contents.categories)
        self.class_names = tuple(category["name"] for category in contents.categories)
        self.keypoint_names, self.skeleton = _keypoint_names(contents, source) if keypoints else ((), ())
        self.keypoint_flip = keypoint_ops.flip_order(self.keypoint_names)
        if len(self.keypoint_names) > 1 and self.keypoint_flip == tuple(range(len(self.keypoint_names))):
            for name in self.keypoint_names:
                contents.changes.note(
                    "unpaired_keypoints", f"the keypoint {name}", "has no counterpart on the other side"
                )
        files = check_files(
            paths := find_paths(folder, _file_names(contents.images, source), contents.changes),
            content_of := [image.get("content") for image in contents.images],
            [(image["height"], image["width"]) for image in contents.images],
            os.fspath(source),
            on_bad_image=on_bad_image,
            max_pixels=max_pixels,
            changes=contents.changes,
        )
        self._missing_sizes = {
            image["id"]: dict(zip(("height", "width"), file.size, strict=True))
            for image, file in zip(contents.images, files, strict=True)
            if image["height"] is None and file.problem is None
        }
        problems = [(path, file.problem) for path, file in zip(paths, files, strict=True)]
        bad = [Problem("bad_images", path, problem) for path, problem in problems if problem]
        places = zip(contents.images, paths, content_of, files, strict=True)
        usable = {image["id"]: place for image, *place in places if place[-1].problem is None}
        annotations = [annotation for annotation in contents.annotations if annotation["image_id"] in usable]
        extra_values, self.extra_shapes = read_extra_values(annotations, extra_annotation_keys, source)
        objects, object_counts, object_problems = _objects(
            annotations,
            {image_id: file.size for image_id, (*_, file) in usable.items()},
            {image_id: path for image_id, (path, *_) in usable.items()},
            self.category_ids,
            source,
            masks,
            len(self.keypoint_names),
            {"extra_values": extra_values} if extra_annotation_keys else {},
        )
        ids = Counter(str(annotation["id"]) for annotation in contents.annotations if "id" in annotation)
        if strict:
            _refuse(object_problems, ids, source)
        records = [
            Record(image_id, path, *file.size, file.exif, **arrays, by_pil=file.by_pil, content=content)
            for (image_id, (path, content, file)), arrays in zip(usable.items(), objects, strict=True)
        ]
        self.records = tuple(r for r in records if keep_images_without_objects or not r.is_empty)
        self.counts = {
            "images": len(self.records),
            "bad_images": len(bad),
            "images_without_objects": sum(record.is_empty for record in records),
            "boxes": sum(len(record.boxes) for record in self.records),
            "crowd_boxes": sum(int(record.is_crowd.sum()) for record in self.records),
            **object_counts,
            "duplicate_annotation_ids": ids.total() - len(ids),
            **contents.changes.counts,
        }
        self.problems = (*bad[:MAX_LISTED], *contents.changes.problems, *object_problems)
        fate = "kept" if keep_images_without_objects else "dropped"
        line = [
            f"{source}: {len(self.records)} images, {self.counts['boxes']} boxes ({self.counts['crowd_boxes']} crowd)",
            f"{self.num_classes} classes",
            f"{self.counts['images_without_objects']} images without objects {fate}",
            *(f"{self.counts[key]} {note}" for key, note in NOTES.items() if self.counts.get(key)),
            *contents.changes.describe(CHANGES),
            *([f"{len(bad)} bad images skipped (first {bad[0].item}: {bad[0].text})"] if bad else []),
        ]
        _logger.info("%s", ", ".join(line))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.category_ids)

    @property
    def ground_truth(self) -> GroundTruth:
        """Ground truth to evaluate against: a dict in the form of a COCO file, with the size of every usable image."""
        contents = read_contents(self._contents(), self.annotations)
        images = [
            {key: value for key, value in image.items() if key != "content"} | self._missing_sizes.get(image["id"], {})
            for image in contents.images
        ]
        annotations = [each for each in contents.annotations if each["category_id"] in self.category_ids]
        sections = {"images": images, "categories": self._categories, "annotations": annotations}
        return GroundTruth(sections, self.annotations)

    def add_changes(self, changes: Changes) -> None:
        """Adds the repairs that the reader of a format made to `counts` and `problems`, and logs them.

        Args:
            changes: The repairs, counted by kind.
        """
        for kind, count in changes.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.problems += tuple(changes.problems)
        for sentence in changes.describe({**CHANGES, **REPAIRS}):
            _logger.info("%s: %s", self.annotations, sentence)

    def with_classes(self, class_names: Sequence[str]) -> "Dataset":
        """Returns a copy of the dataset with the class ids of a model.

        Classes are matched by name or, if names differ, by order; see `kerasdet.data.categories.match_classes`.

        Args:
            class_names: K names of the model's classes. The dataset may lack some of them, and may have other classes
                without objects.

        Returns:
            A dataset with the same images and objects, but other class ids; this dataset if no id changes.

        Raises:
            UserError: If the dataset has objects of a class that is not in `class_names`, or the classes cannot be
                matched by name.
        """
        check_names("class_names", class_names)
        present = {self.class_names[i] for record in self.records for i in np.unique(record.class_ids)}
        index = match_classes(self.class_names, class_names, present, self.annotations)
        if index == list(range(len(class_names))):
            return self
        other = copy.copy(self)
        free = iter(range(max(self.category_ids) + 1, max(self.category_ids) + 1 + len(index)))
        other._categories = [
            {"id": next(free), "name": name} if i is None else self._categories[i]
            for i, name in zip(index, class_names, strict=True)
        ]
        other.category_ids = tuple(category["id"] for category in other._categories)
        other.class_names = tuple(class_names)
        new_id = np.full(self.num_classes, -1, np.int32)
        for class_id, i in enumerate(index):
            if i is not None:
                new_id[i] = class_id
        other.records = tuple(dataclasses.replace(r, class_ids=new_id[r.class_ids]) for r in self.records)
        return other

    def _contents(self) -> Mapping[str, Any]:
        """Returns the dict, in the form of a COCO file, from which the dataset was made."""
        return self._data


def _warn_of_units(annotations, xywh, size, source):
    """Warns of boxes that probably hold corners, or pixels of images of another size."""
    beyond = np.flatnonzero((xywh[:, :2] + xywh[:, 2:] > 1.1 * size[:, ::-1]).any(1))
    if len(beyond) > len(xywh) / 2:
        first = annotations[beyond[0]]
        _logger.warning(
            '%s: most boxes extend far beyond their image (first: %s has "bbox" %s). They may hold corners instead '
            "of widths and heights, or pixels of images of another size: check the annotations.",
            source,
            name_of(first),
            show(first["bbox"]),
        )
    areas = np.array([annotation["area"] for annotation in annotations], np.float64)
    of_corners = (xywh[:, 2] - xywh[:, 0]) * (xywh[:, 3] - xywh[:, 1])
    if len(xywh) and np.allclose(areas, of_corners) and not np.isclose(areas, xywh[:, 2] * xywh[:, 3]).any():
        _logger.warning(
            '%s: every "area" fits a box [x1, y1, x2, y2] (first: %s has "bbox" %s and area %g), but boxes are '
            "read as [x, y, width, height]. The boxes may hold corners: check the annotations.",
            source,
            name_of(annotations[0]),
            show(annotations[0]["bbox"]),
            areas[0],
        )


def _refuse(problems, ids, source):
    """Raises an error about the first object that would be clipped or dropped, or the first repeated annotation id."""
    kind = "duplicate_annotation_ids"
    repeated = [Problem(kind, f"annotation {name}", "shares its id with another") for name, n in ids.items() if n > 1]
    for problem in (*problems, *repeated):
        raise UserError(
            f"{source}: {problem.item} {problem.text} (kind: {problem.kind.replace('_', ' ')}), which --strict "
            "(Python and gin: strict=True) does not allow. Correct this item, or remove the option."
        )


def _file_names(images, source):
    """Returns the file name of each image; raises an error if one is missing."""
    for number, image in enumerate(images):
        if not image.get("file_name") or not isinstance(image["file_name"], str):
            raise UserError(
                f'{source}: images[{number}] is {show(image)}; expected an integer "id" and a "file_name". '
                "Correct this entry."
            )
    return [image["file_name"] for image in images]


def _keypoint_names(contents, source):
    """Returns names and skeleton of the keypoints; raises an error if two categories have different keypoints."""
    categories = [category for category in contents.categories if category["keypoints"]]
    if not categories:
        raise UserError(
            f'{source}: no category has "keypoints", the names of keypoints, but keypoints=True was set. Add the '
            "names to the category, pass the file with keypoints (COCO: person_keypoints_*.json), or set "
            "keypoints=False (gin: CocoDataset.keypoints or open_dataset.keypoints)."
        )
    first, *others = categories
    for other in others:
        if other["keypoints"] != first["keypoints"]:
            raise UserError(
                f"{source}: categories {first['id']} and {other['id']} have different keypoints; expected the same "
                'keypoints in all categories that have any. Remove "keypoints" from one category.'
            )
    return tuple(first["keypoints"]), read_skeleton(first, contents.changes)


def _objects(annotations, sizes, paths, category_ids, source, masks, num_keypoints, extra):
    """Returns the arrays of each image's objects, in the order of `sizes`, the counts and the problems."""
    row_of = {image_id: row for row, image_id in enumerate(sizes)}
    class_of = {category_id: class_id for class_id, category_id in enumerate(category_ids)}
    rows = np.array([row_of[annotation["image_id"]] for annotation in annotations], np.int64)
    xywh = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    size = np.array(list(sizes.values()), np.float64).reshape(-1, 2)[rows]
    _warn_of_units(annotations, xywh, size, source)
    boxes, keep, faults = clip_boxes(xywh, size)
    columns = {
        "boxes": boxes,
        "class_ids": np.array([class_of[annotation["category_id"]] for annotation in annotations], np.int32),
        "is_crowd": np.array([annotation["iscrowd"] for annotation in annotations], bool),
        **extra,
    }
    if num_keypoints:
        columns["keypoints"] = _keypoints(annotations, num_keypoints)
    if masks:
        if annotations and not any(annotation["segmentation"] for annotation in annotations):
            raise UserError(
                f'{source}: no annotation has a "segmentation", but masks=True was set. Add segmentations, or set '
                "masks=False (gin: CocoDataset.masks or open_dataset.masks)."
            )
        runs = read_runs(annotations, sizes, source)
        columns["num_runs"] = np.array([len(part) for part in runs], np.int32)
        faults["objects_without_mask"] = keep & (columns["num_runs"] == 0)
        keep &= columns["num_runs"] > 0
    counts = {kind: int(found.sum()) for kind, found in faults.items()}
    difficult = np.array([annotation["difficult"] for annotation in annotations], bool)
    if difficult.any():
        counts["difficult_boxes"] = int((keep & difficult).sum())

    kept = np.flatnonzero(keep)
    places = np.column_stack([rows[kept], columns["class_ids"][kept], xywh[kept]])
    if repeated := len(places) - len(np.unique(places, axis=0)):
        counts["repeated_boxes"] = repeated
    objects = split_by_image({name: column[kept] for name, column in columns.items()}, rows[kept], len(sizes))
    if masks:
        runs = [runs[i] for i in kept]
        owners = np.repeat(rows[kept], columns["num_runs"][kept])
        flat = split_by_image({"runs": np.concatenate(runs or [np.zeros(0, np.int32)])}, owners, len(sizes))
        objects = [{**arrays, **part} for arrays, part in zip(objects, flat, strict=True)]
    return (
        objects,
        counts,
        [problem for kind in faults for problem in _problems(kind, faults[kind], annotations, paths)],
    )


def _problems(kind, found, annotations, paths):
    """Yields a `Problem` for each of the first faulty objects."""
    for annotation in (annotations[i] for i in np.flatnonzero(found)[:MAX_LISTED]):
        text = (
            "has no mask, or an empty one"
            if kind == "objects_without_mask"
            else f'has "bbox" {show(annotation["bbox"])}'
        )
        yield Problem(kind, f"{name_of(annotation)} of {paths[annotation['image_id']]}", text)


def _keypoints(annotations, count):
    """Returns the keypoints of all annotations: (N, J, 3) float32 as (y, x, visibility), in continuous pixels."""
    missing = [0] * (3 * count)
    listed = [annotation["keypoints"] or missing for annotation in annotations]
    keypoints = np.array(listed, np.float32).reshape(-1, count, 3)  # (x, y, visibility)
    labelled = keypoints[..., 2:] > 0
    return np.where(labelled, keypoints[..., [1, 0, 2]] + np.float32([0.5, 0.5, 0]), np.float32(0))


def read_runs(
    annotations: Sequence[Mapping[str, Any]], sizes: Mapping[int, tuple[int, int]], source: str
) -> list[np.ndarray]:
    """Reads and checks the masks of annotations.

    Args:
        annotations: COCO annotations whose `segmentation` is the result of `read_segmentation`.
        sizes: Maps the id of each image to its height and width in pixels.
        source: Path or name of the dataset for error messages.

    Returns:
        The run lengths of each mask, see `rle.runs_from_segmentation`; an empty array for an object without a mask or
        with a mask that covers no pixel.

    Raises:
        UserError: If a mask is damaged or not of the size of its image, or all masks cover no pixel.
    """
    runs = []
    for annotation in annotations:
        segmentation = annotation["segmentation"] or []
        try:
            runs.append(rle.runs_from_segmentation(segmentation, *sizes[annotation["image_id"]]))
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise UserError(f"{source}: {name_of(annotation)} {reason}. Correct its segmentation.") from None
    drawn = [annotation for annotation in annotations if annotation["segmentation"]]
    if drawn and not any(map(len, runs)):
        raise UserError(
            f'{source}: no mask covers a pixel of its image (first: {name_of(drawn[0])} has "segmentation" '
            f"{show(drawn[0]['segmentation'])}); expected masks inside the images, in pixels. Correct the "
            "segmentations."
        )
    return runs
