"""Runs a detector's network on images of an export's input, and completes raw outputs by the detector's own rules."""

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
    """Runs the network on images without padding, which it pads itself; a graph function.

    A static height and width stay static, which `Preprocessing.batch` does not guarantee. TFLite needs that.

    Args:
        model: The detector.
        image: (B, H, W, 3) RGB, 0..255, float or uint8.

    Returns:
        The dict that the model returned, and the images' sizes (B, 2) in pixels.
    """
    image = tf.cast(image, tf.float32)
    size = image.shape[1:3].as_list()
    if None in size:
        batch = model.preprocessing.batch(image, resize=False)
        image, image_size = batch["image"], batch["image_size"]
    else:
        image_size = tf.constant([size]) if image.shape[0] == 1 else tf.broadcast_to(size, [tf.shape(image)[0], 2])
        padded = [int(length) for length in model.preprocessing.padded_size(np.array(size))]
        if padded == size:  # without padding to look for, the graph is smaller
            return model(image, training=False), image_size
        image = resize_ops.pad_to(image, *padded)
    return model(model.preprocessing.network_input(image, image_size), training=False), image_size


def detections(model: Detector, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
    """Turns the network's outputs into detections by the model's own post-processing; a graph function.

    Args:
        model: The detector.
        outputs: The dict that the model returned.
        image_size: (B, 2) heights and widths of the images in pixels.

    Returns:
        The outputs of `kerasdet.inference.padded.to_tf_od`, classes counted from 0.
    """
    rule = model.preprocessing
    limit = rule.padded_size(image_size) if rule.letterboxes else image_size
    return to_tf_od(model.postprocess(outputs, limit), image_size, 0, model.branch_outputs)


def raw_outputs(outputs: Mapping[str, Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """Concatenates the levels of the heads' outputs to (B, R, ...) each."""
    return {name: tf.concat(list(outputs[name].values()), 1) for name in HEADS if name in outputs}


def to_original(
    detections: Mapping[str, tf.Tensor],
    size: tuple[int, int],
    original_size: tf.Tensor,
    rule: Preprocessing,
    branch_outputs: Mapping[str, BranchOutput],
) -> dict[str, tf.Tensor]:
    """Moves detections from letterboxed images to the original ones, and drops boxes that lie in the padding.

    Boxes of models that count the padding as image may end in it, and all stay.

    Args:
        detections: The padded dict.
        size: Height and width that the images have in the letterbox, in pixels.
        original_size: (B, 2) heights and widths of the original images.
        rule: The model's rule.
        branch_outputs: Output name -> how it follows the image, see `Predictor.branch_outputs`.
    """
    clip = not rule.letterboxes
    detections = rescale(detections, tf.constant([size]), original_size, branch_outputs, clip=clip)
    return drop_empty(detections) if clip else detections


class RawHeads:
    """Applies a model's own post-processing to the raw outputs of its heads.

    Args:
        model_config: JSON of the model, see `serialized`.
    """

    def __init__(self, model_config: str):
        self._model = keras.saving.deserialize_keras_object(json.loads(model_config))

    def postprocess(
        self, outputs: Mapping[str, np.ndarray], anchors: Mapping[str, np.ndarray], size: tuple[int, int]
    ) -> dict[str, tf.Tensor]:
        """Returns the padded dict, in pixels of the input.

        Args:
            outputs: Output name -> (B, R, ...), see `raw_outputs`.
            anchors: Level -> (R_l, 4).
            size: Height and width of the input in pixels.
        """
        counts = [len(each) for each in anchors.values()]
        heads = {
            name: dict(zip(anchors, tf.split(value, counts, axis=1), strict=True)) for name, value in outputs.items()
        }
        batch = len(next(iter(outputs.values())))
        return self._model.postprocess({**heads, "anchors": anchors}, tf.broadcast_to(tf.constant(size), [batch, 2]))


def serialized(model: Detector) -> str:
    """Returns the model's configuration without its weights as JSON."""
    return json.dumps(keras.saving.serialize_keras_object(model))


def as_input(pixels: np.ndarray, input_type: str) -> np.ndarray:
    """Converts float32 pixels to the type of an export's input, "float32" or "uint8"."""
    return np.rint(pixels).astype(np.uint8) if input_type == "uint8" else pixels
