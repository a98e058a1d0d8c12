"""What happens around the steps of a training run."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasdet.training.files import replacing, writing

log = logging.getLogger(__name__)


class RunLog:
    """Numbers by step, in ``metrics.jsonl`` and for TensorBoard.

    Args:
        out_dir: Of the run.
        done: Steps that its checkpoint has; later lines, of steps that are made again, are dropped.
        writes: Whether this process is the one that writes.
    """

    def __init__(self, out_dir: Path, done: int, writes: bool = True):
        self.path = out_dir / "metrics.jsonl"
        self.lines = [line for line in _read_lines(self.path) if line["step"] <= done]
        self.writer = None
        if writes:
            with replacing(self.path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            self.writer = tf.summary.create_file_writer(str(out_dir / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line of the finite ones among the values."""
        line = {"step": step, **{name: value for name, value in values.items() if math.isfinite(value)}}
        self.lines.append(line)
        if self.writer is None:
            return
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        with self.writer.as_default():
            for name, value in line.items():
                tf.summary.scalar(name, value, step)
        self.writer.flush()

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8, for TensorBoard alone."""
        if self.writer is not None:
            with self.writer.as_default():
                tf.summary.image(name, picture[None], step)


class ThroughputLogger:
    """What each window of steps was like: losses, learning rate, images and waiting for data by the second.

    Args:
        model: In training.
        run_log: Where it goes.
        batch_size: Of all replicas together.
        every: Steps in a window.
        steps: In all.
    """

    def __init__(self, model: keras.Model, run_log: RunLog, batch_size: int, every: int, steps: int):
        self.model = model
        self.run_log = run_log
        self.batch_size = batch_size
        self.every = every
        self.steps = steps
        self.restart()

    def restart(self) -> None:
        """A window begins."""
        self.count, self.waited, self.start = 0, self.model.data_wait, time.perf_counter()

    def __call__(self, step: int, logs: Mapping) -> None:
        """After a step."""
        self.count += 1
        if step % self.every and step != self.steps:
            return
        values = {name: float(value) for name, value in logs.items()}  # waits for the device
        seconds = time.perf_counter() - self.start
        values["learning_rate"] = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))  # of the next step
        values["images_per_second"] = self.count * self.batch_size / seconds
        values["data_wait"] = (self.model.data_wait - self.waited) / self.count  # seconds in a step
        self.run_log.write(step, values)
        if self.run_log.writer is not None:
            left = (self.steps - step) * seconds / self.count / 60
            text = "step %d of %d: loss %.4f, %.1f images/s, %d min left"
            log.info(text, step, self.steps, values["loss"], values["images_per_second"], round(left))
        self.model.reset_metrics()
        self.restart()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within is no training."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start


def _read_lines(path):
    """The complete lines of a log; a process that was killed may have left half of one."""
    lines = []
    if path.is_file():
        for text in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines
