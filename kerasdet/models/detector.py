"""Defines `Detector`, the base class of all models: it adds post-processing and `detect` to `Trainer`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_names
from kerasdet.errors import UserError
from kerasdet.inference.padded import BranchOutput, rescale
from kerasdet.inference.predictor import Predictor, batch_sizes
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models.batch import drop_padded_outputs, pad_empty_batch, unpack_batch, valid_size
from kerasdet.models.trainer import Trainer
from kerasdet.ops import implementation


class Detector(Predictor, Trainer):
    """Combines a network, its post-processing and its training step in one `keras.Model`.

    A subclass defines `call`, `compute_targets`, `compute_losses`, `decode` and `apply_nms`; read `RetinaNet` as an
    example. The input of a model is a batch: a dict of `image` (B, H, W, 3), RGB 0..255, and `image_size` (B, 2),
    heights and widths without padding in pixels; or an image tensor without padding. `predict` returns padded
    detections (a dict, see `postprocess`) in pixels of the network's input. `detect` returns a `Detections` per image,
    in pixels of the given images.

    Args:
        preprocessing: Resize rule and pixel statistics.
        loss_names: Keys of the dict that `compute_losses` returns.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        branches: Layers that predict further outputs, such as masks; see `kerasdet.models.branch`.
    """

    branches: Sequence[keras.layers.Layer] = ()
    pretrained_classes = None  # `training.class_weights.ClassWeights` of the detector that this one is fine-tuned from
    has_background = False  # whether the last class logit is that of the background
    single_stage = False  # whether the model has no second stage, a head that runs on selected proposals
    supports_decode_all = False  # whether the model has `decode_all`, see `RetinaNet.decode_all`

    def __init__(self, preprocessing: Preprocessing, loss_names: Sequence[str], **kwargs):
        # Under a mixed-precision policy Keras would cast float inputs to 16 bits, in which pixels and box coordinates
        # lose their last digits. The layers inside cast by themselves.
        super().__init__(loss_names, autocast=False, **kwargs)
        self.preprocessing = preprocessing
        self.supports_jit = False  # otherwise Keras may choose XLA, which compiles anew for every image size
        function = tf.function(
            self._detect,
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
                tf.TensorSpec([None, 2], tf.int32),
            ],
            autograph=False,  # otherwise a `UserError` in the code of a part becomes a `StagingError`
        )
        # In a namespace, because Keras would track and export a function that is an attribute of the model.
        self._functions = SimpleNamespace(detect=function)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the K classes in the order of their ids, or None if they are unknown."""
        return self._class_names

    @class_names.setter
    def class_names(self, class_names: Sequence[str] | None) -> None:
        # A model with a wrong number of names could be saved but not loaded
        if isinstance(class_names, str):
            check_names("class_names", class_names)
        if class_names and len(class_names) != self.num_classes:
            raise UserError(
                f"class_names has length {len(class_names)} "
                f"({', '.join(map(str, class_names[:5]))}{', ...' * (len(class_names) > 5)}): "
                f"expected a list of {self.num_classes} names. Give one name for each class, in the order of the class "
                "ids."
            )
        self._class_names = tuple(class_names) if class_names else None

    @property
    def mask_convention(self) -> str | None:
        """Source framework whose mask pasting is used: "detectron2", "torchvision" or "mmdet"; None without masks."""
        conventions = [branch.convention for branch in self.branches if "mask_probs" in branch.output_names]
        return conventions[0] if conventions else None

    @property
    def skeleton(self) -> Sequence[tuple[int, int]]:
        """Pairs of keypoint indices that drawings connect by a line; empty if no branch predicts keypoints."""
        return next((branch.skeleton for branch in self.branches if "keypoints" in branch.output_names), ())

    @property
    def branch_outputs(self) -> dict[str, BranchOutput]:
        """Maps each output of the branches to a `BranchOutput`, which holds its name in exports and its rescaling."""
        return {name: output for branch in self.branches for name, output in branch.outputs.items()}

    def branch_inputs(self, outputs: Mapping, image_size: tf.Tensor) -> Mapping:
        """Selects the outputs that `branch_maps` takes as its second argument, for test-time augmentation.

        Args:
            outputs: The dict that the model returned.
            image_size: (B, 2) int32 heights and widths of the images in the network's input, in pixels.

        Returns:
            The pyramid, a dict from level name to features (B, h, w, C), or an empty dict if the model returns no
            pyramid. Subclasses may return a dict of other outputs.
        """
        return outputs.get("pyramid", {})

    def predict_step(self, data: Mapping | tuple) -> dict[str, tf.Tensor]:
        """Detects objects in a batch; Keras' `predict` calls this.

        Args:
            data: A dict of `image` (B, H, W, 3) and `image_size` (B, 2), heights and widths without padding in pixels;
                an image tensor without padding; or a tuple that starts with either.

        Returns:
            Padded detections in pixels of the network's input, as `postprocess` returns them.
        """
        batch, is_real = pad_empty_batch(unpack_batch(data))
        return drop_padded_outputs(self.postprocess(self(batch, training=False), valid_size(batch)), is_real)

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns the network's outputs into padded detections, in pixels of the network's input.

        Args:
            outputs: The dict that the model returned.
            image_size: (B, 2) int32, heights and widths without padding, in pixels of the network's input.

        Returns:
            A dict of `boxes` (B, D, 4) yxyx, `scores` (B, D) descending, `class_ids` (B, D) with -1 for padding, and
            `valid` (B,), the number of detections of each image.
        """
        return self.apply_nms(self.decode(outputs, image_size), image_size)

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs the network and post-processing on resized, padded images. It also works inside a `tf.function`.

        Args:
            batch: A dict of `image` (B, H, W, 3), RGB in 0..255, resized and padded at the bottom right; `image_size`
                (B, 2), heights and widths without padding in pixels, by default those of `image`; and `original_size`
                (B, 2), heights and widths before resizing in pixels, by default `image_size`.

        Returns:
            Padded detections: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D) descending, `class_ids` (B, D) with -1
            for padding, `valid` (B,) and the outputs of the branches, in pixels of the original images.

        Example:
            >>> padded = model.detect_batch(model.preprocessing.batch([image, other_image]))
        """
        sizes = batch_sizes(batch)
        arguments = tf.cast(batch["image"], tf.float32), *sizes
        # Inside a graph, call `_detect` itself: the function that was traced earlier may contain compiled ops, and an
        # export selects its ops by `kerasdet.ops.implementation`.
        return self._detect(*arguments) if tf.inside_function() else self._functions.detect(*arguments)

    def _detect(self, image, image_size, original_size):
        inputs = self.preprocessing.network_input(image, image_size)
        detections = self.postprocess(self(inputs, training=False), inputs["image_size"])
        clip = not self.preprocessing.letterboxes
        return rescale(detections, image_size, original_size, self.branch_outputs, clip=clip)

    def predict_batches(self, batches: Iterable[Mapping]) -> Iterator[tuple[Mapping, dict[str, np.ndarray]]]:
        """Runs `detect_batch` on many batches, on all replicas of this process at once.

        Args:
            batches: Dicts as `detect_batch` takes them.

        Yields:
            Pairs of a batch and its padded detections, a dict of NumPy arrays in pixels of the original images.
        """

        def step(batch):
            return self._detect(tf.cast(batch["image"], tf.float32), *batch_sizes(batch))

        for batch, found in self.run_on_replicas("predictions", step, batches):
            yield batch, {name: value.numpy() for name, value in found.items()}

    def export(
        self, filepath: str | Path, format: str = "tf_saved_model", verbose: bool | None = None, **kwargs
    ) -> None:
        """Writes a SavedModel whose endpoint `serve` detects objects in a batch (B, H, W, 3) of images of one size.

        The endpoint takes float32 RGB images in 0..255 and returns padded detections, like `detect_batch`. For TF
        Serving use `kerasdet.export.export_saved_model`: it writes a SavedModel with more signatures.

        Args:
            filepath: Folder of the SavedModel.
            format: "tf_saved_model".
            verbose: Whether Keras prints the endpoints. None: False.
            **kwargs: Passed to `keras.export.ExportArchive.write_out`.

        Raises:
            ValueError: If `format` is not "tf_saved_model".
        """
        if format != "tf_saved_model":
            raise ValueError(
                f"The format of export is {format!r}: choose 'tf_saved_model', or write other formats with "
                "kerasdet.export."
            )

        def serve(image):
            return self.detect_batch(self.preprocessing.batch(image))

        archive = keras.export.ExportArchive()
        archive.track(self)
        with implementation("tensorflow"):  # the file must run without kerasdet's compiled ops
            archive.add_endpoint("serve", serve, [tf.TensorSpec([None, None, None, 3], tf.float32, name="image")])
            archive.write_out(filepath, verbose=verbose, **kwargs)


def unpack_inputs(inputs: Mapping[str, tf.Tensor] | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Splits a model's inputs into images and their sizes.

    Args:
        inputs: A dict with `image` (B, H, W, 3) and possibly `image_size` (B, 2), heights and widths without padding in
            pixels, or a bare image tensor.

    Returns:
        The images (B, H, W, 3), and the sizes (B, 2) without padding, or None if `inputs` has no sizes.
    """
    if isinstance(inputs, Mapping):
        return inputs["image"], inputs.get("image_size")
    return inputs, None


def is_detector(value: Any) -> bool:
    """Tells whether an object is a detector, which can be trained and exported.

    Args:
        value: Any object.

    Returns:
        False for a backbone, a loaded export and everything else.
    """
    return isinstance(value, Detector)
