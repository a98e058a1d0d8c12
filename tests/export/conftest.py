"""Models and their exports, each written once in a test session and shared by all files in this folder."""

import numpy as np
import pytest
import tiny
from export_models import make
from kerasdet.export import export_saved_model, export_tflite
from kerasdet.export.verify import compare, tolerance_for

import kerasdet

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
    """Returns a function from a model's name and export options to the path of its SavedModel."""
    folder, made = tmp_path_factory.mktemp("saved_models"), {}

    def path(name, **options):
        key = "_".join([name, *map(str, options.values())])
        if key not in made:
            made[key] = export_saved_model(models(name), folder / key, **options)
        return made[key]

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


def verify_in_process(model, path, images):
    """Compares an export with its model as `verify_export` does, without the cold start of another process."""
    predictor = kerasdet.load(path)
    if hasattr(predictor, "to_input"):  # TFLite: both get the letterboxed pixels
        inputs = [predictor.to_input(image)[0] for image in images]
        batches = [model.preprocessing.batch([pixels[0]], resize=False) for pixels in inputs]
        found = [predictor.decode_outputs(predictor.run(pixels)) for pixels in inputs]
    else:
        groups = images[:1], [images[0].astype(np.float32)], images
        batches = [model.preprocessing.batch(group) for group in groups]
        found = [predictor.detect_batch(predictor.preprocessing.batch(group)) for group in groups]
    return compare(
        [(model.detect_batch(batch), each) for batch, each in zip(batches, found, strict=True)],
        tolerance_for(predictor.metadata["precision"]),
        score_threshold=getattr(model.postprocessing, "score_threshold", 0.0),
    )
