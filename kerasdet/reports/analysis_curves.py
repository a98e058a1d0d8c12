"""Builds the sections of the page about scores: precision and recall, thresholds, calibration."""

import json

import numpy as np

from kerasdet.analysis import Analysis, Curve
from kerasdet.reports import charts, page
from kerasdet.reports.analysis_numbers import value
from kerasdet.reports.page import Column, Section, number

_MOST_CURVES = 20
_POINTS = 60


def scores(analysis: Analysis, model: str) -> Section:
    """Shows precision and recall, and the thresholds with the best F1.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.
        model: Path of the model, for the command in the section; "MODEL" if it is unknown.

    Returns:
        The section of the page.
    """
    parts = [_curves(analysis)]
    best = analysis.threshold
    if best is not None:
        score = page.decimal(best.score)
        parts += [
            page.paragraph(
                f"Above the score `{score}`, {best.precision:.0%} of the detections are right and "
                f"{best.recall:.0%} of the objects are found. F1 is {best.f1:.3f}, the best of all thresholds."
            ),
            page.code(f"kerasdet predict {model} IMAGES --score-threshold {score}", "Command with the threshold"),
        ]
    known = {name: each.score for name, each in zip(analysis.class_names, analysis.thresholds, strict=True) if each}
    if len(known) > 1:
        lines = (
            f"thresholds = {json.dumps(known, ensure_ascii=False)}\n"
            "found = model.detect(image)\n"
            "pairs = zip(found.labels, found.scores)\n"
            "found = found[[score > thresholds.get(label, 1.0) for label, score in pairs]]"
        )
        parts += [page.heading("A threshold for each class"), page.code(lines, "Code with a threshold for each class")]
    rows = [
        (name, *(("-",) * 4 if each is None else (page.decimal(each.score), *_rates(each))))
        for name, each in zip(analysis.class_names, analysis.thresholds, strict=True)
    ]
    titles = ("Threshold", "Precision", "Recall", "F1")
    columns = [Column("Class"), *(Column(title, "number") for title in titles)]
    parts.append(page.table(columns, rows, "Best threshold of each class"))
    return Section("scores", "Precision, recall and thresholds", parts, "At an IoU of 0.5.")


def _rates(best):
    return tuple(f"{rate:.3f}" for rate in (best.precision, best.recall, best.f1))


def _curves(analysis):
    chosen = [k for k, each in enumerate(analysis.curves) if each.positives and len(each.scores)]
    chosen = sorted(chosen, key=lambda k: analysis.ap[0, 0, k])[:_MOST_CURVES]
    drawn = [(analysis.class_names[k], "var(--axis)", 1.5, _points(analysis.curves[k])) for k in chosen]
    overall = analysis.overall
    if not overall.positives or not len(overall.scores):
        return page.paragraph("There are no objects or no detections, and so no curve.")
    if len(chosen) < 2:
        drawn = []
    drawn.append(("all classes together", charts.SERIES[0], 3, _points(overall)))
    keys = [(charts.SERIES[0], "all classes together")]
    if len(chosen) > 1:
        many = f"the {len(chosen)} worst classes" if len(chosen) == _MOST_CURVES else "each class"
        keys.append(("var(--axis)", many))
    words = "Each point is a threshold; the upper right corner is perfect."
    rows = [(f"{r:.2f}", value(p)) for r, p in _points(overall)]
    columns = [Column("Recall", "number"), Column("Precision", "number")]
    table = page.table(columns, rows, "Precision and recall of all classes together", sortable=False)
    chart = charts.lines(drawn, ("recall", "precision"), words)
    return page.figure(chart, "Precision and recall", words, table, keys)


def _points(points: Curve):
    """Returns (recall, precision) at up to a few dozen places along a curve."""
    places = np.unique(np.linspace(0, len(points.scores) - 1, _POINTS).round().astype(int))
    return [(round(float(points.recall[i]), 4), round(float(points.precision[i]), 4)) for i in places]


def reliability(analysis: Analysis) -> Section | None:
    """Shows how well scores agree with the fraction of correct detections.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.

    Returns:
        The section of the page; None without detections.
    """
    result = analysis.reliability
    if not result.counts.sum():
        return None
    filled = np.flatnonzero(result.counts)
    points = [(round(float(result.confidence[i]), 4), round(float(result.accuracy[i]), 4)) for i in filled]
    words = (
        "Below the dashed line, scores are higher than the share of right detections; above it, lower. The expected "
        f"calibration error is {result.error:.3f}."
    )
    rows = [
        (
            f"{result.edges[i]:.1f} to {result.edges[i + 1]:.1f}",
            number(int(result.counts[i])),
            value(float(result.confidence[i])),
            value(float(result.accuracy[i])),
        )
        for i in range(len(result.counts))
    ]
    columns = [Column("Scores"), *(Column(t, "number") for t in ("Detections", "Mean score", "Share right"))]
    table = page.table(columns, rows, "Scores and right detections", sortable=False)
    curve = [("mean score and share of right detections", charts.SERIES[0], 3, points)]
    chart = charts.lines(curve, ("mean score", "share of right detections"), words, diagonal=True)
    figure = page.figure(chart, "Scores and right detections", words, table)
    return Section("calibration", "Calibration", [figure], "All detections, at an IoU of 0.5.")
