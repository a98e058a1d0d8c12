"""Trains detectors: `train`, its options, optimizers, schedules and strategies."""

from kerasdet.training.loggers import MLflowLogger, WandbLogger
from kerasdet.training.optimizer import SGD, AdamW
from kerasdet.training.options import Checkpointing, StepOptions, Validation
from kerasdet.training.schedules import WarmupCosine, WarmupFlatCosine, WarmupMultiStep
from kerasdet.training.strategy import make_strategy
from kerasdet.training.train import train
from kerasdet.training.workers import run_workers

__all__ = [
    "SGD",
    "AdamW",
    "Checkpointing",
    "MLflowLogger",
    "StepOptions",
    "Validation",
    "WandbLogger",
    "WarmupCosine",
    "WarmupFlatCosine",
    "WarmupMultiStep",
    "make_strategy",
    "run_workers",
    "train",
]
