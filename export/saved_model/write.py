"""Writes a self-contained SavedModel: image decoding, resizing, the network, NMS, and boxes in the original image.

All signatures take a batch of any size. By default, they use only stock TensorFlow ops. An empty batch gives empty
outputs.

| signature | input |
|---|---|
| ``serving_default`` | ``image``: (B, H, W, 3) uint8 RGB |
| ``float_image`` | ``image``: (B, H, W, 3) float32 RGB, 0..255 |
| ``encoded`` | ``image_bytes``: (B,) JPEG or PNG files of any sizes; each is turned upright by its EXIF orientation |

The outputs are those of the TF Object Detection API, in float32 except for a user's branch:

| output | |
|---|---|
| ``detection_boxes`` | (B, D, 4), (ymin, xmin, ymax, xmax) as fractions of the original image's height and width |
| ``detection_scores`` | (B, D), descending, 0 for padding |
| ``detection_classes`` | (B, D), class id + `class_offset`; `class_offset` - 1 for padding; names in ``assets/`` |
| ``num_detections`` | (B,), number of detections without padding |
| ``detection_masks`` | Mask R-CNN: (B, D, S, S), probabilities inside the box; RTMDet-Ins: (B, D, h, w) |
| ``detection_mask_boxes`` | RTMDet-Ins: (B, D, 4), the area of ``detection_masks`` as fractions of the image |
| ``detection_keypoints`` | models with keypoints: (B, D, J, 3), (y, x, score), y and x as fractions of the image |
| ``detection_<name>`` | models with a user's branch: its output in its own dtype, see `kerasdet.models.branch` |
"""

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export import checks
from kerasdet.export.formats import choose_spec
from kerasdet.export.graph import InferenceGraph
from kerasdet.export.saved_model.assets import write_assets
from kerasdet.export.saved_model.decoding import decode_batch
from kerasdet.export.saved_model.spec import MAX_PIXELS
from kerasdet.inference.padded import to_tf_od
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models import Detector
from kerasdet.ops import implementation
from kerasdet.paths import expand, make_folder

_LARGEST_EXACT = 2**24  # float32, the dtype of `detection_classes`, represents integers exactly up to this one


def export_saved_model(
    model: Detector,
    path: str | Path,
    *,
    class_offset: int = 1,
    precision: str = "float32",
    max_pixels: int = MAX_PIXELS,
    ops: str = "tensorflow",
    gin_config: str | None = None,
) -> Path:
    """Writes a detector as a SavedModel.

    Args:
        model: The detector.
        path: Path of a new or empty folder.
        class_offset: Id of the first class in ``detection_classes``, 0 or more. The TF Object Detection API counts from
            1.
        precision: Precision of convolutions and matrix products: "float32", "bfloat16" (processors with AVX-512 or AMX,
            TPUs) or "float16" (GPUs). Box decoding and NMS run in float32.
        max_pixels: If an encoded image has more pixels than this, its request fails before the image is decoded.
        ops: "tensorflow" for stock ops, or "compiled" for kerasdet's compiled ops, which the server must then load.
        gin_config: Operative gin configuration of the training run, which is stored in the assets. None: no
            configuration.

    Returns:
        The path of the folder.

    Raises:
        FileExistsError: If `path` is a file or a folder that is not empty.
        OSError: If `path` cannot be written.
        TypeError: If the model is not a detector.
        UserError: If an option is unknown or out of its range, or the suffix of `path` is that of a model file.

    Example:
        >>> export_saved_model(model, "detector", precision="bfloat16")
        >>> detections = kerasdet.load("detector").detect("street.jpg")
    """
    checks.check_model(model)
    path = expand(path)
    choose_spec(path, "saved_model")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty: export to another folder, or delete this one.")
    _check_number("class_offset", class_offset, 0, _LARGEST_EXACT - (model.num_classes or 1))
    _check_number("max_pixels", max_pixels, 1)
    make_folder(path.parent, "The export")

    def network(image, image_size, original_size):
        return model.detect_batch({"image": image, "image_size": image_size, "original_size": original_size})

    with implementation(ops):
        graph = InferenceGraph(
            network,
            [
                tf.TensorSpec([None, None, None, 3], tf.float32, "image"),
                tf.TensorSpec([None, 2], tf.int32, "image_size"),
                tf.TensorSpec([None, 2], tf.int32, "original_size"),
            ],
            precision,
        )

        def named(detections, size):
            return to_tf_od(detections, size, class_offset, model.branch_outputs)

        signatures = _signatures(graph.detect, named, model.preprocessing, max_pixels)
    # A Keras model must be written with `keras.export.ExportArchive`: `tf.saved_model.save` would write a SavedModel
    # that loads in Python but fails in C++ ("Resource ... does not exist"; TensorFlow 2.21, Keras 3.15). This graph
    # contains nothing of Keras: `InferenceGraph` is a frozen graph with plain `tf.Variable`s, for which
    # `tf.saved_model.save` is right; tests/export/test_cpp.py runs the result in C++.
    # The module gets only the weights: tracking `graph.detect` would save a second copy of the graph.
    root = tf.Module()
    root.weights = graph.weights
    tf.saved_model.save(root, str(path), signatures)
    options = {"class_offset": class_offset, "precision": precision, "max_pixels": max_pixels, "ops": ops}
    write_assets(model, path, options, signatures, gin_config)
    return path


def _check_number(name, value, low, high=None):
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        limits = f"from {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {value!r}: expected an integer {limits}. Change {name}.")


def _signatures(network: Callable, named: Callable, preprocessing: Preprocessing, max_pixels: int) -> dict:
    """Returns the concrete function of each signature, by name."""

    def outputs(image, image_size, original_size, count):
        detections = network(image, image_size, original_size)
        return {name: value[:count] for name, value in named(detections, original_size).items()}

    def black_image():
        """Returns a batch of one small image, which replaces an empty batch, because some ops fail on empty batches."""
        side = preprocessing.size_divisor
        size = tf.fill([1, 2], side)
        return tf.zeros([1, side, side, 3]), size, size

    def resized(image):
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(tf.shape(image) > 0), ["image has no pixels:", tf.shape(image)])]
        ):
            batch = preprocessing.pad_batch(image)
        return batch["image"], batch["image_size"], batch["original_size"]

    def detect(image):
        # Runtimes check the type of an input but not its shape; a grey or unbatched image would fail deep inside
        image = tf.ensure_shape(image, [None, None, None, 3], "image_is_batch_of_height_width_RGB")
        count = tf.shape(image)[0]
        return outputs(*tf.cond(count > 0, lambda: resized(image), black_image), count)

    def detect_encoded(image_bytes):
        count = tf.size(image_bytes)
        batch = tf.cond(count > 0, lambda: decode_batch(image_bytes, preprocessing, max_pixels), black_image)
        return outputs(*batch, count)

    image = [None, None, None, 3]
    return {
        name: tf.function(function).get_concrete_function(spec)
        for name, function, spec in [
            ("serving_default", detect, tf.TensorSpec(image, tf.uint8, "image")),
            ("float_image", detect, tf.TensorSpec(image, tf.float32, "image")),
            ("encoded", detect_encoded, tf.TensorSpec([None], tf.string, "image_bytes")),
        ]
    }
