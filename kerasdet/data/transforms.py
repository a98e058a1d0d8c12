"""Transforms: callables ``(example, seed) -> example`` that change an image and its boxes together.

An example is a dict of unbatched tensors with the keys of a batch: `image` (H, W, 3), `image_size` (2,), `boxes`
(M, 4), sometimes `masks` (M, S, S) and `keypoints` (M, J, 3), and whatever else belongs to it. With keypoints comes
`keypoint_flip` (J,), what stands in the place of each in a mirror image. All randomness comes from `seed` (2,) int32,
so that an example can be made again.
"""

import dataclasses

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.ops import resize as resize_ops


@dataclasses.dataclass(frozen=True)
class ResizeShortestEdge:
    """Resizes so that the shorter edge has a given length, unless the longer one would pass its limit.

    Args:
        shortest: lengths to draw from, in pixels; without a seed the first is taken.
        longest: limit of the longer edge, in pixels.
        sampling: "choice" draws one of `shortest`, "range" any length from the first to the second.
        rounding: "detectron2" or "torchvision", see `images.shortest_edge_size`.
        kernel: "pil" (the image becomes uint8) or "bilinear" (float32), see `images.resize`.

    Raises:
        ValueError: for an unknown word or a range that is not (low, high).
    """

    shortest: tuple[int, ...] = (800,)
    longest: int = 1333
    sampling: str = "choice"
    rounding: str = "detectron2"
    kernel: str = "pil"

    def __post_init__(self):
        shortest = (self.shortest,) if isinstance(self.shortest, int) else tuple(self.shortest)
        object.__setattr__(self, "shortest", shortest)
        if not shortest or min(*shortest, self.longest) < 1:
            raise ValueError(f"ResizeShortestEdge: lengths are 1 or more, not {shortest} and {self.longest}.")
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"ResizeShortestEdge: {name} is one of {words}, not {getattr(self, name)!r}.")
        if self.sampling == "range" and (len(shortest) != 2 or shortest[0] > shortest[1]):
            raise ValueError(f"ResizeShortestEdge: sampling='range' needs shortest=(low, high), not {shortest}.")

    def __call__(self, example, seed=None):
        old = tf.shape(example["image"])[:2]
        size = resize_ops.shortest_edge_size(old[0], old[1], self._draw(seed), self.longest, self.rounding)
        size = tf.maximum(tf.stack(size), 1)
        image = resize_ops.resize(example["image"], size, self.kernel)  # (h, w, 3)
        image = tf.cast(image, tf.uint8) if self.kernel == "pil" else image
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
    "rounding": ("detectron2", "torchvision"),
    "kernel": ("pil", "bilinear"),
}


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors the image and what is annotated in it; left and right keypoints change places.

    Args:
        horizontal: probability of swapping left and right.
        vertical: probability of turning upside down, drawn independently.

    Raises:
        ValueError: for a probability outside 0..1.
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self):
        if not (0 <= self.horizontal <= 1 and 0 <= self.vertical <= 1):
            raise ValueError(f"RandomFlip: probabilities lie in 0..1, not {self.horizontal} and {self.vertical}.")

    def __call__(self, example, seed):
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

    def same():
        names = ("image", "boxes", "masks", "keypoints")
        return {name: tf.identity(example[name]) for name in names if name in example}

    return {**example, **tf.cond(when, flipped, same)}
