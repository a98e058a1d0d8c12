"""Crops masks of objects for training, and pastes masks of detections into images, as bitmaps or RLE."""

import numpy as np
import tensorflow as tf

from kerasdet.geometry import masks, rle
from kerasdet.ops.dispatch import compiled_ops, static_shapes

tf.no_gradient("Kerasdet>PasteMasks")
tf.no_gradient("Kerasdet>EncodeMasks")
tf.no_gradient("Kerasdet>CropMasks")


def paste_masks(
    mask_probs: tf.Tensor,
    boxes: tf.Tensor,
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    convention: str = "detectron2",
    threshold: float = 0.5,
) -> tf.Tensor:
    """Pastes predicted masks into an image.

    The result equals that of `kerasdet.geometry.masks.paste_masks`; with the compiled ops, the function is faster.

    Args:
        mask_probs: (D, S, S): for each cell of an object's box, the probability that it shows the object, in [0, 1].
        boxes: (D, 4) yxyx in pixels of the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        convention: Source framework whose pasting is reproduced: "detectron2", "torchvision" or "mmdet".
        threshold: Pixels with a lower probability do not belong to the object. In (0, 1].

    Returns:
        The pasted masks, (D, height, width) bool.

    Raises:
        ValueError: If the convention is unknown.

    Example:
        >>> masks = paste_masks(tf.ones([1, 28, 28]), tf.constant([[10.0, 20, 60, 90]]), 100, 200)
        >>> masks.shape, int(tf.reduce_sum(tf.cast(masks, tf.int32)))
        (TensorShape([1, 100, 200]), 3500)
    """
    library = _library(convention)
    if library is None:
        return masks.paste_masks(mask_probs, boxes, height, width, convention, threshold, whole_image=static_shapes())
    pasted = library.kerasdet_paste_masks(**_inputs(mask_probs, boxes, height, width, convention, threshold))
    sizes = [size if isinstance(size, int) else None for size in (height, width)]
    return tf.ensure_shape(pasted, [mask_probs.shape[0], *sizes])


def encode_masks(
    mask_probs: np.ndarray | tf.Tensor,
    boxes: np.ndarray | tf.Tensor,
    height: int,
    width: int,
    convention: str = "detectron2",
    threshold: float = 0.5,
) -> list[dict]:
    """Encodes predicted masks as compressed run-length encoding (RLE) of the image.

    The compiled op never creates a full-size bitmap.

    Args:
        mask_probs: (D, S, S): for each cell of an object's box, the probability that it shows the object, in [0, 1].
        boxes: (D, 4) yxyx in pixels of the image.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        convention: Source framework whose pasting is reproduced: "detectron2", "torchvision" or "mmdet".
        threshold: Pixels with a lower probability do not belong to the object. In (0, 1].

    Returns:
        D dicts {"size": [height, width], "counts": str}, one per mask, as in COCO's results files.

    Raises:
        ValueError: If the convention is unknown.
    """
    library = _library(convention)
    if library is None:
        return rle.encode(masks.paste_masks(mask_probs, boxes, height, width, convention, threshold))
    characters, lengths = library.kerasdet_encode_masks(
        **_inputs(mask_probs, boxes, height, width, convention, threshold)
    )
    text, ends = characters.numpy().tobytes().decode("ascii"), np.cumsum(lengths.numpy()).tolist()
    size = [int(height), int(width)]
    return [{"size": size, "counts": text[start:end]} for start, end in zip([0, *ends], ends, strict=False)]


def crops_from_runs(
    runs: tf.Tensor, num_runs: tf.Tensor, boxes: tf.Tensor, image_size: tf.Tensor, size: int = masks.CROP_SIZE
) -> tf.Tensor:
    """Computes the crops of one image's objects from the run lengths of their masks.

    The result equals that of `kerasdet.geometry.masks.crops_from_runs`; with the compiled ops, the function is faster.

    Args:
        runs: (R,) int32, the run lengths of all objects one after the other. The run lengths of one object cover the
            whole image, column by column, from `kerasdet.geometry.rle.runs_from_segmentation`.
        num_runs: (M,) int32, the number of run lengths of each object.
        boxes: (M, 4) yxyx in pixels, inside the image.
        image_size: (2,) int32, height and width of the image in pixels.
        size: S, the height and width of a crop in cells.

    Returns:
        The crops, (M, S, S) uint8: the covered fraction of each of the S x S cells of an object's box, times 255.
    """
    library = compiled_ops(for_gpus=False)
    if library is None:
        return masks.crops_from_runs(runs, num_runs, boxes, image_size, size)
    crops = library.kerasdet_crop_masks(
        runs=tf.cast(runs, tf.int32),
        num_runs=tf.cast(num_runs, tf.int32),
        boxes=tf.cast(boxes, tf.float32),
        image_size=tf.cast(image_size, tf.int32),
        size=size,
    )
    return tf.ensure_shape(crops, (None, size, size))


def _library(convention):
    """Returns the compiled ops, or None if they should not be used or do not support the convention ("mmdet")."""
    return None if convention == "mmdet" else compiled_ops(for_gpus=False)


def _inputs(mask_probs, boxes, height, width, convention, threshold):
    masks.check_convention(convention)
    return {
        "mask_probs": tf.cast(mask_probs, tf.float32),
        "boxes": tf.cast(boxes, tf.float32),
        "image_size": tf.stack([tf.cast(height, tf.int32), tf.cast(width, tf.int32)]),
        "torchvision": convention == "torchvision",
        "threshold": threshold,
    }
