"""Training."""

from kerasdet.training.optimizer import SGD
from kerasdet.training.schedules import WarmupCosine, WarmupMultiStep
from kerasdet.training.strategy import make_strategy
from kerasdet.training.train import train

__all__ = ["SGD", "WarmupCosine", "WarmupMultiStep", "make_strategy", "train"]
