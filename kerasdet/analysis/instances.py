"""Holds objects and detections as arrays, and their IoUs: the input of every analysis."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools import mask as mask_utils

MAX_DETECTIONS = 100  # COCO counts only the highest-scored 100 detections of a class in an image


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """Holds the objects and detections of a dataset.

    Objects are ordered by image. Detections are ordered by image, then by descending score; equal scores keep the order
    of the results, as in COCOeval.

    Args:
        num_images: Number of images, I.
        num_classes: Number of classes, K.
        object_images: (G,) int64, index of each object's image, from 0.
        object_classes: (G,) int64, class id of each object in 0..K-1.
        object_areas: (G,) float64, area of each object in square pixels.
        crowds: (G,) bool, whether an object is a crowd.
        ignored: (G,) bool, whether an object counts neither as found nor as missed. True for crowds.
        object_rows: (G,) int64, position of each object in the annotations.
        images: (D,) int64, index of each detection's image, from 0.
        classes: (D,) int64, class id of each detection in 0..K-1.
        scores: (D,) float64, score of each detection.
        areas: (D,) float64, area of each detection in square pixels.
        rows: (D,) int64, position of each detection in the results.
        overlaps: For each image an array (detections, objects) of IoUs, over all classes. For a crowd, the entry is the
            fraction of the detection's area inside the crowd.
    """

    num_images: int
    num_classes: int
    object_images: np.ndarray
    object_classes: np.ndarray
    object_areas: np.ndarray
    crowds: np.ndarray
    ignored: np.ndarray
    object_rows: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    rows: np.ndarray
    overlaps: Sequence[np.ndarray]

    @property
    def object_starts(self) -> np.ndarray:
        """Index of the first object of each image, followed by the number of all objects, (I + 1,)."""
        return np.searchsorted(self.object_images, np.arange(self.num_images + 1))

    @property
    def starts(self) -> np.ndarray:
        """Index of the first detection of each image, followed by the number of all detections, (I + 1,)."""
        return np.searchsorted(self.images, np.arange(self.num_images + 1))

    @property
    def objects_per_image(self) -> np.ndarray:
        """Number of objects of each image and class that are not ignored, (I, K)."""
        real = ~self.ignored
        cells = self.object_images[real] * self.num_classes + self.object_classes[real]
        counts = np.bincount(cells, minlength=self.num_images * self.num_classes)
        return counts.reshape(self.num_images, self.num_classes)

    def keep(self, chosen: np.ndarray) -> "Instances":
        """Returns a copy with all objects, but only the selected detections.

        Args:
            chosen: (D,) bool, true for detections to keep.

        Returns:
            The copy of the instances.
        """
        starts = self.starts
        overlaps = [part[chosen[starts[i] : starts[i + 1]]] for i, part in enumerate(self.overlaps)]
        columns = {name: getattr(self, name)[chosen] for name in ("images", "classes", "scores", "areas", "rows")}
        return dataclasses.replace(self, **columns, overlaps=overlaps)


def collect(
    annotations: Sequence[Mapping],
    detections: Sequence[Mapping],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    masks: bool = False,
) -> Instances:
    """Collects objects and detections from COCO annotations, and computes their overlaps.

    Args:
        annotations: Dicts with `image_id`, `category_id`, `bbox` as (x, y, width, height) in pixels, `area` in square
            pixels, `iscrowd`, optionally `ignored` (bool, default False: whether the object counts neither as found nor
            as missed), and `segmentation` as compressed RLE if `masks` is set.
        detections: Dicts with `image_id`, `category_id`, `bbox` and `area` as in `annotations`, `score`, and
            `segmentation` as compressed RLE if `masks` is set.
        image_ids: Ids of the images; the position in this list is the index of the image. Annotations and detections of
            other images are left out.
        category_ids: Ids of the categories; the position in this list is the class id. Annotations and detections of
            other categories are left out.
        masks: Whether to compute the IoUs of masks instead of boxes.

    Returns:
        The objects and detections.
    """
    image_of = {image_id: i for i, image_id in enumerate(image_ids)}
    class_of = {category_id: k for k, category_id in enumerate(category_ids)}

    def known(entries):
        return [e for e in entries if e["image_id"] in image_of and e["category_id"] in class_of]

    def column(entries, function, dtype):
        return np.array([function(entry) for entry in entries], dtype)

    def image(entry):
        return image_of[entry["image_id"]]

    def category(entry):
        return class_of[entry["category_id"]]

    objects = sorted(known([{**entry, "row": row} for row, entry in enumerate(annotations)]), key=image)
    found = known([{**entry, "row": row} for row, entry in enumerate(detections)])
    found = sorted(found, key=lambda entry: (image(entry), -entry["score"]))
    crowds = column(objects, lambda e: bool(e["iscrowd"]), bool)
    shape = "segmentation" if masks else "bbox"
    object_images, images = column(objects, image, np.int64), column(found, image, np.int64)
    places = np.arange(len(image_of) + 1)
    first, start = np.searchsorted(object_images, places), np.searchsorted(images, places)
    overlaps = [
        _overlaps(
            [e[shape] for e in found[start[i] : start[i + 1]]],
            [e[shape] for e in objects[first[i] : first[i + 1]]],
            crowds[first[i] : first[i + 1]],
        )
        for i in range(len(image_of))
    ]
    return Instances(
        num_images=len(image_of),
        num_classes=len(class_of),
        object_images=object_images,
        object_classes=column(objects, category, np.int64),
        object_areas=column(objects, lambda e: e["area"], np.float64),
        crowds=crowds,
        ignored=crowds | column(objects, lambda e: bool(e.get("ignored")), bool),
        object_rows=column(objects, lambda e: e["row"], np.int64),
        images=images,
        classes=column(found, category, np.int64),
        scores=column(found, lambda e: e["score"], np.float64),
        areas=column(found, lambda e: e["area"], np.float64),
        rows=column(found, lambda e: e["row"], np.int64),
        overlaps=overlaps,
    )


def _overlaps(found, objects, crowds):
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    return np.asarray(mask_utils.iou(found, objects, crowds.astype(np.uint8).tolist()), np.float64)
