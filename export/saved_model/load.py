"""An exported SavedModel that answers `detect` as the model it was made from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.geometry import masks as mask_ops
from kerasdet.ops.dispatch import raw_ops


class SavedDetector:
    """What `kerasdet export` wrote, loaded again. Only TensorFlow computes.

    Args:
        path: The folder with ``saved_model.pb``.

    Raises:
        ValueError: If it was not written by kerasdet, or cannot be loaded.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        facts = self.path / "assets" / "kerasdet.json"
        if not facts.is_file():
            raise ValueError(f"{path} is no SavedModel of `kerasdet export`: it has no assets/kerasdet.json.")
        self.facts = json.loads(facts.read_text(encoding="utf-8"))
        if self.facts.get("ops") == "compiled":
            raw_ops()  # loads their library
        try:
            self._loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
        self.num_classes = self.facts["num_classes"]
        self.class_names = tuple(self.facts["class_names"]) if self.facts["class_names"] else None

    def detect(self, images: np.ndarray | tf.Tensor | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Detects objects in images of any size; see `kerasdet.models.Detector.detect`.

        Args:
            images: One (H, W, 3) array, a list of such arrays or a batch (B, H, W, 3): RGB, 0..255, uint8 or float; of
                different sizes only as uint8.

        Returns:
            Detections in the coordinates of the images that came in.

        Raises:
            ValueError: If an image is not (H, W, 3), or images of different sizes are not uint8.
        """
        if not isinstance(images, list | tuple):
            images = list(images) if len(images.shape) == 4 else [images]
        images = [np.asarray(image) for image in images]
        if not images:
            raise ValueError("detect needs at least one image, got none.")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise ValueError(
                    f"Image {index} has shape {image.shape}: detect takes RGB images of shape (height, width, 3)."
                )
        sizes = np.array([image.shape[:2] for image in images])
        same_size = (sizes == sizes[0]).all()
        outputs = self._detect_stack(np.stack(images)) if same_size else self._detect_encoded(images)
        outputs = {name: value.numpy() for name, value in outputs.items()}
        return in_pixels(outputs, sizes, self.facts["class_offset"])

    def _detect_stack(self, images):
        if images.dtype == np.uint8:
            return self._loaded.signatures["serving_default"](image=tf.constant(images))
        return self._loaded.signatures["float_image"](image=tf.constant(images, tf.float32))

    def _detect_encoded(self, images):
        for index, image in enumerate(images):
            if image.dtype != np.uint8:
                raise ValueError(f"Image {index} is {image.dtype}: images of several sizes must be uint8 here.")
        return self._loaded.signatures["encoded"](
            image_bytes=tf.stack([tf.io.encode_png(image, compression=1) for image in images])
        )

    def paste_masks(self, mask_probs: tf.Tensor, boxes: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Full-size masks (D, height, width) bool of one image, by the rule of the model's source.

        Args:
            mask_probs: (D, S, S).
            boxes: (D, 4) in pixels of the image.
            height: Of the image.
            width: Of the image.
        """
        return mask_ops.paste_masks(mask_probs, boxes, height, width, convention=self.facts["mask_convention"])


def in_pixels(
    outputs: Mapping[str, np.ndarray], sizes: Sequence[tuple[int, int]], class_offset: int
) -> dict[str, np.ndarray]:
    """Outputs of a signature as `detect` gives detections.

    Args:
        outputs: Name -> array, such as ``detection_boxes``.
        sizes: Height and width of each image.
        class_offset: As it was exported.
    """
    sizes = np.array(sizes, np.float32).reshape(-1, 1, 2)  # (B, 1, 2)
    detections = {
        "boxes": outputs["detection_boxes"] * np.tile(sizes, 2),
        "scores": outputs["detection_scores"],
        "class_ids": outputs["detection_classes"].astype(np.int32) - class_offset,
        "valid": outputs["num_detections"].astype(np.int32),
    }
    if "detection_masks" in outputs:
        detections["mask_probs"] = outputs["detection_masks"]
    if "detection_keypoints" in outputs:
        position, score = np.split(outputs["detection_keypoints"], [2], -1)
        detections["keypoints"] = np.concatenate([position * sizes[:, None], score], -1)
    return detections
