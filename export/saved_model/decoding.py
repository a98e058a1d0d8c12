"""Decodes the images of a request into a batch, inside the graph.

The number of pixels is checked before an image is decoded, and errors name the invalid image.
"""

import tensorflow as tf

from kerasdet.data import images as image_ops
from kerasdet.data import jpeg
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
    """Decodes one image to (H, W, 3) uint8, upright; error messages name its index in the request."""
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    with tf.control_dependencies(
        [_check(tf.io.is_jpeg(encoded) | is_png, "image_bytes[{}] is not a JPEG or PNG file", index)]
    ):
        encoded = tf.identity(encoded)
    is_readable, pixels, image = _read(encoded, is_png, max_pixels)
    damaged = "image_bytes[{}] is damaged or cut short"
    too_large = "image_bytes[{}] has {} pixels, and this model accepts " + f"{max_pixels}: send a smaller image"
    with tf.control_dependencies(
        [
            _check(is_readable & (pixels > 0), damaged, index),
            _check(pixels <= max_pixels, too_large, index, pixels),
        ]
    ):
        image = tf.identity(image)
    is_whole = tf.cond(is_png, lambda: True, lambda: ~jpeg.is_damaged(encoded, image))
    with tf.control_dependencies([_check(is_whole, damaged, index)]):
        return image_ops.apply_orientation(tf.identity(image), jpeg.exif_orientation(encoded))


def _read(encoded, is_png, max_pixels):
    """Decodes an image as stored, unless its header states too many pixels.

    Outside a dataset, an op that fails would stop the graph with a message that does not name the image. Inside a
    dataset, `ignore_errors` catches the error. The dataset's function has only the ops that can fail: each run of a
    dataset prepares its function anew, and with the search for damage (`jpeg.is_damaged`) that would take 0.2 s.

    Args:
        encoded: Contents of a JPEG or PNG file, a scalar string tensor.
        is_png: Whether the file is a PNG, a scalar bool tensor.
        max_pixels: Largest number of pixels that is decoded.

    Returns:
        Whether the file can be decoded, the number of pixels that its header states, and the image (H, W, 3) uint8,
        which is empty if there are too many. If the file cannot be decoded, number and image are zero and empty.
    """
    png_pixels = _png_pixels(encoded)

    def read(encoded):
        pixels = tf.cond(is_png, lambda: png_pixels, lambda: tf.reduce_prod(_jpeg_size(encoded)))
        image = tf.case(
            [(pixels > max_pixels, lambda: empty[1]), (is_png, lambda: tf.io.decode_png(encoded, channels=3))],
            lambda: jpeg.decode(encoded),
        )
        return pixels, tf.ensure_shape(image, [None, None, 3])

    empty = tf.zeros([], tf.int64), tf.zeros([0, 0, 3], tf.uint8)
    result = tf.data.Dataset.from_tensors(encoded).map(read).with_options(_UNOPTIMIZED).ignore_errors()
    is_readable, (pixels, image) = result.reduce((False, empty), lambda _, *values: (True, values))
    return is_readable, pixels, image


def _check(condition, message, *values):
    return tf.debugging.Assert(condition, [tf.strings.format(message, values)])


def _png_pixels(encoded):
    """Reads the number of pixels, int64, from the header of a PNG; a truncated header gives 0."""
    digits = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8), tf.int64)
    digits = tf.pad(digits, [[0, 8 - tf.size(digits)]])
    return tf.reduce_prod(tf.reduce_sum(tf.reshape(digits, [2, 4]) * [1 << 24, 1 << 16, 1 << 8, 1], 1))


def _jpeg_size(encoded):
    return tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64)
