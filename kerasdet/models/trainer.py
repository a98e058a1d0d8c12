"""What `fit` and `evaluate` do with a detector, on one device or on many replicas."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace

import keras
import tensorflow as tf

from kerasdet.keras_utils import float_dtype
from kerasdet.ops.distribute import global_max, global_sum, local_reductions, local_replicas, num_replicas


class Trainer(keras.Model):
    """The training step of a model that defines ``call``, ``compute_targets`` and ``compute_losses``.

    N replicas with a part of a batch each make the step that one makes with all of it: images are padded alike,
    whatever divides a loss is counted on all replicas, and gradients are summed, then clipped.

    Args:
        loss_names: Keys of what ``compute_losses`` returns.

    Attributes:
        micro_batches: Into how many parts a replica's batch is split, whose gradients are averaged one after the other.
        xla: Whether XLA compiles the training step, for which batches need one shape.
        data_wait: Seconds that `fit` has waited for data.
    """

    def __init__(self, loss_names: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        self.loss_names = tuple(loss_names)
        self.micro_batches = 1
        self.xla = False
        self.data_wait = 0.0
        self._metric_state = SimpleNamespace(  # what Keras is not to track: checkpoints would hold them
            losses=[keras.metrics.Mean(name=name) for name in ("loss", *loss_names)],
            steps=[keras.metrics.Mean(name=name) for name in ("gradient_norm", "positives")],
            functions={},
        )

    @property
    def metrics(self):
        return [*super().metrics, *self._metric_state.losses, *self._metric_state.steps]

    def train_step(self, data):
        batch = pad_to_global_max(self._with_finite_pixels(training_batch(data)))
        gradients, losses, positives = self._accumulate_gradients(batch)
        gradients = global_sum(gradients)
        norm = tf.linalg.global_norm(gradients) / self.optimizer.scale_loss(tf.ones([], float_dtype()))
        with tf.control_dependencies([self._assert_finite_loss(norm, losses, batch)]):
            gradients = [tf.identity(gradient) for gradient in gradients]
        apply_reduced_gradients(self.optimizer, gradients, self.trainable_variables)
        norm_mean, positives_mean = self._metric_state.steps
        finite = tf.math.is_finite(norm)  # or else, in float16, the step is skipped
        norm_mean.update_state(tf.where(finite, norm, 0), sample_weight=tf.cast(finite, float_dtype()))
        positives_mean.update_state(positives)
        return {**self._track(losses), **{mean.name: mean.result() for mean in self._metric_state.steps}}

    def test_step(self, data):
        batch, share = pad_empty_batch(pad_to_global_max(training_batch(data)))
        outputs = self.forward(batch, training=False)
        targets = self.compute_targets(outputs, batch)
        return self._track(
            _with_total(self.compute_losses(drop_padded_outputs(outputs, share), drop_padded_outputs(targets, share)))
        )

    def forward(self, batch: Mapping[str, tf.Tensor], training: bool) -> dict:
        """The outputs that have losses; two-stage models give themselves the ground truth here."""
        return self(batch, training=training)

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """What a model keeps of a training step's targets, such as a running normaliser."""

    def _accumulate_gradients(self, batch):
        """`_gradients` of a batch, averaged over its parts."""
        if self.micro_batches == 1:
            return self._gradients(batch)
        first, *others = _parts(batch, self.micro_batches)
        total = self._gradients(first)
        for part in others:
            with tf.control_dependencies(tf.nest.flatten(total)):  # one after the other, or nothing is saved
                part = {name: tf.identity(value) for name, value in part.items()}
            total = tf.nest.map_structure(tf.add, total, self._gradients(part))
        return tf.nest.map_structure(lambda value: value / self.micro_batches, total)

    def _gradients(self, batch):
        """Of the scaled loss of a batch; the losses; positives in an image."""
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
            mean.update_state(losses[mean.name] * num_replicas())  # which hold a part of the sum each
        return {mean.name: mean.result() for mean in self._metric_state.losses}

    def _with_finite_pixels(self, batch):
        """The batch, once its pixels are known not to spoil the running averages of norms."""
        image = tf.convert_to_tensor(batch["image"])
        if not image.dtype.is_floating:
            return batch
        facts = ["A pixel is not finite at iteration", self.optimizer.iterations.value]
        if "image_id" in batch:
            facts += ["image ids", batch["image_id"]]
        finite = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(image)), facts, summarize=64)
        with tf.control_dependencies([finite]):
            return {**batch, "image": tf.identity(image)}

    def _assert_finite_loss(self, norm, losses, batch):
        """An assertion that stops before a loss or gradient that is not finite reaches the weights."""
        finite = tf.math.is_finite(losses["loss"])
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):  # which skips such gradients itself
            finite &= tf.math.is_finite(norm)
        facts = ["The loss or its gradient is not finite at iteration", self.optimizer.iterations.value]
        for name, value in losses.items():
            facts += [name, value] if name != "loss" else []
        if "image_id" in batch:
            facts += ["image ids", batch["image_id"]]
        return tf.debugging.Assert(finite, facts, summarize=64)

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.train_function = self._on_replicas(self.train_step, self._check_division, jit=self.xla)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            self.test_function = self._on_replicas(self.test_step)

    def _check_division(self, batch):
        """Each replica has images to train on, and each of its parts as many."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == self.micro_batches == 1:
            return
        counts = [
            len(unpack_batch(each)["image"]) for each in self.distribute_strategy.experimental_local_results(batch)
        ]
        if 0 in counts or any(count % self.micro_batches for count in counts):
            among = f"{replicas} replicas" + f" with {self.micro_batches} micro_batches each" * (self.micro_batches > 1)
            raise ValueError(
                f"A batch to train on has {sum(counts)} images, which do not divide among {among}: the last batch of a "
                "data set is left out with batch(..., drop_remainder=True)."
            )

    def _on_replicas(self, step: Callable, check: Callable | None = None, jit: bool = False) -> Callable:
        """Keras' train and test function: of an iterator, whose next batch all replicas share once `check` has passed.

        Keras' own fails with several workers, where it averages scalars over an axis.
        """
        strategy = self.distribute_strategy

        def run(batch):
            logs = strategy.run(step, args=(batch,))
            if strategy.num_replicas_in_sync == 1:
                return logs
            return {name: strategy.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        compiled = []  # for which kind of batch, and what

        def function(iterator):
            start = time.perf_counter()
            batch = next(iterator)
            self.data_wait += time.perf_counter() - start
            if check:
                check(batch)
            if self.run_eagerly:
                return run(batch)
            spec = getattr(iterator, "element_spec", None)  # which leaves sizes open: one trace for all
            if not compiled or compiled[0] != spec:
                signature = None if spec is None else [spec]
                options = {"reduce_retracing": True, "jit_compile": jit or None, "autograph": False}
                compiled[:] = spec, tf.function(run, signature, **options)
            return compiled[1](batch)

        return function

    def predict_batches(self, batches: Iterable[Mapping]) -> Iterator[tuple[Mapping, dict]]:
        """Batches and their detections, as many at a time as this process has replicas."""

        def step(batch):
            return self.predict_step({name: batch[name] for name in ("image", "image_size")})

        for batch, found in self._each_replica("predictions", step, batches):
            yield batch, {name: value.numpy() for name, value in found.items()}

    def batch_losses(self, batches: Iterable[Mapping]) -> Iterator[dict[str, float]]:
        """The losses of each batch by itself, as many at a time as this process has replicas."""

        def step(batch):
            with local_reductions():
                batch = training_batch(batch)
                outputs = self.forward(batch, training=False)
                return _with_total(self.compute_losses(outputs, self.compute_targets(outputs, batch)))

        for _, losses in self._each_replica("losses", step, batches):
            yield {name: float(value) for name, value in losses.items()}

    def _each_replica(self, name, step, batches):
        """Batches and what `step` makes of them; a function that was traced once stays under its name."""
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
            for index, batch in enumerate(group):  # what is dealt twice at the end counts once
                yield batch, {key: strategy.experimental_local_results(value)[index] for key, value in results.items()}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras would call the model on a mean of all replicas' batches; only the optimizer is still to be built."""
        if self._distribute_strategy is not None and self.optimizer is not None and not self.optimizer.built:
            with self._distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)


def training_batch(data) -> dict[str, tf.Tensor]:
    """Casts a batch to the types of the contract and fills in ``is_crowd`` and ``image_size`` if they are missing."""
    batch = dict(unpack_batch(data))
    if missing := [name for name in ("image", "boxes", "class_ids") if name not in batch]:
        raise ValueError(f"A batch to train on lacks {', '.join(missing)}; it has {', '.join(batch)}.")
    batch.setdefault("image_size", valid_size(batch))
    batch.setdefault("is_crowd", tf.zeros_like(batch["class_ids"], tf.bool))
    types = {"boxes": float_dtype(), "class_ids": tf.int32, "is_crowd": tf.bool, "image_size": tf.int32}
    return {name: tf.cast(value, types[name]) if name in types else value for name, value in batch.items()}


def unpack_batch(data):
    """The batch, which Keras hands over bare from a data set and in a tuple from ``*_on_batch``."""
    return data[0] if isinstance(data, tuple) else data


def valid_size(batch: Mapping[str, tf.Tensor] | tf.Tensor) -> tf.Tensor:
    """(B, 2) int32 of a batch or of a bare image tensor."""
    if isinstance(batch, Mapping):
        if "image_size" in batch:
            return batch["image_size"]
        batch = batch["image"]
    shape = tf.shape(batch)
    return tf.broadcast_to(shape[1:3], [shape[0], 2])


def _with_total(losses):
    return {"loss": tf.add_n(list(losses.values())), **losses}


def _parts(batch, count):
    """Equal parts of a batch."""
    split = {name: tf.split(value, count) for name, value in batch.items()}
    return [{name: values[index] for name, values in split.items()} for index in range(count)]


def pad_to_global_max(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The batch, its images padded to the largest height and width on any replica, as in one batch of them all."""
    image = tf.convert_to_tensor(batch["image"])
    if num_replicas() == 1 or image.shape[1:3].is_fully_defined():
        return {**batch, "image": image}
    size = tf.shape(image)[1:3]
    missing = tf.pad(tf.stack([tf.zeros(2, tf.int32), global_max(size) - size], 1), [[1, 1], [0, 0]])
    padded = tf.ensure_shape(tf.pad(image, missing), image.shape)
    return {**batch, "image": padded}


def pad_empty_batch(batch: Mapping[str, tf.Tensor] | tf.Tensor) -> tuple[Mapping | tf.Tensor, tf.Tensor | None]:
    """A batch that is never empty, as the last of a data set is on the replicas beyond its images.

    Returns:
        The batch, or an image of zeros without objects; and 0 where it is that image, else 1, for `kept` to drop what
        is made of it. The batch itself and None where there is one replica.
    """
    if num_replicas() == 1:
        return batch, None
    batch = batch if isinstance(batch, Mapping) else {"image": batch}
    share = tf.minimum(tf.shape(batch["image"])[0], 1)
    filled = {}
    for name, value in batch.items():
        smallest = [1, 32, 32, 3] if name == "image" else [1] * value.shape.rank
        missing = tf.maximum((1 - share) * smallest - tf.shape(value), 0)
        nothing = tf.cast(-1 if name == "class_ids" else 0, value.dtype)
        padded = tf.pad(value, tf.stack([tf.zeros_like(missing), missing], 1), constant_values=nothing)
        filled[name] = tf.ensure_shape(padded, [None, *value.shape[1:]])
    return filled, share


def drop_padded_outputs(outputs, share: tf.Tensor | None):
    """What a model makes of the images, nothing of the one that `pad_empty_batch` added; anchors are of no image."""
    if share is None:
        return outputs
    if isinstance(outputs, Mapping):
        return {
            name: value if name == "anchors" else drop_padded_outputs(value, share) for name, value in outputs.items()
        }
    return outputs[: share * tf.shape(outputs)[0]]


def apply_reduced_gradients(
    optimizer: keras.Optimizer, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]
) -> None:
    """One step of a Keras optimizer by gradients that are summed over the replicas already.

    Keras would clip what each replica has before it sums; so it gets the sum, and is told not to sum again.
    """
    if num_replicas() > 1:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if not hasattr(inner, "_all_reduce_sum_gradients"):
            raise NotImplementedError(
                f"{type(inner).__name__} of Keras {keras.__version__} does not sum over replicas."
            )
        inner._all_reduce_sum_gradients = list
    optimizer.apply(gradients, variables)
