"""Defines `Trainer`: the steps of Keras' `fit` and `evaluate` for a detector, on one device or on many replicas."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_compat import SkipSymbolicBuild, disable_gradient_reduction, flatten_layers, inner_optimizer
from kerasdet.keras_utils import check_data_format, float_dtype
from kerasdet.models.assertions import user_error, with_valid_objects
from kerasdet.models.batch import (
    drop_padded_outputs,
    equal_parts,
    pad_empty_batch,
    pad_to_global_max,
    training_batch,
    unpack_batch,
)
from kerasdet.models.first_batch import check_first_batch, check_has_images, check_keras_arguments
from kerasdet.ops.distribute import global_sum, local_reductions, local_replicas, num_replicas


class Trainer(SkipSymbolicBuild, keras.Model):
    """Base class that trains a model; a subclass defines `call`, `compute_targets` and `compute_losses`.

    N replicas train exactly like one device with the same global batch: all images are padded to the largest one on any
    replica, the divisors of losses are counted over all replicas, and gradients are summed before they are clipped.
    Norms of type "bn" are an exception: they use the statistics of one replica.

    Args:
        loss_names: Keys of the dict that `compute_losses` returns.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        micro_batches: Number of micro-batches that a replica's batch is split into. They run one after the other to
            save memory, and their gradients are averaged. By default 1.
        xla: Whether XLA compiles the training step, which needs batches of a single shape. By default False.
        data_wait: Total time in seconds that `fit` and `evaluate` have waited for data.
    """

    def __init__(self, loss_names: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        check_data_format()
        self.loss_names = tuple(loss_names)
        self.micro_batches = 1
        self.xla = False
        self.data_wait = 0.0
        # In a namespace, because Keras would track and save metrics that are attributes of the model.
        self._metric_state = SimpleNamespace(
            losses=[keras.metrics.Mean(name=name) for name in ("loss", *loss_names)],
            steps=[keras.metrics.Mean(name=name) for name in ("gradient_norm", "positives")],
            functions={},
        )

    @property
    def metrics(self) -> list[keras.Metric]:
        """Running means of the losses, the gradient norm and the number of positives; Keras resets them every epoch."""
        return [*super().metrics, *self._metric_state.losses, *self._metric_state.steps]

    def compile(
        self,
        optimizer: keras.Optimizer | str = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Sets the optimizer, as in Keras. The model computes its own losses.

        Args:
            optimizer: A Keras optimizer or its name.
            loss: Must be None, as `loss_weights`, `metrics` and `weighted_metrics`.
            loss_weights: Must be None.
            metrics: Must be None.
            weighted_metrics: Must be None.
            **kwargs: Passed to `keras.Model.compile`.

        Raises:
            UserError: If a loss or a metric is given.
        """
        refused = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in refused.items():
            if value is not None:
                raise UserError(
                    f"compile got {name}: expected none, because a {type(self).__name__} computes its own losses. "
                    f"Remove {name}. Losses are arguments of the model and its parts; kerasdet.evaluate measures AP."
                )
        super().compile(optimizer, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains on batches, as in Keras.

        Args:
            *args: Passed to `keras.Model.fit`; the first is a dataset of training batches or one training batch.
            **kwargs: Passed to `keras.Model.fit`.

        Returns:
            Keras' `History`. Its `history` maps the names of the losses, ``gradient_norm`` and ``positives`` to their
            means in each epoch.

        Raises:
            UserError: If targets or weights are given beside the batches, or there is no image.
        """
        check_keras_arguments(super().fit, *args, **kwargs)
        return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> list[float] | dict[str, float]:
        """Computes the losses of batches, as in Keras. `kerasdet.evaluate` measures AP.

        Args:
            *args: Passed to `keras.Model.evaluate`; the first is a dataset of training batches or one training batch.
            **kwargs: Passed to `keras.Model.evaluate`.

        Returns:
            The losses, as a list or, with `return_dict=True`, by name.

        Raises:
            UserError: If targets or weights are given beside the batches, or there is no image.
        """
        check_keras_arguments(super().evaluate, *args, **kwargs)
        return super().evaluate(*args, **kwargs)

    def build_optimizer(self) -> None:
        """Creates the variables of the optimizer. With `use_ema` these include averages of the norms' statistics.

        Keras averages only trained weights, but the averaged weights also need averaged moving means and variances of
        norms.
        """
        averages = getattr(inner_optimizer(self.optimizer), "use_ema", False)
        self.optimizer.build([*self.trainable_variables, *(moving_statistics(self) if averages else ())])

    def compile_from_config(self, config: dict) -> None:
        """Compiles a loaded model. Overrides Keras; do not call it directly.

        Args:
            config: Result of `get_compile_config`.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def train_step(self, data: Mapping | tuple) -> dict[str, tf.Tensor]:
        """Trains on one batch; Keras' `fit` calls this.

        Args:
            data: A training batch (see `training_batch`), or a tuple that starts with one.

        Returns:
            The running means of the losses, the gradient norm and the number of positives, by name.
        """
        batch = self._with_finite_pixels(self._padded_batch(data))
        gradients, losses, positives = self._accumulate_gradients(batch)
        gradients = global_sum(gradients)
        norm = tf.linalg.global_norm(gradients) / self.optimizer.scale_loss(tf.ones([], float_dtype()))
        with tf.control_dependencies([self._assert_finite_loss(norm, losses, batch)]):
            gradients = [tf.identity(gradient) for gradient in gradients]
        apply_reduced_gradients(self.optimizer, gradients, self.trainable_variables)
        norm_mean, positives_mean = self._metric_state.steps
        finite = tf.math.is_finite(norm)  # LossScaleOptimizer (float16) skips steps with a non-finite gradient
        norm_mean.update_state(tf.where(finite, norm, 0), sample_weight=tf.cast(finite, float_dtype()))
        positives_mean.update_state(positives)
        return {**self._track(losses), **{mean.name: mean.result() for mean in self._metric_state.steps}}

    def test_step(self, data: Mapping | tuple) -> dict[str, tf.Tensor]:
        """Computes the losses of one batch; Keras' `evaluate` calls this.

        Args:
            data: A training batch (see `training_batch`), or a tuple that starts with one.

        Returns:
            The running means of the losses by name.
        """
        batch, is_real = pad_empty_batch(self._padded_batch(data))
        outputs = self.forward(batch, training=False)
        targets = self.compute_targets(outputs, batch)
        outputs, targets = drop_padded_outputs(outputs, is_real), drop_padded_outputs(targets, is_real)
        return self._track(_with_total(self.compute_losses(outputs, targets)))

    def forward(self, batch: Mapping[str, tf.Tensor], training: bool) -> dict:
        """Runs the model on a training batch, to compute its losses.

        Two-stage models override this method to pass the ground truth to `call`.

        Args:
            batch: A training batch; see `training_batch`.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            The dict of outputs for `compute_targets` and `compute_losses`.
        """
        return self(batch, training=training)

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Updates state after a training step, such as the running mean of positives. Does nothing by default.

        Args:
            targets: The dict that `compute_targets` returned.
        """

    def _accumulate_gradients(self, batch):
        """Averages the results of `_gradients` over the micro-batches of a batch."""
        if self.micro_batches == 1:
            return self._gradients(batch)
        first, *others = _parts(batch, self.micro_batches)
        total = self._gradients(first)
        for part in others:
            # Each micro-batch waits for the previous one: TensorFlow would run them at once, which saves no memory.
            with tf.control_dependencies(tf.nest.flatten(total)):
                part = {name: tf.identity(value) for name, value in part.items()}
            total = tf.nest.map_structure(tf.add, total, self._gradients(part))
        return tf.nest.map_structure(lambda value: value / self.micro_batches, total)

    def _gradients(self, batch):
        """Returns the gradients of the scaled loss, the losses by name, and the mean number of positives per image."""
        with tf.GradientTape() as tape:
            outputs = self.forward(batch, training=True)
            targets = self.compute_targets(outputs, batch)
            losses = _with_total(self.compute_losses(outputs, targets))
            scaled = self.optimizer.scale_loss(losses["loss"])
        gradients = tape.gradient(scaled, [v.value for v in self.trainable_variables])
        with tf.control_dependencies(gradients):
            self.after_step(targets)
        positive = targets["positive"] if "positive" in targets else targets["matched_gt"] >= 0  # (B, R)
        return gradients, losses, tf.reduce_mean(tf.reduce_sum(tf.cast(positive, float_dtype()), 1))

    def _track(self, losses):
        for mean in self._metric_state.losses:
            # The losses of the N replicas sum to the global loss, but Keras averages metrics over the replicas.
            mean.update_state(losses[mean.name] * num_replicas())
        return {mean.name: mean.result() for mean in self._metric_state.losses}

    def _padded_batch(self, data):
        """Returns a training batch with valid objects, whose images are as large as those of all replicas."""
        return pad_to_global_max(with_valid_objects(data, getattr(self, "num_classes", None)))

    def _with_finite_pixels(self, batch):
        """Returns the batch after an assertion that its pixels are finite: others would spoil the averages of norms."""
        image = tf.convert_to_tensor(batch["image"])
        if not image.dtype.is_floating:
            return batch
        message = [
            "A pixel is not finite at iteration",
            self.optimizer.iterations.value,
            "(look for damaged images, and for transforms that divide by 0):",
        ]
        if "image_id" in batch:
            message += ["image ids", batch["image_id"]]
        finite = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(image)), message, summarize=64)
        with tf.control_dependencies([finite]):
            return {**batch, "image": tf.identity(image)}

    def _assert_finite_loss(self, norm, losses, batch):
        """Returns an assertion that stops before a loss or gradient that is not finite reaches the weights."""
        finite = tf.math.is_finite(losses["loss"])
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):  # this one skips non-finite gradients
            finite &= tf.math.is_finite(norm)
        message = [
            "The loss or its gradient is not finite at iteration",
            self.optimizer.iterations.value,
            "(lower the learning rate, and look for boxes without height or width):",
        ]
        for name, value in losses.items():
            message += [name, value] if name != "loss" else []
        if "image_id" in batch:
            message += ["image ids", batch["image_id"]]
        return tf.debugging.Assert(finite, message, summarize=64)

    def make_train_function(self, force: bool = False) -> None:
        """Builds the function that `fit` calls for each batch. Overrides Keras; do not call it directly.

        Args:
            force: Whether to rebuild an existing function.
        """
        if self.train_function is None or force:
            self._check_built()
            self.train_function = self._on_replicas(self.train_step, self._check_division, jit=self.xla)

    def make_test_function(self, force: bool = False) -> None:
        """Builds the function that `evaluate` calls for each batch. Overrides Keras; do not call it directly.

        Args:
            force: Whether to rebuild an existing function.
        """
        if self.test_function is None or force:
            self.test_function = self._on_replicas(self.test_step)

    def _check_built(self):
        """Raises a UserError if a layer has no weights yet, because the optimizer would not update them."""
        for part in self.layers:
            for layer in flatten_layers(part):
                if not layer.built and type(layer).build is not keras.layers.Layer.build:
                    raise UserError(
                        f"The layer {layer.name} ({type(layer).__name__}) in {part.name} has no weights yet; expected "
                        f"all weights before training. Call its `build` in {type(part).__name__}.build."
                    )

    def _check_division(self, batch):
        """Raises a ValueError if a replica gets no image, or a number that micro-batches cannot share evenly."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == self.micro_batches == 1:
            return
        counts = [
            len(unpack_batch(each)["image"]) for each in self.distribute_strategy.experimental_local_results(batch)
        ]
        if 0 in counts or any(count % self.micro_batches for count in counts):
            raise ValueError(
                f"A training batch of {sum(counts)} images cannot be divided evenly "
                f"{equal_parts(replicas, self.micro_batches)}: choose a batch size that is a multiple of "
                f"{replicas * self.micro_batches}, and drop a smaller last batch with batch(..., drop_remainder=True)."
            )

    def _on_replicas(self, step: Callable, check: Callable | None = None, jit: bool = False) -> Callable:
        """Makes Keras' train or test function, which runs a step on all replicas for the next batch of an iterator.

        Keras' own function fails with several workers (3.15.1), because it averages scalars over an axis.

        Args:
            step: Function of a replica's batch that returns scalars by name.
            check: Function of the distributed batch that raises an error if the step cannot run on it. None: no check.
            jit: Whether XLA compiles the step.
        """
        strategy = self.distribute_strategy

        def run(batch):
            logs = strategy.run(step, args=(batch,))
            if strategy.num_replicas_in_sync == 1:
                return logs
            return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        checked = []  # not empty after the first batch
        compiled = []  # the element spec of the iterator, and the function compiled for it

        def function(iterator):
            start = time.perf_counter()
            batch = next(iterator)
            self.data_wait += time.perf_counter() - start
            if check:
                check(batch)
            if not checked:
                checked.append(True)
                for each in strategy.experimental_local_results(batch):
                    check_first_batch(each)
            if strategy.num_replicas_in_sync == 1:  # one of several may lack images, see `pad_empty_batch`
                check_has_images(unpack_batch(batch))
            if self.run_eagerly:
                return run(batch)
            spec = getattr(iterator, "element_spec", None)  # sizes that vary are None, so one trace serves all batches
            if not compiled or compiled[0] != spec:
                signature = None if spec is None else [spec]
                options = {"reduce_retracing": True, "jit_compile": jit or None, "autograph": False}
                compiled[:] = spec, tf.function(run, signature, **options)
            try:
                return compiled[1](batch)
            except tf.errors.InvalidArgumentError as error:
                raise user_error(error) from None

        return function

    def batch_losses(self, batches: Iterable[Mapping]) -> Iterator[dict[str, float]]:
        """Computes the losses of each batch separately, on all replicas of this process at once.

        Args:
            batches: Training batches; see `training_batch`.

        Yields:
            For each batch, a dict of its losses by name, with their sum as `loss`.
        """

        def step(batch):
            with local_reductions():
                batch = training_batch(batch)
                outputs = self.forward(batch, training=False)
                return _with_total(self.compute_losses(outputs, self.compute_targets(outputs, batch)))

        for _, losses in self.run_on_replicas("losses", step, batches):
            yield {name: float(value) for name, value in losses.items()}

    def run_on_replicas(
        self, name: str, step: Callable[[Mapping], dict], batches: Iterable[Mapping]
    ) -> Iterator[tuple[Mapping, dict[str, tf.Tensor]]]:
        """Runs a function on many batches; each replica of this process runs it on one batch at a time.

        Args:
            name: Key of the function in the cache of traced functions. Use one name per function.
            step: Function of a batch that returns a dict of tensors. It is traced into a graph.
            batches: Dicts of tensors.

        Yields:
            Pairs of a batch and the result of `step` for it, in the order of the batches.
        """
        strategy = self.distribute_strategy
        count = local_replicas(strategy)
        run = self._metric_state.functions.setdefault(
            name, tf.function(lambda batch: strategy.run(step, args=(batch,)), reduce_retracing=True, autograph=False)
        )
        batches = iter(batches)
        while group := list(islice(batches, count)):
            dealt = strategy.experimental_distribute_values_from_function(
                lambda context, group=group: group[context.replica_id_in_sync_group % count % len(group)]
            )
            results = run(dealt)
            for index, batch in enumerate(group):  # the last group may be smaller, and some replicas repeat its batches
                yield batch, {key: strategy.experimental_local_results(value)[index] for key, value in results.items()}


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Lists the moving means and variances that batch norms update in training.

    Args:
        model: A Keras model.

    Returns:
        The variables, in the order of the layers.
    """
    norms = [layer for layer in flatten_layers(model) if hasattr(layer, "moving_mean") and layer.trainable]
    # kerasdet's batch norms have a `mode`
    norms = [norm for norm in norms if getattr(norm, "mode", "bn") in ("bn", "sync_bn")]
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def _with_total(losses):
    """Adds `loss`, the sum of all losses."""
    return {"loss": tf.add_n(list(losses.values())), **losses}


def _parts(batch, count):
    """Splits a batch into `count` equal parts."""
    split = {name: tf.split(value, count) for name, value in batch.items()}
    return [{name: values[index] for name, values in split.items()} for index in range(count)]


def apply_reduced_gradients(
    optimizer: keras.Optimizer, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]
) -> None:
    """Applies an optimizer's step to gradients that are already summed over the replicas.

    Args:
        optimizer: A Keras optimizer.
        gradients: One gradient per variable, the same on all replicas.
        variables: The variables to update.
    """
    if num_replicas() > 1:
        disable_gradient_reduction(optimizer)
    optimizer.apply(gradients, variables)
