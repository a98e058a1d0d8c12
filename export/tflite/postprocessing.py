"""What follows the network in a TFLite file, for one image of a fixed size: functions from outputs to named tensors.

| tail | outputs, float32 |
|---|---|
| ``raw`` | the heads, levels concatenated, as the model's `call` names them |
| ``postprocess`` | those of the custom op ``TFLite_Detection_PostProcess`` |
| ``nms`` | the same four, of built-in ops by the model's own rules, then masks and keypoints |
"""

from collections.abc import Mapping

import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from kerasdet.geometry import boxes as box_ops
from kerasdet.models import FCOS, Detector, ProposalNetwork, RetinaNet
from kerasdet.models.postprocess import compact

TAILS = ("raw", "postprocess", "nms")
OUTPUTS = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")  # in MediaPipe's order
RAW_OUTPUTS = ("objectness", "class_logits", "box_deltas", "box_distances", "centerness")
ORDER = (*OUTPUTS, "detection_masks", "detection_keypoints", *RAW_OUTPUTS)

_SMALLEST = 4e-6  # share of the image, or of a coordinate beyond it: the custom op fails on an empty box
_EMPTY = 1e-5  # of which no more than this is left in the image
_SKIPPED = 16  # classes


def why_not(model: Detector, tail: str, precision: str) -> str | None:
    """Why a model cannot be had with a tail and in a precision, or None."""
    dense = isinstance(model, RetinaNet | FCOS)
    if tail == "postprocess" and not dense:
        return "TFLite_Detection_PostProcess decodes anchors and suppresses class by class: choose the tail nms"
    if tail == "raw" and not dense and not isinstance(model, ProposalNetwork):
        return "its heads look at proposals, which suppression has chosen: choose the tail nms"
    if precision == "int8" and not dense and not isinstance(model, ProposalNetwork):
        return "ranges cannot be observed inside the loop of ROIAlign: choose float32, float16 or dynamic"
    return None


def raw(outputs: Mapping[str, Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
    """The heads' outputs, (1, R, ...) each, levels one after the other."""
    return {name: tf.concat(list(outputs[name].values()), 1) for name in RAW_OUTPUTS if name in outputs}


def nms(model: Detector, outputs: Mapping, size: tuple[int, int]) -> dict[str, tf.Tensor]:
    """The model's detections.

    Args:
        model: The detector.
        outputs: Of the model.
        size: Height and width of the image.

    Returns:
        ``detection_boxes`` (1, D, 4), (ymin, xmin, ymax, xmax) as shares of the image, ``detection_classes`` (1, D)
        from 0 and -1 for padding, ``detection_scores`` (1, D) descending, ``num_detections`` (1,), and where the model
        has them ``detection_masks`` (1, D, S, S) and ``detection_keypoints`` (1, D, J, 3), (y, x, score).
    """
    found = model.postprocess(outputs, tf.constant([size]))
    shares = 1 / tf.constant(size, tf.float32)
    named = _named({**found, "boxes": box_ops.scale(found["boxes"], shares[None])})
    if "mask_probs" in found:
        named["detection_masks"] = found["mask_probs"]
    if "keypoints" in found:
        position, score = tf.split(found["keypoints"], [2, 1], -1)
        named["detection_keypoints"] = tf.concat([position * shares, score], -1)
    return named


def _named(found):
    values = (tf.cast(found[name], tf.float32) for name in ("boxes", "class_ids", "scores", "valid"))
    return dict(zip(OUTPUTS, values, strict=True))


def candidates(model: RetinaNet | FCOS, outputs: Mapping, size: tuple[int, int]) -> dict[str, tf.Tensor]:
    """Every anchor, decoded, for `suppressed`.

    Returns:
        ``encodings`` (1, R, 4), (y, x, log h, log w) of the boxes as shares of the image, and ``scores`` (1, R, K),
        0 for what the model would not take.
    """
    image_size = tf.constant([size])
    scores, boxes = [], []
    for level, anchors in outputs["anchors"].items():
        if isinstance(model, FCOS):
            decoded = model.coder.decode(outputs["box_distances"][level], anchors)
            ranked, factor = model.level_scores(outputs, level)
            keep = (ranked > model.score_threshold) & model.min_size_mask(decoded, image_size)[..., None]
            ranked = tf.where(keep, ranked * factor[..., None], 0.0)
        else:
            decoded = model.coder.decode(outputs["box_deltas"][level], anchors)
            ranked = tf.sigmoid(outputs["class_logits"][level])
            ranked = tf.where(ranked > model.score_threshold, ranked, 0.0)
        scores.append(ranked)
        boxes.append(decoded)
    boxes = tf.concat(boxes, 1)  # (1, R, 4)
    if model.clip_before_nms:
        boxes = box_ops.clip(boxes, image_size)
    low, high = tf.split(boxes / tf.constant([*size, *size], tf.float32), 2, -1)  # (1, R, 2)
    center = (low + high) / 2
    smallest = _SMALLEST * tf.maximum(tf.abs(center), 1.0)
    encodings = tf.concat([center, tf.math.log(tf.maximum(high - low, smallest))], -1)
    return {"encodings": encodings, "scores": tf.concat(scores, 1)}


def suppressed(model: RetinaNet | FCOS, candidates: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The outputs of ``TFLite_Detection_PostProcess``, clipped, without what is empty then if the model drops it.

    Boxes go in decoded; so the op's own anchors are all the unit square around 0. On T > 1 threads LiteRT's op (2.3)
    skips class T, so there are no classes 2 to 17 in what it is given.

    Args:
        model: Its thresholds and its number of detections.
        candidates: Of the function of that name.
    """
    most = model.max_detections
    first, rest = candidates["scores"][..., :2], candidates["scores"][..., 2:]
    scores = tf.concat([tf.pad(first, [[0, 0], [0, 0], [0, _SKIPPED]]), rest], -1)
    attributes = {
        "max_detections": ("i", most),
        "max_classes_per_detection": ("i", 1),
        "num_classes": ("i", scores.shape[-1]),
        "use_regular_nms": ("b", "true"),
        "nms_score_threshold": ("f", 1e-9),  # those that pass are not 0
        "nms_iou_threshold": ("f", model.nms_threshold),
        **{f"{side}_scale": ("f", 1.0) for side in "yxhw"},
    }
    signature = " ".join(
        ['name: "TFLite_Detection_PostProcess"']
        + [f'attr {{ key: "{name}" value {{ {kind}: {value} }} }}' for name, (kind, value) in attributes.items()]
    )

    @tf.function(experimental_implements=signature)
    def tflite_detection_postprocess(encodings, scores, anchors):
        """What the converter replaces."""
        return tf.zeros([1, most, 4]), tf.zeros([1, most]), tf.zeros([1, most]), tf.zeros([1])

    anchors = tf.tile([[0.0, 0.0, 1.0, 1.0]], [scores.shape[1], 1])
    boxes, classes, scores, valid = tflite_detection_postprocess(candidates["encodings"], scores, anchors)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    keep = tf.sequence_mask(tf.cast(valid, tf.int32), most)  # (1, D)
    if not model.clip_before_nms:
        keep &= tf.reduce_all(boxes[..., 2:] - boxes[..., :2] > _EMPTY, -1)
    class_ids = tf.where(classes < 2, classes, classes - _SKIPPED)
    found = compact({"boxes": boxes, "class_ids": class_ids, "scores": scores}, keep)
    return _named(found)


def with_detections_per_class(flatbuffer: bytes, number: int) -> bytes:
    """A file whose ``TFLite_Detection_PostProcess`` keeps so many of one class; the converter leaves it at 100."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    for operator in model.subgraphs[0].operators:
        if model.operatorCodes[operator.opcodeIndex].customCode == b"TFLite_Detection_PostProcess":
            options = flexbuffers.Loads(bytes(operator.customOptions))
            operator.customOptions = list(flexbuffers.Dumps({**options, "detections_per_class": number}))
    return flatbuffer_utils.convert_object_to_bytearray(model)
