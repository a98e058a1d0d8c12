import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from kerasdet.errors import UserError
from kerasdet.models.first_batch import check_first_batch

BOXES = np.array([[[4, 4, 40, 50], [10, 20, 30, 60]]] * 2, np.float32)


def batch(**changes):
    image = np.full((2, 64, 96, 3), 120, np.uint8)
    return {"image": image, "boxes": BOXES, "class_ids": np.array([[0, 2], [1, -1]], np.int32), **changes}


MISTAKES = {
    "fractions": ({"boxes": BOXES / [64, 96, 64, 96]}, r"no box with a number above 1 .*: expected .* in pixels"),
    "x and y swapped": (
        {"boxes": BOXES + np.float32([70, 0, 20, 0])},
        r"box \[74.0, 4.0, 60.0, 50.0\] outside its image of 64x96",
    ),
    "no area": ({"boxes": BOXES * [0, 1, 0, 1]}, r"box \[0.0, 4.0, 0.0, 50.0\], which has no area: expected y1 < y2"),
    "one box a row": ({"boxes": BOXES.reshape(2, 8)}, r"boxes of shape \(2, 8\): expected \(B, M, 4\)"),
    "other rows": ({"class_ids": np.zeros((2, 3))}, r"class_ids of shape \(2, 3\), but boxes of shape \(2, 2, 4\)"),
    "one image": ({"image": np.zeros((64, 96, 3))}, r"image of shape \(64, 96, 3\): .* Call batch on the dataset"),
    "channels first": (
        {"image": np.zeros((2, 3, 64, 96))},
        r"image of shape \(2, 3, 64, 96\): expected \(B, H, W, 3\)",
    ),
    "normalised": ({"image": np.random.default_rng(0).normal(size=(2, 8, 8, 3))}, r"pixels from -.* Undo the norm"),
    "16 bits": ({"image": np.full((2, 64, 96, 3), 999, np.uint16)}, r"pixels from 999 to 999: expected RGB in 0..255"),
    "width first": (
        {"image_size": [[96, 64]] * 2},
        r"image_size \[96, 64\] for images of 64x96 .*: expected the height",
    ),
    "bool pixels": ({"image": np.zeros((2, 64, 96, 3), bool)}, r"image of dtype bool: expected numbers"),
    "gray": (
        {"image": np.zeros((2, 64, 96, 1), np.uint8)},
        r"image of shape \(2, 64, 96, 1\): .* Repeat the grey channel",
    ),
    "paths": ({"image": np.array(["a.jpg", "b.jpg"])}, r"image of dtype string: expected numbers"),
    "names": ({"class_ids": np.array([["cat", "dog"]] * 2)}, r"class_ids of dtype string: expected numbers"),
    "half a class": ({"class_ids": np.array([[0, 0.5]] * 2)}, r"the class id 0.5: expected integers from 0"),
    "ragged": ({"class_ids": tf.ragged.constant([[0, 2], [1]])}, r"class_ids as a RaggedTensor: .* padded_batch"),
    "keypoints as fractions": ({"keypoints": np.full((2, 2, 4, 3), 0.5)}, r"no keypoint with a coordinate above 1"),
    "keypoints of NaN": ({"keypoints": np.full((2, 2, 4, 3), np.nan)}, r"a keypoint that is not finite: expected"),
    "masks of 0 and 1": ({"masks": np.ones((2, 2, 28, 28), np.uint8)}, r"uint8 masks of 0 and 1: .* to bool"),
    "masks of the image": ({"masks": np.ones((2, 2, 64, 96), bool)}, r"masks of shape .*: expected \(B, M, S, S\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_raises(mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=f"^The first batch has .*{message}"):
        check_first_batch(batch(**changes))


def test_usual_batches_pass():
    check_first_batch(batch())
    check_first_batch((batch(masks=np.full((2, 2, 28, 28), 255, np.uint8)),))
    check_first_batch(batch(boxes=np.stack([BOXES[0], np.full((2, 4), np.nan)]), class_ids=[[0, 1], [-1, -1]]))
    check_first_batch(batch(boxes=np.zeros((2, 0, 4)), class_ids=np.zeros((2, 0)), image_size=[[60, 90]] * 2))
    check_first_batch({name: value[:0] for name, value in batch().items()})


def test_pixels_in_0_to_1_warn():
    with pytest.warns(UserWarning, match="no pixel above 1, although pixels are expected in 0..255"):
        check_first_batch(batch(image=np.full((2, 64, 96, 3), 0.5, np.float32)))


def test_fit_and_evaluate_check_the_first_batch():
    model = tiny.detector(num_classes=3)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    wrong = tf.data.Dataset.from_tensors(batch(boxes=(BOXES / 96).astype(np.float32)))
    for run in (model.fit, model.evaluate):
        with pytest.raises(UserError, match="no box with a number above 1"):
            run(wrong, verbose=0)


@pytest.mark.parametrize("argument", ["loss", "loss_weights", "metrics", "weighted_metrics"])
def test_compile_with_a_loss_or_metric_raises(argument):
    with pytest.raises(
        UserError, match=rf"^compile got {argument}: expected none, because a RetinaNet computes its own"
    ):
        tiny.detector().compile("sgd", **{argument: ["mse"]})


@pytest.fixture(scope="module")
def compiled():
    model = tiny.detector(num_classes=3)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    return model


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"y": np.ones(2)}, r"got y beside x: expected one dict with 'image'"),
        ({"sample_weight": np.ones(2)}, r"got sample_weight: expected none, because the losses do not use it"),
        ({"x": {name: value[:0] for name, value in batch().items()}}, r"^The batch has no image: expected one or more"),
        ({"x": tf.data.Dataset.from_tensors(batch()).skip(1)}, r"^The dataset has no batch"),
        ({"x": tf.data.Dataset.from_tensors({k: v[:0] for k, v in batch().items()})}, r"^The batch has no image"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_keras_drops_and_empty_data_raise(compiled, arguments, message):
    for run in (compiled.fit, compiled.evaluate):
        with pytest.raises(UserError, match=message):
            run(**{"x": batch(), **arguments}, verbose=0)


def test_class_weights_raise(compiled):
    with pytest.raises(UserError, match="fit got class_weight: expected none, because the losses do not use it"):
        compiled.fit(tf.data.Dataset.from_tensors(batch()), class_weight={0: 1.0, 1: 2.0})


def test_sample_weights_raise():
    with pytest.raises(UserError, match="sample weights: expected none, because the losses do not use them"):
        check_first_batch((batch(), None, np.ones(2)))
    check_first_batch((batch(), None, None))
