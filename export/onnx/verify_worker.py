"""Runs an ONNX file in a separate process: ``python verify_worker.py FILE FOLDER``. Only onnxruntime is needed.

The folder holds ``inputs.npz``, a batch (B, h, w, 3) under each of the names "0", "1" ...; the script writes
``outputs.npz`` there: each output under ``<number>/<name>``, and the seconds of each of several repeated runs of the
first image.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

RUNS = 5


def main(path: str, folder: str) -> None:
    """Runs an ONNX file on the inputs in a folder and writes the outputs to ``outputs.npz`` there."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    names = [output.name for output in session.get_outputs()]
    arrays, seconds = {}, []
    with np.load(Path(folder) / "inputs.npz") as inputs:
        for number, pixels in inputs.items():
            for name, value in zip(names, session.run(names, {"image": pixels}), strict=True):
                arrays[f"{number}/{name}"] = value
        first = inputs["0"][:1]
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(names, {"image": first})
        seconds.append(time.perf_counter() - start)
    if {"kerasdet", "tensorflow"} & sys.modules.keys():
        raise RuntimeError("running the ONNX file imported TensorFlow or kerasdet; expected onnxruntime alone")
    np.savez(Path(folder) / "outputs.npz", seconds=seconds, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
