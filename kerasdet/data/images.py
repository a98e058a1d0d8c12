"""Decodes image files as TensorFlow graph functions and turns them upright by their EXIF orientation.

Training, `detect` and exported SavedModels share these functions, so they see the same pixels. They use only stock
TensorFlow ops; every static shape may be unknown.
"""

import os
import re

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.paths import expand

# EXIF stands in the first segment, which JPEG limits to 64 KiB.
EXIF_SEARCH = 1 << 16
_EXIF_ORIENTATION = 0x0112


def decode(encoded: tf.Tensor | bytes, exif: bool | tf.Tensor = True) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP or GIF (first frame) to the same pixels as PIL and applies its EXIF orientation.

    Gray, palette and CMYK images become RGB; alpha is dropped; 16-bit samples keep their upper 8 bits.

    Args:
        encoded: Bytes of the image file, () string.
        exif: Whether to apply the EXIF orientation of a JPEG, a bool or () bool.

    Returns:
        RGB image, (H, W, 3) uint8.
    """
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return apply_orientation(image, tf.where(exif, exif_orientation(encoded), 1))


def exif_orientation(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """Reads the EXIF orientation of a JPEG.

    Args:
        encoded: Bytes of the image file, () string.

    Returns:
        The orientation, () int32 in 1..8. It is 1 (upright) if the file is not a JPEG, has no EXIF or is malformed.
    """
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, EXIF_SEARCH), tf.uint8), tf.int32)
    size = tf.shape(head)[0]
    head = tf.concat([head, [0]], 0)

    def byte(position):
        return tf.gather(head, tf.where((position >= 0) & (position < size), position, size))

    def number(position, count, little):
        digits = [byte(position + i) for i in range(count)]
        big_endian = sum(digit * 256**i for i, digit in enumerate(reversed(digits)))
        little_endian = sum(digit * 256**i for i, digit in enumerate(digits))
        return tf.where(little, little_endian, big_endian)

    def starts_with(position, text):
        return tf.reduce_all(byte(position + tf.range(len(text))) == tf.constant(list(text)))

    def is_exif(position):
        return (byte(position + 1) == 0xE1) & starts_with(position + 4, b"Exif\0\0")

    def is_other_segment(position):
        marker, length = byte(position + 1), number(position + 2, 2, False)
        segment = (byte(position) == 0xFF) & (marker != 0xDA) & (length >= 2) & ~is_exif(position)
        return segment & (position < size)

    is_jpeg = starts_with(0, b"\xff\xd8")
    start = tf.where(is_jpeg, 2, size)
    [segment] = tf.while_loop(
        is_other_segment, lambda position: [position + 2 + number(position + 2, 2, False)], [start]
    )

    tiff = segment + 10
    little = starts_with(tiff, b"II*\0")
    offset = number(tiff + 4, 4, little)
    valid = is_exif(segment) & (little | starts_with(tiff, b"MM\0*")) & (offset >= 8) & (offset < size)
    directory = tiff + tf.where(valid, offset, 0)
    entries = directory + 2 + 12 * tf.range(tf.where(valid, number(directory, 2, little), 0))
    short = number(entries + 2, 2, little) == 3
    value = tf.where(short, number(entries + 8, 2, little), number(entries + 8, 4, little))
    found = (number(entries, 2, little) == _EXIF_ORIENTATION) & (number(entries + 4, 4, little) == 1)
    orientation = tf.reduce_max(tf.concat([tf.where(found, value, 1), [1]], 0))
    return tf.where(orientation <= 8, orientation, 1)


def apply_orientation(image: tf.Tensor, orientation: tf.Tensor | int) -> tf.Tensor:
    """Turns a stored image upright.

    Args:
        image: Image as stored, (H, W, C).
        orientation: EXIF orientation, () int32 in 1..8.

    Returns:
        Upright image: (H, W, C), or (W, H, C) for orientations 5 to 8.
    """

    def is_one_of(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(values))

    shape = (None, None, image.shape[-1])
    image = tf.cond(is_one_of(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image))
    image = tf.ensure_shape(image, shape)
    image = tf.cond(is_one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: tf.identity(image))
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: tf.identity(image))


def read(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as an upright RGB array.

    Args:
        path: Path of a JPEG, PNG, BMP or GIF file.

    Returns:
        Image, (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If TensorFlow cannot decode the file.
    """
    path = expand(path, "The path of an image")
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} does not exist. Check the path.")
    try:
        return decode(path.read_bytes()).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"{path} cannot be read as an image: {_reason(error)}.") from None


def _reason(error):
    """Returns why TensorFlow cannot decode a file, without the names of its ops."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", error.message.splitlines()[0])
    if "Unknown image file format" in text:
        return "it is not a JPEG, PNG, BMP or GIF file, whatever its name says; convert it to one of these"
    return f"{' '.join(text.split()).rstrip('. ')}; save it again as JPEG, PNG, BMP or GIF"
