"""Converts computed values to pixels with the dtype of an image."""

import tensorflow as tf


def as_pixels(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Converts computed values to the dtype of an image. For integer dtypes, values are rounded, not truncated.

    Args:
        values: (H, W, 3) float32, in the range of the image's dtype.
        image: The image from which the values were computed, (H, W, 3).

    Returns:
        The pixels, (H, W, 3) with the dtype and the static shape of `image`.
    """
    values = tf.round(values) if image.dtype.is_integer else values
    return tf.ensure_shape(tf.cast(values, image.dtype), image.shape)
