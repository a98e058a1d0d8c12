"""Tests R-CNNs with no, few, tiny and too many objects, in training and in inference."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from models.models import OBJECT_KEYS, batch, on_plain_features, randomized, without_objects
from models.test_contract import assert_contract, detections_of, inputs, losses, numpy

from kerasdet import ops
from kerasdet.geometry.sampling import BalancedSampler

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
RCNNS = (
    "proposal_network",
    "faster_rcnn",
    "mask_keypoint_rcnn",
)  # the last has the branches of Mask and Keypoint R-CNN
BOX_LOSSES = {"rpn_box_loss", "box_loss", "mask_loss", "keypoint_loss"}


@pytest.fixture(scope="module", params=RCNNS)
def make(request):
    return functools.partial(on_plain_features, request.param)


@pytest.fixture(scope="module")
def model(make):
    return randomized(make())


@pytest.fixture(scope="module")
def step(model):
    """Returns a graph function for any number of objects: batch -> losses, gradients, outputs and targets."""
    signature = {
        name: tf.TensorSpec(
            [value.shape[0], None, *value.shape[2:]] if name in OBJECT_KEYS else value.shape, value.dtype
        )
        for name, value in batch().items()
    }

    @tf.function(input_signature=[signature])
    def step(data):
        with tf.GradientTape() as tape:
            outputs = model.forward(data, training=True)
            targets = model.compute_targets(outputs, data)
            values = model.compute_losses(outputs, targets)
            total = tf.add_n(list(values.values()))
        return values, tape.gradient(total, [v.value for v in model.trainable_variables]), outputs, targets

    return step


def objects(boxes, class_ids=(0, 1, 2), is_crowd=False):
    """Makes `batch` with the same objects, `boxes` (M, 4), in both images."""
    data, count = batch(), len(boxes)
    boxes = np.stack([np.float32(boxes)] * 2)
    keypoints = np.stack([(boxes[..., :2] + boxes[..., 2:]) / 2] * 2, 2)  # (B, M, J, 2)
    return {
        **data,
        "boxes": boxes,
        "class_ids": np.int32([np.resize(class_ids, count)] * 2),
        "is_crowd": np.full((2, count), is_crowd),
        "masks": np.full((2, count, *data["masks"].shape[2:]), 255, np.uint8),
        "keypoints": np.concatenate([keypoints, np.full_like(keypoints[..., :1], 2)], -1),
    }


def half_empty():
    data, empty = batch(), without_objects(batch())
    return {name: np.concatenate([data[name][:1], empty[name][1:]]) for name in data}


def many(count=70):
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 60, (count, 2)), rng.uniform(4, 30, (count, 2))
    return objects(np.concatenate([low, np.minimum(low + size, (70, 100))], 1))


ONE_PIXEL = [[10, 10, 11, 11], [40, 90, 41, 91], [0, 0, 1, 1]]
LESS = [[10.2, 10.4, 10.5, 10.7], [40, 60, 40.3, 90], [69.7, 99.7, 70, 100]]
# Case -> function that makes the ground truth, and the losses that must be zero.
CASES = {
    "objects": (batch, set()),
    "no objects": (lambda: without_objects(batch()), BOX_LOSSES),
    "objects in half of the images": (half_empty, set()),
    "nothing but crowds": (lambda: objects(ONE_PIXEL, is_crowd=True), BOX_LOSSES),
    "no rows": (lambda: objects(np.zeros([0, 4])), BOX_LOSSES),
    "one pixel": (lambda: objects(ONE_PIXEL), set()),
    "less than a pixel": (lambda: objects(LESS), set()),
    "more objects than samples": (many, set()),
}


@pytest.mark.parametrize("case", CASES)
def test_training_step_handles_ground_truth(model, step, case):
    data, zero = CASES[case]
    data = data()
    values, gradients, outputs, targets = step({name: tf.constant(value) for name, value in data.items()})
    values = {name: float(value) for name, value in values.items()}
    assert all(np.isfinite(value) for value in values.values())
    assert {name for name, value in values.items() if value == 0} == zero & values.keys()
    for weight, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient).all(), weight.path
    if model.num_classes is not None:
        assert_meaning(model, values, numpy(outputs), numpy(targets))


def assert_meaning(model, values, outputs, targets):
    """Asserts that the sample has the right size, and that losses are means over sampled or positive regions."""
    positive, sampled = targets["positive"], targets["sampled"]
    assert (positive <= sampled).all() and sampled.sum(1).max() <= model.roi_heads.sampler.samples_per_image
    most = model.roi_heads.sampler.max_positives
    assert positive.sum(1).max() <= most and (np.diff(positive.astype(int), axis=1) <= 0).all()
    logits = outputs["class_logits"].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_probs, targets["class_ids"][..., None], -1)[..., 0]
    assert values["class_loss"] == pytest.approx(-own[sampled].mean(), rel=1e-4)
    if "mask_branch" in targets:
        first = positive[:, : len(outputs["mask_branch"]) // len(positive)]
        assert first.sum() == positive.sum()
        logits = outputs["mask_branch"].reshape(*first.shape, *outputs["mask_branch"].shape[1:])[first]
        classes, masks = targets["mask_branch"]["class_ids"][first], targets["mask_branch"]["masks"][first]
        logits = np.stack([x[..., k] for x, k in zip(logits, classes, strict=True)]) if len(classes) else np.zeros(1)
        expected = (
            np.mean(np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - logits * masks) if len(classes) else 0
        )
        assert values["mask_loss"] == pytest.approx(expected, rel=1e-4)


def test_more_objects_than_samples_fill_the_positive_quota(model, step):
    if model.num_classes is None:
        pytest.skip("the model samples only anchors")
    _, _, _, targets = step({name: tf.constant(value) for name, value in many().items()})
    positive, sampled = targets["positive"].numpy(), targets["sampled"].numpy()
    sampler = model.roi_heads.sampler
    assert (positive.sum(1) == sampler.max_positives).all()
    assert (sampled.sum(1) == sampler.samples_per_image).all()


def gradients_are_finite(model, data):
    with tf.GradientTape() as tape:
        outputs = model.forward(data, training=True)
        values = model.compute_losses(outputs, model.compute_targets(outputs, data))
        total = tf.add_n(list(values.values()))
    assert all(np.isfinite(value) for value in values.values())
    gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
    assert all(gradient is None or np.isfinite(gradient).all() for gradient in gradients)
    return numpy(values)


@pytest.fixture(params=["too small", "outside the image"])
def no_proposals(request, model, monkeypatch):
    if request.param == "too small":
        monkeypatch.setattr(model.rpn.proposals, "min_size", 1e4)
        yield
        return
    bias = model.rpn.head.box_deltas.conv.bias
    bias.assign(np.resize([-100.0, 0, 0, 0], bias.shape))  # shifted up by a hundred heights
    yield
    bias.assign(np.zeros(bias.shape))


def test_training_without_proposals_is_finite(model, no_proposals):
    values = gradients_are_finite(model, batch())
    assert all(value > 0 for value in values.values())  # the ground truth is among the regions
    values = gradients_are_finite(model, without_objects(batch()))
    zero = {name for name, value in values.items() if value == 0}
    assert zero == (BOX_LOSSES | {"class_loss"}) & values.keys()


def test_inference_without_proposals_finds_nothing(model, no_proposals):
    detections = detections_of(model, batch())
    assert_contract(detections, batch()["image_size"], model)
    assert not detections["valid"].any()
    if "mask_probs" in detections:
        for count in (0, model.postprocessing.max_detections):
            boxes = np.zeros((count, 4), np.float32)
            masks = ops.paste_masks(detections["mask_probs"][0, :count], boxes, 96, 100, model.mask_convention)
            assert masks.shape == (count, 96, 100) and not masks.numpy().any()
    found = model.predict_on_batch(inputs(batch()))
    assert not found["valid"].any()


@pytest.mark.parametrize(("samples", "fraction"), [(1, 0.5), (3, 0.3)])
def test_sampler_without_room_for_positives_raises(samples, fraction):
    with pytest.raises(
        ValueError,
        match=rf"samples_per_image={samples} with positive_fraction={fraction} leaves no room for positives",
    ):
        BalancedSampler(samples, fraction)


def test_inference_handles_boxes_below_one_pixel(model):
    """Detections of boxes below one pixel satisfy the contract, including masks and keypoints."""
    if model.num_classes is None:
        bias, shrink = model.rpn.head.box_deltas.conv.bias, np.log(1 / 512)
    else:
        bias, shrink = model.roi_heads.box_predictor.box_deltas.bias, 5 * np.log(1 / 64)
    bias.assign(np.resize([0, 0, shrink, shrink], bias.shape))
    detections = detections_of(model, batch())
    bias.assign(np.zeros(bias.shape))
    assert_contract(detections, batch()["image_size"], model)
    assert (detections["valid"] > 2).all()
    boxes = detections["boxes"][0, : detections["valid"][0]]
    assert ((boxes[:, 2:] - boxes[:, :2]).max(1) < 1.5).sum() > 2
    if "mask_probs" in detections:
        probs, boxes = detections["mask_probs"][0], detections["boxes"][0]
        masks = ops.paste_masks(probs, boxes, 96, 100, model.mask_convention).numpy()
        assert masks.sum((1, 2)).max() <= 6**2


def test_images_smaller_than_a_stride_are_handled(model):
    """A level of one cell has fewer anchors than top-k selects."""
    data = batch(size=(32, 32), image_size=((32, 32), (5, 7)))
    data["boxes"] = np.minimum(data["boxes"], np.tile(data["image_size"], 2)[:, None]).astype(np.float32)
    empty = (data["boxes"][..., 2:] <= data["boxes"][..., :2]).any(-1)
    data["class_ids"] = np.where(empty, -1, data["class_ids"]).astype(np.int32)
    assert_contract(detections_of(model, data), data["image_size"], model)
    assert all(np.isfinite(value) for value in losses(model, data).values())
