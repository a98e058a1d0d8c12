"""Compares converted models of mmdetection with mmdetection 3.3.0: features to detections, losses and border cases."""

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden
from checkpoints.golden import XYXY
from checkpoints.test_rcnn_parity import runs_of, training_on_every_candidate
from pycocotools import mask as coco_mask

from kerasdet import ops
from kerasdet.checkpoints import SOURCES, to_model
from kerasdet.geometry import masks
from kerasdet.geometry.boxes import centers
from kerasdet.models import Detector

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
HEIGHT, WIDTH = 256, 320
SHORTEST, LONGEST = 320, 500

DENSE = (
    "mmdet_retinanet_r50_fpn",
    "mmdet_retinanet_r50_caffe_fpn",
    "mmdet_fcos_r50_caffe_fpn_gn-head",
    "mmdet_fcos_center_r50_caffe_fpn_gn-head",
    "mmdet_fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head",
    "mmdet_fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_dcn",
)
RCNN = ("mmdet_faster_rcnn_r50_fpn", "mmdet_mask_rcnn_r50_fpn", "mmdet_mask_rcnn_r50_caffe_fpn")
RCNN_CASES = [pytest.param(name, marks=pytest.mark.slow) for name in RCNN]
# our name of a loss -> mmdetection's without its "loss_"
LOSSES = {
    "rpn_class_loss": "rpn_cls",
    "rpn_box_loss": "rpn_bbox",
    "class_loss": "cls",
    "box_loss": "bbox",
    "centerness_loss": "centerness",
    "mask_loss": "mask",
}
TOLERANCES = dict.fromkeys(DENSE, 1e-4) | dict.fromkeys(RCNN, 1e-3)  # of losses, as for the other frameworks
MASK_LOSS_TOLERANCE = 0.02  # fixed-size instance crops stand for full-size bitmaps


@dataclass
class Case:
    """A converted model, its outputs for the reference's image, mmdetection's answers and those to border cases."""

    name: str
    model: Detector
    image: np.ndarray
    outputs: dict
    golden: dict
    border: dict

    def ground_truth(self, prefix):
        """Boxes (M, 4) xyxy and class ids (M,) of an image; none for None."""
        if prefix is None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        answers = self.golden if f"{prefix}_boxes" in self.golden else self.border
        return answers[f"{prefix}_boxes"], answers[f"{prefix}_classes"]

    def levels(self, name):
        """An output of each level, (R_l, ...), coordinates in the order of the reference."""
        outputs = self.outputs.get("rpn", self.outputs)
        for level, x in outputs[name].items():
            x = np.asarray(x).reshape(outputs["anchors"][level].shape[0], -1)
            yield x[:, XYXY] if x.shape[1] == 4 else x

    def features(self):
        """The levels of the pyramid, (H, W, C) each."""
        if "pyramid" in self.outputs:
            return [x[0].numpy() for x in self.outputs["pyramid"].values()]
        x = self.model.preprocessing.normalize(self.image[None], None)
        return [level[0].numpy() for level in self.model.neck(self.model.backbone(x)).values()]


def make_case(name):
    source = name.replace("_", "/", 1)
    with pytest.MonkeyPatch.context() as patch:
        if name in RCNN:
            patch.setitem(SOURCES, source, training_on_every_candidate(SOURCES[source]))
        model = to_model(golden.state(name), source)
    image = golden.weights().image(HEIGHT, WIDTH, seed=0)
    outputs = model({"image": tf.constant(image[None]), "image_size": tf.constant([[HEIGHT, WIDTH]])})
    return Case(name, model, image, outputs, golden.outputs(name), golden.border_cases(name))


@pytest.fixture(scope="module", params=[*DENSE, *RCNN_CASES])
def case(request):
    """Building the model takes most of the time of a test, so all tests of a model share one."""
    return make_case(request.param)


def only(names):
    """Runs a test for some of the models."""
    return pytest.mark.parametrize(
        "case", [pytest.param(name, marks=[pytest.mark.slow] if name in RCNN else []) for name in names], indirect=True
    )


# -- inference


def test_features(case):
    for index, x in enumerate(case.features()):
        assert golden.relative(x.transpose(2, 0, 1)[::16, ::2, ::2], case.golden[f"feature_{index}"]) < 1e-4


@only(DENSE)
def test_raw_heads_and_anchors(case):
    boxes = "box_distances" if "fcos" in case.name else "box_deltas"
    heads = {"class_logits": "logits", boxes: "deltas"} | ({"centerness": "centerness"} if "fcos" in case.name else {})
    for ours, theirs in heads.items():
        for index, x in enumerate(case.levels(ours)):
            assert golden.relative(x[::37], case.golden[f"head_{theirs}_{index}"]) < 1e-4, (theirs, index)
    anchors = np.concatenate(list(case.levels("anchors")))[::37]
    np.testing.assert_array_equal(anchors, case.golden["anchors"])
    if "fcos" in case.name:
        np.testing.assert_array_equal(centers(anchors), case.golden["points"])


@only(RCNN)
def test_proposals(case):
    for ours, theirs in (("objectness", "logits"), ("box_deltas", "deltas")):
        for index, x in enumerate(case.levels(ours)):
            expected = case.golden[f"rpn_{theirs}_{index}"]
            assert golden.relative(x[::37].reshape(expected.shape), expected) < 1e-4
    anchors = np.concatenate(list(case.levels("anchors")))[::37]
    np.testing.assert_allclose(anchors, case.golden["anchors"], atol=1e-4)
    rois = case.outputs["rois"][0].numpy()[case.outputs["roi_valid"][0].numpy()][:, XYXY]
    assert len(rois) == len(case.golden["proposals"])
    distance = np.abs(rois[:, None] - case.golden["proposals"][None]).max(-1)
    assert (distance.min(0) < 0.05).mean() >= 0.99


@only(RCNN)
def test_heads_on_fixed_boxes(case):
    boxes = tf.constant(case.golden["fixed_boxes"][None][..., XYXY])
    heads, pyramid = case.model.roi_heads, case.outputs["pyramid"]
    pooled = heads.pool(pyramid, boxes)
    assert golden.relative(pooled.numpy().transpose(0, 3, 1, 2)[:, ::16], case.golden["fixed_pooled"]) < 1e-4
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    assert golden.relative(logits, case.golden["fixed_class_logits"]) < 1e-4
    deltas = deltas.numpy()[..., XYXY].reshape(len(boxes[0]), -1)
    assert golden.relative(deltas, case.golden["fixed_box_deltas"]) < 1e-4
    for branch in case.model.branches:
        logits = branch(heads.pool(pyramid, boxes[:, :10], branch)).numpy().transpose(0, 3, 1, 2)[:, ::10]
        assert golden.relative(logits, case.golden["fixed_mask_logits"]) < 1e-4


def test_detections_match_one_to_one(case):
    result = case.model.postprocess(case.outputs, tf.constant([[HEIGHT, WIDTH]]))
    found, expected = golden.detections(result, 0), golden.expected_detections(case.golden, "detections")
    assert len(found["scores"]) == len(expected["scores"])
    assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])
    if "mask_probs" in result:
        partner = golden.partners(found, expected)
        boxes, probs = result["boxes"][0], result["mask_probs"][0]
        pasted = ops.paste_masks(probs, boxes, HEIGHT, WIDTH, case.model.mask_convention).numpy()[partner]
        np.testing.assert_allclose(pasted.sum((1, 2)), case.golden["detections_mask_area"], rtol=0.01)
        assert (pasted[:5] != case.golden["detections_masks_first5"]).mean() < 1e-3


def test_end_to_end(case):
    image = golden.weights().image
    results = case.model.detect([image(250, 333, 11), image(300, 200, 12)], resize=(SHORTEST, LONGEST))
    for index, result in enumerate(results):
        found, expected = golden.unpadded(result), golden.expected_detections(case.golden, f"e2e_{index}")
        assert len(found["scores"]) == len(expected["scores"])
        # The pixels are mmdetection's bit for bit, so that the tolerance is that of images which are not resized.
        assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])
        if f"e2e_{index}_mask_area" in case.golden:
            areas = coco_mask.area(result.encode_masks())[golden.partners(found, expected)]
            np.testing.assert_allclose(areas, case.golden[f"e2e_{index}_mask_area"], rtol=0.01, atol=2)


@only(["mmdet_retinanet_r50_fpn"])
def test_images_are_resized_bit_for_bit(case):
    image = golden.weights().image
    for index, pixels in enumerate([image(250, 333, 11), image(300, 200, 12)]):
        resized = case.model.preprocessing.resize(pixels, SHORTEST, LONGEST)
        np.testing.assert_array_equal(resized, case.golden[f"e2e_{index}_resized"])


# -- training


def loss_batch(case, images, ground_truth, sizes=None, crowds=()):
    """Makes a batch of images with their ground truth, a pair of boxes (M, 4) xyxy and class ids (M,) each.

    `crowds` (N, 4) xyxy are crowds of the first image.
    """
    count = max(len(classes) for _, classes in ground_truth) + len(crowds)
    batch = {
        "image": np.stack(images),
        "image_size": np.array(sizes or [[HEIGHT, WIDTH]] * len(images), np.int32),
        "boxes": np.zeros((len(images), count, 4), np.float32),
        "class_ids": np.full((len(images), count), -1, np.int32),
        "is_crowd": np.zeros((len(images), count), bool),
    }
    if case.model.branches:
        batch["masks"] = np.zeros((len(images), count, 112, 112), np.uint8)
    for index, (boxes, classes) in enumerate(ground_truth):
        rows = slice(len(boxes))
        batch["boxes"][index, rows] = boxes[:, XYXY]
        batch["class_ids"][index, rows] = classes
        if case.model.branches and len(boxes):
            runs = [runs_of(mask) for mask in golden.weights().ellipses(HEIGHT, WIDTH, boxes)]
            batch["masks"][index, rows] = masks.crops_from_runs(
                tf.constant(np.concatenate(runs)),
                tf.constant([len(r) for r in runs]),
                tf.constant(boxes[:, XYXY]),
                tf.constant([HEIGHT, WIDTH]),
            )
    if len(crowds):
        batch["boxes"][0, -len(crowds) :] = crowds[:, XYXY]
        batch["class_ids"][0, -len(crowds) :] = 0
        batch["is_crowd"][0, -len(crowds) :] = True
    return {key: tf.constant(value) for key, value in batch.items()}


def assert_losses(case, answers, prefix, batch):
    outputs = case.model.forward(batch, training=False)
    losses = case.model.compute_losses(outputs, case.model.compute_targets(outputs, batch))
    assert {key.removeprefix(prefix) for key in answers if key.startswith(prefix)} == {LOSSES[name] for name in losses}
    for name, value in losses.items():
        tolerance = MASK_LOSS_TOLERANCE if name == "mask_loss" else TOLERANCES[case.name]
        assert float(value) == pytest.approx(float(answers[prefix + LOSSES[name]]), rel=tolerance), name


def test_losses_of_one_image(case):
    assert_losses(case, case.golden, "loss_", loss_batch(case, [case.image], [case.ground_truth("gt")]))


def test_losses_of_a_batch(case):
    images = [case.image, case.image[:, ::-1]]
    batch = loss_batch(case, images, [case.ground_truth("gt"), case.ground_truth("gt2")])
    assert_losses(case, case.golden, "loss2_", batch)


WITH_BORDER_CASES = (
    "mmdet_retinanet_r50_fpn",
    "mmdet_fcos_r50_caffe_fpn_gn-head",
    "mmdet_faster_rcnn_r50_fpn",
    "mmdet_mask_rcnn_r50_fpn",
)


@only(WITH_BORDER_CASES)
def test_losses_of_a_batch_with_a_smaller_image(case):
    height, width = case.border["padded_size"]
    small = np.zeros_like(case.image)
    small[:height, :width] = case.image[:height, :width]
    ground_truth = [case.ground_truth("gt"), case.ground_truth("padded")]
    batch = loss_batch(case, [case.image, small], ground_truth, sizes=[[HEIGHT, WIDTH], [height, width]])
    assert_losses(case, case.border, "loss_padded_", batch)


@only(WITH_BORDER_CASES)
def test_losses_of_a_batch_with_an_image_without_objects(case):
    ground_truth = [case.ground_truth("gt"), case.ground_truth(None)]
    assert_losses(case, case.border, "loss_empty_", loss_batch(case, [case.image, case.image[:, ::-1]], ground_truth))


@only(WITH_BORDER_CASES)
def test_losses_of_tiny_thin_overlapping_and_twin_objects(case):
    assert_losses(case, case.border, "loss_hard_", loss_batch(case, [case.image], [case.ground_truth("hard")]))


@pytest.mark.parametrize("threshold", ["off", "0.5"])
@only(["mmdet_retinanet_r50_fpn", "mmdet_faster_rcnn_r50_fpn"])
def test_losses_with_crowds(case, threshold, monkeypatch):
    model = case.model
    matchers = [model.rpn.matcher, model.roi_heads.matcher] if case.name in RCNN else [model.matcher]
    for matcher in matchers:
        monkeypatch.setattr(matcher, "ignore_crowd_iof", None if threshold == "off" else float(threshold))
    batch = loss_batch(case, [case.image], [case.ground_truth("gt")], crowds=case.border["ignore_boxes"])
    assert_losses(case, case.border, f"loss_ignore_{threshold}_", batch)


@pytest.mark.parametrize("suffix", ["", "2", "_hard"])
@only([*DENSE[2:], "mmdet_retinanet_r50_fpn", "mmdet_faster_rcnn_r50_fpn"])
def test_matches_of_all_anchors(case, suffix):
    if suffix == "_hard":  # one set for all models, stored with those whose losses of it are known
        hard = golden.border_cases("mmdet_retinanet_r50_fpn")
        boxes, classes = hard["hard_boxes"], hard["hard_classes"]
    else:
        boxes, classes = case.ground_truth(f"gt{suffix}")
    batch = loss_batch(case, [case.image], [(boxes, classes)])
    anchors = case.outputs.get("rpn", case.outputs)["anchors"]
    if "fcos" in case.name:
        found = case.model.matcher(anchors, batch)[0].numpy()
        found_classes = np.where(found >= 0, classes[np.maximum(found, 0)], case.model.num_classes)
        np.testing.assert_array_equal(found_classes, case.border[f"matched_class{suffix}"])
        return
    matcher = case.model.rpn.matcher if case.name in RCNN else case.model.matcher
    found = matcher(tf.concat(list(anchors.values()), 0), batch)[0]
    np.testing.assert_array_equal(found, case.border[f"matched_gt{suffix}"])


@only(["mmdet_faster_rcnn_r50_fpn", "mmdet_mask_rcnn_r50_fpn"])
def test_matches_of_regions(case):
    batch = loss_batch(case, [case.image], [case.ground_truth("hard")])
    found = case.model.roi_heads.matcher(case.border["roi_boxes"][None][..., XYXY], batch)[0]
    np.testing.assert_array_equal(found, case.border["roi_matched_gt"])


@only(["mmdet_faster_rcnn_r50_fpn"])
def test_postprocessing_at_the_borders_of_the_image(case):
    deltas = case.border["post_box_deltas"].reshape(1, -1, case.model.num_classes, 4)[..., XYXY]
    rois = case.border["post_rois"][None][..., XYXY]
    outputs = {
        "rois": tf.constant(rois),
        "roi_valid": tf.ones(rois.shape[:2], tf.bool),
        "class_logits": tf.constant(case.border["post_class_logits"][None]),
        "box_deltas": tf.constant(deltas),
    }
    size = tf.constant([[HEIGHT, WIDTH]])
    found = golden.detections(case.model.apply_nms(case.model.decode(outputs, size), size), 0)
    expected = golden.expected_detections(case.border, "post")
    assert len(found["scores"]) == len(expected["scores"])
    assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])
