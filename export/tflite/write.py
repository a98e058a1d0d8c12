"""TFLite files (LiteRT) for one image of a fixed size, of built-in operations and at most one well-known custom one.

The input ``image`` is (1, H, W, 3), RGB as it comes, 0..255, float32 or uint8; normalisation is inside. An image of
another shape is fitted in by `kerasdet.models.Preprocessing.frame`. The outputs depend on the tail, see
`kerasdet.export.tflite.postprocessing`. Labels and what `kerasdet.load` needs travel in the file.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from kerasdet.export.graph import InferenceGraph
from kerasdet.export.saved_model.assets import model_facts
from kerasdet.export.tflite import postprocessing as tails
from kerasdet.export.tflite.load import ANCHORS_FILE, FACTS_FILE, MODEL_FILE, as_input
from kerasdet.export.tflite.metadata import LABELS_FILE, with_metadata
from kerasdet.export.tflite.quantization import PRECISIONS, lower_precision
from tensorflow.lite.python.convert_phase import ConverterError

from kerasdet.inference import open_images
from kerasdet.models import Detector
from kerasdet.ops import implementation
from kerasdet.ops import resize as resize_ops

INPUT_TYPES = ("float32", "uint8")


def export_tflite(
    model: Detector,
    path: str | Path,
    *,
    tail: str = "nms",
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    input_type: str = "float32",
    images: Sequence[np.ndarray] = (),
    gin_config: str | None = None,
) -> Path:
    """Writes a detector as a TFLite file.

    Args:
        model: The detector.
        path: A file that does not exist.
        tail: One of `kerasdet.export.tflite.postprocessing.TAILS`.
        precision: One of `kerasdet.export.tflite.quantization.PRECISIONS`.
        size: Height and width of the input; by default what the resize rule makes of a wide image.
        input_type: Of the pixels, "float32" or "uint8".
        images: For "int8": some dozens of images (H, W, 3) as the model will meet them.
        gin_config: What configured the model, to be kept in the file.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something at `path`.
        FileNotFoundError: If its folder is not there.
        ValueError: If an option is unknown, the model cannot have that tail, "int8" comes without images, or these are
            not (H, W, 3).
        RuntimeError: If the precision needs a package that is not installed, or TFLite lacks an operation of the model.
    """
    path = Path(path)
    _check(model, path, tail, precision, input_type, images, size)
    size = tuple(size or (model.preprocessing.shortest, model.preprocessing.longest))
    with implementation("tflite"):
        flatbuffer = _convert(model, tail, size, input_type)
    frames = [model.preprocessing.letterbox(image, *size)[0].numpy() for image in images] if precision == "int8" else []
    frames = [as_input(frame, input_type) for frame in frames]
    flatbuffer = lower_precision(flatbuffer, precision, frames, [model.backbone.name, model.neck.name])
    options = {"class_offset": 0, "precision": precision, "tail": tail, "size": size, "input_type": input_type}
    files = {FACTS_FILE: json.dumps(model_facts(model, options), indent=1).encode()}
    if model.class_names:
        files[LABELS_FILE] = "\n".join(model.class_names).encode() + b"\n"
    if tail == "raw":
        files[MODEL_FILE] = json.dumps(keras.saving.serialize_keras_object(model)).encode()
        files[ANCHORS_FILE] = _npz(model(tf.zeros([1, *_padded(model, size), 3]), training=False)["anchors"])
    if gin_config:
        files["config.gin"] = gin_config.strip().encode() + b"\n"
    name = type(model).__name__
    description = f"{name} of kerasdet, {precision}, tail {tail}"
    path.write_bytes(with_metadata(flatbuffer, name, description, tails.ORDER, files))
    return path


def _check(model, path, tail, precision, input_type, images, size):
    if not isinstance(model, Detector):
        raise TypeError(f"A {type(model).__name__} is no detector that could be exported.")
    for what, value, choices in (
        ("tail", tail, tails.TAILS),
        ("precision", precision, PRECISIONS),
        ("input type", input_type, INPUT_TYPES),
    ):
        if value not in choices:
            raise ValueError(f"TFLite has no {what} {value!r}: choose one of {', '.join(choices)}.")
    if size is not None and not (
        np.shape(size) == (2,) and all(isinstance(n, int | np.integer) and n > 0 for n in size)
    ):
        raise ValueError(f"size is {size!r}: give (height, width) in whole pixels.")
    if path.suffix.lower() != ".tflite":
        raise ValueError(f"{path} does not end in .tflite, by which such a file is known.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.exists():
        raise FileExistsError(f"{path} exists: export to another file or delete it.")
    if reason := tails.why_not(model, tail, precision):
        raise ValueError(f"{type(model).__name__} cannot be had with the tail {tail} in {precision}: {reason}.")
    if precision == "int8" and not len(images):
        raise ValueError("int8 needs representative images: some dozens of pictures as the model will meet them.")
    if len(images):
        open_images(list(images))


def _convert(model, tail, size, input_type):
    """The file in float32."""
    padded = _padded(model, size)

    def network(image):
        image = resize_ops.pad_to(tf.cast(image, tf.float32), *padded)
        inputs = image if padded == list(size) else {"image": image, "image_size": tf.constant([size])}
        outputs = model(inputs, training=False)
        if tail == "nms":
            return tails.nms(model, outputs, size)
        if tail == "postprocess":
            return tails.candidates(model, outputs, size)
        return tails.raw(outputs)

    signature = [tf.TensorSpec([1, *size, 3], tf.as_dtype(input_type), "image")]
    module = InferenceGraph(network, signature)

    def detect(image):
        found = module.detect(image)
        return tails.suppressed(model, found) if tail == "postprocess" else found

    concrete = tf.function(detect, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.allow_custom_ops = tail == "postprocess"
    try:
        flatbuffer = converter.convert()
    except ConverterError as error:
        missing = re.search(r"(?:TF Select|Custom) ops: (.*)", str(error))
        raise RuntimeError(
            f"{type(model).__name__} does not fit into TFLite: "
            + (f"it has no {missing[1]}." if missing else str(error).splitlines()[0])
        ) from None
    if tail == "postprocess":
        flatbuffer = tails.with_detections_per_class(flatbuffer, model.max_detections)
    return flatbuffer


def _padded(model, size):
    return [int(length) for length in model.preprocessing.padded_size(np.array(size))]


def _npz(arrays):
    file = io.BytesIO()
    np.savez(file, **{name: np.array(array) for name, array in arrays.items()})
    return file.getvalue()
