"""What happens around the steps of a training run."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import keras


class StopAtStep(keras.callbacks.Callback):
    """Ends training once the optimizer has made `steps` steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) >= self.steps:
            self.model.stop_training = True


class Evaluate(keras.callbacks.Callback):
    """Adds the numbers of `evaluate(model)` to the logs after every `every`-th epoch and the last."""

    def __init__(self, evaluate: Callable[[keras.Model], dict[str, float]], every: int, steps: int):
        super().__init__()
        self.evaluate = evaluate
        self.every = every
        self.steps = steps

    def on_epoch_end(self, epoch, logs=None):
        last = int(self.model.optimizer.iterations) >= self.steps
        if last or (epoch + 1) % self.every == 0:
            logs.update(self.evaluate(self.model))


class LogJson(keras.callbacks.Callback):
    """Appends each epoch's logs as a line of JSON, with the step and the learning rate."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        logs = {name: float(value) for name, value in logs.items()}
        line = {"step": int(optimizer.iterations), "learning_rate": float(optimizer.learning_rate), **logs}
        with self.path.open("a") as file:
            file.write(json.dumps({name: value for name, value in line.items() if math.isfinite(value)}) + "\n")


class Checkpoint(keras.callbacks.Callback):
    """Keeps the last `keep` states of model and optimizer in ``folder/step_00000500.keras``.

    A file appears under its name only when it is complete, so an interrupted save leaves the earlier ones untouched.
    """

    def __init__(self, folder: Path, keep: int):
        super().__init__()
        self.folder = folder
        self.keep = keep

    def on_epoch_end(self, epoch, logs=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{int(self.model.optimizer.iterations):08d}.keras"
        partial = self.folder / f".partial_{path.name}"
        self.model.save(partial)
        os.replace(partial, path)
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty where there is no such folder."""
    return sorted(path for path in Path(folder).glob("step_*.keras") if re.fullmatch(r"step_\d+\.keras", path.name))
