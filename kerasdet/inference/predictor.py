"""Defines `Predictor`, the base class of Keras models, loaded exports, tiling and test-time augmentation."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import keras
import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.inference.detections import Detections, unpad
from kerasdet.inference.images import ImageLike, open_image, split_images
from kerasdet.inference.padded import BranchOutput
from kerasdet.inference.preprocessing import KeepSize, Preprocessing, check_resize


class Predictor:
    """Detects objects in images: the base class of kerasdet's Keras models, exports, tiles and test-time augmentation.

    A subclass sets the attributes and defines `detect_batch`. `detect` and `kerasdet.evaluate` then work.

    Attributes:
        num_classes: Number of classes K, or None for a predictor without classes, such as a `ProposalNetwork`.
        class_names: Names of the K classes, in the order of the class ids. None: the names are unknown.
        preprocessing: The model's `Preprocessing`, or `KeepSize` if `detect_batch` resizes images itself.
        mask_convention: Source framework whose pasting of masks is reproduced: "detectron2", "torchvision" or "mmdet".
            None: no masks.
        skeleton: Pairs of keypoint indices that drawings connect by a line.
        branch_outputs: Maps the names of outputs other than boxes, scores and classes, such as `mask_probs`, to
            `BranchOutput`s, which define how the outputs are rescaled and exported.
    """

    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    preprocessing: Preprocessing | KeepSize = KeepSize()
    mask_convention: str | None = None
    skeleton: Sequence[tuple[int, int]] = ()
    branch_outputs: Mapping[str, BranchOutput] = MappingProxyType({})

    def detect(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        batch_size: int = 8,
        resize: tuple[int, int] | bool | None = None,
    ) -> Detections | list[Detections]:
        """Detects objects in images of any size.

        Args:
            images: An array (H, W, 3), a batch (B, H, W, 3), a PIL image, the path of an image file, or a list of
                arrays, PIL images and paths. Arrays are RGB, 0..255, uint8 or float. The EXIF orientation of a file is
                applied, that of a PIL image is not.
            batch_size: Number of images per batch. Smaller batches need less memory.
            resize: None for the model's own rule, False for no resizing, or (shortest, longest): the shorter side is
                resized to `shortest` pixels, unless the longer side would then exceed `longest`.

        Returns:
            The `Detections` of a single image, or a list of `Detections` for a batch or list, in pixels of the given
            images.

        Raises:
            UserError: If `images` is empty, an image or `resize` is invalid, the predictor does not support `resize`
                (exports, tiles, test-time augmentation), or `batch_size` is not a positive integer.
            FileNotFoundError: If a file does not exist.

        Example:
            >>> model = kerasdet.load("torchvision/retinanet_resnet50_fpn_v2")
            >>> detections = model.detect("street.jpg")
            >>> detections.filter(score=0.5).boxes.shape[1]  # y1, x1, y2, x2
            4
            >>> several = model.detect(["street.jpg", np.zeros((480, 640, 3), np.uint8)], batch_size=2)
            >>> len(several)
            2
        """
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}: expected a positive integer.")
        check_resize(resize)
        if not tf.executing_eagerly():
            raise UserError(
                "detect was called inside a tf.function or tf.Graph, where images have no values yet: expected a call "
                "outside. Use model.detect_batch(model.preprocessing.batch(images)) in graphs."
            )
        items, is_single = split_images(images)
        found = []
        for start in range(0, len(items), batch_size):  # opens files batch by batch, to limit memory
            arrays = [open_image(item, start + i) for i, item in enumerate(items[start : start + batch_size])]
            batch = self.preprocessing.pad_batch(arrays, resize)
            found += self.unpad(self.detect_batch(batch), [array.shape[:2] for array in arrays])
        return found[0] if is_single else found

    def detect_batch(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Detects objects in a batch that `preprocessing.batch` made.

        Args:
            batch: `image` (B, H, W, 3), RGB, 0..255, resized and padded at the bottom right; `image_size` (B, 2),
                heights and widths without padding in pixels, by default those of `image`; `original_size` (B, 2),
                heights and widths before resizing in pixels, by default `image_size`.

        Returns:
            Padded detections in pixels of the original images: a dict of `boxes` (B, D, 4) yxyx, `scores` (B, D),
            `class_ids` (B, D) with -1 for padding, `valid` (B,), and masks or keypoints if the model has them. See
            `kerasdet.inference.padded`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define detect_batch: define this method.")

    def unpad(
        self, detections: Mapping[str, np.ndarray | tf.Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Splits the result of `detect_batch` into one `Detections` per image.

        Args:
            detections: The result of `detect_batch` for B images.
            image_sizes: B pairs (height, width) of the original images, in pixels.

        Returns:
            A list of B `Detections`, without padding.
        """
        arrays = {name: np.asarray(value) for name, value in detections.items()}
        return [
            unpad(
                arrays,
                index,
                size,
                class_names=self.class_names,
                mask_convention=self.mask_convention,
                skeleton=self.skeleton,
            )
            for index, size in enumerate(image_sizes)
        ]


def batch_sizes(batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sizes of a batch's images, and fills in the defaults that `Predictor.detect_batch` documents.

    Args:
        batch: `image` (B, H, W, 3), and optionally `image_size` (B, 2) and `original_size` (B, 2), heights and widths
            in pixels.

    Returns:
        `image_size`, the sizes without padding, and `original_size`, the sizes before resizing: (B, 2) int32 each, as
        (height, width) in pixels.

    Raises:
        UserError: If `check_batch` finds a mistake.
    """
    check_batch(batch)
    shape = tf.shape(batch["image"])
    whole = tf.broadcast_to(shape[1:3], [shape[0], 2])
    image_size = tf.cast(batch.get("image_size", whole), tf.int32)
    return image_size, tf.cast(batch.get("original_size", image_size), tf.int32)


def check_batch(batch: Mapping[str, tf.Tensor]) -> None:
    """Checks the form of a batch. In a graph, only what is known about its shapes.

    Args:
        batch: `image` (B, H, W, 3), and optionally `image_size` (B, 2) and `original_size` (B, 2), heights and widths
            in pixels.

    Raises:
        UserError: If the batch is not a dict with `image`, has no image, or an entry has another shape or no numbers.
    """
    if not isinstance(batch, Mapping) or "image" not in batch:
        found = f"lacks image; it has {list(batch)}" if isinstance(batch, Mapping) else f"is a {type(batch).__name__}"
        raise _batch_error(found, "a dict with 'image' (B, H, W, 3)")
    image = _shape(batch, "image", (None, None, None, 3))
    if image[0] == 0:
        raise _batch_error("has no image", "one or more")
    for name in ("image_size", "original_size"):
        if name in batch:
            _shape(batch, name, (image[0], 2))


def _shape(batch, name, expected):
    """Returns the static shape of an entry of a batch after a check; None in `expected` is any length."""
    value = batch[name]
    try:
        if not isinstance(value, np.ndarray | tf.Tensor | keras.KerasTensor):  # these need no copy
            value = tf.convert_to_tensor(value)
        dtype, shape = tf.as_dtype(value.dtype), tf.TensorShape(value.shape)
    except (TypeError, ValueError):
        raise _batch_error(f"has {name} of type {type(value).__name__}", "a tensor or an array") from None
    if not (dtype.is_floating or dtype.is_integer):
        raise _batch_error(f"has {name} of dtype {dtype.name}", "numbers")
    if not shape.is_compatible_with(expected):
        written = f"({', '.join('any' if length is None else str(length) for length in expected)})"
        raise _batch_error(f"has {name} of shape {tuple(shape)}", f"the shape {written}")
    return shape if shape.rank else tf.TensorShape(expected)


def _batch_error(found, expected):
    return UserError(
        f"The batch {found}: expected {expected}. Make the batch with model.preprocessing.batch(images), or use "
        "model.detect(images), which also resizes."
    )
