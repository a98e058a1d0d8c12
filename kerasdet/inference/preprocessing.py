"""What a model does to an image before its network sees it, and to boxes afterwards."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.ops import resize as resize_ops

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@keras.saving.register_keras_serializable(package="kerasdet")
class Preprocessing(ConfigFromInit):
    """The resize rule and the pixel statistics of a model.

    Args:
        mean: Of the three channels in the network's order, on a scale of 0..255.
        std: Likewise.
        channel_order: What the network was trained on, "rgb" or "bgr". Images always come as RGB.
        shortest: The shorter side after resizing ...
        longest: ... unless the longer one would pass this.
        rounding: How a size is rounded: "detectron2" or "torchvision".
        kernel: Interpolation: "pil" (antialiased, on uint8) or "bilinear" (on floats, as PyTorch).
        size_divisor: Batches are padded to a multiple of it.
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
    ):
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"There is no channel order {channel_order!r}: choose 'rgb' or 'bgr'.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std are three numbers each, std above 0; got {tuple(mean)} and {tuple(std)}.")
        if rounding not in ("detectron2", "torchvision"):
            raise ValueError(f"There is no rounding {rounding!r}: choose 'detectron2' or 'torchvision'.")
        if kernel not in ("pil", "bilinear"):
            raise ValueError(f"There is no kernel {kernel!r}: choose 'pil' or 'bilinear'.")
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.channel_order = channel_order
        self.shortest = shortest
        self.longest = longest
        self.rounding = rounding
        self.kernel = kernel
        self.size_divisor = size_divisor

    def normalize(self, image: tf.Tensor, image_size: tf.Tensor | None) -> tf.Tensor:
        """Network input, zero where there is padding.

        Args:
            image: (B, H, W, 3) RGB, 0..255, uint8 or float.
            image_size: (B, 2) int32 height and width without padding; None: there is none.

        Returns:
            (B, H, W, 3) float32.
        """
        x = tf.cast(image, float_dtype())
        if self.channel_order == "bgr":
            x = tf.reverse(x, [-1])
        x = (x - tf.constant(self.mean, float_dtype())) / tf.constant(self.std, float_dtype())
        if image_size is None:
            return x
        rows = tf.sequence_mask(image_size[:, 0], tf.shape(x)[1])[:, :, None, None]
        columns = tf.sequence_mask(image_size[:, 1], tf.shape(x)[2])[:, None, :, None]
        return tf.where(rows & columns, x, 0.0)

    def resize(self, image: tf.Tensor, shortest: int | None = None, longest: int | None = None) -> tf.Tensor:
        """Resizes by the model's rule, or to the `shortest` and `longest` given.

        Args:
            image: (H, W, 3) or (B, H, W, 3), 0..255, uint8 or float.

        Returns:
            (h, w, 3) or (B, h, w, 3) float32.
        """
        height, width = tf.unstack(tf.shape(image)[-3:-1])
        size = resize_ops.shortest_edge_size(
            height, width, shortest or self.shortest, longest or self.longest, self.rounding
        )
        return resize_ops.resize(image, tf.maximum(tf.stack(size), 1), self.kernel)  # a line stays a line

    def frame(self, image: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tuple[int, int]]:
        """Resizes an image so that it just fits, and fills the rest, at the bottom or right, with the mean.

        The mean is zero to the network, as padding is.

        Args:
            image: (H, W, 3) RGB, 0..255, uint8 or float.
            height: Of the frame.
            width: Of the frame.

        Returns:
            (height, width, 3) float32, and the height and width of the image in it.
        """
        scale = min(height / image.shape[0], width / image.shape[1])
        half = 0.5 if self.rounding == "detectron2" else 1e-9  # against what is lost in the quotient
        size = tuple(max(int(length * scale + half), 1) for length in image.shape[:2])
        small = resize_ops.resize(image, size, self.kernel)
        mean = self.mean if self.channel_order == "rgb" else self.mean[::-1]
        below = tf.broadcast_to(tf.constant(mean, tf.float32), [height - size[0], size[1], 3])
        right = tf.broadcast_to(tf.constant(mean, tf.float32), [height, width - size[1], 3])
        return tf.concat([tf.concat([small, below], 0), right], 1), size

    def padded_size(self, size: tf.Tensor) -> tf.Tensor:
        """The next multiple of `size_divisor`."""
        return -(-size // self.size_divisor) * self.size_divisor
