"""Converts computed values to pixels of an image's type."""

import tensorflow as tf


def as_pixels(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Converts computed values to the type of an image. For integer types they are rounded, not truncated.

    Args:
        values: (H, W, 3) float32, in the range of the image's type.
        image: The image that they were computed from, (H, W, 3).

    Returns:
        (H, W, 3) of the type and the static shape of `image`.
    """
    values = tf.round(values) if image.dtype.is_integer else values
    return tf.ensure_shape(tf.cast(values, image.dtype), image.shape)
