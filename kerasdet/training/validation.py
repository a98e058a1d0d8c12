"""What a run measures on held-out images, and what follows: the best model, an early end, pictures."""

import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerasdet import evaluation, visualize
from kerasdet.data import images
from kerasdet.evaluation.metrics import KEYPOINT_SUMMARY, PROPOSAL_SUMMARY, SUMMARY
from kerasdet.training.ema import averaged_weights
from kerasdet.training.metrics_log import RunLog
from kerasdet.training.resume import save_model

log = logging.getLogger(__name__)


class Validation:
    """Measures a model in training on held-out data, with the averages of its weights where there are any.

    Args:
        model: In training.
        data: Held-out data.
        evaluate: ``evaluate(model, data)`` -> metrics with a ``summary`` dict.
        run_log: Receives the numbers, ``val_loss`` and pictures; knows the best of earlier processes.
        best: Where the model with the best `monitor` is written; None in a process that does not write.
        monitor: A number of the summary, the first by default, or ``val_loss``.
        patience: After how many measurements without a better one training ends; None for never.
    """

    def __init__(
        self,
        model: keras.Model,
        data,
        evaluate: Callable,
        run_log: RunLog,
        best: Path | None,
        monitor: str | None = None,
        patience: int | None = None,
    ):
        self.model = model
        self.data = data
        self.evaluate = evaluate
        self.run_log = run_log
        self.best = best
        logged = (name for line in self._measured() for name in line if name != "step")
        self.monitor = monitor or next(iter([*measures(evaluate, model, data), *logged]), None)
        self.patience = patience

    def __call__(self, step: int) -> None:
        """Measures after a step; raises ValueError if there is no number `monitor`."""
        before = self._history()
        with averaged_weights(self.model):
            values = dict(self.evaluate(self.model, self.data).summary)
            if _annotated(self.model, self.data):
                values.update(evaluation.validation_losses(self.model, self.data))
            self.monitor = self.monitor or next(iter(values))
            if self.monitor not in [*values, *measures(self.evaluate, self.model, self.data)]:
                raise ValueError(f"There is no {self.monitor!r} to monitor: there are {', '.join(values)}.")
            if self.best is not None:
                self.run_log.picture(step, "truth and detections", panel(self.model, self.data))
                if self._goodness(values) > max(before, default=-math.inf):
                    save_model(self.model, self.best)
            self.run_log.write(step, values)  # last: what is in the log is not done again
        if self.best is not None:
            shown = list(dict.fromkeys([self.monitor, *values]))[:3]
            log.info("step %d: %s", step, ", ".join(f"{name} {values.get(name, math.nan):.3f}" for name in shown))
            if not math.isfinite(values.get(self.monitor, math.nan)):
                reason = "" if any(len(record.boxes) for record in self.data.records) else ": eval_data has no objects"
                log.warning("%s is not a number%s; no model is the best by it.", self.monitor, reason)
        if self.has_ended():
            self.model.stop_training = True

    def has_measured(self, step: int) -> bool:
        """Whether the run has come as far as measuring after this step."""
        return any(line["step"] == step for line in self._measured())

    def has_ended(self) -> bool:
        """Whether `patience` is at its end."""
        history = self._history()
        if self.patience is None or not history or len(history) - 1 - int(np.argmax(history)) < self.patience:
            return False
        log.info("%s has not improved in %d measurements: training ends.", self.monitor, self.patience)
        return True

    def _history(self):
        return [self._goodness(line) for line in self._measured()]

    def _measured(self):
        return [line for line in self.run_log.lines if "learning_rate" not in line]

    def _goodness(self, values):
        value = values.get(self.monitor, math.nan)
        return -math.inf if math.isnan(value) else -value if self.monitor.endswith("loss") else value


def measures(evaluate: Callable, model: keras.Model, data) -> list[str]:
    """Names of what `kerasdet.evaluate` and the losses may have to say of a model; none where `evaluate` is another."""
    if inspect.unwrap(evaluate) is not evaluation.evaluate:  # which gin wraps
        return []
    names = list(PROPOSAL_SUMMARY if model.num_classes is None else SUMMARY)
    parts = {"masks": ("segm", SUMMARY), "keypoints": ("keypoints", KEYPOINT_SUMMARY)}
    for iou_type, summary in (parts[branch.annotation] for branch in model.branches):
        names += [f"{iou_type}/{name}" for name in summary]
    losses = [f"val_{mean.name}" for mean in model._metric_state.losses] if _annotated(model, data) else []
    return names + losses


def _annotated(model, data):
    """Whether the data were read with all that the model has losses on."""
    fields = {"masks": "num_runs", "keypoints": "keypoints"}
    return all(getattr(data.records[0], fields[branch.annotation]) is not None for branch in model.branches)


def panel(model: keras.Model, data, count: int = 4, min_score: float = 0.3) -> np.ndarray:
    """Ground truth beside detections for the first `count` images, (H, W, 3) uint8."""
    pictures = []
    for record in data.records[:count]:
        image = images.read(record.path)
        found = {name: value[0] for name, value in model.detect(image).items()}
        keep = np.flatnonzero((found["scores"] >= min_score) & (found["class_ids"] >= 0))
        masks = None
        if "mask_probs" in found and len(keep):
            masks = np.array(model.paste_masks(found["mask_probs"][keep], found["boxes"][keep], *image.shape[:2]))
        pictures += [
            _drawn(model, image, record.boxes, record.class_ids),
            _drawn(model, image, found["boxes"][keep], found["class_ids"][keep], found["scores"][keep], masks),
        ]
    return visualize.grid(pictures, 2, titles=("ground truth", "detections"))


def _drawn(model, image, boxes, class_ids, scores=None, masks=None):
    names = model.class_names or {}
    labels = [names[k] if k < len(names) else str(k) for k in class_ids.tolist()]
    return visualize.draw_boxes(image, boxes, labels, scores, class_ids, masks=masks)
