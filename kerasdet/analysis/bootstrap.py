"""Computes COCO's twelve metrics on resampled images, to measure how much they depend on the choice of images."""

import dataclasses
import functools
import math
import statistics

import numpy as np

from kerasdet.analysis.instances import Instances
from kerasdet.analysis.matching import AREAS, COCO_THRESHOLDS, Matches, match
from kerasdet.analysis.precision import RECALLS

SAMPLES = 200
_CHUNK = 1 << 18  # size of the arrays that are processed at once, which fit into a processor's cache
_IOUS = {"AP50": 0, "AP75": 5}
_LIMITS = (1, 10, 100)


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds a metric and the limits of its confidence interval.

    Args:
        value: The metric for all images. NaN without objects.
        low: Lower limit. NaN if fewer than two images have objects.
        high: Upper limit. NaN if fewer than two images have objects.
    """

    value: float
    low: float
    high: float


def coco_matches(instances: Instances) -> Matches:
    """Matches detections to objects for all of COCO's area ranges and IoU thresholds, for `resampled`.

    Args:
        instances: Objects and detections.

    Returns:
        The matches, by area range and IoU threshold.
    """
    return match(instances, COCO_THRESHOLDS, tuple(AREAS.values()))


def weights(num_images: int, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Draws samples of I images each, with replacement, for the bootstrap.

    Args:
        num_images: Number I of images.
        samples: Number S of samples.
        seed: Seed of the random numbers.

    Returns:
        The counts, (1 + S, I) float32: how often each sample contains each image. The first row is all 1: it is the
        original set of images.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), samples)
    return np.concatenate([np.ones((1, num_images)), drawn]).astype(np.float32)  # exact up to 16 million


def resampled(instances: Instances, matches: Matches, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Computes COCO's twelve metrics for each sample of images.

    An image that is drawn several times counts as several different images.

    Args:
        instances: Objects and detections.
        matches: Result of `coco_matches`.
        drawn: Result of `weights`, (1 + S, I) float32: how often each sample contains each of I images.

    Returns:
        A dict from metric name ("AP", "AP50", "APs", "AR100", ...) to (1 + S,) values in [0, 1]; NaN for samples
        without objects in the metric's area range. The key "class" holds the AP of each of the K classes, (1 + S, K);
        NaN for samples without objects of the class.
    """
    num_areas, num_thresholds, _ = matches.correct.shape
    samples, classes = len(drawn), instances.num_classes
    ap = np.full((samples, classes, num_areas, num_thresholds), np.nan)
    recall = np.full((samples, classes, num_areas, len(_LIMITS), num_thresholds), np.nan)
    order = np.lexsort((-instances.scores, instances.classes))  # stable: equal scores stay in the order of images
    limits = np.searchsorted(instances.classes[order], np.arange(classes + 1))
    for k in range(classes):
        mine = order[limits[k] : limits[k + 1]]
        objects = np.flatnonzero(instances.object_classes == k)
        step = max(1, _CHUNK // max(1, len(mine)))
        for first in range(0, samples if len(objects) else 0, step):
            part = slice(first, first + step)
            ap[part, k], recall[part, k] = _class_numbers(instances, matches, drawn[part], mine, objects)
    return _summary(ap, recall)


def _class_numbers(instances, matches, drawn, mine, objects):
    """Returns AP (S, A, T) and recall (S, A, limits, T) of one class."""
    samples, (num_areas, num_thresholds, _) = len(drawn), matches.correct.shape
    ap = np.full((samples, num_areas, num_thresholds), np.nan)
    recall = np.full((samples, num_areas, len(_LIMITS), num_thresholds), np.nan)
    each = drawn[:, instances.images[mine]]  # (S, D)
    total = np.cumsum(each, 1)
    for area in range(num_areas):
        positives = drawn[:, instances.object_images[objects[matches.objects[area, objects]]]].sum(1, dtype=np.float64)
        known = positives > 0
        if not known.any():
            continue
        for t in range(num_thresholds):
            correct, counted = matches.correct[area, t, mine], matches.counted[area, t, mine]
            places = np.flatnonzero(correct)
            hits = each[:, places]
            found = np.cumsum(hits, 1)  # (S, P) number of correct detections up to each correct detection
            before = total[:, places]
            if not counted.all():
                others = np.flatnonzero(~counted)
                sums = np.cumsum(each[:, others], 1)
                before = before - np.insert(sums, 0, 0, 1)[:, np.searchsorted(others, places)]
            ap[known, area, t] = _average_precision(found[known], before[known], positives[known])
            ranks = matches.ranks[mine[places]]
            for i, limit in enumerate(_LIMITS):
                hit = hits[known][:, ranks < limit].sum(1, dtype=np.float64)
                recall[known, area, i, t] = hit / positives[known]
    return ap, recall


def _average_precision(found, before, positives):
    """Averages interpolated precision over COCO's recalls, for S samples and P correct detections.

    Args:
        found: (S, P) number of correct detections up to each correct detection.
        before: (S, P) number of all detections up to each correct detection.
        positives: (S,) number of objects.

    Returns:
        The AP of each sample, (S,).
    """
    samples, count = found.shape
    if not count:
        return np.zeros(samples)
    found = found.astype(np.float64)
    precision = np.maximum.accumulate((found / (before + np.spacing(1)))[:, ::-1], 1)[:, ::-1]
    precision = np.append(precision, np.zeros((samples, 1)), 1)
    # One search for all samples: offsets keep the numbers of different samples apart
    apart = np.arange(samples)[:, None] * (max(found[:, -1].max(), positives.max()) + 2)
    needed = np.stack([_needed(int(n)) for n in positives]) + apart
    places = np.searchsorted((found + apart).ravel(), needed.ravel(), side="left").reshape(samples, -1)
    places = np.minimum(places - count * np.arange(samples)[:, None], count)
    return np.take_along_axis(precision, places, 1).mean(1)


@functools.lru_cache(1 << 14)
def _needed(positives):
    """Returns the number of correct detections at which each of COCO's recalls is reached, (101,)."""
    return np.searchsorted(np.arange(positives + 1) / positives, RECALLS, side="left")


def _summary(ap, recall):
    """Averages over classes and thresholds: AP (S, K, A, T), recall (S, K, A, limits, T)."""
    values = {"AP": _mean(ap[:, :, 0]), **{name: _mean(ap[:, :, 0, t]) for name, t in _IOUS.items()}}
    values |= {f"AP{size[0]}": _mean(ap[:, :, a]) for a, size in enumerate(AREAS) if a}
    values |= {f"AR{limit}": _mean(recall[:, :, 0, i]) for i, limit in enumerate(_LIMITS)}
    values |= {f"AR{size[0]}": _mean(recall[:, :, a, -1]) for a, size in enumerate(AREAS) if a}
    return {**values, "class": ap[:, :, 0].mean(-1)}


def _mean(values):
    """Averages all axes but the first over the values that are not NaN."""
    values = values.reshape(len(values), -1)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(1) / known.sum(1)


def images_with_objects(instances: Instances, matches: Matches) -> dict[str, np.ndarray]:
    """Counts the images on which each metric is based.

    Args:
        instances: Objects and detections.
        matches: Result of `coco_matches`.

    Returns:
        A dict with the keys of `resampled`: the number of images with objects in the metric's area range, an array of
        shape (). The key "class" holds the number of images with objects of each of the K classes, (K,).
    """
    by_area = [len(np.unique(instances.object_images[counted])) for counted in matches.objects]
    areas = {size[0]: number for size, number in zip(AREAS, by_area, strict=True) if size != "all"}
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{limit}" for limit in _LIMITS), "ARs", "ARm", "ARl")
    counted = matches.objects[0]
    pairs = np.unique(np.stack([instances.object_images, instances.object_classes], 1)[counted], axis=0)
    per_class = np.bincount(pairs[:, 1], minlength=instances.num_classes)
    return {**{name: np.array(areas.get(name[2:], by_area[0])) for name in names}, "class": per_class}


def interval(
    values: np.ndarray, images: int, limits: tuple[float, float] = (0.0, 1.0), share: float = 0.95
) -> Interval:
    """Computes the confidence interval of a metric from its resampled values.

    Resampled AP is slightly too high on average, because the detections in copies of an image are correct or wrong
    together. The interval is shifted by the mean difference. Samples of few images vary less than they should, so the
    interval is widened like Student's t interval of a mean (expanded intervals of
    https://arxiv.org/abs/1411.5279): by 2 % for 100 images, 60 % for 5.

    Args:
        values: (1 + S,) values of a metric from `resampled`: first for all images, then for each of S samples.
        images: Number of images with objects, from `images_with_objects`. A single image gives no interval.
        limits: The lowest and the highest value that the metric can have.
        share: Fraction of the resampled values that lie inside the interval, before it is widened.

    Returns:
        The metric for all images with its confidence interval.
    """
    others = values[1:][~np.isnan(values[1:])]
    if math.isnan(values[0]) or not len(others) or images < 2:
        return Interval(float(values[0]), math.nan, math.nan)
    around = np.quantile(others - others.mean(), [(1 - share) / 2, (1 + share) / 2])
    low, high = np.clip(values[0] + _widening(int(images), share) * around, *limits)
    return Interval(float(values[0]), float(low), float(high))


def _widening(images, share):
    """Returns the width of Student's t interval of a mean, relative to the average width of its bootstrap interval."""
    z, freedom = statistics.NormalDist().inv_cdf((1 + share) / 2), images - 1
    quantile = (  # quantile of Student's t distribution, expanded around the normal distribution
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return quantile / z * math.sqrt(images / freedom)
