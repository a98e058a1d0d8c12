"""Builds the section of the page with the worst images: ground truth beside detections, filtered by kind of error."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kerasdet import visualize
from kerasdet.analysis import Analysis, Comparison
from kerasdet.analysis.tide import ERRORS, IGNORED, MISSED, RIGHT
from kerasdet.evaluation.cases import Cases
from kerasdet.reports import page, pictures
from kerasdet.reports.page import Section, count

WORST, OF_EACH = 12, 4  # numbers of shown images with the most errors in total, and of each kind
_EDGE = 420  # longer side of each half of a picture, in pixels
_GAP = 8
_PER_PAGE = 4
_FILTERS = (*ERRORS, "fixed", "broken")
_MAX_LABELS = 12  # in each half; more would hide the objects
# Places in the palette of `visualize`: bluish green, vermilion, yellow
_GOOD, _BAD, _UNJUDGED = 3, 2, 5

OpenPicture = Callable[[int], np.ndarray | None]


def images(
    analysis: Analysis, cases: Cases, open_picture: OpenPicture, names: dict[int, str], result: Comparison | None = None
) -> Section | None:
    """Shows the images with the most errors above the best score threshold.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.
        cases: The ground truth and detections that were analysed.
        open_picture: Function that takes an image id and returns the image (H, W, 3) uint8 RGB, or None if the file is
            missing.
        names: Maps image ids to file names.
        result: Comparison with another run, whose fixed and broken objects become filters. None: no other run.

    Returns:
        The section of the page; None if no image can be opened, or no image has an error.
    """
    errors = _errors_of_images(analysis, result)
    shown, tags = [], []
    for image in _choose(errors):
        image_id = analysis.image_ids[image]
        pixels = open_picture(image_id)
        if pixels is None:
            continue
        numbers = ", ".join(f"{n} {name}" for name, n in errors[image].items())
        title = f"{names[image_id]}: {numbers}"
        alternative = f"{title}. Left: objects, right: detections."
        shown.append((page.image(pictures.data_uri(_draw(analysis, cases, image, pixels)), alternative), title))
        tags.append(list(errors[image]))
    if not shown:
        return None
    keys = [
        (f"rgb{visualize.PALETTE[_GOOD]}", "found, right"),
        (f"rgb{visualize.PALETTE[_BAD]}", "missed, wrong"),
        (f"rgb{visualize.PALETTE[_UNJUDGED]}", "not judged"),
    ]
    intro = (
        f"Objects on the left, detections with a score above {page.decimal(analysis.score)} on the right. The images "
        f"with the most errors come first: {count(len(shown), 'image')} of {len(analysis.image_ids):,}."
    )
    gallery = page.gallery(shown, _PER_PAGE, tags, order=_FILTERS, wide=True)
    return Section("images", "Worst images", [page.legend(keys), gallery], intro)


def _errors_of_images(analysis, result):
    """Returns a `Counter` per image: the numbers of errors by kind, and of fixed and broken objects; no zeros."""
    errors, shown = analysis.shown_errors, analysis.shown
    table = np.zeros((shown.num_images, len(ERRORS)), int)
    wrong = (errors.kinds >= 0) & ~errors.excused
    np.add.at(table, (shown.images[wrong], errors.kinds[wrong]), 1)
    np.add.at(table[:, MISSED], shown.object_images[errors.unexplained], 1)
    found = [Counter({name: n for name, n in zip(ERRORS, row.tolist(), strict=True) if n}) for row in table]
    for name, objects in () if result is None else (("fixed", result.fixed), ("broken", result.broken)):
        for image in shown.object_images[objects].tolist():
            found[image][name] += 1
    return found


def _choose(errors):
    """Returns the images with the most errors in total and of each kind, in descending order of the total."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i].total())
    chosen = set(order[:WORST])
    for name in {name for each in errors for name in each}:
        chosen.update(sorted(order, key=lambda i: -errors[i][name])[:OF_EACH])
    return [i for i in order if i in chosen and errors[i]]


def _draw(analysis, cases, image, pixels):
    """Returns both halves side by side, or one above the other for a wide image."""
    height, width = pixels.shape[:2]
    scale = _EDGE / max(height, width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    small = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS))
    factor = np.array([size[0] / height, size[1] / width])
    instances, errors = analysis.shown, analysis.shown_errors
    there = np.flatnonzero(instances.object_images == image)
    mine = np.flatnonzero(instances.images == image)
    names = analysis.class_names
    left = [
        (
            cases.annotations[instances.object_rows[g]],
            _UNJUDGED if instances.ignored[g] else (_BAD if errors.missed[g] else _GOOD),
            names[instances.object_classes[g]] if errors.missed[g] else "",
        )
        for g in there
    ]
    right = [
        (cases.detections[instances.rows[d]], *_verdict(errors, d, names[instances.classes[d]], instances.scores[d]))
        for d in mine[::-1]  # the best on top
    ]
    halves = [_half(small, objects, factor, cases.iou_type == "segm") for objects in (left, right)]
    axis = 0 if width > 1.6 * height else 1
    shape = (_GAP, size[1], 3) if axis == 0 else (size[0], _GAP, 3)
    return np.concatenate([halves[0], np.full(shape, 128, np.uint8), halves[1]], axis)


def _verdict(errors, d, name, score):
    """Returns the colour and the label of a detection."""
    kind = errors.kinds[d]
    if kind == RIGHT:
        return _GOOD, ""
    if kind == IGNORED or errors.excused[d]:
        return _UNJUDGED, ""
    return _BAD, f"{name} {score:.2f} {ERRORS[kind]}"


def _half(small, objects, factor, with_masks):
    if not objects:
        return small
    xywh = np.array([_box(entry) for entry, _, _ in objects], np.float64)
    boxes = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], 1)
    boxes = (boxes * np.tile(factor, 2)).astype(np.float32)
    masks = None
    if with_masks:
        size = small.shape[1::-1]
        masks = np.stack(
            [
                np.array(Image.fromarray(mask_utils.decode(entry["segmentation"])).resize(size), bool)
                for entry, _, _ in objects
            ]
        )
    named = [i for i, (_, _, label) in enumerate(objects) if label][-_MAX_LABELS:]
    labels = [label if i in named else "" for i, (_, _, label) in enumerate(objects)]
    colours = np.array([colour for _, colour, _ in objects])
    return visualize.draw_boxes(small, boxes, labels, class_ids=colours, masks=masks)


def _box(entry):
    """Returns the box x, y, width, height of an entry; computes the box from the mask if the entry has only a mask."""
    return entry["bbox"] if "bbox" in entry else mask_utils.toBbox(entry["segmentation"]).tolist()
