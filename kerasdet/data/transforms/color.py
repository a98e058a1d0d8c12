"""Changes the colours of images."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_at_least, check_probabilities, check_range
from kerasdet.data.transforms.pixels import as_pixels

_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))  # all orders of three channels


@dataclasses.dataclass(frozen=True)
class RandomPhotometricDistort:
    """Changes brightness, contrast, saturation, hue and the order of channels (SSD, https://arxiv.org/abs/1512.02325).

    Order and default values are those of mmdetection's `PhotoMetricDistortion`: brightness, contrast, saturation, hue,
    channels. The contrast changes either before the saturation or after the hue. Each change is applied with the given
    probability. Values are clipped to 0..255 after each change, as in SSD's own code, and rounded at the end if the
    image is uint8.

    Args:
        brightness: Largest change of brightness; a value in [-brightness, brightness] is added. In 0..255.
        contrast: Smallest and largest factor by which all values are multiplied.
        saturation: Smallest and largest factor by which the saturation in HSV is multiplied.
        hue: Largest change of the hue in either direction, in degrees (0..360).
        probability: Probability of each change of brightness, contrast, saturation and hue, in [0, 1].
        channel_probability: Probability that the channels are put into another order, in [0, 1].

    Raises:
        UserError: If an argument is out of range.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    probability: float = 0.5
    channel_probability: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, 0, "brightness", high=255)
        check_at_least(self, 0, "hue", high=360)
        check_range(self, "contrast", 0)
        check_range(self, "saturation", 0)
        check_probabilities(self, "probability", "channel_probability")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Changes the colours of an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of all changes, (2,) int32.

        Returns:
            The example with the changed image.
        """
        draw = tf.random.stateless_uniform([11], seed)
        applies = draw[:4] < self.probability
        brightness = tf.where(applies[0], _between(draw[4], (-self.brightness, self.brightness)), 0.0)
        contrast = tf.where(applies[1], _between(draw[5], self.contrast), 1.0)
        saturation = tf.where(applies[2], _between(draw[6], self.saturation), 1.0)
        hue = tf.where(applies[3], _between(draw[7], (-self.hue, self.hue)) / 360, 0.0)
        contrast_first = draw[8] < 0.5
        image = example["image"]
        values = _clip(tf.cast(image, tf.float32) + brightness)
        values = _clip(values * tf.where(contrast_first, contrast, 1.0))
        values = tf.cond(applies[2], lambda: _clip(tf.image.adjust_saturation(values, saturation)), lambda: values)
        values = tf.cond(applies[3], lambda: _clip(tf.image.adjust_hue(values, hue)), lambda: values)
        values = _clip(values * tf.where(contrast_first, 1.0, contrast))
        order = tf.gather(_ORDERS, tf.cast(draw[10] * len(_ORDERS), tf.int32))
        values = tf.cond(draw[9] < self.channel_probability, lambda: tf.gather(values, order, axis=-1), lambda: values)
        return {**example, "image": as_pixels(values, image)}


def _between(draw, limits):
    return limits[0] + draw * (limits[1] - limits[0])


def _clip(values):
    return tf.clip_by_value(values, 0.0, 255.0)
