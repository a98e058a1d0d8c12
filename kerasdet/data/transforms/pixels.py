"""Turns computed values back into pixels."""

import tensorflow as tf


def as_pixels(values: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Gives new values of an image the type of the image; whole numbers are rounded to, not truncated to.

    Args:
        values: (H, W, 3) float32, in the range of the image's type.
        image: The image that they were computed from, (H, W, 3).

    Returns:
        (H, W, 3) of the type and the static shape of `image`.
    """
    values = tf.round(values) if image.dtype.is_integer else values
    return tf.ensure_shape(tf.cast(values, image.dtype), image.shape)
