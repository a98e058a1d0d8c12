"""Runs a SavedModel in a separate process: ``python verify_worker.py SAVED_MODEL FOLDER [LIBRARY]``.

Only TensorFlow is needed, and the library of compiled ops if the SavedModel contains such ops. The folder holds
``0.png``, ``1.png`` ...; the script writes ``outputs.npz`` there: the outputs of ``encoded`` for all images, the
outputs of ``serving_default`` and ``float_image`` for the first image, and the seconds of each of several runs of the
first image.
"""

import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

RUNS = 5


def main(saved_model: str, folder: str, *libraries: str) -> None:
    """Runs all signatures on the images in a folder and writes the outputs to ``outputs.npz`` there."""
    for library in libraries:
        tf.load_op_library(library)
    signatures = tf.saved_model.load(saved_model).signatures
    paths = sorted(Path(folder).glob("*.png"), key=lambda path: int(path.stem))
    encoded = tf.stack([tf.io.read_file(str(path)) for path in paths])
    image = tf.io.decode_png(encoded[0], channels=3)[None]
    results = {"encoded": signatures["encoded"](image_bytes=encoded)}
    results["float_image"] = signatures["float_image"](image=tf.cast(image, tf.float32))
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        results["serving_default"] = signatures["serving_default"](image=image)
        results["serving_default"]["num_detections"].numpy()
        seconds.append(time.perf_counter() - start)
    if "kerasdet" in sys.modules:
        raise RuntimeError("running the SavedModel imported kerasdet; expected TensorFlow alone")
    arrays = {f"{name}/{key}": value.numpy() for name, outputs in results.items() for key, value in outputs.items()}
    np.savez(Path(folder) / "outputs.npz", seconds=seconds, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
