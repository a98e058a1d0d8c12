"""Writes ONNX files: one file with weights, decoding and NMS, which uses only ONNX operators.

The input ``image`` is (B, H, W, 3), RGB, 0..255, float32 or uint8; the file contains padding and normalisation. The
input takes any number of images of any size, or one image of a fixed size. Callers resize the images, by the rule in
the metadata.

| postprocessing | outputs |
|---|---|
| ``nms`` | those of `kerasdet.inference.padded.to_tf_od`, float32, classes counted from 0 |
| ``raw`` | outputs of the heads, all levels concatenated, under the names that the model's `call` gives them; |
|         | ``anchors`` (R, 4) as (y1, x1, y2, x2) in pixels; ``anchors_per_level`` (L,) int64 |

Entries of ``metadata_props``:

| entry | |
|---|---|
| ``kerasdet`` | the description of the model and its export as JSON, see `kerasdet.export.metadata` |
| ``class_names`` | JSON list, if the model has names |
| ``input`` | a sentence that explains how to convert an image to the input |
| ``model`` | ``raw`` only: the model's configuration as JSON |
| ``config.gin`` | the operative gin configuration of the training run, if it is known |
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError, require_extra
from kerasdet.export import checks
from kerasdet.export.metadata import model_metadata
from kerasdet.export.network import as_input, detections, raw_outputs, run_network, serialized
from kerasdet.export.onnx.quantization import quantize
from kerasdet.export.onnx.spec import POSTPROCESSING, PRECISIONS
from kerasdet.export.spec import INPUT_TYPES
from kerasdet.files import replacing
from kerasdet.inference.images import open_images
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models import Detector
from kerasdet.paths import prepare_file

if TYPE_CHECKING:
    import onnx

_OUTPUT_ORDER = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")


def export_onnx(
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
    """Writes a detector as an ONNX file.

    Args:
        model: The detector.
        path: Path of a new file with the suffix ``.onnx``. Its folder is created if necessary.
        postprocessing: "nms" for detections, "raw" for the outputs of the heads.
        precision: "float32"; "float16" for weights and arithmetic of the network in float16; "int8" for convolutions
            in 8 bits, see `kerasdet.export.onnx.quantization`.
        size: Height and width of the input in pixels, for a single image. None: any number of images of any size.
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
            calibration images, a package is missing, or the export does not support an op of the model.

    Example:
        >>> export_onnx(model, "detector.onnx")
        >>> detections = kerasdet.load("detector.onnx").detect("street.jpg")
    """
    path = prepare_file(checks.new_file(path, "onnx"), "The export")
    options = {
        "postprocessing": postprocessing,
        "precision": precision,
        "size": size,
        "input_type": input_type,
        "calibration_images": calibration_images,
    }
    content = onnx_model(model, gin_config=gin_config, name="ONNX", **options).SerializeToString()
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


def onnx_model(
    model: Detector,
    *,
    postprocessing: str,
    precision: str,
    size: tuple[int, int] | None,
    input_type: str,
    calibration_images: Sequence,
    gin_config: str | None,
    name: str,
) -> "onnx.ModelProto":
    """Converts a detector to an ONNX model in memory.

    Args:
        model: The detector.
        postprocessing: "nms" for detections, "raw" for the outputs of the heads.
        precision: One of `PRECISIONS`.
        size: Height and width of the input in pixels, for a single image. None: any number of images of any size.
        input_type: Dtype of the input's pixels, one of `INPUT_TYPES`.
        calibration_images: Arrays (H, W, 3), PIL images or paths, on which "int8" measures the ranges of activations.
        gin_config: Operative gin configuration of the training run. None: the export contains no configuration.
        name: Name of the format, for error messages.

    Returns:
        The ONNX model.

    Raises:
        FileNotFoundError: If the file of a calibration image does not exist.
        TypeError: If `model` is not a detector.
        UserError: If an option is unknown or the model does not support it, "int8" lacks calibration
            images, a package is missing, or the export does not support an op of the model.
    """
    checks.check_model(model)
    checks.check_choice(name, "postprocessing", postprocessing, POSTPROCESSING)
    checks.check_choice(name, "precision", precision, PRECISIONS)
    checks.check_choice(name, "input type", input_type, INPUT_TYPES)
    checks.check_size(size)
    if postprocessing == "raw" and not model.single_stage:
        raise UserError(
            f"{type(model).__name__} cannot be exported with postprocessing raw, because its second stage needs the "
            "proposals that NMS selects. Choose postprocessing nms."
        )
    if postprocessing == "raw" and model.branches:
        raise UserError(
            f"{type(model).__name__} cannot be exported with postprocessing raw, which has no outputs for masks and "
            "other branches. Choose postprocessing nms."
        )
    checks.check_calibration(precision, calibration_images)
    require_extra("onnx", "the export", "onnx")
    from kerasdet.export.onnx.model import set_properties

    images = open_images(list(calibration_images))[0] if precision == "int8" else []
    graph_precision = "float32" if precision == "int8" else precision
    result, levels = convert_detector(model, postprocessing, graph_precision, size, input_type)
    if precision == "int8":
        inputs = _inputs(model.preprocessing, images, size, input_type)
        # 8 bits in the backbone would change proposals and keypoints more than the verification allows.
        layers = [model.backbone.name, model.neck.name] if model.single_stage else [model.neck.name]
        result = quantize(result, inputs, layers)
    options = {
        "class_offset": 0,
        "precision": precision,
        "postprocessing": postprocessing,
        "input_type": input_type,
        **({"size": size} if size else {}),
        **({"levels": levels} if levels else {}),
    }
    set_properties(result, _properties(model, options, size, gin_config))
    return result


def convert_detector(
    model: Detector, postprocessing: str, precision: str, size: tuple[int, int] | None, input_type: str
) -> tuple["onnx.ModelProto", list[str]]:
    """Converts a detector's network and post-processing, without metadata.

    Args:
        model: The detector.
        postprocessing: "nms" for detections, "raw" for the outputs of the heads.
        precision: "float32" or "float16".
        size: Height and width of the input in pixels, for a single image. None: any number of images of any size.
        input_type: Dtype of the input's pixels, one of `INPUT_TYPES`.

    Returns:
        The ONNX model; and for "raw" the names of the levels whose outputs are concatenated, otherwise an empty list.

    Raises:
        UserError: If the export to ONNX does not support an op of the model.
    """
    from kerasdet.export.onnx.model import convert

    levels = []

    def network(image):
        outputs, image_size = run_network(model, image)
        return detections(model, outputs, image_size) if postprocessing == "nms" else _raw(outputs)

    def _raw(outputs):
        levels[:] = outputs["anchors"]
        anchors = list(outputs["anchors"].values())
        counts = tf.stack([tf.shape(each)[0] for each in anchors])
        return {**raw_outputs(outputs), "anchors": tf.concat(anchors, 0), "anchors_per_level": counts}

    shape = [1, *size, 3] if size else [None, None, None, 3]
    signature = tf.TensorSpec(shape, tf.as_dtype(input_type), "image")
    return convert(network, signature, precision, _OUTPUT_ORDER), levels


def _inputs(preprocessing, images, size, input_type) -> Iterator[np.ndarray]:
    """Yields the input (1, h, w, 3) for each image."""
    for image in images:
        if size:
            yield as_input(preprocessing.letterbox(image, *size)[0].numpy(), input_type)[None]
            continue
        batch = preprocessing.pad_batch([image])
        inputs = preprocessing.network_input(batch["image"], batch["image_size"])
        height, width = np.asarray(inputs["image_size"])[0]
        yield as_input(np.asarray(inputs["image"])[:, :height, :width], input_type)


def _properties(model, options, size, gin_config):
    """Returns the file's ``metadata_props``."""
    properties = {"kerasdet": json.dumps(model_metadata(model, options)), "input": _rule(model.preprocessing, size)}
    if model.class_names:
        properties["class_names"] = json.dumps(list(model.class_names))
    if options["postprocessing"] == "raw":
        properties["model"] = serialized(model)
    if gin_config:
        properties["config.gin"] = gin_config.strip() + "\n"
    return properties


def _rule(preprocessing: Preprocessing, size) -> str:
    """Returns the metadata entry ``input``: how an image is converted to the input."""
    if preprocessing.rounding == "square":
        height, width = size or [min(preprocessing.shortest, preprocessing.longest)] * 2
        return f"RGB, 0..255: stretched to {height}x{width} (height x width), kernel {preprocessing.kernel}."
    if size:
        fill = ", ".join(f"{value:g}" for value in preprocessing.filling)
        return (
            f"RGB, 0..255: resized to the largest size within {size[0]}x{size[1]} (height x width) at its aspect "
            f"ratio, and filled at the bottom or right with ({fill})."
        )
    return (
        f"RGB, 0..255: the shorter side resized to {preprocessing.shortest} pixels or, if the longer side would then "
        f"exceed {preprocessing.longest} pixels, the longer side to {preprocessing.longest}; kernel "
        f"{preprocessing.kernel}, size "
        f"rounded like {preprocessing.rounding}{_square(preprocessing)}."
    )


def _square(preprocessing):
    """Returns words that say how an image is padded to a square; "" if it is not padded."""
    if not preprocessing.letterboxes:
        return ""
    side = int(preprocessing.padded_size(preprocessing.longest))
    return f"; padded at the bottom right to {side}x{side} with {preprocessing.letterbox_value:g}"
