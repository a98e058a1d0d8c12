"""Runs a detector's network inside an export, and applies its post-processing to the raw outputs of an export."""

import json
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from kerasdet.inference.padded import BranchOutput, rescale, to_tf_od
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models import Detector
from kerasdet.models.postprocess import drop_empty
from kerasdet.ops import resize as resize_ops

HEADS = ("objectness", "class_logits", "box_deltas", "box_distances", "centerness")


def run_network(model: Detector, image: tf.Tensor) -> tuple[Mapping, tf.Tensor]:
    """Pads images and runs the network on them. The function also works inside a `tf.function`.

    If height and width of the images are static, they stay static, as TFLite requires; `Preprocessing.batch` does not
    guarantee this.

    Args:
        model: The detector.
        image: (B, H, W, 3) RGB, 0..255, float or uint8.

    Returns:
        The outputs of the model's `call`, and the heights and widths (B, 2) of the images without padding, in pixels.
    """
    image = tf.cast(image, tf.float32)
    size = image.shape[1:3].as_list()
    if None in size:
        batch = model.preprocessing.pad_batch(image, resize=False)
        image, image_size = batch["image"], batch["image_size"]
    else:
        image_size = tf.constant([size]) if image.shape[0] == 1 else tf.broadcast_to(size, [tf.shape(image)[0], 2])
        padded = [int(length) for length in model.preprocessing.padded_size(np.array(size))]
        if padded == size:  # the graph is smaller if the model need not handle padding
            return model(image, training=False), image_size
        image = resize_ops.pad_to(image, *padded)
    return model(model.preprocessing.network_input(image, image_size), training=False), image_size


def detections(model: Detector, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
    """Converts the network's outputs to detections by the model's own post-processing.

    The function also works inside a `tf.function`.

    Args:
        model: The detector.
        outputs: The dict that the model's `call` returned.
        image_size: (B, 2) heights and widths of the images without padding, in pixels.

    Returns:
        Outputs of the TF Object Detection API, such as ``detection_boxes``, with classes counted from 0; see
        `kerasdet.inference.padded.to_tf_od`.
    """
    rule = model.preprocessing
    limit = rule.padded_size(image_size) if rule.letterboxes else image_size
    return to_tf_od(model.postprocess(outputs, limit), image_size, 0, model.branch_outputs)


def raw_outputs(outputs: Mapping[str, Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """Concatenates the raw outputs of the heads over all levels; other outputs are left out.

    Args:
        outputs: The result of the model's `call`. Its entries in `HEADS` are dicts from level name to (B, R_l, ...).
            R_l is the number of anchors or points of level l.

    Returns:
        The concatenated outputs (B, R, ...) by name; R is the sum of all R_l.
    """
    return {name: tf.concat(list(outputs[name].values()), 1) for name in HEADS if name in outputs}


def to_original(
    detections: Mapping[str, tf.Tensor],
    size: tuple[int, int],
    original_size: tf.Tensor,
    rule: Preprocessing,
    branch_outputs: Mapping[str, BranchOutput],
) -> dict[str, tf.Tensor]:
    """Converts detections from pixels of letterboxed images to pixels of the original images.

    A letterboxed image is resized without distortion, then padded to a fixed size. Boxes that lie in the padding are
    dropped, unless the model sees the padding as part of the image.

    Args:
        detections: Padded detections in pixels of the letterboxed images, a dict of `boxes` (B, D, 4) yxyx, `scores`
            (B, D) and more, see `kerasdet.inference.padded`.
        size: Height and width of the resized images without padding, in pixels.
        original_size: (B, 2) heights and widths of the original images, in pixels.
        rule: The model's preprocessing.
        branch_outputs: Maps output names to `BranchOutput`s, which define how outputs are rescaled.

    Returns:
        Padded detections in pixels of the original images.
    """
    clip = not rule.letterboxes
    detections = rescale(detections, tf.constant([size]), original_size, branch_outputs, clip=clip)
    return drop_empty(detections) if clip else detections


class RawHeads:
    """Applies a model's own post-processing to the raw outputs of its heads.

    Args:
        model_config: Result of `serialized` for the model.
    """

    def __init__(self, model_config: str):
        self._model = keras.saving.deserialize_keras_object(json.loads(model_config))

    def postprocess(
        self, outputs: Mapping[str, np.ndarray], anchors: Mapping[str, np.ndarray], size: tuple[int, int]
    ) -> dict[str, tf.Tensor]:
        """Decodes raw outputs and applies NMS.

        Args:
            outputs: Outputs (B, R, ...) by name, see `raw_outputs`.
            anchors: Anchors (R_l, 4) yxyx in pixels, by level name.
            size: Height and width of the input in pixels.

        Returns:
            Padded detections, see `kerasdet.inference.padded`: a dict of `boxes` (B, D, 4) yxyx in pixels of the input,
            `scores` (B, D) and more.
        """
        counts = [len(each) for each in anchors.values()]
        heads = {
            name: dict(zip(anchors, tf.split(value, counts, axis=1), strict=True)) for name, value in outputs.items()
        }
        batch = len(next(iter(outputs.values())))
        return self._model.postprocess({**heads, "anchors": anchors}, tf.broadcast_to(tf.constant(size), [batch, 2]))


def serialized(model: Detector) -> str:
    """Serialises the configuration of a model, without its weights.

    Args:
        model: The detector.

    Returns:
        The configuration as a JSON string.
    """
    return json.dumps(keras.saving.serialize_keras_object(model))


def as_input(pixels: np.ndarray, input_type: str) -> np.ndarray:
    """Converts pixels to the dtype of an export's input.

    Args:
        pixels: float32 array of any shape, 0..255.
        input_type: "float32" or "uint8".

    Returns:
        The pixels in the input's dtype, with the same shape; rounded for "uint8".
    """
    return np.rint(pixels).astype(np.uint8) if input_type == "uint8" else pixels
