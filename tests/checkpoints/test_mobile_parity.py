"""Compares SSD, SSDLite and the mobile Faster R-CNNs with torchvision, by the file of make_torchvision_data.py."""

import json

import golden
import make_torchvision_data as reference
import numpy as np
import pytest
import tensorflow as tf

from kerasdet import checkpoints
from kerasdet.models import dense

XYXY = golden.XYXY


@pytest.fixture(scope="module")
def weights():
    return golden.weights()


@pytest.fixture(scope="module", params=reference.NAMES)
def case(request, weights):
    """Returns a converted model, torchvision's outputs, and a batch of the two images."""
    with np.load(reference.FILE) as file:
        expected = {key.partition("/")[2]: file[key] for key in file.files if key.startswith(f"{request.param}/")}
    state = reference.state(weights, json.loads(str(expected["layout"])))
    model = checkpoints.to_model(state, f"torchvision/{request.param}")
    return model, expected, model.preprocessing.batch(reference.images(weights))


def test_features_equal_torchvision(case):
    model, expected, batch = case
    normalized = model.preprocessing.normalize(batch["image"], batch["image_size"])
    pyramid = model.neck(model.backbone(normalized, training=False), training=False)
    for index, x in enumerate(pyramid.values()):
        x = reference.thin_map(x.numpy().transpose(0, 3, 1, 2))
        # The sums of depthwise convolutions round to 1.02e-4 with AVX-512, and to less than 1e-4 without
        assert golden.relative(x, expected[f"feature_{index}"]) < 2e-4
    assert f"feature_{len(pyramid)}" not in expected


def test_predictions_before_nms_equal_torchvision(case):
    model, expected, batch = case
    outputs = model(batch, training=False)
    if "logits" in expected:
        logits, deltas = (dense.all_levels(outputs, name).numpy() for name in ("class_logits", "box_deltas"))
        assert golden.relative(np.roll(reference.thin_rows(logits), 1, -1), expected["logits"]) < 2e-4
        assert golden.relative(reference.thin_rows(deltas)[..., XYXY], expected["deltas"]) < 2e-4
        anchors = dense.all_levels(outputs, "anchors").numpy()[::97, XYXY]
        np.testing.assert_allclose(anchors, expected["anchors"], atol=1e-4)
        return
    counts = outputs["roi_valid"].numpy().sum(1)
    np.testing.assert_allclose(counts, expected["proposal_counts"], atol=1)
    for index, boxes in enumerate(outputs["rois"].numpy()):
        wanted = expected[f"proposals_{index}"]
        distance = np.abs(boxes[None, : counts[index], XYXY] - wanted[:, None]).max(-1).min(1)
        assert np.mean(distance < 0.05) >= 0.99


def test_detections_equal_torchvision(case, weights):
    model, expected, _ = case
    for index, found in enumerate(model.detect(reference.images(weights), batch_size=2)):
        wanted = golden.expected_detections(expected, f"e2e_{index}")
        count = golden.matched(golden.unpadded(found, first_label=1), wanted, pixels=0.05, score=1e-4)
        assert count == len(found) == len(wanted["scores"])


def test_losses_equal_torchvision(case, weights):
    model, expected, batch = case
    data = {**batch, "boxes": np.zeros((2, 9, 4), np.float32), "class_ids": np.full((2, 9), -1, np.int32)}
    scale = (batch["image_size"] / batch["original_size"]).numpy().astype(np.float32)
    for index, (boxes, class_ids) in enumerate(reference.targets(weights)):
        data["boxes"][index, : len(boxes)] = boxes[:, XYXY] * np.tile(scale[index], 2)
        data["class_ids"][index, : len(boxes)] = class_ids
    data["is_crowd"] = data["class_ids"] < -1
    if hasattr(model, "rpn"):  # torchvision's samplers took every candidate
        model.rpn.sampler.samples_per_image = model.roi_heads.sampler.samples_per_image = 10**6
    data = {name: tf.convert_to_tensor(value) for name, value in data.items()}
    outputs = model.forward(data, training=False)
    losses = model.compute_losses(outputs, model.compute_targets(outputs, data))
    theirs = {
        "class_loss": "classification" if "loss_classification" in expected else "classifier",
        "box_loss": "bbox_regression" if "loss_classification" in expected else "box_reg",
        "rpn_class_loss": "objectness",
        "rpn_box_loss": "rpn_box_reg",
    }
    for name, value in losses.items():
        np.testing.assert_allclose(value, expected[f"loss_{theirs[name]}"], rtol=1e-3, err_msg=name)
