"""Defines the base of transforms that mix several images."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.compose import Draw, Example, Transform, apply_all, bind
from kerasdet.errors import UserError


class MixTransform:
    """Mixes an example with further images of the dataset.

    `training_batches` binds such a transform to the dataset, and it then is a callable ``(example, seed) -> example``
    like the others. The further images follow from the seed alone, so runs are reproducible and can be resumed.
    Subclasses have an attribute `transforms`, which are applied to each further image.
    """

    transforms: tuple[Transform, ...]

    def bind(self, draw: Draw) -> Callable[[Example, tf.Tensor], Example]:
        """Gives the transform a source of further images.

        Args:
            draw: Returns the decoded example of a random image; takes a seed, (2,) int32.

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
            draw: Returns the example of a random image, after `transforms`; takes a seed, (2,) int32.

        Returns:
            The mixed example. Its other keys, such as `image_id`, are those of `example`.
        """

    def __call__(self, example: Example, seed: Any) -> Example:
        """Raises an error, because there is no source of further images.

        Raises:
            UserError: Always.
        """
        name = type(self).__name__
        raise UserError(
            f"{name} needs further images, which training_batches and train provide; it was called without them. Pass "
            f"it to one of these, or call {name}(...).bind(draw)(example, seed)."
        )
