"""Pastes objects of one image into another."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.data.transforms.arguments import check_at_least, check_counts, check_probabilities
from kerasdet.data.transforms.canvas import place
from kerasdet.data.transforms.compose import Draw, Example, Transform, apply_if, at_random
from kerasdet.data.transforms.mixing import MixTransform
from kerasdet.errors import UserError
from kerasdet.geometry import crops
from kerasdet.geometry import masks as mask_ops


@dataclasses.dataclass(frozen=True)
class CopyPaste(MixTransform):
    """Pastes objects of another image by their masks (simple copy-paste, https://arxiv.org/abs/2012.07177).

    The other image should be resized and cropped like the first one: pass the first image's transforms as
    `transforms`. The other image is then cropped or padded at the bottom right to the size of the first image, and a
    random number of its objects, except crowds, is pasted at the same positions. The masks and boxes of covered objects
    lose the covered part, and their covered keypoints become hidden. The default values are those of mmdetection's
    `CopyPaste`.

    Args:
        max_objects: Largest number of objects that are pasted.
        box_tolerance: A covered object is kept if no side of its box moves by more than this, in pixels.
        min_area: A covered object is also kept if more than this area of its mask stays visible, in square pixels.
        probability: Probability that objects are pasted, in [0, 1].
        transforms: Callables ``(example, seed) -> example``, applied to the other image first.

    Raises:
        UserError: If an argument is out of range.

    Example:
        >>> jitter = [ScaleJitter((1024, 1024)), RandomFlip()]
        >>> transforms = [*jitter, CopyPaste(transforms=jitter)]
    """

    max_objects: int = 100
    box_tolerance: float = 10.0
    min_area: float = 300.0
    probability: float = 1.0
    transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        check_counts(self, "max_objects")
        check_at_least(self, 0, "box_tolerance", "min_area")
        check_probabilities(self, "probability")

    def mix(self, example: Example, seed: tf.Tensor, draw: Draw) -> Example:
        """Pastes objects of another image.

        Args:
            example: Tensors of one image with `masks`, see `kerasdet.data.transforms`.
            seed: Seed of all randomness, (2,) int32.
            draw: Function that takes a seed, (2,) int32, and returns the example of a random image, after `transforms`.

        Returns:
            The example with the pasted objects.

        Raises:
            UserError: If the examples have no masks.
        """
        if "masks" not in example:
            raise UserError(
                "CopyPaste got examples without masks; expected a dataset that was read with masks=True. Set "
                "CocoDataset.masks=True (Python: masks=True), or use MixUp or Mosaic."
            )
        seeds = tf.unstack(tf.random.split(seed, 3))
        random = tf.random.stateless_uniform([2], seeds[0])

        def pasted():
            size = tf.shape(example["image"])[:2]
            other = place(draw(seeds[1]), tf.constant([0, 0]), size)
            other = objects.select(other, ~other["is_crowd"])
            other = self._some(other, random[1], seeds[2])
            return apply_if(tf.shape(other["boxes"])[0] > 0, lambda: self._paste(example, other), example)

        return at_random(self.probability, random[0], pasted, example)

    def _some(self, other, random, seed):
        """Selects a random number of objects; every number from 0 to all objects is equally likely."""
        count = tf.shape(other["boxes"])[0]
        chosen = tf.cast(random * tf.cast(tf.minimum(count, self.max_objects) + 1, tf.float32), tf.int32)
        rank = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
        return objects.select(other, rank < chosen)

    def _paste(self, example, other):
        size = tf.shape(example["image"])
        probs = tf.cast(other["masks"], tf.float32) / 255
        covered = tf.reduce_any(mask_ops.paste_masks(probs, other["boxes"], size[0], size[1]), 0)  # (H, W)
        image = tf.where(covered[..., tf.newaxis], other["image"], example["image"])
        return {**objects.join(self._uncovered(example, covered), other), "image": image}

    def _uncovered(self, example, covered):
        """Removes the covered part from the masks and boxes of an example and drops the objects that are hidden."""
        boxes, masks = example["boxes"], example["masks"]
        below = crops.from_bitmaps(covered[tf.newaxis], boxes, masks.shape[-1])
        left = crops.subtract(masks, below)
        is_touched = tf.reduce_any(left != masks, [1, 2])
        tight = tf.where(is_touched[:, tf.newaxis], crops.tight_boxes(left, boxes), boxes)
        area = crops.areas(left, boxes)
        left = tf.where(is_touched[:, tf.newaxis, tf.newaxis], crops.recrop(left, boxes, tight), masks)
        is_same = tf.reduce_all(tf.abs(tight - boxes) <= self.box_tolerance, 1)
        is_empty = tf.reduce_any(tight[:, 2:] <= tight[:, :2], 1)
        keep = ~is_touched | (~is_empty & (is_same | (area > self.min_area)))
        example = {**example, "boxes": tight, "masks": left}
        if "keypoints" in example:
            example["keypoints"] = _hide(example["keypoints"], covered)
        return objects.select(example, keep)


def _hide(keypoints, covered):
    """Lowers the visibility of keypoints under covered pixels from 2, visible, to 1, labelled but hidden."""
    index = tf.minimum(tf.cast(keypoints[..., :2], tf.int32), tf.shape(covered) - 1)
    hidden = tf.gather_nd(covered, index)  # (M, J)
    visibility = tf.where(hidden, tf.minimum(keypoints[..., 2], 1.0), keypoints[..., 2])
    return tf.concat([keypoints[..., :2], visibility[..., tf.newaxis]], -1)
