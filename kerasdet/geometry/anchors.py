"""Generates the anchor boxes of a feature pyramid.

A pyramid level is named after its nominal stride: ``p3`` has a stride of 2**3 pixels. The anchors of a level are in
row-major order of cells. Within a cell they follow `AnchorGenerator.cell_anchors`.
"""

import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit, float_dtype


def level_number(name: str) -> int:
    """Returns the number in the name of a feature or level: 5 for "c5", "p5" and "c5_first".

    Args:
        name: Name of a feature or level with a stride of ``2**l`` pixels: a letter, the number l, and optionally a
            suffix.
    """
    return int(re.match(r"[a-z](\d+)", name)[1])


def octave_sizes(smallest: float = 32.0, octaves: int = 3, levels: int = 5) -> tuple[tuple[float, ...], ...]:
    """Computes the sizes of RetinaNet's anchors.

    Args:
        smallest: Edge length of the finest level's smallest anchor, in pixels.
        octaves: Number of sizes on each level. Each size is ``2 ** (1 / octaves)`` times the previous one.
        levels: Number of levels; sizes double from one level to the next.

    Returns:
        One tuple of `octaves` edge lengths in pixels for each of `levels` levels.
    """
    return tuple(
        tuple(smallest * 2**level * 2 ** (octave / octaves) for octave in range(octaves)) for level in range(levels)
    )


def point_squares(levels: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"), offset: float = 0.5) -> "AnchorGenerator":
    """Makes an `AnchorGenerator` for anchor-free detectors: one square per cell, centred on the cell's point.

    FCOS and RTMDet predict for points. kerasdet passes a point to matchers and coders as a square: its centre is the
    point, its side is the stride of the level.

    Args:
        levels: Names of the pyramid levels, finest first.
        offset: Position of a point in its cell, in strides: 0.5 is the centre (FCOS), 0 the top-left corner (RTMDet).

    Returns:
        An `AnchorGenerator` with one square per cell.
    """
    sizes = tuple((2 ** level_number(level),) for level in levels)
    return AnchorGenerator(sizes, aspect_ratios=(1.0,), levels=levels, offset=offset)


@keras.saving.register_keras_serializable(package="kerasdet")
class AnchorGenerator(ConfigFromInit):
    """Generates the anchors of every cell of every level (Faster R-CNN, https://arxiv.org/abs/1506.01497).

    Args:
        sizes: Edge lengths of the square anchors in pixels, one tuple per level. Anchors with other aspect ratios have
            the same areas.
        aspect_ratios: Height over width of the anchors: one tuple for all levels, or one per level.
        levels: Names of the pyramid levels, finest first.
        offset: Position of an anchor's centre in its cell, in strides: 0 is the top-left corner (detectron2,
            torchvision), 0.5 the centre of the cell.
        round_corners: Whether the corners of a cell's anchors are rounded to integers, as in torchvision.
        ratios_first: Whether the anchors of a cell are ordered by ratio, then size (torchvision). If False they are
            ordered by size, then ratio (detectron2).
        strides_from_image: Whether the stride of a level is image size // grid size (torchvision). If False it is the
            nominal stride, such as 8 for "p3". The two differ if the size of the padded image is not a multiple of the
            coarsest stride.

    Raises:
        ValueError: If `sizes`, `aspect_ratios` and `levels` have different lengths.
        UserError: If a level has no sizes or aspect ratios, one that is not above 0, or a number in place of a tuple.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = octave_sizes(),
        aspect_ratios: Sequence = (0.5, 1.0, 2.0),
        levels: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
        offset: float = 0.0,
        round_corners: bool = False,
        ratios_first: bool = False,
        strides_from_image: bool = False,
    ):
        if not aspect_ratios or not isinstance(aspect_ratios[0], Sequence):
            aspect_ratios = [aspect_ratios] * len(levels)
        if not len(sizes) == len(aspect_ratios) == len(levels):
            raise ValueError(
                f"AnchorGenerator needs sizes and aspect ratios for each of its {len(levels)} levels {tuple(levels)}, "
                f"but got {len(sizes)} tuples of sizes and {len(aspect_ratios)} tuples of aspect ratios. Pass one "
                "tuple of each per level."
            )
        for name, levels_of in (("sizes", sizes), ("aspect_ratios", aspect_ratios)):
            for numbers in levels_of:
                if not np.ndim(numbers):
                    raise UserError(
                        f"AnchorGenerator.{name} has {numbers!r} for a level: expected a tuple of numbers. Write "
                        f"({numbers!r},)."
                    )
                check_numbers("AnchorGenerator", 0, **{name: numbers})
                if not numbers or not min(numbers):
                    raise UserError(f"AnchorGenerator.{name} has {numbers!r} for a level: expected numbers above 0.")
        self.sizes = tuple(tuple(level) for level in sizes)
        self.aspect_ratios = tuple(tuple(level) for level in aspect_ratios)
        self.levels = tuple(levels)
        self.offset = offset
        self.round_corners = round_corners
        self.ratios_first = ratios_first
        self.strides_from_image = strides_from_image

    @property
    def num_anchors(self) -> int:
        """A, number of anchors per cell, which is the same on all levels.

        Raises:
            ValueError: If the levels have different numbers of anchors per cell; one head predicts for all levels.
        """
        counts = {len(s) * len(r) for s, r in zip(self.sizes, self.aspect_ratios, strict=True)}
        if len(counts) != 1:
            raise ValueError(
                f"AnchorGenerator has {sorted(counts)} anchors per cell on its levels: expected the same number on "
                "every level. Pass the same number of sizes and of aspect ratios for each level."
            )
        return counts.pop()

    def cell_anchors(self, level: str) -> np.ndarray:
        """Returns the anchors of a single cell, centred on the origin (0, 0).

        Args:
            level: Name of the pyramid level, such as "p3".

        Returns:
            The A anchors, (A, 4) float32 yxyx in pixels of the network's input, in the order of `ratios_first`.

        Raises:
            ValueError: If `levels` does not contain the level.
        """
        index = self.levels.index(level)
        sizes, ratios = np.array(self.sizes[index]), np.sqrt(np.array(self.aspect_ratios[index]))
        height, width = np.outer(sizes, ratios), np.outer(sizes, 1 / ratios)  # (sizes, ratios)
        if self.ratios_first:
            height, width = height.T, width.T
        height, width = height.reshape(-1) / 2, width.reshape(-1) / 2
        anchors = np.stack([-height, -width, height, width], -1).astype(np.float32)
        return np.round(anchors) if self.round_corners else anchors

    def __call__(self, grids: Mapping[str, tuple], image_size: tuple) -> dict[str, tf.Tensor]:
        """Generates the anchors of all levels.

        Args:
            grids: Maps level names to the (height, width) of the level's feature map in cells, as ints or scalar
                integer tensors.
            image_size: (height, width) of the padded network input in pixels.

        Returns:
            A dict from level name to boxes (height * width * A, 4) float32 yxyx, in pixels of the network's input. A is
            the number of anchors per cell.
        """
        return {level: self._level_anchors(level, grids[level], image_size) for level in self.levels}

    def _level_anchors(self, level, grid, image_size):
        nominal = 2 ** level_number(level)
        strides = [i // g if self.strides_from_image else nominal for i, g in zip(image_size, grid, strict=True)]
        y, x = (
            (tf.range(cells, dtype=float_dtype()) + self.offset) * tf.cast(stride, float_dtype())
            for cells, stride in zip(grid, strides, strict=True)
        )
        y, x = tf.meshgrid(y, x, indexing="ij")  # (H, W) each
        shifts = tf.reshape(tf.stack([y, x, y, x], -1), [-1, 1, 4])  # (H * W, 1, 4)
        return tf.reshape(shifts + tf.constant(self.cell_anchors(level), float_dtype()), [-1, 4])  # (H * W * A, 4)
