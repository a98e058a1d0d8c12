"""Trains with Keras' `fit` on one or many devices, and resumes interrupted runs."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from kerasdet.arguments import check_seed
from kerasdet.data.coco import CocoDataset
from kerasdet.data.pipeline import training_batches
from kerasdet.data.sampler import ImageSampler
from kerasdet.errors import UserError
from kerasdet.files import locked, replacing
from kerasdet.ops.distribute import worker_rank
from kerasdet.paths import expand, make_folder
from kerasdet.training import checks
from kerasdet.training.callbacks import RunCallbacks, check_callbacks
from kerasdet.training.class_weights import keep_shared_classes
from kerasdet.training.ema import use_averages
from kerasdet.training.fingerprint import fingerprint
from kerasdet.training.freezing import check_frozen_layers, freeze_layers
from kerasdet.training.loop import TrainingLoop
from kerasdet.training.metrics_log import RUN_LOG, RunLog, ThroughputLogger
from kerasdet.training.options import Checkpointing, StepOptions, Validation
from kerasdet.training.resume import checkpoints, restore, settings_of_parts
from kerasdet.training.validation import Validator, settings_of_validation

log = logging.getLogger(__name__)
_BEST, _CONFIG = "best.keras", "config.gin"
_PRETRAINED = "pretrained path"  # name of a setting in checkpoints
_IGNORED_STEPS = "ignored steps"  # name of a setting in checkpoints: argument of `Validator`


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
    callbacks: Sequence[keras.callbacks.Callback] = (),
    log_every: int = 20,
    seed: int = 0,
    config: str | None = None,
) -> keras.Model:
    """Trains a detector, or resumes the run in `out_dir`.

    The run writes ``checkpoints/``, ``best.keras``, ``comparison.png`` (ground truth beside detections),
    ``tensorboard/`` and ``metrics.jsonl`` into `out_dir`. On SIGTERM it saves a checkpoint, then exits.

    To train on many replicas, build model and optimizer and call this function in the scope of a `tf.distribute`
    strategy (see `make_strategy`). All workers need the same `out_dir`; only the first worker writes to it.

    Example:
        >>> data = CocoDataset("mine/train.json")
        >>> model = kerasdet.loading.pretrained("torchvision/retinanet_resnet50_fpn_v2", data.num_classes)
        >>> model = kerasdet.train(
        ...     model,
        ...     data,
        ...     optimizer=SGD(0.0025, global_clipnorm=10.0),
        ...     steps=2000,
        ...     batch_size=4,
        ...     transforms=[ResizeShortestEdge((640,), 1067), RandomFlip()],
        ...     out_dir="runs/first",
        ...     validation=Validation(CocoDataset("mine/val.json")),
        ... )

    Args:
        model: Detector of `kerasdet.models`. The function compiles it and sets its class and keypoint names from the
            dataset.
        data: Dataset to train on.
        optimizer: Keras optimizer; `kerasdet.training.SGD` follows the published recipes. With `use_ema`, the averaged
            weights are evaluated, saved as ``best.keras`` and returned.
        steps: Number of training steps of the whole run, including the steps of earlier processes.
        batch_size: Number of images in a training step, over all replicas.
        out_dir: Folder for everything that the run writes.
        transforms: Functions of `kerasdet.data.transforms` that resize and augment each image, in this order.
        sampler: Object that repeats images with rare classes, or groups images by aspect ratio. None: every image is
            seen once per epoch, without grouping.
        freeze: Names and patterns of layers to freeze (not to train), such as "backbone", "backbone/stem" and
            "backbone/c2_*"; see `kerasdet.training.freezing.freeze_layers`.
        validation: Data and rules of evaluation. None: the run has no validation.
        checkpointing: Interval of checkpoints, and number of checkpoints to keep. None: `Checkpointing()`.
        step_options: Padding, micro-batches and compilation of a step. None: `StepOptions()`.
        callbacks: Keras callbacks, such as `keras.callbacks.CSVLogger`, `kerasdet.training.MLflowLogger` and
            `WandbLogger`. All training methods of the callbacks are called, and `on_test_begin` and `on_test_end`
            around each evaluation. An epoch ends after each evaluation (without validation: after each checkpoint) and
            after the last step. The logs of an epoch hold the losses, the learning rate, ``step`` and the metrics of
            the evaluation; `params` holds ``out_dir``. Checkpoints do not save the state of callbacks. With several
            workers, only the first worker calls the callbacks.
        log_every: Number of steps between two lines of the log, which hold the means over these steps.
        seed: Seed of the order of images and of the transforms, from 0 to 2**32 - 1.
        config: Gin configuration of the run, saved as ``config.gin`` in `out_dir` when the run starts. None: nothing is
            saved.

    Returns:
        `model` with the weights after the last step (with `use_ema`, their averages). ``best.keras`` may hold the
        weights of an earlier step.

    Raises:
        UserError: If an argument is of the wrong type, model and data do not fit, an option is invalid, frozen layers
            have random weights, images cannot be divided evenly among replicas, another process trains in `out_dir`, or
            `out_dir` holds a damaged checkpoint or the run of another model or of other classes.
        OSError: If `out_dir` cannot be written. Existing files stay intact.
        FloatingPointError: If the loss is not finite. The message contains iteration, losses and image ids; the weights
            are not changed.
        RuntimeError: If another worker has ended.
        SystemExit: With code 143 after SIGTERM.
    """
    checkpointing, step_options = checkpointing or Checkpointing(), step_options or StepOptions()
    out_dir = expand(out_dir, "OUT_DIR (Python: out_dir=)")
    check_seed("train", seed)
    checks.check_lists(transforms=transforms, freeze=freeze, callbacks=callbacks)
    checks.check_parts(
        model,
        data,
        optimizer,
        transforms=transforms,
        sampler=sampler,
        validation=validation,
        checkpointing=checkpointing,
        step_options=step_options,
    )
    validation = checks.match_validation(model, data, validation)
    check_callbacks(callbacks)
    checks.check_arguments(
        model,
        data,
        optimizer,
        steps=steps,
        batch_size=batch_size,
        validation=validation,
        step_options=step_options,
        log_every=log_every,
    )
    if not checkpoints(out_dir / "checkpoints"):
        if (out_dir / _BEST).exists():
            raise UserError(
                f"{out_dir} holds {_BEST} of an earlier run, but no checkpoint to resume it: a new run would replace "
                f"{_BEST}. Use another OUT_DIR (Python: out_dir=), or move or delete {_BEST}."
            )
        if config is not None and (out_dir / _CONFIG).exists() and not (out_dir / RUN_LOG).exists():
            raise UserError(
                f"{out_dir / _CONFIG} is not the file of a run, whose configuration would replace it: rename the file, "
                "or use another OUT_DIR (Python: out_dir=)."
            )
        # a resumed run has passed this check before, and its weights are not random
        check_frozen_layers(model, freeze)
        if model.pretrained_classes is not None:
            keep_shared_classes(model, data.class_names, model.pretrained_classes)
    checks.warn_of_other_sizes(model, transforms)
    checks.warn_of_units(model)
    checks.warn_of_threshold(model, validation)
    checks.warn_of_same_data(data, validation)
    checks.warn_of_schedule(optimizer, steps)
    _prepare(model, data, optimizer, freeze, step_options)

    rank, _ = worker_rank(model.distribute_strategy)
    if rank == 0:
        for folder in (out_dir, out_dir / "checkpoints", out_dir / "tensorboard"):
            make_folder(folder, "OUT_DIR (Python: out_dir=)")
    with locked(out_dir) if rank == 0 else contextlib.nullcontext():
        settings = {"data": fingerprint(data), "batch_size": batch_size, "seed": seed, "freeze": list(freeze)}
        settings["precision"] = model.dtype_policy.name
        evaluations = settings_of_validation(model, validation) if validation is not None else {}
        settings |= {**evaluations, **settings_of_parts(transforms, sampler)}
        progress = restore(model, out_dir / "checkpoints", settings)
        completed_steps = progress.steps
        settings[_PRETRAINED] = progress.settings.get(_PRETRAINED, model.pretrained_path)
        _warn_of_other_weights(out_dir, settings[_PRETRAINED], model.pretrained_path)
        shared = {"data": data, "steps": steps, "batch_size": batch_size, "log_every": log_every, "seed": seed}
        options = {"validation": validation, "checkpointing": checkpointing, "step_options": step_options}
        options["sampler"] = sampler
        checks.check_same_on_all_workers(model.distribute_strategy, completed_steps, out_dir, shared, options)
        run_log = RunLog(out_dir, completed_steps, writes=rank == 0)
        validator = None
        if validation is not None:
            settings[_IGNORED_STEPS] = ignored_steps = _ignored_steps(progress, evaluations, run_log)
            best = out_dir / _BEST if rank == 0 else None
            validator = Validator(model, validation, run_log, best, ignored_steps)
        is_finished = _is_finished(out_dir, completed_steps, steps, validator, progress.changes)
        if validator is not None and settings[_IGNORED_STEPS] > progress.settings.get(_IGNORED_STEPS, 0):
            log.warning(
                "%s of the evaluations up to step %d does not compare with that of later ones: the next evaluation "
                "replaces best.keras, and Validation.patience counts from there.",
                validator.monitor,
                settings[_IGNORED_STEPS],
            )
        if not is_finished and rank == 0 and config is not None:
            with replacing(out_dir / _CONFIG) as partial:
                partial.write_text(config, encoding="utf-8")
        epoch = min(checkpointing.steps_per_epoch or -(-len(data.records) // batch_size), steps)
        validate_every = epoch * validation.every if validation is not None else steps
        run_callbacks = RunCallbacks(
            callbacks,
            model,
            out_dir=out_dir,
            steps=steps,
            steps_per_epoch=epoch if validation is None else validate_every,
            batch_size=batch_size,
        )
        loop = TrainingLoop(
            model,
            out_dir / "checkpoints" if rank == 0 else None,
            max_to_keep=checkpointing.max_to_keep,
            throughput=ThroughputLogger(model, run_log, batch_size, log_every, steps),
            validator=validator,
            callbacks=run_callbacks,
            save_every=epoch,
            validate_every=validate_every,
            steps=steps,
            batch_size=batch_size,
            settings=settings,
            completed_steps=completed_steps,
            completed_images=progress.images,
        )
        loop.fit(
            lambda input_context=None: training_batches(
                data,
                batch_size,
                transforms,
                sampler=sampler,
                input_context=input_context,
                seed=seed,
                start_step=progress.images // batch_size,
                pad_to=step_options.pad_to,
                max_boxes=step_options.max_boxes,
            )
        )
        use_averages(model)
        run_callbacks.end()
    return model


def _prepare(model, data, optimizer, freeze, step_options):
    """Sets the names, the frozen layers and the step of the model, and compiles it."""
    _take_names(model, data)
    freeze_layers(model, freeze)
    model.micro_batches = step_options.micro_batches
    model.xla = step_options.jit_compile
    model.compile(optimizer=optimizer)
    model.build_optimizer()


def _take_names(model, data):
    """Copies the class names of the dataset to the model, and other names, such as keypoints, to its branches."""
    if model.num_classes is not None:
        model.class_names = tuple(data.class_names)
    for branch in model.branches:
        branch.learn_names(data)


def _warn_of_other_weights(out_dir, before, now):
    """Warns if a resumed run names another model to start from; both are paths, or None for random weights."""
    before, now = (
        f"the weights of {os.path.realpath(expand(path)) if expand(path).exists() else path}"
        if path
        else "random weights"
        for path in (before, now)
    )
    if before != now:
        log.warning(
            "The run in %s began with %s and resumes from its own checkpoint: %s (gin: CHECKPOINT) are not used. To "
            "begin with them, choose another OUT_DIR (Python: out_dir=).",
            out_dir,
            before,
            now,
        )


def _ignored_steps(progress, evaluations, run_log):
    """Returns the step of the last evaluation whose metrics do not compare with those of this run; 0 if all do.

    Args:
        progress: Progress of the run, with the settings of the checkpoint.
        evaluations: Settings of the evaluations of this run.
        run_log: Log of the run, without the lines that this run repeats.
    """
    has_changed = any(progress.settings.get(name, value) != value for name, value in evaluations.items())
    # Losses depend on the model's settings. AP compares models with different settings, too.
    has_changed |= progress.model_has_changed and (evaluations["Validation.monitor"] or "").endswith("loss")
    if has_changed:
        return max((line["step"] for line in run_log.evaluations()), default=0)
    return progress.settings.get(_IGNORED_STEPS, 0)


def _is_finished(out_dir, completed_steps, steps, validator, changes):
    """Returns whether a run is finished; logs changed settings, or raises an error if they have no effect."""
    if not completed_steps:
        return False
    if completed_steps >= steps:
        reason = f"it has completed {completed_steps} steps, and STEPS is {steps}"
        remedy = "raise STEPS (Python: steps=)"
    elif validator is not None and validator.should_stop():
        reason = f"{validator.monitor} has not improved in {validator.patience} evaluations"
        remedy = "raise Validation.patience"
    else:
        if changes:
            log.warning("The run in %s continues with other settings: %s.", out_dir, changes)
        return False
    if changes:
        raise UserError(
            f"The run in {out_dir} is finished: {reason}. The new settings of this command have no effect on it "
            f"({changes}): choose another OUT_DIR (Python: out_dir=), or {remedy} to continue with the new settings."
        )
    log.info("The run in %s is finished: %s. To continue it, %s.", out_dir, reason, remedy)
    return True
