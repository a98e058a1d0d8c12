"""Groups the options of `train` in classes that gin can configure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kerasdet import evaluation
from kerasdet.arguments import check_positive
from kerasdet.errors import UserError


@dataclass(frozen=True)
class Validation:
    """Configures evaluation during training: data, interval, the metric of the best model and early stopping.

    Args:
        data: Dataset to evaluate on.
        evaluate: Function ``evaluate(model, data)`` that returns an object with ``summary``, a dict of numbers by name.
            `kerasdet.evaluate` measures COCO AP. The losses on `data` are always measured as well.
        every: Number of epochs between two evaluations. A run always evaluates after its last step.
        monitor: Name of the number that decides which model is best, such as "AP50", "segm/AP" or "val_loss". None
            takes the first number of the summary.
        patience: Number of evaluations in a row without a better `monitor` after which training stops. None never
            stops early.

    Raises:
        UserError: If there is no data, or a count is not a positive integer.
    """

    data: Any
    evaluate: Callable = evaluation.evaluate
    every: int = 1
    monitor: str | None = None
    patience: int | None = None

    def __post_init__(self):
        if self.data is None:
            raise UserError(
                "Validation.data is None: give a dataset, or set train.validation to None to train without validation."
            )
        check_positive("Validation", every=self.every, patience=self.patience)


@dataclass(frozen=True)
class Checkpointing:
    """Configures checkpoints: how often a run saves its state, and how many files it keeps.

    Args:
        steps_per_epoch: Number of steps between two checkpoints, which is the length of an epoch. None takes one pass
            over the data.
        max_to_keep: Number of the latest checkpoints that stay on disk.

    Raises:
        UserError: If a count is not a positive integer.
    """

    steps_per_epoch: int | None = None
    max_to_keep: int = 3

    def __post_init__(self):
        check_positive("Checkpointing", steps_per_epoch=self.steps_per_epoch, max_to_keep=self.max_to_keep)


@dataclass(frozen=True)
class StepOptions:
    """Configures a training step: padding, number of micro-batches and compilation.

    Args:
        pad_to: Height and width in pixels to which every batch is padded. None pads each batch to its largest image.
        max_boxes: Number of objects to which every image is padded. None pads to the most objects in a batch.
        micro_batches: Number of parts into which a replica splits its images. The parts run one after the other, which
            saves memory, and the step applies the mean of their gradients. Each part divides its losses by its own
            number of objects, so results differ slightly from those of one large batch.
        jit_compile: Whether XLA compiles the step. Needs `pad_to`, `max_boxes` and a single replica.

    Raises:
        UserError: If a count is not a positive integer, or `jit_compile` is set without `pad_to` and `max_boxes`.
    """

    pad_to: tuple[int, int] | None = None
    max_boxes: int | None = None
    micro_batches: int = 1
    jit_compile: bool = False

    def __post_init__(self):
        check_positive("StepOptions", max_boxes=self.max_boxes, micro_batches=self.micro_batches)
        if self.jit_compile and (self.pad_to is None or self.max_boxes is None):
            raise UserError(
                "StepOptions.jit_compile needs batches of a constant shape: set StepOptions.pad_to and "
                "StepOptions.max_boxes."
            )
