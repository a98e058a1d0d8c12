"""What all detectors share beside their training: `predict`, and `detect` on images as they come."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models.trainer import Trainer, drop_padded_outputs, pad_empty_batch, unpack_batch, valid_size
from kerasdet.ops import implementation
from kerasdet.ops import resize as resize_ops


class Detector(Trainer):
    """A network, pure post-processing and a training step.

    A model defines ``call``, ``compute_targets``, ``compute_losses``, ``decode`` and ``apply_nms``; see `RetinaNet`.
    Its input is a batch: a dict with ``image`` (B, H, W, 3), RGB 0..255, and ``image_size`` (B, 2); or a bare image
    tensor without padding. In the batches of `fit` and `evaluate` a missing ``is_crowd`` means that nothing is a crowd.

    Args:
        preprocessing: The resize rule and the pixel statistics.
        loss_names: Keys of what ``compute_losses`` returns.

    Attributes:
        branches: What is predicted beside class and box, see `kerasdet.models.branches`.
    """

    branches = ()
    single_stage = False  # whether the heads' outputs depend on no selected proposals
    supports_decode_all = False  # whether there is a `decode_all`: a box for every anchor, see `RetinaNet.decode_all`

    def __init__(self, preprocessing: Preprocessing, loss_names: Sequence[str], **kwargs):
        super().__init__(loss_names, autocast=False, **kwargs)  # images and boxes stay float32, whatever the policy
        self.preprocessing = preprocessing
        self.supports_jit = False  # unasked: XLA compiles anew for every size of images
        graph = tf.function(
            self.detect_resized,
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
                tf.TensorSpec([None, 2], tf.int32),
            ],
        )
        self._graph = SimpleNamespace(detect_resized=graph)  # in what Keras does not track, or exports would hold it

    def predict_step(self, data):
        batch, share = pad_empty_batch(unpack_batch(data))
        return drop_padded_outputs(self.postprocess(self(batch, training=False), valid_size(batch)), share)

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections in the coordinates of the network's input.

        Args:
            outputs: Of the model.
            image_size: (B, 2) int32, without padding.

        Returns:
            ``boxes`` (B, D, 4), ``scores`` (B, D), ``class_ids`` (B, D), ``valid`` (B,).
        """
        return self.apply_nms(self.decode(outputs, image_size), image_size)

    def detect(
        self,
        images: np.ndarray | tf.Tensor | Sequence[np.ndarray],
        resize: tuple[int, int] | bool | None = None,
    ) -> dict[str, np.ndarray]:
        """Detects objects in images of any size.

        Args:
            images: One (H, W, 3) array, a list of such arrays of any sizes or a batch (B, H, W, 3): RGB, 0..255, uint8
                or float.
            resize: None for the model's own rule, False for none, or (shortest, longest).

        Returns:
            ``boxes`` (B, D, 4) yxyx in pixels of the images that came in, ``scores`` (B, D) descending, ``class_ids``
            (B, D) with -1 for padding, ``valid`` (B,): how many of the D are detections.

        Raises:
            TypeError: If an image is no array, but for example a path.
            ValueError: If an image is not (H, W, 3), or `resize` is something else.
        """
        images = image_list(images)
        _check_resize(resize)
        original_size = tf.constant([image.shape[:2] for image in images], tf.int32)
        resized = [self._resize(image, resize) for image in images]
        image_size = tf.stack([tf.shape(image)[:2] for image in resized])
        height, width = tf.unstack(self.preprocessing.padded_size(tf.reduce_max(image_size, 0)))
        batch = tf.stack([resize_ops.pad_to(image, height, width) for image in resized])
        detections = self._graph.detect_resized(batch, image_size, original_size)
        return {name: value.numpy() for name, value in detections.items()}

    def _resize(self, image, resize):
        if resize is False:
            return tf.cast(image, tf.float32)
        shortest, longest = resize or (None, None)
        return self.preprocessing.resize(image, shortest, longest)

    def export(self, filepath, format="tf_saved_model", verbose=None, **kwargs):
        """Keras' `export`: a SavedModel whose endpoint ``serve`` is `detect` on a batch (B, H, W, 3) of equal images.

        `kerasdet.export.export_saved_model` writes one with more signatures for TF Serving.

        Raises:
            ValueError: For another format.
        """
        if format != "tf_saved_model":
            raise ValueError(f"A detector cannot be exported as {format!r}: choose 'tf_saved_model'.")
        archive = keras.export.ExportArchive()
        archive.track(self)
        with implementation("tensorflow"):  # so that it runs where nothing of kerasdet is
            archive.add_endpoint(
                "serve", self.detect_batch, [tf.TensorSpec([None, None, None, 3], tf.float32, name="image")]
            )
            archive.write_out(filepath, verbose=verbose, **kwargs)

    def detect_batch(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """`detect` of a batch of equal images (B, H, W, 3), in the graph."""
        resized = self.preprocessing.resize(image)
        batch, size = tf.shape(resized)[0], tf.shape(resized)[1:3]
        height, width = tf.unstack(self.preprocessing.padded_size(size))
        return self.detect_resized(
            resize_ops.pad_to(resized, height, width),
            tf.broadcast_to(size, [batch, 2]),
            tf.broadcast_to(tf.shape(image)[1:3], [batch, 2]),
        )

    def detect_resized(self, image: tf.Tensor, image_size: tf.Tensor, original_size: tf.Tensor) -> dict:
        """`detect` without its first half, in the graph.

        Args:
            image: (B, H, W, 3) float32, resized and padded.
            image_size: (B, 2) int32, after resizing.
            original_size: (B, 2) int32, before.

        Returns:
            Detections in the coordinates of the original images.
        """
        outputs = self({"image": image, "image_size": image_size}, training=False)
        detections = self.postprocess(outputs, image_size)
        factor = tf.cast(original_size, tf.float32) / tf.cast(image_size, tf.float32)
        boxes = box_ops.clip(box_ops.scale(detections["boxes"], factor), original_size)
        detections = {**detections, "boxes": boxes}
        if "keypoints" in detections:
            position, score = tf.split(detections["keypoints"], [2, 1], -1)
            detections["keypoints"] = tf.concat([position * factor[:, None, None], score], -1)
        return detections


def unpack_inputs(inputs: Mapping[str, tf.Tensor] | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The image of a model's inputs, and its size where it may be padded."""
    if isinstance(inputs, Mapping):
        return inputs["image"], inputs.get("image_size")
    return inputs, None


def image_list(images):
    """What `detect` accepts, as a list of (H, W, 3) arrays."""
    if not isinstance(images, list | tuple):
        images = list(images) if len(getattr(images, "shape", ())) == 4 else [images]
    if not images:
        raise ValueError("detect needs at least one image, got none.")
    for index, image in enumerate(images):
        if not hasattr(image, "shape"):
            what = repr(image) if isinstance(image, str | Path | None) else f"of type {type(image).__name__}"
            raise TypeError(
                f"Image {index} is {what}: detect takes RGB arrays of shape (height, width, 3), "
                "which kerasdet.data.images.read(path) gives for a file and numpy.asarray for a PIL image."
            )
        shape = tuple(image.shape)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"Image {index} has shape {shape}: detect takes RGB images of shape (height, width, 3).")
    return images


def _check_resize(resize):
    if resize is None or resize is False:
        return
    pair = isinstance(resize, list | tuple) and len(resize) == 2
    if not pair or not all(isinstance(length, int | np.integer) and length > 0 for length in resize):
        raise ValueError(
            f"resize is {resize!r}: give (shortest, longest) in whole pixels, None for the model's own rule or False "
            "for none."
        )


def check_backbone(backbone: keras.Model, neck: keras.layers.Layer) -> None:
    """Checks that a backbone is one, and has what the neck merges.

    Raises:
        TypeError: If it is something else, such as a name.
        ValueError: If it lacks a feature.
    """
    channels = getattr(backbone, "channels", None)
    if not isinstance(channels, Mapping):
        what = repr(backbone) if isinstance(backbone, str) else f"a {type(backbone).__name__} without `channels`"
        raise TypeError(
            f"backbone is {what}: give a kerasdet.ResNet, or a Keras model that keeps the protocol "
            "kerasdet.layers.backbone.Backbone: it returns features by name and has `channels` and `strides` of each, "
            "such as {'c3': 128, 'c4': 256, 'c5': 512} and {'c3': 8, 'c4': 16, 'c5': 32}."
        )
    given = getattr(backbone, "out_features", channels)  # a ResNet knows the channels of all of its stages
    missing = [name for name in getattr(neck, "in_features", ()) if name not in given]
    if missing:
        raise ValueError(
            f"The neck merges {', '.join(neck.in_features)}, and the backbone lacks {', '.join(missing)}: give "
            f"ResNet out_features={tuple(neck.in_features)}."
        )


def checked_names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The names of a model's classes.

    Raises:
        ValueError: If there are not as many as classes.
    """
    if not class_names:
        return None
    if len(class_names) != num_classes:
        raise ValueError(
            f"There are {num_classes} classes and {len(class_names)} class names: {', '.join(class_names)}."
        )
    return tuple(class_names)
