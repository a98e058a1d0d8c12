"""Checks the arguments of a run before anything is built or written."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasdet.arguments import check_positive
from kerasdet.data.transforms import ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.evaluation import check_ground_truth, match_dataset
from kerasdet.keras_compat import inner_optimizer
from kerasdet.ops.distribute import all_gather_object
from kerasdet.training.fingerprint import fingerprint
from kerasdet.training.options import StepOptions, Validation
from kerasdet.training.validation import metric_names

log = logging.getLogger(__name__)

_MAX_THRESHOLD = 0.3  # the published FCOS has 0.2


def check_arguments(
    model: keras.Model,
    data: Any,
    optimizer: keras.optimizers.Optimizer,
    *,
    steps: int,
    batch_size: int,
    validation: Validation | None,
    step_options: StepOptions,
    log_every: int,
) -> None:
    """Checks the arguments of `train`, each by itself and together.

    Args:
        model: Detector.
        data: Dataset to train on.
        optimizer: Keras optimizer.
        steps: Number of steps of the whole run.
        batch_size: Number of images in a step, over all replicas.
        validation: Data and rules of evaluation, or None.
        step_options: Padding, micro-batches and compilation of a step.
        log_every: Number of steps per line of the log.

    Raises:
        UserError: If an argument is wrong.
    """
    check_positive("train", steps=steps, batch_size=batch_size, log_every=log_every)
    check_classes(model, data)
    check_objects(data)
    for branch in model.branches:
        branch.check_dataset(data)
    strategy = model.distribute_strategy
    check_optimizer(optimizer, strategy)
    if validation is not None:
        check_monitor(model, validation)
        check_evaluation(model, validation)
    check_division(batch_size, strategy, step_options)


def check_classes(model: keras.Model, data: Any) -> None:
    """Checks that model and dataset have the same number of classes.

    Args:
        model: Detector. A model without classes (`num_classes` None) accepts any dataset.
        data: Dataset.

    Raises:
        UserError: If the numbers differ.
    """
    if model.num_classes not in (None, data.num_classes):
        raise UserError(
            f"The model has {model.num_classes} classes, but {data.annotations} has {data.num_classes} "
            f"({', '.join(data.class_names[:5])}{', ...' if data.num_classes > 5 else ''}): set NUM_CLASSES "
            f"(num_classes) to {data.num_classes}."
        )


def warn_of_other_sizes(model: keras.Model, transforms: Sequence[Callable]) -> None:
    """Warns if the training images are never resized to the size that the model uses for detection.

    Args:
        model: Detector.
        transforms: The transforms of training; `ResizeShortestEdge` among them sets the size.
    """
    rule = model.preprocessing
    for transform in transforms:
        if not isinstance(transform, ResizeShortestEdge) or not hasattr(rule, "shortest"):
            continue
        low = round(min(transform.shortest) * min(transform.scales))
        high = round(max(transform.shortest) * max(transform.scales))
        if not low <= rule.shortest <= high:
            log.warning(
                "Training resizes the shorter side of images to %s pixels, and the model detects at %d: set "
                "ResizeShortestEdge.shortest and longest, or SHORTEST_EDGE and LONGEST_EDGE, to similar sizes.",
                f"{low} to {high}" if low < high else low,
                rule.shortest,
            )


def warn_of_units(model: keras.Model) -> None:
    """Warns if the model divides pixels in 0..255 by deviations of pixels in 0..1.

    Args:
        model: Detector.
    """
    mean, std = (getattr(model.preprocessing, name, None) for name in ("mean", "std"))
    if std is not None and 0 < max(std) < 1:
        log.warning(
            "Preprocessing.mean is %s and Preprocessing.std is %s, as for pixels in 0..1, and pixels are in 0..255: "
            "multiply both by 255.",
            tuple(mean),
            tuple(std),
        )


def warn_of_threshold(model: keras.Model, validation: Validation | None) -> None:
    """Warns if the model's own score threshold hides detections that count for AP.

    Args:
        model: Detector.
        validation: Rules of evaluation, or None.
    """
    threshold = getattr(model.postprocessing, "score_threshold", 0.0)
    if validation is not None and threshold > _MAX_THRESHOLD:
        log.warning(
            "Postprocessing.score_threshold is %g, so detections with lower scores do not count and AP will be low: "
            "set it to 0.05, and choose a threshold when you detect.",
            threshold,
        )


def warn_of_schedule(optimizer: keras.optimizers.Optimizer, steps: int) -> None:
    """Warns if the learning rate does not reach its peak, or ends before the run.

    Args:
        optimizer: Keras optimizer.
        steps: Number of steps of the whole run.
    """
    config = inner_optimizer(optimizer).get_config()["learning_rate"]
    settings = config.get("config", {}) if isinstance(config, Mapping) else {}
    name = config.get("class_name") if isinstance(config, Mapping) else None
    if settings.get("warmup_steps", 0) >= steps:
        log.warning(
            "The learning rate rises for %s.warmup_steps %d, and STEPS (steps) is %d, so it does not reach its "
            "peak: set fewer warmup steps.",
            name,
            settings["warmup_steps"],
            steps,
        )
    if settings.get("total_steps", steps) < steps:
        log.warning(
            "The learning rate ends after %s.total_steps %d, and STEPS (steps) is %d: set both to the same number.",
            name,
            settings["total_steps"],
            steps,
        )


def check_lists(**values: Any) -> None:
    """Checks that arguments are sequences of objects.

    Args:
        values: Arguments by name.

    Raises:
        UserError: If one is a single object or a text.
    """
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name} is {value!r}: it must be a list, even of one. Write [...] around it.")


def check_objects(data: Any) -> None:
    """Checks that the dataset has an object to train on.

    Args:
        data: Dataset.

    Raises:
        UserError: If the dataset has no object, or only crowds.
    """
    crowds = sum(len(record.is_crowd) for record in data.records)
    if not data.records or not all(record.is_crowd.all() for record in data.records):
        return
    dropped = {
        name.replace("_", " "): count
        for name, count in data.counts.items()
        if count and name.endswith(("_boxes", "_annotations", "_mask")) and name not in ("crowd_boxes", "clipped_boxes")
    }
    reason = f"its {crowds} objects are all crowds (iscrowd 1)" if crowds else "its images have no objects"
    counts = f" ({', '.join(f'{count} {name}' for name, count in dropped.items())})" if dropped else ""
    raise UserError(
        f"{data.annotations} has nothing to train on: {reason}{counts}. Give annotations with objects that are not "
        "crowds."
    )


def warn_of_same_data(data: Any, validation: Validation | None) -> None:
    """Warns if a run is evaluated on the images that it is trained on.

    Args:
        data: Dataset to train on.
        validation: Rules of evaluation, or None.
    """
    if validation is None or data.records is validation.data.records:
        return  # the same object is a choice, not a mistake
    trained = {record.path for record in data.records}
    if shared := sum(record.path in trained for record in validation.data.records):
        log.warning(
            "%d of %d images of %s are also trained on, so AP will be too high: divide the data, for example with "
            "`kerasdet data split`.",
            shared,
            len(validation.data.records),
            validation.data.annotations,
        )


def check_evaluation(model: keras.Model, validation: Validation) -> None:
    """Checks that `kerasdet.evaluate` can read the ground truth of the validation data.

    Args:
        model: Detector.
        validation: Data and rules of evaluation.

    Raises:
        UserError: If an evaluation would fail because of the data.
    """
    if metric_names(validation.evaluate, model, validation.data):
        types = ["bbox", *(branch.metric for branch in model.branches if branch.metric)]
        check_ground_truth(validation.data.ground_truth, types)


def match_validation(model: keras.Model, data: Any, validation: Validation | None) -> Validation | None:
    """Reorders the classes of the validation data to the order of the training data.

    Args:
        model: Detector. For a model without classes nothing changes.
        data: Dataset to train on.
        validation: Data and rules of evaluation, or None.

    Returns:
        The validation with reordered data, or None if `validation` is None.

    Raises:
        UserError: If the validation data have objects of classes that are not trained.
    """
    if validation is None or model.num_classes is None:
        return validation
    return replace(validation, data=match_dataset(data.num_classes, data.class_names, validation.data))


def check_optimizer(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """Checks that all options of the optimizer work in `train`.

    Args:
        optimizer: Keras optimizer.
        strategy: `tf.distribute` strategy that the model was built in.

    Raises:
        UserError: If an option does not work, or a clipping limit is not a number above 0.
    """
    if optimizer.gradient_accumulation_steps:
        raise UserError(
            f"optimizer.gradient_accumulation_steps is {optimizer.gradient_accumulation_steps}, which `train` does not "
            "support, because steps that only accumulate would count as steps of the run: leave it out and set "
            "StepOptions.micro_batches."
        )
    if optimizer.ema_overwrite_frequency and strategy.num_replicas_in_sync > 1:
        raise UserError(
            "optimizer.ema_overwrite_frequency is set, but it works on one device only: leave it out. Training ends "
            "with the averaged weights anyway."
        )
    inner = inner_optimizer(optimizer)
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        limit = getattr(inner, name)
        if limit is not None and not (isinstance(limit, Real) and 0 < limit < math.inf):
            raise UserError(f"optimizer.{name} is {limit!r}: give a number above 0, or None for no clipping.")


def check_monitor(model: keras.Model, validation: Validation) -> None:
    """Checks that an evaluation returns the number `validation.monitor`, if its names are known before the first one.

    Args:
        model: Detector.
        validation: Data and rules of evaluation.

    Raises:
        UserError: If no number has this name.
    """
    names = metric_names(validation.evaluate, model, validation.data)
    if validation.monitor and names and validation.monitor not in names:
        raise UserError(
            f"Validation.monitor is {validation.monitor!r}, which the evaluation does not return: choose one of "
            f"{', '.join(names)}."
        )


def check_division(batch_size: int, strategy: tf.distribute.Strategy, step_options: StepOptions) -> None:
    """Checks that all replicas, and all micro-batches of a replica, get the same number of images.

    Args:
        batch_size: Number of images in a step, over all replicas.
        strategy: `tf.distribute` strategy that the model was built in.
        step_options: Padding, micro-batches and compilation of a step.

    Raises:
        UserError: If the images cannot be divided evenly, or `jit_compile` is set with several replicas.
    """
    replicas, parts = strategy.num_replicas_in_sync, step_options.micro_batches
    if batch_size % (replicas * parts):
        among = f"{replicas} replicas" + (f" with {parts} micro_batches each" if parts > 1 else "")
        raise UserError(
            f"BATCH_SIZE (batch_size) is {batch_size}, which cannot be divided evenly among {among}: choose a multiple "
            f"of {replicas * parts}."
        )
    if step_options.jit_compile and replicas > 1:
        raise UserError(
            f"StepOptions.jit_compile works on one replica only, but there are {replicas}: set it to False."
        )


def check_same_on_all_workers(
    strategy: tf.distribute.Strategy,
    completed_steps: int,
    out_dir: str | Path,
    settings: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Checks that all workers resume the same checkpoint with the same settings and datasets.

    Args:
        strategy: `tf.distribute` strategy that the model was built in.
        completed_steps: Number of steps in the checkpoint that this worker found.
        out_dir: Folder of the run.
        settings: Settings by name: datasets, and values that JSON can hold.
        options: Dataclasses by name, such as `StepOptions`. Their fields are compared as well. None if an option is
            off.

    Raises:
        UserError: If the workers differ.
    """
    settings = {name: _comparable(value) for name, value in settings.items()}
    for option, group in (options or {}).items():
        values = {field.name: getattr(group, field.name) for field in fields(group)} if group else {}
        settings |= {f"{option}.{name}": _comparable(value) for name, value in values.items() if not callable(value)}
        settings[option] = "set" if group else None
    workers = all_gather_object(strategy, {"completed_steps": completed_steps, "settings": settings})
    for name in dict.fromkeys(name for worker in workers for name in worker["settings"]):
        values = [worker["settings"].get(name) for worker in workers]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise UserError(
                f"The workers have different values of {name}: worker 0 has {values[0]}, worker {other} has "
                f"{values[other]}. Start all workers with the same configuration and data."
            )
    steps = [worker["completed_steps"] for worker in workers]
    if len(set(steps)) > 1:
        raise UserError(
            f"The workers find checkpoints of different steps, {steps}, in {out_dir}: put OUT_DIR on a disk that all "
            "workers share."
        )


def _comparable(value):
    """Converts a setting to a JSON value for comparison; a dataset becomes its fingerprint."""
    if isinstance(value, tuple):
        return list(value)
    return fingerprint(value) if hasattr(value, "records") else value
