"""Reference checkpoints, what their frameworks made of them, and how detections are compared."""

import importlib.util
import json

import numpy as np
from conftest import shared

XYXY = [1, 0, 3, 2]  # from yxyx to xyxy, and back


def weights():
    """The module that makes reference weights and images."""
    spec = importlib.util.spec_from_file_location("weights", shared("reference/reference_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout(name):
    """Names and shapes of a reference checkpoint."""
    return json.loads(shared(f"reference/models/{name}.layout.json").read_text())


def state(name):
    """The tensors of a reference checkpoint."""
    return weights().state_dict(layout(name))


def outputs(name):
    """What its framework made of it."""
    return dict(np.load(shared(f"reference/models/{name}.npz")))


def constants(shapes):
    """A state in which every tensor is full of a number of its own, from 1 on."""
    return {name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(shapes.items(), 1)}


def numbers(*layers):
    """The number in each variable of layers, which must be full of it, in the order of the variables."""
    found = []
    for layer in layers:
        for variable in layer.variables:
            value = variable.numpy()
            assert value.min() == value.max(), f"{variable.path} holds more than one tensor"
            found.append(int(value.min()))
    return found


def detections(result, index, first_label=0):
    """The detections of one image, in the form in which the references have them."""
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
    """The detections of a reference."""
    return {name: golden[f"{prefix}_{name}"] for name in ("boxes", "scores", "labels")}


def matched(found, expected, pixels, score):
    """How many of the expected detections are found, each another one: same label, corners and score this close."""
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
    """The largest difference as a share of the largest expected value."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / np.abs(expected).max()
