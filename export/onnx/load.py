"""Loads an exported ONNX file as a `Predictor`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export.metadata import describe
from kerasdet.export.network import RawHeads, as_input, to_original
from kerasdet.export.protocol import available_cores
from kerasdet.inference.padded import from_tf_od, join, rescale
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import KeepSize, Preprocessing
from kerasdet.paths import expand

_NEEDED = ("preprocessing", "num_classes", "class_names", "mask_convention", "skeleton", "branch_outputs")
_NEEDED += ("class_offset", "precision", "postprocessing", "input_type")


class GraphPredictor(Predictor):
    """Base class of predictors that run an exported ONNX graph in some runtime, such as onnxruntime or OpenVINO.

    Args:
        path: Path of the file or folder.
        properties: The file's metadata entries, strings by name, see `kerasdet.export.onnx.write`.

    Attributes:
        path: Path of the file or folder.
        metadata: Description of the model, a dict that `kerasdet.export.metadata.model_metadata` made. The file stores
            it in the property ``kerasdet``.
        size: Height and width of the graph's input in pixels. None: the input may have any size.
    """

    def __init__(self, path: Path, properties: Mapping[str, str]):
        self.path = path
        self.metadata = parse_metadata(properties["kerasdet"], path)
        self.size = tuple(self.metadata["size"]) if "size" in self.metadata else None
        self._rule = Preprocessing(**self.metadata["preprocessing"])
        self.preprocessing = KeepSize() if self.size else self._rule
        describe(self, self.metadata)
        self._heads = RawHeads(properties["model"]) if self.metadata["postprocessing"] == "raw" else None

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
            pixels: Input of the graph, (B, h, w, 3).

        Returns:
            The outputs by name.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run: define this method.")

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch that `preprocessing.batch` made.

        Images of the same size run as one batch if the batch size of the file is free. Other images run one by one,
        because padding to a common size changes features at the borders.

        Args:
            batch: `image` (B, H, W, 3), padded at the bottom right; `image_size` (B, 2) int32, heights and widths
                without padding, and `original_size` (B, 2) int32, heights and widths before resizing, in pixels.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. See
            `kerasdet.inference.padded`.
        """
        image_size, original_size = (np.asarray(sizes) for sizes in batch_sizes(batch))
        images = np.asarray(batch["image"])
        if self.size is None:
            return self._detect_together(images, image_size, original_size)
        found = []
        for index, (height, width) in enumerate(image_size):
            pixels, size = self.to_input(images[index : index + 1, :height, :width])
            detections = self.decode_outputs(self.run(pixels), pixels.shape[1:3])
            original = original_size[index : index + 1]
            found.append(to_original(detections, size, original, self._rule, self.branch_outputs))
        return join(found)

    def _detect_together(self, images, image_size, original_size):
        """Runs a graph of free size on all images at once if they have the same size, otherwise one by one."""
        inputs = self._rule.network_input(images, tf.constant(image_size))
        images, filled = np.asarray(inputs["image"]), np.asarray(inputs["image_size"])
        together = (filled == filled[0]).all()
        groups = [np.arange(len(images))] if together else [[index] for index in range(len(images))]
        found = []
        for group in groups:
            height, width = filled[group[0]]
            pixels, size = self.to_input(images[group, :height, :width])
            detections = self.decode_outputs(self.run(pixels), size)
            found.append(
                rescale(
                    detections,
                    image_size[group],
                    original_size[group],
                    self.branch_outputs,
                    clip=not self._rule.letterboxes,
                )
            )
        return join(found)

    def to_input(self, images: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Converts images to the graph's input. If its size is fixed, the images are resized and padded to that size.

        Args:
            images: (B, H, W, 3) RGB, 0..255, uint8 or float; a single image if the size is fixed.

        Returns:
            The input (B, h, w, 3), and the height and width of the part that shows the images, in pixels.
        """
        size = images.shape[1:3]
        if self.size:
            pixels, size = self._rule.letterbox(images[0], *self.size)
            images = pixels.numpy()[None]
        return as_input(np.asarray(images, np.float32), self.metadata["input_type"]), tuple(map(int, size))

    def example(self, image: np.ndarray) -> np.ndarray:
        """Makes an input of the graph for verification: an image, and also its mirror image if the batch size is free.

        Args:
            image: (H, W, 3) RGB, 0..255.

        Returns:
            The input, (1, h, w, 3) or (2, h, w, 3).
        """
        if self.size:
            return self.to_input(image[None])[0]
        batch = self._rule.pad_batch([image, image[:, ::-1]])
        inputs = self._rule.network_input(batch["image"], batch["image_size"])
        height, width = np.asarray(inputs["image_size"])[0]
        return self.to_input(np.asarray(inputs["image"])[:, :height, :width])[0]

    def decode_outputs(self, outputs: Mapping[str, np.ndarray], size: Sequence[int]) -> dict[str, tf.Tensor]:
        """Converts the graph's outputs to padded detections.

        Args:
            outputs: Output arrays by name.
            size: Height and width of the input in pixels.

        Returns:
            Padded detections, see `kerasdet.inference.padded`: a dict of `boxes` (B, D, 4) yxyx in pixels of the input,
            `scores` and `class_ids` (B, D), `valid` (B,), and the outputs of the branches. D is the maximum number of
            detections per image.
        """
        if self._heads is None:
            return from_tf_od(outputs, tf.constant([size]), self.metadata["class_offset"], self.branch_outputs)
        heads = dict(outputs)
        anchors, counts = heads.pop("anchors"), heads.pop("anchors_per_level")
        parts = np.split(anchors, np.cumsum(counts)[:-1])
        return self._heads.postprocess(heads, dict(zip(self.metadata["levels"], parts, strict=True)), tuple(size))


class OnnxPredictor(GraphPredictor):
    """Detects with an ONNX file that `kerasdet export --format onnx` wrote. onnxruntime alone runs the network.

    Args:
        path: Path of the ``.onnx`` file.
        num_threads: Number of threads of onnxruntime; by default the number of available cores.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If kerasdet did not write the file, or if onnxruntime is not installed or cannot load the file.

    Example:
        >>> detections = kerasdet.load("detector.onnx").detect("street.jpg")
    """

    def __init__(self, path: str | Path, num_threads: int | None = None):
        path = expand(path)
        self._session = _session(path, num_threads or available_cores())
        super().__init__(path, _properties(self._session, path))
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the file on the input `pixels` (B, h, w, 3) and returns the outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, {"image": pixels}), strict=True))


def read_metadata(path: Path) -> dict:
    """Reads the description of the model from an exported ONNX file.

    Args:
        path: Path of the ONNX file.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If kerasdet did not write the file, or if onnxruntime is not installed or cannot load the file.
    """
    return parse_metadata(read_properties(path)["kerasdet"], path)


def read_properties(path: Path) -> dict[str, str]:
    """Reads the ``metadata_props`` of an exported ONNX file, without optimising its graph.

    Args:
        path: Path of the ONNX file.

    Returns:
        The entries, strings by name, see `kerasdet.export.onnx.write`.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If kerasdet did not write the file, or if onnxruntime is not installed or cannot load the file.
    """
    return _properties(_session(path, 1, optimize=False), path)


def parse_metadata(text: str, path: Path) -> dict:
    """Parses the description of a model, which exported files store under the name ``kerasdet``.

    Args:
        text: The description, a JSON string.
        path: Path of the file or folder, for the error message.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.

    Raises:
        UserError: If the string is not the description of a model.
    """
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError:
        metadata = None
    missing = [name for name in _NEEDED if name not in metadata] if isinstance(metadata, dict) else ["JSON object"]
    if missing:
        raise UserError(
            f"The entry kerasdet in the metadata of {path} lacks {', '.join(missing)}: expected the description that "
            "`kerasdet export` writes. Export the model again."
        )
    return metadata


def _properties(session, path):
    properties = session.get_modelmeta().custom_metadata_map
    if "kerasdet" not in properties:
        raise UserError(
            f"{path} has no entry kerasdet in its metadata: expected a file of `kerasdet export --format onnx`. Run "
            "other files with onnxruntime."
        )
    return properties


def _session(path, num_threads, optimize=True):
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist: pass an .onnx file of `kerasdet export`.")
    try:
        import onnxruntime as ort
    except ImportError:
        raise UserError(f"onnxruntime is not installed, but {path} needs it: pip install 'kerasdet[onnx]'.") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=ort.get_available_providers())
    except Exception as error:  # onnxruntime raises classes of its own that share no base
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{path} cannot be loaded by onnxruntime: {reason}. Export the model again.") from None
