"""Blends two images."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.data.transforms.arguments import check_at_least, check_probabilities, check_range, check_size
from kerasdet.data.transforms.canvas import GRAY, Fill, check_fill, place
from kerasdet.data.transforms.compose import Draw, Example, Transform, apply_if, at_random
from kerasdet.data.transforms.flip import flip_left_right
from kerasdet.data.transforms.mixing import MixTransform
from kerasdet.data.transforms.resize import check_kernel, resize_to


@dataclasses.dataclass(frozen=True)
class MixUp(MixTransform):
    """Averages the image with another image and keeps the objects of both, like mmdetection's `MixUp` (YOLOX).

    The other image is resized to fit into `size`, put on a canvas of that size, resized again by a random factor,
    flipped at random, and cropped or padded to the size of the first image. If the other image has no objects, the
    first image is not changed.

    Args:
        size: Height and width in pixels that the other image is resized to fit into.
        ratio: Smallest and largest factor of the second resize.
        flip: Probability that the other image is flipped horizontally, in [0, 1].
        fill: Value of the canvas around the other image in 0..255: a number, or one for each channel.
        probability: Probability that the image is blended, in [0, 1].
        kernel: Resize kernel of the other image: "pil", "opencv" or "bilinear"; see `kerasdet.ops.resize.resize`.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.
        transforms: Callables ``(example, seed) -> example``, applied to the other image first.

    Raises:
        UserError: If an argument is out of range.
    """

    size: tuple[int, int] = (640, 640)
    ratio: tuple[float, float] = (0.5, 1.5)
    flip: float = 0.5
    fill: Fill = GRAY
    probability: float = 1.0
    kernel: str = "pil"
    min_visible: float = 0.0
    min_size: float = 1.0
    transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        check_size(self, "size")
        check_range(self, "ratio", 0.01)
        check_fill(self)
        check_probabilities(self, "flip", "probability", "min_visible")
        check_kernel(self)
        check_at_least(self, 0, "min_size")

    def mix(self, example: Example, seed: tf.Tensor, draw: Draw) -> Example:
        """Blends the image with another one.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of all randomness, (2,) int32.
            draw: Function that takes a seed, (2,) int32, and returns the example of a random image, after `transforms`.

        Returns:
            The example with the blended image and the objects of both images.
        """
        seeds = tf.unstack(tf.random.split(seed, 2))
        random = tf.random.stateless_uniform([5], seeds[0])

        def blended():
            other = draw(seeds[1])
            return apply_if(tf.shape(other["boxes"])[0] > 0, lambda: self._blend(example, other, random), example)

        return at_random(self.probability, random[0], blended, example)

    def _blend(self, example, other, random):
        target = tf.shape(example["image"])[:2]
        old = tf.cast(tf.shape(other["image"])[:2], tf.float32)
        size = tf.cast(self.size, tf.float32)
        factor = self.ratio[0] + random[1] * (self.ratio[1] - self.ratio[0])
        # One resize instead of two: directly to the size that the image has in the resized canvas
        inner = tf.floor(old * tf.reduce_min(size / old) + 1e-4)
        other = resize_to(other, tf.maximum(tf.cast(inner * factor, tf.int32), 1), self.kernel)
        canvas = tf.cast(size * factor, tf.int32)
        other = place(other, tf.constant([0, 0]), tf.maximum(canvas, 1), self.fill)
        other = at_random(self.flip, random[2], lambda: flip_left_right(other), other)
        spare = tf.maximum(canvas - target, 0)
        offset = tf.cast(tf.cast(spare + 1, tf.float32) * random[3:], tf.int32)
        limits = {"min_visible": self.min_visible, "min_size": self.min_size}
        other = place(other, -tf.minimum(offset, spare), target, self.fill, **limits)
        values = (tf.cast(example["image"], tf.float32) + tf.cast(other["image"], tf.float32)) / 2
        image = tf.cast(tf.floor(values) if example["image"].dtype.is_integer else values, example["image"].dtype)
        return {**objects.join(example, other), "image": image}
