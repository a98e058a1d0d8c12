"""Defines the base class of transforms that mix several images."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.compose import Draw, Example, Transform, apply_all, bind
from kerasdet.errors import UserError


class MixTransform:
    """Base class of transforms that mix an image with other images of the dataset, such as `Mosaic`.

    `training_batches` calls `bind`, which turns the transform into a callable ``(example, seed) -> example``. The
    further images depend only on the seed, so runs are reproducible and can be resumed. A subclass defines `mix`, and
    an attribute `transforms` with the transforms to apply to each further image.
    """

    transforms: tuple[Transform, ...]

    def bind(self, draw: Draw) -> Callable[[Example, tf.Tensor], Example]:
        """Connects the transform to a source of further images.

        Args:
            draw: Function that takes a seed, (2,) int32, and returns the decoded example of a random image.

        Returns:
            The transform as a callable ``(example, seed) -> example``.
        """
        transforms = bind(self.transforms, draw)

        def prepared(seed):
            return apply_all(transforms, draw(seed), tf.random.fold_in(seed, 1))

        return functools.partial(self.mix, draw=prepared)

    @abstractmethod
    def mix(self, example: Example, seed: tf.Tensor, draw: Draw) -> Example:
        """Mixes an example with further images.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of all randomness, (2,) int32.
            draw: Function that takes a seed, (2,) int32, and returns the example of a random image, after `transforms`.

        Returns:
            The mixed example. Other keys, such as `image_id`, have the values of `example`.
        """

    def __call__(self, example: Example, seed: Any) -> Example:
        """Raises an error: the transform works only after `bind`, which `training_batches` calls.

        Args:
            example: Ignored.
            seed: Ignored.

        Raises:
            UserError: Always.
        """
        name = type(self).__name__
        raise UserError(
            f"{name} was called without a source of further images, which training_batches and train provide. Pass "
            f"{name} to one of these, or call {name}(...).bind(draw)(example, seed), where draw(seed) returns the "
            "example of a random image."
        )
