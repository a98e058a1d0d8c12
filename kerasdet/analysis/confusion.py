"""Counts how often objects of a class are detected as another class (confusion matrix with background)."""

import numpy as np

from kerasdet.analysis.instances import Instances
from kerasdet.analysis.matching import match


def confusion(instances: Instances, iou: float = 0.5) -> np.ndarray:
    """Computes the confusion matrix of detections.

    Detections first match objects of their own class by COCO's rules. Each remaining detection, in descending order of
    score, then matches the unmatched object of another class with the highest IoU. Detections that match an ignored
    object, and detections beyond the 100 best of a class and image, are not counted.

    Args:
        instances: Objects, and the detections above a score threshold.
        iou: A detection matches an object if their IoU is at least this.

    Returns:
        The matrix, (K + 1, K + 1) int64, with a row for each class of objects and a column for each class of
        detections. The last row counts detections without an object, the last column objects without a detection.
    """
    matches = match(instances, [iou])
    matched, counted = matches.matched[0, 0].copy(), matches.counted[0, 0]
    free = ~instances.ignored
    free[matched[matched >= 0]] = False
    starts, firsts = instances.starts, instances.object_starts
    for d in np.flatnonzero(counted & (matched < 0)):
        image = instances.images[d]
        overlaps = instances.overlaps[image][d - starts[image]]
        possible = np.where(free[firsts[image] : firsts[image + 1]], overlaps, -1.0)
        if len(possible) and possible.max() >= iou:
            matched[d] = firsts[image] + possible.argmax()
            free[matched[d]] = False
    background = instances.num_classes
    table = np.zeros((background + 1, background + 1), np.int64)
    real = (
        np.where(matched >= 0, instances.object_classes[matched], background) if len(free) else matched * 0 + background
    )
    np.add.at(table, (real[counted], instances.classes[counted]), 1)
    np.add.at(table, (instances.object_classes[free], background), 1)
    return table
