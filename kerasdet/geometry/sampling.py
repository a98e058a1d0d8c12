"""Choosing the anchors and proposals that are trained on."""

import tensorflow as tf

from kerasdet.geometry.matching import NEGATIVE


def uniform(size: tf.Tensor, seed: int, step: tf.Tensor, image_ids: tf.Tensor) -> tf.Tensor:
    """Random numbers that depend on nothing but seed, step and image, whichever batch or replica the image is in.

    Args:
        size: How many for each image, R.
        seed: Of the run.
        step: () integer.
        image_ids: (B,) integers.

    Returns:
        (B, R) float32 in [0, 1).
    """
    seed = tf.random.fold_in(tf.constant([seed, 0], tf.int32), tf.cast(step, tf.int32))

    def one_image(image_id):
        return tf.random.stateless_uniform([size], tf.random.fold_in(seed, tf.cast(image_id, tf.int32)))

    return tf.map_fn(one_image, image_ids, fn_output_signature=tf.float32)


def sample_balanced(
    matched_gt: tf.Tensor, priority: tf.Tensor, *, size: int, positive_fraction: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Picks at most `size` candidates of each image, of them at most a share of positives (Fast R-CNN, section 2.3).

    Args:
        matched_gt: (B, R) as of `kerasdet.geometry.matching`; ignored candidates are never picked.
        priority: (B, R); among candidates of a kind the highest are picked.
        size: Of the sample.
        positive_fraction: The most positives, as a share of `size`; negatives fill up the rest.

    Returns:
        Which positives and which negatives are picked, (B, R) bool each.
    """
    most_positives = tf.minimum(int(size * positive_fraction), tf.shape(matched_gt)[1])
    positive = _highest(matched_gt >= 0, priority, most_positives)
    room = size - tf.reduce_sum(tf.cast(positive, tf.int32), 1)  # (B,)
    return positive, _highest(matched_gt == NEGATIVE, priority, room)


def _highest(candidates, priority, count):
    """The `count`, () or (B,), candidates with the highest priorities, (B, R) bool."""
    rank = tf.argsort(tf.argsort(tf.where(candidates, priority, -1.0), direction="DESCENDING"))
    return candidates & (rank < tf.reshape(count, [-1, 1]))
