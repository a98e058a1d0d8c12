"""Reads checkpoints of torchvision, detectron2 and mmdetection without torch, and builds kerasdet models from them.

Example:
    >>> state = kerasdet.checkpoints.read("retinanet_resnet50_fpn_coco-eeacb38b.pth")
    >>> model = kerasdet.checkpoints.to_model(state, "torchvision/retinanet_resnet50_fpn")
"""

from kerasdet.checkpoints.convert import to_model
from kerasdet.checkpoints.read import read
from kerasdet.checkpoints.reference_outputs import verify
from kerasdet.checkpoints.sources import SOURCES

__all__ = ["SOURCES", "read", "to_model", "verify"]
