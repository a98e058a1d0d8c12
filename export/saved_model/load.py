"""Loads an exported SavedModel as a `Predictor`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.export.metadata import METADATA_FILE, describe
from kerasdet.export.saved_model.spec import SPEC
from kerasdet.inference.padded import from_tf_od, join, rescale
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import KeepSize, Preprocessing
from kerasdet.ops.dispatch import raw_ops
from kerasdet.paths import expand


class SavedModelPredictor(Predictor):
    """Detects objects with a SavedModel that `kerasdet export` wrote, which resizes images itself.

    Args:
        path: Path of the folder that contains ``saved_model.pb``.

    Attributes:
        path: Path of the folder.
        metadata: The contents of the folder's ``assets/kerasdet.json``, see `kerasdet.export.metadata`.

    Raises:
        UserError: If kerasdet did not write the folder, or TensorFlow cannot load it.

    Example:
        >>> detections = kerasdet.load("serving/1").detect("street.jpg")
    """

    def __init__(self, path: str | Path):
        self.path = path = expand(path)
        self.metadata = read_metadata(self.path)
        if self.metadata.get("ops") == "compiled":
            raw_ops()  # loads their library
        try:
            self._loaded = tf.saved_model.load(str(path))
        except (OSError, ValueError, IndexError, tf.errors.OpError) as error:  # IndexError: the variables are truncated
            if any(character in str(path) for character in SPEC.unreadable):
                raise UserError(
                    f"{path} cannot be loaded by TensorFlow, which takes [ and \\ in a path for a pattern: expected a "
                    "path without these characters. Rename or move the folder."
                ) from None
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be loaded by TensorFlow: {reason}. Export the model again.") from None
        self.preprocessing = KeepSize()
        describe(self, self.metadata)

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch of images that have not been resized.

        Images of one size are passed to the signature ``serving_default`` (uint8) or ``float_image``. uint8 images of
        several sizes are passed to ``encoded``, which resizes each image separately and runs all images as one batch.
        Float images of several sizes run one by one, like `detect` of the model with a batch size of 1.

        Args:
            batch: `image` (B, H, W, 3), uint8 or float, padded at the bottom right; `image_size` (B, 2) int32, heights
                and widths without padding, and `original_size` (B, 2) int32, heights and widths before resizing, in
                pixels.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. See
            `kerasdet.inference.padded`.
        """
        image_size, original_size = batch_sizes(batch)
        sizes, images = np.asarray(image_size), np.asarray(batch["image"])
        valid = [image[:height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
        if (sizes == sizes[0]).all():
            parts = [(self._run_stack(np.stack(valid)), image_size)]
        elif images.dtype == np.uint8:
            parts = [(self._run_encoded(valid), image_size)]
        else:
            parts = [(self._run_stack(image[None]), size[None]) for image, size in zip(valid, sizes, strict=True)]
        offset, known = self.metadata["class_offset"], self.branch_outputs
        detections = join([from_tf_od(outputs, size, offset, known) for outputs, size in parts])
        clip = not Preprocessing(**self.metadata["preprocessing"]).letterboxes
        return rescale(detections, image_size, original_size, self.branch_outputs, clip=clip)

    def _run_stack(self, images):
        if images.dtype == np.uint8:
            return self._loaded.signatures["serving_default"](image=tf.constant(images))
        return self._loaded.signatures["float_image"](image=tf.constant(images, tf.float32))

    def _run_encoded(self, images):
        encoded = [tf.io.encode_png(np.ascontiguousarray(image), compression=1) for image in images]
        return self._loaded.signatures["encoded"](image_bytes=tf.stack(encoded))


def read_metadata(path: Path) -> dict:
    """Reads the description of the model from an exported SavedModel.

    Args:
        path: The folder of the SavedModel.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.

    Raises:
        UserError: If the SavedModel has no description, or the description is damaged.
    """
    file = path / "assets" / METADATA_FILE
    if not file.is_file():
        raise UserError(
            f"{path} has no assets/{METADATA_FILE}: expected a SavedModel of `kerasdet export`. Load other SavedModels "
            "with tf.saved_model.load."
        )
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or "num_classes" not in metadata:
        raise UserError(
            f"{file} is damaged: expected the description that `kerasdet export` writes. Copy the SavedModel again, or "
            "export the model again."
        )
    return metadata
