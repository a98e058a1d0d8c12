"""Builds the section about how anchors or points match the objects, with suggestions to copy."""

import numpy as np

from kerasdet.geometry.matching import FCOSMatcher
from kerasdet.models.detector import Detector
from kerasdet.reports import charts, page
from kerasdet.reports.anchors import (
    assigner_of,
    best_overlaps,
    match_objects,
    sample_images,
    suggest_anchors,
    suggest_ranges,
    with_ranges,
)
from kerasdet.reports.objects import of_images, resized
from kerasdet.reports.page import Column, Finding, Section, code, count, number, paragraph, share
from kerasdet.reports.splits import Splits

MOST_IMAGES = 400  # the matcher runs on at most this many images
MOST_OBJECTS = 5_000  # anchors are fitted to at most this many objects
# Anchors are suggested if they increase the share of matched objects by at least _MIN_GAIN, and reduce the number of
# unmatched objects to at most _MAX_LEFT times the present number.
_MIN_GAIN = 0.02
_MAX_LEFT = 0.67
_MOST_UNMATCHED = 0.01  # the page reports a problem if a larger share of the objects gets no anchor or point


def anchors(data: Splits, model: Detector | None, seed: int) -> tuple[Section | None, list[Finding]]:
    """Shows which objects get anchors from the matcher of a model, and suggests better anchors.

    Args:
        data: Splits of the dataset.
        model: Detector whose anchors and matcher are examined, or None.
        seed: Seed of the choice of images.

    Returns:
        The section of the page and its findings. Without a model, without anchors or without training objects: None and
        an empty list.
    """
    assigner = None if model is None else assigner_of(model)
    training = data.objects[data.training]
    if assigner is None or not len(training):
        return None, []
    objects = resized(training, model.preprocessing)
    sample = sample_images(objects, MOST_IMAGES, seed)
    matches = match_objects(assigner, sample)
    where = f"on all {count(len(objects.sizes), 'image')}"
    if matches.images < len(objects.sizes):
        where = f"on {matches.images:,} of {count(len(objects.sizes), 'image')}, chosen at random"
    if assigner.foreground_iou is None:
        return _points(data, assigner, model, sample, matches, where)
    return _anchors(data, assigner, model, objects, sample, matches, where)


def _anchors(data, assigner, model, objects, sample, matches, where):
    threshold = assigner.foreground_iou
    overlaps = best_overlaps(assigner.anchors, objects, assigner.size_divisor)
    low = overlaps < threshold
    fitted = _some(objects, MOST_OBJECTS)
    better = suggest_anchors(assigner.anchors, fitted, assigner.size_divisor, threshold)
    after = best_overlaps(better, objects, assigner.size_divisor)
    gain = (after >= threshold).mean() - (~low).mean()
    none = int((matches.total == 0).sum())
    outcomes = {
        "by overlap": matches.by_merit > 0,
        "only as its best anchor": (matches.by_merit == 0) & (matches.total > 0),
        "none": matches.total == 0,
    }
    intro = (
        f"The matcher of {_article(assigner.stage)} gives an object every anchor whose IoU with the object is "
        f"{threshold:g} or more. It ran {where} of {data.training}."
    )
    parts = [
        page.tiles(
            [
                ("objects with no anchor at the threshold or above", share(low.sum(), len(objects))),
                ("objects that get no anchor at all", share(none, len(sample))),
                ("anchors for a median object", number(np.median(matches.total))),
                ("median overlap of the best anchor", number(np.median(overlaps), 2)),
            ]
        ),
        _outcome_figure(sample, outcomes, charts.SERIES, "How objects get their anchors"),
        _class_table(data, objects, overlaps, threshold),
    ]
    found = []
    suggested = gain >= _MIN_GAIN and (after < threshold).sum() <= _MAX_LEFT * low.sum()
    if suggested:
        lines = _anchor_lines(assigner.anchors, better)
        parts += [
            page.heading("Suggested anchors"),
            paragraph(
                f"Fitted to the objects of {data.training}: {share((after >= threshold).sum(), len(objects))} of them "
                f"have an IoU of {threshold:g} or more with an anchor, instead of {share((~low).sum(), len(objects))} "
                "now. The number of anchors stays the same. Add these options to `kerasdet train`:"
            ),
            code(lines, "Options with the suggested anchors"),
        ]
    else:
        parts.append(
            paragraph(
                "Other sizes and aspect ratios would not match noticeably more objects, so keep these anchors."
                if low.any()
                else "Every object overlaps an anchor well, so keep these anchors."
            )
        )
    shortest = model.preprocessing.shortest
    if suggested:
        found.append(
            Finding(
                "advice",
                f"{share(low.sum(), len(objects))} of the objects have an IoU below {threshold:g} with every anchor at "
                f"`SHORTEST_EDGE={shortest}`{_reason(objects, low, assigner)}"
                f"{_most(objects, low, data.class_names)}.",
                "Use the suggested anchors, which reduce this share to "
                f"{share((after < threshold).sum(), len(objects))}.",
                "anchors",
            )
        )
    if none > _MOST_UNMATCHED * len(sample):
        found.append(
            Finding(
                "problem",
                f"{share(none, len(sample))} of the objects get no anchor, so the model never learns from them.",
                "Objects that lie close together compete for anchors: use larger images (`SHORTEST_EDGE`), or more "
                "anchors per cell (`AnchorGenerator.aspect_ratios`).",
                "anchors",
            )
        )
    if not found:
        found = [
            Finding(
                "good",
                f"No other anchor sizes or ratios fit much better: {share((~low).sum(), len(objects))} of the objects "
                f"have an IoU of {threshold:g} or more with an anchor.",
                "",
                "anchors",
            )
        ]
    return Section("anchors", "Anchors", parts, intro), found


def _points(data, assigner, model, sample, matches, where):
    none = int((matches.total == 0).sum())
    outcomes = {"at least one point": matches.total > 0, "no point": matches.total == 0}
    colours = (charts.SERIES[0], charts.SERIES[2])
    matcher = model.matcher
    unmatched = none > _MOST_UNMATCHED * len(sample)
    better = matcher
    if unmatched and isinstance(matcher, FCOSMatcher):
        better = suggest_ranges(matcher, assigner, sample)
    used = (matches.levels > 0).sum(0)
    intro = (
        "FCOS learns an object from the points near its centre, on the level whose range holds the largest distance "
        f"from the point to the sides of its box. The matcher ran {where} of {data.training}."
    )
    rows = [
        (level, f"{low:g}", "any" if high >= 1e7 else f"{high:g}", number(n), share(n, len(sample)))
        for level, (low, high), n in zip(assigner.anchors.levels, assigner.ranges, used, strict=True)
    ]
    columns = [Column("Level"), *(Column(t, "number") for t in ("From, px", "To, px", "Objects", "Share"))]
    parts = [
        page.tiles(
            [
                ("objects without a point", share(none, len(sample))),
                ("points for a median object", number(np.median(matches.total))),
            ]
        ),
        _outcome_figure(sample, outcomes, colours, "Objects that get points"),
        page.table(columns, rows, "Objects on each level", sortable=False),
    ]
    found = []
    unlearned = (
        f"{share(none, len(sample))} of the objects get no point at `SHORTEST_EDGE={model.preprocessing.shortest}`, so "
        "the model never learns from them."
    )
    if better is not matcher:
        now_none = int((match_objects(with_ranges(assigner, better), sample).total == 0).sum())
    if better is not matcher and none - now_none >= _MOST_UNMATCHED * len(sample):
        parts += [
            page.heading("Suggested ranges"),
            paragraph(
                f"With these ranges, {share(now_none, len(sample))} of the objects have no point, instead of "
                f"{share(none, len(sample))} now:"
            ),
            code(
                f'--set "FCOSMatcher.regress_ranges={_tuples(better.regress_ranges)}"',
                "Option with the suggested ranges",
            ),
        ]
        found.append(
            Finding(
                "advice",
                unlearned,
                "Use the suggested ranges.",
                "anchors",
            )
        )
    elif unmatched:
        found.append(
            Finding(
                "problem",
                unlearned,
                "These objects are smaller than a cell of the finest level, or hidden by smaller objects: use larger "
                "images (`SHORTEST_EDGE`).",
                "anchors",
            )
        )
    else:
        found.append(Finding("good", "The levels fit: nearly every object gets a point.", "", "anchors"))
    return Section("anchors", "Levels", parts, intro), found


def _outcome_figure(objects, outcomes, colours, title):
    """Draws the share of objects with each outcome, by size of the objects."""
    octave = np.floor(np.log2(np.maximum(objects.edges, 1))).astype(int)
    rows, table = [], []
    for k in range(octave.min(), octave.max() + 1):
        inside = octave == k
        name = f"{2**k} to {2 ** (k + 1)}"
        parts = {part: int((mask & inside).sum()) for part, mask in outcomes.items()}
        for part, n in parts.items():
            label = f"{name} px, {part}: {count(n, 'object')} ({share(n, inside.sum())})"
            rows.append((k, k + 1, part, n, label))
        table.append((name, number(inside.sum()), *(share(n, inside.sum()) for n in parts.values())))
    totals = ", ".join(f"{part} {share(mask.sum(), len(objects))}" for part, mask in outcomes.items())
    columns = [Column("Size, px"), Column("Objects", "number"), *(Column(part, "number") for part in outcomes)]
    chart = charts.stacked(rows, list(outcomes), "square root of the area, px", colours, f"Of all objects: {totals}.")
    return page.figure(
        chart,
        title,
        f"Of all objects: {totals}.",
        page.table(columns, table, title, sortable=False),
        list(zip(colours, outcomes, strict=True)),
    )


def _class_table(data, objects, overlaps, threshold):
    rows = []
    for k, name in enumerate(data.class_names):
        inside = objects.class_ids == k
        if inside.any():
            good = (overlaps[inside] >= threshold).sum()
            rows.append(
                (
                    name,
                    number(inside.sum()),
                    number(np.median(objects.edges[inside])),
                    number(np.median(objects.ratios[inside]), 2),
                    number(np.median(overlaps[inside]), 2),
                    share(inside.sum() - good, inside.sum()),
                )
            )
    columns = [
        Column("Class"),
        *(
            Column(title, "number")
            for title in ("Objects", "Median size, px", "Height / width", "Best overlap", f"Below {threshold:g}")
        ),
    ]
    return page.table(columns, rows, "Overlap with the best anchor")


def _reason(objects, low, assigner):
    """Returns a property that most objects without an overlapping anchor have in common."""
    sizes = [size for row in assigner.anchors.sizes for size in row]
    ratios = [ratio for row in assigner.anchors.aspect_ratios for ratio in row]
    for mask, words in (
        (objects.edges < min(sizes), f"most are smaller than the smallest anchor, {min(sizes):.4g} px"),
        (objects.edges > max(sizes), f"most are larger than the largest anchor, {max(sizes):.4g} px"),
        (
            (objects.ratios < min(ratios)) | (objects.ratios > max(ratios)),
            f"most are more elongated than the anchors, whose height / width is {min(ratios):.3g} to {max(ratios):.3g}",
        ),
    ):
        if mask[low].mean() > 0.5:
            return f"; {words}"
    return ""


def _most(objects, low, class_names):
    """Names the class to which most objects without an overlapping anchor belong, if there are several classes."""
    if len(class_names) < 2:
        return ""
    counts = np.bincount(objects.class_ids[low], minlength=len(class_names))
    k = int(counts.argmax())
    if counts[k] <= 0.5 * low.sum():
        return ""
    return f"; {share(counts[k], (objects.class_ids == k).sum())} of {class_names[k]} are among them"


def _anchor_lines(now, better):
    lines = []
    if better.sizes != now.sizes:
        lines.append(f'--set "AnchorGenerator.sizes={_tuples(better.sizes)}"')
    if better.aspect_ratios != now.aspect_ratios:
        lines.append(f'--set "AnchorGenerator.aspect_ratios={_numbers(better.aspect_ratios[0])}"')
    return " \\\n".join(lines)


def _tuples(rows):
    return f"({', '.join(_numbers(row) for row in rows)})"


def _numbers(values):
    words = ", ".join("1e8" if value >= 1e7 else f"{value:g}" for value in values)
    return f"({words},)" if len(values) == 1 else f"({words})"


def _article(stage):
    return "the RPN" if stage == "RPN" else stage


def _some(objects, most):
    """Returns the objects of randomly drawn images: at most `most` objects, or those of a single image."""
    images = np.random.default_rng(0).permutation(len(objects.sizes))
    total = np.cumsum(objects.per_image[images])
    keep = np.sort(images[: max(int(np.searchsorted(total, most)), 1)])
    return of_images(objects, keep)
