"""Places images on a canvas: crops and pads in one step."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.errors import UserError

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB in 0..255
GRAY = 114.0  # padding value of YOLOX and mmdetection

Fill = float | Sequence[float]


def check_fill(owner: object) -> None:
    """Checks the attribute `fill` of a transform.

    Args:
        owner: Transform that fills the area around images.

    Raises:
        UserError: If `fill` is neither a number in 0..255 nor three such numbers.
    """
    values = owner.fill if isinstance(owner.fill, Sequence) else (owner.fill,)
    if len(values) not in (1, 3) or not all(isinstance(v, int | float) and 0 <= v <= 255 for v in values):
        raise UserError(
            f"{type(owner).__name__} got fill={owner.fill!r}; expected a number in 0..255, or three for red, green and "
            "blue. Correct fill."
        )


def place_image(image: tf.Tensor, offset: tf.Tensor, size: tf.Tensor, fill: Fill) -> tf.Tensor:
    """Places an image on a canvas; the parts outside the canvas are cut off.

    Args:
        image: (H, W, 3).
        offset: (2,) int32, position (y, x) of the image's top left corner on the canvas, in pixels; may be negative.
        size: Height and width of the canvas in pixels, (2,) int32.
        fill: Value of the pixels around the image, in 0..255: a number, or one for each channel.

    Returns:
        The canvas, (height, width, 3) of the dtype of `image`. For uint8, `fill` is rounded to integers.
    """
    start, stop = tf.maximum(-offset, 0), tf.minimum(tf.shape(image)[:2], size - offset)
    stop = tf.maximum(stop, start)
    image = image[start[0] : stop[0], start[1] : stop[1]]
    before = tf.clip_by_value(offset, 0, size - (stop - start))
    paddings = tf.stack([before, size - before - (stop - start)], 1)  # (2, 2) as (axis, side)
    values = fill if isinstance(fill, Sequence) else (fill,)
    if image.dtype.is_integer:
        values = tuple(round(value) for value in values)
    if len(set(values)) == 1:
        value = tf.cast(values[0], image.dtype)
        return tf.ensure_shape(
            tf.pad(image, tf.pad(paddings, [[0, 1], [0, 0]]), constant_values=value), (None, None, 3)
        )

    def block(height, width):
        row = tf.tile(tf.constant(values, image.dtype), [width])  # (3 * width,)
        return tf.reshape(tf.broadcast_to(row, tf.stack([height, 3 * width])), tf.stack([height, width, 3]))

    (top, bottom), (left, right) = tf.unstack(paddings[0]), tf.unstack(paddings[1])
    rows = tf.concat([block(stop[0] - start[0], left), image, block(stop[0] - start[0], right)], 1)
    return tf.concat([block(top, size[1]), rows, block(bottom, size[1])], 0)


def place(
    example: dict[str, Any], offset: tf.Tensor, size: tf.Tensor, fill: Fill = 0.0, **limits: float
) -> dict[str, Any]:
    """Places an image and its objects on a canvas; the parts outside the canvas are cut off.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        offset: (2,) int32, position (y, x) of the image's top left corner on the canvas, in pixels; may be negative.
        size: Height and width of the canvas in pixels, (2,) int32.
        fill: Value of the pixels around the image, in 0..255: a number, or one for each channel.
        **limits: Arguments `min_visible` and `min_size` of `kerasdet.data.transforms.objects.cut`, the limits below
            which cut objects are dropped.

    Returns:
        The example on the canvas.
    """
    image = place_image(example["image"], offset, size, fill)
    return {**objects.cut(example, -offset, size, **limits), "image": image, "image_size": size}
