"""Analyses why a detector's AP is low: thresholds, confused classes, kinds of errors, calibration, intervals.

The functions need NumPy and pycocotools, but no TensorFlow. Their input is an `Instances` object, which `collect` makes
from ground truth and detections.
"""

from kerasdet.analysis.analyze import Analysis, Comparison, analyze_cases, compare
from kerasdet.analysis.bootstrap import Interval, coco_matches, images_with_objects, interval, resampled, weights
from kerasdet.analysis.calibration import Calibration, calibration
from kerasdet.analysis.confusion import confusion
from kerasdet.analysis.instances import Instances, collect
from kerasdet.analysis.matching import Matches, match
from kerasdet.analysis.precision import Curve, Threshold, best_threshold, class_ap, class_curves, overall_curve
from kerasdet.analysis.tide import Errors, tide

__all__ = [
    "Analysis",
    "Calibration",
    "Comparison",
    "Curve",
    "Errors",
    "Instances",
    "Interval",
    "Matches",
    "Threshold",
    "analyze_cases",
    "best_threshold",
    "calibration",
    "class_ap",
    "class_curves",
    "coco_matches",
    "collect",
    "compare",
    "confusion",
    "images_with_objects",
    "interval",
    "match",
    "overall_curve",
    "resampled",
    "tide",
    "weights",
]
