"""Training by Keras `fit`, on one device or many, that goes on where it was interrupted."""

import contextlib
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kerasdet.data.coco import CocoDataset
from kerasdet.data.pipeline import training_batches
from kerasdet.ops.distribute import worker_rank
from kerasdet.training import checks
from kerasdet.training.ema import use_averages
from kerasdet.training.files import locked, replacing
from kerasdet.training.freezing import freeze_layers
from kerasdet.training.loop import Run
from kerasdet.training.metrics_log import RunLog, ThroughputLogger
from kerasdet.training.resume import restore
from kerasdet.training.validation import Validation


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
    max_boxes: int | None = None,
    freeze: Sequence[str] = (),
    micro_batches: int = 1,
    jit_compile: bool = False,
    eval_data: CocoDataset | None = None,
    evaluate: Callable | None = None,
    eval_every: int = 1,
    monitor: str | None = None,
    patience: int | None = None,
    epoch_steps: int | None = None,
    keep_checkpoints: int = 3,
    log_every: int = 20,
    seed: int = 0,
    config: str | None = None,
) -> keras.Model:
    """Trains a detector, or goes on where an earlier run in `out_dir` stopped.

    An epoch, after which a checkpoint is written, is `epoch_steps` steps; SIGTERM has one written, too, and ends the
    process. ``out_dir`` receives ``checkpoints/``, ``best.keras``, ``tensorboard/`` and ``metrics.jsonl``.

    On many replicas model and optimizer are made, and this is called, in the scope of a `tf.distribute` strategy (see
    `make_strategy`). All workers need the same `out_dir`; the first writes it.

    Args:
        model: A detector of `kerasdet.models`; compiled here. Learns the data set's names of classes
            and keypoints, if it has any.
        data: What to train on.
        optimizer: A Keras optimizer; `kerasdet.training.SGD` follows the published recipes. With `use_ema` the
            averages are what is measured, kept as the best and returned.
        steps: In all.
        batch_size: Images in a step, of all replicas together.
        out_dir: Where everything is written.
        transforms: Of each image, in order, from `kerasdet.data`.
        pad_to: A fixed (height, width) of the padded batch; by default each batch its own.
        max_boxes: A fixed number of objects in an image, padded; by default each batch its own.
        freeze: Layers that are not trained, such as "backbone", "backbone/stem" and "backbone/c2_*".
        micro_batches: Into how many parts a replica splits its images, one after the other, to save memory: the
            gradient is the mean of theirs. Each is counted and normalised by itself, and a running normaliser (``ema``)
            moves once a part: parts on replicas hold other images, and make another step, than parts on one device.
        jit_compile: Compile the training step with XLA: needs `pad_to`, `max_boxes` and one replica.
        eval_data: What to measure losses and AP on.
        evaluate: ``evaluate(model, eval_data)`` -> metrics with a ``summary`` dict; `kerasdet.evaluate` gives COCO AP.
        eval_every: Epochs between two evaluations; the last is always evaluated.
        monitor: By what number the best model is chosen, such as "AP50", "segm/AP" or "val_loss"; by default "AP".
        patience: Training ends after so many evaluations without a better one; by default never.
        epoch_steps: By default one pass over the data.
        keep_checkpoints: How many of the last checkpoints stay.
        log_every: Steps whose mean is a line of the log.
        seed: Of the order of images and of the transforms.
        config: How all this was configured; kept as ``config.gin`` of `out_dir`, once the run is known to be possible.

    Returns:
        The trained model.

    Raises:
        ValueError: If model and data differ in their classes or keypoints, the data were read without masks, a count
            is not positive, images do not divide among replicas, another process trains in `out_dir`, or it holds
            another model's run or a damaged checkpoint.
        OSError: If `out_dir` cannot be written; what is there stays.
        FloatingPointError: If the loss is not finite: with iteration, losses and image ids, before weights are hurt.
        SystemExit: 143 after SIGTERM.
    """
    counts = {"steps": steps, "batch_size": batch_size, "eval_every": eval_every, "keep_checkpoints": keep_checkpoints}
    optional = {"epoch_steps": epoch_steps, "patience": patience}
    counts |= {"micro_batches": micro_batches, "log_every": log_every}
    checks.whole_and_positive({**counts, **{name: value for name, value in optional.items() if value is not None}})
    for part in [data] if eval_data is None else [data, eval_data]:
        checks.classes(model, part)
    for branch in model.branches:
        checks.annotations(branch, data)
    strategy = model.distribute_strategy
    checks.optimizer(optimizer, strategy)
    checks.monitored(model, eval_data, evaluate, monitor, patience)
    checks.division(batch_size, strategy, micro_batches)
    if jit_compile:
        checks.jit(strategy, pad_to, max_boxes)
    if not str(out_dir).strip():
        raise ValueError("OUT_DIR (out_dir) is empty: name a folder for the run.")
    out_dir = Path(out_dir)
    _learn_names(model, data)
    freeze_layers(model, freeze)
    model.micro_batches = micro_batches
    model.xla = jit_compile
    model.compile(optimizer=optimizer)
    model.optimizer.build(model.trainable_variables)

    number, _ = worker_rank(strategy)
    if number == 0:
        _make_folders(out_dir)
    with locked(out_dir) if number == 0 else contextlib.nullcontext():
        settings = {"data": _fingerprint(data), "batch_size": batch_size, "seed": seed, "freeze": list(freeze)}
        done, images = restore(model, out_dir / "checkpoints", settings)
        shared = {"data": data, "eval_data": eval_data, **counts, **optional, "seed": seed, "monitor": monitor}
        checks.same_on_all_workers(strategy, done, out_dir, shared)
        if number == 0 and done < steps and config is not None:
            with replacing(out_dir / "config.gin") as partial:
                partial.write_text(config)
        run_log = RunLog(out_dir, done, writes=number == 0)
        epoch_steps = min(epoch_steps or -(-len(data.records) // batch_size), steps)
        validation = None
        if eval_data is not None and evaluate is not None:
            best = out_dir / "best.keras" if number == 0 else None
            validation = Validation(model, eval_data, evaluate, run_log, best, monitor, patience)
        run = Run(
            model,
            out_dir / "checkpoints" if number == 0 else None,
            keep=keep_checkpoints,
            speed=ThroughputLogger(model, run_log, batch_size, log_every, steps),
            validation=validation,
            save_every=epoch_steps,
            measure_every=epoch_steps * eval_every,
            steps=steps,
            batch_size=batch_size,
            settings=settings,
            done=done,
            images=images,
        )

        def batches(input_context=None):
            start = images // batch_size
            arguments = {"seed": seed, "start_step": start, "pad_to": pad_to, "max_boxes": max_boxes}
            return training_batches(data, batch_size, transforms, input_context=input_context, **arguments)

        try:
            run.fit(batches)
        except tf.errors.InvalidArgumentError as error:
            message = str(error)
            if "is not finite at iteration" not in message:
                raise
            raise FloatingPointError(_readable(message)) from None
    use_averages(model)
    return model


def _learn_names(model, data):
    if model.num_classes is not None:
        model.class_names = tuple(data.class_names)
    for branch in model.branches:
        if branch.annotation == "keypoints":
            branch.keypoint_names, branch.skeleton = data.keypoint_names, data.skeleton


def _fingerprint(data):
    """By which another data set is told: its images, their order, the names of classes."""
    content = json.dumps([[record.image_id for record in data.records], list(data.class_names)])
    return f"{len(data.records)} images of {data.num_classes} classes (checksum {zlib.crc32(content.encode()):08x})"


def _make_folders(out_dir):
    """Makes the folders of the run, or says at once that they cannot be written."""
    for folder in (out_dir, out_dir / "checkpoints", out_dir / "tensorboard"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise OSError(f"OUT_DIR (out_dir): {folder} cannot be written: {reason}.") from None


def _readable(message):
    """The sentence inside TensorFlow's assertion message."""
    facts = re.search(r"assertion failed: (.*)", message).group(1)
    return " ".join(re.findall(r"\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*)\]", facts)) or facts
