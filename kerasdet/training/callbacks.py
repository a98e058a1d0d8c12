"""Calls the Keras callbacks of a user during a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kerasdet.errors import UserError
from kerasdet.ops.distribute import all_gather_object, worker_rank


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Checks that each callback is a Keras callback.

    Args:
        callbacks: The argument `callbacks` of `train`.

    Raises:
        UserError: If an item is not a `keras.callbacks.Callback` object.
    """
    for index, callback in enumerate(callbacks):
        if not isinstance(callback, keras.callbacks.Callback):
            what, remedy = repr(callback), "give a Keras callback"
            if isinstance(callback, type) and issubclass(callback, keras.callbacks.Callback):
                name = callback.__name__
                what, remedy = f"the class {name}", f"write {name}() (gin: @{name}())"
            elif callable(callback) and not isinstance(callback, type):
                remedy = "wrap the function, for example in keras.callbacks.LambdaCallback(on_epoch_end=...)"
            raise UserError(
                f"train.callbacks[{index}] is {what}: expected a keras.callbacks.Callback object; {remedy}."
            )


class RunCallbacks:
    """Calls Keras callbacks at the steps, epochs and evaluations of a run.

    An epoch ends after each evaluation and after the last step. In a run without validation it ends after each
    checkpoint. If a callback sets `stop_training`, the run ends after that step. With several workers, only the first
    worker calls the callbacks, and all workers stop at the end of the epoch.

    Args:
        callbacks: Keras callbacks. Their `params` contain ``out_dir``, ``steps``, ``epochs``, ``batch_size``,
            ``model``, the name of the model's class, and ``verbose``, which is 0.
        model: Detector in training.
        out_dir: Folder of the run.
        steps: Number of steps of the whole run.
        steps_per_epoch: Number of steps in an epoch.
        batch_size: Number of images in a training step, over all replicas.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        *,
        out_dir: Path,
        steps: int,
        steps_per_epoch: int,
        batch_size: int,
    ):
        self.strategy = model.distribute_strategy
        rank, self.num_workers = worker_rank(self.strategy)
        self.model = model
        self.steps_per_epoch = steps_per_epoch
        self.is_empty = not callbacks
        self.has_begun = self.stop_requested = False
        self.logs = {}
        params = {"out_dir": str(out_dir), "steps": steps, "epochs": -(-steps // steps_per_epoch)}
        params |= {"batch_size": batch_size, "model": type(model).__name__, "verbose": 0}
        # Not a CallbackList: in Keras 3.15.1 it waits for the device after every step, even if nobody reads the logs.
        self.callbacks = list(callbacks) if rank == 0 else []
        for callback in self.callbacks:
            callback.set_params(params)
            callback.set_model(model)

    def begin(self, completed_steps: int) -> None:
        """Calls `on_train_begin` and, for the first epoch of this process, `on_epoch_begin`. Later calls do nothing.

        Args:
            completed_steps: Number of steps that earlier processes of the run completed.
        """
        if not self.has_begun:
            self.has_begun = True
            self._call("on_train_begin", None)
            self._call("on_epoch_begin", self._epoch(completed_steps + 1), None)

    def batch_begin(self, step: int) -> None:
        """Calls `on_train_batch_begin`.

        Args:
            step: Number of the step in the run, from 1. The callbacks get the index, from 0.
        """
        self._call("on_train_batch_begin", step - 1, None)

    def batch_end(self, step: int, logs: Mapping[str, Any]) -> None:
        """Calls `on_train_batch_end`. The process waits for the device only if a callback reads the logs.

        Args:
            step: Number of the step in the run, from 1. The callbacks get the index, from 0.
            logs: Losses by name.
        """
        self._call("on_train_batch_end", step - 1, logs)
        if self.num_workers > 1 and self.model.stop_training:  # the other workers would wait for this one forever
            self.stop_requested, self.model.stop_training = True, False

    def test_begin(self) -> None:
        """Calls `on_test_begin` before an evaluation."""
        self._call("on_test_begin", None)

    def test_end(self, values: Mapping[str, float]) -> None:
        """Calls `on_test_end` after an evaluation.

        Args:
            values: Metrics of the evaluation by name.
        """
        self._call("on_test_end", dict(values))

    def epoch_end(self, step: int, logs: Mapping[str, Any], is_last: bool) -> None:
        """Calls `on_epoch_end` and, unless the run ends, `on_epoch_begin` for the next epoch.

        If a callback stops the training in the first worker, all other workers stop as well.

        Args:
            step: Number of completed steps.
            logs: Losses and metrics of the epoch by name.
            is_last: Whether this is the last epoch.
        """
        if self.is_empty:
            return
        self.logs = {"step": step, **{name: float(value) for name, value in logs.items()}}
        self._call("on_epoch_end", self._epoch(step), self.logs)
        if self.num_workers > 1:
            stops = all_gather_object(self.strategy, bool(self.stop_requested or self.model.stop_training))
            self.model.stop_training = any(stops)
        if not is_last and not self.model.stop_training:
            self._call("on_epoch_begin", self._epoch(step + 1), None)

    def end(self) -> None:
        """Calls `on_train_end` if `on_train_begin` was called."""
        if self.has_begun:
            self._call("on_train_end", self.logs)

    def _call(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def _epoch(self, step):
        """Returns the index of an epoch, from 0, for a step that is counted from 1."""
        return (step - 1) // self.steps_per_epoch
