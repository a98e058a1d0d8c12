"""Defines the export format of TFLite files."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasdet.export.protocol import Format, WorkerRun, run_worker
from kerasdet.export.tflite.load import TFLitePredictor, read_metadata
from kerasdet.export.tflite.spec import SPEC
from kerasdet.export.tflite.write import export_tflite
from kerasdet.models import Detector


def run_in_worker(model: Detector, path: Path, images: Sequence[np.ndarray]) -> WorkerRun:
    """Runs a TFLite file in a process that has only LiteRT.

    Model and file get the same pixels: each image is resized and padded to the input size of the file. The model's own
    post-processing is applied to the outputs of a file without post-processing.

    Args:
        model: The detector.
        path: Path of the TFLite file.
        images: (H, W, 3) uint8 arrays.

    Returns:
        The batch and the detections of each image, and the run times; see `WorkerRun`.
    """
    predictor = TFLitePredictor(path)
    inputs = np.concatenate([predictor.to_input(image)[0] for image in images])  # (B, h, w, 3)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "inputs.npy", inputs)
        outputs = run_worker(Path(__file__).with_name("verify_worker.py"), path, folder)
    seconds = outputs.pop("seconds").tolist()
    cases = []
    for index, pixels in enumerate(inputs):
        found = predictor.decode_outputs({name: value[index] for name, value in outputs.items()})
        batch = model.preprocessing.pad_batch([pixels], resize=False)
        cases.append((batch, {name: np.asarray(value) for name, value in found.items()}))
    return WorkerRun(cases, seconds)


FORMAT = Format(
    spec=SPEC,
    runtime="LiteRT",
    write=export_tflite,
    load=TFLitePredictor,
    read_metadata=read_metadata,
    run_in_worker=run_in_worker,
)
