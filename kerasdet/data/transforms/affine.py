"""Rotates, shifts, scales and shears images together with their objects."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.data.transforms.arguments import check_at_least, check_probabilities, check_range
from kerasdet.data.transforms.canvas import GRAY, Fill, check_fill
from kerasdet.data.transforms.compose import apply_if, at_random
from kerasdet.data.transforms.flip import flip_left_right, flip_up_down
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import crops
from kerasdet.geometry import keypoints as keypoint_ops


@dataclasses.dataclass(frozen=True)
class RandomRotate90:
    """Rotates the image by 90, 180 or 270 degrees, each equally likely; boxes, masks and keypoints stay exact.

    Args:
        probability: Probability that the image is rotated, in [0, 1].

    Raises:
        UserError: If the probability is outside [0, 1].
    """

    probability: float = 0.75

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Rotates an example at random.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the random decision and of the angle, (2,) int32.

        Returns:
            The example, rotated or unchanged.
        """
        draw = tf.random.stateless_uniform([2], seed)
        turns = 1 + tf.cast(draw[1] * 3, tf.int32)  # counterclockwise
        return at_random(self.probability, draw[0], lambda: rotate_90(example, turns), example)


def rotate_90(example: dict[str, Any], turns: tf.Tensor) -> dict[str, Any]:
    """Rotates an example counterclockwise by multiples of 90 degrees, like `np.rot90`.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        turns: Number of rotations by 90 degrees, a scalar int32 in 0..3.

    Returns:
        The rotated example.
    """
    order = example.get("keypoint_flip")
    if order is not None:  # the flips that make up a turn swap left and right keypoints, but a turn must not
        example = {**example, "keypoint_flip": tf.range(tf.shape(order)[0])}
    turned = apply_if(turns % 2 == 1, lambda: _transpose(example), example)
    turned = apply_if((turns == 1) | (turns == 2), lambda: flip_up_down(turned), turned)
    result = apply_if(turns >= 2, lambda: flip_left_right(turned), turned)
    return result if order is None else {**result, "keypoint_flip": order}


def _transpose(example):
    swapped = {
        "image": tf.transpose(example["image"], [1, 0, 2]),
        "image_size": tf.reverse(example["image_size"], [0]),
        "boxes": tf.gather(example["boxes"], [1, 0, 3, 2], axis=1),
    }
    if "masks" in example:
        swapped["masks"] = tf.transpose(example["masks"], [0, 2, 1])
    if "keypoints" in example:
        swapped["keypoints"] = tf.gather(example["keypoints"], [1, 0, 2], axis=2)
    return {**example, **swapped}


@dataclasses.dataclass(frozen=True)
class RandomAffine:
    """Rotates, shifts, scales and shears the image around its centre; the image size does not change.

    The matrix is computed as in torchvision's `RandomAffine`; the default ranges and the rules about small objects are
    those of mmdetection's `YOLOXRandomAffine`. With masks, the new box of an object is the tight box of its mask.
    Without masks, it is the box around the four mapped corners, which is larger than the object if the image is
    rotated.

    Args:
        degrees: Largest angle of the rotation in either direction, in degrees.
        translate: Largest shift in either direction, as a fraction of height and width.
        scale: Smallest and largest scale factor.
        shear: Largest angle of the shear along both axes, in degrees.
        fill: Value of pixels outside the image in 0..255: a number, or one for each channel.
        probability: Probability that the image changes, in [0, 1].
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.

    Raises:
        UserError: If an argument is out of range.
    """

    degrees: float = 10.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.5, 1.5)
    shear: float = 2.0
    fill: Fill = GRAY
    probability: float = 1.0
    min_visible: float = 0.2
    min_size: float = 2.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "degrees", "translate", "shear", "min_size")
        check_range(self, "scale", 0.01)
        check_probabilities(self, "probability", "min_visible")
        check_fill(self)
        if self.shear >= 90:
            raise UserError(f"RandomAffine got shear={self.shear}; expected a shear below 90 degrees. Change shear.")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Transforms an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the random decision and of the matrix, (2,) int32.

        Returns:
            The example, transformed or unchanged.
        """
        draw = tf.random.stateless_uniform([7], seed)

        def changed():
            matrix = self._matrix(draw[1:], tf.cast(tf.shape(example["image"])[:2], tf.float32))
            return apply_affine(example, matrix, self.fill, self.min_visible, self.min_size)

        return at_random(self.probability, draw[0], changed, example)

    def _matrix(self, draw, size):
        """Computes the matrix (2, 3), which maps (y, x, 1) to the new (y, x), from six uniform random numbers."""
        signed = 2 * draw - 1
        angle, shear_x, shear_y = tf.unstack(
            signed[:3] * (tf.constant([self.degrees, self.shear, self.shear], tf.float32) * (math.pi / 180))
        )
        factor = self.scale[0] + draw[3] * (self.scale[1] - self.scale[0])
        cosine, sine = (f(angle - shear_y) / tf.cos(shear_y) for f in (tf.cos, tf.sin))
        x_to_x, x_to_y = cosine, sine
        y_to_x, y_to_y = -cosine * tf.tan(shear_x) - tf.sin(angle), -sine * tf.tan(shear_x) + tf.cos(angle)
        linear = factor * tf.stack([[y_to_y, x_to_y], [y_to_x, x_to_x]])
        center, shift = size / 2, signed[4:] * self.translate * size
        moved = center + shift - tf.linalg.matvec(linear, center)
        return tf.concat([linear, moved[:, tf.newaxis]], 1)


def apply_affine(
    example: dict[str, Any], matrix: tf.Tensor, fill: Fill, min_visible: float, min_size: float
) -> dict[str, Any]:
    """Maps an example by an affine matrix onto an image of the same size.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        matrix: (2, 3), invertible. Maps (y, x, 1) to the new (y, x), in continuous pixels.
        fill: Value of pixels outside the image in 0..255: a number, or one for each channel.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the image, in [0, 1].
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.

    Returns:
        The example with mapped image and objects.
    """
    image, boxes = example["image"], example["boxes"]
    size = tf.shape(image)[:2]
    linear = tf.linalg.inv(matrix[:, :2])
    inverse = tf.concat([linear, -tf.linalg.matmul(linear, matrix[:, 2:])], 1)
    example = {**example, "image": _warp_image(image, inverse, fill)}
    if "masks" in example:
        example["boxes"] = new = crops.affine_boxes(example["masks"], boxes, matrix)
        example["masks"] = crops.warp(example["masks"], boxes, new, inverse)
    else:
        y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
        corners = tf.stack([tf.stack([y, x], 1) for y in (y1, y2) for x in (x1, x2)], 1)  # (M, 4, 2)
        corners = tf.linalg.matmul(corners, matrix[:, :2], transpose_b=True) + matrix[:, 2]
        example["boxes"] = new = tf.concat([tf.reduce_min(corners, 1), tf.reduce_max(corners, 1)], 1)
    if "keypoints" in example:
        keypoints = example["keypoints"]
        places = tf.linalg.matmul(keypoints[..., :2], matrix[:, :2], transpose_b=True) + matrix[:, 2]
        example["keypoints"] = keypoint_ops.zero_outside(tf.concat([places, keypoints[..., 2:]], -1), size)
    return objects.keep_visible(example, box_ops.clip(new, size), min_visible, min_size)


def _warp_image(image, inverse, fill):
    """Samples an image (H, W, 3) bilinearly at the places that `inverse` (2, 3) gives in continuous pixels."""
    (yy, yx, y0), (xy, xx, x0) = (tf.unstack(row) for row in tf.unstack(inverse))
    # TensorFlow's op takes (x, y), and its pixel centres are at whole numbers
    y0, x0 = y0 + (yy + yx - 1) / 2, x0 + (xy + xx - 1) / 2
    # TensorFlow's op fills all channels with one value
    colour, value = (tf.constant(fill, tf.float32), 0.0) if isinstance(fill, Sequence) else (0.0, fill)
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=(tf.cast(image, tf.float32) - colour)[tf.newaxis],
        transforms=tf.stack([xx, xy, x0, yx, yy, y0, 0.0, 0.0])[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=value,
    )[0]
    warped += colour
    warped = tf.clip_by_value(tf.round(warped), 0, 255) if image.dtype.is_integer else warped
    return tf.ensure_shape(tf.cast(warped, image.dtype), image.shape)
