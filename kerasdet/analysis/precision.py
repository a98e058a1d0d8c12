"""Computes precision and recall curves, AP, and the score thresholds that give the best F1."""

import dataclasses

import numpy as np

from kerasdet.analysis.instances import Instances
from kerasdet.analysis.matching import Matches

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Holds precision and recall of a class, or of all classes together, at each distinct score.

    Args:
        scores: (N,) float64, descending. Entry i of `precision` and `recall` is for all detections with at least this
            score.
        precision: (N,) float64, precision at each score.
        recall: (N,) float64, recall at each score; NaN without objects.
        positives: Number of objects.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    positives: int

    @property
    def f1(self) -> np.ndarray:
        """F1 at each score, the harmonic mean of precision and recall, (N,)."""
        total = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, total, out=np.zeros_like(total), where=total > 0)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Holds the score threshold with the best F1.

    Args:
        score: The threshold, rounded to few digits. Detections with a higher score are kept.
        precision: Precision of the kept detections.
        recall: Recall of the kept detections.
        f1: F1, the harmonic mean of precision and recall.
    """

    score: float
    precision: float
    recall: float
    f1: float


def curve(scores: np.ndarray, correct: np.ndarray, positives: int) -> Curve:
    """Computes the precision-recall curve of detections.

    Args:
        scores: (D,) scores, in any order.
        correct: (D,) bool, whether each detection is correct.
        positives: Number of objects.

    Returns:
        The precision-recall curve.
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last of each group of equal scores
    found, number = found[last], last + 1
    recall = found / positives if positives else np.full(len(last), np.nan)
    return Curve(scores[last], found / number, recall, positives)


def class_curves(instances: Instances, matches: Matches, threshold: int = 0) -> list[Curve]:
    """Computes the precision-recall curve of each class, for the first area range in `matches`.

    Args:
        instances: Objects and detections.
        matches: Result of `kerasdet.analysis.matching.match` for the instances.
        threshold: Index of the IoU threshold in `matches`.

    Returns:
        One curve per class.
    """
    positives = matches.positives(instances)[0]
    counted, correct = matches.counted[0, threshold], matches.correct[0, threshold]
    chosen = [np.flatnonzero(counted & (instances.classes == k)) for k in range(instances.num_classes)]
    return [curve(instances.scores[i], correct[i], int(n)) for i, n in zip(chosen, positives, strict=True)]


def overall_curve(instances: Instances, matches: Matches, threshold: int = 0) -> Curve:
    """Computes the class-agnostic precision-recall curve of all detections together.

    Args:
        instances: Objects and detections.
        matches: Result of `kerasdet.analysis.matching.match` for the instances; the first area range is used.
        threshold: Index of the IoU threshold in `matches`.

    Returns:
        The precision-recall curve.
    """
    counted, correct = matches.counted[0, threshold], matches.correct[0, threshold]
    return curve(instances.scores[counted], correct[counted], int(matches.objects[0].sum()))


def best_threshold(points: Curve) -> Threshold | None:
    """Finds the score threshold with the best F1.

    If no score is negative, the threshold is at least 0, as `kerasdet predict` requires; a detection with a score of 0
    is then never shown.

    Args:
        points: A precision-recall curve.

    Returns:
        The threshold; if several have the same F1, the highest one. None if no detection is correct.
    """
    if not len(points.scores) or not points.positives:
        return None
    f1 = np.where((points.scores == 0) & (points.scores.min() == 0), 0.0, points.f1)
    if not f1.max() > 0:
        return None
    best = int(f1.argmax())
    score = float(points.scores[best])
    lowest = 0.0 if score > 0 else score - 1
    below = float(points.scores[best + 1]) if best + 1 < len(points.scores) else lowest
    score = shortest_between(below, score)
    return Threshold(score, float(points.precision[best]), float(points.recall[best]), float(points.f1[best]))


def shortest_between(low: float, high: float) -> float:
    """Finds the number with the fewest decimals in [low, high); of several, the one nearest to the middle.

    Args:
        low: Lower limit, inclusive.
        high: Upper limit, exclusive.

    Returns:
        The number in [low, high) with the fewest decimals.

    Example:
        >>> shortest_between(0.4213, 0.4391)
        0.43
    """
    middle = (low + high) / 2
    for digits in range(1, 17):
        value = round(middle, digits)
        if low <= value < high:
            return value
    return low


def interpolated(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Interpolates the precision at COCO's 101 recalls, like pycocotools' COCOeval.

    Args:
        precision: (D,) precision after each detection, in order of descending score.
        recall: (D,) recall after each detection, in the same order.

    Returns:
        The precision at the recalls 0, 0.01, ... 1, (101,).
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, RECALLS, side="left")]


def class_ap(instances: Instances, matches: Matches) -> np.ndarray:
    """Computes the AP of each class, for each area range and IoU threshold.

    Args:
        instances: Objects and detections.
        matches: Result of `kerasdet.analysis.matching.match` for the instances.

    Returns:
        The AP, (A, T, K); NaN for classes without objects.
    """
    positives = matches.positives(instances)
    ap = np.full((*matches.correct.shape[:2], instances.num_classes), np.nan)
    for k in range(instances.num_classes):
        mine = np.flatnonzero(instances.classes == k)
        mine = mine[np.argsort(-instances.scores[mine], kind="stable")]
        for area in np.flatnonzero(positives[:, k]):
            for t in range(ap.shape[1]):
                kept = mine[matches.counted[area, t, mine]]
                found = np.cumsum(matches.correct[area, t, kept])
                precision = found / (np.arange(len(kept)) + 1 + np.spacing(1))
                ap[area, t, k] = interpolated(precision, found / positives[area, k]).mean()
    return ap
