"""Converted models against the frameworks they come from: features, heads, anchors, losses, detections, the export."""

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
import tiny
from checkpoints import golden
from checkpoints.golden import XYXY

from kerasdet.checkpoints import SOURCES, to_model
from kerasdet.export import export_saved_model
from kerasdet.inference.detections import unpad
from kerasdet.inference.padded import from_tf_od
from kerasdet.models import Detector, Preprocessing

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
HEIGHT, WIDTH = 256, 320
SHORTEST, LONGEST = 320, 500

# name of the reference -> how it names the levels
LEVELS = {
    "torchvision_retinanet_resnet50_fpn": ("0", "1", "2", "p6", "p7"),
    "torchvision_retinanet_resnet50_fpn_v2": ("0", "1", "2", "p6", "p7"),
    "detectron2_retinanet_R_50_FPN": ("p3", "p4", "p5", "p6", "p7"),
    "torchvision_fcos_resnet50_fpn": ("0", "1", "2", "p6", "p7"),
    "detectron2_fcos_R_50_FPN": ("p3", "p4", "p5", "p6", "p7"),
}


@dataclass
class Case:
    """A converted model, its outputs for the reference's image, and the reference's."""

    name: str
    model: Detector
    batch: dict
    outputs: dict
    golden: dict

    @property
    def first_label(self):
        return int(self.name.startswith("torchvision"))

    @property
    def heads(self):
        """What the heads predict for box and centerness: our name -> torchvision's and detectron2's."""
        if "fcos" in self.name:
            return {"box_distances": ("bbox_regression", "deltas"), "centerness": ("bbox_ctrness", "centerness")}
        return {"box_deltas": ("bbox_regression", "deltas")}

    def level(self, name, level):
        """An output of a level, (R_l, ...), coordinates in the order of the reference."""
        x = np.asarray(self.outputs[name][level]).reshape(self.outputs["anchors"][level].shape[0], -1)
        return x[:, XYXY] if x.shape[1] == 4 else x

    def flat(self, name):
        """An output of all levels in one, (R, ...)."""
        return np.concatenate([self.level(name, level) for level in self.outputs[name]])


def end_to_end_images():
    image = golden.weights().image
    return [image(250, 333, 11), image(300, 200, 12)]


@pytest.fixture(scope="module", params=LEVELS)
def case(request):
    name = request.param
    expected = golden.outputs(name)
    model = to_model(golden.state(name), name.replace("_", "/", 1))
    image = golden.weights().image(HEIGHT, WIDTH, seed=0)
    batch = {"image": tf.constant(image[None]), "image_size": tf.constant([[HEIGHT, WIDTH]])}
    return Case(name, model, batch, model(batch), expected)


def test_features_match_the_source_framework(case):
    pyramid = case.model.neck(case.model.backbone(case.model.preprocessing.normalize(**case.batch)))
    for name, x in zip(LEVELS[case.name], pyramid.values(), strict=True):
        assert golden.relative(x[0].numpy().transpose(2, 0, 1)[::16, ::2, ::2], case.golden[f"feature_{name}"]) < 1e-4


def test_raw_heads(case):
    if case.first_label:
        assert golden.relative(case.flat("class_logits")[::37], case.golden["head_cls_logits"][:, 1:]) < 1e-4
        for ours, (theirs, _) in case.heads.items():
            assert golden.relative(case.flat(ours)[::37], case.golden[f"head_{theirs}"]) < 1e-4
        return
    for index, level in enumerate(case.outputs["class_logits"]):
        assert golden.relative(case.level("class_logits", level)[::37], case.golden[f"head_logits_{index}"]) < 1e-4
        for ours, (_, theirs) in case.heads.items():
            assert golden.relative(case.level(ours, level)[::37], case.golden[f"head_{theirs}_{index}"]) < 1e-4


def test_anchors_are_exact(case):
    np.testing.assert_array_equal(case.flat("anchors")[::37], case.golden["anchors"])


def assert_losses(case, images, prefix):
    """Losses of `images` with the targets of the reference, which has those of one image or of two."""
    count = len(images)
    names = [("gt_boxes", "gt_classes"), ("gt2_boxes", "gt2_classes")][:count]
    size = max(len(case.golden[name]) for _, name in names)
    boxes, class_ids = np.zeros((count, size, 4), np.float32), np.full((count, size), -1, np.int32)
    for index, (box_name, class_name) in enumerate(names):
        number = len(case.golden[class_name])
        boxes[index, :number] = case.golden[box_name][:, XYXY]
        class_ids[index, :number] = case.golden[class_name]
    batch = {
        "image": tf.constant(np.stack(images)),
        "image_size": tf.constant([[HEIGHT, WIDTH]] * count),
        "boxes": tf.constant(boxes),
        "class_ids": tf.constant(class_ids),
        "is_crowd": tf.zeros((count, size), tf.bool),
    }
    outputs = case.model(batch)
    losses = case.model.compute_losses(outputs, case.model.compute_targets(outputs, batch))
    expected = [float(value) for name, value in case.golden.items() if name.startswith(prefix)]
    np.testing.assert_allclose([float(value) for value in losses.values()], expected, rtol=1e-4)


def test_losses_of_one_image(case):
    assert_losses(case, [case.batch["image"][0].numpy()], "loss_")


def test_losses_of_a_batch(case):
    image = case.batch["image"][0].numpy()
    assert_losses(case, [image, image[:, ::-1]], "loss2_")


def test_detections_match_one_to_one(case):
    result = case.model.postprocess(case.outputs, case.batch["image_size"])
    found = golden.detections(result, 0, case.first_label)
    expected = golden.expected_detections(case.golden, "detections")
    assert len(found["scores"]) == len(expected["scores"])
    assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])


def test_end_to_end(case):
    for index, result in enumerate(case.model.detect(end_to_end_images(), resize=(SHORTEST, LONGEST))):
        found = golden.unpadded(result, case.first_label)
        expected = golden.expected_detections(case.golden, f"e2e_{index}")
        assert len(found["scores"]) == len(expected["scores"])
        assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["torchvision/retinanet_resnet50_fpn", "mmdet/faster_rcnn_r50_fpn"])
def test_exported_model_resizes_like_the_model(source, tmp_path):
    """By the rules and kernels that tests/export, whose models resize by detectron2's, has not."""
    rule = {**SOURCES[source].preprocessing, "shortest": 80, "longest": 125}
    model = tiny.talkative(preprocessing=Preprocessing(**rule))
    signatures = tf.saved_model.load(str(export_saved_model(model, tmp_path / "saved"))).signatures
    images = tiny.images()
    encoded = signatures["encoded"](image_bytes=tf.stack([tf.io.encode_png(image) for image in images]))
    assert_same_detections(as_result(encoded, images), model.detect(images))
    decoded = signatures["serving_default"](image=tf.constant(images[1][None]))
    assert_same_detections(as_result(decoded, images[1:2]), model.detect(images[1:2]))


def as_result(exported, images):
    """The outputs of a SavedModel, boxes as shares of the images and classes from 1 on, as `Detections`."""
    sizes = [image.shape[:2] for image in images]
    padded = from_tf_od(exported, sizes, class_offset=1)
    return [unpad(padded, index, size) for index, size in enumerate(sizes)]


def assert_same_detections(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        count = len(wanted)
        assert len(result) == count
        found, wanted = golden.unpadded(result), golden.unpadded(wanted)
        clear = wanted["scores"] > wanted["scores"].min() + 1e-5  # which of two equal ones is the last is rounding
        assert clear.sum() >= count - 2
        wanted = {name: value[clear] for name, value in wanted.items()}
        assert golden.matched(found, wanted, pixels=0.05, score=1e-4) == clear.sum()
