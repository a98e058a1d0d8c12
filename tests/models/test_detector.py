"""Mistakes in the inputs and attributes of a detector."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from kerasdet import ResNet
from kerasdet.errors import UserError

IMAGE = np.full((64, 64, 3), 120, np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny.detector()


def test_number_of_classes_cannot_change(model):
    model.num_classes = 5  # no change
    with pytest.raises(UserError, match=r"num_classes of a RetinaNet was changed from 5 to 3: .*loading\.pretrained\("):
        model.num_classes = 3
    assert model.num_classes == 5


@pytest.mark.parametrize(
    "batch,message",
    [
        (IMAGE, r"image of shape \(64, 64, 3\): expected the shape \(any, any, any, 3\)"),
        ({"image": IMAGE}, r"image of shape \(64, 64, 3\)"),
        (IMAGE[None, ..., :1], r"image of shape \(1, 64, 64, 1\)"),
        (IMAGE[None][:0], r"The batch has no image"),
        ({"images": IMAGE[None]}, r"lacks image; it has \['images'\]"),
    ],
    ids=["one image", "one image in a dict", "grey", "no image", "other key"],
)
def test_batch_of_another_form_raises(model, batch, message):
    for run in (model, model.predict):
        with pytest.raises(UserError, match=message) as error:
            run(batch)
        assert "\n" not in str(error.value)


def test_predict_of_a_list_raises(model):
    with pytest.raises(UserError, match=r"predict got a list: expected a batch .* Use model\.detect\(images\)"):
        model.predict([IMAGE, IMAGE])


def test_predict_of_no_batch_raises(model):
    with pytest.raises(UserError, match="The dataset has no batch"):
        model.predict(tf.data.Dataset.from_tensors(IMAGE[None]).take(0))


def test_predict_warns_of_pixels_in_0_to_1(model):
    with pytest.warns(UserWarning, match="The batch has no pixel above 1, although pixels are expected in 0..255"):
        model.predict(IMAGE[None] / 255, verbose=0)


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
@pytest.mark.parametrize("make", [tiny.detector, tiny.rcnn])
def test_weights_for_other_classes_raise(make, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    other = make(3)
    other.save(path) if suffix == "keras" else other.save_weights(path)
    message = (
        r"has weights for 3 classes, but the model has 5: expected the same number\. Make the model with num_classes=3"
    )
    with pytest.raises(UserError, match=message):
        make(5).load_weights(path)


def test_weights_of_other_parts_raise_the_error_of_keras(model, tmp_path):
    tiny.detector(backbone=tiny.backbone(width=16)).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="objects could not be loaded"):
        model.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("make", [ResNet, lambda: tiny.detector(backbone=tiny.PlainBackbone())])
def test_channels_first_raises(make):
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(UserError, match="image data format is channels_first: expected channels_last"):
            make()
    finally:
        keras.config.set_image_data_format("channels_last")
