"""Checks the first batch of `fit` and `evaluate` for mistakes that the losses would not show."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdet.data.values import are_fractions
from kerasdet.errors import UserError
from kerasdet.inference.images import shape_remedy, warn_of_fractions
from kerasdet.models.batch import unpack_batch

# Key -> shape: B images of H x W pixels, M objects, masks of S x S cells, J keypoints
_SHAPES = {
    "image": ("B", "H", "W", 3),
    "image_size": ("B", 2),
    "boxes": ("B", "M", 4),
    "class_ids": ("B", "M"),
    "is_crowd": ("B", "M"),
    "masks": ("B", "M", "S", "S"),
    "keypoints": ("B", "M", "J", 3),
}


def check_keras_arguments(method: Callable, *args: Any, **kwargs: Any) -> None:
    """Checks the arguments of Keras' `fit` or `evaluate`, because Keras ignores some of them without a message.

    Args:
        method: `fit` or `evaluate` of `keras.Model`.
        *args: Positional arguments of the call.
        **kwargs: Keyword arguments of the call.

    Raises:
        UserError: If targets or weights are given beside the batches, or there is no image.
    """
    given = inspect.signature(method).bind(*args, **kwargs).arguments
    if given.get("y") is not None:
        raise UserError(
            f"{method.__name__} got y beside x: expected one dict with 'image', 'boxes' and 'class_ids'. Call "
            f"{method.__name__}(batch) or {method.__name__}(dataset of batches) instead of {method.__name__}(x, y)."
        )
    for name in ("sample_weight", "class_weight"):
        if given.get(name) is not None:
            raise UserError(
                f"{method.__name__} got {name}: expected none, because the losses do not use it. Remove {name}."
            )
    check_has_images(given.get("x"))


def check_has_images(data: Any) -> None:
    """Checks that there is an image to train or to detect on.

    Args:
        data: A batch, a `tf.data.Dataset`, or any other value that Keras accepts, which is not checked.

    Raises:
        UserError: If the batch has no image, or the dataset is known to have no batch.
    """
    image = data.get("image") if isinstance(data, Mapping) else data
    if isinstance(image, np.ndarray | tf.Tensor) and image.shape[:1] == (0,):
        raise UserError("The batch has no image: expected one or more. Remove empty batches.")
    if isinstance(data, tf.data.Dataset) and data.cardinality() == 0:
        raise UserError("The dataset has no batch: expected one or more. Check what it reads, and `take` and `skip`.")


def check_first_batch(data: Mapping | tuple) -> None:
    """Checks shapes and dtypes of a batch, and the units of its pixels, boxes and masks.

    Of later batches, steps check only class ids, boxes and crowds, see `assertions`: more would slow down training.

    Args:
        data: A training batch (see `kerasdet.models.batch.training_batch`), or a tuple that starts with one. A batch
            that is not a dict, or lacks a required key, is not checked: `training_batch` raises an error for it.

    Raises:
        UserError: If an entry has a wrong shape or dtype, values in a wrong unit, or a box without area, or if there
            are sample weights.
    """
    batch = unpack_batch(data)
    if isinstance(data, tuple) and len(data) > 2 and data[2] is not None:
        raise _error("sample weights", "none, because the losses do not use them", "remove sample_weight")
    if not isinstance(batch, Mapping) or not {"image", "boxes", "class_ids"} <= batch.keys():
        return
    arrays = {name: _array(name, batch[name]) for name in _SHAPES if name in batch}
    _check_shapes(arrays)
    if not arrays["image"].size:
        return  # a replica without images
    _check_pixels(arrays["image"])
    _check_sizes(arrays)
    _check_objects(arrays)


def _array(name, value) -> np.ndarray:
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        kind = "RaggedTensor" if isinstance(value, tf.RaggedTensor) else "SparseTensor"
        remedy = "call tf.sparse.to_dense"
        if kind == "RaggedTensor":
            remedy = "batch with padded_batch, or call to_tensor; pad class_ids with -1"
        raise _error(f"{name} as a {kind}", "a dense tensor, padded with class id -1", remedy)
    array = np.asarray(value)
    if array.dtype.kind not in ("iuf" if name == "image" else "biuf") and array.dtype != tf.bfloat16.as_numpy_dtype:
        raise _error(f"{name} of dtype {tf.as_dtype(array.dtype).name}", "numbers", f"convert {name} to numbers")
    return array


def _error(found: str, expected: str, remedy: str) -> UserError:
    return UserError(f"The first batch has {found}: expected {expected}. {remedy[:1].upper()}{remedy[1:]}.")


def _check_shapes(arrays):
    sizes: dict[Any, tuple[int, str]] = {}
    for name, array in arrays.items():
        shape, written = _SHAPES[name], f"({', '.join(map(str, _SHAPES[name]))})"
        if array.ndim != len(shape):
            is_single = name == "image" and array.ndim == 3
            remedy = "call batch on the dataset" if is_single else _remedy(name, array)
            raise _error(f"{name} of shape {array.shape}", written, remedy)
        for symbol, length in zip(shape, array.shape, strict=True):
            if symbol in ("H", "W"):
                continue
            known, owner = sizes.setdefault(symbol, (length, name)) if isinstance(symbol, str) else (symbol, name)
            if length != known:
                other = "" if owner == name else f", but {owner} of shape {arrays[owner].shape}"
                raise _error(f"{name} of shape {array.shape}{other}", written, _remedy(name, array))


def _remedy(name, array):
    if name == "image":
        return shape_remedy(array.shape[1:])
    return "cut each mask to its box, and resize it to a square" if name == "masks" else f"give {name} this shape"


def _check_pixels(image):
    low, high = float(image.min()), float(image.max())
    if not np.isfinite(low + high):
        return  # the training step raises an error that names the image
    if low < -1 or (low < 0 and high <= 1) or high > 256:
        remedy = "undo the normalisation, because the model normalises its images" if low < 0 else "scale the pixels"
        raise _error(f"pixels from {low:.4g} to {high:.4g}", "RGB in 0..255", remedy)
    warn_of_fractions("The first batch", high)


def _check_sizes(arrays):
    height, width = arrays["image"].shape[1:3]
    sizes = arrays.get("image_size", np.empty((0, 2)))
    if (wrong := sizes[((sizes > (height, width)) | (sizes < 1)).any(1)]).size:
        raise _error(
            f"image_size {wrong[0].tolist()} for images of {height}x{width} (height x width)",
            "the height and width of each image without its padding",
            "give the height first, in pixels of the padded images",
        )


def _check_objects(arrays):
    class_ids, masks = arrays["class_ids"], arrays.get("masks")
    if class_ids.dtype.kind == "f" and (wrong := class_ids[class_ids != np.round(class_ids)]).size:
        raise _error(f"the class id {wrong[0]:g}", "integers from 0, and -1 for padding", "correct the class ids")
    if masks is not None and masks.dtype == np.uint8 and masks.max(initial=0) == 1:
        raise _error(
            "uint8 masks of 0 and 1",
            "bool, or uint8 with the covered fraction of each cell times 255",
            "convert the masks to bool",
        )
    is_object = class_ids >= 0
    _check_keypoints(arrays.get("keypoints"), is_object)
    boxes = arrays["boxes"][is_object].astype(np.float64)
    if not len(boxes) or not np.isfinite(boxes).all():
        return
    if are_fractions(boxes.tolist()):
        raise _error(
            f"no box with a number above 1 (first: {boxes[0].tolist()})",
            "(y1, x1, y2, x2) in pixels",
            "multiply fractions by the height and width of the image",
        )
    if (empty := boxes[(boxes[:, 2:] == boxes[:, :2]).any(1)]).size:
        raise _error(
            f"the box {empty[0].tolist()}, which has no area",
            "y1 < y2 and x1 < x2",
            "remove the object, or give it class id -1",
        )
    size = arrays.get("image_size", np.broadcast_to(arrays["image"].shape[1:3], (len(class_ids), 2)))
    sizes = np.broadcast_to(size[:, None], (*class_ids.shape, 2))[is_object]
    outside = (boxes[:, :2] > sizes).any(1)
    if outside.any():
        box, (height, width) = boxes[outside][0], sizes[outside][0]
        raise _error(
            f"the box {box.tolist()} outside its image of {height}x{width} (height x width)",
            "(y1, x1, y2, x2) in pixels of the image, without its padding",
            "change the order of the numbers, or resize boxes with their image",
        )


def _check_keypoints(keypoints, is_object):
    points = np.empty((0, 3)) if keypoints is None else keypoints[is_object].reshape(-1, 3).astype(np.float64)
    if not np.isfinite(points).all():
        remedy = "set unlabelled keypoints to (0, 0, 0)"
        raise _error("a keypoint that is not finite", "(y, x, visibility) with visibility 0 if unlabelled", remedy)
    labelled = points[points[:, 2] > 0, :2]
    if len(labelled) and are_fractions(labelled.tolist()):
        raise _error(
            f"no keypoint with a coordinate above 1 (first: {labelled[0].tolist()})",
            "(y, x, visibility) with y and x in pixels",
            "multiply fractions by the height and width of the image",
        )
