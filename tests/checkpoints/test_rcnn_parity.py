"""Compares converted R-CNNs with their frameworks: features, proposals, heads on fixed boxes, losses, detections."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden
from checkpoints.golden import XYXY
from pycocotools import mask as coco_mask

from kerasdet import ops
from kerasdet.checkpoints import SOURCES, to_model
from kerasdet.geometry import masks, rle
from kerasdet.models import RoIHeads

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimized_graphs")]

HEIGHT, WIDTH = 256, 320
EVERY_CANDIDATE = 10**6  # samples_per_image of the references

# name of the reference -> how it names the levels
LEVELS = {
    **dict.fromkeys(
        (
            "torchvision_fasterrcnn_resnet50_fpn",
            "torchvision_maskrcnn_resnet50_fpn",
            "torchvision_maskrcnn_resnet50_fpn_v2",
            "torchvision_keypointrcnn_resnet50_fpn",
        ),
        ("0", "1", "2", "3", "pool"),
    ),
    **dict.fromkeys(
        (
            "detectron2_faster_rcnn_R_50_FPN",
            "detectron2_mask_rcnn_R_50_FPN",
            "detectron2_mask_rcnn_R_50_FPN_dconv_c3-c5",
            "detectron2_keypoint_rcnn_R_50_FPN",
        ),
        ("p2", "p3", "p4", "p5", "p6"),
    ),
}
LOSSES = {
    "rpn_class_loss": ("objectness", "loss_rpn_cls"),
    "rpn_box_loss": ("rpn_box_reg", "loss_rpn_loc"),
    "class_loss": ("classifier", "loss_cls"),
    "box_loss": ("box_reg", "loss_box_reg"),
    "mask_loss": ("mask", "loss_mask"),
    "keypoint_loss": ("keypoint", "loss_keypoint"),
}


@pytest.fixture(scope="module", params=LEVELS)
def case(request):
    """Name, model, its outputs for the reference's image, and the reference's outputs.

    Building a model takes most of the time, so all tests of a case share one.
    """
    name = request.param
    expected = golden.outputs(name)
    source = name.replace("_", "/", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, source, training_on_every_candidate(SOURCES[source]))
        model = to_model(golden.state(name), source)
    image = golden.weights().image(HEIGHT, WIDTH, seed=0)
    outputs = model({"image": tf.constant(image[None]), "image_size": tf.constant([[HEIGHT, WIDTH]])})
    return name, model, outputs, expected


def training_on_every_candidate(source):
    """Returns a source whose samplers, which only training has, take every candidate as those of the references did."""
    rpn = {**source.rpn, "sampler": {"samples_per_image": EVERY_CANDIDATE, "positive_fraction": 0.5}}
    roi_heads = {**source.roi_heads, "sampler": {"samples_per_image": EVERY_CANDIDATE, "positive_fraction": 0.25}}
    return dataclasses.replace(source, rpn=rpn, roi_heads=roi_heads)


def is_torchvision(name):
    return name.startswith("torchvision")


def test_features_and_proposals(case):
    name, _, outputs, expected = case
    for level, features in zip(LEVELS[name], outputs["pyramid"].values(), strict=True):
        found = features[0].numpy().transpose(2, 0, 1)[::16, ::2, ::2]
        assert golden.relative(found, expected[f"feature_{level}"]) < 1e-4
    rpn = outputs["rpn"]
    for index, level in enumerate(rpn["objectness"]):
        assert golden.relative(rpn["objectness"][level][0][::37], expected[f"rpn_logits_{index}"]) < 1e-4
        deltas = rpn["box_deltas"][level][0].numpy()[::37][:, XYXY]
        assert golden.relative(deltas, expected[f"rpn_deltas_{index}"]) < 1e-4
    anchors = np.concatenate(list(rpn["anchors"].values()))[::37][:, XYXY]
    np.testing.assert_allclose(anchors, expected["anchors"], atol=1e-4)
    rois = outputs["rois"][0].numpy()[outputs["roi_valid"][0].numpy()][:, XYXY]
    assert len(rois) == len(expected["proposals"])
    distance = np.abs(rois[:, None] - expected["proposals"][None]).max(-1)
    assert (distance.min(0) < 0.05).mean() >= 0.99


def test_proposal_network_detects_the_proposals():
    name = "detectron2_faster_rcnn_R_50_FPN"
    state = {key: value for key, value in golden.state(name).items() if not key.startswith("roi_heads.")}
    model = to_model(state, "detectron2/rpn_R_50_FPN")
    assert (model.rpn.proposals.post_nms_top_k, model.rpn.proposals.pre_nms_top_k) == (2000, 1000)
    image = golden.weights().image(HEIGHT, WIDTH, seed=0)
    found, expected = model.detect(image, resize=False), golden.outputs(name)["proposals"]
    assert len(found) >= len(expected) > 100
    distance = np.abs(found.xyxy[:, None] - expected[None]).max(-1)
    assert (distance.min(0) < 0.05).mean() >= 0.99


def test_heads_on_fixed_boxes(case):
    name, model, outputs, expected = case
    boxes = tf.constant(expected["fixed_boxes"][None][..., XYXY])
    heads = model.roi_heads
    pooled = heads.pool(outputs["pyramid"], boxes)
    assert golden.relative(pooled.numpy().transpose(0, 3, 1, 2)[:, ::16], expected["fixed_pooled"]) < 1e-4
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    background = int(is_torchvision(name))
    assert golden.relative(np.roll(logits, background, axis=1), expected["fixed_class_logits"]) < 1e-4
    deltas = deltas.numpy()[..., XYXY].reshape(len(boxes[0]), -1)
    assert golden.relative(deltas, expected["fixed_box_deltas"][:, 4 * background :]) < 1e-4
    for branch in model.branches:
        logits = branch(heads.pool(outputs["pyramid"], boxes[:, :10], branch)).numpy().transpose(0, 3, 1, 2)
        if branch.name == "mask_branch":  # the reference has every 10th class, torchvision's first is background
            found = logits[:, 10 - background :: 10] if background else logits[:, ::10]
            assert golden.relative(found, expected["fixed_mask_logits"][:, background:]) < 1e-4
        else:
            assert golden.relative(logits, expected["fixed_keypoint_logits"]) < 1e-4


def test_detections_match_the_source_framework(case):
    name, model, outputs, expected = case
    result = model.postprocess(outputs, tf.constant([[HEIGHT, WIDTH]]))
    found = golden.detections(result, 0, int(is_torchvision(name)))
    wanted = golden.expected_detections(expected, "detections")
    assert len(found["scores"]) == len(wanted["scores"]) == golden.matched(found, wanted, 0.05, 1e-4)
    partner = golden.partners(found, wanted)
    if "detections_mask_area" in expected:
        boxes, probs = result["boxes"][0], result["mask_probs"][0]
        pasted = ops.paste_masks(probs, boxes, HEIGHT, WIDTH, model.mask_convention).numpy()[: len(partner)][partner]
        np.testing.assert_allclose(pasted.sum((1, 2)), expected["detections_mask_area"], rtol=0.01)
        assert (pasted[:5] != expected["detections_masks_first5"]).mean() < 1e-3
    if "detections_keypoints" in expected:
        keypoints = result["keypoints"][0].numpy()[: len(partner)][partner]
        error = np.abs(keypoints[..., [1, 0]] - expected["detections_keypoints"][..., :2]).max(-1)
        # the heatmap is resized to the box's size rounded up: one box of 53.00006 pixels becomes 54 wide, not 53
        widths = np.stack(
            [wanted["boxes"][:, 2] - wanted["boxes"][:, 0], wanted["boxes"][:, 3] - wanted["boxes"][:, 1]]
        )
        on_edge = (np.abs(widths - np.round(widths)) < 2e-4).any(0)
        assert error[~on_edge].max() < 0.2 and on_edge.mean() < 0.05


def test_losses_match_the_source_framework(case, monkeypatch):
    name, model, _, expected = case
    for branch in model.branches:  # its batch norms are frozen here, and running them on all regions takes minutes
        monkeypatch.setattr(type(branch), "uses_batch_statistics", False)
    batch = loss_batch(model, expected)
    outputs = model.forward(batch, training=False)
    found = model.compute_losses(outputs, model.compute_targets(outputs, batch))
    for loss, value in found.items():
        theirs = LOSSES[loss][0 if is_torchvision(name) else 1]
        key = f"loss2_loss_{theirs}" if is_torchvision(name) else f"loss2_{theirs}"
        assert float(value) == pytest.approx(float(expected[key]), rel=0.02 if loss == "mask_loss" else 1e-3), loss


def loss_batch(model, expected):
    """The reference's image and its mirror image, with ground truth."""
    weights = golden.weights()
    image = weights.image(HEIGHT, WIDTH, seed=0)
    gt = [(expected[f"{p}_boxes"], expected[f"{p}_classes"]) for p in ("gt", "gt2")]
    count = len(gt[0][0])
    batch = {
        "image": np.stack([image, image[:, ::-1]]),
        "image_size": np.array([[HEIGHT, WIDTH]] * 2, np.int32),
        "boxes": np.zeros((2, count, 4), np.float32),
        "class_ids": np.full((2, count), -1, np.int32),
        "is_crowd": np.zeros((2, count), bool),
        "masks": np.zeros((2, count, 112, 112), np.uint8),
        "keypoints": np.zeros((2, count, 17, 3), np.float32),
    }
    for index, (boxes, classes) in enumerate(gt):
        rows = slice(len(boxes))
        batch["boxes"][index, rows] = boxes[:, XYXY]
        batch["class_ids"][index, rows] = np.minimum(classes, model.num_classes - 1)
        batch["keypoints"][index, rows] = weights.keypoints(boxes, 17, seed=0)[..., [1, 0, 2]]
        runs = [runs_of(mask) for mask in weights.ellipses(HEIGHT, WIDTH, boxes)]
        batch["masks"][index, rows] = masks.crops_from_runs(
            tf.constant(np.concatenate(runs)),
            tf.constant([len(r) for r in runs]),
            tf.constant(boxes[:, XYXY]),
            tf.constant([HEIGHT, WIDTH]),
        )
    return {key: tf.constant(value) for key, value in batch.items()}


def runs_of(mask):
    return rle.runs_from_segmentation(coco_mask.encode(np.asfortranarray(mask)), HEIGHT, WIDTH)


def test_detect_end_to_end(case, monkeypatch):
    """Compares boxes of all models, and masks and keypoints, which take most of the time, of two."""
    name, model, _, expected = case
    if name not in ("detectron2_mask_rcnn_R_50_FPN", "torchvision_keypointrcnn_resnet50_fpn"):
        monkeypatch.setattr(RoIHeads, "add_branch_outputs", lambda heads, detections, pyramid: detections)
    image = golden.weights().image
    results = model.detect([image(250, 333, 11), image(300, 200, 12)], resize=(320, 500))
    for index, result in enumerate(results):
        wanted = golden.expected_detections(expected, f"e2e_{index}")
        found = golden.unpadded(result, int(is_torchvision(name)))
        assert golden.matched(found, wanted, 0.05, 1e-4) == len(wanted["scores"])
        order = golden.partners(found, wanted)
        if result.mask_probs is not None:
            areas = coco_mask.area(result.encode_masks())[order]
            np.testing.assert_allclose(areas, expected[f"e2e_{index}_mask_area"], rtol=0.002, atol=2)
        if result.keypoints is not None:
            xy = expected[f"e2e_{index}_keypoints"][..., :2]
            np.testing.assert_allclose(result.keypoints[order][..., [1, 0]], xy, atol=1e-3)
