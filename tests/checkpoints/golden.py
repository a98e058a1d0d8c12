"""Loads reference checkpoints and the outputs of their frameworks, and compares detections."""

import dataclasses
import importlib.util
import json
import re

import numpy as np
from conftest import shared

from kerasdet.checkpoints import SOURCES

XYXY = [1, 0, 3, 2]  # from yxyx to xyxy, and back


def weights():
    """Imports the module that makes reference weights and images."""
    spec = importlib.util.spec_from_file_location("weights", shared("reference/reference_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout(name):
    """Loads names and shapes of a reference checkpoint."""
    return json.loads(shared(f"reference/{_folder(name)}/{name}.layout.json").read_text())


def shallow_layout(name):
    """Loads the layout of a reference without the blocks after the first of each stage, for `shallow_sources`."""
    return {key: shape for key, shape in layout(name).items() if not re.search(r"(layer|res)\d\.[1-9]", key)}


def shallow_sources():
    """Makes sources with one block per stage (two in c4 of the deeper ResNets), which build in a third of the time."""
    found = {}
    for name, source in SOURCES.items():
        stages = (1, 1, 1, 1) if source.backbone.get("depth", 50) <= 50 else (1, 1, 2, 1)
        found[name] = dataclasses.replace(source, backbone={**source.backbone, "stages": stages})
    return found


def state(name):
    """Makes the tensors of a reference checkpoint; those of caffe models have a scaled first convolution."""
    return weights().state_dict(layout(name), caffe="caffe" in name)


def outputs(name):
    """Loads the outputs of the framework for a reference checkpoint."""
    return dict(np.load(shared(f"reference/{_folder(name)}/{name}.npz")))


def border_cases(name):
    """Loads mmdetection's answers for harder batches, or an empty dict for models without these."""
    path = shared(f"reference/{_folder(name)}/cases") / f"{name}.npz"
    return dict(np.load(path)) if path.exists() else {}


def _folder(name):
    if name.startswith("mmdet_rtmdet"):
        return "rtmdet"
    return "mmdet" if name.startswith("mmdet") else "models"


def constants(shapes):
    """Makes a state whose i-th tensor is filled with the number i, from 1."""
    return {name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(shapes.items(), 1)}


def numbers(*layers):
    """Returns the number that fills each variable of the layers, in the order of the variables."""
    found = []
    for layer in layers:
        for variable in layer.variables:
            value = variable.numpy()
            assert value.min() == value.max(), f"{variable.path} mixes several tensors."
            found.append(int(value.min()))
    return found


def detections(result, index, first_label=0):
    """Returns the detections of one image in the form of the references: xyxy boxes and labels."""
    count = int(result["valid"][index])
    boxes, scores, class_ids = (np.asarray(result[name])[index, :count] for name in ("boxes", "scores", "class_ids"))
    return {"boxes": boxes[:, XYXY], "scores": scores, "labels": class_ids + first_label}


def unpadded(detections, first_label=0):
    """The `Detections` of one image in the form of the references."""
    return {
        "boxes": detections.xyxy,
        "scores": detections.scores,
        "labels": detections.class_ids + first_label,
    }


def expected_detections(golden, prefix):
    """Returns the detections of a reference."""
    return {name: golden[f"{prefix}_{name}"] for name in ("boxes", "scores", "labels")}


def matched(found, expected, pixels, score):
    """Counts expected detections with a found one of equal label, and box and score within limits; uses each once."""
    free = np.ones(len(found["scores"]), bool)
    count = 0
    for box, expected_score, label in zip(*expected.values(), strict=True):
        same = free & (found["labels"] == label) & (np.abs(found["scores"] - expected_score) <= score)
        same &= np.abs(found["boxes"] - box).max(-1, initial=0) <= pixels
        if same.any():
            free[np.flatnonzero(same)[0]] = False
            count += 1
    return count


def relative(value, expected):
    """Returns the largest difference relative to the largest expected value."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / np.abs(expected).max()


def partners(found, expected):
    """Returns for each expected detection the found one of its class whose box is nearest."""
    distance = np.abs(found["boxes"][None] - expected["boxes"][:, None]).max(-1)
    return (distance + (found["labels"][None] != expected["labels"][:, None]) * 1e3).argmin(1)
