"""Evaluates a model during training, saves the best model, stops early and logs images of detections."""

import gc
import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from kerasdet import evaluation, visualize
from kerasdet.errors import UserError
from kerasdet.evaluation.metrics import PROPOSAL_SUMMARY, SUMMARIES
from kerasdet.files import replacing
from kerasdet.inference.detections import Detections
from kerasdet.training.ema import averaged_weights
from kerasdet.training.fingerprint import fingerprint
from kerasdet.training.loggers import COMPARISON
from kerasdet.training.metrics_log import RunLog
from kerasdet.training.options import Validation
from kerasdet.training.resume import save_model

log = logging.getLogger(__name__)


class Validator:
    """Evaluates a model in training, with its averaged weights if the optimizer keeps averages.

    Args:
        model: Detector in training.
        validation: Data and rules of evaluation.
        run_log: Log to which metrics, ``val_loss`` and pictures are written. It also holds the metrics that earlier
            processes of the run logged.
        best: Path at which the model with the best monitored metric is saved. None: this worker writes no files.
        ignored_steps: Evaluations after this step and earlier ones do not count for the best model and `patience`.
    """

    def __init__(
        self, model: keras.Model, validation: Validation, run_log: RunLog, best: Path | None, ignored_steps: int = 0
    ):
        self.model = model
        self.data = validation.data
        self.evaluate = validation.evaluate
        self.patience = validation.patience
        self.run_log = run_log
        self.best = best
        self.ignored_steps = ignored_steps
        logged = (name for line in run_log.evaluations() for name in line if name != "step")
        self.monitor = validation.monitor or next(iter([*self._names(), *logged]), None)

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluates the model, logs the metrics and a picture, and saves the model if it is the best so far.

        If none of the last `patience` evaluations was an improvement, training stops.

        Args:
            step: Number of completed steps.

        Returns:
            The metrics of the evaluation and the validation losses, by name.

        Raises:
            UserError: If the evaluation has no metric with the name `Validation.monitor`.
        """
        before = self._history()
        with averaged_weights(self.model):
            values = dict(self.evaluate(self.model, self.data).summary)
            if _has_targets(self.model, self.data):
                values.update(evaluation.validation_losses(self.model, self.data))
            self.monitor = self.monitor or next(iter(values))
            if self.monitor not in [*values, *self._names()]:
                raise UserError(
                    f"Validation.monitor is {self.monitor!r}, which is not a metric of the evaluation: choose one of "
                    f"{', '.join(values)}."
                )
            if self.best is not None:
                picture = comparison(self.model, self.data)
                self.run_log.write_image(step, "ground truth and detections", picture)
                with replacing(self.best.with_name(COMPARISON)) as partial:
                    Image.fromarray(picture).save(partial, "PNG")
                if self._score(values) > max(before, default=-math.inf):
                    save_model(self.model, self.best)
            # Last, because a resumed run does not repeat evaluations that are in the log
            self.run_log.write(step, values)
        gc.collect()  # data pipelines are reference cycles: up to 100 MiB could otherwise stay in memory
        if self.best is not None:
            shown = list(dict.fromkeys([self.monitor, *values]))[:3]
            log.info("step %d: %s", step, ", ".join(f"{name} {values.get(name, math.nan):.3f}" for name in shown))
            if not math.isfinite(values.get(self.monitor, math.nan)):
                has_objects = any(len(record.boxes) for record in self.data.records)
                reason = "" if has_objects else ", because the validation data have no objects"
                log.warning("%s is not a number%s: best.keras is not replaced.", self.monitor, reason)
        if self.should_stop():
            log.info("%s has not improved in %d evaluations: training stops.", self.monitor, self.patience)
            self.model.stop_training = True
        return values

    def has_evaluated(self, step: int) -> bool:
        """Tells whether the log contains an evaluation after this step.

        Args:
            step: Number of completed steps.

        Returns:
            True if the log contains one.
        """
        return any(line["step"] == step for line in self.run_log.evaluations())

    def should_stop(self) -> bool:
        """Tells whether none of the last `patience` evaluations improved the monitored metric.

        Returns:
            True if training should stop.
        """
        history = self._history()
        return self.patience is not None and bool(history) and len(history) - 1 - np.argmax(history) >= self.patience

    def _names(self):
        return metric_names(self.evaluate, self.model, self.data)

    def _history(self):
        return [self._score(line) for line in self.run_log.evaluations() if line["step"] > self.ignored_steps]

    def _score(self, values):
        """Returns the monitored metric, negated if it is a loss, so that higher is better."""
        value = values.get(self.monitor, math.nan)
        return -math.inf if math.isnan(value) else -value if self.monitor.endswith("loss") else value


def settings_of_validation(model: keras.Model, validation: Validation) -> dict[str, str | None]:
    """Returns the settings that must be equal for two evaluations to compare, which `save` stores.

    Args:
        model: Detector.
        validation: Data and rules of evaluation.

    Returns:
        The fingerprint of the data and the names of the function and of the monitored metric, by name of the setting.
    """
    evaluate = inspect.unwrap(validation.evaluate)  # gin wraps the function
    names = metric_names(validation.evaluate, model, validation.data)
    return {
        "evaluation data": fingerprint(validation.data),
        "Validation.evaluate": getattr(evaluate, "__name__", type(evaluate).__name__),
        "Validation.monitor": validation.monitor or next(iter(names), None),
    }


def metric_names(evaluate: Callable, model: keras.Model, data: Any) -> list[str]:
    """Lists the names of the metrics that an evaluation returns.

    Args:
        evaluate: Function that evaluates the model, such as `kerasdet.evaluate`.
        model: Detector.
        data: Dataset to evaluate on.

    Returns:
        Names such as "AP50" and "val_loss". The list is empty for functions other than `kerasdet.evaluate`, whose
        metrics are not known in advance.
    """
    if inspect.unwrap(evaluate) is not evaluation.evaluate:  # gin wraps the function
        return []
    names = list(PROPOSAL_SUMMARY if model.num_classes is None else SUMMARIES["bbox"])
    for branch in (branch for branch in model.branches if branch.metric):
        names += [f"{branch.metric}/{name}" for name in SUMMARIES[branch.metric]]
    if _has_targets(model, data):
        names += ["val_loss", *(f"val_{name}" for name in model.loss_names)]
    return names


def _has_targets(model, data):
    """Returns whether the dataset was read with all ground truth, such as masks, that the model's losses need."""
    try:
        for branch in model.branches:
            branch.check_dataset(data)
    except ValueError:
        return False
    return True


def comparison(model: keras.Model, data: Any, count: int = 4, min_score: float = 0.3) -> np.ndarray:
    """Draws ground truth and detections of a few images side by side.

    Args:
        model: Detector.
        data: Dataset.
        count: Number of images, taken from the beginning of the dataset.
        min_score: Detections with a score at or below this are not drawn. In [0, 1].

    Returns:
        The picture, (H, W, 3) uint8 RGB.
    """
    pictures = []
    for record in data.records[:count]:
        image = record.image()
        truth = Detections(
            boxes=record.boxes,
            scores=np.ones(len(record.boxes)),
            class_ids=record.class_ids,
            image_size=image.shape[:2],
            class_names=data.class_names,  # the model may have none: a ProposalNetwork knows only "object"
        )
        pictures += [truth.draw(image), model.detect(image).filter(score=min_score).draw(image)]
    return visualize.grid(pictures, 2, titles=("ground truth", "detections"))
