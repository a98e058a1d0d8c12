"""Compares the detections of a model and its export, with one table of tolerances.

Each detection of the model is paired with the nearest unpaired detection of the export that has the same class and an
IoU of at least 0.5, if there is one. The comparison measures the differences of the pairs (boxes, scores, masks,
keypoints, outputs of other branches), and counts detections without a partner.

Three classes of precision have their own tolerances, because rounding affects them differently:

* float32 repeats the model's arithmetic, so every clear detection must have a partner (see `Tolerance`).
* 16 bits round each box and score slightly, and sometimes change which of two crowded boxes NMS keeps.
* 8 bits round ten times as much. Only detections with a score above 0.5 are clear; AP on a dataset, which
  `kerasdet.export.workflow.compare_ap` measures, covers the others.

A broken converter changes *all* detections in the same way. Signed errors are therefore bounded more tightly than
absolute ones (`box_bias`), and most bounds apply to means, medians and fractions instead of worst cases. Every bound
lies between the largest difference of correct exports of the tests' random models and the smallest difference of the
broken converters in tests/export/test_verify.py.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.errors import VerificationError
from kerasdet.export.causes import likely_cause
from kerasdet.inference.padded import KNOWN_OUTPUTS, BranchOutput

_SAME_OBJECT = 0.5  # minimum IoU of two boxes of the same object, as in AP50
_MIN_BOX_SIZE = 16.0  # pixels; relative errors of smaller boxes would be large at a fraction of a pixel
_ENOUGH = 8  # pairs; fewer pairs give no estimate of the bias, which is then not checked
_FEW = 2  # detections without a partner that always pass, because a fraction of few detections is unreliable


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Bounds the differences between a model and its export; `math.inf` means no bound.

    "Box size" is the square root of the area of the model's box in pixels, at least 16.

    Args:
        max_box_error: Largest allowed difference of one coordinate of one box, in pixels.
        max_score_error: Largest allowed difference of one score.
        median_box_error: Bounds the box errors: their median over all pairs. The error of a box is the largest
            difference of its four coordinates, as a fraction of the box size.
        p95_box_error: Bounds the 95th percentile of the box errors.
        box_bias: Bounds the bias of each coordinate: the median of its signed differences, as a fraction of the box
            size, minus three standard errors. The bias is near 0 for rounding errors, and large if boxes are shifted,
            scaled or have swapped coordinates. Fewer than 8 pairs are not checked for bias.
        mean_iou: Smallest allowed mean IoU of the pairs.
        score_error: Bounds the mean absolute difference of the scores, as a fraction of the model's mean score.
        max_mask_error: Bounds the mean absolute difference in probability of each mask.
        mean_mask_error: Bounds the mean absolute difference in probability over all masks.
        keypoint_distance: A keypoint counts as moved if its y or x differs by more than this fraction of the box size
            and by more than one pixel.
        moved_keypoints: Largest allowed fraction of moved keypoints. It also applies to positions in the outputs of a
            user's branch.
        branch_error: Bounds the mean absolute difference of any other output of a user's branch, as a fraction of the
            output's mean absolute value.
        borderline_margin: A detection is clear if its score exceeds the score threshold by more than this; if an image
            has the maximum number of detections, its score must also exceed their lowest score by more than this.
            Other detections are borderline: rounding may drop them.
        clear_score: A clear detection also has a score above this.
        unmatched_clear: Largest allowed fraction of clear detections without a partner, over both sides. Two such
            detections are always allowed, unless the fraction is 0.
        unmatched: Largest allowed fraction of all detections without a partner, including borderline ones, over both
            sides. Two such detections are always allowed if there is at least one pair.
    """

    max_box_error: float
    max_score_error: float
    median_box_error: float
    p95_box_error: float
    box_bias: float
    mean_iou: float
    score_error: float
    max_mask_error: float
    mean_mask_error: float
    keypoint_distance: float
    moved_keypoints: float
    branch_error: float
    borderline_margin: float
    clear_score: float
    unmatched_clear: float
    unmatched: float


# Each comment gives the largest difference measured on the tests' random models, whose boxes have 6 to 40 pixels.
# R-CNNs differ most, because their proposals change too.
EXACT = Tolerance(
    max_box_error=1e-2,  # 1e-3, from another order of additions
    max_score_error=1e-4,  # 1e-5
    median_box_error=math.inf,  # the worst case is bounded above
    p95_box_error=math.inf,
    box_bias=math.inf,
    mean_iou=0.0,
    score_error=math.inf,
    max_mask_error=1e-3,  # 1e-4
    mean_mask_error=1e-3,
    keypoint_distance=0.0,  # the minimum of one pixel applies
    moved_keypoints=0.02,  # the maximum of a flat heatmap may move
    branch_error=1e-3,
    borderline_margin=1e-4,  # equal to max_score_error
    clear_score=0.0,
    unmatched_clear=0.0,  # 0
    unmatched=0.3,  # a full list may end at any of several equal scores
)
ROUNDED = Tolerance(  # bfloat16 and float16, of the export or of the model
    max_box_error=math.inf,  # NMS may keep another box in a few cases
    max_score_error=math.inf,
    median_box_error=0.02,  # 0.0083
    p95_box_error=0.06,  # 0.02
    box_bias=0.005,  # 0.0007
    mean_iou=0.93,  # 0.966
    score_error=0.05,  # 0.014; BCCD-trained detectors 0.002
    max_mask_error=math.inf,
    mean_mask_error=0.02,  # 0.006; masks flipped: 0.2
    keypoint_distance=0.1,
    moved_keypoints=0.15,  # 0.064; y and x swapped: 0.96
    branch_error=0.05,  # like score_error
    borderline_margin=0.02,
    clear_score=0.0,
    unmatched_clear=0.1,  # 0.058; BCCD-trained detectors 0.005
    unmatched=0.2,  # 0.1; half of the detections dropped: 0.33
)
EIGHT_BITS = Tolerance(  # dynamic and int8
    max_box_error=math.inf,
    max_score_error=math.inf,
    median_box_error=0.12,  # 0.053; a detector after 150 steps on BCCD 0.085
    p95_box_error=0.2,  # 0.137
    box_bias=0.0075,  # 0.0035
    mean_iou=0.8,  # 0.864
    score_error=0.15,  # 0.046; scores halved: 0.5
    max_mask_error=math.inf,
    mean_mask_error=0.05,  # 0.014
    keypoint_distance=0.1,
    moved_keypoints=0.4,  # 0.24, on untrained heatmaps
    branch_error=0.15,  # like score_error
    borderline_margin=0.05,
    clear_score=0.5,  # AP measures the detections below
    unmatched_clear=0.25,  # 0.22
    unmatched=0.3,  # 0.23
)


def tolerance_for(precision: str, compute_dtype: str = "float32") -> Tolerance:
    """Returns the tolerances for an export.

    Args:
        precision: Precision of the export: "float32", "bfloat16", "float16", "dynamic" or "int8".
        compute_dtype: Dtype in which the model itself computes. A 16-bit model differs from its float32 export by
            rounding errors.

    Returns:
        The tolerances: the largest accepted differences.
    """
    if precision in ("dynamic", "int8"):
        return EIGHT_BITS
    return EXACT if precision == "float32" and compute_dtype == "float32" else ROUNDED


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds the differences that a comparison measured over all images.

    A field that has the name of a tolerance holds the measured value; see `Tolerance`.

    Args:
        detections: Number of the model's detections.
        matched: Number of pairs.
        one_sided: Number of detections of both sides without a partner.
        clear: Number of clear detections of both sides.
        branch_errors: Mean absolute difference of each output of a user's branch, relative to the mean absolute value
            of the output, by name.
        milliseconds: Median time of the export for the first image, in milliseconds. NaN: not measured.
        model_milliseconds: Shortest time of the Keras model per image, over all compared batches, in milliseconds. NaN:
            not measured.
    """

    detections: int
    matched: int
    one_sided: int
    clear: int
    max_box_error: float
    max_score_error: float
    median_box_error: float
    p95_box_error: float
    box_bias: float
    mean_iou: float
    score_error: float
    max_mask_error: float
    mean_mask_error: float
    moved_keypoints: float
    unmatched_clear: float
    unmatched: float
    branch_errors: Mapping[str, float]
    milliseconds: float = math.nan
    model_milliseconds: float = math.nan

    def __str__(self):
        words = [f"boxes {self.max_box_error:.2g} px at most (median {self.median_box_error:.2%} of the box size)"]
        words += [f"scores {self.max_score_error:.2g} at most ({self.score_error:.2%} on average)"]
        words += [f"masks {self.mean_mask_error:.2g} in probability"] * (self.mean_mask_error > 0)
        words += [f"{self.moved_keypoints:.1%} of the keypoints moved"] * (self.moved_keypoints > 0)
        words += [f"{name} {error:.2%} on average" for name, error in self.branch_errors.items()]
        text = f"{self.detections} detections compared, {self.one_sided} found by one side only; {', '.join(words)}."
        if math.isfinite(self.milliseconds):
            text += f" {self.milliseconds:.0f} ms per image, {self.model_milliseconds:.0f} ms in Keras."
        return text


def compare(
    cases: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    tolerance: Tolerance,
    *,
    score_threshold: float = 0.0,
    branch_outputs: Mapping[str, BranchOutput] = KNOWN_OUTPUTS,
    subject: str = "The export",
) -> Report:
    """Compares the detections of a model with those of its export.

    Args:
        cases: Pairs of padded detections (dicts of `boxes` (B, D, 4) yxyx, `scores` (B, D) and more, see
            `kerasdet.inference.padded`) for the same images, in pixels: first the model's, then the export's.
        tolerance: Result of `tolerance_for`.
        score_threshold: Score threshold of the model.
        branch_outputs: The model's `Detector.branch_outputs`. By default the outputs of kerasdet's own branches.
        subject: Name of the export, for the beginning of error messages.

    Returns:
        The measured differences, all within the tolerance.

    Raises:
        VerificationError: If a measure exceeds its bound, an output is missing or has another shape, or a value is not
            finite.
    """
    sides, images = [], []
    for expected, found in cases:
        expected, found = ({name: np.asarray(value) for name, value in side.items()} for side in (expected, found))
        _check_outputs(expected, found, subject)
        for index in range(len(expected["valid"])):
            sides.append((_unpadded(expected, index), _unpadded(found, index)))
            capacity = expected["scores"].shape[1]
            images.append(_compare_image(*sides[-1], tolerance, capacity, score_threshold, branch_outputs))
    report = _summarize(images)
    violations = _violations(report, tolerance)
    if violations:
        raise VerificationError(
            f"{subject} differs from the model in {', '.join(violations)}: {report} {_remedy(sides, tolerance)}"
        )
    return report


def _remedy(sides, tolerance):
    """Returns what to do about differences: the author of a format finds a mistake there, a user has found a bug."""
    cause = likely_cause(sides, _pairs)
    if cause is not None:
        return f"{cause} Correct the export format, or report it with this line as a bug of kerasdet."
    if tolerance is EXACT:
        return (
            "In float32 only the order of additions may differ: in a format of your own, compare the input first (size "
            "of the resized image, padding, normalisation), else report it with this line as a bug of kerasdet."
        )
    few_steps = "Models that were trained for a few steps differ most in 8 bits. " * (tolerance is EIGHT_BITS)
    bug = "If the model is well trained, report it with this line as a bug of kerasdet."
    return f"Use another --precision (Python: precision=). {few_steps}{bug}"


def _check_outputs(expected, found, subject):
    for name, value in expected.items():
        if name not in found:
            raise VerificationError(
                f"{subject} differs from the model: the output {name} is missing among {', '.join(found)}. Return all "
                "outputs of `detect_batch` under its names; `from_tf_od` converts those of the TF Object Detection API."
            )
        if found[name].shape != value.shape:
            raise VerificationError(
                f"{subject} differs from the model: the output {name} has the shape {found[name].shape}; expected "
                f"the model's shape {value.shape}. Pad it as `kerasdet.inference.padded` says, or export again."
            )
    for index, count in enumerate(found["valid"]):
        bad = [name for name, value in found.items() if name != "valid" and not np.isfinite(value[index, :count]).all()]
        if bad:
            raise VerificationError(
                f"{subject} differs from the model: its {' and '.join(bad)} are NaN or infinite for image {index}. "
                "Check that the model's weights are finite, or use another --precision (Python: precision=)."
            )


def _unpadded(detections, index):
    count = int(detections["valid"][index])
    return {name: value[index, :count] for name, value in detections.items() if name != "valid"}


def _compare_image(ours, theirs, tolerance, capacity, score_threshold, branch_outputs):
    """Measures one image: the differences of all pairs, and the numbers of detections without a partner."""
    pairs = _pairs(ours, theirs)
    # A full list ends at its lowest score, where a rounded score can admit another detection.
    ends = [side["scores"].min() for side in (ours, theirs) if len(side["scores"]) == capacity > 0]
    clear_from = max(max([score_threshold, *ends]) + tolerance.borderline_margin, tolerance.clear_score)
    clear = [side["scores"] > clear_from for side in (ours, theirs)]
    lone = [np.delete(np.arange(len(side["scores"])), pairs[:, k]) for k, side in enumerate((ours, theirs))]
    ours, theirs = ({name: value[pairs[:, k]] for name, value in side.items()} for k, side in enumerate((ours, theirs)))
    box_error = theirs["boxes"] - ours["boxes"]  # (P, 4)
    size = np.sqrt(np.maximum(_area(ours["boxes"]), _MIN_BOX_SIZE**2))  # (P,)
    measured = {
        "box_error": box_error,
        "relative_box_error": box_error / size[:, None],
        "iou": _iou(ours["boxes"], theirs["boxes"]),
        "score": ours["scores"],
        "score_error": np.abs(theirs["scores"] - ours["scores"]),
        "mask_error": np.zeros(0),
        "moved": np.zeros(0, bool),
    }
    if "mask_probs" in ours:
        measured["mask_error"] = np.abs(theirs["mask_probs"] - ours["mask_probs"]).mean((1, 2))  # (P,)
    limit = np.maximum(tolerance.keypoint_distance * size, 1.0)
    for name, output in branch_outputs.items():
        if name not in ours or name == "mask_probs":
            continue
        width = math.prod(ours[name].shape[1:])
        values, others = (np.asarray(side[name], float).reshape(-1, width) for side in (ours, theirs))
        if output.rescaling == "positions":
            distance = np.abs(others - values).reshape(-1, width // 3, 3)[..., :2].max(-1)  # (P, J)
            measured["moved"] = np.append(measured["moved"], distance > limit[:, None])
        else:
            measured[name, "error"] = np.abs(others - values).mean(-1)  # (P,)
            measured[name, "value"] = np.abs(values).mean(-1)
    counts = {
        "detections": len(clear[0]),
        "total": sum(len(side) for side in clear),
        "one_sided": sum(len(side) for side in lone),
        "clear": sum(int(side.sum()) for side in clear),
        "one_sided_clear": sum(int(side[indices].sum()) for side, indices in zip(clear, lone, strict=True)),
    }
    return measured, counts


def _summarize(images):
    """Joins the images into a report."""
    measured = {name: np.concatenate([image[name] for image, _ in images]) for name in images[0][0]}
    counts = {name: sum(each[name] for _, each in images) for name in images[0][1]}
    error, relative = np.abs(measured["box_error"]), np.abs(measured["relative_box_error"]).max(-1, initial=0.0)
    matched = len(measured["iou"])
    return Report(
        detections=counts["detections"],
        matched=matched,
        one_sided=counts["one_sided"],
        clear=counts["clear"],
        max_box_error=float(error.max(initial=0.0)),
        max_score_error=float(measured["score_error"].max(initial=0.0)),
        median_box_error=float(np.median(relative)) if matched else 0.0,
        p95_box_error=float(np.quantile(relative, 0.95)) if matched else 0.0,
        box_bias=_bias(measured["relative_box_error"]),
        mean_iou=float(measured["iou"].mean()) if matched else 1.0,
        score_error=float(measured["score_error"].sum() / max(measured["score"].sum(), 1e-9)),
        max_mask_error=float(measured["mask_error"].max(initial=0.0)),
        mean_mask_error=float(measured["mask_error"].mean()) if len(measured["mask_error"]) else 0.0,
        moved_keypoints=float(measured["moved"].mean()) if len(measured["moved"]) else 0.0,
        unmatched_clear=counts["one_sided_clear"] / max(counts["clear"], 1),
        unmatched=counts["one_sided"] / max(counts["total"], 1),
        branch_errors={
            key[0]: float(value.sum() / max(measured[key[0], "value"].sum(), 1e-6))
            for key, value in measured.items()
            if isinstance(key, tuple) and key[1] == "error"
        },
    )


def _bias(errors):
    """Returns the largest absolute median of signed errors (P, 4) over coordinates, minus three standard errors."""
    if len(errors) < _ENOUGH:
        return 0.0
    median = np.median(errors, 0)  # (4,)
    deviation = 1.4826 * np.median(np.abs(errors - median), 0)  # standard deviation if the errors are normal
    standard_error = 1.25 * deviation / np.sqrt(len(errors))
    return float(np.maximum(np.abs(median) - 3 * standard_error, 0).max())


_AT_MOST = {
    "max_box_error": "box coordinates",
    "max_score_error": "scores",
    "median_box_error": "boxes (median)",
    "p95_box_error": "boxes (95th percentile)",
    "box_bias": "boxes (all moved alike)",
    "score_error": "mean score",
    "max_mask_error": "masks (worst)",
    "mean_mask_error": "masks (mean)",
    "moved_keypoints": "keypoints",
}


def _violations(report, tolerance):
    """Returns a phrase for each exceeded bound, with value and limit."""
    found = [
        f"{words} ({getattr(report, name):.2g}, at most {getattr(tolerance, name):.2g})"
        for name, words in _AT_MOST.items()
        if not getattr(report, name) <= getattr(tolerance, name)
    ]
    found += [
        f"{name} ({error:.2g}, at most {tolerance.branch_error:.2g})"
        for name, error in report.branch_errors.items()
        if not error <= tolerance.branch_error
    ]
    if report.mean_iou < tolerance.mean_iou:
        found.append(f"mean IoU ({report.mean_iou:.2f}, at least {tolerance.mean_iou:.2f})")
    one_sided_clear = round(report.unmatched_clear * report.clear)
    few = _FEW if tolerance.unmatched_clear else 0
    if one_sided_clear > max(tolerance.unmatched_clear * report.clear, few):
        found.append(f"clear detections ({one_sided_clear} of {report.clear} found by one side only)")
    total = 2 * report.matched + report.one_sided
    nothing_in_common = report.one_sided > 0 and not report.matched
    if nothing_in_common or report.one_sided > max(tolerance.unmatched * total, _FEW):
        found.append(f"detections ({report.one_sided} of {total} found by one side only)")
    return found


def _pairs(ours, theirs):
    """Pairs each of our detections, in order, with the nearest free one of its class and an IoU of at least 0.5.

    Returns the indices of both sides, (P, 2).
    """
    pairs, free = [], np.ones(len(theirs["scores"]), bool)
    for index, (box, class_id) in enumerate(zip(ours["boxes"], ours["class_ids"], strict=True)):
        overlap = _iou(box, theirs["boxes"]) * (free & (theirs["class_ids"] == class_id))  # (N,)
        distance = np.where(overlap >= _SAME_OBJECT, np.abs(theirs["boxes"] - box).max(-1), np.inf)
        if np.isfinite(distance).any():
            nearest = int(distance.argmin())
            pairs.append((index, nearest))
            free[nearest] = False
    return np.array(pairs, int).reshape(-1, 2)


def _iou(a, b):
    """Returns the IoU (N,) of corresponding boxes, or of one box (4,) with many (N, 4)."""
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    intersection = sides.prod(-1)
    return intersection / np.maximum(_area(a) + _area(b) - intersection, 1e-9)


def _area(boxes):
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
