"""Converts an analysis to sentences that state what is wrong and what to do."""

import math

import numpy as np

from kerasdet.analysis import Analysis, Comparison
from kerasdet.analysis.instances import MAX_DETECTIONS
from kerasdet.analysis.tide import BACKGROUND_ERROR, FOREGROUND
from kerasdet.reports.page import Finding, count, decimal, share

_FEW_OBJECTS = 20
_WIDE_INTERVAL = 0.06  # the page gives advice if AP's confidence interval is wider than this
_WEAK = 0.5  # a class is named if its AP is below this factor times the mean AP of the other classes
_SMALLER = 0.7  # size is named as the reason if objects are smaller than this factor times the size of others
_OFTEN = 3  # the page names a pair of classes that are confused at least this often
_MANY_IN_IMAGE = 10  # the advice mentions the worst image if it has at least this many detections on background
_COSTLY = 0.02  # the page gives advice about an error that costs at least this AP50
_BAD_CALIBRATION = 0.1  # the page gives advice if the expected calibration error is larger than this
_LOOSE = 0.3  # boxes count as inexact if AP75 is lower than AP50 by more than this
_FOUND = 0.05  # if a smaller share of the objects is found, detections and ground truth may not belong together
_USEFUL = 0.5  # the best threshold counts as good if its recall and its precision are at least this
_SHARE_OF_ALL = 0.3  # if at least this share of the boxes fits an object of another class, the classes are mixed up


def advise(
    analysis: Analysis, words: str, result: Comparison | None = None, *, scales: np.ndarray | None = None
) -> list[Finding]:
    """Draws conclusions from an analysis.

    Args:
        analysis: Result of `kerasdet.analysis.analyze.analyze_cases`.
        words: Name of the type of detections that was analysed, such as "boxes".
        result: Comparison with another run. None: no other run.
        scales: Factor by which the model resizes each image, (I,). None: unknown.

    Returns:
        Findings with advice, problems first.
    """
    instances = analysis.instances
    objects = int(analysis.positives[0].sum())
    if not objects:
        return [
            Finding(
                "problem",
                "The ground truth has no object that counts, so there is nothing to find.",
                "Check that the annotations belong to these images, and that not all of them are crowds or difficult.",
            )
        ]
    found = [] if result is None else [_verdict(result)]
    if not len(instances.scores):
        return [
            *found,
            Finding(
                "problem",
                f"There is no detection, and there are {count(objects, 'object')}.",
                "Train longer, lower the model's own score threshold (`Postprocessing.score_threshold`), or pass the "
                "right file of detections.",
            ),
        ]
    if (broken := _mismatch(analysis, words)) is not None:
        found.append(broken)
        if analysis.errors.ap == 0:
            return found
    found += _repeats(analysis) + _limit(instances)
    found += _error_advice(analysis, words) + _class_advice(analysis, scales) + _score_advice(analysis)
    ap = analysis.numbers["AP"]
    if not ap.high - ap.low <= _WIDE_INTERVAL:
        images, span = len(analysis.image_ids), f"is wide: {ap.low:.3f} to {ap.high:.3f}"
        if math.isnan(ap.low):
            span = "is unknown, because only one of them has objects" if images > 1 else "is unknown"
        found.append(
            Finding(
                "advice",
                f"With {count(images, 'image')}, the confidence interval of AP {span}.",
                "Compare runs with `--against`, whose intervals are narrower, or evaluate on more images.",
                "numbers",
            )
        )
    if all(each.level == "good" for each in found):
        found.append(Finding("good", f"No kind of error costs more than {_COSTLY:g} AP50."))
    return found


def _verdict(result):
    span = result.differences["AP"]
    if math.isnan(span.value) or math.isnan(span.low):
        return Finding(
            "advice",
            "The difference of AP cannot be estimated, because fewer than two images have objects.",
            "Evaluate on more images before you choose.",
            "comparison",
        )
    if span.value == 0 and not result.fixed.any() and not result.broken.any():
        return Finding("good", "Both runs find the same objects with the same AP.", "", "comparison")
    words = (
        f"AP changed by {span.value:+.3f} ({span.low:+.3f} to {span.high:+.3f}): "
        f"{count(int(result.fixed.sum()), 'object is', 'objects are')} fixed, "
        f"{count(int(result.broken.sum()), 'is', 'are')} broken."
    )
    if span.low > 0:
        return Finding("good", words, "This is an improvement, whatever the choice of images.", "comparison")
    if span.high < 0:
        return Finding("problem", words, "This run is worse: keep the other one.", "comparison")
    return Finding("advice", words, "This may be chance: evaluate on more images before you choose.", "comparison")


def _repeats(analysis):
    """Names detections that a file has several times."""
    if not analysis.num_repeats:
        return []
    return [
        Finding(
            "problem",
            f"{count(analysis.num_repeats, 'detection equals', 'detections equal')} an earlier one in image, class, "
            "score and geometry.",
            "Remove the repeated rows from the file, for example if it joins the files of several processes: each "
            "counts as a wrong detection and lowers AP.",
            "errors",
        )
    ]


def _limit(instances):
    """Names images with more objects than detections that count, in AP or in the kinds of errors."""
    of_class, objects = instances.objects_per_image, int((~instances.ignored).sum())
    of_image = of_class.sum(1)
    if not (of_image > MAX_DETECTIONS).any():
        return []
    limit, in_ap = f"the best {MAX_DETECTIONS} detections", (of_class > MAX_DETECTIONS).any(1)
    if in_ap.any():
        number, beyond = int(in_ap.sum()), int(np.maximum(of_class - MAX_DETECTIONS, 0).sum())
        text = f"more than {MAX_DETECTIONS} objects of a class. COCO's rules count {limit} of a class in an image, so"
        text += f" AP counts {beyond:,} of {count(objects, 'object')} as missed, whatever the model detects."
    else:
        number, beyond = int((of_image > MAX_DETECTIONS).sum()), int(np.maximum(of_image - MAX_DETECTIONS, 0).sum())
        text = f"more than {MAX_DETECTIONS} objects. AP counts {limit} of each class, but the kinds of errors, like "
        text += f"TIDE, those of an image: there {beyond:,} of {count(objects, 'object')} count as missed."
    action = "This is not an error of the model. `kerasdet eval --metrics voc` counts all detections."
    return [Finding("advice", f"{count(number, 'image has', 'images have')} {text}", action, "errors")]


def _mismatch(analysis, words):
    """Checks whether detections and ground truth belong together."""
    instances, kinds = analysis.instances, analysis.errors
    if kinds.counts["classification"] > _SHARE_OF_ALL * len(instances.scores) and kinds.ap < 0.1:
        return Finding(
            "problem",
            f"{share(kinds.counts['classification'], len(instances.scores))} of the {words} fit an object of another "
            "class, and almost none of its own.",
            "The order of the classes differs between detections and ground truth: check the category ids.",
            "confusion",
        )
    found = int((~instances.ignored).sum() - kinds.missed.sum())
    objects = int((~instances.ignored).sum())
    if found < _FOUND * np.minimum(instances.objects_per_image.sum(1), MAX_DETECTIONS).sum():
        return Finding(
            "problem",
            f"Only {found:,} of {count(objects, 'object')} have an IoU of {FOREGROUND:g} or more with a detection of "
            f"their class; there are {count(len(instances.scores), 'detection')}.",
            "If the model detects well in pictures, image ids or coordinates differ: COCO's boxes are x, y, width, "
            "height in pixels of the original image. Otherwise train longer.",
            "errors",
        )
    return None


def _error_advice(analysis, words):
    errors = analysis.errors
    found, by_limit = [], _missed_by_limit(analysis)
    no_fault = {"duplicate": analysis.num_repeats, "missed": by_limit}  # errors of the file and of the rules
    for name, cost in sorted(errors.cost.items(), key=lambda pair: -pair[1]):
        number = errors.counts[name]
        if cost < _COSTLY or (name in no_fault and number <= no_fault[name]):
            continue
        text, action = {
            "classification": (f"Wrong classes cost {cost:.3f} AP50.", _confusion_action(analysis)),
            "localisation": (
                f"{words.capitalize()} that lie near an object but overlap it by less than {FOREGROUND:g} cost "
                f"{cost:.3f} AP50 ({count(number, 'detection')}).",
                f"Train longer or on larger images, and filter the images by localisation: are the annotated {words} "
                "tight?",
            ),
            "both": (
                f"Detections with both a wrong class and an inexact position cost {cost:.3f} AP50 "
                f"({number:,} of them).",
                "Train longer; such errors go together with the other two kinds.",
            ),
            "duplicate": (
                f"Duplicate detections of an object cost {cost:.3f} AP50 ({number:,} of them).",
                "Remove the repeated rows first: they may be the cause."
                if analysis.num_repeats
                else "Lower `Postprocessing.nms_threshold`, so that NMS drops more.",
            ),
            "background": (
                f"Detections on background cost {cost:.3f} AP50 ({number:,} of them).",
                f"Filter the images by background{_crowded_with_background(analysis)}. If they show objects, annotate "
                "them; otherwise add images with such background and without objects to the training data.",
            ),
            "missed": (
                f"Objects without any detection cost {cost:.3f} AP50 ({number:,} of "
                f"{count(int(analysis.positives[0].sum()), 'object')}"
                f"{f', {by_limit:,} by the limit of {MAX_DETECTIONS} detections' if by_limit else ''}).",
                _missed_action(analysis),
            ),
        }[name]
        found.append(Finding("advice", text, action, "confusion" if name == "classification" else "errors"))
    ap50, ap75 = analysis.numbers["AP50"].value, analysis.numbers["AP75"].value
    if ap50 - ap75 > _LOOSE:
        found.append(
            Finding(
                "advice",
                f"AP falls from {ap50:.3f} at an IoU of 0.50 to {ap75:.3f} at 0.75: objects are found, but their "
                f"{words} are loose.",
                "Train longer with a falling learning rate, or on larger images.",
                "numbers",
            )
        )
    return found


def _crowded_with_background(analysis):
    """Returns a phrase about the image with the most detections on background, or "" if no image has many."""
    errors, shown = analysis.shown_errors, analysis.shown
    wrong = (errors.kinds == BACKGROUND_ERROR) & ~errors.excused
    counts = np.bincount(shown.images[wrong], minlength=shown.num_images)
    if counts.max(initial=0) < _MANY_IN_IMAGE:
        return ""
    return f"; the worst has {counts.max()} of {int(wrong.sum()):,} above the best threshold"


def _confusion_action(analysis):
    table, names = analysis.table[:-1, :-1].copy(), analysis.class_names
    np.fill_diagonal(table, 0)
    if table.max(initial=0) < _OFTEN:
        return "No pair of classes stands out. Train longer, and check the labels of the images."
    i, j = np.unravel_index(table.argmax(), table.shape)
    return (
        f"Most often {names[i]} is found as {names[j]} ({count(int(table[i, j]), 'time')}): check the labels of these "
        "images, add examples of both, or merge the classes if nobody needs the difference."
    )


def _missed_by_limit(analysis):
    """Counts the missed objects that no detection can find, because their image has more objects than count."""
    instances = analysis.instances
    images = instances.object_images[analysis.errors.unexplained]
    beyond = np.maximum(instances.objects_per_image.sum(1) - MAX_DETECTIONS, 0)
    return int(np.minimum(np.bincount(images, minlength=instances.num_images), beyond).sum())


def _missed_action(analysis):
    """Returns advice for the size or class whose objects are missed most often, in images within the limit."""
    instances, general = (
        analysis.instances,
        "Train longer, and check with `kerasdet inspect` that anchors fit the objects.",
    )
    within = (instances.objects_per_image.sum(1) <= MAX_DETECTIONS)[instances.object_images] & ~instances.ignored
    missed = analysis.errors.missed & within
    if not missed.any():
        return general
    small = (instances.object_areas < 32**2) & within
    others = ~small & within
    if small.sum() >= _FEW_OBJECTS and missed[small].mean() > 1.5 * (missed[others].mean() if others.any() else 0):
        return (
            f"{missed[small].mean():.0%} of the objects below 32 x 32 px are missed, and of larger ones "
            f"{missed[others].mean() if others.any() else 0:.0%}: use larger images (`SHORTEST_EDGE`), or smaller "
            "anchors (`kerasdet inspect` suggests them)."
        )
    totals = np.bincount(instances.object_classes[within], minlength=instances.num_classes)
    gone = np.bincount(instances.object_classes[missed], minlength=instances.num_classes)
    rate = gone / np.maximum(totals, 1)
    worst = int(np.argmax(np.where(totals >= min(_FEW_OBJECTS, totals.max()), rate, -1)))
    if len(totals) > 1 and rate[worst] > 1.5 * gone.sum() / totals.sum():
        return (
            f"{rate[worst]:.0%} of {analysis.class_names[worst]} are missed: add examples of it, or repeat its images "
            "in training."
        )
    return general


def _class_advice(analysis, scales):
    return _weakest_class(analysis, scales) + _rare_classes(analysis)


def _weakest_class(analysis, scales):
    """Names the class whose AP is far below that of the others, and whether its objects are smaller."""
    instances, totals = analysis.instances, analysis.positives[0]
    is_limited = (instances.objects_per_image > MAX_DETECTIONS).any(0)  # the model is not the cause of a low AP
    ap = np.where((totals >= _FEW_OBJECTS) & ~is_limited, [each.value for each in analysis.class_numbers], np.nan)
    if (~np.isnan(ap)).sum() < 2:
        return []
    worst = int(np.nanargmin(ap))
    others = float(np.nanmean(np.delete(ap, worst)))
    if not ap[worst] < _WEAK * others:
        return []
    edges = np.sqrt(np.maximum(instances.object_areas, 0))
    mine = ~instances.ignored & (instances.object_classes == worst)
    own, rest = np.median(edges[mine]), np.median(edges[~instances.ignored & ~mine])
    name = analysis.class_names[worst]
    action = f"Add examples of {name}, or repeat its images in training."
    if own < _SMALLER * rest:
        resized = ""
        if scales is not None:
            resized = f", and {np.median((edges * scales[instances.object_images])[mine]):.0f} px after resizing"
        action = (
            f"Its objects are smaller ({own:.0f} px across{resized}; the others {rest:.0f} px): use larger images "
            "(`SHORTEST_EDGE`) or smaller anchors, which `kerasdet inspect` suggests."
        )
    text = f"{name} has an AP of {ap[worst]:.3f}, the other classes {others:.3f} on average."
    return [Finding("advice", text, action, "classes")]


def _rare_classes(analysis):
    few = [name for name, n in zip(analysis.class_names, analysis.positives[0], strict=True) if 0 < n < _FEW_OBJECTS]
    if not few:
        return []
    listed = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
    return [
        Finding(
            "advice",
            f"{count(len(few), 'class has', 'classes have')} fewer than {_FEW_OBJECTS} objects to evaluate on: "
            f"{listed}.",
            "Their AP is unreliable: add images with these classes.",
            "classes",
        )
    ]


def _score_advice(analysis):
    best, found = analysis.threshold, []
    if best is not None:
        is_good = min(best.recall, best.precision) >= _USEFUL
        found.append(
            Finding(
                "good" if is_good else "advice",
                f"The best threshold is {decimal(best.score)}: it finds {best.recall:.0%} of the objects, and "
                f"{best.precision:.0%} of its detections are right.",
                f"Detect with `--score-threshold {decimal(best.score)}`." if 0 <= best.score <= 1 else "",
                "scores",
            )
        )
    scores = analysis.instances.scores
    if scores.min() < 0 or scores.max() > 1:
        found.append(
            Finding(
                "problem",
                f"Scores lie between {scores.min():g} and {scores.max():g}, but `kerasdet predict` takes thresholds "
                "from 0 to 1.",
                "Write probabilities to the detections file if they are available.",
                "calibration",
            )
        )
        return found
    result = analysis.reliability
    if result.error > _BAD_CALIBRATION:
        gap = np.nansum(result.counts * (result.confidence - result.accuracy))
        direction = "higher" if gap > 0 else "lower"
        found.append(
            Finding(
                "advice",
                f"Scores are {direction} than the share of right detections, by {result.error:.2f} on average.",
                "Do not read a score as a probability; choose thresholds from this page.",
                "calibration",
            )
        )
    return found
