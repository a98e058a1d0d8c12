"""Runs the steps of a training run, and saves and evaluates the model at intervals."""

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from kerasdet.ops.distribute import all_gather_object, worker_rank
from kerasdet.training import resume
from kerasdet.training.callbacks import RunCallbacks
from kerasdet.training.metrics_log import ThroughputLogger
from kerasdet.training.validation import Validator

log = logging.getLogger(__name__)

_WORKER_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
)
# Workers must agree on the step after which they stop, and must wait for their devices to do so. After each step this
# would leave the devices idle between steps. Every 5th step it costs nothing measurable.
STOP_CHECK_INTERVAL = 5


class TrainingLoop(keras.callbacks.Callback):
    """Trains a model up to a total number of steps, and saves and evaluates it at intervals.

    The total includes the steps of earlier processes of the same run.

    Args:
        model: Detector, compiled and restored.
        folder: Folder of the checkpoints. None: this worker writes no checkpoints.
        max_to_keep: Number of the latest checkpoints to keep on disk.
        throughput: Logs losses and speed.
        validator: Evaluates the model. None: the run has no validation.
        callbacks: Calls the user's Keras callbacks.
        save_every: Number of steps between two checkpoints.
        validate_every: Number of steps between two evaluations.
        steps: Number of steps of the whole run.
        batch_size: Number of images in a training step, over all replicas.
        settings: Settings of the run by name, which checkpoints store.
        completed_steps: Number of steps that earlier processes of the run completed.
        completed_images: Number of images that earlier processes of the run trained on.
    """

    def __init__(
        self,
        model: keras.Model,
        folder: Path | None,
        *,
        max_to_keep: int,
        throughput: ThroughputLogger,
        validator: Validator | None,
        callbacks: RunCallbacks,
        save_every: int,
        validate_every: int,
        steps: int,
        batch_size: int,
        settings: Mapping,
        completed_steps: int,
        completed_images: int,
    ):
        super().__init__()
        self.detector = model
        self.folder = folder
        self.max_to_keep = max_to_keep
        self.throughput = throughput
        self.validator = validator
        self.callbacks = callbacks
        self.save_every = save_every
        self.validate_every = validate_every
        self.steps = steps
        self.batch_size = batch_size
        self.settings = settings
        self.completed_steps = completed_steps
        self.completed_images = completed_images
        self.evaluated = {}  # metrics of the evaluation after the current step; empty if there was none
        self.stop_requested = False
        self.can_stop_now = False  # True while the checkpoint of the current step is already on the disk

    def fit(self, batches: Callable[..., tf.data.Dataset]) -> None:
        """Runs the remaining steps; before them, the evaluation that an interrupted process did not complete, if any.

        Args:
            batches: Function that returns a `tf.data.Dataset` of the batches that remain. With several replicas it is
                called with the worker's `tf.distribute.InputContext`, otherwise without arguments.

        Raises:
            SystemExit: With code 143 after SIGTERM.
            FloatingPointError: If the loss is not finite.
            UserError: If the evaluation has no metric with the name `Validation.monitor`.
            RuntimeError: If another worker has ended.
        """
        self.detector.stop_training = False
        if self.completed_steps:
            self._validate(self.completed_steps)  # the last process may have ended between saving and evaluating
            if self.evaluated:
                self.callbacks.epoch_end(self.completed_steps, self.evaluated, self.completed_steps >= self.steps)
        is_over = self.completed_steps >= self.steps or self.detector.stop_training  # Keras' fit would reset the flag
        if is_over or (self.validator and self.validator.should_stop()):
            return
        if self.completed_steps:
            log.info("Resuming from step %d of %d.", self.completed_steps, self.steps)
        strategy = self.detector.distribute_strategy
        is_distributed = strategy.num_replicas_in_sync > 1
        handler_before = handle_sigterm(self._request_stop)
        try:
            self.detector.fit(
                strategy.distribute_datasets_from_function(batches) if is_distributed else batches(),
                epochs=1,
                steps_per_epoch=self.steps - self.completed_steps,
                shuffle=False,
                callbacks=[self],
                verbose=0,
            )
            all_gather_object(strategy, None)  # a worker that leaves early would abort the others' last collectives
        except _WORKER_LOST as error:
            if worker_rank(strategy)[1] == 1:
                raise
            raise RuntimeError(
                f"Another worker has ended or cannot be reached ({str(error).splitlines()[0][:200]}): read the output "
                "of that worker for the reason, then start all workers with the same command to resume from the last "
                "checkpoint."
            ) from None
        finally:
            handle_sigterm(handler_before)

    def on_train_begin(self, logs: Mapping | None = None) -> None:
        """Calls `on_train_begin` of the user's callbacks, and starts to measure the images per second.

        Args:
            logs: Ignored.
        """
        self.callbacks.begin(self.completed_steps)
        self.throughput.restart()

    def on_train_batch_begin(self, batch: int, logs: Mapping | None = None) -> None:
        """Calls `on_train_batch_begin` of the user's callbacks.

        Args:
            batch: Index of the step in this process, from 0.
            logs: Ignored.
        """
        self.callbacks.batch_begin(self.completed_steps + batch + 1)

    def on_train_batch_end(self, batch: int, logs: Mapping | None = None) -> None:
        """Logs a step, saves and evaluates the model and ends the epoch if due, and stops after SIGTERM.

        If a callback or `patience` ends the run, the model is saved after this step, too.

        Args:
            batch: Index of the step in this process, from 0.
            logs: Losses by name.
        """
        step = self.completed_steps + batch + 1
        self.throughput(step, logs)
        with self.throughput.paused():
            self.callbacks.batch_end(step, logs)
            should_stop = self._should_stop(step)
            is_saved = step % self.save_every == 0 or step == self.steps or should_stop
            if is_saved:
                self._save(step)
            if should_stop:
                self._stop()
            self._validate(step)
            if step % self.callbacks.steps_per_epoch == 0 or step == self.steps or self.detector.stop_training:
                rate = self.detector.optimizer.learning_rate
                logs = {**logs, "learning_rate": tf.convert_to_tensor(rate), **self.evaluated}
                self.callbacks.epoch_end(step, logs, is_last=step == self.steps)
            if self.detector.stop_training and not is_saved:
                self._save(step)  # the run ends here: the returned weights are those of the last checkpoint

    def _should_stop(self, step):
        """Returns, equally on all workers, whether any received SIGTERM; several workers ask only every 5th step."""
        strategy = self.detector.distribute_strategy
        is_due = step % STOP_CHECK_INTERVAL == 0 or worker_rank(strategy)[1] == 1
        return is_due and any(all_gather_object(strategy, self.stop_requested))

    def _save(self, step):
        if self.folder is not None:
            images = self.completed_images + (step - self.completed_steps) * self.batch_size
            resume.save(self.detector, self.folder, self.max_to_keep, step=step, images=images, settings=self.settings)
        all_gather_object(self.detector.distribute_strategy, None)  # no worker goes on before the file is on the disk

    def _validate(self, step):
        self.evaluated = {}
        is_due = step % self.validate_every == 0 or step == self.steps
        if self.validator is None or not is_due or self.validator.has_evaluated(step):
            return
        self.can_stop_now = True
        if self.stop_requested:
            self._stop()
        self.callbacks.begin(step - 1)  # a resumed run makes up for an interrupted evaluation before it trains
        self.callbacks.test_begin()
        self.evaluated = self.validator(step)
        self.callbacks.test_end(self.evaluated)
        self.can_stop_now = False

    def _request_stop(self, *_):
        self.stop_requested = True
        if self.can_stop_now:
            self._stop()

    def _stop(self):
        log.info("SIGTERM: the run has saved a checkpoint and stops. Run the same command to resume.")
        raise SystemExit(128 + signal.SIGTERM)


def handle_sigterm(handler: Callable | int | None) -> Callable | int | None:
    """Installs a handler for SIGTERM, the signal with which schedulers end a process.

    Args:
        handler: Function or constant to pass to `signal.signal`. None: nothing is installed.

    Returns:
        The previous handler. None if nothing was installed, also outside the main thread, where Python allows no
        handlers.
    """
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)
