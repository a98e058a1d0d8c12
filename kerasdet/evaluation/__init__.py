"""Measuring detectors: COCO AP of a model over a data set, or of a detections file."""

from kerasdet.evaluation.coco import CocoMetrics, coco_results, evaluate_coco, read_ground_truth
from kerasdet.evaluation.evaluate import evaluate, evaluate_with_results

__all__ = ["CocoMetrics", "coco_results", "evaluate", "evaluate_coco", "evaluate_with_results", "read_ground_truth"]
