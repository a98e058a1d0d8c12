import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet import losses
from kerasdet.geometry.coders import DeltaCoder

YXYX = [1, 0, 3, 2]
BOX_LOSSES = {"giou": losses.giou, "diou": losses.diou, "ciou": losses.ciou}


def value_and_gradient(loss, predictions, *args, **kwargs):
    predictions = tf.constant(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        value = loss(predictions, *args, **kwargs)
    assert value.shape == () and value.dtype == tf.float32
    return value.numpy(), tape.gradient(value, predictions).numpy()


def golden(prefix):
    with np.load(shared("reference/losses.npz")) as file:
        return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


@pytest.mark.parametrize("alpha,gamma", [(0.25, 2.0), (0.25, 1.5), (-1, 2.0)])
def test_focal_equals_fvcore(alpha, gamma):
    case = golden(f"focal_a{alpha}_g{gamma}_")
    value, gradient = value_and_gradient(losses.focal, case["logits"], case["targets"], alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(value, case["sum"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["grad"], rtol=1e-4, atol=1e-6)


def test_focal_equals_a_hand_computed_case():
    p = 0.9
    logit = np.float32([[np.log(p / (1 - p))] * 2])
    value = losses.focal(logit, tf.constant([[1.0, 0]]), alpha=0.25, gamma=2.0)
    assert float(value) == pytest.approx(-0.25 * 0.1**2 * np.log(0.9) - 0.75 * 0.9**2 * np.log(0.1), rel=1e-5)


def test_focal_without_gamma_and_alpha_is_cross_entropy(rng):
    logits, targets = rng.normal(size=(9, 5)), rng.integers(0, 2, (9, 5))
    p = 1 / (1 + np.exp(-logits))
    expected = -np.sum(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    value = losses.focal(np.float32(logits), np.float32(targets), alpha=-1, gamma=0.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_focal_of_extreme_logits_is_finite(gamma):
    logits = np.float32([[-1000, -90, 0, 90, 1000]])
    for target in (0.0, 1.0):
        value, gradient = value_and_gradient(losses.focal, logits, tf.fill([1, 5], target), gamma=gamma)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("beta", ["0.000", "0.100", "0.111", "1.000"])
def test_smooth_l1_equals_fvcore(beta):
    case = golden(f"smooth_l1_b{beta}_")
    value, gradient = value_and_gradient(losses.smooth_l1, case["pred"], case["target"], beta=float(case["beta"]))
    np.testing.assert_allclose(value, case["sum"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["grad"], rtol=1e-4, atol=1e-6)


def test_smooth_l1_equals_a_hand_computed_case():
    errors = tf.constant([0.0, 0.25, -0.5, 2.0])
    assert float(losses.smooth_l1(errors, tf.zeros(4), beta=0.5)) == pytest.approx(0 + 0.0625 + 0.25 + 1.75)
    assert float(losses.smooth_l1(errors, tf.zeros(4), beta=0.0)) == pytest.approx(2.75)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses_equal_fvcore(name):
    case = golden(f"{name}_")
    predictions, targets = case["pred_xyxy"][:, YXYX], case["target_xyxy"][:, YXYX]
    value, gradient = value_and_gradient(BOX_LOSSES[name], predictions, targets)
    np.testing.assert_allclose(value, case["sum"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["grad"][:, YXYX], rtol=1e-3, atol=1e-6)


def test_giou_equals_torchvision():
    answers = json.loads(shared("reference/known_answers.json").read_text())["torchvision"]["giou_loss"]
    for name, expected in answers.items():
        if name.startswith("l"):
            pair = [np.float32([answers[f"b{digit}"]])[:, YXYX] for digit in name[1:]]
            assert float(losses.giou(*pair)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_weights_multiply_each_box_loss(rng, name):
    corner = rng.uniform(0, 30, (2, 8, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + 10], -1)
    predictions, targets = boxes[:1], boxes[1:]
    each = [float(BOX_LOSSES[name](predictions[0, i], targets[0, i])) for i in range(8)]
    weights = np.float32([[0, 1, 2, 0, 0.5, 0, 0, 3]])
    value = BOX_LOSSES[name](predictions, targets, weights)
    assert float(value) == pytest.approx(float(np.dot(each, weights[0])), rel=1e-5)


def test_zero_weight_removes_loss_and_gradient(rng):
    logits, targets = tf.constant(rng.normal(size=(2, 6, 3)), tf.float32), tf.zeros([2, 6, 3])
    weights = np.zeros([2, 6, 1], np.float32)
    weights[1, 2] = 1
    value, gradient = value_and_gradient(losses.focal, logits, targets, weights)
    assert value == pytest.approx(float(losses.focal(logits[1, 2], targets[1, 2])), rel=1e-6)
    assert np.count_nonzero(gradient.any(-1)) == 1
    value, gradient = value_and_gradient(losses.smooth_l1, logits, targets, weights, beta=0.1)
    assert value == pytest.approx(float(losses.smooth_l1(logits[1, 2], targets[1, 2], beta=0.1)), rel=1e-6)
    assert np.count_nonzero(gradient.any(-1)) == 1


@pytest.mark.parametrize("loss", [losses.focal, losses.smooth_l1, losses.iou, losses.centerness, *BOX_LOSSES.values()])
def test_loss_of_no_boxes_is_zero(loss):
    assert float(loss(tf.zeros([0, 4]), tf.zeros([0, 4]))) == 0


def test_iou_equals_a_hand_computed_case():
    boxes, targets = tf.constant([[0.0, 0, 4, 4], [0, 0, 4, 2]]), tf.constant([[0.0, 0, 4, 4], [0, 0, 4, 4]])
    weights = tf.constant([5.0, 3.0])
    assert float(losses.iou(boxes, targets, weights)) == pytest.approx(3 * np.log(2), rel=1e-5)
    assert float(losses.iou(boxes, targets, weights, linear=True)) == pytest.approx(3 * 0.5, rel=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_iou_loss_of_separate_boxes_is_bounded_without_gradient(linear):
    apart = np.float32([[0, 0, 4, 4]]), np.float32([[9, 9, 12, 12]])
    value, gradient = value_and_gradient(losses.iou, *apart, linear=linear)
    assert value == pytest.approx(1 if linear else 6 * np.log(10), rel=1e-5)
    assert not gradient.any()


def test_gradient_of_log_iou_is_gradient_of_iou_over_iou():
    boxes, targets = np.float32([[0, 0, 4, 3], [1, 2, 5, 9]]), np.float32([[1, 1, 5, 5], [0, 0, 4, 8]])
    overlap = 1 - np.array([float(losses.iou(b, t, linear=True)) for b, t in zip(boxes, targets, strict=True)])
    _, linear = value_and_gradient(losses.iou, boxes, targets, linear=True)
    _, logarithm = value_and_gradient(losses.iou, boxes, targets)
    np.testing.assert_allclose(logarithm, linear / overlap[:, None], rtol=1e-4)


def test_centerness_is_cross_entropy_with_soft_targets(rng):
    logits, targets, weights = rng.normal(size=(2, 9)), rng.random((2, 9)), rng.random((2, 9))
    p = 1 / (1 + np.exp(-logits))
    expected = -np.sum(weights * (targets * np.log(p) + (1 - targets) * np.log(1 - p)))
    value = losses.centerness(np.float32(logits), np.float32(targets), np.float32(weights))
    assert float(value) == pytest.approx(expected, rel=1e-5)


BOX_LOSS_PARTS = {
    "smooth_l1": (losses.SmoothL1Loss(0.5, weight=2.0), lambda p, t, boxes, gt, w: losses.smooth_l1(p, t, w, beta=0.5)),
    "iou": (losses.IoULoss(weight=2.0), lambda p, t, boxes, gt, w: losses.iou(boxes, gt, w[..., 0])),
    "linear_iou": (
        losses.IoULoss(linear=True, weight=2.0),
        lambda p, t, boxes, gt, w: losses.iou(boxes, gt, w[..., 0], linear=True),
    ),
    "giou": (losses.GIoULoss(weight=2.0), lambda p, t, boxes, gt, w: losses.giou(boxes, gt, w[..., 0])),
}


@pytest.mark.parametrize("part,function", BOX_LOSS_PARTS.values(), ids=BOX_LOSS_PARTS)
def test_box_loss_parts_take_the_same_arguments_and_equal_their_functions(rng, part, function):
    corner = rng.uniform(0, 30, (2, 8, 2)).astype(np.float32)
    anchors, gt = np.concatenate([corner, corner + rng.uniform(5, 20, (2, 8, 2))], -1).astype(np.float32)
    predictions, weights = rng.normal(0, 0.3, (8, 4)).astype(np.float32), rng.random(8).astype(np.float32)
    coder = DeltaCoder()
    expected = function(
        predictions, coder.encode(gt, anchors), coder.decode(predictions, anchors), gt, weights[:, None]
    )
    value = part(predictions, anchors, gt, weights, coder)
    assert float(value) == pytest.approx(2 * float(expected), rel=1e-5)


def test_focal_loss_part_equals_its_function(rng):
    logits, targets = rng.normal(size=(2, 5, 3)).astype(np.float32), np.float32(rng.random((2, 5, 3)) < 0.2)
    weights = rng.random((2, 5, 1)).astype(np.float32)
    expected = losses.focal(logits, targets, weights, alpha=0.3, gamma=1.5)
    value = losses.FocalLoss(0.3, 1.5, weight=2.0)(logits, targets, weights)
    assert float(value) == pytest.approx(2 * float(expected), rel=1e-5)
