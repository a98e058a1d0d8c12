"""Compares scores with the share of detections that are right."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Holds a reliability diagram.

    Args:
        edges: (N + 1,) float64, limits of the bins of scores.
        counts: (N,) int64, detections of each bin.
        confidence: (N,) float64, their mean score; NaN for an empty bin.
        accuracy: (N,) float64, the share of them that is right; NaN for an empty bin.
        error: Expected calibration error: the mean of |accuracy - confidence| over the detections. NaN without any.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(scores: np.ndarray, correct: np.ndarray, bins: int = 10) -> Calibration:
    """Computes the reliability diagram of detections and its expected calibration error.

    Args:
        scores: (N,) scores. Those outside [0, 1] count in the first or last bin.
        correct: (N,) bool.
        bins: Number of bins of equal width in [0, 1]; a bin holds its lower limit.
    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, scores, minlength=bins) / counts
        accuracy = np.bincount(index, correct, minlength=bins) / counts
    error = np.nansum(counts * np.abs(accuracy - confidence)) / len(scores) if len(scores) else np.nan
    return Calibration(edges, counts, confidence, accuracy, float(error))
