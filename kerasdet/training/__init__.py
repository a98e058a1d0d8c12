"""Trains detectors: `train`, its options, optimizers, schedules and strategies."""

from kerasdet.training.loggers import MLflowLogger, WandbLogger
from kerasdet.training.optimizer import SGD
from kerasdet.training.options import Checkpointing, StepOptions, Validation
from kerasdet.training.schedules import WarmupCosine, WarmupMultiStep
from kerasdet.training.strategy import make_strategy
from kerasdet.training.train import train
from kerasdet.training.workers import run_workers

__all__ = [
    "SGD",
    "Checkpointing",
    "MLflowLogger",
    "StepOptions",
    "Validation",
    "WandbLogger",
    "WarmupCosine",
    "WarmupMultiStep",
    "make_strategy",
    "run_workers",
    "train",
]
