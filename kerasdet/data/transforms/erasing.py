"""Erases rectangles of images."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_probabilities, check_range
from kerasdet.data.transforms.canvas import Fill, check_fill, place_image
from kerasdet.data.transforms.compose import at_random

_TRIES = 10  # torchvision's number of trials: a rectangle that does not fit into the image is drawn again


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Overwrites a rectangle of the image (https://arxiv.org/abs/1708.04896), like torchvision's `RandomErasing`.

    The annotations do not change: the rectangle occludes objects. The default values are torchvision's, except that
    torchvision fills with 0. If ten random rectangles do not fit into the image, nothing is erased.

    Args:
        probability: Probability that a rectangle is erased, in [0, 1].
        scale: Smallest and largest area of the rectangle, as a fraction of the image's area.
        ratio: Smallest and largest height / width of the rectangle.
        fill: Value of the erased pixels in 0..255: a number, or one for each channel. None: each pixel gets a random
            value, which worked best in the paper.

    Raises:
        UserError: If an argument is out of range.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Fill | None = None

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")
        check_range(self, "scale", 0.0, 1.0)
        check_range(self, "ratio", 0.01)
        if self.fill is not None:
            check_fill(self)

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Erases a rectangle of an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the decision, the rectangle and its pixels, (2,) int32.

        Returns:
            The example, with a rectangle erased or unchanged.
        """
        seeds = tf.random.split(seed, 3)
        draw = tf.random.stateless_uniform([], seeds[0])
        return at_random(self.probability, draw, lambda: self._erase(example, seeds[1], seeds[2]), example)

    def _erase(self, example, place_seed, pixel_seed):
        image = example["image"]
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        draw = tf.random.stateless_uniform([_TRIES, 4], place_seed)
        area = tf.reduce_prod(size) * (self.scale[0] + draw[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        root = tf.exp((low + draw[:, 1] * (high - low)) / 2)
        sides = tf.round(tf.sqrt(area)[:, tf.newaxis] * tf.stack([root, 1 / root], 1))  # (tries, 2)
        fits = tf.reduce_all((sides < size) & (sides >= 1), 1)
        chosen = tf.argmax(tf.cast(fits, tf.int32))
        side = tf.where(tf.reduce_any(fits), sides[chosen], 0.0)
        start = tf.cast(tf.floor((size - side + 1) * draw[chosen, 2:]), tf.int32)
        side = tf.cast(side, tf.int32)
        rows, columns = (
            (tf.range(tf.shape(image)[axis]) >= start[axis])
            & (tf.range(tf.shape(image)[axis]) < start[axis] + side[axis])
            for axis in (0, 1)
        )
        inside = rows[:, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis]  # (H, W, 1)
        if self.fill is None:
            noise = tf.random.stateless_uniform([side[0], side[1], 3], pixel_seed, 0, 256, tf.int32)
            filling = place_image(tf.cast(noise, image.dtype), start, tf.shape(image)[:2], 0.0)
        else:
            values = tf.constant(self.fill, tf.float32)
            filling = tf.cast(tf.round(values) if image.dtype.is_integer else values, image.dtype)
        return {**example, "image": tf.ensure_shape(tf.where(inside, filling, image), image.shape)}
