"""Training by Keras `fit`, with checkpoints and resumption."""

import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kerasdet.data.coco import CocoDataset
from kerasdet.data.pipeline import training_batches
from kerasdet.training.callbacks import Checkpoint, Evaluate, LogJson, StopAtStep, checkpoints

log = logging.getLogger(__name__)


def train(
    model: keras.Model,
    data: CocoDataset,
    *,
    optimizer: keras.optimizers.Optimizer,
    steps: int,
    batch_size: int,
    out_dir: str | Path,
    transforms: Sequence[Callable] = (),
    pad_to: tuple[int, int] | None = None,
    eval_data: CocoDataset | None = None,
    evaluate: Callable | None = None,
    eval_every: int = 1,
    epoch_steps: int | None = None,
    keep_checkpoints: int = 3,
    seed: int = 0,
    config: str | None = None,
) -> keras.Model:
    """Trains a detector, or goes on where an earlier run in `out_dir` stopped.

    An epoch, after which a checkpoint is written, is `epoch_steps` steps. ``out_dir`` receives ``checkpoints/``,
    ``tensorboard/`` and ``metrics.jsonl``.

    Args:
        model: A detector of `kerasdet.models`; compiled here. Learns the data set's names of classes
            and keypoints, if it has any.
        data: What to train on.
        optimizer: A Keras optimizer; `kerasdet.training.SGD` follows the published recipes.
        steps: Of the optimizer in all.
        batch_size: Images in a step.
        out_dir: Where everything is written.
        transforms: Of each image, in order, from `kerasdet.data`.
        pad_to: A fixed (height, width) of the padded batch; by default each batch its own.
        eval_data: What to measure AP on.
        evaluate: ``evaluate(model, eval_data)`` -> metrics with a ``summary`` dict; `kerasdet.evaluate` gives COCO AP.
        eval_every: Epochs between two evaluations; the last is always evaluated.
        epoch_steps: By default one pass over the data.
        keep_checkpoints: How many of the last checkpoints stay.
        seed: Of the order of images and of the transforms.
        config: How all this was configured; kept as ``config.gin`` of `out_dir`, once the run is known to be possible.

    Returns:
        The trained model.

    Raises:
        ValueError: If model and data differ in their classes or keypoints, the data were read without masks, a count
            is not positive, or `out_dir` holds another model's run or a damaged checkpoint.
        FloatingPointError: If the loss is not finite: with iteration, losses and image ids, before weights are hurt.
    """
    counts = {"steps": steps, "batch_size": batch_size, "eval_every": eval_every, "keep_checkpoints": keep_checkpoints}
    for name, value in {**counts, "epoch_steps": epoch_steps or 1}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be a whole number from 1.")
    for part in [data] if eval_data is None else [data, eval_data]:
        _check_classes(model, part)
    if model.num_classes is not None:
        model.class_names = tuple(data.class_names)
    for branch in model.branches:
        _check_annotations(branch, data)
        if branch.annotation == "keypoints":
            branch.keypoint_names, branch.skeleton = data.keypoint_names, data.skeleton
    if not str(out_dir).strip():
        raise ValueError("OUT_DIR (out_dir) is empty: name a folder for the run.")
    out_dir = Path(out_dir)
    model.compile(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    done = _restore(model, out_dir / "checkpoints")
    if done >= steps:
        log.info("%s is already trained for %d steps.", out_dir, done)
        return model

    epoch_steps = min(epoch_steps or -(-len(data.records) // batch_size), steps)
    out_dir.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (out_dir / "config.gin").write_text(config)
    callbacks = [StopAtStep(steps), Checkpoint(out_dir / "checkpoints", keep_checkpoints)]
    if eval_data is not None and evaluate is not None:
        callbacks.append(Evaluate(lambda model: evaluate(model, eval_data).summary, eval_every, steps))
    callbacks += [
        LogJson(out_dir / "metrics.jsonl"),
        keras.callbacks.TensorBoard(out_dir / "tensorboard", write_graph=False),
    ]
    batches = training_batches(data, batch_size, transforms, seed=seed, start_step=done, pad_to=pad_to)
    try:
        model.fit(
            batches,
            initial_epoch=done // epoch_steps,
            epochs=-(-steps // epoch_steps),
            steps_per_epoch=epoch_steps,
            shuffle=False,
            callbacks=callbacks,
        )
    except tf.errors.InvalidArgumentError as error:
        message = str(error)
        if "is not finite at iteration" not in message:
            raise
        raise FloatingPointError(_readable(message)) from None
    return model


def _check_classes(model, data):
    if model.num_classes not in (None, data.num_classes):
        raise ValueError(
            f"The model has {model.num_classes} classes and {data.annotations} has {data.num_classes} "
            f"({', '.join(data.class_names[:5])}{', ...' if data.num_classes > 5 else ''}): "
            f"set NUM_CLASSES (num_classes) to {data.num_classes}."
        )


def _check_annotations(branch, data):
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


def _restore(model, folder):
    """Loads the last checkpoint, if there is one; returns its step."""
    saved = checkpoints(folder)
    if not saved:
        return 0
    try:
        model.load_weights(saved[-1])
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{saved[-1]} is damaged ({error}): delete it to go on from the one before it.") from None
    except (ValueError, KeyError) as error:
        reason = str(error).split(". ")[0]
        raise ValueError(
            f"{saved[-1]} does not fit this model: choose another OUT_DIR (out_dir) or delete that run. ({reason})"
        ) from None
    step = int(model.optimizer.iterations)
    if step != int(saved[-1].stem.removeprefix("step_")):
        raise ValueError(f"{saved[-1]} is of another optimizer: choose another OUT_DIR (out_dir) or delete that run.")
    log.info("Resuming from %s (step %d).", saved[-1], step)
    return step


def _readable(message):
    """The sentence inside TensorFlow's assertion message."""
    facts = re.search(r"assertion failed: (.*)", message).group(1)
    return " ".join(re.findall(r"\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*)\]", facts)) or facts
