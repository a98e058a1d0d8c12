"""Blurs images."""

import dataclasses
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_probabilities, check_range
from kerasdet.data.transforms.compose import at_random
from kerasdet.data.transforms.pixels import as_pixels
from kerasdet.errors import UserError


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blurs the image with a Gaussian of random standard deviation, like torchvision's `GaussianBlur`.

    Args:
        kernel_size: Height and width of the kernel in pixels; odd.
        sigma: Smallest and largest standard deviation of the Gaussian, in pixels.
        probability: Probability that the image is blurred, in [0, 1].

    Raises:
        UserError: If an argument is out of range.
    """

    kernel_size: int = 7
    sigma: tuple[float, float] = (0.1, 2.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, int) or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(
                f"GaussianBlur got kernel_size={self.kernel_size!r}; expected an odd positive integer. Correct "
                "kernel_size."
            )
        check_range(self, "sigma", 1e-3, unit="lengths in pixels")
        check_probabilities(self, "probability")

    def __call__(self, example: dict[str, Any], seed: tf.Tensor) -> dict[str, Any]:
        """Blurs an example.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the random decision and of the standard deviation, (2,) int32.

        Returns:
            The example, blurred or unchanged.
        """
        draw = tf.random.stateless_uniform([2], seed)
        sigma = self.sigma[0] + draw[1] * (self.sigma[1] - self.sigma[0])

        def blurred():
            return {**example, "image": _blur(example["image"], self.kernel_size, sigma)}

        return at_random(self.probability, draw[0], blurred, example)


def _blur(image, kernel_size, sigma):
    radius = kernel_size // 2
    places = tf.range(-radius, radius + 1.0)
    weights = tf.exp(-0.5 * tf.square(places / sigma))
    weights /= tf.reduce_sum(weights)
    values = tf.cast(image, tf.float32)
    for axis in (0, 1):
        # One reflection adds fewer pixels than the image has; a small image is reflected several times.
        length = tf.shape(values)[axis]
        index = tf.abs(tf.math.floormod(tf.range(-radius, length + radius) + length - 1, tf.maximum(2 * length - 2, 1)))
        padded = tf.gather(values, tf.abs(index - (length - 1)), axis=axis)
        slices = [padded[i : i + length] if axis == 0 else padded[:, i : i + length] for i in range(kernel_size)]
        values = tf.add_n([weights[i] * part for i, part in enumerate(slices)])
    return as_pixels(values, image)
