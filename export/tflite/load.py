"""An exported TFLite file that answers `detect` as the model it was made from."""

import io
import json
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from kerasdet.export.saved_model.load import in_pixels

from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import masks as mask_ops
from kerasdet.inference import open_images
from kerasdet.models import Preprocessing
from kerasdet.models.postprocess import compact

FACTS_FILE = "kerasdet.json"
MODEL_FILE = "model.json"
ANCHORS_FILE = "anchors.npz"


class TFLiteDetector:
    """What `kerasdet export --format tflite` wrote, loaded again. Only LiteRT runs the network, one image at a time.

    Args:
        path: The ``.tflite`` file.
        num_threads: Of LiteRT; by default as many as there are cores.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it was not written by kerasdet, or cannot be loaded.
        RuntimeError: If ai-edge-litert is not installed.
    """

    def __init__(self, path: str | Path, num_threads: int | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no {path}.")
        files = _files(self.path)
        self.facts = json.loads(files[FACTS_FILE])
        self.num_classes = self.facts["num_classes"]
        self.class_names = tuple(self.facts["class_names"]) if self.facts["class_names"] else None
        self._preprocessing = Preprocessing(**self.facts["preprocessing"])
        self._head = _Head(files, self.facts["size"]) if self.facts["tail"] == "raw" else None
        self._lock = threading.Lock()  # an interpreter runs one image at a time
        self._run = _runner(self.path, num_threads or len(os.sched_getaffinity(0)))

    def detect(self, images: np.ndarray | tf.Tensor | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Detects objects in images of any size; see `kerasdet.models.Detector.detect`.

        Args:
            images: One (H, W, 3) array, a list of such arrays or a batch (B, H, W, 3): RGB, 0..255, uint8 or float.

        Returns:
            Detections in the coordinates of the images that came in.

        Raises:
            TypeError: If an image is no array.
            ValueError: If an image is not (H, W, 3).
        """
        found = [self._detect_one(image) for image in open_images(images)[0]]
        return {name: np.concatenate([detections[name] for detections in found]) for name in found[0]}

    def frame(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """An image (H, W, 3) as the file's input (1, h, w, 3), and the size it has in there."""
        frame, size = self._preprocessing.letterbox(image, *self.facts["size"])
        return as_input(frame.numpy(), self.facts["input_type"])[None], size

    def outputs(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the file for its input, by name."""
        with self._lock:
            return {name: np.array(value) for name, value in self._run(image=frame).items()}

    def detections(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs as `detect` gives detections, in pixels of the file's input."""
        if self._head is not None:
            return self._head.postprocess(outputs)
        return in_pixels(outputs, [self.facts["size"]], self.facts["class_offset"])

    def _detect_one(self, image):
        frame, size = self.frame(image)
        detections = self.detections(self.outputs(frame))
        factor = np.array(image.shape[:2], np.float32) / np.float32(size)
        boxes = box_ops.clip(box_ops.scale(detections["boxes"], factor[None]), np.array([image.shape[:2]]))
        detections["boxes"] = boxes.numpy()
        if "keypoints" in detections:
            detections["keypoints"] = keypoint_ops.scale(detections["keypoints"], factor).numpy()
        return _without_empty(detections)

    def paste_masks(self, mask_probs: tf.Tensor, boxes: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Full-size masks (D, height, width) bool of one image, by the rule of the model's source.

        Args:
            mask_probs: (D, S, S).
            boxes: (D, 4) in pixels of the image.
            height: Of the image.
            width: Of the image.
        """
        return mask_ops.paste_masks(mask_probs, boxes, height, width, convention=self.facts["mask_convention"])


class _Head:
    """The post-processing of a model whose file ends with its heads' outputs.

    Args:
        files: The configuration of the model and its anchors.
        size: Height and width of the input.
    """

    def __init__(self, files, size):
        self._model = keras.saving.deserialize_keras_object(json.loads(files[MODEL_FILE]))
        with np.load(io.BytesIO(files[ANCHORS_FILE])) as anchors:
            self._anchors = dict(anchors)
        self._size = tf.constant([size])

    def postprocess(self, outputs):
        counts = [len(anchors) for anchors in self._anchors.values()]
        heads = {
            name: dict(zip(self._anchors, tf.split(value, counts, axis=1), strict=True))
            for name, value in outputs.items()
        }
        detections = self._model.postprocess({**heads, "anchors": self._anchors}, self._size)
        return {name: value.numpy() for name, value in detections.items()}


def _without_empty(detections):
    """Without boxes that lay in what fills the frame beside the image."""
    sides = detections["boxes"][..., 2:] - detections["boxes"][..., :2]
    keep = (sides > 0).all(-1) & (np.arange(sides.shape[1]) < detections["valid"][:, None])
    if keep.sum() == detections["valid"].sum():
        return detections
    detections = {name: value for name, value in detections.items() if name != "valid"}
    return {name: value.numpy() for name, value in compact(detections, tf.constant(keep)).items()}


def as_input(frame: np.ndarray, input_type: str) -> np.ndarray:
    """A frame (H, W, 3) float32 in the type that a file wants, "float32" or "uint8"."""
    return np.rint(frame).astype(np.uint8) if input_type == "uint8" else frame


def _files(path):
    """The files inside, name -> content."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        files = {}
    if FACTS_FILE not in files:
        raise ValueError(f"{path} is no TFLite file of `kerasdet export`: there is no {FACTS_FILE} in it.")
    return files


def _runner(path, num_threads):
    """The file as a function of its input by name."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise RuntimeError(f"Running {path} needs ai-edge-litert: pip install 'kerasdet[tflite]'.") from None
    try:
        interpreter = Interpreter(str(path), num_threads=num_threads)
        return interpreter.get_signature_runner()
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
