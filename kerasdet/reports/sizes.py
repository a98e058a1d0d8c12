"""Builds the section about sizes, aspect ratios and numbers of objects."""

import numpy as np

from kerasdet.models.detector import Detector
from kerasdet.reports import charts, page
from kerasdet.reports.anchors import assigner_of
from kerasdet.reports.objects import resized
from kerasdet.reports.page import Column, Finding, Section, count, number, share
from kerasdet.reports.splits import Splits

_SIZE_STEP = 0.25  # width of a bin of sizes, in exponents of 2
_RATIO_STEP = 0.25  # width of a bin of aspect ratios, in exponents of 2
_CELL = 0.5  # side of a cell of the heatmap, in exponents of 2
_MOST_SMALL = 0.05  # the page gives advice if at least this share of objects is smaller than a cell of the finest level


def sizes(data: Splits, model: Detector | None) -> tuple[Section | None, list[Finding]]:
    """Shows sizes and shapes of the objects, beside the anchors of a model.

    Args:
        data: Splits of the dataset.
        model: Detector whose anchors and resize rule are shown. None: objects only.

    Returns:
        The section of the page (None without objects), and its findings.
    """
    objects = data.all_objects
    if not len(objects):
        return None, [
            Finding(
                "problem", "No image has an object.", "Check that the annotations belong to these images.", "splits"
            )
        ]
    original = objects
    intro = "In pixels of the image files."
    assigner = None
    if model is not None:
        objects = resized(objects, model.preprocessing)
        rule = model.preprocessing
        intro = (
            f"In pixels after resizing: the shorter side of an image becomes {rule.shortest} px, unless the longer "
            f"side would exceed {rule.longest} px."
        )
        if rule.rounding == "square":
            intro = f"In pixels after resizing: every image is stretched to {rule.shortest} x {rule.shortest} px."
        assigner = assigner_of(model)
    anchors = assigner.anchors if assigner and assigner.foreground_iou is not None else None
    parts = [_edges(objects, anchors), _ratios(objects, anchors), _shapes(objects, anchors), _per_image(objects)]
    found = _small_objects(original, objects, model, assigner) if assigner else []
    return Section("sizes", "Object sizes", parts, intro), found


def _edges(objects, anchors):
    logs = np.log2(np.maximum(objects.edges, 0.5))
    markers = []
    if anchors:
        markers = [(np.log2(size), f"anchors of {size:.4g} px on {level}") for level, size in _anchor_sizes(anchors)]
    low, median, high = np.quantile(objects.edges, (0.05, 0.5, 0.95))
    words = (
        f"Half of the objects are smaller than {median:.0f} px; nine of ten are between {low:.0f} and {high:.0f} px."
    )
    if anchors:
        sizes = [size for _, size in _anchor_sizes(anchors)]
        words += f" Dashed lines are the {len(sizes)} anchor sizes, {min(sizes):.4g} to {max(sizes):.4g} px."
    bins = _bins(logs, _SIZE_STEP, lambda a, b: f"{2**a:.3g} to {2**b:.3g} px", len(objects))
    chart = charts.histogram(bins, "square root of the area, px", words, markers=markers, exponents=True)
    return page.figure(chart, "Size of the objects", words, _bin_table(bins, "Size", "Size of the objects"))


def _ratios(objects, anchors):
    logs = np.log2(objects.ratios)
    wide, tall = int((objects.ratios < 0.5).sum()), int((objects.ratios > 2).sum())
    words = (
        f"{share(wide, len(objects))} of the objects are more than twice as wide as high, {share(tall, len(objects))} "
        "more than twice as high as wide."
    )
    markers = []
    if anchors:
        ratios = sorted({ratio for level in anchors.aspect_ratios for ratio in level})
        markers = [(np.log2(ratio), f"anchors of height / width {ratio:.3g}") for ratio in ratios]
        words += f" Dashed lines are the anchors: {', '.join(f'{ratio:.3g}' for ratio in ratios)}."
    bins = _bins(logs, _RATIO_STEP, lambda a, b: f"{2**a:.2f} to {2**b:.2f}", len(objects))
    chart = charts.histogram(bins, "height / width", words, markers=markers, exponents=True)
    return page.figure(chart, "Aspect ratio", words, _bin_table(bins, "Height / width", "Aspect ratio"))


def _shapes(objects, anchors):
    height, width = np.log2(np.maximum(objects.lengths, 0.5)).T
    cells = np.floor(np.stack([width, height], 1) / _CELL)
    unique, counts = np.unique(cells, axis=0, return_counts=True)
    rows = [
        (
            x * _CELL,
            y * _CELL,
            int(n),
            f"{2 ** (x * _CELL):.3g} to {2 ** ((x + 1) * _CELL):.3g} px wide, {2 ** (y * _CELL):.3g} to "
            f"{2 ** ((y + 1) * _CELL):.3g} px high: {count(int(n), 'object')}",
        )
        for (x, y), n in zip(unique.tolist(), counts, strict=True)
    ]
    points = []
    for level in anchors.levels if anchors else ():
        for top, left, bottom, right in anchors.cell_anchors(level).tolist():
            h, w = bottom - top, right - left
            points.append((np.log2(w), np.log2(h), f"anchor on {level}: {w:.4g} px wide, {h:.4g} px high"))
    words = "The stronger the colour, the more objects." + (" Circles are the anchors." if anchors else "")
    chart = charts.heatmap(rows, _CELL, ("width, px", "height, px"), words, points=points)
    table = page.table(
        [Column("Width and height"), Column("Objects", "number")],
        [(label.split(":")[0], number(n)) for _, _, n, label in sorted(rows, key=lambda row: -row[2])],
        "Width and height",
        sortable=False,
    )
    return page.figure(chart, "Width and height", words, table)


def _per_image(objects):
    per_image = objects.per_image
    most = int(per_image.max())
    step = max(1, -(-most // 30))
    edges = np.arange(0, most + step + 1, step)
    counts, _ = np.histogram(per_image, edges)
    bins = [
        (float(a), float(b), int(n), f"{_span(a, b - 1)} objects: {count(int(n), 'image')}")
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    words = f"The median is {np.median(per_image):.0f}, the maximum {most}."
    table = page.table(
        [Column("Objects"), Column("Images", "number")],
        [(_span(int(a), int(b) - 1), number(n)) for a, b, n, _ in bins],
        "Objects per image",
        sortable=False,
    )
    return page.figure(charts.histogram(bins, "objects in an image", words), "Objects per image", words, table)


def _small_objects(original, objects, model, assigner):
    """Advises larger images if many objects are smaller than a cell of the finest level."""
    stride = 2 ** int(assigner.anchors.levels[0][1:])
    small = int((objects.edges < stride).sum())
    if small < _MOST_SMALL * len(objects):
        return []
    shortest = model.preprocessing.shortest
    needed = shortest * stride / np.quantile(objects.edges, _MOST_SMALL)
    native = int(np.median(original.sizes.min(1)))
    target = int(-(-min(needed, 2 * max(native, shortest)) // 32) * 32)
    return [
        Finding(
            "advice",
            f"{share(small, len(objects))} of the objects are smaller than {stride} px, a cell of the finest level, "
            f"at `SHORTEST_EDGE={shortest}`.",
            f"Use larger images, such as `SHORTEST_EDGE={target}`; the files have a shorter side of {native} px. Or "
            "cut the images into tiles.",
            "sizes",
        )
    ]


def _anchor_sizes(anchors):
    return [(level, size) for level, row in zip(anchors.levels, anchors.sizes, strict=True) for size in row]


def _bins(logs, step, name, total):
    """Counts values in bins of equal width; returns (low, high, count, label) of each bin."""
    first, last = int(np.floor(logs.min() / step)), int(np.floor(logs.max() / step)) + 1
    counts = np.bincount(np.clip(np.floor(logs / step).astype(int) - first, 0, None), minlength=last - first)
    return [
        (
            (first + i) * step,
            (first + i + 1) * step,
            int(n),
            f"{name((first + i) * step, (first + i + 1) * step)}: {count(int(n), 'object')} ({share(n, total)})",
        )
        for i, n in enumerate(counts)
    ]


def _bin_table(bins, title, caption):
    rows = [(label.split(":")[0], number(n)) for _, _, n, label in bins]
    return page.table([Column(title), Column("Objects", "number")], rows, caption, sortable=False)


def _span(first, last):
    return f"{first}" if first == last else f"{first} to {last}"
