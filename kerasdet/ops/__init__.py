"""Defines the operations of detectors, all in stock TensorFlow ops and most also as compiled ops with equal results."""

from kerasdet.ops.deform_conv import deform_conv2d
from kerasdet.ops.dispatch import implementation, static_shapes
from kerasdet.ops.masks import crops_from_runs, encode_masks, paste_masks
from kerasdet.ops.nms import nms
from kerasdet.ops.roi_align import multilevel_roi_align, roi_align
from kerasdet.ops.roi_pool import multilevel_roi_pool, roi_pool

__all__ = [
    "crops_from_runs",
    "deform_conv2d",
    "encode_masks",
    "implementation",
    "multilevel_roi_align",
    "multilevel_roi_pool",
    "nms",
    "paste_masks",
    "roi_align",
    "roi_pool",
    "static_shapes",
]
