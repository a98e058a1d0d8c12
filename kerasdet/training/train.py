"""Trains by Keras `fit` on one device or many, and resumes interrupted runs."""

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
from kerasdet.data.sampler import ImageSampler
from kerasdet.ops.distribute import worker_rank
from kerasdet.training import checks
from kerasdet.training.ema import use_averages
from kerasdet.training.files import locked, replacing
from kerasdet.training.freezing import check_frozen_layers, freeze_layers
from kerasdet.training.loop import TrainingLoop
from kerasdet.training.metrics_log import RunLog, ThroughputLogger
from kerasdet.training.options import Checkpointing, StepOptions, Validation
from kerasdet.training.resume import checkpoints, restore
from kerasdet.training.validation import Validator


def train(
    model: keras.Model,
    data: CocoDataset,
    *,
    optimizer: keras.optimizers.Optimizer,
    steps: int,
    batch_size: int,
    out_dir: str | Path,
    transforms: Sequence[Callable] = (),
    sampler: ImageSampler | None = None,
    freeze: Sequence[str] = (),
    validation: Validation | None = None,
    checkpointing: Checkpointing | None = None,
    step_options: StepOptions | None = None,
    log_every: int = 20,
    seed: int = 0,
    config: str | None = None,
) -> keras.Model:
    """Trains a detector, or resumes the run in `out_dir`.

    The run writes ``checkpoints/``, ``best.keras``, ``tensorboard/`` and ``metrics.jsonl`` into `out_dir`. On SIGTERM
    it saves a checkpoint, then exits.

    To train on many replicas, build model and optimizer and call this function in the scope of a `tf.distribute`
    strategy (see `make_strategy`). All workers need the same `out_dir`; only the first writes there.

    Example:
        >>> train(
        ...     kerasdet.RetinaNet(num_classes=3),
        ...     CocoDataset("train.json"),
        ...     optimizer=SGD(0.01),
        ...     steps=2000,
        ...     batch_size=8,
        ...     out_dir="runs/first",
        ...     validation=Validation(CocoDataset("val.json")),
        ... )

    Args:
        model: Detector of `kerasdet.models`. It is compiled here, and takes the dataset's class and keypoint names.
        data: Dataset to train on.
        optimizer: Keras optimizer; `kerasdet.training.SGD` follows the published recipes. With `use_ema` the averaged
            weights are evaluated, kept as the best and returned.
        steps: Steps of the whole run, including those of earlier processes.
        batch_size: Images in a step, over all replicas.
        out_dir: Folder for everything that the run writes.
        transforms: Functions of `kerasdet.data.transforms` that resize and augment each image, in this order.
        sampler: Repeats images with rare classes, or groups images by aspect ratio. None does neither.
        freeze: Layers that are not trained, such as "backbone", "backbone/stem" and "backbone/c2_*".
        validation: Data and rules of evaluation. None trains without validation.
        checkpointing: How often checkpoints are written, and how many stay. None takes the defaults.
        step_options: Padding, micro-batches and compilation of a step. None takes the defaults.
        log_every: Steps whose mean becomes a line of the log.
        seed: Seed of the order of images and of the transforms.
        config: Text that configured the run, saved as ``config.gin`` in `out_dir` if the run can start.

    Returns:
        The trained model.

    Raises:
        UserError: If model and data do not fit, an option is wrong, frozen layers have random weights, images do not
            divide among replicas, another process trains in `out_dir`, or `out_dir` holds another model's run or a
            damaged checkpoint.
        OSError: If `out_dir` cannot be written. Existing files stay intact.
        FloatingPointError: If the loss is not finite. Names iteration, losses and image ids; the weights stay intact.
        SystemExit: 143 after SIGTERM.
    """
    checkpointing, step_options = checkpointing or Checkpointing(), step_options or StepOptions()
    strategy = model.distribute_strategy
    checks.check_arguments(
        model,
        data,
        optimizer,
        steps=steps,
        batch_size=batch_size,
        out_dir=out_dir,
        validation=validation,
        step_options=step_options,
        log_every=log_every,
    )
    out_dir = Path(out_dir)
    if not checkpoints(out_dir / "checkpoints"):  # else the run passed this check before, and its weights are there
        check_frozen_layers(model, freeze)
    _take_names(model, data)
    freeze_layers(model, freeze)
    model.micro_batches = step_options.micro_batches
    model.xla = step_options.jit_compile
    model.compile(optimizer=optimizer)
    model.optimizer.build(model.trainable_variables)

    rank, _ = worker_rank(strategy)
    if rank == 0:
        _make_folders(out_dir)
    with locked(out_dir) if rank == 0 else contextlib.nullcontext():
        settings = {"data": _fingerprint(data), "batch_size": batch_size, "seed": seed, "freeze": list(freeze)}
        completed_steps, completed_images = restore(model, out_dir / "checkpoints", settings)
        shared = {"data": data, "steps": steps, "batch_size": batch_size, "log_every": log_every, "seed": seed}
        options = {"validation": validation, "checkpointing": checkpointing, "step_options": step_options}
        options["sampler"] = sampler
        checks.check_same_on_all_workers(strategy, completed_steps, out_dir, shared, options)
        if rank == 0 and completed_steps < steps and config is not None:
            with replacing(out_dir / "config.gin") as partial:
                partial.write_text(config)
        run_log = RunLog(out_dir, completed_steps, writes=rank == 0)
        epoch = min(checkpointing.steps_per_epoch or -(-len(data.records) // batch_size), steps)
        validator = None
        if validation is not None:
            validator = Validator(model, validation, run_log, out_dir / "best.keras" if rank == 0 else None)
        loop = TrainingLoop(
            model,
            out_dir / "checkpoints" if rank == 0 else None,
            max_to_keep=checkpointing.max_to_keep,
            throughput=ThroughputLogger(model, run_log, batch_size, log_every, steps),
            validator=validator,
            save_every=epoch,
            validate_every=epoch * validation.every if validation is not None else steps,
            steps=steps,
            batch_size=batch_size,
            settings=settings,
            completed_steps=completed_steps,
            completed_images=completed_images,
        )

        def batches(input_context=None):
            return training_batches(
                data,
                batch_size,
                transforms,
                sampler=sampler,
                input_context=input_context,
                seed=seed,
                start_step=completed_images // batch_size,
                pad_to=step_options.pad_to,
                max_boxes=step_options.max_boxes,
            )

        try:
            loop.fit(batches)
        except tf.errors.InvalidArgumentError as error:
            message = str(error)
            if "is not finite at iteration" not in message:
                raise
            raise FloatingPointError(_assertion_text(message)) from None
    use_averages(model)
    return model


def _take_names(model, data):
    """Copies the class names of the dataset to the model, and other names, such as keypoints, to its branches."""
    if model.num_classes is not None:
        model.class_names = tuple(data.class_names)
    for branch in model.branches:
        branch.learn_names(data)


def _fingerprint(data):
    """Identifies a dataset by its images, their order and the names of its classes."""
    content = json.dumps([[record.image_id for record in data.records], list(data.class_names)])
    return f"{len(data.records)} images of {data.num_classes} classes (checksum {zlib.crc32(content.encode()):08x})"


def _make_folders(out_dir):
    """Makes the folders of the run and tries to write there, so that an error occurs before the first step."""
    for folder in (out_dir, out_dir / "checkpoints", out_dir / "tensorboard"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise OSError(
                f"OUT_DIR (out_dir): {folder} cannot be written: {reason}. Choose a folder that can be written."
            ) from None


def _assertion_text(message):
    """Extracts the sentence from the message of a failed TensorFlow assertion, a list of bracketed values."""
    facts = re.search(r"assertion failed: (.*)", message).group(1)
    return " ".join(re.findall(r"\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*)\]", facts)) or facts
