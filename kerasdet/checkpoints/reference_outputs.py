"""Compares a converted model with saved outputs of the source framework for an image."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from kerasdet.checkpoints.sources import SOURCES
from kerasdet.errors import UserError
from kerasdet.models import Detector
from kerasdet.models.detector import is_detector

TENSOR_TOLERANCE = 1e-3  # largest difference, relative to the largest value of the tensor
# Some detections may be missing: detectron2's resize rounds pixels to uint8, which changes borderline scores.
MIN_MATCHED_FRACTION = 0.9
MAX_BOX_DIFFERENCE = 0.5  # pixels
MAX_SCORE_DIFFERENCE = 2e-3


def verify(model: Detector, outputs: Mapping[str, np.ndarray], source: str) -> list[tuple[str, float, bool]]:
    """Runs a converted model on an image and compares its outputs with saved outputs of the source framework.

    Example:
        >>> outputs = dict(numpy.load("reference_outputs.npz"))
        >>> kerasdet.checkpoints.verify(model, outputs, "torchvision/retinanet_resnet50_fpn")
        [('p3', 2.1e-06, True), ('class_logits', 4.5e-06, True), ('detections', 0.0, True)]

    Args:
        model: Converted detector.
        outputs: ``image``, (H, W, 3) uint8 RGB, and at least one output of the source framework for this image, which
            the framework resized by its own rule. All outputs may have a batch axis of length 1. Possible outputs are
            the levels ``p3``, ... of the pyramid, (C, h, w); those of dense heads for the R anchors or points of all
            levels: ``class_logits`` (R, K) of the K classes, for torchvision (R, 1 + K) with the background first,
            ``box_deltas`` (R, 4) as (dx, dy, dw, dh) or ``box_distances`` (R, 4) as (l, t, r, b), and ``centerness``
            (R, 1); and D detections: ``boxes`` (D, 4) xyxy in pixels of the image, ``scores`` (D,) and ``labels`` (D,),
            the framework's own class numbers.
        source: Name of the model in its framework, a key of `SOURCES`.

    Returns:
        A tuple (name, difference, passed) for each output, in the order of computation. `difference` is the largest
        difference divided by the largest absolute value of the source's output; for detections, the fraction of the
        source's detections that the model does not find. `passed` tells whether the difference is within the tolerance.

    Raises:
        UserError: If the model is not a detector, `source` is unknown, or `outputs` has no valid image, no known
            output, or an output whose shape differs from that of the model's output.
    """
    if not is_detector(model):
        raise UserError(
            f"Outputs can only be compared with a detector, not with a {type(model).__name__}. Convert the file of a "
            "detector."
        )
    if source not in SOURCES:
        raise UserError(
            f"source is {source!r}; expected one of {', '.join(SOURCES)}. Choose the model that the file belongs to."
        )
    if "image" not in outputs:
        raise UserError(
            f"The reference outputs have no entry 'image', only {', '.join(outputs)}; expected the image as (H, W, 3) "
            "uint8. Save the image with the outputs."
        )
    image = np.asarray(outputs["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"The entry 'image' of the reference outputs is {image.dtype} {image.shape}; expected uint8 RGB (height, "
            "width, 3). Save the image before normalisation."
        )
    torchvision = SOURCES[source].background_first
    report = []
    for name, ours in _network_outputs(model, image).items():
        if name not in outputs:
            continue
        theirs = _without_batch(outputs[name], ours.ndim)
        if name == "class_logits" and torchvision and theirs.ndim == ours.ndim:
            has_background = ours.shape[1] > model.num_classes  # the last column, which only SSD has
            theirs = np.roll(theirs, -1, 1) if has_background else theirs[:, 1:]
        if theirs.shape != ours.shape:
            raise UserError(
                f"The entry {name!r} of the reference outputs has shape {theirs.shape}, but the model computes "
                f"{ours.shape}. Save the outputs for this image at the framework's own size."
            )
        difference = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))
        report.append((name, difference, difference <= TENSOR_TOLERANCE))
    if {"boxes", "scores", "labels"} <= set(outputs):
        missed = _missed_fraction(model.detect(image), _detections(outputs), first_label=int(torchvision))
        report.append(("detections", missed, 1 - missed >= MIN_MATCHED_FRACTION))
    if not report:
        raise UserError(
            f"The reference outputs have no entry to compare, only {', '.join(outputs)}; expected levels (p3, ...), "
            "class_logits, box_deltas, box_distances, centerness, or boxes with scores and labels. Save at least one "
            "of these."
        )
    return report


def _network_outputs(model, image):
    """Returns the pyramid and the outputs of a dense head in torch's layout, by the names of `verify`."""
    batch = model.preprocessing.batch([image])
    inputs = model.preprocessing.network_input(batch["image"], batch["image_size"])
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
    """Removes a batch axis of length 1 from an array if it has more than `rank` axes."""
    value = np.asarray(value)
    return value[0] if value.ndim == rank + 1 and len(value) == 1 else value


def _detections(outputs):
    """Returns the source's boxes (D, 4), scores (D,) and labels (D,)."""
    found = {name: _without_batch(outputs[name], rank) for name, rank in (("boxes", 2), ("scores", 1), ("labels", 1))}
    count = len(found["scores"]) if found["scores"].ndim == 1 else -1
    if [x.shape for x in found.values()] != [(count, 4), (count,), (count,)]:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in found.items())
        raise UserError(
            f"The reference outputs have {shapes}; expected boxes (D, 4), scores (D,) and labels (D,). Save the "
            "detections of one image."
        )
    return found


def _missed_fraction(detections, theirs, first_label):
    """Returns the fraction of the source's detections that the model does not find."""
    labels = detections.class_ids + first_label
    free = np.ones(len(detections), bool)
    missed = 0
    for box, score, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
        same = free & (labels == label) & (np.abs(detections.scores - score) <= MAX_SCORE_DIFFERENCE)
        same &= np.abs(detections.xyxy - box).max(1, initial=0) <= MAX_BOX_DIFFERENCE
        if same.any():
            free[same.argmax()] = False
        else:
            missed += 1
    return missed / max(len(theirs["boxes"]), 1)
