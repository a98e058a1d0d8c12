"""The model garden."""

from kerasdet.models.detector import Detector
from kerasdet.models.preprocess import Preprocessing
from kerasdet.models.retinanet import RetinaNet

__all__ = ["Detector", "Preprocessing", "RetinaNet"]
