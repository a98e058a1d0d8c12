"""Scores detections by the rules of Pascal VOC."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils

from kerasdet.evaluation.cases import Source, cases_of_type
from kerasdet.evaluation.metrics import CocoMetrics

IOU = 0.5


def evaluate_voc(ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None) -> CocoMetrics:
    """Scores boxes by the rules of Pascal VOC 2007 and 2012.

    A detection is compared with the object of its class that it overlaps most. It is correct if their IoU is 0.5 or
    more, as in VOC's devkit, and no detection with a higher score has found this object. Difficult objects and crowds
    count neither as found nor as missed. The devkit adds one pixel to the height and width of boxes; this function does
    not, so IoUs differ slightly.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict. ``"difficult": true`` marks difficult
            objects.
        results: Path of a COCO results file, or its contents as a list of detections.
        image_ids: Ids of the images to score. None: all images of the ground truth.

    Returns:
        The metrics `AP07`, the mean precision at eleven recalls, and `AP12`, the area under the precision-recall curve,
        both averaged over the classes with objects that are neither difficult nor crowds. The metric of each class is
        its `AP12`.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    cases, _ = cases_of_type(ground_truth, results, "bbox", image_ids)
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in cases.annotations:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    scored = set(cases.image_ids)
    for detection in cases.detections:
        if detection["image_id"] in scored:
            found[detection["category_id"]].append(detection)
    per_class = {}
    for category_id, name in cases.names.items():
        mine = {image_id: objects[category_id, image_id] for image_id in cases.image_ids}
        per_class[name] = _class_ap(found[category_id], mine)
    averages = np.array([values for values in per_class.values() if not np.isnan(values[0])]).reshape(-1, 2)
    summary = dict(zip(("AP07", "AP12"), averages.mean(0).tolist() if len(averages) else (np.nan,) * 2, strict=True))
    return CocoMetrics("bbox", summary, {name: float(values[1]) for name, values in per_class.items()})


def _class_ap(found, objects):
    """Returns the APs of one class by VOC2007 and VOC2012; NaN without objects."""
    positives = sum(not _ignored(each) for there in objects.values() for each in there)
    if not positives:
        return np.nan, np.nan
    taken, right = set(), []
    for detection in sorted(found, key=lambda entry: -entry["score"]):
        there = objects[detection["image_id"]]
        overlaps = mask_utils.iou([detection["bbox"]], [each["bbox"] for each in there], [0] * len(there))
        best = int(np.argmax(overlaps)) if there else -1
        if best < 0 or overlaps[0, best] < IOU:
            right.append(False)
        elif not _ignored(there[best]):
            right.append(there[best]["id"] not in taken)
            taken.add(there[best]["id"])
    hits = np.cumsum(right)
    recall, precision = hits / positives, hits / np.arange(1, len(hits) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    eleven = envelope[np.searchsorted(recall, np.arange(11) / 10 - 1e-12)].mean()
    return eleven, np.sum(np.diff(recall, prepend=0.0) * envelope[:-1])


def _ignored(annotation):
    return annotation["ignored"] or annotation["iscrowd"]
