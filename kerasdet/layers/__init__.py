"""Defines layers and networks that detectors are built from."""

from kerasdet.layers.backbone import Backbone
from kerasdet.layers.conv import ConvNorm, DepthwiseConvNorm
from kerasdet.layers.cspnext import CSPLayer, CSPNeXt
from kerasdet.layers.cspnext_pafpn import CSPNeXtPAFPN
from kerasdet.layers.deform import DeformConvNorm
from kerasdet.layers.fcos_head import FCOSHead
from kerasdet.layers.fpn import FPN, ConvTop, MaxPoolTop
from kerasdet.layers.heads import Tower
from kerasdet.layers.keras_backbones import KerasApplication, PyramidBackbone
from kerasdet.layers.mobilenet import MobileNetV3
from kerasdet.layers.norm import NORMS, BatchNorm, GroupNormalization, make_norm
from kerasdet.layers.region_heads import BoxHead, BoxPredictor, KeypointHead, MaskHead
from kerasdet.layers.resnet import ResNet
from kerasdet.layers.retinanet_head import RetinaNetHead
from kerasdet.layers.roi_pooler import RoIPooler
from kerasdet.layers.rtmdet_head import RTMDetHead
from kerasdet.layers.ssd_head import SSDHead
from kerasdet.layers.ssd_neck import SSDNeck
from kerasdet.layers.vgg import VGG

__all__ = [
    "FPN",
    "NORMS",
    "VGG",
    "Backbone",
    "BatchNorm",
    "BoxHead",
    "BoxPredictor",
    "CSPLayer",
    "CSPNeXt",
    "CSPNeXtPAFPN",
    "ConvNorm",
    "ConvTop",
    "DeformConvNorm",
    "DepthwiseConvNorm",
    "FCOSHead",
    "GroupNormalization",
    "KerasApplication",
    "KeypointHead",
    "MaskHead",
    "MaxPoolTop",
    "MobileNetV3",
    "PyramidBackbone",
    "RTMDetHead",
    "ResNet",
    "RetinaNetHead",
    "RoIPooler",
    "SSDHead",
    "SSDNeck",
    "Tower",
    "make_norm",
]
