"""`Predictor.detect`, the same for everything that detects."""

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from kerasdet.errors import UserError
from kerasdet.inference import AugmentedPredictor, Detections, KeepSize, Predictor, Preprocessing
from kerasdet.inference.predictor import batch_sizes


class Corners(Predictor):
    """Finds the whole of every image, and logs the batches it got."""

    num_classes = 1
    class_names = ("image",)

    def __init__(self, preprocessing=None):
        self.preprocessing = preprocessing or KeepSize()
        self.batches = []

    def detect_batch(self, batch):
        self.batches.append(batch)
        _, original_size = batch_sizes(batch)
        count = len(batch["image"])
        whole = tf.concat([tf.zeros([count, 2]), tf.cast(original_size, tf.float32)], 1)
        return {
            "boxes": whole[:, None],
            "scores": tf.ones([count, 1]),
            "class_ids": tf.zeros([count, 1], tf.int32),
            "valid": tf.ones([count], tf.int32),
        }


def test_a_single_image_gives_detections_and_a_list_gives_a_list():
    predictor, image = Corners(), np.zeros((20, 30, 3), np.uint8)
    found = predictor.detect(image)
    assert isinstance(found, Detections) and found.class_names == ("image",)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 20, 30]])
    for several in ([image], (image,), image[None]):
        (only,) = predictor.detect(several)
        assert isinstance(only, Detections)


def test_arrays_pil_images_and_paths_are_alike(tmp_path):
    picture = Image.fromarray(tiny.images()[0])
    picture.save(tmp_path / "a.png")
    model = tiny.talkative()
    images = [np.asarray(picture), picture, tmp_path / "a.png", str(tmp_path / "a.png"), tf.constant(picture)]
    first, *others = model.detect(images)
    assert len(first) > 5
    for other in others:
        np.testing.assert_allclose(other.boxes, first.boxes, atol=1e-3)
    np.testing.assert_allclose(model.detect(picture).boxes, first.boxes, atol=1e-2)


def test_boxes_are_in_pixels_of_the_images_given():
    images = [np.zeros((*size, 3), np.uint8) for size in ((20, 30), (50, 10), (40, 40))]
    for predictor in (Corners(), Corners(Preprocessing(shortest=64, longest=96))):
        for found, image in zip(predictor.detect(images), images, strict=True):
            assert found.image_size == image.shape[:2]
            np.testing.assert_array_equal(found.boxes, [[0, 0, *image.shape[:2]]])


def test_batch_size_limits_the_images_of_a_batch():
    predictor, images = Corners(), [np.full((8, 8, 3), value, np.uint8) for value in range(5)]
    assert len(predictor.detect(images, batch_size=2)) == 5
    assert [len(batch["image"]) for batch in predictor.batches] == [2, 2, 1]
    pixels = [int(value) for batch in predictor.batches for value in batch["image"][:, 0, 0, 0]]
    assert pixels == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, True])
def test_invalid_batch_size_raises(batch_size):
    with pytest.raises(UserError, match=r"batch_size is .*: expected a positive integer"):
        Corners().detect(np.zeros((8, 8, 3), np.uint8), batch_size=batch_size)


@pytest.mark.parametrize("predictor", [Corners(), Corners(Preprocessing()), AugmentedPredictor(tiny.detector())])
@pytest.mark.parametrize("resize", [300, True, "300", (300,), (300, 400, 3), (0, 300), (-1, 300), (300.5, 400)])
def test_invalid_resize_raises(predictor, resize):
    with pytest.raises(UserError, match=r"^resize is .*: expected \(shortest, longest\)"):
        predictor.detect(np.zeros((32, 32, 3), np.uint8), resize=resize)


@pytest.mark.parametrize("predictor", [Corners(), Corners(Preprocessing()), AugmentedPredictor(tiny.detector())])
@pytest.mark.parametrize("images", [None, [], np.zeros((8, 8)), [np.zeros((8, 8, 3), np.uint8), "missing.jpg"]])
def test_a_bad_image_is_the_same_error_for_all_predictors(predictor, images):
    with pytest.raises((UserError, FileNotFoundError), match=r"^(Image 0 is|There is no image|Image 1, 'missing.jpg')"):
        predictor.detect(images)


def test_an_error_counts_images_through_all_batches():
    images = [np.zeros((8, 8, 3), np.uint8)] * 5 + [None]
    with pytest.raises(UserError, match="Image 5 is None"):
        Corners().detect(images, batch_size=2)


def test_batch_sizes_default_to_the_whole_image():
    image = np.zeros((2, 8, 9, 3), np.uint8)
    for size in batch_sizes({"image": image}):
        np.testing.assert_array_equal(size, [[8, 9]] * 2)
    image_size, original_size = batch_sizes({"image": image, "image_size": [[4, 5], [8, 9]]})
    np.testing.assert_array_equal(image_size, original_size)


IMAGE = np.zeros((1, 8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    "batch,message",
    [
        (IMAGE, "is a ndarray: expected a dict with 'image'"),
        (None, "is a NoneType: expected a dict"),
        ({"images": IMAGE}, r"lacks image; it has \['images'\]"),
        ({"image": IMAGE[0]}, r"image of shape \(8, 9, 3\): expected the shape \(any, any, any, 3\)"),
        ({"image": IMAGE[..., :1]}, r"image of shape \(1, 8, 9, 1\)"),
        ({"image": IMAGE[:0]}, "has no image"),
        ({"image": "photo.jpg"}, "image of dtype string: expected numbers"),
        ({"image": None}, "image of type NoneType: expected a tensor"),
        ({"image": IMAGE, "image_size": [[8, 9]] * 2}, r"image_size of shape \(2, 2\): expected the shape \(1, 2\)"),
        ({"image": IMAGE, "original_size": [8, 9]}, r"original_size of shape \(2,\)"),
    ],
)
def test_batches_of_another_form_raise(batch, message):
    with pytest.raises(UserError, match=message):
        batch_sizes(batch)


def test_detect_in_a_graph_raises():
    with (
        tf.Graph().as_default(),
        pytest.raises(UserError, match=r"detect was called inside .* Use model.detect_batch\("),
    ):
        Corners().detect(np.zeros((8, 8, 3), np.uint8))


def test_a_predictor_without_detect_batch_raises():
    with pytest.raises(NotImplementedError, match="Predictor does not define detect_batch"):
        Predictor().detect(np.zeros((8, 8, 3), np.uint8))
