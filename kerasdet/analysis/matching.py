"""Matches detections to objects by COCO's rules, for several area ranges and IoU thresholds at once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kerasdet.analysis.instances import MAX_DETECTIONS, Instances

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Tells which of D detections are correct, for A area ranges, T IoU thresholds and G objects.

    Args:
        correct: (A, T, D) bool, whether a detection matches an object that is not ignored.
        counted: (A, T, D) bool, whether a detection counts as correct or wrong. Not counted are detections that match
            an ignored object, unmatched detections whose area is outside the range, and detections beyond the 100 best
            of their class and image.
        ranks: (D,) int64, number of higher-ranked detections of the same class in the same image.
        matched: (A, T, D) int64, index of the object that a detection matches (which may be ignored), or -1.
        objects: (A, G) bool, which objects are not ignored.
    """

    correct: np.ndarray
    counted: np.ndarray
    ranks: np.ndarray
    matched: np.ndarray
    objects: np.ndarray

    def positives(self, instances: Instances) -> np.ndarray:
        """Counts the objects that are not ignored.

        Args:
            instances: The objects and detections that were matched.

        Returns:
            The numbers of objects, (A, K) int64, by area range and class.
        """
        return np.stack(
            [np.bincount(instances.object_classes[each], minlength=instances.num_classes) for each in self.objects]
        )


def match(
    instances: Instances,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    areas: Sequence[tuple[float, float]] = (AREAS["all"],),
) -> Matches:
    """Matches detections to objects of their class, in descending order of score, like pycocotools' COCOeval.

    A detection matches the unmatched object of its class with the highest IoU, if that is at least the threshold;
    ignored objects are used only if no other object matches. A crowd can match any number of detections. Only the 100
    best detections of a class in an image count.

    Args:
        instances: Objects and detections.
        thresholds: The T IoU thresholds.
        areas: The A area ranges (low, high) in square pixels, both inclusive. Objects with other areas are ignored.

    Returns:
        The matches of all detections, for each of the A area ranges and T thresholds.
    """
    low, high = np.array(areas, np.float64).T[..., None]  # (A, 1) each
    outside = (instances.object_areas < low) | (instances.object_areas > high)
    objects = ~(instances.ignored | outside)  # (A, G)
    # COCOeval lowers a threshold of 1 by this much, so that a perfect box matches
    limits = np.minimum(np.array(thresholds, np.float64), 1 - 1e-10)
    matched = np.full((len(areas), len(limits), len(instances.scores)), -1, np.int64)
    ranks = np.zeros(len(instances.scores), np.int64)
    starts, firsts = instances.starts, instances.object_starts
    for image in range(instances.num_images):
        found = np.arange(starts[image], starts[image + 1])
        if not len(found):
            continue
        there = np.arange(firsts[image], firsts[image + 1])
        order = np.argsort(instances.classes[found], kind="stable")
        changes = np.flatnonzero(np.diff(instances.classes[found][order])) + 1
        for group in np.split(order, changes):
            ranks[found[group]] = np.arange(len(group))
            group = group[:MAX_DETECTIONS]
            mine = np.flatnonzero(instances.object_classes[there] == instances.classes[found[group[0]]])
            if len(mine):
                overlaps = instances.overlaps[image][np.ix_(group, mine)]
                local = _match_group(overlaps, limits, instances.crowds[there[mine]], objects[:, there[mine]])
                matched[:, :, found[group]] = np.where(local >= 0, there[mine][local], -1)
    hit = matched >= 0
    counts = np.zeros_like(hit)  # whether a detection matches an object that counts
    for area, mask in enumerate(objects):
        counts[area] = hit[area] & mask[matched[area]] if len(mask) else False
    too_many = ranks >= MAX_DETECTIONS
    out_of_range = (instances.areas < low) | (instances.areas > high)  # (A, D)
    dropped = np.where(hit, ~counts, out_of_range[:, None]) | too_many
    return Matches(counts, ~dropped, ranks, matched, objects)


def _match_group(overlaps, limits, crowds, objects):
    """Returns the object that each detection of one class and image matches, or -1, (A, T, D), from IoUs (D, G)."""
    count, num_objects = overlaps.shape
    matched = np.full((len(objects), len(limits), count), -1, np.int64)
    free = np.ones((len(objects), len(limits), num_objects), bool)
    # Integer keys rank the objects: counted objects above ignored objects, then by IoU; of equal IoUs the last object.
    order = np.argsort(overlaps, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(num_objects)[None], 1)
    bonus = np.where(objects, num_objects, 0)[:, None]  # (A, 1, G)
    area, threshold = np.indices(matched.shape[:2])
    for d in np.flatnonzero(overlaps.max(1) >= limits.min()):
        possible = free & (overlaps[d] >= limits[:, None])
        key = np.where(possible, places[d] + bonus, -1)
        best = key.argmax(2)
        hit = np.take_along_axis(key, best[..., None], 2)[..., 0] >= 0
        matched[..., d] = np.where(hit, best, -1)
        free[area[hit], threshold[hit], best[hit]] = crowds[best[hit]]
    return matched
