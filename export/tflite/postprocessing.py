"""Builds the part of a TFLite file that follows the network, for one image of a fixed size.

| postprocessing | outputs, float32 |
|---|---|
| ``raw`` | the outputs of the heads, all levels concatenated, under the names that the model's `call` gives them |
| ``postprocess`` | the four outputs of the custom op ``TFLite_Detection_PostProcess`` |
| ``nms`` | the same four outputs, computed by built-in ops with the model's own rules, then the branches' outputs |
"""

from collections.abc import Mapping

import tensorflow as tf
from flatbuffers import flexbuffers

from kerasdet.export.network import HEADS
from kerasdet.keras_compat import tflite_schema, tflite_to_bytes
from kerasdet.models import Detector
from kerasdet.models.postprocess import compact

# The first four come in the order in which MediaPipe reads them.
DETECTIONS = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")
OUTPUT_ORDER = (*DETECTIONS, "detection_masks", "detection_keypoints", *HEADS)

# LiteRT's custom op raises an error for any box whose height or width is not positive in float32. The op receives sides
# as logarithms, so they are never exactly 0. However, a side far below the rounding of its box's coordinates vanishes
# in `y + h / 2`. 4e-6, a fraction of the image, is 32 units in the last place of a coordinate near 1. Outside the
# image, coordinates and their rounding grow, and so does the smallest side.
_SMALLEST = 4e-6
# A box with the smallest side, or one that only touches the image by rounding, must count as empty, like in the model.
# The op returns it with a side of up to 4e-6 plus rounding. 1e-5 is above that, and only a hundredth of a pixel in an
# image of 1000 pixels.
_EMPTY = 1e-5
_SKIPPED = 16  # dummy classes, see `apply_nms_custom_op`


def unsupported_reason(model: Detector, postprocessing: str, precision: str) -> str | None:
    """Tells why a model cannot be exported with a kind of post-processing and a precision.

    Args:
        model: The detector.
        postprocessing: One of `kerasdet.export.tflite.spec.POSTPROCESSING`.
        precision: One of `kerasdet.export.tflite.spec.PRECISIONS`.

    Returns:
        None if the export is possible; otherwise the reason and a remedy, for the end of an error message.
    """
    if postprocessing == "postprocess" and not model.supports_decode_all:
        return (
            "TFLite_Detection_PostProcess takes the boxes of a one-stage model and has no outputs for masks: choose "
            "postprocessing nms"
        )
    if postprocessing == "raw" and not model.single_stage:
        return "its second stage reads proposals, which NMS selects: choose postprocessing nms"
    if postprocessing == "raw" and model.branches:
        return "raw outputs do not include its branches: choose postprocessing nms"
    if precision == "int8" and not model.single_stage:
        return "calibration cannot observe ranges inside the loop of ROIAlign: choose float32, float16 or dynamic"
    return None


def encode_for_custom_op(model: Detector, outputs: Mapping, size: tuple[int, int]) -> dict[str, tf.Tensor]:
    """Decodes a box for every anchor, and encodes the boxes for `apply_nms_custom_op`.

    Args:
        model: A detector that supports `decode_all`.
        outputs: Result of the model's `call` for one image.
        size: Height and width of the image in pixels.

    Returns:
        ``encodings`` (1, R, 4): (y, x, log h, log w) of the boxes as fractions of the image. ``scores`` (1, R, K), 0
        for pairs of box and class that the model drops.
    """
    decoded = model.decode_all(outputs, tf.constant([size]))
    low, high = tf.split(decoded["boxes"] / tf.constant([*size, *size], tf.float32), 2, -1)  # (1, R, 2)
    center = (low + high) / 2
    smallest = _SMALLEST * tf.maximum(tf.abs(center), 1.0)
    encodings = tf.concat([center, tf.math.log(tf.maximum(high - low, smallest))], -1)  # (1, R, 4)
    return {"encodings": encodings, "scores": decoded["scores"]}


def apply_nms_custom_op(model: Detector, candidates: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Applies NMS with ``TFLite_Detection_PostProcess``, then clips boxes and drops empty ones, like the model.

    The op gets decoded boxes, so each of its anchors is the unit square around 0. With T > 1 threads, the op of LiteRT
    2.3 skips class T. Sixteen dummy classes after the first two absorb this bug (up to 17 threads).

    Args:
        model: The detector, whose `postprocessing` holds the thresholds.
        candidates: The result of `encode_for_custom_op`.

    Returns:
        The outputs of the op, float32: ``detection_boxes`` (1, D, 4) yxyx as fractions of the image,
        ``detection_classes`` (1, D) from 0, ``detection_scores`` (1, D) and ``num_detections`` (1,). Padding has class
        -1.
    """
    rule = model.postprocessing
    capacity = rule.max_detections
    first, rest = candidates["scores"][..., :2], candidates["scores"][..., 2:]
    scores = tf.concat([tf.pad(first, [[0, 0], [0, 0], [0, _SKIPPED]]), rest], -1)  # (1, R, K + 16)
    attributes = {
        "max_detections": ("i", capacity),
        "max_classes_per_detection": ("i", 1),
        "num_classes": ("i", scores.shape[-1]),
        "use_regular_nms": ("b", "true"),
        "nms_score_threshold": ("f", 1e-9),  # `decode_all` has set scores below the model's threshold to 0
        "nms_iou_threshold": ("f", rule.nms_threshold),
        **{f"{side}_scale": ("f", 1.0) for side in "yxhw"},
    }
    signature = " ".join(
        ['name: "TFLite_Detection_PostProcess"']
        + [f'attr {{ key: "{name}" value {{ {kind}: {value} }} }}' for name, (kind, value) in attributes.items()]
    )

    @tf.function(experimental_implements=signature)
    def tflite_detection_postprocess(encodings, scores, anchors):
        """Marks the place of the custom op: the converter replaces this function by the op."""
        return tf.zeros([1, capacity, 4]), tf.zeros([1, capacity]), tf.zeros([1, capacity]), tf.zeros([1])

    anchors = tf.tile([[0.0, 0.0, 1.0, 1.0]], [scores.shape[1], 1])
    boxes, classes, scores, valid = tflite_detection_postprocess(candidates["encodings"], scores, anchors)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    keep = tf.sequence_mask(tf.cast(valid, tf.int32), capacity)  # (1, D)
    if rule.empty_boxes == "drop_after_nms":
        keep &= tf.reduce_all(boxes[..., 2:] - boxes[..., :2] > _EMPTY, -1)
    class_ids = tf.where(classes < 2, classes, classes - _SKIPPED)
    found = compact({"boxes": boxes, "class_ids": class_ids, "scores": scores}, keep)
    values = (tf.cast(found[name], tf.float32) for name in ("boxes", "class_ids", "scores", "valid"))
    return dict(zip(DETECTIONS, values, strict=True))


def set_detections_per_class(flatbuffer: bytes, number: int) -> bytes:
    """Sets the maximum number of detections per class in ``TFLite_Detection_PostProcess``; the converter writes 100.

    Args:
        flatbuffer: A TFLite file.
        number: Maximum number of detections per class in an image.

    Returns:
        The changed file.
    """
    schema = tflite_schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    for operator in model.subgraphs[0].operators:
        if model.operatorCodes[operator.opcodeIndex].customCode == b"TFLite_Detection_PostProcess":
            options = flexbuffers.Loads(bytes(operator.customOptions))
            operator.customOptions = list(flexbuffers.Dumps({**options, "detections_per_class": number}))
    return tflite_to_bytes(model)
