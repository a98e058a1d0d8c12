"""Training."""

from kerasdet.training.optimizer import SGD
from kerasdet.training.schedules import WarmupCosine, WarmupMultiStep
from kerasdet.training.strategy import make_strategy
from kerasdet.training.train import train
from kerasdet.training.workers import run_workers

__all__ = ["SGD", "WarmupCosine", "WarmupMultiStep", "make_strategy", "run_workers", "train"]
