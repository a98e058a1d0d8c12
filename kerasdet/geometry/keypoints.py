"""Flips and scales keypoints, computes heatmap targets for training, and decodes predicted heatmaps.

A keypoint is (y, x, visibility), or (y, x, score) if predicted. Coordinates are continuous pixels, like those of boxes:
a keypoint in pixel (i, j) of COCO has the coordinates (i + 0.5, j + 0.5). Visibility is that of COCO: 0 for unlabelled
(y and x are 0), 1 for labelled but hidden, 2 for visible.
"""

import re
from collections.abc import Sequence

import tensorflow as tf

CONVENTIONS = ("detectron2", "torchvision")
PERSON_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
# Skeleton of a COCO person: pairs of keypoint indices from 0 that a line joins.
PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
# Words of a name such as "LeftEye" and "LEye"
_WORDS = re.compile("[A-Z](?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z]+")
_CUBIC = -0.75  # PyTorch's bicubic coefficient; tf.image.resize has -0.5, so it cannot be used


def flip_order(names: Sequence[str]) -> tuple[int, ...]:
    """Computes the order of keypoints after a flip, which swaps pairs such as ``left_eye`` and ``right_eye``.

    Args:
        names: Names of the J keypoints; "left" and "right" or the letters L and R tell the sides of a pair, as in
            "LeftEye", "eye_l" and "LEye".

    Returns:
        J indices, for the argument `order` of `flip_left_right`. A keypoint without a counterpart keeps its index.

    Example:
        >>> flip_order(["nose", "left_eye", "right_eye"])
        (0, 2, 1)
    """
    words = [tuple(word.lower() for word in _WORDS.findall(name)) for name in names]
    index = {each: i for i, each in enumerate(words)}
    order = [index.get(tuple(map(_other_side, each)), i) for i, each in enumerate(words)]
    return tuple(j if order[j] == i else i for i, j in enumerate(order))


def _other_side(word):
    if word in ("l", "r"):
        return "r" if word == "l" else "l"
    return word.replace("left", "right") if "left" in word else word.replace("right", "left")


def scale(keypoints: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales keypoints to a resized image.

    Args:
        keypoints: (..., M, J, 3) as (y, x, visibility or score), with y and x in pixels.
        factor: (..., 2), factors of y and x coordinates: the new size of the image divided by the old size.

    Returns:
        The scaled keypoints, (..., M, J, 3) of the dtype of `keypoints`.
    """
    factor = tf.cast(factor, keypoints.dtype)
    factor = tf.concat([factor, tf.ones_like(factor[..., :1])], -1)
    return keypoints * factor[..., tf.newaxis, tf.newaxis, :]


def shift(keypoints: tf.Tensor, offset: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
    """Moves keypoints, and marks keypoints outside the image as unlabelled.

    Args:
        keypoints: (..., J, 3) as (y, x, visibility), in pixels.
        offset: (2,), distances along y and x in pixels.
        image_size: (2,), height and width of the image in pixels.

    Returns:
        The moved keypoints, (..., J, 3); unlabelled keypoints and keypoints outside the image are 0.
    """
    places = keypoints[..., :2] + tf.cast(offset, keypoints.dtype)
    return zero_outside(tf.concat([places, keypoints[..., 2:]], -1), image_size)


def zero_outside(keypoints: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
    """Marks keypoints outside the image as unlabelled.

    Args:
        keypoints: (..., J, 3) as (y, x, visibility), in pixels.
        image_size: (2,), height and width of the image in pixels.

    Returns:
        The keypoints, (..., J, 3); unlabelled keypoints and keypoints outside the image are 0.
    """
    places, size = keypoints[..., :2], tf.cast(image_size, keypoints.dtype)
    inside = tf.reduce_all((places >= 0) & (places <= size), -1, keepdims=True)
    return tf.where(inside & (keypoints[..., 2:] > 0), keypoints, 0.0)


def flip_left_right(keypoints: tf.Tensor, width: tf.Tensor, order: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Flips keypoints horizontally, together with their image, and swaps left and right keypoints.

    Args:
        keypoints: (..., J, 3) as (y, x, visibility), in pixels.
        width: Width of the image in pixels, an int or a scalar tensor.
        order: (J,) int, the order of keypoints after the flip, from `flip_order`.

    Returns:
        The flipped keypoints, (..., J, 3); unlabelled keypoints are 0.
    """
    y, x, visibility = tf.unstack(tf.gather(keypoints, order, axis=-2), axis=-1)
    return _zero_unlabelled(y, tf.cast(width, x.dtype) - x, visibility)


def flip_up_down(keypoints: tf.Tensor, height: tf.Tensor, order: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Flips keypoints vertically, together with their image, and swaps left and right keypoints.

    A vertical flip also mirrors the object, so its left and right change places.

    Args:
        keypoints: (..., J, 3) as (y, x, visibility), in pixels.
        height: Height of the image in pixels, an int or a scalar tensor.
        order: (J,) int, the order of keypoints after the flip, from `flip_order`.

    Returns:
        The flipped keypoints, (..., J, 3); unlabelled keypoints are 0.
    """
    y, x, visibility = tf.unstack(tf.gather(keypoints, order, axis=-2), axis=-1)
    return _zero_unlabelled(tf.cast(height, y.dtype) - y, x, visibility)


def _zero_unlabelled(y, x, visibility):
    return tf.where(tf.expand_dims(visibility > 0, -1), tf.stack([y, x, visibility], -1), 0.0)


def heatmap_targets(keypoints: tf.Tensor, rois: tf.Tensor, size: int = 56) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the heatmap cell that contains each keypoint (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    A keypoint on the bottom or right border of its region belongs to the last cell.

    Args:
        keypoints: (..., J, 3) as (y, x, visibility), the keypoints of each region's object, in pixels.
        rois: (..., 4) yxyx in pixels, the regions that the heatmaps cover.
        size: Height and width of the heatmaps in cells.

    Returns:
        Two tensors (..., J). The first, int32, is the index of each keypoint's cell, counted row by row; 0 where the
        second is False. The second, bool, tells whether the keypoint is labelled and inside the region.
    """
    low, high = tf.expand_dims(rois[..., :2], -2), tf.expand_dims(rois[..., 2:], -2)  # (..., 1, 2)
    places = keypoints[..., :2]
    cells = tf.floor((places - low) * (size / (high - low)))
    cells = tf.where(places == high, size - 1.0, cells)
    valid = tf.reduce_all((cells >= 0) & (cells < size), -1) & (keypoints[..., 2] > 0)
    cells = tf.cast(tf.where(tf.expand_dims(valid, -1), cells, 0.0), tf.int32)
    return cells[..., 0] * size + cells[..., 1], valid


def keypoints_from_heatmaps(heatmaps: tf.Tensor, rois: tf.Tensor, convention: str = "detectron2") -> tf.Tensor:
    """Decodes heatmaps to keypoints: the pixel with the highest value after bicubic resizing to the region's size.

    Args:
        heatmaps: (..., h, w, J), a heatmap of logits for each keypoint.
        rois: (..., 4) yxyx in pixels, the regions that the heatmaps cover.
        convention: Source framework that defines a keypoint's score. "detectron2": exp(logit at the pixel) divided by
            the sum of exp(logit) over the h * w cells. "torchvision": the logit at the pixel.

    Returns:
        The keypoints, (..., J, 3) float32 as (y, x, score), with y and x in pixels of the image.

    Raises:
        ValueError: If the convention is unknown.
    """
    check_convention(convention)
    shape = tf.shape(heatmaps)
    flat = tf.reshape(heatmaps, tf.concat([[-1], shape[-3:]], 0))  # (N, h, w, J)
    flat = tf.ensure_shape(tf.cast(flat, tf.float32), (None, *heatmaps.shape[-3:]))

    def decode(inputs):
        heatmap, roi = inputs
        return _decode_one(heatmap, roi, convention)

    signature = tf.TensorSpec([heatmaps.shape[-1], 3], tf.float32)
    found = tf.map_fn(decode, (flat, tf.reshape(rois, [-1, 4])), parallel_iterations=4, fn_output_signature=signature)
    return tf.reshape(found, tf.concat([shape[:-3], shape[-1:], [3]], 0))


def check_convention(convention: str) -> None:
    """Checks the name of a keypoint convention, the source framework whose scores are reproduced.

    Args:
        convention: "detectron2" or "torchvision".

    Raises:
        ValueError: If `convention` is another name.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}: expected 'detectron2' or 'torchvision'. Change convention.")


def _decode_one(heatmap, roi, convention):
    """Decodes the heatmaps (h, w, J) of one region (4,) to keypoints (J, 3)."""
    length = tf.maximum(roi[2:] - roi[:2], 1.0)
    pixels = tf.math.ceil(length)
    size = tf.cast(pixels, tf.int32)
    y_weights = _cubic_weights(tf.shape(heatmap)[0], size[0])  # (H, h)
    x_weights = _cubic_weights(tf.shape(heatmap)[1], size[1])  # (W, w)
    rows = tf.einsum("hwj,Ww->jhW", heatmap, x_weights)
    resized = tf.matmul(y_weights, rows)  # (J, H, W)
    resized = tf.reshape(resized, [tf.shape(rows)[0], -1])
    best, logit = tf.argmax(resized, -1, tf.int32), tf.reduce_max(resized, -1)  # (J,)
    place = tf.cast(tf.stack([best // size[1], best % size[1]], -1), tf.float32) + 0.5
    score = logit if convention == "torchvision" else tf.exp(logit - tf.reduce_logsumexp(heatmap, [0, 1]))
    return tf.concat([place * (length / pixels) + roi[:2], tf.expand_dims(score, -1)], -1)


def _cubic_weights(size, new_size):
    """Returns PyTorch's bicubic resizing along one axis as a matrix (new_size, size), without antialiasing."""
    step = tf.cast(size, tf.float32) / tf.cast(new_size, tf.float32)
    position = (tf.range(new_size, dtype=tf.float32) + 0.5) * step - 0.5
    base = tf.floor(position)
    part = position - base

    def near(x):
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1

    def far(x):
        return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC

    taps = tf.stack([far(part + 1), near(part), near(1 - part), far(2 - part)], 1)  # (new_size, 4)
    index = tf.cast(tf.expand_dims(base, 1), tf.int32) + tf.range(-1, 3)
    columns = tf.one_hot(tf.clip_by_value(index, 0, size - 1), size)  # (new_size, 4, size)
    return tf.reduce_sum(tf.expand_dims(taps, -1) * columns, 1)
