"""Resizes images to a fixed size, or to random sizes for multi-scale training."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms import objects
from kerasdet.errors import UserError
from kerasdet.ops import resize as resize_ops


@dataclasses.dataclass(frozen=True)
class ResizeShortestEdge:
    """Resizes so that the shorter edge has a given length, but the longer edge at most its limit.

    The aspect ratio is kept, except with ``rounding="square"``.

    Args:
        shortest: Lengths of the shorter edge in pixels, from which one is drawn. Without a seed the first length is
            used.
        longest: Limit of the longer edge, in pixels.
        sampling: "choice" draws one of `shortest`; "range" draws any length from the first to the second.
        rounding: Rule that computes the new size: "detectron2", "torchvision" and "mmdetection" round as these
            frameworks do, and "square" stretches images to a square, see `kerasdet.ops.resize.shortest_edge_size`.
        kernel: "pil" and "opencv" give a uint8 image, "bilinear" a float32 image; see `kerasdet.ops.resize.resize`.
        scales: Factors, from which one is drawn. The drawn length and `longest` are multiplied by this factor and
            rounded. Without a seed the first factor is used. With ``sampling="range"`` there must be exactly one.

    Raises:
        UserError: If `sampling`, `rounding` or `kernel` is unknown, a length is below 1, a factor is not positive, or a
            range is not (low, high).
    """

    shortest: tuple[int, ...] | int = (800,)
    longest: int = 1333
    sampling: str = "choice"
    rounding: str = "detectron2"
    kernel: str = "pil"
    scales: tuple[float, ...] | float = (1.0,)

    def __post_init__(self) -> None:
        shortest = (self.shortest,) if isinstance(self.shortest, int) else tuple(self.shortest)
        object.__setattr__(self, "shortest", shortest)
        scales = (self.scales,) if isinstance(self.scales, int | float) else tuple(self.scales)
        object.__setattr__(self, "scales", scales)
        if not shortest or min(*shortest, self.longest) < 1:
            raise UserError(
                f"ResizeShortestEdge got shortest={shortest} and longest={self.longest}; expected at least one "
                "shortest length, and lengths of 1 pixel or more. Change shortest or longest."
            )
        if not scales or min(scales) <= 0 or (self.sampling == "range" and len(scales) > 1):
            raise UserError(
                f"ResizeShortestEdge got scales={scales} with sampling={self.sampling!r}; expected at least one "
                "factor above 0, and exactly one factor with sampling='range'. Change scales."
            )
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise UserError(
                    f"ResizeShortestEdge got {name}={getattr(self, name)!r}; expected one of {words}. Change {name}."
                )
        if self.sampling == "range" and (len(shortest) != 2 or shortest[0] > shortest[1]):
            raise UserError(
                f"ResizeShortestEdge got shortest={shortest} with sampling='range'; expected (low, high), two lengths "
                "in ascending order. Correct shortest."
            )

    def __call__(self, example: dict[str, Any], seed: tf.Tensor | None = None) -> dict[str, Any]:
        """Resizes an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the random length and factor, (2,) int32. None: the first length and first factor are used.

        Returns:
            The example with resized image, boxes and keypoints; masks do not change, because they are cropped to the
            boxes.
        """
        old = tf.shape(example["image"])[:2]
        shortest, longest = self._draw(seed)
        size = resize_ops.shortest_edge_size(old[0], old[1], shortest, longest, self.rounding)
        return resize_to(example, tf.maximum(tf.stack(size), 1), self.kernel)

    def _draw(self, seed):
        """Returns the length of the shorter edge and the limit of the longer one."""
        sizes = [(round(edge * f), round(self.longest * f)) for edge in self.shortest for f in self.scales]
        if seed is None:
            return tf.constant(sizes[0][0]), sizes[0][1]
        if self.sampling == "range":
            (low, longest), (high, _) = sizes
            return tf.random.stateless_uniform([], seed, low, high + 1, tf.int32), longest
        shortest, longest = tf.unstack(tf.gather(sizes, tf.random.stateless_uniform([], seed, 0, len(sizes), tf.int32)))
        return shortest, longest


_WORDS = {
    "sampling": ("choice", "range"),
    "rounding": resize_ops.ROUNDINGS,
    "kernel": resize_ops.KERNELS,
}


def resize_to(example: dict[str, Any], size: tf.Tensor, kernel: str) -> dict[str, Any]:
    """Resizes an example to a given height and width.

    Args:
        example: Tensors of one image, see `kerasdet.data.transforms`.
        size: New height and width in pixels, (2,) int32.
        kernel: One of `kerasdet.ops.resize.KERNELS`.

    Returns:
        The example with resized image, boxes and keypoints; masks do not change, because they are cropped to the boxes.
    """
    old = tf.shape(example["image"])[:2]
    image = resize_image(example["image"], size, kernel)
    factor = tf.cast(size, tf.float32) / tf.cast(old, tf.float32)
    return {**objects.scale(example, factor), "image": image, "image_size": size}


def resize_image(image: tf.Tensor, size: tf.Tensor, kernel: str, window: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes an image, and returns the resized image or a window of it.

    Args:
        image: (H, W, 3) uint8 or float32.
        size: New height and width in pixels, (2,) int32.
        kernel: One of `kerasdet.ops.resize.KERNELS`.
        window: (4,) int32, yxyx in pixels of the resized image. None: the whole image.

    Returns:
        The resized image or window, (h, w, 3): uint8 for the kernels "pil" and "opencv", float32 for "bilinear".
    """
    if kernel in resize_ops.UINT8_KERNELS and image.dtype == tf.uint8:
        return resize_ops.resize_uint8(image, size, kernel, window)
    resized = resize_ops.resize(image, size, kernel, window)
    return tf.cast(resized, tf.uint8) if kernel in resize_ops.UINT8_KERNELS else resized


def check_kernel(owner: object) -> None:
    """Checks the attribute `kernel` of a transform.

    Args:
        owner: Transform that resizes images.

    Raises:
        UserError: If `kernel` is unknown.
    """
    if owner.kernel not in resize_ops.KERNELS:
        raise UserError(
            f"{type(owner).__name__} got kernel={owner.kernel!r}; expected one of {resize_ops.KERNELS}. Change kernel."
        )
