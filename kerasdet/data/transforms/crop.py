"""Crops and zooms images together with their objects."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.data.transforms.arguments import (
    check_at_least,
    check_counts,
    check_probabilities,
    check_range,
    check_size,
)
from kerasdet.data.transforms.canvas import IMAGENET_MEAN, Fill, check_fill, place
from kerasdet.data.transforms.compose import at_random
from kerasdet.data.transforms.resize import check_kernel, resize_image
from kerasdet.geometry import boxes as box_ops

# torchvision draws minimum IoUs without end; here the image stays whole if this many yield no crop
_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """Resizes by a random factor and crops to a fixed size: large-scale jitter (https://arxiv.org/abs/2012.07177).

    The image is resized to fit into `size`, and then by a random factor. If it exceeds `size`, a random crop of that
    size is taken (detectron2's `ResizeScale` and `FixedSizeCrop`). A smaller image keeps its size and is padded in the
    batch as usual; detectron2 pads it to `size` with gray.

    Args:
        size: Height and width of the crop in pixels.
        scale: Smallest and largest random factor. The paper uses (0.1, 2.0) for large-scale jitter and (0.8, 1.25) for
            standard jitter.
        kernel: "pil" and "opencv" give a uint8 image, "bilinear" a float32 image; see `kerasdet.ops.resize.resize`.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.

    Raises:
        UserError: If an argument is out of range.
    """

    size: tuple[int, int] = (1024, 1024)
    scale: tuple[float, float] = (0.1, 2.0)
    kernel: str = "pil"
    min_visible: float = 0.0
    min_size: float = 1.0

    def __post_init__(self) -> None:
        check_size(self, "size")
        check_range(self, "scale", 0.01)
        check_kernel(self)
        check_probabilities(self, "min_visible")
        check_at_least(self, 0, "min_size")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Resizes and crops an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the factor and of the crop's position, (2,) int32.

        Returns:
            The resized and cropped example, with an image of at most `size`.
        """
        draw = tf.random.stateless_uniform([3], seed)
        old = tf.cast(tf.shape(example["image"])[:2], tf.float32)
        target = tf.constant(self.size, tf.float32)
        factor = (self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])) * tf.reduce_min(target / old)
        resized = tf.maximum(tf.round(old * factor), 1.0)
        offset = tf.round(tf.maximum(resized - target, 0.0) * draw[1:])
        size = tf.cast(tf.minimum(resized, target), tf.int32)
        start = tf.cast(offset, tf.int32)
        window = tf.concat([start, start + size], 0)
        image = resize_image(example["image"], tf.cast(resized, tf.int32), self.kernel, window)
        limits = {"min_visible": self.min_visible, "min_size": self.min_size}
        example = objects.cut(objects.scale(example, resized / old), start, size, **limits)
        return {**example, "image": image, "image_size": size}


@dataclasses.dataclass(frozen=True)
class RandomIoUCrop:
    """Crops so that at least one object overlaps the crop by a minimum IoU (SSD, https://arxiv.org/abs/1512.02325).

    It follows torchvision's `RandomIoUCrop`: a minimum IoU between crop and objects is drawn, then crops are drawn
    until one has at least this IoU with some object whose centre is inside. Objects whose centre is outside the crop
    are dropped. If ten minimum IoUs yield no crop, or the image has no objects, the image stays whole.

    Args:
        scale: Smallest and largest length of the crop's sides, as a fraction of the image's sides.
        aspect_ratio: Smallest and largest width / height of the crop.
        min_ious: Minimum IoUs to draw from; 1 keeps the whole image.
        trials: Number of crops to draw before another minimum is drawn.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.

    Raises:
        UserError: If an argument is out of range.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    aspect_ratio: tuple[float, float] = (0.5, 2.0)
    min_ious: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    trials: int = 40
    min_visible: float = 0.0
    min_size: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "scale", 0.01, 1.0)
        check_range(self, "aspect_ratio", 0.01)
        check_at_least(self, 0, "min_ious", "min_size")
        check_counts(self, "trials")
        check_probabilities(self, "min_visible")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Crops an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the crop, (2,) int32.

        Returns:
            The example, cropped or unchanged.
        """
        window = self._draw(example["boxes"], tf.shape(example["image"])[:2], seed)
        center, edges = box_ops.centers(example["boxes"]), tf.cast(window, tf.float32)
        inside = tf.reduce_all((center > edges[:2]) & (center < edges[2:]), 1)
        limits = {"min_visible": self.min_visible, "min_size": self.min_size}
        return place(objects.select(example, inside), -window[:2], window[2:] - window[:2], **limits)

    def _draw(self, boxes, image_size, seed):
        """Draws the crop, (4,) int32 yxyx: the first that reaches its minimum IoU, or else the whole image."""
        seeds = tf.random.split(seed, 2)
        index = tf.random.stateless_uniform([_ROUNDS], seeds[0], 0, len(self.min_ious), tf.int32)
        min_iou = tf.gather(tf.constant(self.min_ious, tf.float32), index)[:, tf.newaxis]  # (rounds, 1)
        draw = tf.random.stateless_uniform([_ROUNDS, self.trials, 2, 2], seeds[1])
        size = tf.floor(tf.cast(image_size, tf.float32) * (self.scale[0] + draw[0:, :, 0] * _width(self.scale)))
        start = tf.floor((tf.cast(image_size, tf.float32) - size) * draw[:, :, 1])
        windows = tf.concat([start, start + size], -1)  # (rounds, trials, 4)
        ratio = tf.math.divide_no_nan(size[..., 1], size[..., 0])
        valid = (ratio >= self.aspect_ratio[0]) & (ratio <= self.aspect_ratio[1]) & tf.reduce_all(size >= 1, -1)
        edges, center = tf.expand_dims(windows, -2), box_ops.centers(boxes)
        inside = tf.reduce_all((center > edges[..., :2]) & (center < edges[..., 2:]), -1)  # (rounds, trials, M)
        iou = box_ops.iou(windows, tf.broadcast_to(boxes, [_ROUNDS, *tf.unstack(tf.shape(boxes))]))
        best = tf.reduce_max(tf.where(inside, iou, -1.0), -1)  # lowest float if there are no boxes
        valid &= (best >= min_iou) & (best >= 0)

        whole = tf.concat([[0, 0], image_size], 0)  # a minimum of 1 ends the search: the whole image is its first trial
        is_first = tf.range(self.trials) == 0
        valid = tf.where(min_iou >= 1, is_first, valid)
        windows = tf.where((min_iou >= 1)[..., tf.newaxis], tf.cast(whole, tf.float32), windows)
        windows, valid = tf.reshape(windows, [-1, 4]), tf.reshape(valid, [-1])
        chosen = tf.gather(windows, tf.argmax(tf.cast(valid, tf.int32)))
        return tf.where(tf.reduce_any(valid), tf.cast(chosen, tf.int32), whole)


@dataclasses.dataclass(frozen=True)
class RandomZoomOut:
    """Places the image on a larger canvas, so that objects become smaller (SSD; torchvision's `RandomZoomOut`).

    Args:
        side: Smallest and largest ratio of the sides of the canvas to the sides of the image, the same for height and
            width.
        fill: Value of the canvas in 0..255: a number, or one for each channel. Default: ImageNet's mean colour.
        probability: Probability that the image is placed on a canvas, in [0, 1].

    Raises:
        UserError: If an argument is out of range.
    """

    side: tuple[float, float] = (1.0, 4.0)
    fill: Fill = IMAGENET_MEAN
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_range(self, "side", 1.0)
        check_fill(self)
        check_probabilities(self, "probability")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Places an example on a canvas.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the decision, the size and the position, (2,) int32.

        Returns:
            The example on a canvas, or unchanged.
        """
        draw = tf.random.stateless_uniform([4], seed)

        def zoom_out():
            old = tf.shape(example["image"])[:2]
            factor = self.side[0] + draw[1] * _width(self.side)
            size = tf.cast(tf.cast(old, tf.float32) * factor, tf.int32)
            offset = tf.cast(tf.cast(size - old, tf.float32) * draw[2:], tf.int32)
            return place(example, offset, size, self.fill)

        return at_random(self.probability, draw[0], zoom_out, example)


def _width(limits):
    return limits[1] - limits[0]
