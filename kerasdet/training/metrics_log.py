"""Writes losses and metrics of a run as lines of JSON and as TensorBoard curves."""

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

from kerasdet.files import replacing, writing

log = logging.getLogger(__name__)
RUN_LOG = "metrics.jsonl"  # name of a file in the folder of every run


class RunLog:
    """Logs losses and metrics by step to ``metrics.jsonl`` and TensorBoard.

    Args:
        out_dir: Folder of the run.
        completed_steps: Step of the checkpoint from which the run resumes. Lines of later steps are deleted, because
            the run repeats these steps.
        writes: Whether this process writes files. Only the first of several workers does.
    """

    def __init__(self, out_dir: Path, completed_steps: int, writes: bool = True):
        self.path = out_dir / RUN_LOG
        lines = _read_lines(self.path)
        self.lines = [line for line in lines if line["step"] <= completed_steps]
        self.writer = None
        if writes:
            if lines and not completed_steps:
                log.warning(
                    "%s held %d lines of a run that has no checkpoint, up to step %d: the new run begins at step 0 and "
                    "replaces them.",
                    self.path,
                    len(lines),
                    lines[-1]["step"],
                )
            with replacing(self.path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            self.writer = tf.summary.create_file_writer(str(out_dir / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line. Values that are not finite are left out, because JSON cannot represent them.

        Args:
            step: Number of completed steps.
            values: Values by name.
        """
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

    def evaluations(self) -> list[dict[str, float]]:
        """Returns the lines of evaluations, which have no learning rate, unlike the lines of training.

        Returns:
            Metrics and ``step`` of each evaluation, in the order of the steps.
        """
        return [line for line in self.lines if "learning_rate" not in line]

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image to TensorBoard.

        Args:
            step: Number of completed steps.
            name: Title of the image.
            image: (H, W, 3) uint8.
        """
        if self.writer is not None:
            with self.writer.as_default():
                tf.summary.image(name, image[None], step)


class ThroughputLogger:
    """Logs the mean losses, learning rate, images per second and waiting time for data, every few steps.

    Args:
        model: Detector in training.
        run_log: Log to which the means are written.
        batch_size: Number of images in a training step, over all replicas.
        every: Number of steps between two lines, over which the values are averaged.
        steps: Number of steps of the whole run.
    """

    def __init__(self, model: keras.Model, run_log: RunLog, batch_size: int, every: int, steps: int):
        self.model = model
        self.run_log = run_log
        self.batch_size = batch_size
        self.every = every
        self.steps = steps
        self.restart()

    def restart(self) -> None:
        """Starts a new interval of steps over which values are averaged."""
        self.count, self.wait_before, self.start = 0, self.model.data_wait, time.perf_counter()

    def __call__(self, step: int, logs: Mapping) -> None:
        """Counts a step, and logs the means if the interval or the run is complete.

        Args:
            step: Number of completed steps.
            logs: Running means of the losses by name, which Keras' `fit` passes to callbacks.
        """
        self.count += 1
        if step % self.every and step != self.steps:
            return
        # Waits for the device, so it comes before reading the clock
        values = {name: float(value) for name, value in logs.items()}
        seconds = time.perf_counter() - self.start
        # Learning rate of the next step
        values["learning_rate"] = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))
        values["images_per_second"] = self.count * self.batch_size / seconds
        values["data_wait"] = (self.model.data_wait - self.wait_before) / self.count  # seconds per step
        self.run_log.write(step, values)
        if self.run_log.writer is not None:
            minutes = (self.steps - step) * seconds / self.count / 60
            text = "step %d of %d: loss %.4f, %.1f images/s, %d min left"
            log.info(text, step, self.steps, values["loss"], values["images_per_second"], round(minutes))
        self.model.reset_metrics()
        self.restart()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the ``with`` block, such as saving or evaluation, from the measured throughput.

        Yields:
            None.
        """
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start


def _read_lines(path):
    """Returns the complete lines of a log; a killed process may have left a partial line."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines
