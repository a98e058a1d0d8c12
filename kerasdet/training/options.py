"""Groups the options of `train` in classes that gin can configure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kerasdet import evaluation
from kerasdet.arguments import check_positive
from kerasdet.errors import UserError


@dataclass(frozen=True)
class Validation:
    """Configures evaluation during training: data, interval, metric of the best model and early stopping.

    Args:
        data: Dataset to evaluate on.
        evaluate: Function ``evaluate(model, data)`` that returns an object with ``summary``, a dict of metrics by name.
            `kerasdet.evaluate` measures COCO AP. The run also measures the losses on `data`, such as ``val_loss``, if
            `data` was read with all ground truth that they need, such as masks.
        every: Number of epochs (see `Checkpointing`) between two evaluations. A run always evaluates after its last
            step.
        monitor: Name of the metric that selects the best model, such as "AP50", "segm/AP" or "val_loss". Lower is
            better if the name ends in "loss", otherwise higher. None: the first metric of the summary.
        patience: Number of consecutive evaluations without improvement of `monitor` after which training stops. None:
            training never stops early.

    Raises:
        UserError: If `data` is None, or `every` or `patience` is not a positive integer.
    """

    data: Any
    evaluate: Callable = evaluation.evaluate
    every: int = 1
    monitor: str | None = None
    patience: int | None = None

    def __post_init__(self):
        if self.data is None:
            raise UserError(
                "Validation.data is None: expected a dataset. Pass one, or set train.validation=None to train "
                "without validation."
            )
        check_positive("Validation", every=self.every, patience=self.patience)


@dataclass(frozen=True)
class Checkpointing:
    """Configures checkpoints: how often a run saves its state, and how many files it keeps.

    Args:
        steps_per_epoch: Number of steps between two checkpoints, which is the length of an epoch. None: one pass over
            the data.
        max_to_keep: Number of the latest checkpoints to keep on disk.

    Raises:
        UserError: If an argument is not a positive integer.
    """

    steps_per_epoch: int | None = None
    max_to_keep: int = 3

    def __post_init__(self):
        check_positive("Checkpointing", steps_per_epoch=self.steps_per_epoch, max_to_keep=self.max_to_keep)


@dataclass(frozen=True)
class StepOptions:
    """Configures the training step: padding, micro-batches and compilation.

    Args:
        pad_to: Height and width in pixels to which every batch is padded. An image that is larger after the transforms
            raises an error. None: each batch is padded to its largest height and width, rounded up to multiples of 32.
        max_boxes: Number of objects to which every image is padded. An image with more objects raises an error. None:
            images are padded to the largest number of objects in their batch.
        micro_batches: Number of parts (micro-batches) into which a replica splits its images. The parts run one after
            the other, which saves memory, and the step applies the mean of the gradients of all parts. The losses of
            each part are normalised by the positives in the part, so results differ slightly from those of one large
            batch.
        jit_compile: Whether XLA compiles the step. Needs `pad_to`, `max_boxes` and a single replica.

    Raises:
        UserError: If a count is not a positive integer, or `jit_compile` is set without `pad_to` and `max_boxes`.
    """

    pad_to: tuple[int, int] | None = None
    max_boxes: int | None = None
    micro_batches: int = 1
    jit_compile: bool = False

    def __post_init__(self):
        if self.pad_to is not None and not (isinstance(self.pad_to, Sequence) and len(self.pad_to) == 2):
            raise UserError(f"StepOptions.pad_to is {self.pad_to!r}: expected (height, width) in pixels.")
        for side in self.pad_to or ():
            check_positive("StepOptions", pad_to=side)
        check_positive("StepOptions", max_boxes=self.max_boxes, micro_batches=self.micro_batches)
        if self.jit_compile and (self.pad_to is None or self.max_boxes is None):
            raise UserError(
                "StepOptions.jit_compile needs batches of a constant shape: set StepOptions.pad_to and "
                "StepOptions.max_boxes."
            )
