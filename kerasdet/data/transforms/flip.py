"""Flips images together with their objects."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_probabilities
from kerasdet.data.transforms.compose import at_random
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import keypoints as keypoint_ops


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Flips the image and its annotations at random; left and right keypoints are swapped.

    Args:
        horizontal: Probability of a left-right flip, in [0, 1].
        vertical: Probability of an upside-down flip, drawn independently, in [0, 1].

    Raises:
        UserError: If a probability is outside [0, 1].
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        check_probabilities(self, "horizontal", "vertical")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Flips an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of both decisions, (2,) int32.

        Returns:
            The example, flipped or unchanged.
        """
        draw = tf.random.stateless_uniform([2], seed)
        example = at_random(self.horizontal, draw[0], lambda: flip_left_right(example), example)
        return at_random(self.vertical, draw[1], lambda: flip_up_down(example), example)


def flip_left_right(example: dict[str, Any]) -> dict[str, Any]:
    """Flips an example horizontally.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.

    Returns:
        The mirrored example.
    """
    return _flip(example, 1, box_ops.flip_left_right, keypoint_ops.flip_left_right)


def flip_up_down(example: dict[str, Any]) -> dict[str, Any]:
    """Flips an example vertically.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.

    Returns:
        The mirrored example.
    """
    return _flip(example, 0, box_ops.flip_up_down, keypoint_ops.flip_up_down)


def _flip(example, axis, flip_boxes, flip_keypoints):
    length = tf.shape(example["image"])[axis]
    image, boxes = tf.reverse(example["image"], [axis]), flip_boxes(example["boxes"], length)
    example = {**example, "image": image, "boxes": boxes}
    if "masks" in example:
        example["masks"] = tf.reverse(example["masks"], [axis + 1])
    if "keypoints" in example:
        example["keypoints"] = flip_keypoints(example["keypoints"], length, example["keypoint_flip"])
    return example
