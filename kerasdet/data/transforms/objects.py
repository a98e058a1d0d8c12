"""Moves, clips, drops and joins the objects of an example.

The objects of an example are the rows of its tensors named in `OBJECT_KEYS`. `boxes` (M, 4), `masks` (M, S, S) and
`keypoints` (M, J, 3) depend on positions in the image and change with the image; the other tensors do not.
"""

from typing import Any

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import crops
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry.masks import paste_masks

OBJECT_KEYS = ("boxes", "class_ids", "is_crowd", "masks", "keypoints", "extra_values")


def select(example: dict[str, Any], keep: tf.Tensor) -> dict[str, Any]:
    """Keeps the selected objects of an example.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        keep: (M,) bool, true for objects to keep.

    Returns:
        The example with the remaining objects, in the same order.
    """
    rows = tf.where(keep)[:, 0]
    return {**example, **{name: tf.gather(example[name], rows) for name in OBJECT_KEYS if name in example}}


def join(example: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Appends the objects of another example.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        other: Tensors of another image, whose objects already have coordinates of the first image.

    Returns:
        The first example with the objects of both.
    """
    names = [name for name in OBJECT_KEYS if name in example]
    return {**example, **{name: tf.concat([example[name], other[name]], 0) for name in names}}


def full_masks(example: dict[str, Any], height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor | None:
    """Pastes the masks of an example into bitmaps of the size of its image.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        height: H, height of the image in pixels.
        width: W, width of the image in pixels.

    Returns:
        The masks, (M, H, W) bool, or None if the example has no masks.
    """
    if "masks" not in example:
        return None
    return paste_masks(tf.cast(example["masks"], tf.float32) / 255, example["boxes"], height, width)


def scale(example: dict[str, Any], factor: tf.Tensor) -> dict[str, Any]:
    """Scales the boxes and keypoints of an example; masks do not change, because they are cropped to the boxes.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
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
    """Converts the objects of an example to coordinates of a window of the image, and cuts them at its border.

    With masks, the new box of a cut object is the tight box of the rest of its mask. Without masks, it is the rest of
    the box. Keypoints outside the window get visibility 0. Objects fully inside the window keep their box and mask;
    objects without area inside the window are dropped.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        offset: (2,), top left corner (y, x) of the window in pixels of the image. Negative values add a border.
        size: (2,), height and width of the window in pixels.
        min_visible: Objects are dropped if less than this fraction of their area stays inside the window, in [0, 1].
            The area is that of the mask, or of the box if there are no masks.
        min_size: Cut objects are dropped if the shorter side of their box is below this, in pixels.

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
    """Cuts objects to the given parts of their boxes, and drops objects without area and objects that keep too little.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        boxes: (M, 4) yxyx in pixels. The remaining part of each object's box; it may be empty.
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
        # Only for cut objects: resampling would change the masks of others slightly
        rows = tf.where(is_cut & (share > 0))
        at = rows[:, 0]
        masks, before, window = (tf.gather(value, at) for value in (example["masks"], old, boxes))
        tight = crops.tight_boxes(crops.recrop(masks, before, window), window)
        cropped = crops.recrop(masks, before, tight)
        left = tf.math.divide_no_nan(crops.areas(cropped, tight), crops.areas(masks, before))
        example["masks"] = tf.tensor_scatter_nd_update(example["masks"], rows, cropped)
        example["boxes"] = boxes = tf.tensor_scatter_nd_update(boxes, rows, tight)
        share = tf.tensor_scatter_nd_update(share, rows, left)
    sides = tf.reduce_min(boxes[:, 2:] - boxes[:, :2], 1)
    return select(example, (sides > 0) & (~is_cut | ((sides >= min_size) & (share >= min_visible))))
