"""Measures how well the anchors or points of a detector fit the objects of a dataset, and suggests better ones."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kerasdet.data.progress import progress
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.matching import FCOSMatcher
from kerasdet.models.detector import Detector
from kerasdet.reports.objects import Objects, of_images

_CHUNK = 1 << 16  # objects compared with all anchor shapes at once
_MOST_EAGER = 10  # for more images than this, a graph is faster than eager execution
_MIN_RATIO, _MAX_RATIO = 0.1, 10.0  # limits of suggested aspect ratios
_FACTORS = tuple(2.0 ** (step / 4) for step in range(-20, 13))  # by which all sizes are multiplied, 1/32 to 8
_SPREADS = (1.25, 1.5, 2.0, 2.5, 3.0)  # factors from one aspect ratio to the next


@dataclasses.dataclass(frozen=True)
class Assigner:
    """Holds the part of a detector that assigns objects to anchors or points.

    Args:
        anchors: Generator of the anchors, or of the squares of FCOS' points.
        match: Function that takes the anchors by level name and a batch, and returns the index of each anchor's object,
            (1, R) int32, negative for anchors without an object.
        foreground_iou: An anchor matches an object if their IoU is at least this. None for a matcher without IoU.
        ranges: Range (low, high) of FCOS' distances for each level, in pixels. None for a matcher by IoU.
        size_divisor: Images are padded to multiples of this many pixels.
        stage: Name of the part for the page, such as "RPN".
    """

    anchors: AnchorGenerator
    match: Callable
    foreground_iou: float | None
    ranges: tuple | None
    size_divisor: int
    stage: str


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Holds the numbers of anchors that are matched to N objects.

    Args:
        by_merit: (N,) int64, number of the object's positive anchors that have at least the foreground IoU with the
            object. For FCOS, the number of all points of the object.
        total: (N,) int64, number of all positive anchors of the object.
        levels: (N, L) int64, number of positive anchors of the object on each level.
        images: Number of images that were matched.
    """

    by_merit: np.ndarray
    total: np.ndarray
    levels: np.ndarray
    images: int


def assigner_of(model: Detector) -> Assigner | None:
    """Returns the part of a detector that assigns objects to anchors. For R-CNNs, this is the RPN.

    Args:
        model: A detector.

    Returns:
        The assigner. None if the model has no `AnchorGenerator` (SSD), or if its matcher needs more than anchors and
        ground truth (RTMDet).
    """
    part = getattr(model, "rpn", model)
    matcher = getattr(part, "matcher", None)
    by_level = isinstance(matcher, FCOSMatcher)
    if not isinstance(getattr(part, "anchors", None), AnchorGenerator):
        return None
    if not by_level and not hasattr(matcher, "foreground_iou"):
        return None
    match_all = getattr(part, "match", matcher)

    def match(levels, batch):
        return match_all(levels if by_level else tf.concat(list(levels.values()), 0), batch)

    return Assigner(
        anchors=part.anchors,
        match=match,
        foreground_iou=getattr(matcher, "foreground_iou", None),
        ranges=getattr(matcher, "regress_ranges", None),
        size_divisor=model.preprocessing.size_divisor,
        stage="RPN" if part is not model else type(model).__name__,
    )


def with_ranges(assigner: Assigner, matcher: FCOSMatcher) -> Assigner:
    """Returns a copy of an assigner with another FCOS matcher.

    Args:
        assigner: The assigner of an FCOS model.
        matcher: The new matcher.

    Returns:
        The copy of the assigner.
    """
    return dataclasses.replace(assigner, match=matcher, ranges=matcher.regress_ranges)


def match_objects(assigner: Assigner, objects: Objects) -> Matches:
    """Runs the matcher of a detector on every image, like a training step with a batch of one image.

    Args:
        assigner: Result of `assigner_of`.
        objects: Objects in pixels of the resized images.

    Returns:
        The numbers of anchors that are matched to each object.
    """
    levels = assigner.anchors.levels
    by_merit, total = np.zeros((2, len(objects)), np.int64)
    per_level = np.zeros((len(objects), len(levels)), np.int64)
    starts = np.searchsorted(objects.images, np.arange(len(objects.sizes) + 1))
    layouts = {}
    match = assigner.match
    if len(objects.sizes) > _MOST_EAGER:
        match = tf.function(match, reduce_retracing=True)
    for image, size in enumerate(progress(objects.sizes.tolist(), "Matching objects")):
        rows = slice(starts[image], starts[image + 1])
        if rows.start == rows.stop:
            continue
        if tuple(size) not in layouts:
            layouts = {tuple(size): _layout(assigner, size)}  # images of one size often follow one another
        layout = layouts[tuple(size)]
        boxes = objects.boxes[rows]
        batch = {
            "boxes": tf.constant(boxes[None]),
            "class_ids": tf.constant(objects.class_ids[rows][None]),
            "is_crowd": tf.zeros([1, len(boxes)], tf.bool),
            "image_size": tf.constant([size], tf.int32),
        }
        matched = match(layout, batch)[0].numpy()  # (R,)
        positive = np.flatnonzero(matched >= 0)
        owner = matched[positive]
        anchors = np.concatenate([layout[level].numpy() for level in levels])[positive]
        level_of = np.repeat(np.arange(len(levels)), [len(layout[level]) for level in levels])[positive]
        good = np.ones(len(owner), bool)
        if assigner.foreground_iou is not None:
            good = _paired_iou(anchors, boxes[owner]) >= assigner.foreground_iou
        total[rows] = np.bincount(owner, minlength=len(boxes))
        by_merit[rows] = np.bincount(owner[good], minlength=len(boxes))
        np.add.at(per_level[rows], (owner, level_of), 1)
    return Matches(by_merit, total, per_level, len(objects.sizes))


def best_overlaps(anchors: AnchorGenerator, objects: Objects, size_divisor: int) -> np.ndarray:
    """Computes the highest IoU of every object with an anchor, without generating all anchors.

    Among the anchors of the same shape and level, the nearest one has the highest IoU with an object.

    Args:
        anchors: Generator of the anchors.
        objects: Objects in pixels of the resized images.
        size_divisor: Images are padded to multiples of this many pixels.

    Returns:
        The IoUs, (N,) float64 in [0, 1].
    """
    best = np.zeros(len(objects))
    for start in range(0, len(objects), _CHUNK):
        rows = slice(start, start + _CHUNK)
        boxes = objects.boxes[rows].astype(np.float64)
        padded = -(-objects.sizes[objects.images[rows]] // size_divisor) * size_divisor  # (n, 2)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        for level in anchors.levels:
            nominal = 2 ** int(level[1:])
            grid = -(-padded // nominal)
            stride = padded // grid if anchors.strides_from_image else nominal
            cell = np.clip(np.round(centers / stride - anchors.offset), 0, grid - 1)
            nearest = (cell + anchors.offset) * stride  # (n, 2)
            for shape in anchors.cell_anchors(level).astype(np.float64):
                candidates = np.concatenate([nearest + shape[:2], nearest + shape[2:]], 1)
                best[rows] = np.maximum(best[rows], _paired_iou(candidates, boxes))
    return best


def suggest_anchors(anchors: AnchorGenerator, objects: Objects, size_divisor: int, threshold: float) -> AnchorGenerator:
    """Fits the sizes and aspect ratios of anchors to objects; the number of anchors per cell does not change.

    All sizes are scaled by one factor, because the pyramid determines the steps between levels. Candidates for the
    aspect ratios are clusters of the objects' aspect ratios (k-means of their logarithms, like YOLOv2's anchors,
    https://arxiv.org/abs/1612.08242), and ratios that are spread evenly around the median. The search is greedy: sizes,
    then aspect ratios, then sizes again. It maximises the share of objects that have an IoU of at least `threshold`
    with an anchor at its real position; between nearly equal shares, the mean IoU decides.

    Args:
        anchors: The current generator.
        objects: Objects in pixels of the resized images, at least one.
        size_divisor: Images are padded to multiples of this many pixels.
        threshold: An anchor matches an object if their IoU is at least this.

    Returns:
        The best generator; the current one if no other is better.
    """

    def quality(candidate):
        best = best_overlaps(candidate, objects, size_divisor)
        return (best >= threshold).mean() + 0.1 * best.mean()  # the mean decides between nearly equal shares

    def scaled(generator):
        sizes = [tuple(tuple(_round(size * factor) for size in row) for row in anchors.sizes) for factor in _FACTORS]
        return [_changed(generator, sizes=each) for each in sizes]

    better = max([anchors, *scaled(anchors)], key=quality)
    ratios = [(row,) * len(anchors.levels) for row in _ratio_sets(objects.ratios, len(anchors.aspect_ratios[0]))]
    better = max([better, *(_changed(better, aspect_ratios=rows) for rows in ratios)], key=quality)
    return max([anchors, better, *scaled(better)], key=quality)


def suggest_ranges(matcher: FCOSMatcher, assigner: Assigner, objects: Objects) -> FCOSMatcher:
    """Scales the regression ranges of FCOS by the factor that gives points to the largest number of objects.

    Args:
        matcher: The current matcher.
        assigner: Result of `assigner_of` for the detector.
        objects: Objects in pixels of the resized images.

    Returns:
        The best matcher; the current one if no factor improves it.
    """
    best, most = matcher, (match_objects(assigner, objects).total > 0).sum()
    for factor in (0.25, 0.5, 0.707, 1.414, 2.0, 4.0):
        ranges = tuple(
            tuple(bound if bound >= 1e7 else _round(bound * factor) for bound in pair)
            for pair in matcher.regress_ranges
        )
        candidate = FCOSMatcher.from_config({**matcher.get_config(), "regress_ranges": ranges})
        matched = (match_objects(with_ranges(assigner, candidate), objects).total > 0).sum()
        if matched > most:
            best, most = candidate, matched
    return best


def sample_images(objects: Objects, most: int, seed: int) -> Objects:
    """Draws images at random.

    Args:
        objects: Objects of R images.
        most: Maximum number of images.
        seed: Seed of the draw.

    Returns:
        The objects of the drawn images, all of them if there are at most `most`.
    """
    count = len(objects.sizes)
    if count <= most:
        return objects
    chosen = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
    return of_images(objects, chosen)


def _layout(assigner, size):
    """Returns the anchors (R_l, 4) of an image of the given size in pixels, by level name."""
    padded = [-(-side // assigner.size_divisor) * assigner.size_divisor for side in size]
    grids = {level: tuple(-(-side // 2 ** int(level[1:])) for side in padded) for level in assigner.anchors.levels}
    return assigner.anchors(grids, tuple(padded))


def _paired_iou(a, b):
    """Returns the IoU of each row of two arrays (N, 4), in NumPy, which processes millions of rows without a graph."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inside = np.maximum(sides, 0).prod(1)
    return inside / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inside)


def _ratio_sets(ratios, count):
    """Yields sets of `count` aspect ratios: clusters of the objects' ratios, and even spreads around their median."""
    logs = np.log(np.clip(ratios, _MIN_RATIO, _MAX_RATIO))
    centers = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(logs[:, None] - centers).argmin(1)
        moved = [logs[nearest == k].mean() if (nearest == k).any() else centers[k] for k in range(count)]
        if np.allclose(moved, centers):
            break
        centers = np.array(moved)
    spreads = [np.median(logs) + step * (np.arange(count) - (count - 1) / 2) for step in np.log(_SPREADS)]
    for row in [np.sort(centers), *spreads]:
        yield tuple(round(float(ratio), 2) for ratio in np.exp(row))


def _changed(anchors, **arguments):
    return AnchorGenerator.from_config({**anchors.get_config(), **arguments})


def _round(length):
    return round(float(length), 1) if length < 100 else float(round(length))
