"""Loads an exported TFLite file as a `Predictor`."""

import io
import json
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export.metadata import METADATA_FILE, describe
from kerasdet.export.network import RawHeads, as_input, to_original
from kerasdet.export.protocol import available_cores
from kerasdet.export.tflite.native_log import without_delegate_line
from kerasdet.inference.padded import from_tf_od, join
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import KeepSize, Preprocessing
from kerasdet.paths import expand

MODEL_FILE = "model.json"
ANCHORS_FILE = "anchors.npz"


class TFLitePredictor(Predictor):
    """Detects with a TFLite file that `kerasdet export --format tflite` wrote, one image at a time.

    LiteRT alone runs the network. An image of any size is letterboxed to the input size of the file.

    Args:
        path: Path of the ``.tflite`` file.
        num_threads: Number of threads of LiteRT; by default the number of available cores.

    Attributes:
        path: Path of the file.
        metadata: Description of the model, a dict that `kerasdet.export.metadata.model_metadata` made. The file stores
            it as ``kerasdet.json``.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If kerasdet did not write the file, LiteRT cannot load it, or ai-edge-litert is not installed.

    Example:
        >>> detections = kerasdet.load("detector.tflite").detect("street.jpg")
    """

    def __init__(self, path: str | Path, num_threads: int | None = None):
        self.path = path = expand(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"The file {path} does not exist: pass a .tflite file of `kerasdet export`.")
        files = _read_files(self.path)
        self.metadata = json.loads(files[METADATA_FILE])
        self.preprocessing = KeepSize()
        describe(self, self.metadata)
        self._rule = Preprocessing(**self.metadata["preprocessing"])
        self._heads = self._anchors = None
        if self.metadata["postprocessing"] == "raw":
            self._heads = RawHeads(files[MODEL_FILE])
            with np.load(io.BytesIO(files[ANCHORS_FILE])) as anchors:
                self._anchors = dict(anchors)
        self._lock = threading.Lock()  # an interpreter runs one image at a time
        self._run = _make_runner(self.path, num_threads or available_cores())

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch of images that have not been resized.

        Args:
            batch: `image` (B, H, W, 3), padded at the bottom right; `image_size` (B, 2) int32, heights and widths
                without padding, and `original_size` (B, 2) int32, heights and widths before resizing, in pixels.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. See
            `kerasdet.inference.padded`.
        """
        image_size, original_size = batch_sizes(batch)
        found = []
        for index, (height, width) in enumerate(np.asarray(image_size).tolist()):
            pixels, size = self.to_input(batch["image"][index, :height, :width])
            detections = self.decode_outputs(self.run(pixels))
            original = original_size[index : index + 1]
            found.append(to_original(detections, size, original, self._rule, self.branch_outputs))
        return join(found)

    def to_input(self, image: np.ndarray | tf.Tensor) -> tuple[np.ndarray, tuple[int, int]]:
        """Resizes and pads an image to the input size of the TFLite file.

        Args:
            image: (H, W, 3) RGB, 0..255, uint8 or float.

        Returns:
            The input tensor (1, h, w, 3) in the file's input dtype, and the (height, width) in pixels of the resized
            image without padding.
        """
        pixels, size = self._rule.letterbox(image, *self.metadata["size"])
        return as_input(pixels.numpy(), self.metadata["input_type"])[None], size

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file on the input `pixels` (1, h, w, 3) and returns the outputs by name."""
        with self._lock:
            return {name: np.array(value) for name, value in self._run(image=pixels).items()}

    def decode_outputs(self, outputs: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        """Converts the file's outputs to padded detections of one image.

        Args:
            outputs: Output arrays by name, the result of `run`.

        Returns:
            Padded detections, see `kerasdet.inference.padded`: a dict of `boxes` (1, D, 4) yxyx in pixels of the file's
            input, `scores` (1, D) and more.
        """
        if self._heads is not None:
            return self._heads.postprocess(outputs, self._anchors, self.metadata["size"])
        size = tf.constant([self.metadata["size"]])
        return from_tf_od(outputs, size, self.metadata["class_offset"], self.branch_outputs)


def read_metadata(path: Path) -> dict:
    """Reads the description of the model from an exported TFLite file.

    Args:
        path: Path of the TFLite file.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.

    Raises:
        UserError: If kerasdet did not write the file.
        OSError: If the file cannot be read.
    """
    return json.loads(_read_files(path)[METADATA_FILE])


def _read_files(path):
    """Reads the attached files, a dict from name to contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        files = {}
    if METADATA_FILE not in files:
        raise UserError(
            f"{path} has no {METADATA_FILE} at its end: expected a whole file of `kerasdet export --format tflite`. If "
            "this file is one, it is truncated: copy it again. Run other files with ai_edge_litert."
        )
    return files


def _make_runner(path, num_threads) -> Callable[..., dict[str, np.ndarray]]:
    """Loads a TFLite file, and returns its signature as a function."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError(
            f"ai-edge-litert is not installed, but {path} needs it: pip install 'kerasdet[tflite]'."
        ) from None
    try:
        with without_delegate_line():
            interpreter = Interpreter(str(path), num_threads=num_threads)
            interpreter.allocate_tensors()  # the first call would do it, outside of this block
            return interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be loaded by LiteRT: {reason}. Export the model again.") from None
