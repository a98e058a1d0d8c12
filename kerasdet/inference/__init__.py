"""Turns images and videos into detections: preprocessing, `Detections`, predictors, tiles and tracking."""

from kerasdet.inference.detections import Detections
from kerasdet.inference.images import open_images
from kerasdet.inference.predictor import Predictor
from kerasdet.inference.preprocessing import KeepSize, Preprocessing
from kerasdet.inference.tiles import TiledPredictor
from kerasdet.inference.tracking import Tracker
from kerasdet.inference.tta import AugmentedPredictor
from kerasdet.inference.video import VideoReader, VideoWriter

__all__ = [
    "AugmentedPredictor",
    "Detections",
    "KeepSize",
    "Predictor",
    "Preprocessing",
    "TiledPredictor",
    "Tracker",
    "VideoReader",
    "VideoWriter",
    "open_images",
]
