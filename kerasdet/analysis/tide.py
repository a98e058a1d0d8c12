"""Classifies the errors of detections and computes the AP that each kind of error costs, by TIDE (Bolya et al., 2020).

The results equal those of the authors' package tidecv, also for equal scores: https://arxiv.org/abs/2008.08115
"""

import dataclasses

import numpy as np

from kerasdet.analysis.instances import MAX_DETECTIONS, Instances

FOREGROUND, BACKGROUND = 0.5, 0.1  # smallest IoU of a match, and largest IoU of a detection on background
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND_ERROR, MISSED = range(len(ERRORS))
RIGHT, IGNORED = -1, -2  # kinds of detections without an error; objects that are found have the kind RIGHT
_RECALLS = np.array([i / 100 for i in range(101)])


@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """Holds the kind of every detection and object, and the AP that each kind of error costs.

    Args:
        kinds: (D,) int64, kind of each detection: the index in `ERRORS`, RIGHT, or IGNORED for detections beyond the
            100 best of an image.
        excused: (D,) bool, whether a wrong detection overlaps an ignored object of its class by an IoU above 0.5. Such
            a detection has a kind of error, but costs no AP.
        objects: (D,) int64, index of the object that a detection matches or, for an error, would match after correcting
            the error; -1 for no object.
        missed: (G,) bool, true for objects that no detection matches, except ignored objects.
        unexplained: (G,) bool, true for missed objects that would still be missed after correcting the error of any
            detection.
        ap: AP at an IoU of 0.5, mean over classes with objects or detections, in [0, 1].
        cost: Maps each kind of error to the AP that correcting all errors of this kind would add, in [0, 1].
        false_positives: AP that removing all wrong detections would add.
        false_negatives: AP that ignoring all missed objects would add.
    """

    kinds: np.ndarray
    excused: np.ndarray
    objects: np.ndarray
    missed: np.ndarray
    unexplained: np.ndarray
    ap: float
    cost: dict[str, float]
    false_positives: float
    false_negatives: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of detections of each kind of error, by name; for "missed" the number of `unexplained` objects."""
        numbers = np.bincount(self.kinds[self.kinds >= 0], minlength=len(ERRORS))
        numbers[MISSED] = self.unexplained.sum()
        return dict(zip(ERRORS, numbers.tolist(), strict=True))


def tide(instances: Instances) -> Errors:
    """Classifies the errors of all detections and computes the AP that each kind of error costs.

    Args:
        instances: Objects and detections.

    Returns:
        The kinds and costs of the errors.
    """
    kinds, excused, objects, repairs, missed, unexplained = _kinds(instances)
    counted = (kinds != IGNORED) & ~excused
    right = kinds == RIGHT
    positives = np.bincount(instances.object_classes[~instances.ignored], minlength=instances.num_classes)
    classes, scores = instances.classes, instances.scores
    base = _mean_ap(classes[counted], scores[counted], right[counted], positives)
    errors = np.flatnonzero(kinds >= 0)
    cost = {}
    for error, name in enumerate(ERRORS):
        if error == MISSED:
            gone = np.bincount(instances.object_classes[unexplained], minlength=instances.num_classes)
            kept, true, total = errors[~excused[errors]], np.zeros(0, np.int64), positives - gone
        else:
            mine = kinds[errors] == error
            kept = errors[np.where(mine, repairs[errors], ~excused[errors])]
            true, total = errors[mine & repairs[errors]], positives
        fixed = np.isin(kept, true)
        repaired = np.where(fixed, np.append(instances.object_classes, -1)[objects[kept]], classes[kept])
        order = np.concatenate([kept, np.flatnonzero(right)])  # among equal scores tidecv puts the errors first
        all_classes = np.concatenate([repaired, classes[right]])
        values = np.concatenate([fixed, np.ones(int(right.sum()), bool)])
        cost[name] = max(_mean_ap(all_classes, scores[order], values, total) - base, 0.0)
    ideal = _mean_ap(classes[counted], right[counted].astype(float), right[counted], positives)
    gone = np.bincount(instances.object_classes[missed], minlength=instances.num_classes)
    order = np.concatenate([errors[~excused[errors]], np.flatnonzero(right)])
    without = _mean_ap(classes[order], scores[order], right[order], positives - gone)
    return Errors(kinds, excused, objects, missed, unexplained, base, cost, ideal - base, without - base)


def _kinds(instances):
    """Classifies detections and objects of all images.

    Returns:
        The arrays `kinds`, `excused` and `objects` of `Errors`; `repairs` (D,), whether correcting the error gives a
        match, true only for the highest-scored error of an object; then `missed` and `unexplained`.
    """
    count = len(instances.scores)
    kinds, objects = np.full(count, IGNORED, np.int64), np.full(count, -1, np.int64)
    excused, repairs = np.zeros((2, count), bool)
    missed = ~instances.ignored
    unexplained = missed.copy()
    starts, firsts = instances.starts, instances.object_starts
    for image, overlaps in enumerate(instances.overlaps):
        found = np.arange(starts[image], starts[image + 1])[:MAX_DETECTIONS]
        there = np.arange(firsts[image], firsts[image + 1])
        if not len(found):
            continue
        real = ~instances.ignored[there]
        same = instances.classes[found][:, None] == instances.object_classes[there][None]
        overlaps = overlaps[: len(found)]
        used_by = _greedy(overlaps[:, real] * same[:, real])
        used = np.zeros(int(real.sum()), bool)
        used[used_by[used_by >= 0]] = True
        inside = ((overlaps > FOREGROUND) & same)[:, ~real].any(1)
        kind, which = _classify(overlaps[:, real], same[:, real], used_by, used)
        mine = there[real]
        kinds[found], excused[found] = kind, inside & (kind != RIGHT)
        objects[found] = np.where(which >= 0, mine[which], -1) if len(mine) else -1
        missed[mine] = ~used
        unexplained[mine] = ~used
        for d in np.flatnonzero((kind == CLASSIFICATION) | (kind == LOCALISATION)):  # the best score first
            g = mine[which[d]]
            repairs[found[d]] = unexplained[g]
            unexplained[g] = False
    return kinds, excused, objects, repairs, missed, unexplained


def _greedy(overlaps):
    """Matches detections, in their order, to the unmatched object with the highest IoU: (D, G) to (D,), -1 for none."""
    matched = np.full(len(overlaps), -1, np.int64)
    if not overlaps.size:
        return matched
    free = overlaps.copy()
    for d in np.flatnonzero(overlaps.max(1) >= FOREGROUND):
        best = free[d].argmax()
        if free[d, best] >= FOREGROUND:
            matched[d] = best
            free[:, best] = 0
    return matched


def _classify(overlaps, same, used_by, used):
    """Returns the kind of each detection of an image, (D,), and the object that it matches or should match, (D,)."""
    if not overlaps.shape[1]:
        return np.full(len(overlaps), BACKGROUND_ERROR), np.full(len(overlaps), -1)
    own, other, taken = overlaps * same, overlaps * ~same, overlaps * (same & used)
    near = (own.max(1) >= BACKGROUND) & (own.max(1) <= FOREGROUND)
    choices = (
        (used_by >= 0, RIGHT, used_by),
        (near, LOCALISATION, own.argmax(1)),
        (other.max(1) >= FOREGROUND, CLASSIFICATION, other.argmax(1)),
        (taken.max(1) >= FOREGROUND, DUPLICATE, taken.argmax(1)),
        (overlaps.max(1) <= BACKGROUND, BACKGROUND_ERROR, np.full(len(overlaps), -1)),
    )
    conditions = [condition for condition, _, _ in choices]
    kinds = np.select(conditions, [kind for _, kind, _ in choices], BOTH)
    return kinds, np.select(conditions, [which for _, _, which in choices], overlaps.argmax(1))


def _mean_ap(classes, scores, right, positives):
    """Returns the mean of tidecv's AP over the classes that have objects or detections."""
    order = np.lexsort((-scores, classes))  # stable: equal scores keep their order
    limits = np.searchsorted(classes[order], np.arange(len(positives) + 1))
    values = []
    for k, total in enumerate(positives.tolist()):
        mine = right[order[limits[k] : limits[k + 1]]]
        if not len(mine) and not total:
            continue
        values.append(_ap(mine, total) if total > 0 else 0.0)
    return sum(values) / len(values) if values else 0.0


def _ap(right, total):
    found = np.cumsum(right)
    precision = np.append(np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1], 0.0)
    return float(precision[np.searchsorted(found / total, _RECALLS, side="left")].mean())
