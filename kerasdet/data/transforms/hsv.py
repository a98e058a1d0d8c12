"""Changes hue, saturation and value of images."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_at_least
from kerasdet.data.transforms.pixels import as_pixels

_HUES, _MAXIMUM = 180.0, 255.0  # OpenCV's HSV of uint8 images: hue in steps of 2 degrees, the others in 0..255


@dataclasses.dataclass(frozen=True)
class RandomHSV:
    """Adds random offsets to hue, saturation and value, like mmdetection's `YOLOXHSVRandomAug`.

    Each of the three channels changes with probability 1/2. Values have the units of OpenCV's HSV of uint8 images:
    whole numbers, the hue in steps of 2 degrees, saturation and value in 0..255.

    Args:
        hue: Largest change of the hue, in steps of 2 degrees.
        saturation: Largest change of the saturation, in 0..255.
        value: Largest change of the value (the maximum of red, green and blue), in 0..255.

    Raises:
        UserError: If an argument is negative.
    """

    hue: float = 5.0
    saturation: float = 30.0
    value: float = 30.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "hue", "saturation", "value")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Changes the colours of an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the changes, (2,) int32.

        Returns:
            The example with the changed image.
        """
        draw = tf.random.stateless_uniform([2, 3], seed)
        limits = tf.constant([self.hue, self.saturation, self.value], tf.float32)
        change = tf.where(draw[0] < 0.5, (2 * draw[1] - 1) * limits, 0.0)
        # Truncated, like mmdetection's cast to integers
        change = tf.where(change < 0, tf.math.ceil(change), tf.floor(change))
        image = example["image"]
        scale = tf.constant([_HUES, _MAXIMUM, _MAXIMUM])
        hsv = tf.round(tf.image.rgb_to_hsv(tf.cast(image, tf.float32) / _MAXIMUM) * scale) + change
        hue, rest = hsv[..., :1] % _HUES, tf.clip_by_value(hsv[..., 1:], 0.0, _MAXIMUM)
        rgb = tf.image.hsv_to_rgb(tf.concat([hue, rest], -1) / scale) * _MAXIMUM
        return {**example, "image": as_pixels(rgb, image)}
