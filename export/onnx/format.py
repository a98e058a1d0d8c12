"""Defines the export format of ONNX files."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasdet.export.onnx.load import GraphPredictor, OnnxPredictor, read_metadata, read_properties
from kerasdet.export.onnx.spec import SPEC
from kerasdet.export.onnx.write import export_onnx
from kerasdet.export.protocol import Format, WorkerRun, run_worker
from kerasdet.models import Detector


def run_in_worker(model: Detector, path: Path, images: Sequence[np.ndarray]) -> WorkerRun:
    """Runs an ONNX file in a process that has only onnxruntime.

    Args:
        model: The detector.
        path: Path of the ONNX file.
        images: (H, W, 3) uint8 arrays.

    Returns:
        The batch and the detections of each image, and the run times; see `WorkerRun`.
    """
    worker = Path(__file__).with_name("verify_worker.py")
    return run_graph(model, GraphPredictor(path, read_properties(path)), images, worker)


def run_graph(model: Detector, predictor: GraphPredictor, images: Sequence[np.ndarray], script: Path) -> WorkerRun:
    """Runs a graph of `kerasdet.export.onnx` in a process that has the graph's runtime but not kerasdet.

    Model and graph get the same pixels. A graph with a free batch size gets each image and its mirror image as a batch.
    The model's own post-processing is applied to the raw outputs of a graph without NMS.

    Args:
        model: The detector.
        predictor: Predictor of the exported file. It makes the inputs and reads the outputs, but does not run the
            graph.
        images: (H, W, 3) uint8 arrays.
        script: Python file that runs the exported file, such as `verify_worker.py`.

    Returns:
        The batch and the detections of each image, and the run times; see `WorkerRun`.
    """
    inputs = [predictor.example(image) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **{str(i): pixels for i, pixels in enumerate(inputs)})
        outputs = run_worker(script, predictor.path, folder)
    seconds = outputs.pop("seconds").tolist()
    cases = []
    for index, pixels in enumerate(inputs):
        own = {name.split("/", 1)[1]: value for name, value in outputs.items() if name.startswith(f"{index}/")}
        found = predictor.decode_outputs(own, pixels.shape[1:3])
        batch = model.preprocessing.pad_batch(list(pixels), resize=False)
        cases.append((batch, {name: np.asarray(value) for name, value in found.items()}))
    return WorkerRun(cases, seconds)


FORMAT = Format(
    spec=SPEC,
    runtime="ONNX Runtime",
    write=export_onnx,
    load=OnnxPredictor,
    read_metadata=read_metadata,
    run_in_worker=run_in_worker,
)
