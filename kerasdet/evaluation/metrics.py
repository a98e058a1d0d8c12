"""Holds the results of an evaluation and formats them as tables and JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_SUMMARY = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
PROPOSAL_SUMMARY = ("AR100", "AR300", "AR1000", "ARs", "ARm", "ARl")
SUMMARIES = {"bbox": SUMMARY, "segm": SUMMARY, "keypoints": KEYPOINT_SUMMARY}  # COCO's IoU type -> names
CLASS_COLUMNS = 3


@dataclass(frozen=True)
class CocoMetrics:
    """Holds metrics of boxes, masks or keypoints in [0, 1]; a metric without ground truth is NaN.

    Attributes:
        iou_type: "bbox", "segm", "keypoints" or, for Boundary AP, "boundary".
        summary: Metrics by name. COCO's names are in `SUMMARY` for boxes and masks, in `KEYPOINT_SUMMARY` for
            keypoints, and in `PROPOSAL_SUMMARY` for boxes without classes. Other rules have their own metrics, see
            `evaluate_rules`.
        per_class: AP by class name, by COCO's rules the mean over IoU 0.50 to 0.95; empty for boxes without classes and
            for LVIS.
    """

    iou_type: str
    summary: dict[str, float]
    per_class: dict[str, float]

    def __getitem__(self, name: str) -> float:
        """Returns a metric of the summary by its name, such as `metrics["AP50"]`."""
        return self.summary[name]

    def content(self) -> dict:
        """Returns the metrics as a dict of JSON values, with None for NaN."""
        return {
            "iou_type": self.iou_type,
            "summary": {name: _none_if_nan(value) for name, value in self.summary.items()},
            "per_class": {name: _none_if_nan(value) for name, value in self.per_class.items()},
        }

    def to_json(self) -> str:
        """Returns the metrics as a JSON object, with null for NaN."""
        return json.dumps(self.content(), indent=2)

    def table(self) -> str:
        """Formats the summary, then the AP of every class in columns, with "-" for NaN."""
        margin = max(6, len(self.iou_type))
        lines = [
            f"{self.iou_type:<{margin}}" + "".join(f"{name:>7}" for name in self.summary),
            " " * margin + "".join(f"{_text(value):>7}" for value in self.summary.values()),
        ]
        if not self.per_class:
            return "\n".join(lines)
        width = max(map(len, self.per_class))
        cells = [f"{name:<{width}}{_text(value):>7}" for name, value in self.per_class.items()]
        columns = min(CLASS_COLUMNS, len(cells))
        lines += ["", "   ".join([f"{'class':<{width}}{'AP':>7}"] * columns)]
        lines += ["   ".join(cells[i : i + columns]) for i in range(0, len(cells), columns)]
        return "\n".join(lines)


def _none_if_nan(value):
    return None if math.isnan(value) else value


def _text(value):
    return "-" if math.isnan(value) else f"{value:.3f}"


@dataclass(frozen=True)
class DetectorMetrics:
    """Holds the metrics of everything that a detector predicts: boxes, masks and keypoints.

    Attributes:
        by_type: Metrics by type: "bbox", "segm", "keypoints" or "boundary". Types that were not evaluated are absent.
    """

    by_type: Mapping[str, CocoMetrics]

    @property
    def summary(self) -> dict[str, float]:
        """Returns all metrics by name: "AP" for boxes, "segm/AP" for masks, "keypoints/AP" for keypoints."""
        return {
            name if iou_type == "bbox" else f"{iou_type}/{name}": value
            for iou_type, metrics in self.by_type.items()
            for name, value in metrics.summary.items()
        }

    def __getitem__(self, name: str) -> float:
        """Returns a metric of the summary by its name, such as `metrics["segm/AP50"]`."""
        return self.summary[name]

    def to_json(self) -> str:
        """Returns a JSON object with the metrics of boxes, and a nested object for each other type, such as "segm"."""
        content = {iou_type: metrics.content() for iou_type, metrics in self.by_type.items()}
        return json.dumps({**content.pop("bbox", {}), **content}, indent=2)

    def table(self) -> str:
        """Formats one table per type ("bbox", "segm", "keypoints" or "boundary"), separated by blank lines."""
        return "\n\n".join(metrics.table() for metrics in self.by_type.values())
