"""Object detection for TensorFlow and Keras 3."""

from kerasdet.evaluation import evaluate
from kerasdet.layers import FPN, ResNet
from kerasdet.loading import load
from kerasdet.models import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, ProposalNetwork, RetinaNet
from kerasdet.training import train

__all__ = [
    "FCOS",
    "FPN",
    "FasterRCNN",
    "KeypointRCNN",
    "MaskRCNN",
    "ProposalNetwork",
    "ResNet",
    "RetinaNet",
    "evaluate",
    "load",
    "train",
]
__version__ = "0.1.0"
