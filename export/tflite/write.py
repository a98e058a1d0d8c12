"""Writes TFLite files (LiteRT) for one image of a fixed size.

A file consists of built-in ops and at most one well-known custom op. Its input ``image`` is (1, H, W, 3), RGB, 0..255,
float32 or uint8; the file contains the normalisation. `kerasdet.inference.Preprocessing.letterbox` resizes an image of
another shape to the input. `kerasdet.export.tflite.postprocessing` lists the outputs. The file also holds class names
and the metadata that `kerasdet.load` needs.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export import checks
from kerasdet.export.graph import InferenceGraph
from kerasdet.export.metadata import METADATA_FILE, model_metadata
from kerasdet.export.network import as_input, detections, raw_outputs, run_network, serialized
from kerasdet.export.spec import INPUT_TYPES
from kerasdet.export.tflite import postprocessing as post
from kerasdet.export.tflite.load import ANCHORS_FILE, MODEL_FILE
from kerasdet.export.tflite.model_metadata import LABELS_FILE, with_metadata
from kerasdet.export.tflite.quantization import check_installed, lower_precision
from kerasdet.export.tflite.spec import POSTPROCESSING, PRECISIONS
from kerasdet.files import replacing
from kerasdet.inference.images import open_images
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_compat import tflite_converter_error
from kerasdet.models import Detector
from kerasdet.ops import implementation
from kerasdet.paths import prepare_file


def export_tflite(
    model: Detector,
    path: str | Path,
    *,
    postprocessing: str = "nms",
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    input_type: str = "float32",
    calibration_images: Sequence[np.ndarray | str | Path] = (),
    gin_config: str | None = None,
) -> Path:
    """Writes a detector as a TFLite file.

    Args:
        model: The detector.
        path: Path of a new file with the suffix ``.tflite``. Its folder is created if necessary.
        postprocessing: "nms" for built-in ops with the model's own rules, "postprocess" for the custom op
            ``TFLite_Detection_PostProcess``, "raw" for the outputs of the heads.
        precision: "float32", "float16", "dynamic" or "int8", see `kerasdet.export.tflite.quantization`.
        size: Height and width of the input in pixels. None: the height is `shortest` and the width `longest` of the
            model's resize rule, but at most 5/3 of the height, the ratio of COCO's rule (800, 1333). Choose the aspect
            ratio of your images, because the rest of the input is padding.
        input_type: Dtype of the input's pixels, "float32" or "uint8".
        calibration_images: A few dozen images that are typical for the model, as arrays (H, W, 3), PIL images or paths.
            "int8" needs these images to determine the ranges of activations.
        gin_config: Operative gin configuration of the training run, which is stored in the export. None: no
            configuration.

    Returns:
        The path of the file.

    Raises:
        FileExistsError: If `path` exists.
        OSError: If `path` cannot be written, or the file of a calibration image does not exist.
        TypeError: If `model` is not a detector.
        UserError: If `path` has another suffix, an option is unknown or the model does not support it, "int8" lacks
            calibration images, a package is missing, or TFLite lacks an op of the model.

    Example:
        >>> export_tflite(model, "detector.tflite", size=(320, 320), input_type="uint8")
        >>> detections = kerasdet.load("detector.tflite").detect("street.jpg")
    """
    path = checks.new_file(path, "tflite")
    _check_options(model, postprocessing, precision, input_type, calibration_images, size)
    prepare_file(path, "The export")
    size = tuple(size or default_size(model.preprocessing))
    images = open_images(list(calibration_images))[0] if precision == "int8" else []
    with implementation("tflite"):
        flatbuffer = convert_detector(model, postprocessing, size, input_type)
    inputs = [as_input(model.preprocessing.letterbox(image, *size)[0].numpy(), input_type) for image in images]
    flatbuffer = lower_precision(flatbuffer, precision, inputs, [model.backbone.name, model.neck.name])
    options = {
        "class_offset": 0,
        "precision": precision,
        "postprocessing": postprocessing,
        "size": size,
        "input_type": input_type,
    }
    files = {METADATA_FILE: json.dumps(model_metadata(model, options), indent=1).encode()}
    if model.class_names:
        files[LABELS_FILE] = "\n".join(model.class_names).encode() + b"\n"
    if postprocessing == "raw":
        files[MODEL_FILE] = serialized(model).encode()
        files[ANCHORS_FILE] = _npz(run_network(model, tf.zeros([1, *size, 3]))[0]["anchors"])
    if gin_config:
        files["config.gin"] = gin_config.strip().encode() + b"\n"
    name = type(model).__name__
    description = f"{name} of kerasdet, {precision}, postprocessing {postprocessing}"
    further = sorted(output.export_name for output in model.branch_outputs.values())
    order = tuple(dict.fromkeys((*post.OUTPUT_ORDER, *further)))
    content = with_metadata(flatbuffer, name, description, order, files)
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def default_size(rule: Preprocessing) -> tuple[int, int]:
    """Returns the default height and width of the input in pixels; the width is at most 5/3 of the height.

    Args:
        rule: The model's preprocessing, which holds the resize rule.
    """
    return rule.shortest, min(rule.longest, round(rule.shortest * 5 / 3))


def _check_options(model, postprocessing, precision, input_type, calibration_images, size):
    checks.check_model(model)
    checks.check_choice("TFLite", "postprocessing", postprocessing, POSTPROCESSING)
    checks.check_choice("TFLite", "precision", precision, PRECISIONS)
    checks.check_choice("TFLite", "input type", input_type, INPUT_TYPES)
    checks.check_size(size)
    if reason := post.unsupported_reason(model, postprocessing, precision):
        raise UserError(
            f"{type(model).__name__} cannot be exported with postprocessing {postprocessing} in {precision}: {reason}."
        )
    checks.check_calibration(precision, calibration_images)
    check_installed(precision)


def convert_detector(model: Detector, postprocessing: str, size: tuple[int, int], input_type: str) -> bytes:
    """Converts a detector to a TFLite file in float32.

    Args:
        model: The detector.
        postprocessing: One of `kerasdet.export.tflite.spec.POSTPROCESSING`.
        size: Height and width of the input in pixels.
        input_type: Dtype of the input's pixels, "float32" or "uint8".

    Returns:
        The contents of the TFLite file, without metadata.

    Raises:
        UserError: If TFLite lacks an op of the model.
    """

    def network(image):
        outputs, image_size = run_network(model, image)
        if postprocessing == "nms":
            return detections(model, outputs, image_size)
        if postprocessing == "postprocess":
            return post.encode_for_custom_op(model, outputs, size)
        return raw_outputs(outputs)

    signature = [tf.TensorSpec([1, *size, 3], tf.as_dtype(input_type), "image")]
    graph = InferenceGraph(network, signature)

    def detect(image):
        # The custom op stays outside of `InferenceGraph`, in which it would lose the attribute that names it.
        found = graph.detect(image)
        return post.apply_nms_custom_op(model, found) if postprocessing == "postprocess" else found

    concrete = tf.function(detect, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], graph)
    converter.allow_custom_ops = postprocessing == "postprocess"
    try:
        flatbuffer = converter.convert()
    except tflite_converter_error() as error:
        missing = re.search(r"(?:TF Select|Custom) ops: (.*)", str(error))
        reason = f"TFLite lacks the ops {missing[1]}" if missing else str(error).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot be converted to TFLite ({reason}): replace the layers that use these "
            "ops, or export a SavedModel."
        ) from None
    if postprocessing == "postprocess":
        flatbuffer = post.set_detections_per_class(flatbuffer, model.postprocessing.max_detections)
    return flatbuffer


def _npz(arrays):
    file = io.BytesIO()
    np.savez(file, **{name: np.array(array) for name, array in arrays.items()})
    return file.getvalue()
