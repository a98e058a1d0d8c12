"""Compares the scores of detections with the fraction of detections that are correct."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Holds a reliability diagram.

    Args:
        edges: (N + 1,) float64, edges of the N bins of scores.
        counts: (N,) int64, number of detections in each bin.
        confidence: (N,) float64, mean score of the detections in each bin; NaN for an empty bin.
        accuracy: (N,) float64, fraction of correct detections in each bin; NaN for an empty bin.
        error: Expected calibration error: the mean of |accuracy - confidence| over all detections. NaN without
            detections.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration(scores: np.ndarray, correct: np.ndarray, bins: int = 10) -> Calibration:
    """Computes the reliability diagram of detections and its expected calibration error.

    Args:
        scores: (D,) scores. Scores outside [0, 1] count in the first or last bin.
        correct: (D,) bool, whether each detection is correct.
        bins: Number N of bins of equal width in [0, 1]. A bin includes its lower edge.

    Returns:
        The reliability diagram with the calibration error.
    """
    edges = np.arange(bins + 1) / bins  # linspace gives 0.30000000000000004, above a score of 0.3
    index = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, scores, minlength=bins) / counts
        accuracy = np.bincount(index, correct, minlength=bins) / counts
    error = np.nansum(counts * np.abs(accuracy - confidence)) / len(scores) if len(scores) else np.nan
    return Calibration(edges, counts, confidence, accuracy, float(error))
