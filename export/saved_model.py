"""SavedModel with everything inside: decoding, resizing, the network, NMS, and boxes of the images that came in.

Two signatures, both with a dynamic batch and stock TensorFlow ops only:

| signature | input |
|---|---|
| ``serving_default`` | ``image``: (B, H, W, 3) uint8 RGB |
| ``encoded`` | ``image_bytes``: (B,) JPEG or PNG files, of different sizes if need be |

The outputs are those of the TF Object Detection API:

| output | |
|---|---|
| ``detection_boxes`` | (B, D, 4) float32, (ymin, xmin, ymax, xmax) as shares of the image that came in, 0..1 |
| ``detection_scores`` | (B, D) float32, descending, 0 for padding |
| ``detection_classes`` | (B, D) float32, class id + `class_offset`; names in ``assets/labels.txt`` |
| ``num_detections`` | (B,) float32 |
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasdet import boxes as box_ops
from kerasdet import images as image_ops
from kerasdet.models import Detector
from kerasdet.ops import implementation


def export_saved_model(model: Detector, path: str | Path, *, class_offset: int = 1) -> Path:
    """Writes a detector as a SavedModel.

    Args:
        model: The detector.
        path: A folder that does not exist or is empty.
        class_offset: Added to class ids; the TF Object Detection API counts from 1.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is something at `path`.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty: export to another folder or delete it.")

    def detect(image):
        original_size = tf.broadcast_to(tf.shape(image)[1:3], [tf.shape(image)[0], 2])
        return named(model.detect_batch(image), original_size)

    def detect_encoded(image_bytes):
        image, image_size, original_size = _decode_batch(image_bytes, model.preprocessing)
        return named(model.detect_resized(image, image_size, original_size), original_size)

    def named(detections, original_size):
        return {
            "detection_boxes": box_ops.scale(detections["boxes"], 1 / tf.cast(original_size, tf.float32)),
            "detection_scores": detections["scores"],
            "detection_classes": tf.cast(detections["class_ids"] + class_offset, tf.float32),
            "num_detections": tf.cast(detections["valid"], tf.float32),
        }

    archive = keras.export.ExportArchive()
    archive.track(model)
    with implementation("tensorflow"):
        archive.add_endpoint("serving_default", detect, [tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")])
        archive.add_endpoint("encoded", detect_encoded, [tf.TensorSpec([None], tf.string, name="image_bytes")])
        archive.write_out(str(path), verbose=False)
    if model.class_names:
        assets = path / "assets"
        assets.mkdir(exist_ok=True)
        (assets / "labels.txt").write_text("\n".join(model.class_names) + "\n", encoding="utf-8")
    return path


@tf.function  # for the loop: ExportArchive traces endpoints without AutoGraph
def _decode_batch(image_bytes, preprocessing):
    """Encoded images of any sizes as one padded batch: image, image_size, original_size."""
    count = tf.size(image_bytes)
    resized = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=[None, None, 3])
    original_size = tf.TensorArray(tf.int32, count, element_shape=[2])
    image_size = tf.TensorArray(tf.int32, count, element_shape=[2])
    for index in tf.range(count):
        image = image_ops.decode(image_bytes[index])
        small = preprocessing.resize(image)
        original_size = original_size.write(index, tf.shape(image)[:2])
        image_size = image_size.write(index, tf.shape(small)[:2])
        resized = resized.write(index, small)
    image_size = image_size.stack()
    height, width = tf.unstack(preprocessing.padded_size(tf.reduce_max(image_size, 0)))
    image = tf.map_fn(
        lambda index: image_ops.pad_to(resized.read(index), height, width),
        tf.range(count),
        fn_output_signature=tf.float32,
    )
    return image, image_size, original_size.stack()


_RELOAD = """
import sys
import numpy as np
import tensorflow as tf
path, data = sys.argv[1:]
signature = tf.saved_model.load(path).signatures["serving_default"]
images = np.load(data)
results = {f"{name}/{key}": value.numpy()
           for name in images.files for key, value in signature(image=tf.constant(images[name][None])).items()}
assert "kerasdet" not in sys.modules
np.savez(data, **results)
"""

_OUTPUTS = {
    "boxes": "detection_boxes",
    "scores": "detection_scores",
    "classes": "detection_classes",
    "count": "num_detections",
}


def verify_saved_model(
    model: Detector, path: str | Path, images: Sequence[np.ndarray], *, class_offset: int = 1
) -> dict[str, float]:
    """Loads a SavedModel in a process that has only TensorFlow and compares it with the model.

    Args:
        model: What was exported.
        path: The SavedModel.
        images: (H, W, 3) uint8 arrays.
        class_offset: As it was exported.

    Returns:
        The largest differences: ``boxes`` in pixels, ``scores``, ``classes`` and ``count`` of detections.

    Raises:
        RuntimeError: If the SavedModel does not run, or differs by more than 0.01 px, 1e-4 in score or at all in class.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, **{str(index): image for index, image in enumerate(images)})
        run = subprocess.run(
            [sys.executable, "-c", _RELOAD, str(Path(path).resolve()), str(data)],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        if run.returncode:
            raise RuntimeError(f"{path} does not run in a fresh process: {run.stderr.strip().splitlines()[-1]}")
        with np.load(data) as results:
            exported = {name: results[name] for name in results.files}
    worst = {"boxes": 0.0, "scores": 0.0, "classes": 0.0, "count": 0.0}
    for index, image in enumerate(images):
        detections = model.detect(image)
        expected = {
            "boxes": detections["boxes"] / np.tile(image.shape[:2], 2),
            "scores": detections["scores"],
            "classes": detections["class_ids"] + class_offset,
            "count": detections["valid"],
        }
        for name, value in expected.items():
            found = exported[f"{index}/{_OUTPUTS[name]}"]
            if found.shape != value.shape:
                raise RuntimeError(f"{path} differs from the model: {name} {found.shape} and not {value.shape}.")
            pixels = np.tile(image.shape[:2], 2) if name == "boxes" else 1
            worst[name] = max(worst[name], float(np.abs((found - value) * pixels).max()))
    if worst["boxes"] > 1e-2 or worst["scores"] > 1e-4 or worst["classes"] or worst["count"]:
        raise RuntimeError(f"{path} differs from the model: {json.dumps(worst)}.")
    return worst
