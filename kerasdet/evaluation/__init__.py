"""Measuring detectors: COCO AP of a model over a data set, or of a detections file."""

from kerasdet.evaluation.coco import coco_results, evaluate_all, evaluate_coco, evaluate_proposals, read_ground_truth
from kerasdet.evaluation.evaluate import evaluate, evaluate_with_results, validation_losses
from kerasdet.evaluation.metrics import CocoMetrics, DetectorMetrics

__all__ = [
    "CocoMetrics",
    "DetectorMetrics",
    "coco_results",
    "evaluate",
    "evaluate_all",
    "evaluate_coco",
    "evaluate_proposals",
    "evaluate_with_results",
    "read_ground_truth",
    "validation_losses",
]
