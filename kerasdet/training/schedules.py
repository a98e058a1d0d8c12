"""Defines learning rate schedules: a warmup, then decay at milestones, a cosine, or a constant rate and a cosine.

The schedules compute in float64, because in float32 step counts beyond 2**24 and `1 + cos` near the end of training
lose digits.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import keras
import tensorflow as tf
from keras import ops

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError

WARMUPS = ("linear", "constant")


def _check_warmup(owner, warmup_steps, warmup, warmup_factor, **rates):
    check_numbers(owner, 0, **rates)
    check_numbers(owner, 0, 1, warmup_factor=warmup_factor)
    if warmup not in WARMUPS:
        raise UserError(f"{owner}.warmup is {warmup!r}: choose one of {', '.join(map(repr, WARMUPS))}.")
    if warmup_steps < 0:
        raise UserError(f"{owner}.warmup_steps is {warmup_steps}: expected 0 (no warmup) or more.")


def _warmup_scale(step, warmup_steps, warmup_factor, warmup):
    """Returns the warmup factor: it rises from `warmup_factor` at step 0 to 1 at `warmup_steps`, then stays 1."""
    progress = step / max(warmup_steps, 1) if warmup == "linear" else ops.zeros_like(step)
    return ops.where(step < warmup_steps, warmup_factor + (1.0 - warmup_factor) * progress, ops.ones_like(step))


@keras.saving.register_keras_serializable(package="kerasdet")
class WarmupMultiStep(keras.optimizers.schedules.LearningRateSchedule):
    """Warms up, then multiplies the learning rate by `gamma` at every milestone (detectron2's WarmupMultiStepLR).

    Args:
        base_lr: Learning rate between the warmup and the first milestone.
        milestones: Ascending steps. From step `milestones[i]` on, the rate has been multiplied i + 1 times.
        gamma: Factor by which the learning rate is multiplied at each milestone.
        warmup_steps: Number of steps until the rate reaches `base_lr`. 0: no warmup.
        warmup_factor: Learning rate at step 0, as a fraction of `base_lr`, in [0, 1].
        warmup: "linear" increases the factor linearly to 1, "constant" keeps `warmup_factor` until the warmup ends.

    Raises:
        UserError: If the milestones do not ascend, the warmup is unknown, or another argument is out of range.
    """

    def __init__(
        self,
        base_lr: float,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_steps: int = 1000,
        warmup_factor: float = 1e-3,
        warmup: str = "linear",
    ):
        super().__init__()
        if any(later <= earlier for earlier, later in pairwise(milestones)):
            raise UserError(
                f"WarmupMultiStep.milestones are {list(milestones)}: expected ascending steps without repetitions."
            )
        check_positive("WarmupMultiStep", **{f"milestones[{i}]": step for i, step in enumerate(milestones)})
        _check_warmup("WarmupMultiStep", warmup_steps, warmup, warmup_factor, base_lr=base_lr, gamma=gamma)
        self.base_lr = base_lr
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.warmup = warmup

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of the training step `step`, counted from 0, as a scalar tensor."""
        step = ops.cast(step, "float64")
        lr = self.base_lr * _warmup_scale(step, self.warmup_steps, self.warmup_factor, self.warmup)
        for milestone in self.milestones:
            lr = ops.where(step >= milestone, lr * self.gamma, lr)
        return ops.cast(lr, keras.config.floatx())

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {
            "base_lr": self.base_lr,
            "milestones": self.milestones,
            "gamma": self.gamma,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
            "warmup": self.warmup,
        }


@keras.saving.register_keras_serializable(package="kerasdet")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Decays along half a cosine over the whole training, times a warmup factor (detectron2's WarmupCosineLR).

    The cosine starts at step 0, not at the end of the warmup. With a warmup, the highest rate is thus below `base_lr`.

    Args:
        base_lr: Learning rate at the top of the cosine, which is step 0.
        total_steps: Step at which the rate reaches `final_lr`; the rate is constant afterwards.
        warmup_steps: Number of steps until the warmup is complete. 0: no warmup.
        warmup_factor: Warmup factor at step 0, in [0, 1].
        warmup: "linear" increases the factor linearly to 1, "constant" keeps `warmup_factor` until the warmup ends.
        final_lr: Learning rate at the bottom of the cosine.

    Raises:
        UserError: If `total_steps` is not positive, the warmup is unknown, or another argument is out of range.
    """

    def __init__(
        self,
        base_lr: float,
        total_steps: int,
        warmup_steps: int = 1000,
        warmup_factor: float = 1e-3,
        warmup: str = "linear",
        final_lr: float = 0.0,
    ):
        super().__init__()
        if total_steps <= 0:
            raise UserError(f"WarmupCosine.total_steps is {total_steps}: expected 1 or more.")
        _check_warmup("WarmupCosine", warmup_steps, warmup, warmup_factor, base_lr=base_lr, final_lr=final_lr)
        self.base_lr = base_lr
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.warmup = warmup
        self.final_lr = final_lr

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of the training step `step`, counted from 0, as a scalar tensor."""
        step = ops.cast(step, "float64")
        progress = ops.minimum(step / self.total_steps, ops.ones_like(step))
        cosine = 0.5 * (1.0 + ops.cos(math.pi * progress))
        lr = self.final_lr + (self.base_lr - self.final_lr) * cosine
        lr = lr * _warmup_scale(step, self.warmup_steps, self.warmup_factor, self.warmup)
        return ops.cast(lr, keras.config.floatx())

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {
            "base_lr": self.base_lr,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
            "warmup": self.warmup,
            "final_lr": self.final_lr,
        }


@keras.saving.register_keras_serializable(package="kerasdet")
class WarmupFlatCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Warms up, keeps a constant rate, then decays along half a cosine (RTMDet, https://arxiv.org/abs/2212.07784).

    Args:
        base_lr: Learning rate between the warmup and the cosine.
        total_steps: Step at which the rate reaches `final_lr`; the rate is constant afterwards.
        flat_steps: Step at which the cosine begins. None: half of `total_steps`.
        warmup_steps: Number of steps of the warmup; its last step has `base_lr`, as in mmengine's LinearLR. 0: no
            warmup.
        warmup_factor: Learning rate at step 0, as a fraction of `base_lr`, in [0, 1].
        final_lr: Learning rate at the end. None: a twentieth of `base_lr`.

    Raises:
        UserError: If `flat_steps` is not below `total_steps`, or another argument is out of range.
    """

    def __init__(
        self,
        base_lr: float,
        total_steps: int,
        flat_steps: int | None = None,
        warmup_steps: int = 1000,
        warmup_factor: float = 1e-5,
        final_lr: float | None = None,
    ):
        super().__init__()
        flat = total_steps // 2 if flat_steps is None else flat_steps
        _check_warmup("WarmupFlatCosine", warmup_steps, "linear", warmup_factor, base_lr=base_lr, final_lr=final_lr)
        if not 0 <= flat < total_steps:
            raise UserError(
                f"WarmupFlatCosine.flat_steps is {flat}, but total_steps is {total_steps}: expected 0 <= flat_steps < "
                "total_steps, because the cosine begins at flat_steps and ends at total_steps."
            )
        self.base_lr = base_lr
        self.total_steps = total_steps
        self.flat_steps = flat_steps
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.final_lr = final_lr

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of the training step `step`, counted from 0, as a scalar tensor."""
        step = ops.cast(step, "float64")
        start = self.total_steps // 2 if self.flat_steps is None else self.flat_steps
        final_lr = self.base_lr / 20 if self.final_lr is None else self.final_lr
        progress = ops.clip((step - start) / (self.total_steps - start), 0.0, 1.0)
        lr = final_lr + (self.base_lr - final_lr) * 0.5 * (1.0 + ops.cos(math.pi * progress))
        lr = lr * _warmup_scale(step, self.warmup_steps - 1, self.warmup_factor, "linear")
        return ops.cast(lr, keras.config.floatx())

    def get_config(self) -> dict:
        """Returns the constructor arguments."""
        return {
            "base_lr": self.base_lr,
            "total_steps": self.total_steps,
            "flat_steps": self.flat_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
            "final_lr": self.final_lr,
        }
