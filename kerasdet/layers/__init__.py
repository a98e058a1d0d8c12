"""Building blocks of the networks."""

from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.fpn import FPN, ConvTop, MaxPoolTop
from kerasdet.layers.heads import RetinaNetHead, Tower
from kerasdet.layers.norm import NORMS, BatchNorm, make_norm
from kerasdet.layers.resnet import ResNet

__all__ = [
    "FPN",
    "NORMS",
    "BatchNorm",
    "ConvNorm",
    "ConvTop",
    "MaxPoolTop",
    "ResNet",
    "RetinaNetHead",
    "Tower",
    "make_norm",
]
