"""The options of the R-CNNs, each against what it is said to do."""

import json

import numpy as np
import pytest
import tensorflow as tf
from models.models import (
    batch,
    faster_rcnn,
    mask_branch,
    mask_keypoint_rcnn,
    mask_rcnn,
    proposal_network,
    randomized,
    rpn,
)
from models.test_contract import assert_same, detections_of, inputs, losses, numpy
from PIL import Image

from kerasdet import ops
from kerasdet.data import CocoDataset, ResizeShortestEdge
from kerasdet.data.pipeline import training_batches
from kerasdet.layers import BoxHead
from kerasdet.layers.heads import RPNHead
from kerasdet.models import RPN
from kerasdet.ops import roi_pool

# -- branches that share the box head's features


def test_a_branch_shares_the_features_of_the_box_head(monkeypatch):
    """It predicts what one with the same size of its own would, and nothing is pooled twice in training."""
    calls = []
    align = ops.multilevel_roi_align
    monkeypatch.setattr(ops, "multilevel_roi_align", lambda *args, **kw: calls.append(kw) or align(*args, **kw))
    shared = randomized(mask_rcnn(branches=[mask_branch(pool_size=None)]))
    own = randomized(mask_rcnn(branches=[mask_branch(pool_size=7)]))
    assert_same(losses(shared, batch()), losses(own, batch()))
    assert len(calls) == 1 + 2
    assert_same(detections_of(shared, batch()), detections_of(own, batch()))


def test_masks_are_twice_as_large_as_what_is_shared():
    model = mask_rcnn(branches=[mask_branch(pool_size=None)], pool_size=5)
    assert detections_of(model, batch())["mask_probs"].shape[2:] == (10, 10)
    assert all(np.isfinite(value) for value in losses(model, batch()).values())


def test_branches_learn_from_no_more_regions_than_there_may_be_positive_ones():
    model, data = randomized(mask_rcnn(samples_per_image=256)), batch()
    outputs = model(data, ground_truth=data)
    positive = (outputs["matched_gt"].numpy() >= 0).sum(1)
    each = len(outputs["mask_branch"]) // len(positive)
    most = min(64, outputs["rois"].shape[1])
    assert positive.max() <= each < positive.max() + 8 < most
    few = losses(model, data)["mask_loss"]
    with ops.implementation("tflite"):  # which has static shapes
        assert len(model(data, ground_truth=data)["mask_branch"]) == most * len(positive)
        np.testing.assert_allclose(losses(model, data)["mask_loss"], few, rtol=1e-6)


def test_a_model_without_masks_pastes_none():
    with pytest.raises(ValueError, match="This FasterRCNN finds no masks: give it a MaskBranch"):
        faster_rcnn().paste_masks(np.zeros([1, 14, 14]), np.zeros([1, 4]), 10, 10)


# -- pooling


def test_roi_pool_takes_each_region_from_its_level(rng):
    model = faster_rcnn(pooler="roi_pool")
    sides = [4, 100, 130, 250, 440, 460, 900]
    rois = np.float32([[[10, 20, 10 + side, 20 + side] for side in sides]] * 2)
    pyramid = {
        f"p{level}": rng.normal(size=(2, 512 >> level, 1024 >> level, 32)).astype(np.float32) for level in range(2, 7)
    }
    pooled = model._pool(pyramid, tf.constant(rois), 7).numpy().reshape(2, len(sides), 7, 7, 32)
    for i, side in enumerate(sides):
        level = min(max(int(np.floor(4 + np.log2(side / 224))), 2), 5)
        alone = roi_pool(pyramid[f"p{level}"], rois[:, i : i + 1], output_size=7, spatial_scale=2.0**-level)
        np.testing.assert_array_equal(pooled[:, i], alone[:, 0])


def test_a_model_with_roi_pool():
    model = randomized(mask_keypoint_rcnn(pooler="roi_pool"))
    assert type(model).from_config(model.get_config()).pooler == "roi_pool"
    with tf.GradientTape() as tape:
        outputs = model.forward(batch(), training=True)
        values = model.compute_losses(outputs, model.compute_targets(outputs, batch()))
        total = values["class_loss"] + values["mask_loss"] + values["keypoint_loss"]
    gradient = tape.gradient(total, model.neck.outputs[0].conv.kernel.value)
    assert np.isfinite(gradient).all() and np.any(gradient)
    found, aligned = detections_of(model, batch()), detections_of(randomized(mask_keypoint_rcnn()), batch())
    assert (found["valid"] > 0).all() and not np.array_equal(found["scores"], aligned["scores"])
    with pytest.raises(ValueError, match="no pooler 'roi_crop': choose 'roi_align' or 'roi_pool'"):
        faster_rcnn(pooler="roi_crop")


# -- heads


@pytest.mark.parametrize("norm", ["bn", "gn", None])
def test_a_box_head_of_convolutions(norm, rng):
    """Four 3x3 convolutions with a norm and one fully connected layer, as in torchvision's v2 and in mmdetection."""
    head = BoxHead(4, 32, 1, 24, norm)
    head.build((None, 7, 7, 16))
    assert head.out_channels == 24
    assert sum(w.name == "bias" for w in head.weights) == 1 + 4 * (norm is None)
    for weight in head.weights:
        weight.assign(
            rng.uniform(0.1, 0.5, weight.shape) * (1 if weight.name != "kernel" else rng.normal(size=weight.shape))
        )
    x = rng.normal(size=(3, 7, 7, 16)).astype(np.float32)
    y = x
    for conv in head.convs:
        y = tf.nn.conv2d(y, conv.conv.kernel, 1, "SAME")
        y = y + conv.conv.bias if norm is None else conv.norm(y)
        y = tf.nn.relu(y)
    [fc] = head.fcs
    expected = np.maximum(y.numpy().reshape(3, -1) @ fc.kernel.numpy() + fc.bias.numpy(), 0)
    np.testing.assert_allclose(head(x), expected, rtol=1e-3, atol=1e-3)
    if norm == "bn":
        before = head.convs[0].norm.moving_mean.numpy()
        head(x, training=True)
        assert not np.array_equal(head.convs[0].norm.moving_mean, before)


def test_a_model_with_a_box_head_of_convolutions():
    model = randomized(faster_rcnn(box_head=BoxHead(2, 16, 1, 32, "bn")))
    clone = type(model).from_config(model.get_config())
    clone.set_weights(model.get_weights())
    assert_same(numpy(clone(inputs(batch()))), numpy(model(inputs(batch()))), rtol=0, atol=0)
    weights = [v.value for v in model.box_head.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = model.forward(batch(), training=True)
        total = model.compute_losses(outputs, model.compute_targets(outputs, batch()))["class_loss"]
    assert all(np.any(gradient) for gradient in tape.gradient(total, weights))


@pytest.mark.parametrize("num_convs", [0, 1, 2])
def test_an_rpn_head_sees_a_cell_further_with_each_convolution(num_convs, rng):
    head = RPNHead(3, num_convs, 8)
    head.build((None, None, None, 8))
    assert len(head.weights) == 2 * (num_convs + 2)
    for weight in head.weights:
        weight.assign(np.abs(rng.normal(size=weight.shape)))  # so that no relu hides a change
    x = rng.uniform(0.1, 1, (1, 9, 11, 8)).astype(np.float32)
    changed = x.copy()
    changed[0, 4, 5] += 1
    expected = np.zeros((9, 11, 3), bool)
    expected[4 - num_convs : 5 + num_convs, 5 - num_convs : 6 + num_convs] = True
    before, after = head({"p3": x}), head({"p3": changed})
    np.testing.assert_array_equal(
        (before["objectness"]["p3"] != after["objectness"]["p3"]).numpy(), expected.reshape(1, -1)
    )
    moved = (before["box_deltas"]["p3"] != after["box_deltas"]["p3"]).numpy()
    np.testing.assert_array_equal(moved, np.repeat(expected.reshape(1, -1, 1), 4, -1))


@pytest.mark.parametrize("num_convs", [0, 2])
def test_a_model_with_another_rpn_head(num_convs):
    model = randomized(proposal_network(rpn=rpn(num_convs=num_convs)))
    clone = type(model).from_config(model.get_config())
    assert len(clone.rpn.head.convs) == num_convs and isinstance(clone.rpn, RPN)
    clone.set_weights(model.get_weights())
    assert_same(detections_of(clone, batch()), detections_of(model, batch()))
    assert (detections_of(model, batch())["valid"] > 2).all()
    assert all(np.isfinite(value) and value > 0 for value in losses(model, batch()).values())


def test_one_box_for_all_classes():
    model = randomized(faster_rcnn(class_agnostic=True))
    outputs = model(inputs(batch()))
    assert outputs["box_deltas"].shape[2:] == (1, 4) and outputs["class_logits"].shape[2:] == (4,)
    assert all(np.isfinite(value) and value > 0 for value in losses(model, batch()).values())
    found = detections_of(model, batch())
    boxes = {tuple(np.round(box, 3)) for box in found["boxes"][0, : found["valid"][0]]}
    assert (found["valid"] > 2).all() and len(boxes) < found["valid"][0]  # of several classes


# -- memory of the mask targets


def test_mask_targets_of_100_objects_take_1_25_megabytes_whatever_the_image_size(tmp_path, rng):
    """100 crops of 112x112 bytes; bitmaps of the larger image would be 107.5 MB."""
    memory = {}
    for height, width in ((200, 336), (800, 1344)):
        folder = tmp_path / f"{height}x{width}"
        (folder / "images").mkdir(parents=True)
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "images" / "1.png")
        annotations = []
        for number in range(1, 101):
            y, x = rng.uniform(0, 0.6, 2) * (height, width)
            h, w = rng.uniform(0.1, 0.4, 2) * (height, width)
            polygon = [x, y, x + w, y, x + w, y + h, x + w / 3, y + h / 2]
            annotations.append(
                {"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "segmentation": [polygon]}
            )
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": height, "width": width}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": annotations,
        }
        (folder / "annotations.json").write_text(json.dumps(content))
        dataset = CocoDataset(folder / "annotations.json", masks=True)
        [made] = training_batches(dataset, 1, [ResizeShortestEdge((height,), width)]).take(1)
        assert made["image"].shape == (1, -(-height // 32) * 32, -(-width // 32) * 32, 3)
        assert made["masks"].dtype == tf.uint8 and made["masks"].numpy().any((0, 2, 3)).all()
        memory[height] = made["masks"].numpy().nbytes
    assert memory == {200: 100 * 112 * 112, 800: 100 * 112 * 112}
    assert memory[800] == pytest.approx(1.25e6, rel=0.01)
