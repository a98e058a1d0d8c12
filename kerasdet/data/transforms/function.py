"""Applies a user's own NumPy function to examples."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdet.data.transforms.objects import full_masks, keep_visible
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import crops

_RANKS = {"image": 3, "boxes": 2, "class_ids": 1, "is_crowd": 1, "masks": 3, "keypoints": 3, "extra_values": 2}


@dataclasses.dataclass(frozen=True)
class NumpyTransform:
    """Applies a function of NumPy arrays, such as the transforms of another library.

    The function runs in Python and holds the interpreter lock (GIL), so it is slower than the other transforms. The
    function gets a dict of arrays and an integer seed, and returns a dict with the arrays that it changes: `image` (H,
    W, 3) RGB in 0..255, uint8 (float32 after a resize with the kernel "bilinear"), `boxes` (M, 4) float32 yxyx in
    pixels, `class_ids` (M,) int32 and `is_crowd` (M,) bool. If the dataset was read with masks, keypoints or
    `extra_annotation_keys`, the dict also has `masks` (M, H, W) bool, in the size of the image, `keypoints` (M, J, 3)
    float32 as (y, x, visibility), or `extra_values` (M, V) float32, V numbers for each object. To drop an object, the
    function removes its row from all arrays. Boxes are clipped to the image afterwards; objects whose box has no area
    are dropped.

    Args:
        function: Function ``(arrays, seed) -> arrays``. All randomness must come from the seed.
        image_only: Whether the function gets a dict with only `image`, and returns an image of the same size.
            This saves time.

    Example:
        >>> import albumentations as A
        >>> def augment(arrays, seed):
        ...     boxes = arrays["boxes"][:, [1, 0, 3, 2]]  # x1, y1, x2, y2
        ...     compose = A.Compose([A.RandomRain()], bbox_params=A.BboxParams("pascal_voc", ["index"]), seed=seed)
        ...     found = compose(image=arrays["image"], bboxes=boxes, index=np.arange(len(boxes)))
        ...     rows = np.array(found["index"], int)
        ...     boxes = np.array(found["bboxes"]).reshape(-1, 4)[:, [1, 0, 3, 2]]
        ...     others = {name: arrays[name][rows] for name in ("class_ids", "is_crowd")}
        ...     return {"image": found["image"], "boxes": boxes, **others}
        >>> transforms = [NumpyTransform(augment), ResizeShortestEdge((800,), 1333)]
    """

    function: Callable[[dict[str, np.ndarray], int], Mapping[str, np.ndarray]]
    image_only: bool = False

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Applies the function to an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: (2,) int32, from which the function's integer seed is drawn.

        Returns:
            The example with the arrays that the function returned, boxes clipped to the image, without objects whose
            box has no area. With `image_only`, only the image differs.

        Raises:
            tf.errors.InvalidArgumentError: If the function returns unknown names, wrong shapes, or arrays with
                different numbers of objects. Outside of a graph, such as that of a `tf.data` pipeline, this is a
                `UserError`.
        """
        crop_size = example["masks"].shape[-1] if "masks" in example else None
        names = [name for name in _RANKS if name in example and (name == "image" or not self.image_only)]
        size = tf.unstack(tf.shape(example["image"])[:2])
        values = [full_masks(example, *size) if name == "masks" else example[name] for name in names]
        number = tf.random.stateless_uniform([], seed, 0, tf.int32.max, tf.int32)

        def call(number, *arrays):
            return self._call(int(number), dict(zip(names, arrays, strict=True)))

        types = [value.dtype for value in values]
        # TensorFlow returns a single result without a list
        results = tf.nest.flatten(tf.numpy_function(call, [number, *values], types))
        example = {**example, **dict(zip(names, results, strict=True))}
        for name in names:
            last = {"image": [3], "boxes": [4], "keypoints": values[names.index(name)].shape[1:]}.get(name, [])
            shape = [None] * (_RANKS[name] - len(last)) + list(last)
            example[name] = tf.ensure_shape(example[name], shape)
        if self.image_only:
            return example
        size = tf.shape(example["image"])[:2]
        example["image_size"] = size
        if "masks" in names:
            example["masks"] = crops.from_bitmaps(example["masks"], example["boxes"], crop_size)
        return keep_visible(example, box_ops.clip(example["boxes"], size), min_visible=0.0, min_size=0.0)

    def _call(self, seed, arrays):
        """Calls the function and returns its arrays, with the order and dtypes of the given arrays."""
        types = {name: array.dtype for name, array in arrays.items()}
        size = arrays["image"].shape
        changed = self.function(dict(arrays), seed)
        problem = _unusable(changed, arrays)
        if problem is None:
            arrays = {**arrays, **{name: np.asarray(value) for name, value in changed.items()}}
            problem = _mismatch(arrays, size if self.image_only else None)
        if problem is not None:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise UserError(f"NumpyTransform: the function {name} returned {problem}. Change the function.")
        return [np.ascontiguousarray(arrays[name], dtype) for name, dtype in types.items()]


def _unusable(changed, arrays):
    """Describes a returned array with a wrong name or rank, for the error message; returns None if all are right."""
    if not isinstance(changed, Mapping):
        return f"{type(changed).__name__}; expected a dict of arrays"
    if unknown := changed.keys() - arrays.keys():
        return f"{', '.join(sorted(unknown))}; expected only {', '.join(arrays)}"
    for name, value in changed.items():
        shape = np.shape(value)
        if len(shape) != _RANKS[name] or (name in ("image", "boxes") and shape[-1] != {"image": 3, "boxes": 4}[name]):
            return f"{name} of shape {shape}; expected a shape like {arrays[name].shape}"
    return None


def _mismatch(arrays, size):
    """Describes returned arrays with contradicting shapes, for the error message; returns None if all fit."""
    shape = arrays["image"].shape
    if size is not None and shape != size:
        return f"an image of shape {shape} for an image of shape {size}; expected the same, because image_only is True"
    if "masks" in arrays and arrays["masks"].shape[1:] != shape[:2]:
        return f"masks of shape {arrays['masks'].shape} for an image of {shape}; expected the image's height and width"
    rows = {name: len(value) for name, value in arrays.items() if name != "image"}
    if len(set(rows.values())) > 1:
        return f"arrays with different numbers of objects, {rows}; expected the same number in all arrays"
    return None
