"""Decodes the images of a request into a batch, inside the graph.

The number of pixels is checked before an image is decoded, and errors name the invalid image.
"""

import tensorflow as tf

from kerasdet.data import images as image_ops
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.ops import resize as resize_ops

# The datasets here have a single element, and optimising a dataset takes much longer than reading one element.
_UNOPTIMIZED = tf.data.Options()
_UNOPTIMIZED.experimental_optimization.apply_default_optimizations = False
_UNOPTIMIZED.autotune.enabled = False
_PNG = b"\x89PNG\r\n\x1a\n"


def decode_batch(
    image_bytes: tf.Tensor, preprocessing: Preprocessing, max_pixels: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes, resizes and pads encoded images of any sizes.

    Args:
        image_bytes: (B,) string, JPEG or PNG files, B at least 1.
        preprocessing: The model's preprocessing, which resizes the images.
        max_pixels: An image with more pixels than this raises an error before it is decoded.

    Returns:
        The images (B, H, W, 3) float32 RGB in 0..255, their heights and widths (B, 2) int32 after resizing and without
        padding, and their original heights and widths (B, 2) int32.

    Raises:
        tf.errors.InvalidArgumentError: At run time, if an image is damaged, too large, or neither JPEG nor PNG.
    """

    # `tf.function` enables AutoGraph for the Python loop, even if the caller is traced without AutoGraph.
    @tf.function
    def decode_all(image_bytes):
        count = tf.size(image_bytes)
        resized = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=[None, None, 3])
        original_size = tf.TensorArray(tf.int32, count, element_shape=[2])
        image_size = tf.TensorArray(tf.int32, count, element_shape=[2])
        for index in tf.range(count):
            image = _decode(image_bytes[index], index, max_pixels)
            small = preprocessing.resize(image)
            original_size = original_size.write(index, tf.shape(image)[:2])
            image_size = image_size.write(index, tf.shape(small)[:2])
            resized = resized.write(index, small)
        image_size = image_size.stack()  # (B, 2)
        # `Preprocessing.batch` pads a Python list of images; in a graph their number is unknown.
        height, width = tf.unstack(preprocessing.batch_size(tf.reduce_max(image_size, 0)))
        image = tf.map_fn(
            lambda index: resize_ops.pad_to(resized.read(index), height, width),
            tf.range(count),
            fn_output_signature=tf.TensorSpec([None, None, 3], tf.float32),
        )
        return image, image_size, original_size.stack()

    return decode_all(image_bytes)


def _decode(encoded, index, max_pixels):
    """Decodes one image to (H, W, 3) uint8; error messages name its index in the request."""
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    with tf.control_dependencies(
        [_check(tf.io.is_jpeg(encoded) | is_png, "image_bytes[{}] is not a JPEG or PNG file", index)]
    ):
        encoded = tf.identity(encoded)
    readable, (pixels, image) = _attempt(lambda data: _read(data, is_png, max_pixels), encoded)
    too_large = "image_bytes[{}] has {} pixels, and this model accepts " + f"{max_pixels}: send a smaller image"
    with tf.control_dependencies(
        [
            _check(readable & (pixels > 0), "image_bytes[{}] is damaged or cut short", index),
            _check(pixels <= max_pixels, too_large, index, pixels),
        ]
    ):
        return tf.identity(image)


def _read(encoded, is_png, max_pixels):
    """Returns the number of pixels that the header states, and the image, which is empty if they are too many."""
    pixels = tf.reduce_prod(tf.cond(is_png, lambda: _png_size(encoded), lambda: _jpeg_size(encoded)))
    image = tf.cond(
        pixels <= max_pixels,
        lambda: image_ops.decode(encoded, refuse_damaged=True),
        lambda: tf.zeros([0, 0, 3], tf.uint8),
    )
    return pixels, image


def _check(condition, message, *values):
    return tf.debugging.Assert(condition, [tf.strings.format(message, values)])


def _png_size(encoded):
    """Reads (height, width) from the header as int64; a truncated header gives zeros."""
    digits = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8), tf.int64)
    digits = tf.pad(digits, [[0, 8 - tf.size(digits)]])
    width, height = tf.unstack(tf.reduce_sum(tf.reshape(digits, [2, 4]) * [1 << 24, 1 << 16, 1 << 8, 1], 1))
    return tf.stack([height, width])


def _jpeg_size(encoded):
    return tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64)


def _attempt(function, encoded):
    """Returns whether a function of an encoded image succeeds, and its results, which are empty if it fails.

    Outside a dataset, a failed op would stop the graph with a message that does not name the image. Inside a dataset,
    `ignore_errors` catches the error.
    """
    result = tf.data.Dataset.from_tensors(encoded).map(function).with_options(_UNOPTIMIZED)
    empty = tuple(tf.zeros([size or 0 for size in spec.shape], spec.dtype) for spec in result.element_spec)
    return result.ignore_errors().reduce((False, empty), lambda _, *values: (True, values))
