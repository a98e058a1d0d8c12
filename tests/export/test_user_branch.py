"""Tests models with branches of a user: `detect` and exports return, rescale and compare their outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

import kerasdet
from kerasdet.errors import UserError, VerificationError
from kerasdet.export import export_and_verify, verify, workflow
from kerasdet.inference import AugmentedPredictor
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.models import MaskBranch
from kerasdet.models.branch import Branch

pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "warm_workers")


class Number(ConfigFromInit, Branch):
    """Predicts one number for each region, with a layer of its own."""

    target_key = "difficulty"
    loss_names = ("difficulty_loss",)
    output_names = ("difficulty",)

    def __init__(self, *, pool_size=None, **kwargs):
        super().__init__(pool_size=pool_size, **{"name": type(self).__name__.lower(), **kwargs})

    def build(self, input_shape):
        self.dense = keras.layers.Dense(1, name="dense")
        self.dense.build((None, input_shape[-1]))

    def call(self, pooled, training=False):
        return self.dense(tf.reduce_mean(pooled, [1, 2]))  # (N, 1)

    def select_class_maps(self, logits, class_ids):
        return tf.reshape(logits, tf.shape(class_ids))

    def hflip(self, maps):
        return maps

    def postprocess(self, maps, detections):
        return {"difficulty": tf.where(detections["class_ids"] >= 0, tf.sigmoid(maps), 0.0)}


class Center(Number):
    """Returns the centre of each box as a position, and whether it is large; exports name it "object_center"."""

    loss_names = ("center_loss",)
    output_names = ("center",)
    rescaling = "positions"
    export_names = {"center": "object_center"}  # noqa: RUF012

    def postprocess(self, maps, detections):
        center = (detections["boxes"][..., :2] + detections["boxes"][..., 2:]) / 2  # (B, D, 2)
        return {"center": tf.concat([center, tf.sigmoid(maps)[..., None]], -1)}


@pytest.fixture(scope="module")
def model():
    """Makes a model with masks, numbers and positions."""
    for branch in (Number, Center):
        keras.saving.register_keras_serializable("test_user_branch")(branch)
    return tiny.rcnn(branches=[MaskBranch(num_convs=1, channels=8), Number(), Center()])


def assert_center(detections):
    """Compares the position with the centre of every box that the border of the image does not clip."""
    inside = (detections.boxes[:, :2] > 0).all(1) & (detections.boxes[:, 2:] < detections.image_size).all(1)
    assert inside.sum() > 3
    center = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
    np.testing.assert_allclose(detections.extras["center"][inside, :2], center[inside], atol=0.01)


def test_detect_returns_and_rescales_every_output(model):
    for predictor in (model, AugmentedPredictor(model, [64])):
        found = predictor.detect(np.zeros((200, 130, 3), np.uint8))
        assert found.extras["difficulty"].shape == (len(found),)
        assert len(found) > 3
        assert_center(found)
        assert "difficulty and center" in repr(found)
        few = found.filter(score=float(found.scores[2]))
        np.testing.assert_array_equal(few.extras["difficulty"], found.extras["difficulty"][:2])


@pytest.mark.parametrize(("name", "options"), [("saved", {}), ("x.tflite", {"format": "tflite", "size": (64, 96)})])
def test_export_is_verified_with_every_output(model, tmp_path, name, options):
    path, report = export_and_verify(model, tmp_path / name, verify_images=tiny.images(), **options)
    assert "difficulty 0." in report
    image = tiny.images()[2]
    found = kerasdet.load(path).detect(image)
    assert_center(found)
    if name == "saved":
        expected = model.detect(image)
        assert "object_center" in tf.saved_model.load(str(path)).signatures["serving_default"].structured_outputs
        np.testing.assert_allclose(found.extras["difficulty"], expected.extras["difficulty"], rtol=1e-3)
        np.testing.assert_allclose(found.extras["center"], expected.extras["center"], atol=1e-2)
        assert "| `detection_difficulty` |" in (path / "assets" / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("difficulty", lambda value: 1.2 * value, r"differs from the model in difficulty \("),
        ("center", lambda value: value + 20, r"differs from the model in keypoints \("),
        ("center", lambda value: value[:, :, :2], "the output center has the shape"),
    ],
)
def test_differing_output_of_a_branch_raises(model, name, change, message):
    batch = model.preprocessing.batch(tiny.images())
    expected = {key: value.numpy() for key, value in model.detect_batch(batch).items()}
    arguments = {"tolerance": verify.EXACT, "branch_outputs": model.branch_outputs}
    assert verify.compare([(expected, expected)], **arguments).branch_errors == {"difficulty": 0.0}
    with pytest.raises(VerificationError, match=message):
        verify.compare([(expected, {**expected, name: change(expected[name])})], **arguments)
    del expected["difficulty"]
    with pytest.raises(VerificationError, match="the output difficulty is missing"):
        verify.compare([({**expected, "difficulty": 0 * expected["scores"]}, expected)], **arguments)


def test_invalid_declaration_of_outputs_raises():
    cases = [
        ({"output_names": ("other",)}, "returns difficulty, but output_names is other"),
        ({"rescaling": "positions"}, r"need \(B, D, ..., 3\)"),
        ({"rescaling": "half"}, "choose boxes_relative or positions"),
        ({"output_names": ("scores",)}, "Two outputs have the name scores"),
        ({"export_names": {"difficulty": "detection_masks"}}, "detection_masks in exports"),
    ]
    for attributes, message in cases:
        wrong = type("Wrong", (Number,), attributes)
        with pytest.raises(UserError, match=message):
            broken = tiny.rcnn(branches=[MaskBranch(num_convs=1, channels=8), wrong()])
            broken.detect(tiny.images()[0])


def test_sensitive_copy_keeps_the_branches(model):
    assert workflow.with_score_threshold(model, 0.5).branch_outputs == model.branch_outputs
