"""Implements the commands of the command line. Importing this module imports TensorFlow."""

import argparse
import json
import logging
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasdet import config
from kerasdet.checkpoints import SOURCES, read, to_model, verify
from kerasdet.checkpoints.cache import is_published
from kerasdet.checkpoints.labels import names_of_classes, read_labels
from kerasdet.cli.analyze import analyze
from kerasdet.cli.data import run_data
from kerasdet.cli.datasets import open_data
from kerasdet.cli.inputs import image_files, media_files
from kerasdet.cli.inspect import inspect
from kerasdet.cli.predict import check_options, predict
from kerasdet.cli.zoo import list_zoo
from kerasdet.data import CocoDataset
from kerasdet.errors import UserError, VerificationError
from kerasdet.evaluation import evaluate_rules, evaluate_with_results
from kerasdet.export.formats import MODEL_SUFFIXES, choose_spec, format_named, specs
from kerasdet.export.workflow import export_and_verify
from kerasdet.files import replacing
from kerasdet.inference import AugmentedPredictor, TiledPredictor
from kerasdet.loading import load_detector, load_predictor, require_model
from kerasdet.paths import expand, make_folder, prepare_file, prepare_files
from kerasdet.training import run_workers

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Runs a command.

    Args:
        options: Parsed options; `command` is the name of the command.

    Raises:
        UserError: For a mistake of the user. `kerasdet.cli.report` also recognises mistakes in other errors.
        SystemExit: With the exit code of a worker that failed.
    """
    # --debug shows whole stack traces, and `report` needs the frame that raised; Keras and TensorFlow cut frames away
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
        "analyze": lambda options: analyze(options, _load, _evaluation_data, _configuration),
        "zoo": lambda options: list_zoo(options.text, as_json=options.json),
    }
    commands[options.command](options)


def _train(options):
    if options.data is not None:
        if others := [each for each in options.overrides if each.partition("=")[0].strip() == "DATA"]:
            raise UserError(f"--data {options.data} and --set {others[0]} are both given: pass only one.")
        options.overrides.insert(0, f"DATA={options.data}")
    config.load(options.config, options.overrides)
    if options.data is None:
        _check_training_data(options.config)
    if options.workers is None:
        config.train()
        return
    overrides = [word for override in (*options.overrides, "STRATEGY=multi_worker") for word in ("--set", override)]
    debug = ["--debug"] if options.debug else []
    command = [sys.executable, "-m", "kerasdet.cli", "train", options.config, *overrides, *debug]
    if code := run_workers(command, options.workers, len(tf.config.list_physical_devices("GPU"))):
        raise SystemExit(code)


def _check_training_data(recipe):
    """Raises an error that names --data if the file of training annotations in a recipe does not exist."""
    try:
        path = config.macro("TRAIN_ANNOTATIONS")
    except ValueError:  # the recipe reads its data in another way
        return
    if isinstance(path, str) and not expand(path, "TRAIN_ANNOTATIONS").exists():
        raise FileNotFoundError(
            f"The file {path}, the training data of {recipe} (TRAIN_ANNOTATIONS), does not exist. Pass your dataset "
            "with --data, or set the paths with --set TRAIN_ANNOTATIONS=... --set EVAL_ANNOTATIONS=..., and "
            "TRAIN_IMAGES and EVAL_IMAGES if the images are elsewhere."
        )


def _eval(options):
    _check_eval_options(options)
    files = prepare_files(
        {"--save-detections": options.save_detections, "--json": options.json},
        {"--annotations": options.annotations, "--detections": options.detections},
    )
    if options.detections:
        results = None
        metrics = evaluate_rules(options.metrics, options.annotations, options.detections, engine=options.engine)
    else:
        metrics, results = _evaluate_model(options)
    print(metrics.table())
    texts = {"--save-detections": lambda: json.dumps(results), "--json": metrics.to_json}
    errors = []
    for name, path in files.items():  # an error in writing one file must not prevent the other
        try:
            with replacing(path) as partial:
                partial.write_text(texts[name](), encoding="utf-8")
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _check_eval_options(options):
    """Raises a UserError for options that would have no effect."""
    if options.engine and options.metrics != "coco":
        raise UserError(
            f"--engine is only for COCO's AP, but --metrics is {options.metrics}: remove --engine or --metrics."
        )
    if len(set(options.tta or ())) < len(options.tta or ()):
        raise UserError(
            f"--tta {' '.join(map(str, options.tta))} names a size twice: expected different sizes, because a second "
            "view of the same size adds nothing. Remove one."
        )
    if options.detections:
        if not options.annotations:
            instead = " --data cannot replace it, because no model runs." if options.data else ""
            raise UserError(
                "--detections was given without --annotations, a COCO file of the ground truth to score against: pass "
                f"both.{instead}"
            )
        if options.model:
            raise UserError(f"{options.model} and --detections are both given: pass only one.")
        for name in ("data", "split", "images", "batch_size", "tta", "tile", "overlap", "save_detections"):
            if getattr(options, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} has no effect with --detections, because no model runs: remove {flag}, or pass a MODEL "
                    "instead of --detections."
                )
    elif not options.model:
        raise UserError(
            "There is nothing to evaluate: pass a MODEL, or a file of COCO results with --detections and its ground "
            "truth with --annotations."
        )
    elif options.data and options.annotations:
        raise UserError("--data and --annotations are both given: pass only one.")
    elif options.split and not options.data:
        raise UserError("--split was given without --data, the dataset that has the split: pass both or neither.")
    elif options.images and not options.annotations:
        raise UserError(
            "--images was given without --annotations, the COCO file of these images: pass both or neither."
        )


def _evaluate_model(options):
    require_model(options.model)
    if options.annotations:
        data = CocoDataset(options.annotations, options.images)
    elif options.data:
        data = open_data(options.data, options.split)
    else:
        data = _evaluation_data(options.model)
    predictor = _load(options.model)
    if options.tta is not None:
        predictor = AugmentedPredictor(predictor, options.tta)
    predictor = _with_tiles(predictor, options)
    return evaluate_with_results(
        predictor, data, batch_size=options.batch_size or 1, engine=options.engine, rules=options.metrics
    )


def _evaluation_data(model):
    """Reads the evaluation dataset in the configuration of a run, or of a SavedModel of the run."""
    for file in (_configuration(model), Path(model) / "assets" / "config.gin"):
        if file is not None and file.is_file():
            config.load(file)
            return config.eval_data()
    raise UserError(f"{model} has no config.gin, which names the dataset to evaluate on: pass a dataset with --data.")


def _load(path, load=load_predictor):
    """Loads a model, after importing the modules in the configuration of its run, which define the model's classes.

    The configuration is in the folder of the run, or beside a file such as RUN/best.keras.
    """
    file = _configuration(path)
    if file is not None:
        config.import_modules(file)
    return load(path)


def _configuration(path):
    """Returns the configuration of a run, or of the run to which a file belongs; None if there is none."""
    path = Path(path)
    folders = [path] if path.is_dir() else [path.parent]
    if path.parent.name == "checkpoints":
        folders.append(path.parent.parent)
    return next((folder / "config.gin" for folder in folders if (folder / "config.gin").is_file()), None)


def _predict(options):
    paths = media_files(options.images)
    check_options(paths, draw=options.draw, track=options.track, max_frames=options.max_frames)
    for name in ("draw", "crops"):
        if (folder := getattr(options, name)) is not None:
            make_folder(expand(folder, f"--{name}"), f"--{name}")
    if options.crops and any(expand(options.crops).glob("*/*.png")):
        log.warning(
            "--crops %s holds crops of an earlier command, which stay beside those of this one: choose another folder "
            "to keep them apart.",
            options.crops,
        )
    predict(
        _with_tiles(_load(options.model), options),
        paths,
        score_threshold=options.score_threshold,
        draw=options.draw,
        crops=options.crops,
        coco=options.coco,
        track=options.track,
        max_frames=options.max_frames,
        as_json=options.json,
    )


def _with_tiles(predictor, options):
    if options.tile is None:
        if options.overlap is not None:
            raise UserError("--overlap was given without --tile, the size of the tiles: pass both or neither.")
        return predictor
    return TiledPredictor(predictor, options.tile, 0.2 if options.overlap is None else options.overlap)


def _export(options):
    spec = choose_spec(options.out, options.format)
    form = format_named(spec.name)
    given = {name: value for name, value in vars(options).items() if value is not None}
    options_of_all = {option.name: option.option for spec in specs() for option in spec.options}
    if wrong := sorted((options_of_all.keys() - form.options.keys()) & given.keys()):
        raise UserError(f"{options_of_all[wrong[0]]} has no effect with --format {form.name}: remove the option.")
    if options.serving and form.new_version is None:
        raise UserError(
            f"--serving has no effect with --format {form.name}, which has no folder layout of a model server: remove "
            "--serving, or use format saved_model or openvino."
        )
    for name, purpose in (
        ("max_ap_drop", "the dataset to measure AP on"),
        ("images", "the COCO file of these images"),
        ("split", "the dataset that has the split"),
    ):
        if name in given and not options.eval:
            raise UserError(f"--{name.replace('_', '-')} needs --eval, {purpose}: pass both or neither.")
    if Path(options.out).exists() and not (is_published(options.model) or Path(options.model).exists()):
        raise UserError(
            f"The model {options.model} does not exist, but {options.out} does: expected the model first, then the "
            f"file or folder to write. Check the order: kerasdet export {options.out} {options.model}"
        )
    data = open_data(options.eval, options.split, options.images) if options.eval else None
    verify_images = image_files(options.verify_images)
    if "calibration_images" in given:
        given["calibration_images"] = image_files(options.calibration_images)
    configuration = _configuration(options.model)
    _, report = export_and_verify(
        _load(options.model, load_detector),
        options.out,
        format=form.name,
        serving=options.serving,
        verify_images=verify_images,
        eval_data=data,
        gin_config=None if configuration is None else configuration.read_text(encoding="utf-8"),
        **{name: given[name] for name in ("precision", "max_ap_drop", *form.options) if name in given},
    )
    print(report)


def _convert(options):
    if options.source not in SOURCES:
        raise UserError(f"--source is {options.source!r}: choose one of {', '.join(SOURCES)}.")
    without_classes = {
        "backbone": "a backbone without classes and detections",
        "rpn": "a proposal network without classes",
    }
    if what := without_classes.get(SOURCES[options.source].kind):
        for name in ("labels", "num_classes", "reference_outputs"):
            if getattr(options, name):
                raise UserError(
                    f"--{name.replace('_', '-')} is for detectors, but {options.source} is {what}: remove the option."
                )
    labels = read_labels(options.labels) if options.labels else None
    out = _model_file(options.out)
    state = read(options.file, options.weights)
    if labels is not None:
        state.class_names = None  # the labels replace the names in the file
    try:
        model = to_model(state, options.source, num_classes=options.num_classes, norm_epsilon=options.norm_epsilon)
    except UserError as error:
        raise UserError(f"{options.file}: {error}") from None
    if labels is not None:
        model.class_names = names_of_classes(labels, model.num_classes, options.labels)
    if options.reference_outputs:
        _compare(model, options)
    out = prepare_file(out, "--out")
    with replacing(out) as partial:
        model.save(partial)
    print(f"{out}: {model.count_params():,} parameters of {options.source}.")


def _model_file(out):
    """Returns the new file to write: `out` itself if it ends in .keras, otherwise model.keras in a folder."""
    path, suffix = Path(out), Path(out).suffix.lower()
    if suffix in MODEL_SUFFIXES:
        raise UserError(f"--out {out} ends in {suffix}: expected a folder or a .keras file. Change --out.")
    file = path if suffix == ".keras" and not path.is_dir() else path / "model.keras"
    if file.exists():
        raise FileExistsError(f"--out: {file} exists: choose another folder or file for --out, or delete this file.")
    return file


def _compare(model, options):
    """Prints the differences of a converted model from the source framework; raises an error if one is too large."""
    report = verify(model, _read_outputs(options.reference_outputs), options.source)
    for name, difference, same in report:
        print(f"{name:<14} {difference:.2e}{'' if same else '   differs'}")
    different = [name for name, _, same in report if not same]
    if different:
        raise VerificationError(
            f"The output {different[0]} of the model converted from {options.file} differs from that in "
            f"{options.reference_outputs}, so no file was written. Check --source, --norm-epsilon and whether both "
            "files come from the same checkpoint."
        )


def _read_outputs(path):
    try:
        with np.load(path) as outputs:
            return dict(outputs)
    except (TypeError, AttributeError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(f"{path} is not an .npz file of arrays ({error}): write the file with numpy.savez.") from None
