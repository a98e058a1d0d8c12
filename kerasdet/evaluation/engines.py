"""Runs COCO's matching and accumulation with hotcoco or pycocotools; the results are equal to the last bit."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.errors import UserError

ENGINES = ("hotcoco", "pycocotools")  # the first is the default; pycocotools is the reference
_BOXES = (  # name, array, then indices of the IoU threshold (None: all), area range and limit of detections
    ("AP", "precision", None, 0, 2),
    ("AP50", "precision", 0, 0, 2),
    ("AP75", "precision", 5, 0, 2),
    ("APs", "precision", None, 1, 2),
    ("APm", "precision", None, 2, 2),
    ("APl", "precision", None, 3, 2),
    ("AR1", "recall", None, 0, 0),
    ("AR10", "recall", None, 0, 1),
    ("AR100", "recall", None, 0, 2),
    ("ARs", "recall", None, 1, 2),
    ("ARm", "recall", None, 2, 2),
    ("ARl", "recall", None, 3, 2),
)
_KEYPOINTS = (
    ("AP", "precision", None, 0, 0),
    ("AP50", "precision", 0, 0, 0),
    ("AP75", "precision", 5, 0, 0),
    ("APm", "precision", None, 1, 0),
    ("APl", "precision", None, 2, 0),
    ("AR", "recall", None, 0, 0),
    ("AR50", "recall", 0, 0, 0),
    ("AR75", "recall", 5, 0, 0),
    ("ARm", "recall", None, 1, 0),
    ("ARl", "recall", None, 2, 0),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulated:
    """Holds precision and recall in the layout of pycocotools' COCOeval; -1 marks entries without ground truth.

    Args:
        precision: (T, 101, K, A, M), indexed by IoU threshold (0.50 to 0.95), recall (0.00 to 1.00), category, area
            range (all, small, medium, large; keypoints have no small) and limit of detections per image.
        recall: (T, K, A, M), indexed by IoU threshold, category, area range and limit of detections per image.
    """

    precision: np.ndarray
    recall: np.ndarray

    def summary(self, iou_type: str) -> dict[str, float]:
        """Computes COCO's metrics.

        Args:
            iou_type: "bbox", "segm" or "keypoints".

        Returns:
            Twelve metrics by name, such as "AP50"; ten for keypoints. A metric without ground truth is NaN.
        """
        arrays = {"precision": self.precision, "recall": self.recall}
        return {
            name: mean_of_known(arrays[array][slice(None) if iou is None else slice(iou, iou + 1), ..., area, limit])
            for name, array, iou, area, limit in (_KEYPOINTS if iou_type == "keypoints" else _BOXES)
        }


def mean_of_known(values: np.ndarray) -> float:
    """Averages the values that are not -1, COCO's value for "no ground truth".

    Args:
        values: Array of any shape.

    Returns:
        The mean; NaN if all values are -1.
    """
    known = values[values > -1]
    return float(np.mean(known)) if known.size else math.nan


def accumulate(
    truth: Mapping,
    detections: Mapping,
    iou_type: str,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    sigmas: np.ndarray | None = None,
    limits: Sequence[int] | None = None,
    engine: str | None = None,
) -> Accumulated:
    """Matches detections to ground truth and accumulates precision and recall.

    Args:
        truth: Contents of a COCO annotation file, checked: a dict of `images`, `categories` and `annotations`.
        detections: A dict of the same form whose `annotations` are the detections, each with an id and an area.
        iou_type: "bbox", "segm" or "keypoints".
        image_ids: Ids of the images to score.
        category_ids: Ids of the categories to score, ascending.
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area; only for "keypoints".
        limits: Maximum numbers of boxes per image, such as (100, 300, 1000). Recall is measured for each number, and
            classes are ignored. None: classes are scored separately with COCO's limits.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        The arrays of precision and recall.

    Raises:
        UserError: If the engine is unknown or not installed.
    """
    engine = check_engine(engine)
    if engine == "hotcoco":  # hotcoco accepts no negative ids; adding the same number to all ids keeps their order
        shifts = shifts_of(truth)
        truth, detections = shifted(truth, shifts), shifted(detections, shifts)
        image_ids = [image_id + shifts["image_id"] for image_id in image_ids]
        category_ids = [category_id + shifts["category_id"] for category_id in category_ids]
    settings = {"imgIds": list(image_ids), "catIds": list(category_ids)}
    if sigmas is not None:
        settings["kpt_oks_sigmas"] = sigmas
    if limits:
        settings |= {"useCats": 0, "maxDets": list(limits)}
    evaluation = _evaluation(truth, detections, iou_type, engine)
    params = evaluation.params
    for name, value in settings.items():
        setattr(params, name, value)
    evaluation.params = params
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    numbers = evaluation.eval
    return Accumulated(np.asarray(numbers["precision"]), np.asarray(numbers["recall"]))


def shifts_of(dataset: Mapping) -> dict[str, int]:
    """Computes the offsets that make the ids of images and categories non-negative, which hotcoco needs.

    Args:
        dataset: A dict of `images` and `categories` in the form of a COCO file.

    Returns:
        A dict of the offsets, 0 or more, that are added to the ids: "image_id" and "category_id".
    """
    return {
        key: -min([0, *(each["id"] for each in dataset[section])])
        for section, key in (("images", "image_id"), ("categories", "category_id"))
    }


def shifted(dataset: Mapping, shifts: Mapping[str, int]) -> Mapping:
    """Adds offsets to the ids of images and categories.

    Args:
        dataset: A dict of `images`, `categories` and `annotations` in the form of a COCO file.
        shifts: Result of `shifts_of`.

    Returns:
        The new dict; `dataset` itself if all offsets are 0.
    """
    if not any(shifts.values()):
        return dataset
    sections = (("images", "image_id"), ("categories", "category_id"))
    return {
        **{
            section: [{**each, "id": each["id"] + shifts[key]} for each in dataset[section]]
            for section, key in sections
        },
        "annotations": [
            {**each, **{key: each[key] + shift for key, shift in shifts.items()}} for each in dataset["annotations"]
        ],
    }


def check_engine(engine: str | None) -> str:
    """Checks that an engine exists and is installed.

    Args:
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        The name of the engine.

    Raises:
        UserError: If the engine is unknown or not installed.
    """
    engine = ENGINES[0] if engine is None else engine
    if engine not in ENGINES:
        raise UserError(f"engine is {engine!r}: choose one of {', '.join(ENGINES)}.")
    if engine == "hotcoco":
        try:
            import hotcoco  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"hotcoco, which computes AP, cannot be imported ({error}): run pip install hotcoco. COCO's rules also "
                "work without it, with the engine pycocotools (kerasdet eval --engine pycocotools)."
            ) from None
    return engine


def _evaluation(truth, detections, iou_type, engine):
    if engine == "hotcoco":
        import hotcoco

        return hotcoco.COCOeval(hotcoco.COCO(dict(truth)), hotcoco.COCO(dict(detections)), iou_type)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def indexed(dataset):
        coco = COCO()
        coco.dataset = dict(dataset)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    return COCOeval(indexed(truth), indexed(detections), iou_type)
