"""Defines detection models and their parts."""

from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.models.branch import Branch
from kerasdet.models.detector import Detector
from kerasdet.models.dynamic_mask_branch import DynamicMaskBranch
from kerasdet.models.fcos import FCOS, Centerness
from kerasdet.models.keypoint_branch import KeypointBranch
from kerasdet.models.mask_branch import MaskBranch
from kerasdet.models.proposal_network import ProposalNetwork
from kerasdet.models.rcnn import FasterRCNN, KeypointRCNN, MaskRCNN
from kerasdet.models.retinanet import RetinaNet
from kerasdet.models.roi_heads import RoIHeads
from kerasdet.models.rpn import RPN, ProposalSelection
from kerasdet.models.rtmdet import RTMDet, RTMDetIns
from kerasdet.models.ssd import SSD

__all__ = [
    "FCOS",
    "RPN",
    "SSD",
    "Branch",
    "Centerness",
    "Detector",
    "DynamicMaskBranch",
    "FasterRCNN",
    "KeypointBranch",
    "KeypointRCNN",
    "MaskBranch",
    "MaskRCNN",
    "Preprocessing",
    "ProposalNetwork",
    "ProposalSelection",
    "RTMDet",
    "RTMDetIns",
    "RetinaNet",
    "RoIHeads",
]
