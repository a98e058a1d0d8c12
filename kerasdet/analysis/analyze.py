"""Runs every analysis on one file of detections, and compares two files on the same images."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdet.analysis.bootstrap import (
    SAMPLES,
    Interval,
    coco_matches,
    images_with_objects,
    interval,
    resampled,
    weights,
)
from kerasdet.analysis.calibration import Calibration, calibration
from kerasdet.analysis.confusion import confusion
from kerasdet.analysis.instances import Instances, collect
from kerasdet.analysis.matching import Matches, match
from kerasdet.analysis.precision import Curve, Threshold, best_threshold, class_ap, class_curves, overall_curve
from kerasdet.analysis.tide import Errors, tide

if TYPE_CHECKING:
    from kerasdet.evaluation.cases import Cases

DEFAULT_SCORE = 0.3  # default of `kerasdet predict`; used if no detection is correct


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """Holds the results of all analyses of the detected boxes or masks of a dataset.

    Args:
        iou_type: "bbox" or "segm".
        class_names: Names of the K classes, in the order of the class ids.
        image_ids: Ids of the I images.
        instances: Objects and detections.
        samples: Maps metric names to (1 + S,) values: the value for all images, then the values for S resampled sets of
            images. The key "class" holds the AP of each class, (1 + S, K). See `kerasdet.analysis.bootstrap.resampled`.
        images_of: Maps the keys of `samples` to the numbers of images with objects, see
            `kerasdet.analysis.bootstrap.images_with_objects`.
        ap: AP for each area range (all, small, medium, large), IoU threshold and class, (4, 10, K); NaN without
            objects.
        positives: Number of objects for each area range and class, (4, K).
        curves: Precision-recall curve of each class at an IoU of 0.5.
        overall: Precision-recall curve of all detections together.
        thresholds: Score threshold with the best F1 for each class; None for a class without correct detections.
        threshold: Score threshold with the best F1 for all detections together; None without correct detections.
        errors: Kinds of errors of all detections, and the AP that each kind costs.
        shown: All objects, but only the detections above `score`.
        shown_errors: Kinds of errors of the detections above `score`.
        table: Confusion matrix of the detections above `score`, see `kerasdet.analysis.confusion.confusion`.
        reliability: Calibration of all detections at an IoU of 0.5.
        num_repeats: Number of detections that equal an earlier one in image, class, score and geometry.
    """

    iou_type: str
    class_names: tuple[str, ...]
    image_ids: tuple[int, ...]
    instances: Instances
    samples: dict[str, np.ndarray]
    images_of: dict[str, np.ndarray]
    ap: np.ndarray
    positives: np.ndarray
    curves: Sequence[Curve]
    overall: Curve
    thresholds: Sequence[Threshold | None]
    threshold: Threshold | None
    errors: Errors
    shown: Instances
    shown_errors: Errors
    table: np.ndarray
    reliability: Calibration
    num_repeats: int

    @property
    def numbers(self) -> dict[str, Interval]:
        """COCO's twelve metrics by name, with their 95 % confidence intervals."""
        names = [name for name in self.samples if name != "class"]
        return {name: interval(self.samples[name], self.images_of[name]) for name in names}

    @property
    def class_numbers(self) -> list[Interval]:
        """AP of each of the K classes, with its 95 % confidence interval."""
        return [interval(*pair) for pair in zip(self.samples["class"].T, self.images_of["class"], strict=True)]

    @property
    def score(self) -> float:
        """Score above which detections are shown: `threshold.score`, or 0.3 if `threshold` is None."""
        return DEFAULT_SCORE if self.threshold is None else self.threshold.score

    def content(self) -> dict:
        """Converts the analysis to JSON values, with None for NaN.

        Returns:
            Dict of `iou_type`; the numbers of `images`, `objects` and `detections`; `numbers`, the metrics with their
            intervals; `classes`, AP and threshold by class name; `threshold`; `confusion`, the cells of the confusion
            matrix that are not 0; `errors`, number and cost of each kind; `false_positives_ap_cost`;
            `false_negatives_ap_cost`; and `calibration`.
        """
        by_area = self.ap.mean(1).T.tolist()  # AP of each class (K, 4)
        background = "background"
        rows = [*self.class_names, background]
        pairs = zip(*np.nonzero(self.table), strict=True)
        classes = {}
        for k, (name, number) in enumerate(zip(self.class_names, self.class_numbers, strict=True)):
            classes[name] = {
                "objects": int(self.positives[0, k]),
                **dict(zip(("AP", "APs", "APm", "APl"), by_area[k], strict=True)),
                "interval": [number.low, number.high],
                "threshold": _fields(self.thresholds[k]),
            }
        return plain(
            {
                "iou_type": self.iou_type,
                "images": len(self.image_ids),
                "objects": int(self.positives[0].sum()),
                "detections": len(self.instances.scores),
                "numbers": {name: dataclasses.asdict(value) for name, value in self.numbers.items()},
                "classes": classes,
                "threshold": _fields(self.threshold),
                "confusion": [
                    {"object": rows[i], "detection": rows[j], "count": int(self.table[i, j])} for i, j in pairs
                ],
                "errors": {
                    name: {"count": self.errors.counts[name], "ap_cost": cost}
                    for name, cost in self.errors.cost.items()
                },
                "false_positives_ap_cost": self.errors.false_positives,
                "false_negatives_ap_cost": self.errors.false_negatives,
                "calibration": {
                    "error": self.reliability.error,
                    "counts": self.reliability.counts.tolist(),
                    "confidence": self.reliability.confidence.tolist(),
                    "accuracy": self.reliability.accuracy.tolist(),
                },
            }
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Holds the differences between the detections of two runs on the same images.

    Args:
        differences: Maps the names of COCO's metrics to their differences, this run minus the other run, with 95 %
            confidence intervals. Both runs are resampled with the same images.
        class_differences: Differences of the AP of each of the K classes, with 95 % confidence intervals.
        fixed: (G,) bool for the G objects, true for those that only this run finds. Each run finds objects by its
            detections above its own `Analysis.score`.
        broken: (G,) bool, true for objects that only the other run finds.
    """

    differences: dict[str, Interval]
    class_differences: list[Interval]
    fixed: np.ndarray
    broken: np.ndarray

    def content(self) -> dict:
        """Returns the differences between the runs as a dict of JSON values, with None for NaN."""
        return plain(
            {
                "differences": {name: dataclasses.asdict(value) for name, value in self.differences.items()},
                "class_differences": [dataclasses.asdict(value) for value in self.class_differences],
                "fixed_objects": int(self.fixed.sum()),
                "broken_objects": int(self.broken.sum()),
            }
        )


def analyze_cases(cases: "Cases", *, samples: int = SAMPLES, seed: int = 0) -> Analysis:
    """Runs every analysis on the detections of one type, boxes or masks.

    Args:
        cases: Ground truth and detections, from `kerasdet.evaluation.cases.read_cases`.
        samples: Number of resampled sets of images for the confidence intervals.
        seed: Seed of the resampling.

    Returns:
        The results of all analyses.
    """
    instances = collect(
        cases.annotations, cases.detections, cases.image_ids, list(cases.names), masks=cases.iou_type == "segm"
    )
    matches = coco_matches(instances)
    at_half = Matches(
        matches.correct[:1, :1], matches.counted[:1, :1], matches.ranks, matches.matched[:1, :1], matches.objects[:1]
    )
    overall = overall_curve(instances, at_half)
    threshold = best_threshold(overall)
    curves = class_curves(instances, at_half)
    shown = instances.keep(instances.scores > (DEFAULT_SCORE if threshold is None else threshold.score))
    counted = at_half.counted[0, 0]
    return Analysis(
        iou_type=cases.iou_type,
        class_names=tuple(cases.names.values()),
        image_ids=tuple(cases.image_ids),
        instances=instances,
        samples=resampled(instances, matches, weights(instances.num_images, samples, seed)),
        images_of=images_with_objects(instances, matches),
        ap=class_ap(instances, matches),
        positives=matches.positives(instances),
        curves=curves,
        overall=overall,
        thresholds=[best_threshold(each) for each in curves],
        threshold=threshold,
        errors=tide(instances),
        shown=shown,
        shown_errors=tide(shown),
        table=confusion(shown),
        reliability=calibration(instances.scores[counted], at_half.correct[0, 0][counted]),
        num_repeats=int(cases.repeats.sum()),
    )


def compare(analysis: Analysis, other: Analysis) -> Comparison:
    """Compares two runs on the same images.

    Both analyses must have the same ground truth, seed and number of samples, so that they resample the same images.

    Args:
        analysis: Analysis of the run.
        other: Analysis of the run to compare with.

    Returns:
        The differences, `analysis` minus `other`, and the objects that only one of the runs finds.
    """
    found, was_found = (_found(each.shown) for each in (analysis, other))
    changes = {name: values - other.samples[name] for name, values in analysis.samples.items()}
    images, limits = analysis.images_of, (-1.0, 1.0)
    per_class = zip(changes.pop("class").T, images["class"], strict=True)
    return Comparison(
        {name: interval(values, images[name], limits) for name, values in changes.items()},
        [interval(values, number, limits) for values, number in per_class],
        found & ~was_found,
        was_found & ~found,
    )


def _found(instances):
    """Returns which objects are matched by a detection at an IoU of 0.5, (G,) bool."""
    matches = match(instances, [0.5])
    found = np.zeros(len(instances.ignored), bool)
    matched = matches.matched[0, 0]
    found[matched[matched >= 0]] = True
    return found & ~instances.ignored


def _fields(threshold):
    return None if threshold is None else dataclasses.asdict(threshold)


def plain(value: Any) -> Any:
    """Replaces NaN with None, also inside dicts and lists, for JSON.

    Args:
        value: A number, dict, list or other JSON value.

    Returns:
        The value, with None in place of NaN and lists in place of tuples.
    """
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
