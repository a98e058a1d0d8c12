import numpy as np
import pytest
import tensorflow as tf

from kerasdet.models import Preprocessing
from kerasdet.ops import resize as resize_ops


def test_normalize(rng):
    image = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    rule = Preprocessing(mean=(10, 20, 30), std=(2, 4, 8))
    expected = (image.astype(float) - [10, 20, 30]) / [2, 4, 8]
    for pixels in (image, image.astype(np.float32)):
        x = rule.normalize(pixels, None)
        assert x.dtype == tf.float32
        np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_bgr_statistics_are_in_the_networks_order(rng):
    image = rng.integers(0, 256, (1, 2, 2, 3), dtype=np.uint8)
    x = Preprocessing(mean=(10, 20, 30), std=(2, 4, 8), channel_order="bgr").normalize(image, None)
    np.testing.assert_allclose(x, (image[..., ::-1] - np.array([10.0, 20, 30])) / [2, 4, 8], rtol=1e-5)


def test_the_default_is_imagenet_in_rgb():
    white = Preprocessing().normalize(np.full([1, 1, 1, 3], 255, np.uint8), None)
    np.testing.assert_allclose(white[0, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)


def test_padding_is_zero_after_normalisation(rng):
    image = rng.integers(0, 256, (3, 6, 7, 3), dtype=np.uint8)
    sizes = np.int32([[4, 7], [6, 5], [6, 7]])
    rule = Preprocessing()
    x, full = rule.normalize(image, sizes).numpy(), rule.normalize(image, None).numpy()
    for index, (height, width) in enumerate(sizes):
        np.testing.assert_array_equal(x[index, :height, :width], full[index, :height, :width])
        assert not x[index, height:].any() and not x[index, :, width:].any()


def test_padding_that_is_nan_is_zero():
    image = np.full([1, 2, 2, 3], np.nan, np.float32)
    image[0, 0, 0] = 1
    assert np.isfinite(Preprocessing().normalize(image, np.int32([[1, 1]]))).all()


@pytest.mark.parametrize(
    "size,expected", [((480, 640), (800, 1067)), ((427, 640), (800, 1199)), ((400, 1000), (533, 1333))]
)
def test_resize_by_detectron2s_rule(size, expected):
    resized = Preprocessing().resize(np.zeros([*size, 3], np.uint8))
    assert resized.shape == (*expected, 3) and resized.dtype == tf.float32


def test_resize_by_torchvisions_rule():
    rule = Preprocessing(rounding="torchvision", kernel="bilinear")
    assert rule.resize(np.zeros([480, 640, 3], np.uint8)).shape == (800, 1066, 3)


@pytest.mark.parametrize("kernel", ["pil", "bilinear"])
def test_resize_uses_the_kernel(rng, kernel):
    image = rng.integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    resized = Preprocessing(shortest=20, longest=100, kernel=kernel).resize(image)
    np.testing.assert_array_equal(resized, resize_ops.resize(image, (27, 20), kernel))


def test_resize_to_other_lengths():
    image = np.zeros([30, 60, 3], np.uint8)
    assert Preprocessing().resize(image, 15, 100).shape == (15, 30, 3)
    assert Preprocessing().resize(image, 60, 90).shape == (45, 90, 3)


def test_resize_in_a_graph_of_unknown_size():
    rule = Preprocessing(shortest=32, longest=64)
    function = tf.function(rule.resize, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    assert function(np.zeros([20, 30, 3], np.uint8)).shape == (32, 48, 3)


def test_padded_size():
    rule = Preprocessing(size_divisor=32)
    np.testing.assert_array_equal(rule.padded_size(tf.constant([1, 32, 33, 800])), [32, 32, 64, 800])
    np.testing.assert_array_equal(Preprocessing(size_divisor=1).padded_size(tf.constant([7, 8])), [7, 8])


def test_unknown_names():
    with pytest.raises(ValueError, match="no channel order 'gbr': choose 'rgb' or 'bgr'"):
        Preprocessing(channel_order="gbr")
    with pytest.raises(ValueError, match="cubic"):
        Preprocessing(kernel="cubic").resize(np.zeros([8, 8, 3], np.uint8))
    with pytest.raises(ValueError, match="mmdet"):
        Preprocessing(rounding="mmdet").resize(np.zeros([8, 8, 3], np.uint8))


@pytest.mark.parametrize(
    "arguments", [{"mean": (1, 2)}, {"std": (1, 0, 1)}, {"rounding": "x"}, {"kernel": "x"}], ids=lambda a: next(iter(a))
)
def test_arguments_without_sense_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Preprocessing(**arguments)
