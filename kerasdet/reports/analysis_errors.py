"""Builds the sections of the page about errors: the cost of each kind, and the confused classes."""

import numpy as np

from kerasdet.analysis import Analysis
from kerasdet.reports import charts, page
from kerasdet.reports.page import Column, Section, number, share

MOST_CLASSES = 15  # maximum number of classes in the matrix
_MEANINGS = {
    "classification": "overlaps an object of another class by 0.5 or more",
    "localisation": "overlaps an object of its class by 0.1 to 0.5",
    "both": "overlaps an object of another class by 0.1 to 0.5",
    "duplicate": "overlaps an object that a better detection has found",
    "background": "overlaps no object by more than 0.1",
    "missed": "an object without any detection, not even one of another class or with an inexact position, among the "
    "best 100 of its image",
}


def errors(analysis: Analysis, words: str) -> Section:
    """Shows the kinds of errors and the AP that each kind costs.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.
        words: Name of the type of detections that was analysed, such as "boxes".

    Returns:
        The section of the page.
    """
    result = analysis.errors
    counts = result.counts
    rows = [(name, cost, f"{name}: {cost:.3f} AP50, {number(counts[name])}") for name, cost in result.cost.items()]
    worst = max(result.cost, key=result.cost.get)
    sentence = (
        f"Repairing all errors of the kind {worst} would add {result.cost[worst]:.3f} to an AP50 of {result.ap:.3f}."
        if result.cost[worst]
        else "No kind of error costs AP."
    )
    chart = charts.bars(rows, "AP50 lost", sentence)
    columns = [Column("Error"), Column("Meaning"), Column("Number", "number"), Column("AP50 lost", "number")]
    table_rows = [(name, _MEANINGS[name], number(counts[name]), f"{cost:.3f}") for name, cost in result.cost.items()]
    table_rows += [
        ("false positives", "all wrong detections together", "", f"{result.false_positives:.3f}"),
        ("false negatives", "all missed objects together", "", f"{result.false_negatives:.3f}"),
    ]
    table = page.table(columns, table_rows, "Kinds of errors", sortable=False)
    intro = (
        f"TIDE's errors of all {words} at an IoU of 0.5. The costs do not add up to the missing AP, because one repair "
        "can hide another."
    )
    return Section("errors", "Where AP is lost", [page.figure(chart, "AP lost by error", sentence), table], intro)


def confused(analysis: Analysis) -> Section:
    """Shows which classes are confused with each other, above the best score threshold.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.

    Returns:
        The section of the page.
    """
    table, names = analysis.table, [*analysis.class_names, "background"]
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    weight = wrong.sum(0) + wrong.sum(1)
    weight[-1] = -1
    last = len(names) - 1
    chosen = np.sort(np.argsort(-weight, kind="stable")[: min(MOST_CLASSES, last)])
    chosen = [*chosen.tolist(), last]
    totals = np.maximum(table.sum(1), 1)
    labels = _unique([names[k] for k in chosen])
    cells = [
        (labels[a], labels[b], table[i, j] / totals[i], number(int(table[i, j])), _sentence(names, i, j, table, last))
        for a, i in enumerate(chosen)
        for b, j in enumerate(chosen)
        if table[i, j]
    ]
    intro = (
        f"Detections with a score above {page.decimal(analysis.score)} at an IoU of 0.5. Crowds and ignored objects "
        "are left out."
    )
    parts = []
    if cells:
        words = "Rows are objects, columns their detections; the diagonal is right."
        if last > MOST_CLASSES:
            words += f" Only the {MOST_CLASSES} classes with the most errors are shown."
        chart = charts.matrix(cells, labels, labels, ("object", "detection"), words)
        parts.append(page.figure(chart, "Objects and their detections", words))
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = [divmod(int(flat), len(names)) for flat in order[: page.MAX_ROWS]]
    rows = [
        (names[i], names[j], number(int(wrong[i, j])), "-" if i == last else share(wrong[i, j], totals[i]))
        for i, j in pairs
        if wrong[i, j]
    ]
    columns = [Column("Object"), Column("Detection"), Column("Number", "number"), Column("Of the objects", "number")]
    parts.append(
        page.table(columns, rows, "Errors by pair of classes") if rows else page.paragraph("Nothing is confused.")
    )
    return Section("confusion", "Confusion", parts, intro)


def _unique(labels):
    """Distinguishes equal labels, which a chart would merge."""
    return [label if labels.count(label) == 1 else f"{label} ({i})" for i, label in enumerate(labels)]


def _sentence(names, i, j, table, last):
    count = number(int(table[i, j]))
    if i == last:
        return f"{count} detections of {names[j]} lie on background"
    if j == last:
        return f"{count} of {names[i]} are not found"
    return f"{count} of {names[i]} are found as {names[j]}"
