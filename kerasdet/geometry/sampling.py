"""Samples the anchors and proposals that a detector is trained on."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.geometry.matching import NEGATIVE
from kerasdet.keras_utils import ConfigFromInit


def per_image_uniform(size: tf.Tensor, seed: int, step: tf.Tensor, image_ids: tf.Tensor) -> tf.Tensor:
    """Draws random numbers for each image. They depend only on seed, step and image id, not on the batch.

    Args:
        size: R, the number of values per image.
        seed: Seed of the training run.
        step: Scalar integer, the training step.
        image_ids: (B,) integers, one per image.

    Returns:
        The random numbers, (B, R) float32 in [0, 1).
    """
    seed = tf.random.fold_in(tf.constant([seed, 0], tf.int32), tf.cast(step, tf.int32))

    def one_image(image_id):
        return tf.random.stateless_uniform([size], tf.random.fold_in(seed, tf.cast(image_id, tf.int32)))

    return tf.map_fn(one_image, image_ids, fn_output_signature=tf.float32)


def sampling_priority(size: tf.Tensor, seed: int, step: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Draws a random priority for each candidate (anchor or proposal); a sampler selects the highest priorities.

    Args:
        size: R, number of candidates in each image.
        seed: Seed of the training run.
        step: Scalar integer, the training step.
        batch: ``boxes`` (B, M, 4) and optionally ``image_id`` (B,). With ids, an image gets the same numbers in any
            batch and on any replica. Without ids, its position in the batch replaces the id.

    Returns:
        The random numbers, (B, R) float32 in [0, 1).
    """
    image_ids = batch["image_id"] if "image_id" in batch else tf.range(tf.shape(batch["boxes"])[0])
    return per_image_uniform(size, seed, step, image_ids)


@keras.saving.register_keras_serializable(package="kerasdet")
class BalancedSampler(ConfigFromInit):
    """Samples candidates of each image; at most a given fraction of them is positive (Fast R-CNN, section 2.3).

    Candidates are the anchors of an RPN or the proposals of an R-CNN.

    Args:
        samples_per_image: Maximum number of candidates per image to train on.
        positive_fraction: Largest fraction of `samples_per_image` that positives may take, in (0, 1]. Negatives fill
            the rest.

    Raises:
        ValueError: If `samples_per_image` is not a positive integer, `positive_fraction` is outside [0, 1], or their
            product is below 1, so that no positive would be sampled.
    """

    def __init__(self, samples_per_image: int = 256, positive_fraction: float = 0.5):
        check_numbers("BalancedSampler", 0, 1, positive_fraction=positive_fraction)
        check_positive("BalancedSampler", samples_per_image=samples_per_image)
        if int(samples_per_image * positive_fraction) < 1:
            raise ValueError(
                f"BalancedSampler: samples_per_image={samples_per_image} with positive_fraction={positive_fraction} "
                "leaves no room for positives: increase samples_per_image or positive_fraction, so that their product "
                "is 1 or more."
            )
        self.samples_per_image = samples_per_image
        self.positive_fraction = positive_fraction

    @property
    def max_positives(self) -> int:
        """Maximum number of positives per image: the product of the two arguments, rounded down."""
        return int(self.samples_per_image * self.positive_fraction)

    def __call__(self, matched_gt: tf.Tensor, priority: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Samples the candidates of each image to train on.

        Args:
            matched_gt: (B, R) int32 from a matcher: the index of each candidate's object, negative for candidates
                without an object. Candidates marked `IGNORE` are never sampled.
            priority: (B, R) float from `sampling_priority`. The positives and the negatives with the highest priorities
                are sampled.

        Returns:
            Two masks (B, R) bool: the sampled positives and the sampled negatives.
        """
        positive = _highest(matched_gt >= 0, priority, tf.minimum(self.max_positives, tf.shape(matched_gt)[1]))
        room = self.samples_per_image - tf.reduce_sum(tf.cast(positive, tf.int32), 1)  # (B,)
        return positive, _highest(matched_gt == NEGATIVE, priority, room)


def _highest(candidates, priority, count):
    """Marks the candidates with the highest priorities, (B, R) bool: `count` of each image, a scalar or (B,)."""
    rank = tf.argsort(tf.argsort(tf.where(candidates, priority, -1.0), direction="DESCENDING"))
    return candidates & (rank < tf.reshape(count, [-1, 1]))
