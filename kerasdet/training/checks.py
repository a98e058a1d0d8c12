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

from kerasdet.arguments import check_object, check_positive
from kerasdet.data.sampler import ImageSampler
from kerasdet.data.transforms import ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.evaluation import check_ground_truth, match_dataset
from kerasdet.keras_compat import inner_optimizer
from kerasdet.models.batch import equal_parts
from kerasdet.models.detector import is_detector
from kerasdet.ops.distribute import all_gather_object
from kerasdet.training.fingerprint import fingerprint
from kerasdet.training.options import Checkpointing, StepOptions, Validation
from kerasdet.training.validation import metric_names

log = logging.getLogger(__name__)

_MAX_THRESHOLD = 0.3  # above the 0.2 of the published FCOS


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
    """Checks the arguments of `train`, one by one and in combination.

    Args:
        model: Detector.
        data: Dataset to train on.
        optimizer: Keras optimizer.
        steps: Number of training steps of the whole run.
        batch_size: Number of images in a training step, over all replicas.
        validation: Data and rules of evaluation. None: the run is not evaluated.
        step_options: Padding, micro-batches and compilation of a step.
        log_every: Number of steps between two lines of the log.

    Raises:
        UserError: If an argument is invalid.
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


def check_parts(
    model: Any,
    data: Any,
    optimizer: Any,
    *,
    transforms: Any,
    sampler: Any,
    validation: Any,
    checkpointing: Any,
    step_options: Any,
) -> None:
    """Checks that each part of a run is an object of the right kind, and not a class, a name or a path.

    Args:
        model: Detector.
        data: Dataset to train on.
        optimizer: Keras optimizer.
        transforms: List of transforms of the training images.
        sampler: `ImageSampler`, or None.
        validation: `Validation`, or None.
        checkpointing: `Checkpointing`.
        step_options: `StepOptions`.

    Raises:
        UserError: If a part is of the wrong type.
    """
    dataset = ("a dataset", 'open_dataset("data", "train")')
    check_object("train.model", model, is_detector(model), "a detector", 'kerasdet.load("runs/first")')
    check_object("train.data", data, hasattr(data, "records"), *dataset)
    is_optimizer = isinstance(optimizer, keras.optimizers.Optimizer)
    check_object("train.optimizer", optimizer, is_optimizer, "a Keras optimizer", "kerasdet.training.SGD(0.01)")
    for index, transform in enumerate(transforms):
        check_object(f"train.transforms[{index}]", transform, callable(transform), "a transform", "RandomFlip()")
    options = {"sampler": (sampler, ImageSampler), "validation": (validation, Validation)}
    options |= {"checkpointing": (checkpointing, Checkpointing), "step_options": (step_options, StepOptions)}
    for name, (value, kind) in options.items():
        if value is not None:
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            example = f"{kind.__name__}({'data' if kind is Validation else ''})"
            check_object(f"train.{name}", value, isinstance(value, kind), f"{article} {kind.__name__}", example)
    if validation is not None:
        check_object("Validation.data", validation.data, hasattr(validation.data, "records"), *dataset)


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
            f"({', '.join(data.class_names[:5])}{', ...' if data.num_classes > 5 else ''}): set NUM_CLASSES (Python: "
            f"num_classes=) to {data.num_classes}."
        )


def warn_of_other_sizes(model: keras.Model, transforms: Sequence[Callable]) -> None:
    """Warns if training and detection resize images differently: to other sizes, or only one to a square.

    Args:
        model: Detector.
        transforms: Transforms of the training images. Only `ResizeShortestEdge` is compared with `model.preprocessing`.
    """
    rule = model.preprocessing
    for transform in transforms:
        if not isinstance(transform, ResizeShortestEdge) or not hasattr(rule, "shortest"):
            continue
        low = round(min(transform.shortest) * min(transform.scales))
        high = round(max(transform.shortest) * max(transform.scales))
        if not low <= rule.shortest <= high:
            log.warning(
                "Training resizes the shorter side of images to %s pixels, but detection resizes it to %d: set "
                "ResizeShortestEdge.shortest (training) and Preprocessing.shortest (detection; gin: SHORTEST_EDGE) to "
                "similar lengths.",
                f"{low} to {high}" if low < high else low,
                rule.shortest,
            )
        kinds = [
            "stretches images to a square"
            if getattr(part, "rounding", None) == "square"
            else "keeps the aspect ratio of images"
            for part in (transform, rule)
        ]
        if kinds[0] != kinds[1]:
            log.warning(
                "Training %s, but detection %s: set ResizeShortestEdge.rounding to %r, the value of "
                "Preprocessing.rounding.",
                *kinds,
                getattr(rule, "rounding", None),
            )


def warn_of_units(model: keras.Model) -> None:
    """Warns if `mean` and `std` of the model's preprocessing seem to be for pixels in 0..1, not in 0..255.

    Args:
        model: Detector.
    """
    mean, std = (getattr(model.preprocessing, name, None) for name in ("mean", "std"))
    if std is not None and 0 < max(std) < 1:
        log.warning(
            "Preprocessing.mean is %s and Preprocessing.std is %s, as for pixels in 0..1, but pixels are in 0..255: "
            "multiply mean and std by 255.",
            tuple(mean),
            tuple(std),
        )


def warn_of_threshold(model: keras.Model, validation: Validation | None) -> None:
    """Warns if the model's score threshold is above 0.3, because AP also counts detections with lower scores.

    Args:
        model: Detector.
        validation: Data and rules of evaluation. None: the run is not evaluated.
    """
    threshold = getattr(model.postprocessing, "score_threshold", 0.0)
    if validation is not None and threshold > _MAX_THRESHOLD:
        log.warning(
            "Postprocessing.score_threshold is %g, so detections with lower scores do not count and AP will be low: "
            "set it to 0.05 for training, and raise it for detection afterwards.",
            threshold,
        )


def warn_of_schedule(optimizer: keras.optimizers.Optimizer, steps: int) -> None:
    """Warns if the run ends before the warmup of the learning rate, or if the schedule ends before the run.

    Args:
        optimizer: Keras optimizer.
        steps: Number of steps of the whole run.
    """
    config = inner_optimizer(optimizer).get_config()["learning_rate"]
    settings = config.get("config", {}) if isinstance(config, Mapping) else {}
    name = config.get("class_name") if isinstance(config, Mapping) else None
    if settings.get("warmup_steps", 0) >= steps:
        log.warning(
            "The learning rate rises during %s.warmup_steps=%d steps, but STEPS (Python: steps=) is %d, so it does "
            "not reach its peak: decrease warmup_steps.",
            name,
            settings["warmup_steps"],
            steps,
        )
    if settings.get("total_steps", steps) < steps:
        log.warning(
            "The schedule of the learning rate ends after %s.total_steps=%d steps, but STEPS (Python: steps=) is %d: "
            "set total_steps to STEPS.",
            name,
            settings["total_steps"],
            steps,
        )


def check_lists(**values: Any) -> None:
    """Checks that arguments are lists or other sequences of objects.

    Args:
        values: Arguments by name.

    Raises:
        UserError: If an argument is a single object or a string.
    """
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name} is {value!r}: expected a list, also for a single object. Write [...] around it.")


def check_objects(data: Any) -> None:
    """Checks that the dataset has at least one object to train on.

    Args:
        data: Dataset.

    Raises:
        UserError: If the dataset has no objects, or only crowds.
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
    counts = f" (dropped: {', '.join(f'{count} {name}' for name, count in dropped.items())})" if dropped else ""
    raise UserError(
        f"{data.annotations} has nothing to train on: {reason}{counts}. Use annotations with objects that are not "
        "crowds."
    )


def warn_of_same_data(data: Any, validation: Validation | None) -> None:
    """Warns if the validation data contain training images. Passing the training dataset itself is allowed.

    Args:
        data: Dataset to train on.
        validation: Data and rules of evaluation. None: the run is not evaluated.
    """
    if validation is None or data.records is validation.data.records:
        return  # the same object is a choice, not a mistake
    trained = {record.path for record in data.records}
    if shared := sum(record.path in trained for record in validation.data.records):
        log.warning(
            "%d of %d images of %s are also training images, so AP will be too high: split the data, for example "
            "with `kerasdet data split`.",
            shared,
            len(validation.data.records),
            validation.data.annotations,
        )


def check_evaluation(model: keras.Model, validation: Validation) -> None:
    """Checks that an evaluation with `kerasdet.evaluate` can read the ground truth of the validation data.

    Args:
        model: Detector.
        validation: Data and rules of evaluation.

    Raises:
        UserError: If the ground truth is invalid.
    """
    if metric_names(validation.evaluate, model, validation.data):
        types = ["bbox", *(branch.metric for branch in model.branches if branch.metric)]
        check_ground_truth(validation.data.ground_truth, types)


def match_validation(model: keras.Model, data: Any, validation: Validation | None) -> Validation | None:
    """Gives the classes of the validation data the order of the training data.

    Args:
        model: Detector. If it has no classes, the data are not changed.
        data: Dataset to train on.
        validation: Data and rules of evaluation. None: the run is not evaluated.

    Returns:
        The `Validation` with reordered classes, or None if `validation` is None.

    Raises:
        UserError: If the classes cannot be matched by name, for example because the validation data have objects of a
            class that the training data lack.
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
            f"optimizer.gradient_accumulation_steps is {optimizer.gradient_accumulation_steps}, which `train` does "
            "not support: remove the argument, and set StepOptions.micro_batches instead."
        )
    if optimizer.ema_overwrite_frequency and strategy.num_replicas_in_sync > 1:
        raise UserError(
            "optimizer.ema_overwrite_frequency is set, but Keras supports it on one device only: remove the "
            "argument. Training ends with the averaged weights anyway."
        )
    inner = inner_optimizer(optimizer)
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        limit = getattr(inner, name)
        if limit is not None and not (isinstance(limit, Real) and 0 < limit < math.inf):
            raise UserError(f"optimizer.{name} is {limit!r}: expected a number above 0, or None for no clipping.")


def check_monitor(model: keras.Model, validation: Validation) -> None:
    """Checks that `validation.monitor` is a metric of the evaluation, if the names of the metrics are known.

    Args:
        model: Detector.
        validation: Data and rules of evaluation.

    Raises:
        UserError: If no metric has this name.
    """
    names = metric_names(validation.evaluate, model, validation.data)
    if validation.monitor and names and validation.monitor not in names:
        raise UserError(
            f"Validation.monitor is {validation.monitor!r}, which is not a metric of the evaluation: choose one of "
            f"{', '.join(names)}."
        )


def check_division(batch_size: int, strategy: tf.distribute.Strategy, step_options: StepOptions) -> None:
    """Checks that all replicas, and all micro-batches of a replica, get the same number of images.

    Args:
        batch_size: Number of images in a training step, over all replicas.
        strategy: `tf.distribute` strategy that the model was built in.
        step_options: Padding, micro-batches and compilation of a step.

    Raises:
        UserError: If the batch size is not a multiple of replicas times micro-batches, or if `jit_compile` is set with
            several replicas.
    """
    replicas, parts = strategy.num_replicas_in_sync, step_options.micro_batches
    if batch_size % (replicas * parts):
        raise UserError(
            f"BATCH_SIZE (Python: batch_size=) is {batch_size}, which cannot be divided evenly "
            f"{equal_parts(replicas, parts)}: choose a multiple of {replicas * parts}."
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
        settings: Settings by name: datasets, and values that can be stored as JSON.
        options: Dataclasses by name, such as `StepOptions`. All their fields except functions are compared. A value is
            None if an option is off.

    Raises:
        UserError: If workers have different checkpoints, settings or datasets.
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
            f"The workers find checkpoints of different steps, {steps}, in {out_dir}; expected the same. Set OUT_DIR "
            "to a folder on a disk that all workers share."
        )


def _comparable(value):
    """Converts a setting to a JSON value for comparison; a dataset becomes its fingerprint."""
    if isinstance(value, tuple):
        return list(value)
    return fingerprint(value) if hasattr(value, "records") else value
