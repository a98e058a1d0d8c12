"""Whether an artefact gives what the model gives: it is run in a process of its own, and compared."""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kerasdet.export.saved_model.load import in_pixels
from kerasdet.export.tflite.load import TFLiteDetector
from kerasdet.models import Detector
from kerasdet.ops.dispatch import LIBRARY

_SAME_OBJECT = 0.5  # IoU
_MOVED = 1.0  # pixels from which on a keypoint counts as another one
_RUNS = 3
_MEASURES = ("boxes", "scores", "mean_score", "masks", "moved_keypoints")


class Tolerance(NamedTuple):
    """How far apart two detections of one object may be, and how many objects one side alone may find."""

    boxes: float  # pixels
    scores: float
    mean_score: float  # over all detections, of which rounding lets a few become others
    masks: float  # mean difference in probability
    moved_keypoints: float  # share
    lost: float  # share of the detections
    at_cut: float  # above the threshold and the end of a full list, where a detection may make place for another


EXACT = Tolerance(boxes=1e-2, scores=1e-4, mean_score=1e-4, masks=1e-3, moved_keypoints=0.02, lost=0.0, at_cut=1e-4)
ROUNDED = Tolerance(boxes=np.inf, scores=np.inf, mean_score=0.03, masks=0.2, moved_keypoints=1.0, lost=0.2, at_cut=0.02)
QUANTIZED = Tolerance(
    boxes=np.inf, scores=np.inf, mean_score=0.25, masks=0.5, moved_keypoints=1.0, lost=0.5, at_cut=0.1
)


class Report(NamedTuple):
    """What came of a comparison: the largest differences over all images and signatures."""

    detections: int  # of the model
    lost: int  # found by one side only
    boxes: float  # pixels
    scores: float
    mean_score: float
    masks: float  # mean difference in probability
    moved_keypoints: float  # share of those of an image
    milliseconds: float  # median of the artefact on the first image
    model_milliseconds: float  # of `detect`

    def __str__(self):
        words = [f"{self.boxes:.2g} px", f"{self.scores:.2g} in score (on average {self.mean_score:.2g})"]
        words += [f"{self.masks:.2g} in mask probability"] * (self.masks > 0)
        words += [f"{self.moved_keypoints:.1%} of the keypoints moved"] * (self.moved_keypoints > 0)
        return (
            f"{self.detections} detections compared, {self.lost} found by one side only; the largest differences are "
            f"{', '.join(words)}. {self.milliseconds:.0f} ms for the first image, "
            f"{self.model_milliseconds:.0f} ms in the model's detect."
        )


def verify_saved_model(
    model: Detector,
    path: str | Path,
    images: Sequence[np.ndarray],
    *,
    class_offset: int = 1,
    precision: str = "float32",
    ops: str = "tensorflow",
) -> Report:
    """Loads a SavedModel in a process that has only TensorFlow and compares it with the model.

    Args:
        model: What was exported.
        path: The SavedModel.
        images: (H, W, 3) uint8 arrays.
        class_offset: As it was exported.
        precision: As it was exported. Where it or the model's own is not float32, rounding is allowed for.
        ops: As it was exported; the process is given the library of "compiled" ones.

    Returns:
        The differences.

    Raises:
        RuntimeError: If the SavedModel does not run, or differs by more than `EXACT` or `ROUNDED` allow.
    """
    outputs = _run_saved_model(Path(path), images, [str(LIBRARY)] if ops == "compiled" else [])
    tolerance = _tolerance(model, precision)
    first, seconds = _timed(lambda: model.detect(images[:1]))
    together = model.detect(list(images)) if len(images) > 1 else first
    differences = []
    for signature in ("serving_default", "float_image", "encoded"):
        expected = together if signature == "encoded" else first
        found = {key.split("/")[1]: value for key, value in outputs.items() if key.startswith(f"{signature}/")}
        found = in_pixels(found, [image.shape[:2] for image in images[: len(expected["valid"])]], class_offset)
        for name, value in expected.items():
            if name not in found or found[name].shape != value.shape:
                raise RuntimeError(f"{path} differs from the model in the {name} of signature {signature}.")
        count = len(expected["valid"])
        differences += [compare(expected, found, index, tolerance, _threshold(model)) for index in range(count)]
    return _report(path, differences, tolerance, outputs["seconds"], seconds)


def verify_tflite(model: Detector, path: str | Path, images: Sequence[np.ndarray]) -> Report:
    """Runs a TFLite file in a process that has only LiteRT and compares it with the model on the same pixels.

    Args:
        model: What was exported.
        path: The file.
        images: (H, W, 3) arrays, which are fitted into the file's input.

    Returns:
        The differences, after the model's own post-processing where the file has none. Where the file's precision or
        the model's own is not float32, rounding is allowed for.

    Raises:
        RuntimeError: If the file does not run, or differs by more than its precision explains.
    """
    detector = TFLiteDetector(path)
    frames = np.concatenate([detector.frame(image)[0] for image in images])
    outputs, seconds = _run_tflite(Path(path), frames)
    tolerance = _tolerance(model, detector.facts["precision"])
    expected, model_seconds = _timed(lambda: [model.detect(frame, resize=False) for frame in frames])
    differences = []
    for index, detections in enumerate(expected):
        found = detector.detections({name: value[index] for name, value in outputs.items()})
        differences.append(compare(detections, found, 0, tolerance, _threshold(model)))
    return _report(path, differences, tolerance, seconds, [value / len(frames) for value in model_seconds])


def _tolerance(model, precision):
    if precision in ("dynamic", "int8"):
        return QUANTIZED
    return EXACT if precision == "float32" and model.backbone.compute_dtype == "float32" else ROUNDED


def _threshold(model):
    return getattr(model, "score_threshold", 0.0)  # proposal networks have none


def _timed(function):
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def _report(path, differences, tolerance, seconds, model_seconds):
    """The differences in all images as one; an error where they are too large."""
    worst = np.max(differences, 0)[2:].tolist()
    detections, lost, paired, total = np.sum(differences, 0)[[0, 1, -2, -1]].tolist()
    milliseconds = 1e3 * statistics.median(seconds), 1e3 * min(model_seconds)
    boxes, scores, masks, moved_keypoints, *_ = worst
    means = total / max(paired, 1), masks, moved_keypoints
    report = Report(int(detections), int(lost), boxes, scores, *means, *milliseconds)
    wrong = [name for name in _MEASURES if _exceeds(report, tolerance, name)]
    if wrong or report.lost > tolerance.lost * max(report.detections, 1) or (report.detections and not paired):
        raise RuntimeError(
            f"{path} differs from the model{' in ' * bool(wrong)}{', '.join(wrong).replace('_', ' ')}: {report}"
        )
    return report


def _exceeds(report, tolerance, name):
    return not getattr(report, name) <= getattr(tolerance, name)  # NaN exceeds


def _run_saved_model(path, images, libraries):
    """The outputs of the SavedModel by "signature/name", and ``seconds`` of each run."""
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            Image.fromarray(image).save(Path(folder) / f"{index}.png")
        return _run(path, "saved_model/verify_worker.py", folder, *libraries)


def _run_tflite(path, frames):
    """The outputs of a file for each frame by name, (images, 1, ...), and the seconds of each run."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "frames.npy", frames)
        outputs = _run(path, "tflite/verify_worker.py", folder)
        return outputs, outputs.pop("seconds")


def _run(path, script, folder, *arguments):
    """What a script of this package writes in a process of its own, given the artefact, a folder and more."""
    script = Path(__file__).parent / script
    run = subprocess.run(
        [sys.executable, "-c", script.read_text(), str(path.resolve()), folder, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,  # neither the checkout nor kerasdet is on the path
    )
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise RuntimeError(f"{path} does not run in a fresh process: {(named or lines)[-1]}")
    with np.load(Path(folder) / "outputs.npz") as outputs:
        return dict(outputs)


def compare(
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    index: int,
    tolerance: Tolerance,
    threshold: float,
) -> tuple[float, ...]:
    """Differences between two sides' detections in one image, where equal scores may change places.

    Args:
        expected: Of `Detector.detect`.
        found: Likewise.
        index: Of the image in the batch.
        tolerance: Whose `at_cut` says which detections may be on one side only.
        threshold: Of the model's scores.

    Returns:
        How many detections are expected and on one side only; the largest differences in boxes, scores and masks; the
        share of keypoints that moved; how many detections are on both sides, and the sum of their differences in score.
    """
    ours, theirs = (
        {name: value[index, : side["valid"][index]] for name, value in side.items() if name != "valid"}
        for side in (expected, found)
    )
    pairs = _pairs(ours, theirs)
    size = expected["scores"].shape[1]
    ends = [side["scores"].min() for side in (ours, theirs) if len(side["scores"]) == size]  # of full lists
    cut = max([threshold, *ends]) + tolerance.at_cut
    lost = sum((np.delete(side["scores"], pairs[:, column]) > cut).sum() for column, side in enumerate((ours, theirs)))
    ours, theirs = ({name: value[pairs[:, k]] for name, value in side.items()} for k, side in enumerate((ours, theirs)))
    difference = {name: np.abs(ours[name] - theirs[name]) for name in ours}
    masks = difference["mask_probs"].mean((1, 2)) if "mask_probs" in difference else np.zeros(1)
    moved = difference["keypoints"][..., :2].max(-1) > _MOVED if "keypoints" in difference else np.zeros(1)
    return (
        expected["valid"][index],
        lost,
        difference["boxes"].max(initial=0.0),
        difference["scores"].max(initial=0.0),
        masks.max(initial=0.0),
        moved.mean() if moved.size else 0.0,
        len(pairs),
        difference["scores"].sum(),
    )


def _pairs(ours, theirs):
    """Indices (N, 2) of detections of one object: of one class, and of the nearest boxes that overlap enough."""
    pairs, free = [], np.ones(len(theirs["scores"]), bool)
    for index, (box, class_id) in enumerate(zip(ours["boxes"], ours["class_ids"], strict=True)):
        overlap = _iou(box, theirs["boxes"]) * (free & (theirs["class_ids"] == class_id))
        distance = np.where(overlap >= _SAME_OBJECT, np.abs(theirs["boxes"] - box).max(-1), np.inf)
        if np.isfinite(distance).any():
            nearest = int(distance.argmin())
            pairs.append((index, nearest))
            free[nearest] = False
    return np.array(pairs, int).reshape(-1, 2)


def _iou(box, boxes):
    size = np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0)
    intersection = size.prod(-1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - intersection
    return intersection / np.maximum(union, 1e-9)
