"""Assigns boxes to the levels of a feature pyramid, by their sizes."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


def assign_levels(
    boxes: tf.Tensor, lowest: int, highest: int, canonical_size: float, canonical_level: int, epsilon: float
) -> tf.Tensor:
    """Assigns each box to the pyramid level for its size, clipped to the available levels.

    Args:
        boxes: (N, 4) yxyx in pixels.
        lowest: Number of the finest level, such as 2 for "p2".
        highest: Number of the coarsest level.
        canonical_size: Side in pixels of the smallest square box on `canonical_level`.
        canonical_level: Number of the level on which boxes of `canonical_size` are.
        epsilon: Constant added to the level before it is rounded down.

    Returns:
        The level numbers, (N,) int32 in lowest..highest.
    """
    ratio = tf.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])) / canonical_size + 1e-8
    begins = [_level_begin(level, canonical_level, epsilon) for level in range(lowest + 1, highest + 1)]
    above = tf.expand_dims(ratio, 1) >= tf.constant(begins, tf.float32, [len(begins)])  # (N, L - 1)
    return lowest + tf.reduce_sum(tf.cast(above, tf.int32), 1)


def level_numbers(pyramid: Mapping[str, tf.Tensor], op: str) -> list[int]:
    """Reads the numbers of a pyramid's levels from their names.

    Args:
        pyramid: Features by level name, such as "p2".
        op: Name of the op that pools from the pyramid, for the error message.

    Returns:
        The numbers in ascending order.

    Raises:
        ValueError: If the levels have a gap, or a name is not a letter and a number.
    """
    levels = sorted(int(name[1:]) for name in pyramid)
    if levels != list(range(levels[0], levels[-1] + 1)):
        raise ValueError(
            f"The pyramid of {op} has the levels {', '.join(sorted(pyramid))}: expected levels without a gap, such as "
            "p2, p3, p4. Pass every level between the first and the last."
        )
    return levels


def _level_begin(level, canonical_level, epsilon):
    """Returns the smallest ratio of size to canonical size at which a box belongs to `level`.

    A box is on the level ``floor(canonical_level + log2(ratio) + epsilon)``. The sum is computed in float32, as in the
    source frameworks. The logarithm is computed in float64 here: the error of TensorFlow's float32 logarithm can move
    boxes to another level.
    """
    ulps = np.arange(-64, 65) * 2.0**-24
    ratios = np.float32(2.0 ** (level - canonical_level - epsilon) * (1 + ulps))
    log2 = np.log2(ratios.astype(np.float64)).astype(np.float32)
    levels = np.floor(np.float32(canonical_level) + log2 + np.float32(epsilon))
    return ratios[levels >= level][0]
