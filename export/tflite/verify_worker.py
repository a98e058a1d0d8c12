"""Runs a TFLite file in a process of its own: ``python verify_worker.py FILE FOLDER``; only ai-edge-litert is needed.

The folder holds ``frames.npy``, inputs one after the other, and receives ``outputs.npz``: each output by its name for
all of them, and how long the first one took each time.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

RUNS = 5


def main(path: str, folder: str) -> None:
    """Writes the outputs."""
    frames = np.load(Path(folder) / "frames.npy")
    run = Interpreter(path, num_threads=os.cpu_count()).get_signature_runner()
    results = [run(image=frame[None]) for frame in frames]
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run(image=frames[:1])
        seconds.append(time.perf_counter() - start)
    if {"kerasdet", "tensorflow"} & sys.modules.keys():
        raise RuntimeError("the TFLite file needed TensorFlow or kerasdet")
    arrays = {name: np.stack([result[name] for result in results]) for name in results[0]}
    np.savez(Path(folder) / "outputs.npz", seconds=seconds, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
