"""Pads images to a fixed size; the model sees the padding as part of the image."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_size
from kerasdet.data.transforms.canvas import GRAY, Fill, check_fill, place


@dataclasses.dataclass(frozen=True)
class PadTo:
    """Pads the image at the bottom right to a fixed size, for models with letterboxed input such as RTMDet.

    `image_size` includes the padding, so the model sees the padding as part of the image.

    Args:
        size: Height and width of the result in pixels.
        fill: Value of the padding in 0..255: a number, or one for each channel.

    Raises:
        UserError: If an argument is out of range.
    """

    size: tuple[int, int] = (640, 640)
    fill: Fill = GRAY

    def __post_init__(self) -> None:
        check_size(self, "size")
        check_fill(self)

    def __call__(self, example: dict[str, Any], seed: tf.Tensor | None = None) -> dict[str, Any]:
        """Pads an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Ignored.

        Returns:
            The example with an image of exactly `size`.

        Raises:
            tf.errors.InvalidArgumentError: If the image is larger than `size`.
        """
        message = (
            f"PadTo got an image larger than size={tuple(self.size)}. Increase size, or resize images. Image size:"
        )
        old = tf.shape(example["image"])[:2]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(old <= self.size), [message, old])]):
            image = tf.identity(example["image"])
        return place({**example, "image": image}, tf.constant([0, 0]), tf.constant(self.size), self.fill)
