"""Defines the export format of OpenVINO IR."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kerasdet.export.onnx.format import run_graph
from kerasdet.export.onnx.load import GraphPredictor
from kerasdet.export.openvino.load import OpenVinoPredictor, read_metadata, read_properties
from kerasdet.export.openvino.spec import SPEC
from kerasdet.export.openvino.write import export_openvino
from kerasdet.export.protocol import Format, WorkerRun
from kerasdet.models import Detector


def run_in_worker(model: Detector, path: Path, images: Sequence[np.ndarray]) -> WorkerRun:
    """Runs OpenVINO IR in a process that imports only NumPy and OpenVINO, not kerasdet.

    Args:
        model: The detector that was exported. Its preprocessing makes the batches for the comparison.
        path: Path of the folder of the IR.
        images: (H, W, 3) uint8 arrays.

    Returns:
        The batch and the detections of each image, and the run times; see `WorkerRun`.
    """
    worker = Path(__file__).with_name("verify_worker.py")
    return run_graph(model, GraphPredictor(path, read_properties(path)), images, worker)


@contextlib.contextmanager
def new_version(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Adds a version to a folder of OpenVINO Model Server; the version appears there only when it is complete.

    Args:
        folder: The server's ``--model_path``, a new folder or that of an earlier export. The version becomes the
            subfolder ``NUMBER``, with ``model.xml``.

    Yields:
        The path to which the ``with`` block must write the IR, and the path of the IR after the block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    version = folder / str(max(numbers, default=0) + 1)
    with tempfile.TemporaryDirectory(prefix="partial_", dir=folder) as partial:
        path = Path(partial) / "model"
        yield path, version
        path.rename(version)


FORMAT = Format(
    spec=SPEC,
    runtime="OpenVINO",
    write=export_openvino,
    load=OpenVinoPredictor,
    read_metadata=read_metadata,
    run_in_worker=run_in_worker,
    new_version=new_version,
)
