"""Provides models and their exports, each written once per test session."""

import fcntl
import os

import pytest
import tiny
from export_models import make

from kerasdet.export import export_onnx, export_saved_model, export_tflite

TFLITE_SIZE = (96, 128)


@pytest.fixture(scope="session")
def models():
    """Returns a function from a name to a model: one of `MODELS`, or "tiny", the cheapest RetinaNet."""
    made = {}

    def model(name):
        if name not in made:
            made[name] = tiny.talkative() if name == "tiny" else make(name)
        return made[name]

    return model


@pytest.fixture(scope="session")
def saved_model(models, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its SavedModel.

    Several processes that run the tests share the SavedModels: a lock lets one of them write.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "saved_models"
    folder.mkdir(exist_ok=True)

    def path(name, **options):
        key = "_".join([name, *map(str, options.values())])
        with (folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / key).exists():
                export_saved_model(models(name), folder / f"{key}.partial", **options).rename(folder / key)
        return folder / key

    return path


@pytest.fixture(scope="session")
def tflite_file(models, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its TFLite file."""
    folder, made = tmp_path_factory.mktemp("tflite"), {}

    def path(name, **options):
        key = "_".join(["model", name, *map(str, options.values())])
        if key not in made:
            calibration = {"calibration_images": tiny.images(seed=1)} if options.get("precision") == "int8" else {}
            size = (64, 64) if name == "tiny" else TFLITE_SIZE
            file = folder / f"{key}.tflite"
            made[key] = export_tflite(models(name), file, **{"size": size, **calibration, **options})
        return made[key]

    return path


@pytest.fixture(scope="session")
def onnx_file(models, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its ONNX file."""
    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def path(name, **options):
        key = "_".join(["model", name, *map(str, options.values())])
        if key not in made:
            calibration = {"calibration_images": tiny.images(seed=1)} if options.get("precision") == "int8" else {}
            made[key] = export_onnx(models(name), folder / f"{key}.onnx", **calibration, **options)
        return made[key]

    return path
