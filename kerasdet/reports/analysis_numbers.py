"""Builds the sections of the page with COCO's metrics: totals with intervals, classes and sizes, comparison of runs."""

import math
from collections.abc import Sequence

import numpy as np

from kerasdet.analysis import Analysis, Comparison, Interval
from kerasdet.reports import charts, page
from kerasdet.reports.page import Column, Section, number

MOST_CLASSES = 30  # maximum number of classes in a chart
_MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "objects below 32 x 32 px",
    "APm": "objects from 32 x 32 to 96 x 96 px",
    "APl": "objects above 96 x 96 px",
    "AR1": "recall with 1 detection for each image and class",
    "AR10": "recall with 10 detections",
    "AR100": "recall with 100 detections",
    "ARs": "recall of objects below 32 x 32 px",
    "ARm": "recall of objects from 32 x 32 to 96 x 96 px",
    "ARl": "recall of objects above 96 x 96 px",
}


def value(numeral: float, digits: int = 3) -> str:
    """Formats a number.

    Args:
        numeral: Number to format.
        digits: Number of decimals.

    Returns:
        The formatted string; "-" for NaN.
    """
    return "-" if math.isnan(numeral) else number(numeral, digits)


def between(span: Interval, signed: bool = False) -> str:
    """Formats the lower and upper limit of a confidence interval.

    Args:
        span: Interval to format.
        signed: Whether to write the sign of positive limits.

    Returns:
        The formatted string; "-" for NaN.
    """
    if math.isnan(span.low):
        return "-"
    return f"{span.low:+.3f} to {span.high:+.3f}" if signed else f"{span.low:.3f} to {span.high:.3f}"


def numbers(analysis: Analysis, words: str) -> Section:
    """Lists COCO's twelve metrics with their 95 % confidence intervals.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.
        words: Name of the type of detections that was analysed, such as "boxes".

    Returns:
        The section of the page.
    """
    rows = [(name, _MEANINGS[name], value(each.value), between(each)) for name, each in analysis.numbers.items()]
    columns = [Column("Number"), Column("Meaning"), Column("Value", "number"), Column("95 % interval", "number")]
    table = page.table(columns, rows, f"COCO's numbers for {words}", sortable=False)
    intro = (
        "The interval shows how much a number depends on the choice of images. It comes from evaluating resampled "
        "images (drawn with replacement)."
    )
    return Section("numbers", "COCO's numbers", [table], intro)


def classes(analysis: Analysis) -> Section:
    """Shows for each class its AP, also by object size, and recall and precision at the threshold with the best F1.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.

    Returns:
        The section of the page.
    """
    ap = analysis.ap.mean(1)  # (4, K)
    spans = analysis.class_numbers
    order = sorted(range(len(spans)), key=lambda k: (math.isnan(spans[k].value), spans[k].value))
    rows = []
    for k in order:
        best = analysis.thresholds[k]
        rows.append(
            (
                analysis.class_names[k],
                number(int(analysis.positives[0, k])),
                value(spans[k].value),
                between(spans[k]),
                *(value(ap[area, k]) for area in (1, 2, 3)),
                value(float(analysis.ap[0, 0, k])),
                "-" if best is None else f"{best.recall:.2f}",
                "-" if best is None else f"{best.precision:.2f}",
            )
        )
    titles = ("Objects", "AP", "95 % interval", "Small", "Medium", "Large", "AP50", "Recall", "Precision")
    columns = [Column("Class"), *(Column(title, "number") for title in titles)]
    table = page.table(columns, rows, "AP of each class", titled=False)
    parts = []
    if shown := [k for k in order if not math.isnan(spans[k].value)][:MOST_CLASSES]:
        bars = [
            (
                analysis.class_names[k],
                spans[k].value,
                *((spans[k].low, spans[k].high) if not math.isnan(spans[k].low) else (spans[k].value,) * 2),
                f"{analysis.class_names[k]}: AP {spans[k].value:.3f}, {between(spans[k])}",
            )
            for k in shown
        ]
        words = f"The worst class is {analysis.class_names[shown[0]]}." if len(shown) > 1 else ""
        parts.append(page.figure(charts.intervals(bars, "AP", words), "AP of each class with its interval", words))
    intro = "Recall and precision belong to the threshold with the best F1 of the class. Sizes are COCO's."
    return Section("classes", "Classes and sizes", [*parts, table], intro)


def comparison(
    result: Comparison, analysis: Analysis, other: Analysis, name: str, changed: Sequence[tuple[str, str, str]] = ()
) -> Section:
    """Shows the differences between two runs: COCO's metrics and the AP of each class.

    Args:
        result: Differences between `analysis` and `other`.
        analysis: The run that the page is about.
        other: The earlier run.
        name: Name of the earlier run on the page.
        changed: Training settings that differ, as (name, before, now).

    Returns:
        The section of the page.
    """
    rows = [
        (key, value(other.numbers[key].value), value(analysis.numbers[key].value), _signed(span), between(span, True))
        for key, span in result.differences.items()
    ]
    titles = ("Before", "Now", "Difference", "95 % interval")
    columns = [Column("Number"), *(Column(title, "number") for title in titles)]
    totals = page.table(columns, rows, "COCO's numbers", sortable=False)
    fixed, broken = (
        np.bincount(analysis.instances.object_classes[each], minlength=len(analysis.class_names))
        for each in (result.fixed, result.broken)
    )
    before, now = other.class_numbers, analysis.class_numbers
    rows = [
        (
            analysis.class_names[k],
            value(before[k].value),
            value(now[k].value),
            _signed(span),
            between(span, True),
            number(int(fixed[k])),
            number(int(broken[k])),
        )
        for k, span in enumerate(result.class_differences)
    ]
    columns = [Column("Class"), *(Column(title, "number") for title in (*titles, "Fixed", "Broken"))]
    per_class = page.table(columns, rows, "AP of each class")
    intro = (
        f"Before is {name}. Both runs are evaluated on the same resampled images: if an interval does not contain 0, "
        "the difference does not come from the choice of images. Fixed objects are found only now, broken objects were "
        "found only before, each with the run's own best threshold."
    )
    parts = [totals, per_class]
    if changed:
        columns = [Column("Setting"), Column("Before"), Column("Now")]
        parts.insert(0, page.table(columns, changed, "Settings that differ", sortable=False))
    return Section("comparison", "What changed", parts, intro)


def _signed(span):
    return "-" if math.isnan(span.value) else f"{span.value:+.3f}"
