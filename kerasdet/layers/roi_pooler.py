"""Pools the features of regions from a feature pyramid."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet import ops
from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import level_number
from kerasdet.keras_utils import ConfigFromInit

POOLING_METHODS = ("roi_align", "roi_pool")


@keras.saving.register_keras_serializable(package="kerasdet")
class RoIPooler(ConfigFromInit):
    """Pools the features of each region from the pyramid level that suits its size (https://arxiv.org/abs/1612.03144).

    Args:
        output_size: Side S of the pooled features, in cells.
        method: "roi_align" interpolates features at sample points and averages them (Mask R-CNN); "roi_pool" takes the
            maximum over cells (Fast R-CNN).
        sampling_ratio: Number of samples per output cell along each axis. 0: the number of feature map cells that an
            output cell covers along the axis, rounded up. Only "roi_align" uses it.
        aligned: Whether the centre of a feature map's first cell is at coordinate 0.5 (detectron2, mmdetection). If
            False it is at 0, and regions are at least one cell high and wide (torchvision). Only "roi_align" uses it.
        level_epsilon: Constant added to a region's fractional level before it is rounded down; torchvision adds 1e-6.

    Raises:
        UserError: If `method` is unknown, `output_size` is not a positive integer, or `sampling_ratio` is negative.
    """

    def __init__(
        self,
        output_size: int = 7,
        method: str = "roi_align",
        sampling_ratio: int = 0,
        aligned: bool = True,
        level_epsilon: float = 0.0,
    ):
        if method not in POOLING_METHODS:
            raise UserError(f"RoIPooler.method is {method!r}: choose 'roi_align' or 'roi_pool'.")
        check_positive("RoIPooler", output_size=output_size)
        check_numbers("RoIPooler", 0, sampling_ratio=sampling_ratio)
        self.output_size = output_size
        self.method = method
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.level_epsilon = level_epsilon

    def __call__(self, pyramid: Mapping[str, tf.Tensor], rois: tf.Tensor, output_size: int | None = None) -> tf.Tensor:
        """Pools the features of regions.

        Args:
            pyramid: Features (B, h, w, C) by level name, such as "p2", "p3", "p4". Level numbers must have no gap. If
                several levels have the same number, such as "p5_first" and "p5", only the first is used, as in
                torchvision.
            rois: (B, P, 4) yxyx in pixels of the network's input.
            output_size: Side S of the pooled features, in cells. None: `output_size` of the pooler.

        Returns:
            Pooled features (B * P, S, S, C).

        Raises:
            ValueError: If the level numbers have a gap.
        """
        size = output_size or self.output_size
        maps = {}
        for name, x in pyramid.items():
            maps.setdefault(f"p{level_number(name)}", x)
        options = {"output_size": size, "level_epsilon": self.level_epsilon}
        if self.method == "roi_pool":
            pooled = ops.multilevel_roi_pool(maps, rois, **options)  # (B, P, S, S, C)
        else:
            pooled = ops.multilevel_roi_align(
                maps, rois, sampling_ratio=self.sampling_ratio, aligned=self.aligned, **options
            )  # (B, P, S, S, C)
        channels = next(iter(pyramid.values())).shape[-1]
        return tf.reshape(pooled, [-1, size, size, channels])
