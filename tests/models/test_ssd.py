"""SSD: training, files and exports; tests/checkpoints/test_mobile_parity.py compares its numbers with torchvision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from models import models

import kerasdet
from kerasdet import export
from kerasdet.errors import UserError
from kerasdet.layers import FPN, VGG, SSDNeck
from kerasdet.models import SSD, Preprocessing

IMAGE = np.random.default_rng(3).integers(0, 256, (80, 120, 3)).astype(np.uint8)


def batch():
    """Makes two images without padding, with three objects and one."""
    data = models.batch(size=(96, 96), image_size=((96, 96), (96, 96)))
    data["boxes"] = np.minimum(data["boxes"], 96)
    return {**data, "image": data["image"].astype(np.float32)}


@pytest.fixture(scope="module")
def model():
    made = models.randomized(models.ssd())
    made.class_names = ("cat", "dog", "bird")
    return made


@pytest.fixture(scope="module")
def found(model):
    return model.detect(IMAGE)


def assert_same(actual, expected, atol=1e-3):
    assert len(actual) == len(expected) > 5
    np.testing.assert_array_equal(actual.class_ids, expected.class_ids)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=atol)
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=100 * atol)


def test_training_learns_a_batch():
    keras.utils.set_random_seed(0)
    model = models.ssd(norm="bn", backbone=tiny.PlainBackbone(norm="bn"))
    model.compile(optimizer=keras.optimizers.Adam(3e-3, global_clipnorm=5.0))
    data = tf.data.Dataset.from_tensors(batch())
    first = model.evaluate(data, return_dict=True, verbose=0)["loss"]
    model.fit(data.repeat(), steps_per_epoch=30, verbose=0)
    assert model.evaluate(data, return_dict=True, verbose=0)["loss"] < 0.75 * first


def test_hardest_negatives_of_each_image_have_a_loss():
    model = models.ssd(negative_ratio=2.0)
    logits = tf.constant([[[9.0, 0, 0, 0], [0, 0, 0, 5], [0, 7, 0, 0], [0, 0, 0, 9], [3, 0, 0, 0]]])  # background last
    boxes = tf.constant([[0.0, 0, 9, 9]] * 5)
    outputs = {"class_logits": {"p4": logits}, "box_deltas": {"p4": tf.zeros([1, 5, 4])}, "anchors": {"p4": boxes}}
    matched = tf.constant([[0, -1, -1, -1, -1]])
    targets = {"matched_gt": matched, "class_ids": matched, "boxes": boxes[None]}
    losses = model.compute_losses(outputs, targets)

    def cross_entropy(row, label):
        row = logits[0, row].numpy()
        return np.log(np.exp(row).sum()) - row[label]

    assert float(losses["class_loss"]) == pytest.approx(cross_entropy(0, 0) + cross_entropy(2, 3) + cross_entropy(4, 3))
    assert float(losses["box_loss"]) == pytest.approx(0, abs=1e-6)


def test_file_and_saved_model_detect_the_same(model, found, tmp_path):
    model.save(tmp_path / "model.keras")
    export.export_saved_model(model, tmp_path / "saved_model")
    assert_same(kerasdet.load(tmp_path / "model.keras").detect(IMAGE), found)
    assert_same(kerasdet.load(tmp_path / "saved_model").detect(IMAGE), found)
    card = (tmp_path / "saved_model" / "assets" / "model_card.md").read_text()
    assert "The image is stretched to 96x96 pixels" in card


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bit_saved_model_detects_nearly_the_same(model, found, tmp_path, precision):
    export.export_saved_model(model, tmp_path / "saved_model", precision=precision)
    actual = kerasdet.load(tmp_path / "saved_model").detect(IMAGE)
    assert len(actual) == len(found)
    np.testing.assert_allclose(actual.scores[:5], found.scores[:5], atol=1e-3)


def test_tflite_detects_the_same(model, found, tmp_path):
    path = export.export_tflite(model, tmp_path / "model.tflite", size=(96, 96), postprocessing="nms")
    assert_same(kerasdet.load(path).detect(IMAGE), found)


def test_int8_of_a_mobile_detector_detects_nearly_the_same(tmp_path):
    model = models.randomized(models.ssdlite())
    images = [np.random.default_rng(seed).integers(0, 256, (96, 96, 3)).astype(np.uint8) for seed in range(4)]
    options = {"size": (96, 96), "precision": "int8", "calibration_images": images}
    actual = kerasdet.load(export.export_tflite(model, tmp_path / "model.tflite", **options)).detect(IMAGE)
    found = model.detect(IMAGE)
    np.testing.assert_allclose(actual.scores[:5], found.scores[:5], atol=0.05)


def test_onnx_detects_the_same(model, found, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export.export_onnx(model, tmp_path / "model.onnx")
    assert_same(kerasdet.load(path).detect(IMAGE), found)
    rule = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["input"]
    assert rule.startswith("RGB, 0..255: stretched to 96x96 (height x width)")


def test_openvino_detects_the_same(model, found, tmp_path):
    pytest.importorskip("openvino")
    assert_same(kerasdet.load(export.export_openvino(model, tmp_path / "model")).detect(IMAGE), found)


def test_images_are_stretched_to_a_square(model):
    batch = model.preprocessing.batch([IMAGE])
    assert batch["image"].shape == (1, 96, 96, 3) and batch["image_size"].numpy().tolist() == [[96, 96]]
    pixels, size = Preprocessing(rounding="square").letterbox(IMAGE, 64, 96)
    assert pixels.shape == (64, 96, 3) and size == (64, 96)


def test_vgg_has_the_grids_of_ssd300():
    backbone = VGG((1,) * 5, width=4, fc_channels=8)
    neck = SSDNeck(extra_channels=(8, 8, 8, 8), unpadded=2, finest_scale=20.0)
    neck.build({name: (None, None, None, channels) for name, channels in backbone.channels.items()})
    pyramid = neck(backbone(np.ones([1, 300, 300, 3], np.float32)))
    assert [x.shape[1] for x in pyramid.values()] == [38, 19, 10, 5, 3, 1]
    norms = tf.norm(pyramid["p3"], axis=-1).numpy()
    np.testing.assert_allclose(norms[norms > 1e-3], 20, rtol=1e-4)


def test_features_of_one_stride_are_added():
    """MobileNetV3's c5_first and c5 have the same stride; torchvision merges both."""
    neck = FPN(("c5_first", "c5"), 4)
    assert neck.levels == ("p5_first", "p5")
    features = {name: tf.random.normal([1, 3, 4, 8], seed=i) for i, name in enumerate(neck.in_features)}
    pyramid = neck(features)
    lateral = {name: layer(features[name]) for name, layer in zip(neck.in_features, neck.laterals, strict=True)}
    np.testing.assert_allclose(pyramid["p5_first"], neck.outputs[0](lateral["c5_first"] + lateral["c5"]), atol=1e-5)


def test_wrong_arguments_raise():
    with pytest.raises(UserError, match="negative_ratio is 0: give a number above 0"):
        SSD(2, negative_ratio=0)
    with pytest.raises(UserError, match="SSDNeck got extra_channels="):
        SSDNeck(extra_channels=(8,), unpadded=2)
    with pytest.raises(UserError, match="VGG got stages="):
        VGG((2, 2))
