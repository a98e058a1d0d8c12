"""SavedModel with everything inside: decoding, resizing, the network, NMS, and boxes of the images that came in.

Signatures, all with a dynamic batch and, unless asked otherwise, stock TensorFlow ops only; an empty batch gives empty
outputs:

| signature | input |
|---|---|
| ``serving_default`` | ``image``: (B, H, W, 3) uint8 RGB |
| ``float_image`` | ``image``: (B, H, W, 3) float32 RGB, 0..255 |
| ``encoded`` | ``image_bytes``: (B,) JPEG or PNG files, of different sizes if need be; turned upright by their EXIF |

The outputs are those of the TF Object Detection API, all float32:

| output | |
|---|---|
| ``detection_boxes`` | (B, D, 4), (ymin, xmin, ymax, xmax) as shares of the image that came in, 0..1 |
| ``detection_scores`` | (B, D), descending, 0 for padding |
| ``detection_classes`` | (B, D), class id + `class_offset`, `class_offset` - 1 for padding; names in ``assets/`` |
| ``num_detections`` | (B,), how many of the D are no padding |
| ``detection_masks`` | Mask R-CNN: (B, D, S, S), probabilities inside the box |
| ``detection_keypoints`` | Keypoint R-CNN: (B, D, J, 3), (y, x, score), y and x as shares of the image |
"""

from pathlib import Path

import tensorflow as tf
from kerasdet.export.graph import InferenceGraph
from kerasdet.export.saved_model.assets import write_assets
from kerasdet.export.saved_model.decoding import decode_batch

from kerasdet.geometry import boxes as box_ops
from kerasdet.models import Detector
from kerasdet.ops import implementation
from kerasdet.ops import resize as resize_ops

MAX_PIXELS = 50_000_000


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
        path: A folder that does not exist or is empty.
        class_offset: Added to class ids; the TF Object Detection API counts from 1.
        precision: Of the network: "float32", "bfloat16" (processors with AVX-512 or AMX, TPUs) or "float16" (GPUs).
            Boxes are decoded and suppressed in float32.
        max_pixels: Encoded images with more are refused before they are decoded.
        ops: "tensorflow", or "compiled" for the compiled operations of kerasdet, which a server must then contain.
        gin_config: What configured the model, for the assets.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If the precision is unknown.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty: export to another folder or delete it.")
    with implementation(ops):
        network = InferenceGraph(
            model.detect_resized,
            [
                tf.TensorSpec([None, None, None, 3], tf.float32, "image"),
                tf.TensorSpec([None, 2], tf.int32, "image_size"),
                tf.TensorSpec([None, 2], tf.int32, "original_size"),
            ],
            precision,
        )
        signatures = _signatures(network.detect, model.preprocessing, class_offset, max_pixels)
    root = tf.Module()
    root.weights = network.weights  # and not its function, of which there would be another copy
    tf.saved_model.save(root, str(path), signatures)
    facts = {"class_offset": class_offset, "precision": precision, "max_pixels": max_pixels, "ops": ops}
    write_assets(model, path, facts, signatures, gin_config)
    return path


def _signatures(network, preprocessing, class_offset, max_pixels):
    """Concrete functions by name."""

    def outputs(image, image_size, original_size, count):
        detections = network(image, image_size, original_size)
        shares = 1 / tf.cast(original_size, tf.float32)  # (B, 2)
        named = {
            "detection_boxes": box_ops.scale(detections["boxes"], shares),
            "detection_scores": detections["scores"],
            "detection_classes": tf.cast(detections["class_ids"] + class_offset, tf.float32),
            "num_detections": tf.cast(detections["valid"], tf.float32),
        }
        if "mask_probs" in detections:
            named["detection_masks"] = detections["mask_probs"]
        if "keypoints" in detections:
            position, score = tf.split(detections["keypoints"], [2, 1], -1)
            named["detection_keypoints"] = tf.concat([position * shares[:, None, None], score], -1)
        return {name: value[:count] for name, value in named.items()}

    def nothing():
        """A small black image, so that no operation meets an empty batch."""
        side = preprocessing.size_divisor
        size = tf.fill([1, 2], side)
        return tf.zeros([1, side, side, 3]), size, size

    def resized(image):
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(tf.shape(image) > 0), ["image has no pixels:", tf.shape(image)])]
        ):
            small = preprocessing.resize(image)
        batch, size = tf.shape(small)[0], tf.shape(small)[1:3]
        height, width = tf.unstack(preprocessing.padded_size(size))
        sizes = (tf.broadcast_to(s, [batch, 2]) for s in (size, tf.shape(image)[1:3]))
        return resize_ops.pad_to(small, height, width), *sizes

    def detect(image):
        count = tf.shape(image)[0]
        return outputs(*tf.cond(count > 0, lambda: resized(image), nothing), count)

    def detect_encoded(image_bytes):
        count = tf.size(image_bytes)
        batch = tf.cond(count > 0, lambda: decode_batch(image_bytes, preprocessing, max_pixels), nothing)
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
