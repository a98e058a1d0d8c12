"""What would go wrong in a training, said in a sentence before anything is built or written."""

import math
import zlib
from collections.abc import Callable, Mapping
from numbers import Real

import keras
import numpy as np
import tensorflow as tf

from kerasdet.ops.distribute import all_gather_object
from kerasdet.training.validation import measures


def whole_and_positive(counts: Mapping[str, int]) -> None:
    """Counts are whole numbers from 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number from 1.")


def classes(model, data) -> None:
    """Model and data have as many classes."""
    if model.num_classes not in (None, data.num_classes):
        raise ValueError(
            f"The model has {model.num_classes} classes and {data.annotations} has {data.num_classes} "
            f"({', '.join(data.class_names[:5])}{', ...' if data.num_classes > 5 else ''}): "
            f"set NUM_CLASSES (num_classes) to {data.num_classes}."
        )


def annotations(branch, data) -> None:
    """The data were read with what a branch of the model learns."""
    name = branch.annotation
    if getattr(data.records[0], {"masks": "num_runs", "keypoints": "keypoints"}[name]) is None:
        raise ValueError(
            f"The model learns {name}, and {data.annotations} was read without them: set CocoDataset.{name}=True "
            f"({name}=True); Pascal VOC has none."
        )
    if name == "keypoints" and branch.num_keypoints != len(data.keypoint_names):
        raise ValueError(
            f"The model has {branch.num_keypoints} keypoints and {data.annotations} has {len(data.keypoint_names)}: "
            f"set KeypointBranch.num_keypoints to {len(data.keypoint_names)}."
        )


def optimizer(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    """The optimizer does nothing behind the back of the run."""
    if optimizer.gradient_accumulation_steps:
        raise ValueError("gradient_accumulation_steps is not counted here: give train micro_batches instead.")
    if optimizer.ema_overwrite_frequency and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "ema_overwrite_frequency works on one device only: leave it out, training ends with the averages."
        )
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        limit = getattr(inner, name)
        if limit is not None and not (isinstance(limit, Real) and 0 < limit < math.inf):
            raise ValueError(f"{name} is {limit!r}: it must be a number above 0, or None to clip nothing.")


def monitored(model, eval_data, evaluate: Callable | None, monitor: str | None, patience: int | None) -> None:
    """There is something to measure, and a number `monitor` in it, as far as one can know before."""
    if eval_data is None or evaluate is None:
        for name, value in {"monitor": monitor, "patience": patience}.items():
            if value is not None:
                raise ValueError(f"{name} is {value!r}, and nothing is measured: give train eval_data and evaluate.")
    elif monitor and (known := measures(evaluate, model, eval_data)) and monitor not in known:
        raise ValueError(f"There is no {monitor!r} to monitor: there are {', '.join(known)}.")


def division(batch_size: int, strategy: tf.distribute.Strategy, micro_batches: int) -> None:
    """Each replica gets as many images, and each part of them."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * micro_batches):
        among = f"{replicas} replicas" + (f" with {micro_batches} micro_batches each" if micro_batches > 1 else "")
        raise ValueError(f"BATCH_SIZE (batch_size) {batch_size} does not divide among {among}.")


def jit(strategy: tf.distribute.Strategy, pad_to, max_boxes) -> None:
    """XLA can compile the training step."""
    if pad_to is None or max_boxes is None:
        raise ValueError("jit_compile needs batches of one shape: give train pad_to and max_boxes.")
    if strategy.num_replicas_in_sync > 1:
        raise ValueError("jit_compile works on one replica only.")


def same_on_all_workers(strategy: tf.distribute.Strategy, done: int, out_dir, settings: Mapping) -> None:
    """All workers go on from one checkpoint, with the same settings and data sets."""
    settings = {name: _comparable(value) for name, value in settings.items()}
    workers = all_gather_object(strategy, {"done": done, "settings": settings})
    for name in settings:
        values = [each["settings"][name] for each in workers]
        other = next((number for number, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ValueError(
                f"The workers differ in {name}: worker 0 has {values[0]} and worker {other} has {values[other]}: start "
                "all with the same configuration and data."
            )
    steps = [each["done"] for each in workers]
    if len(set(steps)) > 1:
        raise ValueError(
            f"The workers find checkpoints of steps {steps} in {out_dir}: OUT_DIR must be on a shared disk."
        )


def _comparable(value):
    """What JSON can hold of a setting; of a data set which images it has, in which order."""
    if not hasattr(value, "records"):
        return value
    ids = np.array([record.image_id for record in value.records], np.int64)
    return f"{len(ids)} images (ids with checksum {zlib.crc32(ids.tobytes()):08x})"
