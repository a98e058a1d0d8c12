"""Generates SSD's default boxes (anchors whose sizes are fractions of the image size), and matches them to objects."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.matching import IGNORE, NEGATIVE, ignore_mask, valid_gt_mask
from kerasdet.keras_utils import ConfigFromInit, float_dtype


@keras.saving.register_keras_serializable(package="kerasdet")
class DefaultBoxes(ConfigFromInit):
    """Generates the default boxes of every cell of every level (SSD, https://arxiv.org/abs/1512.02325, section 2.2).

    A cell has a square with the level's scale as side, a square whose side is the geometric mean of this and the next
    level's scale, and two boxes for each aspect ratio. The defaults are those of SSD300. On an image that is not
    square, the boxes are stretched with the image.

    Args:
        scales: Side of each level's square, as a fraction of the image's side, finest level first. One more entry at
            the end serves as the next level's scale for the coarsest level.
        aspect_ratios: For each level, the ratios of the long to the short side; each ratio gives a wide and a tall box.
        levels: Names of the levels, finest first.
        strides: Distance between neighbouring cells of each level, in pixels. None: the cells divide the image evenly.

    Raises:
        UserError: If the numbers of scales, aspect ratios and strides do not match the number of levels.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        aspect_ratios: Sequence[Sequence[float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        levels: Sequence[str] = ("p3", "p4", "p5", "p6", "p7", "p8"),
        strides: Sequence[float] | None = (8, 16, 32, 64, 100, 300),
    ):
        count = len(levels)
        for name, values, expected in (
            ("scales", scales, count + 1),
            ("aspect_ratios", aspect_ratios, count),
            ("strides", strides, count),
        ):
            if values is not None and len(values) != expected:
                raise UserError(
                    f"DefaultBoxes.{name} has {len(values)} entries: expected {expected} for {count} levels "
                    f"({', '.join(levels)}). Pass one entry per level, and one more for scales."
                )
        self.scales = tuple(scales)
        self.aspect_ratios = tuple(tuple(ratios) for ratios in aspect_ratios)
        self.levels = tuple(levels)
        self.strides = None if strides is None else tuple(strides)

    @property
    def num_anchors(self) -> tuple[int, ...]:
        """Number of default boxes per cell of each level, finest level first."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    def cell_sizes(self, level: str) -> np.ndarray:
        """Returns the sizes of the default boxes of a cell.

        Args:
            level: Name of the pyramid level, such as "p3".

        Returns:
            The sizes of the level's A boxes per cell, (A, 2) float32: heights and widths as fractions of the image's
            height and width, at most 1. The two squares come first, then a wide and a tall box for each aspect ratio.

        Raises:
            ValueError: If `levels` does not contain the level.
        """
        index = self.levels.index(level)
        scale, between = self.scales[index], (self.scales[index] * self.scales[index + 1]) ** 0.5
        sizes = [(scale, scale), (between, between)]
        for ratio in self.aspect_ratios[index]:
            long, short = scale * ratio**0.5, scale / ratio**0.5
            sizes += [(short, long), (long, short)]
        return np.clip(np.float32(sizes), 0, 1)

    def __call__(self, grids: Mapping[str, tuple], image_size: tuple) -> dict[str, tf.Tensor]:
        """Generates the default boxes of all levels.

        Args:
            grids: Maps level names to the (height, width) of the level's feature map in cells, as ints or scalar
                integer tensors.
            image_size: (height, width) of the padded network input in pixels.

        Returns:
            A dict from level name to boxes (height * width * A, 4) float32 yxyx, in pixels of the network's input. A is
            the number of default boxes per cell of the level. Cells are in row-major order.
        """
        return {level: self._level_boxes(level, grids[level], image_size) for level in self.levels}

    def _level_boxes(self, level, grid, image_size):
        image_size = tf.cast(tf.stack(image_size), float_dtype())  # (2,)
        cells = tf.cast(tf.stack(grid), float_dtype())
        if self.strides is not None:
            cells = image_size / self.strides[self.levels.index(level)]
        # Fractions of the image
        y, x = ((tf.range(count, dtype=float_dtype()) + 0.5) / cells[axis] for axis, count in enumerate(grid))
        center = tf.reshape(tf.stack(tf.meshgrid(y, x, indexing="ij"), -1), [-1, 1, 2])  # (H * W, 1, 2)
        half = 0.5 * tf.constant(self.cell_sizes(level), float_dtype())  # (A, 2)
        boxes = tf.concat([(center - half) * image_size, (center + half) * image_size], -1)  # (H * W, A, 4)
        return tf.reshape(boxes, [-1, 4])


@keras.saving.register_keras_serializable(package="kerasdet")
class SSDMatcher(ConfigFromInit):
    """Matches default boxes to ground truth (SSD, https://arxiv.org/abs/1512.02325, section 2.2).

    Each object is matched to the default box with the highest IoU; if several objects have the same best box, it is
    matched to the last of these objects. Every other box is matched to the object with the highest IoU, if that is at
    least `foreground_iou`.

    Args:
        foreground_iou: Boxes whose highest IoU with an object is at least this are positive. In [0, 1].
        ignore_crowd_iof: Boxes with more than this fraction of their area inside a crowd are ignored, except the best
            boxes of objects. In [0, 1]. None: crowds have no effect, so boxes inside them are negative.

    Raises:
        UserError: If a threshold is outside [0, 1].
    """

    def __init__(self, foreground_iou: float = 0.5, ignore_crowd_iof: float | None = None):
        check_numbers("SSDMatcher", 0, 1, foreground_iou=foreground_iou, ignore_crowd_iof=ignore_crowd_iof)
        self.foreground_iou = foreground_iou
        self.ignore_crowd_iof = ignore_crowd_iof

    def __call__(self, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches the default boxes of a batch.

        Args:
            anchors: (R, 4) yxyx in pixels.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M).

        Returns:
            The matches, (B, R) int32: an index into the image's ground truth, `NEGATIVE` (-1) or `IGNORE` (-2).
        """
        valid = tf.pad(valid_gt_mask(batch), [[0, 0], [0, 1]])  # one object that matches nothing, so that M may be 0
        gt_boxes = tf.pad(batch["boxes"], [[0, 0], [0, 1], [0, 0]])
        overlap = tf.where(valid[:, None], box_ops.iou(anchors, gt_boxes), -1.0)  # (B, R, M + 1)
        best_gt = tf.argmax(overlap, -1, output_type=tf.int32)  # (B, R)
        matched = tf.where(tf.reduce_max(overlap, -1) >= self.foreground_iou, best_gt, NEGATIVE)
        ignored = ignore_mask(anchors, batch, self.ignore_crowd_iof)
        if ignored is not None:
            matched = tf.where(ignored, IGNORE, matched)
        own_box = tf.argmax(overlap, 1, output_type=tf.int32)  # (B, M + 1), the first of equally good boxes
        owned = (own_box[:, None] == tf.range(tf.shape(overlap)[1])[:, None]) & valid[:, None]  # (B, R, M + 1)
        owner = tf.reduce_max(tf.where(owned, tf.range(tf.shape(overlap)[2]), NEGATIVE), -1)  # (B, R)
        return tf.where(owner >= 0, owner, matched)
