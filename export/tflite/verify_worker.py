"""Runs a TFLite file in a separate process: ``python verify_worker.py FILE FOLDER``. Only ai-edge-litert is needed.

The folder holds ``inputs.npy``, the inputs (B, h, w, 3); the script writes ``outputs.npz`` there: each output by name
for all inputs (B, 1, ...), and the seconds of each of several runs of the first input.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

RUNS = 5


def main(path: str, folder: str) -> None:
    """Runs a TFLite file on the inputs in a folder and writes the outputs to ``outputs.npz`` there."""
    inputs = np.load(Path(folder) / "inputs.npy")
    run = Interpreter(path, num_threads=os.cpu_count()).get_signature_runner()
    results = [run(image=pixels[None]) for pixels in inputs]
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run(image=inputs[:1])
        seconds.append(time.perf_counter() - start)
    if {"kerasdet", "tensorflow"} & sys.modules.keys():
        raise RuntimeError("running the TFLite file imported TensorFlow or kerasdet; expected LiteRT alone")
    arrays = {name: np.stack([result[name] for result in results]) for name in results[0]}
    np.savez(Path(folder) / "outputs.npz", seconds=seconds, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
