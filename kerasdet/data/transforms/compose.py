"""Combines transforms: applies them in sequence, with a probability, or up to a training step."""

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
    """Applies transforms in order; each gets its own seed.

    Args:
        transforms: Callables ``(example, seed) -> example``.
        example: Tensors of one image, see `kerasdet.data.transforms`.
        seed: Seed from which the seeds of all transforms are derived, (2,) int32.

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
    """Applies a change if a condition holds.

    Args:
        when: Condition, a scalar bool.
        change: Function that returns the changed example; it runs only if the condition holds.
        example: Tensors of one image, see `kerasdet.data.transforms`.
        otherwise: Function that returns the example to use if the condition does not hold. None: `example`.

    Returns:
        The changed example if the condition holds, otherwise the result of `otherwise`, or `example`.

    Raises:
        UserError: If the two examples have different keys or types, which a TensorFlow graph does not allow.
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
                f"A transform that is applied with a probability or up to a step changes the type of '{name}': it is "
                f"{before} with the transform and {after} without; expected the same type. Return '{name}' with "
                "the same type in both cases. If a transform resizes the image, set its kernel to 'pil' or 'opencv', "
                "which keep uint8."
            )
    return result


def at_random(probability: float, draw: tf.Tensor, change: Callable[[], Example], example: Example) -> Example:
    """Applies a change with a probability.

    Args:
        probability: Probability of the change, in [0, 1]. If it is 0 or 1, the graph contains no condition.
        draw: Uniform random number in [0, 1), a scalar float32.
        change: Function that returns the changed example.
        example: Tensors of one image, see `kerasdet.data.transforms`.

    Returns:
        The changed or the unchanged example.
    """
    if probability <= 0 or probability >= 1:
        return change() if probability >= 1 else example
    return apply_if(draw < probability, change, example)


def bind(transforms: Sequence[Transform], draw: Draw) -> tuple[Transform, ...]:
    """Prepares transforms for the graph of a pipeline.

    Transforms that mix several images get a function that draws further images. A user's own function is converted by
    AutoGraph, so it may use Python's ``if`` and ``for`` with tensors. kerasdet's transforms are not converted, which
    keeps their error messages readable.

    Args:
        transforms: Callables ``(example, seed) -> example``. If one has a method `bind`, the result of this
            method takes its place.
        draw: Function that takes a seed, (2,) int32, and returns the decoded example of a random image.

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
    """Applies either all transforms of a list or none, at random.

    Args:
        transforms: Callables ``(example, seed) -> example``, applied in order.
        probability: Probability that the transforms are applied, in [0, 1].

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
        """Passes a source of further images to the transforms that mix several images.

        Args:
            draw: Function that takes a seed, (2,) int32, and returns the decoded example of a random image.

        Returns:
            A copy of this object whose transforms use this source.
        """
        return dataclasses.replace(self, transforms=bind(self.transforms, draw))

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """Applies the transforms or none of them.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`.
            seed: Seed of the random decision and of the transforms, (2,) int32.

        Returns:
            The example, transformed or unchanged.
        """
        draw = tf.random.stateless_uniform([], seed)
        return at_random(self.probability, draw, lambda: apply_all(self.transforms, example, seed), example)


@dataclasses.dataclass(frozen=True)
class UntilStep:
    """Applies transforms up to a training step, and other transforms afterwards.

    Strong augmentation such as mosaic is usually switched off for the last epochs of training (YOLOX,
    https://arxiv.org/abs/2107.08430). The step follows from the position of the image in the run, so a resumed run
    switches at the same step.

    Args:
        step: The first step without `transforms`, counted from 0.
        transforms: Callables ``(example, seed) -> example``, applied in order before `step`.
        afterwards: Callables ``(example, seed) -> example``, applied in order from `step` on.

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
        """Passes a source of further images to the transforms that mix several images.

        Args:
            draw: Function that takes a seed, (2,) int32, and returns the decoded example of a random image.

        Returns:
            A copy of this object whose transforms use this source.
        """
        return dataclasses.replace(self, transforms=bind(self.transforms, draw), afterwards=bind(self.afterwards, draw))

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """Applies the transforms of the step.

        Args:
            example: Tensors of one image, see `kerasdet.data.transforms`, with `step`, which `training_batches` adds.
            seed: Seed of the transforms, (2,) int32.

        Returns:
            The transformed example.

        Raises:
            UserError: If the example has no step.
        """
        if "step" not in example:
            raise UserError(
                "UntilStep got an example without 'step'; expected an example of training_batches, which adds it. Add "
                "a scalar 'step' to use UntilStep elsewhere."
            )
        return apply_if(
            example["step"] < self.step,
            lambda: apply_all(self.transforms, example, seed),
            example,
            lambda: apply_all(self.afterwards, example, seed),
        )
