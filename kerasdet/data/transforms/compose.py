"""Combines transforms: in a row, with a probability, and up to a step of the training run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from kerasdet.data.transforms.arguments import check_at_least, check_probabilities
from kerasdet.errors import UserError

Example = dict[str, Any]
Transform = Callable[[Example, Any], Example]
Draw = Callable[[tf.Tensor], Example]


def apply_all(transforms: Sequence[Transform], example: Example, seed: tf.Tensor) -> Example:
    """Applies transforms in order; each gets a seed of its own.

    Args:
        transforms: Callables ``(example, seed) -> example``.
        example: Tensors of one image.
        seed: Seed of all of them, (2,) int32.

    Returns:
        The transformed example.
    """
    for i, transform in enumerate(transforms):
        example = transform(example, tf.random.fold_in(seed, i))
    return example


def apply_if(
    when: tf.Tensor,
    change: Callable[[], Example],
    example: Example,
    otherwise: Callable[[], Example] | None = None,
) -> Example:
    """Returns ``change()`` if a condition holds, and else the example itself.

    Args:
        when: Condition, () bool.
        change: Returns the changed example; it runs only if the condition holds.
        example: Tensors of one image.
        otherwise: Returns what to use instead of the unchanged example.

    Returns:
        One of the two examples.

    Raises:
        UserError: If both do not have the same keys and types, which TensorFlow's graphs require.
    """
    specs = []

    def branch(make):
        def run():
            result = {name: tf.identity(value) for name, value in make().items()}
            specs.append({name: value.dtype for name, value in result.items()})
            return _same_types(result, specs)

        return run

    return tf.cond(when, branch(change), branch(otherwise or (lambda: example)))


def _same_types(result, specs):
    first, last = specs[0], specs[-1]
    for name in sorted(first.keys() | last.keys()):
        before, after = (spec[name].name if name in spec else "absent" for spec in (first, last))
        if before != after:
            raise UserError(
                f"The transforms of an image are applied with a probability or up to a step, but '{name}' is {before} "
                f"with one outcome and {after} with the other; expected the same type. Convert it, or for a resized "
                "image use kernel='pil' or 'opencv', which keep uint8."
            )
    return result


def at_random(probability: float, draw: tf.Tensor, change: Callable[[], Example], example: Example) -> Example:
    """Returns ``change()`` with a probability, and else the example itself.

    Args:
        probability: Probability of the change. With 0 and 1 the graph has no condition.
        draw: Uniform random number in [0, 1), () float32.
        change: Returns the changed example.
        example: Tensors of one image.

    Returns:
        One of the two examples.
    """
    if probability <= 0 or probability >= 1:
        return change() if probability >= 1 else example
    return apply_if(draw < probability, change, example)


def bind(transforms: Sequence[Transform], draw: Draw) -> tuple[Transform, ...]:
    """Prepares transforms for the graph of a pipeline.

    Those that mix several images get a source of further images. A user's own function may use Python's ``if`` and
    ``for`` with tensors; kerasdet's do not, so that their errors reach the user as they are.

    Args:
        transforms: Callables ``(example, seed) -> example``. Those with a method `bind` prepare themselves.
        draw: Returns the decoded example of a random image; takes a seed, (2,) int32.

    Returns:
        The transforms, all of them callable as ``(example, seed) -> example`` inside a graph.
    """
    return tuple(_prepared(each, draw) for each in transforms)


def _prepared(transform, draw):
    if hasattr(transform, "bind"):
        return transform.bind(draw)
    if type(transform).__module__.startswith("kerasdet."):
        return transform
    return tf.function(lambda example, seed: transform(example, seed))


@dataclasses.dataclass(frozen=True)
class RandomApply:
    """Applies transforms together, with a probability.

    Args:
        transforms: Callables ``(example, seed) -> example``, applied in order.
        probability: Probability that they are applied, in [0, 1].

    Raises:
        UserError: If the probability is outside [0, 1].

    Example:
        >>> RandomApply([GaussianBlur(7)], probability=0.2)
    """

    transforms: Sequence[Transform]
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")

    def bind(self, draw: Draw) -> "RandomApply":
        """Gives transforms that mix several images a source of further images, see `bind`."""
        return dataclasses.replace(self, transforms=bind(self.transforms, draw))

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """Applies the transforms or none of them.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the decision and of the transforms, (2,) int32.

        Returns:
            The example, changed or not.
        """
        draw = tf.random.stateless_uniform([], seed)
        return at_random(self.probability, draw, lambda: apply_all(self.transforms, example, seed), example)


@dataclasses.dataclass(frozen=True)
class UntilStep:
    """Applies transforms up to a training step, and others afterwards.

    Strong augmentation such as mosaic helps most of the run and is switched off for its last epochs (YOLOX,
    https://arxiv.org/abs/2107.08430). The step follows from the position of the image in the run, so a resumed run
    switches at the same step.

    Args:
        step: The first step without `transforms`, counted from 0.
        transforms: Callables ``(example, seed) -> example``, applied in order before that step.
        afterwards: Those applied in order from that step on.

    Raises:
        UserError: If the step is negative.

    Example:
        >>> UntilStep(80_000, [Mosaic((640, 640))], afterwards=[ResizeShortestEdge((640,), 640)])
    """

    step: int
    transforms: Sequence[Transform]
    afterwards: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        check_at_least(self, 0, "step")

    def bind(self, draw: Draw) -> "UntilStep":
        """Gives transforms that mix several images a source of further images, see `bind`."""
        return dataclasses.replace(self, transforms=bind(self.transforms, draw), afterwards=bind(self.afterwards, draw))

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """Applies the transforms of the step.

        Args:
            example: Tensors of one image, with its `step`, which `training_batches` adds.
            seed: Seed of the transforms, (2,) int32.

        Returns:
            The transformed example.

        Raises:
            UserError: If the example has no step.
        """
        if "step" not in example:
            raise UserError(
                "UntilStep got an example without 'step'; expected one of training_batches, which counts steps. Add a "
                "scalar 'step' to use it elsewhere."
            )
        return apply_if(
            example["step"] < self.step,
            lambda: apply_all(self.transforms, example, seed),
            example,
            lambda: apply_all(self.afterwards, example, seed),
        )
