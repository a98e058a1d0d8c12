"""Opening, resizing, padding and normalising images for inference."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasdet.data.images import read
from kerasdet.errors import UserError
from kerasdet.inference import KeepSize, Preprocessing, open_images
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


def test_default_statistics_are_imagenets_in_rgb():
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


@pytest.mark.parametrize("kernel", resize_ops.KERNELS)
def test_resize_uses_the_kernel(rng, kernel):
    image = rng.integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    resized = Preprocessing(shortest=20, longest=100, kernel=kernel).resize(image)
    np.testing.assert_array_equal(resized, resize_ops.resize(image, (27, 20), kernel))


def test_resize_to_other_lengths():
    image = np.zeros([30, 60, 3], np.uint8)
    assert Preprocessing().resize(image, 15, 100).shape == (15, 30, 3)
    assert Preprocessing().resize(image, 60, 90).shape == (45, 90, 3)


def test_resize_in_a_graph_with_unknown_size():
    rule = Preprocessing(shortest=32, longest=64)
    function = tf.function(rule.resize, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    assert function(np.zeros([20, 30, 3], np.uint8)).shape == (32, 48, 3)


def test_padded_size():
    rule = Preprocessing(size_divisor=32)
    np.testing.assert_array_equal(rule.padded_size(tf.constant([1, 32, 33, 800])), [32, 32, 64, 800])
    np.testing.assert_array_equal(Preprocessing(size_divisor=1).padded_size(tf.constant([7, 8])), [7, 8])


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="channel_order is 'gbr': choose 'rgb' or 'bgr'"):
        Preprocessing(channel_order="gbr")
    with pytest.raises(ValueError, match="cubic"):
        Preprocessing(kernel="cubic").resize(np.zeros([8, 8, 3], np.uint8))
    with pytest.raises(ValueError, match="'mmdet'"):
        Preprocessing(rounding="mmdet").resize(np.zeros([8, 8, 3], np.uint8))


@pytest.mark.parametrize(
    "arguments", [{"mean": (1, 2)}, {"std": (1, 0, 1)}, {"rounding": "x"}, {"kernel": "x"}], ids=lambda a: next(iter(a))
)
def test_invalid_arguments_raise(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Preprocessing(**arguments)


# -- batches


@pytest.mark.parametrize("resize", [None, False, (48, 90)])
def test_batch_resizes_each_image_and_pads_to_the_largest(rng, resize):
    rule = Preprocessing(shortest=64, longest=96)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 60), (200, 100), (33, 31))]
    batch = rule.batch(images, resize)
    assert set(batch) == {"image", "image_size", "original_size"}
    np.testing.assert_array_equal(batch["original_size"], [image.shape[:2] for image in images])
    height, width = batch["image"].shape[1:3]
    assert batch["image"].dtype == tf.float32 and height % 32 == width % 32 == 0
    for index, image in enumerate(images):
        expected = image if resize is False else rule.resize(image, *(resize or ())).numpy()
        assert tuple(batch["image_size"][index]) == expected.shape[:2]
        padding = [(0, height - expected.shape[0]), (0, width - expected.shape[1]), (0, 0)]
        np.testing.assert_array_equal(batch["image"][index], np.pad(expected, padding))


@pytest.mark.parametrize("rule", [Preprocessing(shortest=64, longest=96), KeepSize()])
def test_batch_of_a_tensor_in_a_graph_equals_a_list(rng, rule):
    images = rng.integers(0, 256, (2, 40, 60, 3), np.uint8)
    in_graph = tf.function(rule.batch, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    expected = rule.batch(list(images))
    for name, value in in_graph(images).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("rule", [Preprocessing(shortest=64, longest=96), KeepSize()])
def test_batch_checks_its_images(rule):
    for images, message in (
        ([], "There is no image: expected at least one, got an empty list"),
        (
            [np.zeros((8, 9, 3)), np.zeros((8, 9))],
            r"Image 1 is an array of shape \(8, 9\): expected .* repeat the grey",
        ),
        (np.zeros((2, 8, 9, 1)), r"Image 0 is an array of shape \(8, 9, 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            rule.batch(images)
    with pytest.warns(UserWarning, match="Image 0 has no pixel above 1"):
        rule.batch([np.full((8, 9, 3), 0.5)])


def test_batch_of_one_image_is_that_of_a_list(picture):
    for name, value in Preprocessing(shortest=64, longest=96).batch(picture).items():
        np.testing.assert_array_equal(value, Preprocessing(shortest=64, longest=96).batch([picture])[name])


def test_keep_size_leaves_pixels_and_type(rng):
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((5, 7), (9, 3))]
    batch = KeepSize().batch(images)
    assert batch["image"].shape == (2, 9, 7, 3) and batch["image"].dtype == tf.uint8
    np.testing.assert_array_equal(batch["image_size"], [[5, 7], [9, 3]])
    np.testing.assert_array_equal(batch["original_size"], [[5, 7], [9, 3]])
    np.testing.assert_array_equal(batch["image"][0, :5], images[0])
    assert KeepSize().batch([images[0], images[1].astype(np.float32)])["image"].dtype == tf.float32


def test_keep_size_with_a_resize_rule_raises(rng):
    with pytest.raises(UserError, match=r"resize is False, but this predictor .* by its own rule"):
        KeepSize().batch([np.zeros((8, 8, 3), np.uint8)], resize=False)


@pytest.mark.parametrize("rounding", sorted({*resize_ops.ROUNDINGS} - {"square"}))
def test_letterbox_fills_one_side_exactly(rounding):
    rule = Preprocessing(rounding=rounding, kernel="bilinear")
    for length in range(1, 200):
        image, size = rule.letterbox(np.zeros((length, 2 * length, 3), np.uint8), 96, 96)
        assert image.shape == (96, 96, 3) and size == (48, 96), length


def test_letterbox_of_a_square_stretches():
    rule = Preprocessing(rounding="square", kernel="bilinear")
    image, size = rule.letterbox(np.full((30, 60, 3), 9, np.uint8), 96, 96)
    assert size == (96, 96)
    np.testing.assert_array_equal(image, np.full((96, 96, 3), 9, np.float32))


def test_letterbox_fills_the_rest_with_the_mean():
    rule = Preprocessing(mean=(10, 20, 30), channel_order="bgr")
    image, size = rule.letterbox(np.zeros((20, 40, 3), np.uint8), 64, 64)
    assert size == (32, 64)
    assert not image[:32].numpy().any()
    np.testing.assert_array_equal(image[32:], np.broadcast_to([30, 20, 10], (32, 64, 3)))


# -- opening


def encoded(image, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (12, 16, 3), np.uint8)


def test_open_images_takes_arrays_pil_images_and_paths(tmp_path, picture):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture))
    for single in (picture, tf.constant(picture), Image.fromarray(picture), path, str(path), picture.astype(np.int64)):
        images, is_single = open_images(single)
        assert is_single and len(images) == 1 and images[0].dtype == np.uint8
        np.testing.assert_array_equal(images[0], picture)
    images, is_single = open_images([picture, path, Image.fromarray(picture)])
    assert not is_single and len(images) == 3
    images, is_single = open_images(np.stack([picture] * 2))
    assert not is_single and len(images) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(picture, dtype):
    [image], _ = open_images(picture.astype(dtype))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, picture)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pil_images_of_8_bits_become_rgb(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    np.testing.assert_array_equal(open_images(image)[0][0], np.asarray(image.convert("RGB")))


def test_floats_on_a_scale_of_one_warn(picture):
    with pytest.warns(UserWarning, match="Image 0 has no pixel above 1.* multiply the pixels by 255"):
        open_images(picture / 255)


BAD = {
    "None": (None, r"Image 0 is None: expected an RGB array .*cv2\.imread returns None"),
    "bytes": (b"\xff\xd8", r"Image 0 is bytes: expected .*; open encoded files with PIL"),
    "nested list": ([[[1, 2, 3]]], r"Image 0 is a list: expected .*; turn it into an array with numpy\.asarray"),
    "number": (3, r"Image 0 is of type int: expected"),
    "empty list": ([], "There is no image: expected at least one, got an empty list"),
    "empty batch": (np.zeros((0, 8, 8, 3)), "There is no image: .* got an empty ndarray"),
    "grey": (np.zeros((8, 9)), r"Image 0 is an array of shape \(8, 9\): expected .*; repeat the grey channel"),
    "grey with an axis": (np.zeros((8, 9, 1)), r"shape \(8, 9, 1\).*; repeat the grey channel"),
    "RGBA": (np.zeros((8, 9, 4)), r"shape \(8, 9, 4\).*; drop the alpha channel: image\[\.\.\., :3\]"),
    "channels first": (np.zeros((3, 8, 9)), r"shape \(3, 8, 9\).*; move the channels to the end"),
    "batch of channels first": (
        np.zeros((2, 3, 8, 9)),
        r"Image 0 is an array of shape \(3, 8, 9\).*; move the channels",
    ),
    "batch in a list": ([np.zeros((2, 8, 9, 3))], r"shape \(2, 8, 9, 3\).*; pass a batch .* by itself"),
    "two channels": (np.zeros((8, 9, 2)), r"shape \(8, 9, 2\).*; pass three channels"),
    "no pixels": (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\), which has no pixels"),
    "second of a list": ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8))], r"Image 1 is an array of shape \(8, 8\)"),
    "bool": (np.zeros((8, 9, 3), bool), "Image 0 is an array of bool: .*; convert it to uint8"),
    "text": (np.full((8, 9, 3), "a"), "Image 0 is an array of <U1: .*; convert it to uint8"),
    "NaN": (np.full((8, 9, 3), np.nan), "Image 0 is a float64 array with values that are NaN or infinite: expected"),
    "infinite": (np.full((8, 9, 3), np.inf, np.float32), "values that are NaN or infinite"),
    "normalised": (np.linspace(-2, 2, 216).reshape(8, 9, 3), "values from -2 to 2: .*; undo the normalisation"),
    "16 bits": (np.full((8, 9, 3), 4000, np.uint16), "a uint16 array with values from 4000 to 4000: .*; scale it to"),
    "PIL of 16 bits": (Image.new("I;16", (8, 8)), "Image 0 is a PIL image of mode I;16: .*; convert it to 8 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_raises_with_index_and_remedy(name):
    images, message = BAD[name]
    with pytest.raises(UserError, match=message):
        open_images(images)


def test_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Image 1, '.*b\.jpg', does not exist: expected the path of a JPEG"):
        open_images([np.zeros((8, 8, 3), np.uint8), tmp_path / "b.jpg"])
    with pytest.raises(FileNotFoundError, match=r"Image 0, '.*', is a folder: expected the path"):
        open_images(tmp_path)


def test_pipe_raises(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"Image 0, '.*a\.jpg', is a pipe or a device: expected the path"):
        open_images(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"The image .*a\.jpg is a pipe or a device: expected a JPEG"):
        read(tmp_path / "a.jpg")


def test_file_that_is_no_image_raises(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"Image 0, '.*a\.jpg', cannot be read as an image: it is not a JPEG, PNG"):
        open_images(tmp_path / "a.jpg")
