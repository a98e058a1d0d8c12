"""Runs OpenVINO IR in a separate process: ``python verify_worker.py FOLDER_OF_IR FOLDER``. Only openvino is needed.

The folder holds ``inputs.npz``, a batch (B, h, w, 3) under each of the names "0", "1" ...; the script writes
``outputs.npz`` there: each output under ``<number>/<name>``, and the seconds of each of several repeated runs of the
first image.
"""

import sys
import time
from pathlib import Path

import numpy as np
import openvino

RUNS = 5
# Without the precision hint OpenVINO computes in bfloat16 on processors that support it.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


def main(path: str, folder: str) -> None:
    """Runs OpenVINO IR on the inputs in a folder and writes the outputs to ``outputs.npz`` there."""
    run = openvino.Core().compile_model(Path(path) / "model.xml", "CPU", CONFIG)
    names = [output.any_name for output in run.outputs]
    arrays, seconds = {}, []
    with np.load(Path(folder) / "inputs.npz") as inputs:
        for number, pixels in inputs.items():
            results = run({"image": pixels})
            arrays.update({f"{number}/{name}": np.array(results[name]) for name in names})
        first = inputs["0"][:1]
    for _ in range(RUNS):
        start = time.perf_counter()
        run({"image": first})
        seconds.append(time.perf_counter() - start)
    if {"kerasdet", "tensorflow"} & sys.modules.keys():
        raise RuntimeError("running the IR imported TensorFlow or kerasdet; expected OpenVINO alone")
    np.savez(Path(folder) / "outputs.npz", seconds=seconds, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
