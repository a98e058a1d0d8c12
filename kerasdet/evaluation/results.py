"""Reads files of detections in COCO's results format and checks their values."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kerasdet.data.segmentation import read_segmentation
from kerasdet.data.values import Changes, are_fractions, as_float, as_floats, as_int, is_missing, show
from kerasdet.errors import UserError
from kerasdet.geometry import rle

_logger = logging.getLogger(__name__)

# Boxes are taken for corners [x1, y1, x2, y2] instead of [x, y, width, height] if at least _NEARLY_ALL of them fit into
# their images as corners, and more than _SOME of them do not fit as [x, y, width, height].
_NEARLY_ALL = 0.98
_SOME = 0.1
_LARGEST = float(np.finfo(np.float32).max)  # models predict float32; sums and areas of larger numbers may overflow
GEOMETRY = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


class ResultsReader:
    """Reads entries of a results file, and copies the fields that pycocotools' COCOeval needs.

    Args:
        iou_type: "bbox", "segm" or "keypoints".
        images: Maps image ids to entries of the ground truth's `images`.
        categories: Ids of the ground truth's categories.
        num_keypoints: Number of keypoints of a result; only for "keypoints".
        truth_name: Name of the ground truth in error messages.
        changes: Counts the values that are valid but had to be converted, such as numbers written as strings. Its
            `source` is the name of the results in error messages.
    """

    def __init__(
        self,
        iou_type: str,
        images: Mapping[int, Mapping],
        categories: Collection[int],
        num_keypoints: int,
        truth_name: str,
        changes: Changes,
    ) -> None:
        self.iou_type = iou_type
        self.images = images
        self.categories = categories
        self.num_keypoints = num_keypoints
        self.truth_name = truth_name
        self.changes = changes

    def read(self, entries: Sequence[Any]) -> list[dict]:
        """Reads all entries.

        Args:
            entries: Entries of a results file.

        Returns:
            The results as annotations for COCOeval, with ids from 1.

        Raises:
            UserError: If an entry is not a result, or its image or category is not in the ground truth.
        """
        return [self._read(entry, number) for number, entry in enumerate(entries, 1)]

    def _read(self, entry, number):
        def name():
            return f"result {number}"

        key = GEOMETRY[self.iou_type]
        needed = ("image_id", "category_id", "score", key)
        missing = [k for k in needed if not isinstance(entry, Mapping) or is_missing(entry.get(k))]
        if missing:
            raise self._error(name, f"has no {' and no '.join(missing)}. Add the key, or export the results again.")
        image_id = self._id(entry["image_id"], self.images, "image", name)
        category_id = self._id(entry["category_id"], self.categories, "category", name)
        score = as_float(entry["score"])
        if score is None or not abs(score) <= _LARGEST:
            raise self._error(
                name,
                f"has the score {show(entry['score'])}; expected a finite number, such as 0.87. Export the results "
                "again.",
            )
        if isinstance(entry["score"], str):
            self.changes.add("converted_values", name(), f'has "score" {show(entry["score"])} instead of {score}')
        geometry, area = self._geometry(entry[key], image_id, name)
        result = {"image_id": image_id, "category_id": category_id, "score": score, key: geometry, "area": area}
        return {**result, "id": number, "iscrowd": 0}

    def _geometry(self, value, image_id, name):
        """Returns the geometry of a result, and the area that determines whether it is small, medium or large."""
        if self.iou_type == "segm":
            code = self._mask(value, self.images[image_id], name)
            # COCO's size classes go by mask area, but its loadRes takes the box's area if the entry has a box.
            return code, float(mask_utils.area(code))
        count = 4 if self.iou_type == "bbox" else 3 * self.num_keypoints
        numbers = as_floats(value)
        if numbers is None or len(numbers) != count or not all(abs(item) <= _LARGEST for item in numbers):
            expected = "x, y, width, height" if count == 4 else f"{count} numbers, x, y and score of each keypoint"
            raise self._error(
                name, f"has the {GEOMETRY[self.iou_type]} {show(value)}; expected {expected}. Export the results again."
            )
        if not isinstance(value, list) or any(isinstance(item, str) for item in value):
            self.changes.add("converted_values", name(), f'has "{GEOMETRY[self.iou_type]}" {show(value)}')
        if self.iou_type == "bbox":
            if min(numbers[2:]) < 0:
                raise self._error(
                    name,
                    f"has the bbox {show(value)}; expected x, y, width, height, where width and height are 0 or "
                    "more. Export the "
                    "results again.",
                )
            return numbers, numbers[2] * numbers[3]
        # COCO's loadRes takes the extent of the keypoints only if the entry has no box; here a box makes no difference.
        return numbers, float(np.ptp(numbers[0::3]) * np.ptp(numbers[1::3]))

    def _mask(self, value, image, name):
        """Returns the compressed RLE of a mask."""
        height, width = image["height"], image["width"]
        try:
            segmentation = read_segmentation(value, self.changes, name)
            if segmentation is None:
                raise ValueError(
                    f"has the segmentation {show(value)}, without a polygon of at least three points; expected "
                    "polygons [x1, y1, x2, y2, x3, y3, ...] or RLE"
                )
            return as_rle(segmentation, height, width)
        except ValueError as error:
            raise self._error(name, f"{error}. Export the results again.") from None

    def _id(self, value, known, kind, name):
        number = self.changes.convert(value, as_int, name, f"{kind}_id")
        if number is None or number not in known:
            plural = {"image": "images", "category": "categories"}[kind]
            raise self._error(
                name,
                f"is {'of' if kind == 'category' else 'for'} {kind} {show(value)}, which is not in "
                f"{self.truth_name}: expected the id of one of the {len(known)} {plural}, such as "
                f"{next(iter(known))}. Use detections for the images and categories of this ground truth.",
            )
        return number

    def _error(self, name, problem):
        return UserError(f"{self.changes.source}: {name()} {problem}")


def warn_of_units(detections: Sequence[Mapping], images: Mapping[int, Mapping], name: str) -> None:
    """Warns of boxes that probably hold fractions, corners, or pixels of images of another size.

    Args:
        detections: Results of `ResultsReader` with boxes.
        images: Images of the ground truth by id.
        name: Name of the results for log messages.
    """
    if not detections:
        return
    boxes = [detection["bbox"] for detection in detections]
    if are_fractions(boxes):
        _logger.warning(
            "%s: no box has a number above 1 (first: %s); expected pixels of the images, not fractions of their size.",
            name,
            show(boxes[0]),
        )
    sizes = [(images[each["image_id"]].get("width"), images[each["image_id"]].get("height")) for each in detections]
    known = [(box, size) for box, size in zip(boxes, sizes, strict=True) if all(size)]
    beyond = [box for box, size in known if not _fits([box[0] + box[2], box[1] + box[3]], size, 1.1)]
    fit_as_corners = [_fits(box[2:], size, 1.01) and box[2] > box[0] and box[3] > box[1] for box, size in known]
    are_corners = sum(fit_as_corners) >= _NEARLY_ALL * len(boxes) and len(beyond) > _SOME * len(boxes)
    if len(beyond) > len(boxes) / 2 or are_corners:
        _logger.warning(
            "%s: %d of %d boxes extend far beyond their image (first: %s); expected [x, y, width, height] in pixels of "
            "the original image, not corners.",
            name,
            len(beyond),
            len(boxes),
            show(beyond[0]),
        )


def _fits(corner, size, factor):
    """Returns whether a box ends inside its image: its corner (x2, y2) is at most `factor` times (width, height)."""
    return all(end <= factor * length for end, length in zip(corner, size, strict=True))


def as_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Converts a segmentation to compressed RLE.

    Args:
        segmentation: Result of `kerasdet.data.segmentation.read_segmentation`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The RLE {"size", "counts"}.

    Raises:
        ValueError: If an RLE is invalid or has another number of pixels than the image. The message begins with "has";
            callers put the file and the result before it.
    """
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    rle.runs_from_segmentation(segmentation, height, width)  # pycocotools would read beyond the end of wrong counts
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, height, width)
    return segmentation
