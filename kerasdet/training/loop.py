"""A training run between its first step and its last: what is saved and measured when."""

import logging
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from kerasdet.ops.distribute import all_gather_object, worker_rank
from kerasdet.training import resume
from kerasdet.training.metrics_log import ThroughputLogger
from kerasdet.training.signals import handle_sigterm
from kerasdet.training.validation import Validation

log = logging.getLogger(__name__)

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)
ASK_EVERY = 5  # steps, after which several workers ask one another whether to end


class Run(keras.callbacks.Callback):
    """Steps of a model until they are `steps`, those that an earlier process made included.

    Args:
        model: Compiled and restored.
        folder: Of the checkpoints; None in a process that does not write.
        keep: How many checkpoints stay.
        speed: Logs the steps.
        validation: Measures, if there is anything to measure on.
        save_every: Steps between two checkpoints.
        measure_every: Steps between two measurements.
        steps: In all.
        batch_size: Of all replicas together.
        settings: Of the run, that checkpoints keep.
        done: Steps that were made before.
        images: Images that were seen before.
    """

    def __init__(
        self,
        model: keras.Model,
        folder: Path | None,
        *,
        keep: int,
        speed: ThroughputLogger,
        validation: Validation | None,
        save_every: int,
        measure_every: int,
        steps: int,
        batch_size: int,
        settings: Mapping,
        done: int,
        images: int,
    ):
        super().__init__()
        self.detector = model
        self.folder = folder
        self.keep = keep
        self.speed = speed
        self.validation = validation
        self.save_every = save_every
        self.measure_every = measure_every
        self.steps = steps
        self.batch_size = batch_size
        self.settings = settings
        self.done = done
        self.images = images
        self.terminated = False
        self.at_once = False  # to be left without a checkpoint, there being one of this step

    def fit(self, batches: Callable[..., tf.data.Dataset]) -> None:
        """Makes the steps that are missing.

        Args:
            batches: Of the data, from the first that was not seen; takes the ``input_context`` of a worker.

        Raises:
            SystemExit: 143 after SIGTERM.
            RuntimeError: If another worker ended.
        """
        if self.done:
            log.info("Going on from step %d of %d.", self.done, self.steps)
            self._measure(self.done)  # in case the process ended before it did
        if self.done >= self.steps or (self.validation and self.validation.has_ended()):
            return
        strategy = self.detector.distribute_strategy
        several = strategy.num_replicas_in_sync > 1
        before = handle_sigterm(self._terminate)
        try:
            self.detector.fit(
                strategy.distribute_datasets_from_function(batches) if several else batches(),
                epochs=1,
                steps_per_epoch=self.steps - self.done,
                shuffle=False,
                callbacks=[self],
                verbose=0,
            )
            all_gather_object(strategy, None)  # none leaves before the others are done
        except _LOST as error:
            if worker_rank(strategy)[1] == 1:
                raise
            raise RuntimeError(
                "Another worker has ended, or cannot be reached any more: its own output says why. The same command, "
                f"given to all workers, goes on from the last checkpoint. ({str(error).splitlines()[0][:200]})"
            ) from None
        finally:
            handle_sigterm(before)

    def on_train_begin(self, logs=None):
        self.speed.restart()

    def on_train_batch_end(self, batch, logs: Mapping | None = None):
        step = self.done + batch + 1
        self.speed(step, logs)
        with self.speed.paused():
            is_to_end = self._is_to_end(step)
            if step % self.save_every == 0 or step == self.steps or is_to_end:
                self._save(step)
            if is_to_end:
                self._leave()
            self._measure(step)

    def _is_to_end(self, step):
        """Whether this or another worker was asked to end, the same on all of them.

        To hear of others is to wait for the devices: not after each step, but at steps that all know.
        """
        strategy = self.detector.distribute_strategy
        due = step % ASK_EVERY == 0 or worker_rank(strategy)[1] == 1
        return due and any(all_gather_object(strategy, self.terminated))

    def _save(self, step):
        if self.folder is not None:
            images = self.images + (step - self.done) * self.batch_size
            resume.save(self.detector, self.folder, self.keep, step=step, images=images, settings=self.settings)
        all_gather_object(self.detector.distribute_strategy, None)  # none goes on, or leaves, before it is on the disk

    def _measure(self, step):
        due = step % self.measure_every == 0 or step == self.steps
        if self.validation is None or not due or self.validation.has_measured(step):
            return
        self.at_once = True
        if self.terminated:
            self._leave()
        self.validation(step)
        self.at_once = False

    def _terminate(self, *_):
        self.terminated = True
        if self.at_once:
            self._leave()

    def _leave(self):
        log.info("SIGTERM: the state is saved, and the same command goes on from it.")
        raise SystemExit(128 + signal.SIGTERM)
