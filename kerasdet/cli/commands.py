"""Implements the commands of the command line. Importing this module imports TensorFlow."""

import argparse
import json
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasdet import config
from kerasdet.checkpoints import SOURCES, read, to_model, verify
from kerasdet.cli.data import run_data
from kerasdet.cli.inspect import inspect
from kerasdet.cli.predict import predict
from kerasdet.cli.zoo import list_zoo
from kerasdet.data import CocoDataset, open_dataset
from kerasdet.data.recognise import recognise
from kerasdet.errors import UserError, VerificationError
from kerasdet.evaluation import evaluate_all, evaluate_with_results
from kerasdet.export.formats import default_spec, format_named, specs
from kerasdet.export.workflow import export_and_verify
from kerasdet.inference import AugmentedPredictor
from kerasdet.loading import load_detector, load_predictor, require_model
from kerasdet.training import run_workers


def run(options: argparse.Namespace) -> None:
    """Runs the command that `options` name.

    Raises:
        UserError: For a mistake of the user. Other errors are told apart by `kerasdet.cli.report`.
        SystemExit: With the exit code of a worker that failed.
    """
    # Whole stacks for --debug; `report` also needs the frame that raised, which Keras and TensorFlow cut away
    keras.config.disable_traceback_filtering()
    tf.debugging.disable_traceback_filtering()
    commands = {
        "train": _train,
        "eval": _eval,
        "predict": _predict,
        "export": _export,
        "convert": _convert,
        "data": run_data,
        "inspect": inspect,
        "zoo": lambda options: list_zoo(options.text, as_json=options.json),
    }
    commands[options.command](options)


def _train(options):
    if options.data is not None:
        options.overrides.insert(0, f"DATA={options.data}")
    config.load(options.config, options.overrides)
    if options.workers is None:
        config.train()
        return
    overrides = [word for override in (*options.overrides, "STRATEGY=multi_worker") for word in ("--set", override)]
    debug = ["--debug"] if options.debug else []
    command = [sys.executable, "-m", "kerasdet.cli", "train", options.config, *overrides, *debug]
    if code := run_workers(command, options.workers, len(tf.config.list_physical_devices("GPU"))):
        raise SystemExit(code)


def _eval(options):
    for path in filter(None, (options.json, options.save_detections)):
        _require_folder_of(path)
    if options.detections:
        if not options.annotations:
            raise UserError("--detections needs --annotations, the ground truth to score against.")
        if options.model:
            raise UserError(f"{options.model} and --detections are both given: name one of them.")
        metrics, results = evaluate_all(options.annotations, options.detections), None
    elif not options.model:
        raise UserError("there is nothing to evaluate: name a model, or a file of COCO results with --detections.")
    else:
        metrics, results = _evaluate_model(options)
    print(metrics.table())
    if options.json:
        Path(options.json).write_text(metrics.to_json())
    if options.save_detections and results is not None:
        Path(options.save_detections).write_text(json.dumps(results))


def _evaluate_model(options):
    require_model(options.model)
    data = _dataset_named(options) or _evaluation_data(options.model)
    predictor = _load(options.model)
    if options.tta is not None:
        predictor = AugmentedPredictor(predictor, options.tta)
    return evaluate_with_results(predictor, data, batch_size=options.batch_size)


def _dataset_named(options):
    """Opens the dataset that the options name, or returns None."""
    if options.data is None:
        if options.split is not None:
            raise UserError("--split needs --data, the dataset that has the split.")
        return CocoDataset(options.annotations, options.images) if options.annotations else None
    if options.annotations or options.images:
        raise UserError("--data and --annotations or --images are both given: name the data once.")
    splits = recognise(options.data).splits
    choice = options.split or next((name for name in ("val", "test") if name in splits), None)
    return open_dataset(options.data, choice)


def _evaluation_data(model):
    """Reads the dataset that the configuration of a run, or of a SavedModel of it, evaluates on."""
    for file in (_configuration(model), Path(model) / "assets" / "config.gin"):
        if file is not None and file.is_file():
            config.load(file)
            return config.eval_data()
    raise UserError(f"{model} has no config.gin, which names the data to evaluate on: give --data or --annotations.")


def _load(path, load=load_predictor):
    """Loads a model after the modules that its run's configuration imports: they hold its classes.

    The configuration is in the folder of the run, or beside a file such as RUN/best.keras.
    """
    file = _configuration(path)
    if file is not None:
        config.import_modules(file)
    return load(path)


def _configuration(path):
    """Returns the configuration of a run, or of the run that a file belongs to, or None."""
    path = Path(path)
    folders = [path] if path.is_dir() else [path.parent]
    if path.parent.name == "checkpoints":
        folders.append(path.parent.parent)
    return next((folder / "config.gin" for folder in folders if (folder / "config.gin").is_file()), None)


def _predict(options):
    predict(
        _load(options.model),
        options.images,
        score_threshold=options.score_threshold,
        draw=options.draw,
        as_json=options.json,
    )


def _export(options):
    form = format_named(_export_format(options))
    given = {name: value for name, value in vars(options).items() if value is not None}
    options_of_all = {option.name: option.option for spec in specs() for option in spec.options}
    if wrong := sorted((options_of_all.keys() - form.options.keys()) & given.keys()):
        raise UserError(f"{options_of_all[wrong[0]]} is not an option of --format {form.name}: leave it out.")
    if options.serving and form.new_version is None:
        raise UserError(f"--serving is not an option of --format {form.name}: no server takes this format.")
    if options.max_ap_drop is not None and not options.eval:
        raise UserError("--max-ap-drop needs --eval, the data to measure AP on.")
    data = CocoDataset(options.eval) if options.eval else None
    configuration = _configuration(options.model)
    _, report = export_and_verify(
        _load(options.model, load_detector),
        options.out,
        format=form.name,
        serving=options.serving,
        verify_images=options.verify_images,
        eval_data=data,
        gin_config=None if configuration is None else configuration.read_text(),
        **{name: given[name] for name in ("precision", "max_ap_drop", *form.options) if name in given},
    )
    print(report)


def _export_format(options):
    """Returns the name of the format, which the suffix of the output says if --format does not."""
    suffix = Path(options.out).suffix.lower()
    by_suffix = next((spec.name for spec in specs() if spec.suffix and spec.suffix == suffix), None)
    if options.format in (None, by_suffix):
        return by_suffix or default_spec().name
    chosen = next(spec for spec in specs() if spec.name == options.format)
    if chosen.suffix and suffix != chosen.suffix:
        raise UserError(
            f"--format {chosen.name} writes a file, but {options.out} does not end in {chosen.suffix}: rename it."
        )
    if not chosen.suffix and by_suffix:
        raise UserError(
            f"--format {chosen.name} writes a folder, but {options.out} ends in {suffix}: rename it, or use --format "
            f"{by_suffix}."
        )
    return chosen.name


def _convert(options):
    if options.source not in SOURCES:
        raise UserError(f"There is no source {options.source!r}: choose one of {', '.join(SOURCES)}.")
    if SOURCES[options.source].kind == "backbone":
        for name in ("labels", "num_classes", "reference_outputs"):
            if getattr(options, name):
                raise UserError(
                    f"--{name.replace('_', '-')} is for detectors, and {options.source} is a backbone without classes "
                    "and detections: leave it out."
                )
    model = to_model(
        read(options.file), options.source, num_classes=options.num_classes, norm_epsilon=options.norm_epsilon
    )
    if options.labels:
        model.class_names = _read_labels(options.labels, model.num_classes)
    if options.reference_outputs:
        _compare(model, options)
    out = Path(options.out) / "model.keras"
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save(out)
    print(f"{out}: {model.count_params():,} parameters of {options.source}.")


def _read_labels(path, num_classes):
    names = Path(path).read_text(encoding="utf-8").splitlines()
    if len(names) < num_classes:
        raise UserError(
            f"{path} has {len(names)} lines, the model {num_classes} classes: write one name a line for each class."
        )
    return tuple(names[:num_classes])


def _compare(model, options):
    """Prints the differences between a converted model and the source framework; raises an error for large ones."""
    report = verify(model, _read_outputs(options.reference_outputs), options.source)
    for name, difference, same in report:
        print(f"{name:<14} {difference:.2e}{'' if same else '   differs'}")
    different = [name for name, _, same in report if not same]
    if different:
        raise VerificationError(
            f"{options.file} gives another {different[0]} than {options.reference_outputs}: nothing was written. Check "
            "--source, --norm-epsilon and that both come from the same checkpoint."
        )


def _read_outputs(path):
    try:
        with np.load(path) as outputs:
            return dict(outputs)
    except (TypeError, AttributeError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(f"{path} is not an .npz file of arrays: {error}. Write it with numpy.savez.") from None


def _require_folder_of(path):
    """Checks that a file can be written, before an evaluation that may take hours."""
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"There is no folder {Path(path).parent} to write {Path(path).name} to: make it first.")
