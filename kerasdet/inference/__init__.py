"""Turns images into detections: preprocessing, `Detections` and predictors."""

from kerasdet.inference.detections import Detections
from kerasdet.inference.predictor import Predictor
from kerasdet.inference.preprocessing import KeepSize, Preprocessing, open_images
from kerasdet.inference.tta import AugmentedPredictor

__all__ = ["AugmentedPredictor", "Detections", "KeepSize", "Predictor", "Preprocessing", "open_images"]
