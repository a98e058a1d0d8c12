"""Comparing a converted model with outputs saved from the source framework."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from kerasdet.checkpoints.sources import SOURCES
from kerasdet.models import Detector

TENSOR_TOLERANCE = 1e-3  # of the largest value
MATCHED_SHARE = 0.9  # of the detections: detectron2's resize rounds pixels to uint8
MATCHED_PIXELS = 0.5
MATCHED_SCORE = 2e-3


def verify(model: Detector, outputs: Mapping[str, np.ndarray], source: str) -> list[tuple[str, float, bool]]:
    """Runs a model on an image and compares with what the source framework made of it.

    Args:
        model: A converted detector.
        outputs: ``image`` (H, W, 3) uint8 RGB, and any of these, as the source framework gave them for that image
            resized by its own rule, with or without a batch axis of 1: the pyramid ``p3`` ... (C, h, w), of dense
            heads ``class_logits`` (R, K) and ``box_deltas`` (R, 4), or of FCOS ``box_distances`` (R, 4) and
            ``centerness`` (R, 1), over all levels, and ``boxes`` (D, 4) xyxy, ``scores``, ``labels`` in the
            coordinates of the image.
        source: A key of `SOURCES`.

    Returns:
        For each, in the order of computation: name, largest difference (for detections: the share not found) and
        whether that is small enough.

    Raises:
        ValueError: If the model is no detector, `source` is unknown, or `outputs` has no image, nothing to compare, or
            another shape than the model's.
    """
    if not isinstance(model, Detector):
        raise ValueError(f"Only detectors can be compared with outputs, not a {type(model).__name__} alone.")
    if source not in SOURCES:
        raise ValueError(f"There is no source {source!r}: choose one of {', '.join(SOURCES)}.")
    if "image" not in outputs:
        raise ValueError(f"The outputs need an entry 'image', (H, W, 3) uint8; they have {', '.join(outputs)}.")
    image = np.asarray(outputs["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"The outputs' image is {image.dtype} {image.shape}: save it as uint8 RGB (height, width, 3).")
    torchvision = SOURCES[source].background_first
    report = []
    for name, ours in _network_outputs(model, image).items():
        if name not in outputs:
            continue
        theirs = _without_batch(outputs[name], ours.ndim)
        if name == "class_logits" and torchvision and theirs.ndim == ours.ndim:
            theirs = theirs[:, 1:]
        if theirs.shape != ours.shape:
            raise ValueError(f"{name} has shape {theirs.shape} in the outputs, {ours.shape} in the model.")
        difference = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
        report.append((name, difference, difference <= TENSOR_TOLERANCE))
    if {"boxes", "scores", "labels"} <= set(outputs):
        missed = _missed_share(model.detect(image), _detections(outputs), first_label=int(torchvision))
        report.append(("detections", missed, 1 - missed >= MATCHED_SHARE))
    if not report:
        raise ValueError("The outputs have nothing to compare: save p3 ..., class_logits, box_deltas or detections.")
    return report


def _network_outputs(model, image):
    """Pyramid, and what a dense head predicts, in torch's layout, by the names of `verify`."""
    resized = model.preprocessing.resize(tf.constant(image)[None])
    height, width = resized.shape[1:3]
    padded = model.preprocessing.padded_size(np.array([height, width]))
    batch = tf.pad(resized, [[0, 0], [0, padded[0] - height], [0, padded[1] - width], [0, 0]])
    inputs = {"image": batch, "image_size": tf.constant([[height, width]])}
    pyramid = model.neck(model.backbone(model.preprocessing.normalize(**inputs)))
    found = {level: x[0].numpy().transpose(2, 0, 1) for level, x in pyramid.items()}
    outputs = model(inputs)
    if not isinstance(outputs["class_logits"], Mapping):
        return found
    for name in ("class_logits", "box_deltas", "box_distances", "centerness"):
        if name in outputs:
            x = tf.concat(list(outputs[name].values()), 1)[0].numpy()
            found[name] = x[:, [1, 0, 3, 2]] if name.startswith("box") else x.reshape(len(x), -1)
    return found


def _without_batch(value, rank):
    """An array without the batch axis of 1 that it may have over its `rank`."""
    value = np.asarray(value)
    return value[0] if value.ndim == rank + 1 and len(value) == 1 else value


def _detections(outputs):
    """The source's boxes (D, 4), scores (D,) and labels (D,)."""
    found = {name: _without_batch(outputs[name], rank) for name, rank in (("boxes", 2), ("scores", 1), ("labels", 1))}
    count = len(found["scores"]) if found["scores"].ndim == 1 else -1
    if [x.shape for x in found.values()] != [(count, 4), (count,), (count,)]:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in found.items())
        raise ValueError(
            f"The outputs need boxes (D, 4), scores (D,) and labels (D,) of one image; they have {shapes}."
        )
    return found


def _missed_share(detections, theirs, first_label):
    """The share of the source's detections that the model does not have."""
    count = detections["valid"][0]
    boxes = detections["boxes"][0, :count][:, [1, 0, 3, 2]]
    scores, labels = detections["scores"][0, :count], detections["class_ids"][0, :count] + first_label
    free = np.ones(count, bool)
    missed = 0
    for box, score, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
        same = free & (labels == label) & (np.abs(scores - score) <= MATCHED_SCORE)
        same &= np.abs(boxes - box).max(1, initial=0) <= MATCHED_PIXELS
        if same.any():
            free[same.argmax()] = False
        else:
            missed += 1
    return missed / max(len(theirs["boxes"]), 1)
