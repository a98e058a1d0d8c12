"""Provides models and their exports, each written once per test session."""

import contextlib
import fcntl
import json
import os
import re

import keras
import pytest
import tiny
from export_models import make

from kerasdet.export import export_onnx, export_openvino, export_saved_model, export_tflite

TFLITE_SIZE = (96, 128)


@pytest.fixture(scope="session")
def models():
    """Returns a function from a name to a model: one of `EXPORTED`, or "tiny", the cheapest RetinaNet."""
    made = {}

    def model(name):
        if name not in made:
            # Keras numbers the names of layers, and processes that share a conversion must agree on them.
            keras.utils.clear_session(free_memory=False)
            made[name] = tiny.talkative() if name == "tiny" else make(name)
        return made[name]

    return model


def shared_folder(tmp_path_factory, name):
    """Makes a folder that all processes of a test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def file_name(*parts):
    """Joins a model's name and options to the stem of a file's name."""
    return re.sub(r"\W+", "-", "_".join(map(str, parts)))


@contextlib.contextmanager
def locked(path):
    """Lets one process at a time into the block."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def saved_model(models, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its SavedModel.

    Several processes that run the tests share the SavedModels.
    """
    folder = shared_folder(tmp_path_factory, "saved_models")

    def path(name, **options):
        key = file_name(name, *options.values())
        with locked(folder / f"{key}.lock"):
            if not (folder / key).exists():
                export_saved_model(models(name), folder / f"{key}.partial", **options).rename(folder / key)
        return folder / key

    return path


@pytest.fixture(scope="session")
def tflite_file(models, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its TFLite file.

    Precisions differ only in what becomes of the converted model. Several processes that run the tests share the
    conversions. The models must not change.
    """
    write = pytest.importorskip("kerasdet.export.tflite.write")
    convert, conversions = write.convert_detector, shared_folder(tmp_path_factory, "tflite_conversions")
    folder, made = tmp_path_factory.mktemp("tflite"), {}

    def path(name, **options):
        key = file_name("model", name, *options.values())
        if key in made:
            return made[key]

        def convert_once(model, *arguments):
            file = conversions / (file_name(name, *arguments) + ".tflite")
            with locked(file.with_suffix(".lock")):
                if not file.exists():
                    file.write_bytes(convert(model, *arguments))
            return file.read_bytes()

        calibration = {"calibration_images": tiny.images(seed=1)} if options.get("precision") == "int8" else {}
        settings = {"size": (64, 64) if name == "tiny" else TFLITE_SIZE, **calibration, **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write, "convert_detector", convert_once)
            made[key] = export_tflite(models(name), folder / f"{key}.tflite", **settings)
        return made[key]

    return path


@pytest.fixture(scope="session")
def shared_conversions(tmp_path_factory):
    """Returns a context, of a model's name, in which exports to ONNX and OpenVINO convert that model once.

    Formats, and float32 and int8, differ only in what becomes of the converted model. The models must not change.
    Several processes that run the tests share the conversions.
    """
    onnx, write = pytest.importorskip("onnx"), pytest.importorskip("kerasdet.export.onnx.write")
    convert, folder = write.convert_detector, shared_folder(tmp_path_factory, "conversions")

    @contextlib.contextmanager
    def context(name):
        def convert_once(model, *options):
            file = folder / (file_name(name, *options) + ".onnx")
            levels_file = file.with_suffix(".json")
            with locked(file.with_suffix(".lock")):
                if not file.exists():
                    result, levels = convert(model, *options)
                    levels_file.write_text(json.dumps(levels))
                    onnx.save(result, file)
            return onnx.load(file), json.loads(levels_file.read_text())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(write, "convert_detector", convert_once)
            yield

    return context


@pytest.fixture(scope="session")
def onnx_file(models, shared_conversions, tmp_path_factory):
    """Returns a function from a model's name and export options to the path of its ONNX file."""
    folder = tmp_path_factory.mktemp("onnx")
    return _exporter(
        models,
        shared_conversions,
        lambda model, key, **options: export_onnx(model, folder / f"model_{key}.onnx", **options),
    )


@pytest.fixture(scope="session")
def openvino_folder(models, shared_conversions, tmp_path_factory):
    """Returns a function from a model's name and export options to the folder of its IR."""
    folder = tmp_path_factory.mktemp("openvino")
    return _exporter(
        models, shared_conversions, lambda model, key, **options: export_openvino(model, folder / key, **options)
    )


def _exporter(models, shared_conversions, export):
    """Returns a function from a model's name and export options to the path that `export` writes once."""
    made = {}

    def path(name, **options):
        key = file_name(name, *options.values())
        if key not in made:
            calibration = {"calibration_images": tiny.images(seed=1)} if options.get("precision") == "int8" else {}
            with shared_conversions(name):
                made[key] = export(models(name), key, **calibration, **options)
        return made[key]

    return path
