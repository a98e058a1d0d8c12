"""Transforms an image together with its boxes, masks and keypoints.

A transform is a callable ``(example, seed) -> example``. An example is a dict of unbatched tensors with the keys of a
batch: `image` (H, W, 3), `image_size` (2,), `boxes` (M, 4), optionally `masks` (M, S, S) and `keypoints` (M, J, 3). An
example with keypoints has `keypoint_flip` (J,), the index of the keypoint that replaces each in a mirror image.
Transforms pass other keys through. All randomness comes from `seed` (2,) int32, so an example is reproducible.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.ops import resize as resize_ops


@dataclasses.dataclass(frozen=True)
class ResizeShortestEdge:
    """Resizes so that the shorter edge gets a given length, but the longer edge stays within its limit.

    Args:
        shortest: Lengths of the shorter edge to draw from, in pixels. Without a seed the first one is used.
        longest: Limit of the longer edge, in pixels.
        sampling: "choice" draws one of `shortest`; "range" draws any length from the first to the second.
        rounding: Rule of the size, "detectron2", "torchvision" or "mmdetection"; see
            `kerasdet.ops.resize.shortest_edge_size`.
        kernel: "pil" and "opencv" give a uint8 image, "bilinear" a float32 image; see `kerasdet.ops.resize.resize`.

    Raises:
        UserError: If `sampling`, `rounding` or `kernel` is unknown, a length is below 1, or a range is not (low, high).
    """

    shortest: tuple[int, ...] = (800,)
    longest: int = 1333
    sampling: str = "choice"
    rounding: str = "detectron2"
    kernel: str = "pil"

    def __post_init__(self) -> None:
        shortest = (self.shortest,) if isinstance(self.shortest, int) else tuple(self.shortest)
        object.__setattr__(self, "shortest", shortest)
        if not shortest or min(*shortest, self.longest) < 1:
            raise UserError(
                f"ResizeShortestEdge got shortest={shortest} and longest={self.longest}; expected lengths of 1 pixel "
                "or more. Correct them."
            )
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UserError(
                    f"ResizeShortestEdge got {name}={getattr(self, name)!r}; expected one of {words}. Choose one."
                )
        if self.sampling == "range" and (len(shortest) != 2 or shortest[0] > shortest[1]):
            raise UserError(
                f"ResizeShortestEdge got shortest={shortest} with sampling='range'; expected (low, high). Give two "
                "lengths in ascending order."
            )

    def __call__(self, example: dict[str, Any], seed: tf.Tensor | None = None) -> dict[str, Any]:
        """Resizes an example.

        Args:
            example: Tensors of one image, see the module's docstring.
            seed: Seed that draws the length, (2,) int32. None uses the first length.

        Returns:
            The example with resized image, boxes and keypoints; cropped masks do not depend on the size.
        """
        old = tf.shape(example["image"])[:2]
        size = resize_ops.shortest_edge_size(old[0], old[1], self._draw(seed), self.longest, self.rounding)
        size = tf.maximum(tf.stack(size), 1)
        image = resize_ops.resize(example["image"], size, self.kernel)  # (h, w, 3)
        image = tf.cast(image, tf.uint8) if self.kernel in resize_ops.UINT8_KERNELS else image
        factor = tf.cast(size, tf.float32) / tf.cast(old, tf.float32)
        example = {**example, "image": image, "image_size": size, "boxes": box_ops.scale(example["boxes"], factor)}
        if "keypoints" in example:
            example["keypoints"] = keypoint_ops.scale(example["keypoints"], factor)
        return example

    def _draw(self, seed):
        if seed is None:
            return tf.constant(self.shortest[0])
        if self.sampling == "range":
            low, high = self.shortest
            return tf.random.stateless_uniform([], seed, low, high + 1, tf.int32)
        index = tf.random.stateless_uniform([], seed, 0, len(self.shortest), tf.int32)
        return tf.gather(self.shortest, index)


_WORDS = {
    "sampling": ("choice", "range"),
    "rounding": resize_ops.ROUNDINGS,
    "kernel": resize_ops.KERNELS,
}


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Flips the image and its annotations at random; left and right keypoints change places.

    Args:
        horizontal: Probability of a left-right flip, in [0, 1].
        vertical: Probability of an upside-down flip, drawn independently, in [0, 1].

    Raises:
        UserError: If a probability is outside [0, 1].
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.horizontal <= 1 and 0 <= self.vertical <= 1):
            raise UserError(
                f"RandomFlip got horizontal={self.horizontal} and vertical={self.vertical}; expected probabilities in "
                "[0, 1]. Correct them."
            )

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Flips an example.

        Args:
            example: Tensors of one image, see the module's docstring.
            seed: Seed that decides about both flips, (2,) int32.

        Returns:
            The example, flipped or not.
        """
        draw = tf.random.stateless_uniform([2], seed)
        example = _flip(
            example, draw[0] < self.horizontal, box_ops.flip_left_right, keypoint_ops.flip_left_right, axis=1
        )
        return _flip(example, draw[1] < self.vertical, box_ops.flip_up_down, keypoint_ops.flip_up_down, axis=0)


def _flip(example, when, flip_boxes, flip_keypoints, axis):
    length = tf.shape(example["image"])[axis]

    def flipped():
        changed = {"image": tf.reverse(example["image"], [axis]), "boxes": flip_boxes(example["boxes"], length)}
        if "masks" in example:
            changed["masks"] = tf.reverse(example["masks"], [axis + 1])
        if "keypoints" in example:
            changed["keypoints"] = flip_keypoints(example["keypoints"], length, example["keypoint_flip"])
        return changed

    def unchanged():
        names = ("image", "boxes", "masks", "keypoints")
        return {name: tf.identity(example[name]) for name in names if name in example}

    return {**example, **tf.cond(when, flipped, unchanged)}
