"""Checkpoints of torchvision, detectron2 and mmdetection, read without torch."""

from kerasdet.checkpoints.convert import to_model
from kerasdet.checkpoints.read import read
from kerasdet.checkpoints.sources import SOURCES
from kerasdet.checkpoints.verify import verify

__all__ = ["SOURCES", "read", "to_model", "verify"]
