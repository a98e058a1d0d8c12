"""Compares the compiled resize with Pillow and with the stock ops; tests/data/test_images.py compares with OpenCV."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasdet import ops
from kerasdet.ops.resize import resize, resize_uint8

pytestmark = [
    pytest.mark.usefixtures("implementation"),
    pytest.mark.parametrize("implementation", ["tensorflow", "compiled"], indirect=True),  # no GPU kernels exist
]

SIZES = [
    *(((48, 64), (80, 107)), ((64, 48), (107, 80)), ((120, 90), (33, 25)), ((96, 128), (48, 64)), ((1, 1), (5, 7))),
    *(((1, 9), (9, 1)), ((30, 40), (30, 40)), ((200, 3), (2, 90)), ((31, 41), (32, 41)), ((7, 300), (7, 3))),
]


def random_sizes(rng, count):
    return [tuple(map(tuple, rng.integers(1, 150, (2, 2)).tolist())) for _ in range(count)]


def test_pil_kernel_equals_pillow(rng):
    for (height, width), size in SIZES + random_sizes(rng, 15):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[rng.random((height, width)) < 0.3] = rng.choice([0, 255])
        # Pillow 13 takes the vertical pass of some images first
        columns = Image.fromarray(image).resize((size[1], height), Image.Resampling.BILINEAR)
        expected = np.asarray(columns.resize(size[::-1], Image.Resampling.BILINEAR))
        found = resize_uint8(tf.constant(image), size, "pil")
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kernel", ["pil", "opencv", "bilinear"])
def test_window_equals_a_crop(rng, kernel):
    for (height, width), size in SIZES[:8] + random_sizes(rng, 2):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = resize(tf.constant(image), size, kernel).numpy()
        y1, y2 = np.sort(rng.choice(size[0] + 1, 2, replace=False))
        x1, x2 = np.sort(rng.choice(size[1] + 1, 2, replace=False))
        found = resize(tf.constant(image), tf.constant(size), kernel, tf.constant([y1, x1, y2, x2], tf.int32))
        np.testing.assert_array_equal(found, whole[y1:y2, x1:x2])


@pytest.mark.parametrize("kernel", ["pil", "opencv"])
def test_implementations_agree(rng, implementation, kernel):
    for (height, width), size in SIZES + random_sizes(rng, 25 if implementation == "compiled" else 1):
        image = tf.constant(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        with ops.implementation("tensorflow"):
            expected = resize_uint8(image, size, kernel)
        np.testing.assert_array_equal(resize_uint8(image, size, kernel), expected)


def test_batches_floats_and_other_channels_are_resized(rng):
    images = rng.integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    whole = resize(images, (13, 17), "pil")
    assert whole.shape == (2, 13, 17, 3)
    for image, found in zip(images, whole, strict=True):
        np.testing.assert_array_equal(resize(image.astype(np.float32) + 0.3, (13, 17), "pil"), found)
        gray = resize(image[..., :1], (13, 17), "pil")
        np.testing.assert_array_equal(gray[..., 0], found[..., 0])


def test_unknown_kernel_raises():
    with pytest.raises(ValueError, match="kernel is 'cubic'"):
        resize(tf.zeros([4, 4, 3]), (2, 2), "cubic")


def test_compiled_op_checks_its_inputs(implementation):
    if implementation == "tensorflow":
        pytest.skip("the stock ops have checks of their own")
    image = tf.zeros([4, 4, 3], tf.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Cannot resize an image of 4x4 to 0x3"):
        resize_uint8(image, (0, 3), "pil")
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not inside the resized image of 2x2"):
        resize_uint8(image, (2, 2), "pil", tf.constant([0, 0, 3, 2]))
