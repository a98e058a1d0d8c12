"""Fine-tuning keeps the weights of classes with the names of the old model."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from models import models

from kerasdet import loading
from kerasdet.training.class_weights import class_weights, keep_shared_classes

OLD, NEW = ("cat", "person", "dog"), ("truck", "dog", "person", "N/A")
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3)).astype(np.float32)


def outputs_by_class(model):
    """Returns what a model predicts for each class name: all numbers of a fixed image."""
    outputs = model(IMAGE)
    if "roi_valid" in outputs:
        features = tf.constant(np.random.default_rng(1).normal(size=(1, 4, 64)), tf.float32)
        predictor, mask_head = model.roi_heads.box_predictor, model.branches[0].head
        logits, deltas = predictor.class_logits(features), predictor.box_deltas(features)
        masks = mask_head.mask_logits(features[..., None, :32])
        parts = ((logits, 1), (deltas, 4), (masks, 1))
        found = {name: [x[..., n * i : n * i + n] for x, n in parts] for i, name in enumerate(model.class_names)}
        return {**found, "background": [logits[..., -1]]}
    logits = tf.concat(list(outputs["class_logits"].values()), 1)
    found = {name: [logits[..., i]] for i, name in enumerate(model.class_names)}
    return {**found, "background": [logits[..., -1]]} if model.has_background else found


@pytest.mark.parametrize("name", ["retinanet", "ssd", "mask_rcnn"])
def test_shared_classes_predict_as_before(name, tmp_path, caplog):
    old = models.randomized(getattr(models, name)())
    old.class_names = OLD
    old.save(tmp_path / "model.keras")
    tuned = loading.pretrained(tmp_path / "model.keras", num_classes=len(NEW))
    with caplog.at_level(logging.INFO, "kerasdet"):
        keep_shared_classes(tuned, NEW, tuned.pretrained_classes)
    tuned.class_names = NEW
    [message] = [record.getMessage() for record in caplog.records if "are copied" in record.getMessage()]
    assert message.endswith("matched by name: dog, person. Classes that start with random weights: truck, N/A.")
    before, after = outputs_by_class(old), outputs_by_class(tuned)
    for shared in {*before} & {*after}:
        for x, y in zip(before[shared], after[shared], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    assert {*before} & {*after} >= {"dog", "person"}
    assert np.abs(np.subtract(after["truck"][0], before["cat"][0])).max() > 1e-2


def test_same_number_of_classes_follow_their_names(caplog):
    old = models.randomized(models.retinanet())
    old.class_names = OLD
    kernel = next(v for v in old.variables if "/class_logits/" in v.path and v.name == "kernel")
    before = kernel.numpy().reshape(-1, 3)
    weights = class_weights(old, "the old model")
    keep_shared_classes(old, ("dog", "cat", "person"), weights)
    np.testing.assert_array_equal(kernel.numpy().reshape(-1, 3), before[:, [2, 0, 1]])
    with caplog.at_level(logging.INFO, "kerasdet"):
        keep_shared_classes(old, ("cat", "dog", "bus"), weights)
    assert caplog.messages[-1].endswith("Classes that start with the weights of other classes: bus.")
    np.testing.assert_array_equal(kernel.numpy().reshape(-1, 3)[:, :2], before[:, [0, 2]])


def test_models_without_class_names_keep_nothing():
    assert class_weights(models.retinanet(), "a model") is None
