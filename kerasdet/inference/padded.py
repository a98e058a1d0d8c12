"""Defines padded detections, a dict of tensors for a batch of B images. Only this module rescales detections.

D is the maximum number of detections per image; images with fewer detections are padded. Graphs, training loops and
exports use this dict:

* `boxes` (B, D, 4) yxyx in pixels, `scores` (B, D) in descending order.
* `class_ids` (B, D) int32, -1 for padding, and `valid` (B,) int32, the number of detections without padding.
* From models with masks, `mask_probs` (B, D, S, S), the probabilities of the S x S cells of each box. In an
  RTMDet-Ins they are (B, D, h, w) and cover the areas `mask_boxes` (B, D, 4) yxyx in pixels instead of the boxes.
* From models with keypoints, `keypoints` (B, D, J, 3), J keypoints of each object as (y, x, score).

A user's own branches add further outputs (B, D, ...). `BranchOutput` defines how these are rescaled and exported.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf

from kerasdet.geometry import boxes as box_ops


@dataclasses.dataclass(frozen=True)
class BranchOutput:
    """Describes an output of a model's branch: its name in exports, and how it changes when the image is resized.

    A branch is a part of a model that predicts more than boxes, such as `kerasdet.models.MaskBranch`.

    Args:
        export_name: Name among the outputs of the TF Object Detection API, such as "detection_masks".
        rescaling: "boxes_relative": the output is relative to the box and does not change. "positions": the output is
            (B, D, ..., 3) as (y, x, score), and y and x scale with the image. "swapped_boxes": the output is boxes (B,
            D, 4) whose y coordinates are scaled by the factor of x and whose x coordinates by the factor of y, because
            mmdetection swaps these factors when it resizes the masks of RTMDet-Ins.
    """

    export_name: str
    rescaling: str = "boxes_relative"


KNOWN_OUTPUTS = {
    "mask_probs": BranchOutput("detection_masks"),
    "mask_boxes": BranchOutput("detection_mask_boxes", "swapped_boxes"),
    "keypoints": BranchOutput("detection_keypoints", "positions"),
}


def rescale(
    detections: Mapping[str, tf.Tensor],
    from_size: tf.Tensor,
    to_size: tf.Tensor,
    branch_outputs: Mapping[str, BranchOutput] = KNOWN_OUTPUTS,
    clip: bool = True,
) -> dict[str, tf.Tensor]:
    """Converts padded detections from pixels of resized images to pixels of the original images.

    By default it also clips `boxes` to the images; other outputs, such as keypoints, are not clipped. The function also
    works inside a `tf.function`.

    Args:
        detections: Dict of padded detections (`boxes` (B, D, 4) yxyx, `scores` (B, D) and more, see
            `kerasdet.inference.padded`).
        from_size: (B, 2) heights and widths of the images that the coordinates refer to, without padding, in pixels.
        to_size: (B, 2) heights and widths of the images that the new coordinates refer to, in pixels.
        branch_outputs: Maps output names to `BranchOutput`s, which define how outputs are rescaled.
        clip: Whether `boxes` are clipped to the images. Models whose preprocessing letterboxes images pass False.

    Returns:
        Padded detections in pixels of the images of `to_size`. Scores, class ids and counts are unchanged.
    """
    factor = tf.cast(to_size, tf.float32) / tf.cast(from_size, tf.float32)  # (B, 2)
    scaled = _scaled(detections, factor, branch_outputs)
    for name, output in branch_outputs.items():
        if output.rescaling == "swapped_boxes" and name in detections:
            scaled[name] = box_ops.scale(tf.convert_to_tensor(detections[name]), factor[:, ::-1])
    return {**scaled, "boxes": box_ops.clip(scaled["boxes"], to_size)} if clip else scaled


def join(parts: Sequence[Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """Concatenates padded detections of several batches, or detections of several views of one image.

    Masks of whole images (with `mask_boxes`) may differ in size. Smaller masks are extended by repeating their last row
    and column, and their `mask_boxes` are extended accordingly.

    Args:
        parts: Dicts with the same keys: padded detections with arrays (B, D, ...), or detections of one image with
            arrays (N, ...).

    Returns:
        One dict whose arrays are concatenated along the first axis.
    """
    parts = with_equal_masks(parts)
    return {name: tf.concat([part[name] for part in parts], 0) for name in parts[0]}


def with_equal_masks(
    parts: Sequence[Mapping[str, tf.Tensor]], square: bool = False
) -> Sequence[Mapping[str, tf.Tensor]]:
    """Extends masks of whole images (with `mask_boxes`) to one size, by repeating their last row and column.

    Args:
        parts: Dicts with the same keys: padded detections (B, D, ...), or detections of one image (N, ...).
        square: Whether the common size is a square, which detectron2's mask pasting requires.

    Returns:
        The dicts with masks of the largest size among `parts`, and with extended `mask_boxes`.
    """
    if "mask_boxes" not in parts[0]:
        return parts
    size = tf.reduce_max(tf.stack([tf.shape(part["mask_probs"])[-2:] for part in parts]), 0)
    size = tf.fill([2], tf.reduce_max(size)) if square else size
    return [_with_larger_masks(part, size) for part in parts]


def _with_larger_masks(detections, size):
    """Extends `mask_probs` (..., h, w) to `size` (2,) cells; the size of a cell in pixels does not change."""
    probs, boxes = detections["mask_probs"], detections["mask_boxes"]
    old = tf.shape(probs)[-2:]
    rows, columns = (tf.minimum(tf.range(size[axis]), old[axis] - 1) for axis in (0, 1))
    probs = tf.gather(tf.gather(probs, rows, axis=-2), columns, axis=-1)
    corner, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    boxes = tf.concat([corner, corner + extent * tf.cast(size, boxes.dtype) / tf.cast(old, boxes.dtype)], -1)
    return {**detections, "mask_probs": probs, "mask_boxes": boxes}


def to_tf_od(
    detections: Mapping[str, tf.Tensor],
    size: tf.Tensor,
    class_offset: int,
    branch_outputs: Mapping[str, BranchOutput] = KNOWN_OUTPUTS,
) -> dict[str, tf.Tensor]:
    """Converts padded detections to outputs of the TF Object Detection API: its names, and boxes relative to the image.

    The function also works inside a `tf.function`.

    Args:
        detections: Dict of padded detections (`boxes` (B, D, 4) yxyx, `scores` (B, D) and more, see
            `kerasdet.inference.padded`).
        size: (B, 2) heights and widths of the images that the coordinates refer to, in pixels.
        class_offset: Number that is added to the class ids; 1 in the API itself, which counts classes from 1.
        branch_outputs: Maps output names to `BranchOutput`s, which hold the names of outputs in the API.

    Returns:
        Dict of float32 tensors: `detection_boxes` (B, D, 4) yxyx in 0..1, `detection_scores` (B, D),
        `detection_classes` (B, D), `num_detections` (B,), and if present `detection_masks` (B, D, S, S),
        `detection_mask_boxes` (B, D, 4) and `detection_keypoints` (B, D, J, 3). Positions are in 0..1, too. Outputs of
        a user's branches keep their dtype.
    """
    scaled = _scaled(detections, 1 / tf.cast(size, tf.float32), branch_outputs)
    outputs = {
        "detection_boxes": scaled["boxes"],
        "detection_scores": scaled["scores"],
        "detection_classes": tf.cast(scaled["class_ids"] + class_offset, tf.float32),
        "num_detections": tf.cast(scaled["valid"], tf.float32),
    }
    return outputs | {output.export_name: scaled[name] for name, output in branch_outputs.items() if name in scaled}


def from_tf_od(
    outputs: Mapping[str, tf.Tensor],
    sizes: tf.Tensor,
    class_offset: int,
    branch_outputs: Mapping[str, BranchOutput] = KNOWN_OUTPUTS,
) -> dict[str, tf.Tensor]:
    """Converts outputs of the TF Object Detection API back to padded detections; reverses `to_tf_od`.

    The function also works inside a `tf.function`.

    Args:
        outputs: Tensors or arrays by name, such as `detection_boxes`.
        sizes: (B, 2) heights and widths of the images in pixels; (1, 2) if all images have the same size.
        class_offset: Number that is subtracted from the class ids, the argument that `to_tf_od` got.
        branch_outputs: Maps output names to `BranchOutput`s, as for `to_tf_od`.

    Returns:
        Dict of padded detections (`boxes` (B, D, 4) yxyx, `scores` (B, D) and more, see `kerasdet.inference.padded`),
        in pixels.
    """
    detections = {
        "boxes": tf.convert_to_tensor(outputs["detection_boxes"]),
        "scores": tf.convert_to_tensor(outputs["detection_scores"]),
        "class_ids": tf.cast(outputs["detection_classes"], tf.int32) - class_offset,
        "valid": tf.cast(outputs["num_detections"], tf.int32),
    }
    for name, output in branch_outputs.items():
        if output.export_name in outputs:
            detections[name] = tf.convert_to_tensor(outputs[output.export_name])
    return _scaled(detections, tf.cast(sizes, tf.float32), branch_outputs)


def _scaled(detections, factor, branch_outputs):
    """Multiplies y and x of boxes and of outputs that are positions or boxes by `factor` (B, 2)."""
    scaled = {**detections, "boxes": box_ops.scale(detections["boxes"], factor)}
    for name, output in branch_outputs.items():
        if output.rescaling == "positions" and name in detections:
            scaled[name] = _scale_positions(tf.convert_to_tensor(detections[name]), factor)
        elif output.rescaling == "swapped_boxes" and name in detections:
            scaled[name] = box_ops.scale(tf.convert_to_tensor(detections[name]), factor)
    return scaled


def _scale_positions(positions, factor):
    """Multiplies y and x of positions (B, D, ..., 3) by `factor` (B, 2)."""
    factor = tf.cast(factor, positions.dtype)
    factor = tf.concat([factor, tf.ones_like(factor[:, :1])], -1)  # (B, 3)
    return positions * tf.reshape(factor, [-1, *[1] * (positions.shape.rank - 2), 3])
