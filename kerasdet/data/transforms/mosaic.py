"""Joins four images in one."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.data.transforms.arguments import check_at_least, check_probabilities, check_range, check_size
from kerasdet.data.transforms.canvas import GRAY, Fill, check_fill, place_image
from kerasdet.data.transforms.compose import Draw, Example, Transform, at_random
from kerasdet.data.transforms.mixing import MixTransform
from kerasdet.data.transforms.resize import check_kernel, resize_image


@dataclasses.dataclass(frozen=True)
class Mosaic(MixTransform):
    """Joins the image and three others in a mosaic (YOLOv4, https://arxiv.org/abs/2004.10934).

    It follows mmdetection's `Mosaic` (YOLOX): each image is resized to fit into `size`. A canvas of twice that size
    shows the four images around a common point, which is drawn near the middle. A crop such as `ScaleJitter` or
    `RandomAffine` usually follows.

    Args:
        size: Height and width in pixels that each image is resized to fit into; the result is twice as large.
        center: Smallest and largest coordinate of the common point, as a multiple of `size`.
        fill: Value of the canvas around the images in 0..255: a number, or one for each channel.
        probability: Probability that the image becomes a mosaic, in [0, 1].
        kernel: "pil" and "opencv" give a uint8 image, "bilinear" a float32 image; see `kerasdet.ops.resize.resize`.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.
        transforms: Callables ``(example, seed) -> example``, applied to each of the three other images.

    Raises:
        UserError: If an argument is out of range.
    """

    size: tuple[int, int] = (640, 640)
    center: tuple[float, float] = (0.5, 1.5)
    fill: Fill = GRAY
    probability: float = 1.0
    kernel: str = "pil"
    min_visible: float = 0.0
    min_size: float = 1.0
    transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        check_size(self, "size")
        check_range(self, "center", 0.0, 2.0)
        check_fill(self)
        check_probabilities(self, "probability", "min_visible")
        check_kernel(self)
        check_at_least(self, 0, "min_size")

    def mix(self, example: Example, seed: tf.Tensor, draw: Draw) -> Example:
        """Makes a mosaic.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of all randomness, (2,) int32.
            draw: Function that takes a seed, (2,) int32, and returns the example of a random image, after `transforms`.

        Returns:
            The example with the mosaic as its image and the objects of all four images.
        """
        seeds = tf.unstack(tf.random.split(seed, 4))
        random = tf.random.stateless_uniform([3], seeds[0])
        place = self._part
        if not tf.executing_eagerly():  # one function in the graph for all four images
            place = tf.function(self._part, autograph=False, experimental_attributes={"_noinline": True})

        def mosaic():
            center = self.center[0] + random[1:] * (self.center[1] - self.center[0])
            point = tf.cast(tf.cast(self.size, tf.float32) * center, tf.int32)
            parts = [example, *(draw(seed) for seed in seeds[1:])]
            (first, *others), images = zip(
                *(place(part, tf.constant(i), point) for i, part in enumerate(parts)), strict=True
            )
            for other in others:
                first = objects.join(first, other)
            rows = [tf.concat(images[i : i + 2], 1) for i in (0, 2)]
            image = tf.concat(rows, 0)
            return {**first, "image": image, "image_size": tf.shape(image)[:2]}

        return at_random(self.probability, random[0], mosaic, example)

    def _part(self, example, i, point):
        """Returns the objects of image i on the canvas, and its quadrant: 0 and 1 are above, 0 and 2 on the left."""
        canvas = 2 * tf.constant(self.size)
        old = tf.cast(tf.shape(example["image"])[:2], tf.float32)
        new = tf.floor(old * tf.reduce_min(tf.cast(self.size, tf.float32) / old) + 1e-4)
        new = tf.maximum(tf.cast(new, tf.int32), 1)
        is_after = tf.stack([i // 2, i % 2]) == 1  # below, or right of the common point
        quadrant = tf.where(is_after, canvas - point, point)  # its size
        visible = tf.minimum(new, quadrant)
        start = tf.where(is_after, 0, new - visible)  # in the resized image
        window = tf.concat([start, start + visible], 0)
        inner = tf.where(is_after, 0, quadrant - visible)  # in the quadrant
        image = resize_image(example["image"], new, self.kernel, window)
        image = place_image(image, inner, quadrant, self.fill)
        example = objects.scale(example, tf.cast(new, tf.float32) / old)
        corner = tf.where(is_after, point, 0) + inner
        limits = {"min_visible": self.min_visible, "min_size": self.min_size}
        return objects.cut(example, start - corner, canvas, **limits), image
