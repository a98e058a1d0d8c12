"""Measures detectors by the rules of COCO and other benchmarks: a predictor on a dataset, or a file of detections."""

from kerasdet.evaluation.boundary import evaluate_boundary
from kerasdet.evaluation.coco import evaluate_all, evaluate_coco, evaluate_proposals
from kerasdet.evaluation.evaluate import evaluate, evaluate_with_results, match_dataset, validation_losses
from kerasdet.evaluation.ground_truth import check_ground_truth, read_ground_truth
from kerasdet.evaluation.lvis import evaluate_lvis
from kerasdet.evaluation.metrics import CocoMetrics, DetectorMetrics
from kerasdet.evaluation.open_images import evaluate_open_images
from kerasdet.evaluation.rules import evaluate_rules
from kerasdet.evaluation.voc import evaluate_voc

__all__ = [
    "CocoMetrics",
    "DetectorMetrics",
    "check_ground_truth",
    "evaluate",
    "evaluate_all",
    "evaluate_boundary",
    "evaluate_coco",
    "evaluate_lvis",
    "evaluate_open_images",
    "evaluate_proposals",
    "evaluate_rules",
    "evaluate_voc",
    "evaluate_with_results",
    "match_dataset",
    "read_ground_truth",
    "validation_losses",
]
