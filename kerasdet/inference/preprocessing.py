"""Resizes, pads and normalises images for inference."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_positive
from kerasdet.errors import UserError
from kerasdet.inference.images import ImageLike, open_images
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.backbone import IMAGENET_MEAN, IMAGENET_STD
from kerasdet.ops import resize as resize_ops


@keras.saving.register_keras_serializable(package="kerasdet")
class Preprocessing(ConfigFromInit):
    """Holds a model's resize rule and pixel statistics and applies them.

    Args:
        mean: Three channel means on a scale of 0..255, in the network's channel order.
        std: Three channel standard deviations on a scale of 0..255, in the network's channel order.
        channel_order: Channel order of the network's input, "rgb" or "bgr". The methods always take RGB images.
        shortest: Length of an image's shorter side after resizing, in pixels.
        longest: Limit of the longer side, in pixels. If the longer side would exceed the limit, it gets this length,
            and the shorter side is then shorter than `shortest`.
        rounding: Rule of the resized size: "detectron2", "torchvision" and "mmdetection" round as these frameworks do,
            and "square" stretches images to a square, see `kerasdet.ops.resize.shortest_edge_size`.
        kernel: Interpolation: "pil" is antialiased and works on uint8, "bilinear" works on floats as PyTorch does,
            "opencv" works on uint8 without antialiasing. See `kerasdet.ops.resize.resize`.
        size_divisor: The height and width of a batch are padded to multiples of this number of pixels.
        letterbox_value: Value, 0..255, of the pixels that pad each image to a square of `longest` pixels. The network
            sees these pixels as part of the image, so boxes may extend into them (RTMDet: 114). None: images are padded
            with zeros after normalisation, and boxes are clipped to the image.

    Raises:
        ValueError: If `mean` or `std` are not three numbers, `std` is not positive, or `channel_order`, `rounding` or
            `kernel` is unknown.
        UserError: If `letterbox_value` is not a pixel value, a length is not positive, or `longest` is below
            `shortest`.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_order: str = "rgb",
        shortest: int = 800,
        longest: int = 1333,
        rounding: str = "detectron2",
        kernel: str = "pil",
        size_divisor: int = 32,
        letterbox_value: float | None = None,
    ):
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"Preprocessing.channel_order is {channel_order!r}: choose 'rgb' or 'bgr'.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"Preprocessing.mean is {tuple(mean)} and Preprocessing.std is {tuple(std)}: expected three numbers "
                "each, and std above 0."
            )
        if rounding not in resize_ops.ROUNDINGS:
            raise ValueError(
                f"Preprocessing.rounding is {rounding!r}: choose one of {', '.join(map(repr, resize_ops.ROUNDINGS))}."
            )
        if kernel not in resize_ops.KERNELS:
            raise ValueError(
                f"Preprocessing.kernel is {kernel!r}: choose one of {', '.join(map(repr, resize_ops.KERNELS))}."
            )
        if letterbox_value is not None and not 0 <= letterbox_value <= 255:
            raise UserError(
                f"Preprocessing.letterbox_value is {letterbox_value!r}: expected a pixel value from 0 to 255, or None."
            )
        check_positive("Preprocessing", shortest=shortest, longest=longest, size_divisor=size_divisor)
        if longest < shortest:
            raise UserError(
                f"Preprocessing.longest (gin: LONGEST_EDGE) is {longest}, below shortest (gin: SHORTEST_EDGE), "
                f"{shortest}: no image would have a shorter side of {shortest} pixels. Increase longest or decrease "
                "shortest."
            )
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.channel_order = channel_order
        self.shortest = shortest
        self.longest = longest
        self.rounding = rounding
        self.kernel = kernel
        self.size_divisor = size_divisor
        self.letterbox_value = letterbox_value

    @property
    def letterboxes(self) -> bool:
        """Whether images are letterboxed: padded with `letterbox_value`, so that boxes may extend into the padding."""
        return self.letterbox_value is not None

    def network_input(self, image: tf.Tensor, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Converts the result of `batch` to the inputs of the model.

        Args:
            image: (B, H, W, 3) RGB, 0..255, uint8 or float, padded at the bottom right.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Dict of `image` (B, H, W, 3) and `image_size` (B, 2), heights and widths in pixels. If the model
            letterboxes, the padding of `image` has the value `letterbox_value`, `image` is float32, and `image_size`
            includes the padding.
        """
        if not self.letterboxes:
            return {"image": image, "image_size": image_size}
        image = tf.cast(image, float_dtype())
        image = tf.where(_valid_pixels(image, image_size), image, tf.cast(self.letterbox_value, image.dtype))
        return {"image": image, "image_size": tf.broadcast_to(tf.shape(image)[1:3], tf.shape(image_size))}

    def batch_size(self, image_size: tf.Tensor, resize: tuple[int, int] | bool | None = None) -> tf.Tensor:
        """Computes the height and width of a batch after padding.

        Args:
            image_size: (2,) largest height and largest width of the resized images, in pixels.
            resize: The argument `resize` of `batch`.

        Returns:
            The padded height and width, (2,) int32 in pixels.
        """
        if not self.letterboxes or resize is False:
            return self.padded_size(image_size)
        return tf.fill([2], self.padded_size(resize[1] if resize else self.longest))

    def normalize(self, image: tf.Tensor, image_size: tf.Tensor | None) -> tf.Tensor:
        """Normalises pixels for the network, and sets padding to zero.

        Args:
            image: (B, H, W, 3) RGB, 0..255, uint8 or float.
            image_size: (B, 2) int32, heights and widths without padding in pixels. None: no image is padded.

        Returns:
            The network's input, (B, H, W, 3) float32.
        """
        x = tf.cast(image, float_dtype())
        if self.channel_order == "bgr":
            x = tf.reverse(x, [-1])
        x = (x - tf.constant(self.mean, float_dtype())) / tf.constant(self.std, float_dtype())
        if image_size is None:
            return x
        return tf.where(_valid_pixels(x, image_size), x, 0.0)

    def resize(self, image: tf.Tensor, shortest: int | None = None, longest: int | None = None) -> tf.Tensor:
        """Resizes images of one size by the model's rule.

        Args:
            image: (H, W, 3) or (B, H, W, 3), 0..255, uint8 or float.
            shortest: Length of the shorter side in pixels. None: `self.shortest`.
            longest: Limit of the longer side in pixels. None: `self.longest`.

        Returns:
            The resized images, (h, w, 3) or (B, h, w, 3) float32.
        """
        height, width = tf.unstack(tf.shape(image)[-3:-1])
        size = resize_ops.shortest_edge_size(
            height, width, shortest or self.shortest, longest or self.longest, self.rounding
        )
        # The rule can round the shorter side of a very thin image to 0, so at least one row of pixels is kept.
        return resize_ops.resize(image, tf.maximum(tf.stack(size), 1), self.kernel)

    def padded_size(self, size: tf.Tensor) -> tf.Tensor:
        """Rounds heights and widths up to the next multiple of `size_divisor`.

        Args:
            size: (...) int32, heights or widths in pixels.

        Returns:
            The padded heights or widths, (...) int32 in pixels.
        """
        return -(-size // self.size_divisor) * self.size_divisor

    def batch(
        self, images: ImageLike | Sequence[ImageLike], resize: tuple[int, int] | bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Checks, resizes and pads images into a batch.

        Args:
            images: Images of any sizes, as `Predictor.detect` takes them; inside a `tf.function`, a tensor
                (B, H, W, 3), RGB, 0..255, uint8 or float.
            resize: None for the model's own rule, False for no resizing, or (shortest, longest): the length of the
                shorter side and the limit of the longer side, in pixels.

        Returns:
            Dict of `image` (B, h, w, 3) float32, padded at the bottom right; `image_size` (B, 2) int32, heights and
            widths after resizing and without padding; and `original_size` (B, 2) int32, heights and widths before
            resizing; all in pixels.

        Raises:
            UserError: If there is no image, an image is invalid, or `resize` is not None, False or a pair of positive
                integers.
            FileNotFoundError: If a file does not exist.

        Example:
            >>> detections = model.detect_batch(model.preprocessing.batch([image, other_image]))
        """
        check_resize(resize)
        return self.pad_batch(_opened(images), resize)

    def pad_batch(
        self, images: Sequence[np.ndarray] | tf.Tensor, resize: tuple[int, int] | bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Resizes and pads images that have been checked into a batch, see `batch`.

        Args:
            images: A list of (H, W, 3) arrays of any sizes, or a tensor (B, H, W, 3): RGB, 0..255, uint8 or float.
            resize: The argument `resize` of `batch`.

        Returns:
            The result of `batch`.
        """

        def resized(image):
            if resize is False:
                return tf.cast(image, tf.float32)
            return self.resize(image, *(resize or ()))

        def padded_size(size):
            return self.batch_size(size, resize)

        if not isinstance(images, list | tuple):
            return _padded(resized(images), tf.shape(images)[1:3], padded_size)
        original_size = tf.stack([tf.shape(image)[:2] for image in images])
        return _padded([resized(image) for image in images], original_size, padded_size)

    @property
    def filling(self) -> tuple[float, float, float]:
        """RGB value, 0..255, of the pixels that `letterbox` adds: `letterbox_value` or, if that is None, `mean`."""
        if self.letterboxes:
            return (float(self.letterbox_value),) * 3
        return tuple(self.mean if self.channel_order == "rgb" else self.mean[::-1])

    def letterbox(self, image: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tuple[int, int]]:
        """Resizes an image to the largest size that fits, and fills the rest at the bottom or right.

        Pixels outside the image get the colour `filling`, which is zero after normalisation unless the model has a
        `letterbox_value`. With the rounding "square" the image is stretched instead, and nothing is filled.

        Args:
            image: (H, W, 3) RGB, 0..255, uint8 or float.
            height: Height of the result in pixels.
            width: Width of the result in pixels.

        Returns:
            The letterboxed image, (height, width, 3) float32, and the (height, width) in pixels of the part that shows
            the image.
        """
        if self.rounding == "square":
            return resize_ops.resize(image, (height, width), self.kernel), (height, width)
        scale = min(height / image.shape[0], width / image.shape[1])
        # torchvision rounds down. `height / H * H` may be a few units in the last place below `height`, and rounding
        # down would then lose a whole pixel; 1e-9 exceeds that error for all sizes, and changes no other result.
        offset = 1e-9 if self.rounding == "torchvision" else 0.5
        size = tuple(max(int(length * scale + offset), 1) for length in image.shape[:2])
        small = resize_ops.resize(image, size, self.kernel)  # (h, w, 3)
        filling = tf.constant(self.filling, tf.float32)
        below = tf.broadcast_to(filling, [height - size[0], size[1], 3])
        right = tf.broadcast_to(filling, [height, width - size[1], 3])
        return tf.concat([tf.concat([small, below], 0), right], 1), size


class KeepSize:
    """Replaces `Preprocessing` in predictors that resize images themselves: exports, tiles, test-time augmentation.

    Images keep their size; a batch is padded to its largest height and width.
    """

    size_divisor = 1

    def resize(self, image: tf.Tensor, shortest: int | None = None, longest: int | None = None) -> tf.Tensor:
        """Returns the images unchanged.

        Args:
            image: (H, W, 3) or (B, H, W, 3).
            shortest: Ignored, because the predictor resizes by its own rule.
            longest: Ignored, because the predictor resizes by its own rule.

        Returns:
            `image`.
        """
        return image

    def padded_size(self, size: tf.Tensor) -> tf.Tensor:
        """Returns heights and widths unchanged, because the predictor pads by its own rule.

        Args:
            size: (...) int32, heights or widths in pixels.

        Returns:
            `size`.
        """
        return size

    def batch(
        self, images: ImageLike | Sequence[ImageLike], resize: tuple[int, int] | bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Checks images and pads them into a batch without resizing them.

        Args:
            images: Images of any sizes, as `Predictor.detect` takes them; inside a `tf.function`, a tensor
                (B, H, W, 3), RGB, 0..255, uint8 or float.
            resize: Must be None, because the predictor resizes by its own rule.

        Returns:
            Dict of `image` (B, h, w, 3), padded at the bottom right; `image_size` and `original_size` (B, 2) int32,
            both the heights and widths of the images in pixels. `image` is uint8 if all images are uint8, otherwise
            float32; in a graph it keeps the dtype of the tensor.

        Raises:
            UserError: If there is no image, an image is invalid, or `resize` is not None.
            FileNotFoundError: If a file does not exist.
        """
        check_resize(resize)
        return self.pad_batch(_opened(images), resize)

    def pad_batch(
        self, images: Sequence[np.ndarray] | tf.Tensor, resize: tuple[int, int] | bool | None = None
    ) -> dict[str, tf.Tensor]:
        """Pads images that have been checked into a batch, see `batch`.

        Args:
            images: A list of (H, W, 3) arrays of any sizes, or a tensor (B, H, W, 3): RGB, 0..255, uint8 or float.
            resize: Must be None, because the predictor resizes by its own rule.

        Returns:
            The result of `batch`.

        Raises:
            UserError: If `resize` is not None.
        """
        if resize is not None:
            raise UserError(
                f"resize is {resize!r}, but this predictor (an export, tiles or test-time augmentation) resizes images "
                "by its own rule: remove the argument, or call detect of the Keras model."
            )
        if not isinstance(images, list | tuple):
            return _padded(images, tf.shape(images)[1:3], self.padded_size)
        if any(image.dtype != np.uint8 for image in images):
            images = [tf.cast(image, tf.float32) for image in images]
        original_size = tf.stack([tf.shape(image)[:2] for image in images])
        return _padded([tf.convert_to_tensor(image) for image in images], original_size, self.padded_size)


def _opened(images):
    """Opens and checks images; inside a `tf.function`, where pixels are unknown, returns them unchanged."""
    return open_images(images)[0] if tf.executing_eagerly() else images


def _valid_pixels(image, image_size):
    """Marks the pixels of images (B, H, W, 3) that are not padding, (B, H, W, 1) bool."""
    rows = tf.sequence_mask(image_size[:, 0], tf.shape(image)[1])[:, :, None, None]  # (B, H, 1, 1)
    columns = tf.sequence_mask(image_size[:, 1], tf.shape(image)[2])[:, None, :, None]  # (B, 1, W, 1)
    return rows & columns


def _padded(images, original_size, padded_size):
    """Pads a list of images (h, w, 3), or a tensor (B, h, w, 3), at the bottom right, and adds their sizes."""
    if isinstance(images, list):
        image_size = tf.stack([tf.shape(image)[:2] for image in images])  # (B, 2)
        height, width = tf.unstack(padded_size(tf.reduce_max(image_size, 0)))
        image = tf.stack([resize_ops.pad_to(image, height, width) for image in images])  # (B, H, W, 3)
        return {"image": image, "image_size": image_size, "original_size": original_size}
    batch, size = tf.shape(images)[0], tf.shape(images)[1:3]
    height, width = tf.unstack(padded_size(size))
    return {
        "image": resize_ops.pad_to(images, height, width),
        "image_size": tf.broadcast_to(size, [batch, 2]),
        "original_size": tf.broadcast_to(original_size, [batch, 2]),
    }


def check_resize(resize: tuple[int, int] | bool | None) -> None:
    """Checks the argument `resize` of `detect` and `batch`.

    Args:
        resize: None, False, or (shortest, longest) in pixels.

    Raises:
        UserError: If `resize` has another form.
    """
    if resize is None or resize is False:
        return
    pair = isinstance(resize, list | tuple) and len(resize) == 2
    if not pair or not all(isinstance(length, int | np.integer) and length > 0 for length in resize):
        raise UserError(
            f"resize is {resize!r}: expected (shortest, longest) in whole pixels, None for the model's own rule or "
            "False for no resizing."
        )
