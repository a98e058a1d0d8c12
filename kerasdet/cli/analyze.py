"""Implements ``kerasdet analyze``."""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kerasdet.cli.datasets import open_data
from kerasdet.data import CocoDataset, Dataset
from kerasdet.data.recognise import recognise
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_with_results, match_dataset, read_ground_truth
from kerasdet.evaluation.cases import read_cases
from kerasdet.files import replacing
from kerasdet.inference import Predictor
from kerasdet.loading import require_model
from kerasdet.paths import prepare_files
from kerasdet.reports import Run, analyze_run
from kerasdet.reports.charts import check_library
from kerasdet.reports.page import check_suffix


def analyze(
    options: argparse.Namespace,
    load: Callable[[str], Predictor],
    default_data: Callable[[str], Dataset],
    configuration: Callable[[str], Path | None],
) -> None:
    """Writes an HTML page that analyses the detections of a model, and prints its findings.

    Args:
        options: Parsed options with `model`, `data`, `split`, `images`, `against`, `out` and `json`.
        load: Function that takes the path of a model and returns the loaded model.
        default_data: Function that takes the path of a model and returns the evaluation dataset of the model's
            configuration.
        configuration: Function that takes the path of a model and returns the path of the gin file of its training, or
            None.

    Raises:
        UserError: If options contradict each other, or the detections do not match the data.
    """
    check_library()
    check_suffix(options.out)
    read = {"MODEL_OR_DETECTIONS": options.model, "--data": options.data, "--against": options.against}
    files = prepare_files({"--out": options.out, "--json": options.json}, read)
    out, numbers = files["--out"], files.get("--json")
    named = [path for path in (options.model, options.against) if path]
    for path in named:
        if not _is_results(path):
            require_model(path)
    models = [path for path in named if not _is_results(path)]
    if options.images and not _is_coco_file(options.data):
        raise UserError("--images needs --data with a file of COCO annotations (.json): pass both or neither.")
    if options.split and not options.data:
        raise UserError("--split was given without --data, the dataset that has the split: pass both or neither.")
    if not options.data and not models:
        raise UserError(
            f"{options.model} contains detections, not a model: pass the ground truth with --data, such as "
            "data/val.json."
        )
    truth = _open(options, models, default_data)
    predictors = {path: load(path) for path in models}
    truth = _with_classes(truth, predictors)
    run, other = (
        None if path is None else _run(path, truth, predictors, configuration)
        for path in (options.model, options.against)
    )
    records = {} if truth.dataset is None else {record.image_id: record for record in truth.dataset.records}
    findings, content = analyze_run(
        run,
        out,
        against=other,
        open_picture=lambda image_id: records[image_id].image() if image_id in records else None,
        names=truth.names,
        source=truth.source,
    )
    if numbers is not None:
        content = {"findings": [dataclasses.asdict(finding) for finding in findings], **content}
        with replacing(numbers) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    for finding in findings:
        print(f"{finding.level}: {finding.text} {finding.action}".replace("`", "").rstrip())
    print(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB. Open it in a browser.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Truth:
    """Holds ground truth, and the dataset with its images (None if the images are missing)."""

    content: str | dict
    dataset: Dataset | None
    names: Mapping[int, str]
    source: str


def _is_results(path):
    """Returns whether a path names detections; compressed files and pickles get an error when they are read."""
    return Path(path).suffix.lower() in (".json", ".gz", ".pkl", ".pickle")


def _is_coco_file(path):
    return path is not None and Path(path).suffix.lower() == ".json" and Path(path).is_file()


def _open(options, models, default_data):
    """Opens the data. Models need the images; with files of detections, images only illustrate the page."""
    if _is_coco_file(options.data) and not models:
        _check_split(options)
        truth = read_ground_truth(options.data)
        names = {image["id"]: Path(image["file_name"]).name for image in truth["images"] if image.get("file_name")}
        try:
            dataset = CocoDataset(options.data, options.images, on_bad_image="skip")
        except (UserError, FileNotFoundError) as error:
            if options.images:
                raise
            print(f"The page will have no pictures: {error}")
            dataset = None
        return _Truth(options.data, dataset, names, options.data)
    if options.data is None:
        dataset = default_data(models[0])
    else:
        dataset = open_data(options.data, options.split, options.images)
    return _of_dataset(dataset)


def _check_split(options):
    splits = recognise(options.data).splits if options.split else ()
    if options.split and options.split not in splits:
        raise UserError(
            f"{options.data} has no split {options.split}; it has {', '.join(splits)}. Change --split, or remove it."
        )


def _of_dataset(dataset):
    names = {record.image_id: Path(record.path).name for record in dataset.records}
    return _Truth(dataset.ground_truth, dataset, names, str(dataset.annotations))


def _with_classes(truth, predictors):
    """Reorders the classes of the data as the models order them."""
    for path, predictor in predictors.items():
        if predictor.num_classes is None:
            raise UserError(
                f"{path} predicts boxes without classes, for which AP is not defined: pass a detector with classes."
            )
        truth = _of_dataset(match_dataset(predictor.num_classes, predictor.class_names, truth.dataset))
    return truth


def _run(path, truth, predictors, configuration):
    if path not in predictors:
        return Run(path, read_cases(truth.content, path))
    timed = _Timed(predictors[path])
    image_ids = [record.image_id for record in truth.dataset.records]
    _, results = evaluate_with_results(timed, truth.dataset)
    cases = read_cases(truth.content, results, image_ids)
    return Run(path, cases, timed.seconds, predictors[path], truth.dataset, _settings(configuration(path)))


def _settings(file):
    """Returns the settings in a gin file that a run wrote, a dict from name to value."""
    settings, name = {}, None
    for line in () if file is None else file.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([\w./]+) = ?(.*)", line):
            name = found[1]
            settings[name] = found[2]
        elif line.startswith((" ", "\t")) and name:
            settings[name] += f" {line.strip()}"
    return {key: value.lstrip("\\ ") for key, value in settings.items()}


class _Timed:
    """Measures how long a predictor takes for each image.

    The first image of each size is not counted, because TensorFlow then traces its graph.
    """

    def __init__(self, predictor):
        self._predictor = predictor
        self._sizes = set()
        self.seconds = []

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def detect_batch(self, batch):
        start = time.perf_counter()
        found = {name: np.asarray(value) for name, value in self._predictor.detect_batch(batch).items()}
        if (size := tuple(batch["image"].shape)) in self._sizes:
            self.seconds.append(time.perf_counter() - start)
        self._sizes.add(size)
        return found
