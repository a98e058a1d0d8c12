"""Defines `Detector`, the base class of all models: it adds post-processing and `detect` to `Trainer`."""

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_names
from kerasdet.errors import UserError
from kerasdet.inference.images import warn_of_fractions
from kerasdet.inference.padded import BranchOutput, rescale
from kerasdet.inference.predictor import Predictor, batch_sizes, check_batch
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models.batch import drop_padded_outputs, pad_empty_batch, unpack_batch, valid_size
from kerasdet.models.first_batch import check_has_images
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

    _num_classes: int | None = None
    branches: Sequence[keras.layers.Layer] = ()
    pretrained_path = None  # path or name of the model from which the weights come, a string
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
    def num_classes(self) -> int | None:
        """Number of classes K, or None for a model without classes. It cannot change after construction."""
        return self._num_classes

    @num_classes.setter
    def num_classes(self, num_classes: int | None) -> None:
        if self.built and num_classes != self._num_classes:  # the weights have the number of classes at construction
            raise UserError(
                f"num_classes of a {type(self).__name__} was changed from {self._num_classes} to {num_classes!r}: "
                "expected no change, because its weights depend on the number of classes. Make a new model, or load a "
                "file with kerasdet.loading.pretrained(file, num_classes=...)."
            )
        self._num_classes = num_classes

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

    def __call__(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs the network after a check of its inputs: an error inside `call` would print pages of Keras.

        Args:
            inputs: A batch, see `Detector`.
            *args: Passed to `call`.
            **kwargs: Passed to `call`.

        Returns:
            The result of `call`.

        Raises:
            UserError: If the batch lacks `image`, an entry has another shape, or there is no image.
        """
        _check_inputs(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Detects objects in batches, as in Keras; `detect` takes images of any size.

        Args:
            x: A batch, see `Detector`, or a dataset of batches.
            *args: Passed to `keras.Model.predict`.
            **kwargs: Passed to `keras.Model.predict`.

        Returns:
            Padded detections in pixels of the network's input, as `postprocess` returns them.

        Raises:
            UserError: If a batch lacks `image`, an entry has another shape, or there is no image.
        """
        if isinstance(x, list | tuple):  # Keras would take the items as several inputs, and their rows as images
            raise UserError(
                f"predict got a {type(x).__name__}: expected a batch (B, H, W, 3), a dict with 'image', or a dataset. "
                "Use model.detect(images), or predict(model.preprocessing.batch(images))."
            )
        if isinstance(x, np.ndarray | tf.Tensor | Mapping):  # before Keras splits it into batches
            _check_inputs(x)
        check_has_images(x)
        return super().predict(x, *args, **kwargs)

    def load_weights(self, filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        """Loads the weights of a model with the same parts, as in Keras.

        Args:
            filepath: Path of a ``.weights.h5`` or ``.keras`` file.
            *args: Passed to `keras.Model.load_weights`.
            **kwargs: Passed to `keras.Model.load_weights`.

        Raises:
            UserError: If the file is from a model with another number of classes.
            ValueError: If the file is from a model with other parts.
        """
        try:
            super().load_weights(filepath, *args, **kwargs)
        except ValueError:
            count = _saved_classes(self, Path(filepath))
            if count in (None, self.num_classes):
                raise
            raise UserError(
                f"{filepath} has weights for {count} classes, but the model has {self.num_classes}: expected the same "
                f"number. Make the model with num_classes={count}; or fine-tune a .keras file with "
                f"kerasdet.loading.pretrained(file, num_classes={self.num_classes})."
            ) from None

    def make_predict_function(self, force: bool = False) -> Callable:
        """Builds the function that `predict` calls for each batch. Overrides Keras; do not call it directly.

        Args:
            force: Whether to rebuild an existing function.

        Returns:
            The function.
        """
        if self.predict_function is None or force:
            super().make_predict_function(force)
            run = self.predict_function

            def function(batches):
                for batch in batches:
                    for each in self.distribute_strategy.experimental_local_results(batch):
                        _warn_of_fractions(unpack_batch(each))
                return run(batches)

            self.predict_function = function
        return self.predict_function

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
            return self.detect_batch(self.preprocessing.pad_batch(image))

        archive = keras.export.ExportArchive()
        archive.track(self)
        with implementation("tensorflow"):  # the file must run without kerasdet's compiled ops
            archive.add_endpoint("serve", serve, [tf.TensorSpec([None, None, None, 3], tf.float32, name="image")])
            archive.write_out(filepath, verbose=verbose, **kwargs)


def _saved_classes(model, path):
    """Returns the number of classes of the model whose weights a file holds, or None if it cannot be told."""
    import h5py  # a dependency of Keras

    shapes: dict[str, tuple[int, ...]] = {}
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(path):
            path = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
        stack.enter_context(h5py.File(path)).visititems(
            lambda name, item: shapes.update({name: getattr(item, "shape", ())})
        )
    ours = {variable.path: variable.shape for variable in model.variables}
    saved, own = _biases(shapes, "class_logits"), _biases(ours, "class_logits")
    # With other anchors, the number of logits does not tell the number of classes
    if not saved or not own or _biases(shapes, "box_deltas") != _biases(ours, "box_deltas"):
        return None
    background = int(model.has_background)
    return saved * (model.num_classes + background) // own - background


def _biases(shapes, layer):
    """Sums the lengths of the biases of a layer, from the shapes of variables by path."""
    names = {f"/{path}": shape for path, shape in shapes.items() if len(shape) == 1}
    # The boxes of a second stage may have 4 numbers a class
    return sum(n for name, (n,) in names.items() if f"/{layer}/" in name and "/box_predictor/box_deltas/" not in name)


def _check_inputs(inputs):
    """Raises a UserError if the inputs of a model have another form or no image."""
    check_batch(inputs if isinstance(inputs, Mapping) else {"image": inputs})


def _warn_of_fractions(batch):
    """Warns if the pixels of a batch of floats seem to be in 0..1."""
    image = batch.get("image") if isinstance(batch, Mapping) else batch
    if hasattr(image, "dtype") and tf.as_dtype(image.dtype).is_floating:
        warn_of_fractions("The batch", np.max(image, initial=0))


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
