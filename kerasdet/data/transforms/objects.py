"""Moves, cuts, drops and joins the objects of an example.

The objects of an example are the rows of its `OBJECT_KEYS`. `boxes` (M, 4), `masks` (M, S, S) and `keypoints` (M, J, 3)
have a place in the image; the others do not change.
"""

from typing import Any

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import crops
from kerasdet.geometry import keypoints as keypoint_ops

OBJECT_KEYS = ("boxes", "class_ids", "is_crowd", "masks", "keypoints")


def select(example: dict[str, Any], keep: tf.Tensor) -> dict[str, Any]:
    """Keeps some objects of an example.

    Args:
        example: Tensors of one image.
        keep: Whether to keep each object, (M,) bool.

    Returns:
        The example with fewer objects, in their old order.
    """
    rows = tf.where(keep)[:, 0]
    return {**example, **{name: tf.gather(example[name], rows) for name in OBJECT_KEYS if name in example}}


def join(example: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Appends the objects of another example.

    Args:
        example: Tensors of one image.
        other: Tensors of another image, whose objects have places in the first one.

    Returns:
        The first example with the objects of both.
    """
    names = [name for name in OBJECT_KEYS if name in example]
    return {**example, **{name: tf.concat([example[name], other[name]], 0) for name in names}}


def scale(example: dict[str, Any], factor: tf.Tensor) -> dict[str, Any]:
    """Scales the objects of an example; crops of masks do not depend on the scale.

    Args:
        example: Tensors of one image.
        factor: Factors of y and x coordinates, (2,) float32.

    Returns:
        The example with scaled objects and the same image.
    """
    example = {**example, "boxes": box_ops.scale(example["boxes"], factor)}
    if "keypoints" in example:
        example["keypoints"] = keypoint_ops.scale(example["keypoints"], factor)
    return example


def cut(
    example: dict[str, Any],
    offset: tf.Tensor,
    size: tf.Tensor,
    *,
    min_visible: float = 0.0,
    min_size: float = 0.0,
) -> dict[str, Any]:
    """Moves the objects of an example into a window of the image and cuts off what is outside.

    The box of an object that the window cuts becomes the tight box of the rest of its mask, or the rest of the box if
    there are no masks. Keypoints outside get visibility 0. Objects that the window does not cut never change.

    Args:
        example: Tensors of one image.
        offset: Top left corner of the window in the image, (y, x), (2,). Negative values add a border.
        size: Height and width of the window, (2,).
        min_visible: An object that loses more of its area is dropped: the smallest fraction that must be left, of the
            mask if there is one, or of the box. In [0, 1].
        min_size: An object that is cut to a smaller box, in pixels of the shorter side, is dropped.

    Returns:
        The example with the objects in pixels of the window, and the same image.
    """
    offset, size = tf.cast(offset, tf.float32), tf.cast(size, tf.float32)
    old = example["boxes"] - tf.concat([offset, offset], 0)  # (M, 4)
    boxes = box_ops.clip(old, size)
    example = {**example}
    if "keypoints" in example:
        example["keypoints"] = keypoint_ops.shift(example["keypoints"], -offset, size)
    return keep_visible({**example, "boxes": old}, boxes, min_visible, min_size)


def keep_visible(example: dict[str, Any], boxes: tf.Tensor, min_visible: float, min_size: float) -> dict[str, Any]:
    """Cuts objects to parts of their boxes and drops those of which too little is left.

    Args:
        example: Tensors of one image.
        boxes: Part of each object's box that is left, (M, 4) yxyx in pixels; it may be empty.
        min_visible: Smallest fraction of its area that a cut object must keep, in [0, 1].
        min_size: Smallest length of the shorter side of a cut object's box, in pixels.

    Returns:
        The example with cut objects.
    """
    old = example["boxes"]
    is_cut = tf.reduce_any(boxes != old, 1)
    example = {**example, "boxes": boxes}
    share = tf.math.divide_no_nan(box_ops.area(boxes), box_ops.area(old))
    if "masks" in example:
        rows = tf.where(is_cut & (share > 0))  # only those: a crop that is not cut stays exact
        at = rows[:, 0]
        masks, before, window = (tf.gather(value, at) for value in (example["masks"], old, boxes))
        tight = crops.tight_boxes(crops.recrop(masks, before, window), window)
        cropped = crops.recrop(masks, before, tight)
        left = tf.math.divide_no_nan(crops.areas(cropped, tight), crops.areas(masks, before))
        example["masks"] = tf.tensor_scatter_nd_update(example["masks"], rows, cropped)
        example["boxes"] = boxes = tf.tensor_scatter_nd_update(boxes, rows, tight)
        share = tf.tensor_scatter_nd_update(share, rows, left)
    sides = tf.reduce_min(boxes[:, 2:] - boxes[:, :2], 1)
    return select(example, ~is_cut | ((sides > 0) & (sides >= min_size) & (share >= min_visible)))
