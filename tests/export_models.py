"""Makes the tiny models of the detector contract with weights that keep activations small, as after training."""

import numpy as np
import pytest
import warm_workers
from models.models import COVERING, MODELS, SLOW, randomized, ssd

import kerasdet
from kerasdet.export.formats import format_of
from kerasdet.export.verify import compare, tolerance_for
from kerasdet.inference.preprocessing import Preprocessing

EXPORTED = {**MODELS, "ssd": ssd}
_GAINS = {
    "class_logits": 0.3,
    "objectness": 0.3,
    "centerness": 0.3,
    "box_deltas": 0.1,
    "distances": 0.1,
    "mask_logits": 2.0,
    "keypoint_branch": 0.5,
}


def make(name, seed=0):
    """Makes a model of `EXPORTED` that finds objects in any image; `seed` decides its weights."""
    rng = np.random.default_rng(seed)
    if name.startswith("rtmdet"):
        rule = Preprocessing(shortest=96, longest=128, channel_order="bgr", letterbox_value=114)
        model = MODELS[name](preprocessing=rule)
        # SiLU halves small numbers: other gains keep activations
        for variable in randomized(model, seed).variables:
            if variable.name in ("gamma", "moving_variance"):
                variable.assign(rng.uniform(0.8, 1.2, variable.shape))
            if variable.name in ("beta", "moving_mean"):
                variable.assign(variable + rng.normal(0, 0.1, variable.shape))
        return model
    model = EXPORTED[name]()
    for variable in model.variables:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        if variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        if variable.name == "kernel":
            gain = next((gain for part, gain in _GAINS.items() if f"/{part}" in variable.path), 1.2)
            variable.assign(rng.normal(0, gain / np.sqrt(np.prod(variable.shape[:-1])), variable.shape))
        if variable.name == "bias" and "class_logits" in variable.path:
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def verify_in_process(model, path, images):
    """Compares an export with its model as `verify_export` does, without the cold start of another process."""
    predictor = kerasdet.load(path)
    if hasattr(predictor, "to_input"):  # TFLite: model and file get the letterboxed pixels
        inputs = [predictor.to_input(image)[0] for image in images]
        batches = [model.preprocessing.pad_batch([pixels[0]], resize=False) for pixels in inputs]
        found = [predictor.decode_outputs(predictor.run(pixels)) for pixels in inputs]
    else:
        groups = images[:1], [images[0].astype(np.float32)], images
        batches = [model.preprocessing.batch(group) for group in groups]
        found = [predictor.detect_batch(predictor.preprocessing.batch(group)) for group in groups]
    return _compare(model, list(zip(batches, found, strict=True)), predictor.metadata)


def verify_alone(model, path, images):
    """Compares an ONNX file or IR with its model as `verify_export` does, in a process that is started only once.

    That process imports neither TensorFlow nor kerasdet: the workers' scripts check it.
    """
    export_format = format_of(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kerasdet.export.onnx.format.run_worker", warm_workers.run)
        run = export_format.run_in_worker(model, path, images)
    return _compare(model, run.cases, export_format.read_metadata(path))


def _compare(model, cases, metadata):
    return compare(
        [(model.detect_batch(batch), found) for batch, found in cases],
        tolerance_for(metadata["precision"]),
        score_threshold=getattr(model.postprocessing, "score_threshold", 0.0),
    )


__all__ = ["COVERING", "EXPORTED", "SLOW", "make", "verify_alone", "verify_in_process"]
