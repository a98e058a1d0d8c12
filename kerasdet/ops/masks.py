"""Masks of detections in their image: as bitmaps, or as run lengths without ever being bitmaps."""

import numpy as np
import tensorflow as tf

from kerasdet.geometry import masks, rle
from kerasdet.ops.dispatch import compiled_ops, static_shapes

tf.no_gradient("Kerasdet>PasteMasks")
tf.no_gradient("Kerasdet>EncodeMasks")


def paste_masks(
    mask_probs: tf.Tensor,
    boxes: tf.Tensor,
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    convention: str = "detectron2",
    threshold: float = 0.5,
) -> tf.Tensor:
    """`kerasdet.geometry.masks.paste_masks`, which see; the compiled implementation of it where there is one.

    Args:
        mask_probs: (D, S, S) in 0..1.
        boxes: (D, 4) in pixels of the image.
        height: Of the image.
        width: Likewise.
        convention: "detectron2" or "torchvision".
        threshold: Above 0.

    Returns:
        (D, height, width) bool.

    Raises:
        ValueError: For an unknown convention.
    """
    library = compiled_ops(for_gpus=False)
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
    """The compressed RLE of what `paste_masks` gives; compiled, no full-size mask is ever made.

    Args:
        mask_probs: (D, S, S) in 0..1.
        boxes: (D, 4) in pixels of the image.
        height: Of the image.
        width: Likewise.
        convention: "detectron2" or "torchvision".
        threshold: Above 0.

    Returns:
        For each mask {"size": [height, width], "counts": text}, as in COCO's result files.

    Raises:
        ValueError: For an unknown convention.
    """
    library = compiled_ops(for_gpus=False)
    if library is None:
        return rle.encode(masks.paste_masks(mask_probs, boxes, height, width, convention, threshold))
    characters, lengths = library.kerasdet_encode_masks(
        **_inputs(mask_probs, boxes, height, width, convention, threshold)
    )
    text, ends = characters.numpy().tobytes().decode("ascii"), np.cumsum(lengths.numpy()).tolist()
    size = [int(height), int(width)]
    return [{"size": size, "counts": text[start:end]} for start, end in zip([0, *ends], ends, strict=False)]


def _inputs(mask_probs, boxes, height, width, convention, threshold):
    masks.check_convention(convention)
    return {
        "mask_probs": tf.cast(mask_probs, tf.float32),
        "boxes": tf.cast(boxes, tf.float32),
        "image_size": tf.stack([tf.cast(height, tf.int32), tf.cast(width, tf.int32)]),
        "torchvision": convention == "torchvision",
        "threshold": threshold,
    }
