"""Measures RTMDet-tiny's exports on the CPU: size of the file, and seconds from uint8 pixels to boxes of one image.

    python benchmarks/rtmdet.py [--sizes 640 320] [--peer-python PYTHON] [--rounds N] [--files FOLDER] [--json FILE]

The model has 80 classes and random weights; the biases of its classes are such that about 3000 scores of the image pass
the threshold, as with trained weights. Each measurement has its own process, which imports only the runtime of the
file, and the sides take turns, so that noise affects all of them. The peer is torchvision's
ssdlite320_mobilenet_v3_large in eager mode, measured at 320x320 by a Python that has it (`--peer-python`). With
`--files` the exported files stay in FOLDER, and a second call measures them without exporting; `--rounds 0` only
exports.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import processor

CANDIDATES = 3000
PEER = "torchvision ssdlite320_mobilenet_v3_large"
SIDES = {
    "SavedModel float32": "saved_model",
    "ONNX Runtime float32": "onnx",
    "ONNX Runtime int8": "onnx",
    "OpenVINO float32": "openvino",
    "OpenVINO int8": "openvino",
    "TFLite float32": "tflite",
    "TFLite int8": "tflite",
}


def make_image(size):
    """Makes a noisy image with large structures, (size, size, 3) uint8."""
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size // 32, size // 32, 3)).repeat(32, 0).repeat(32, 1)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def make_model(size):
    """Makes the model."""
    import numpy as np

    from kerasdet import RTMDet
    from kerasdet.checkpoints.sources import RTMDET_PREPROCESSING
    from kerasdet.geometry.coders import DistanceCoder
    from kerasdet.layers import CSPNeXt, CSPNeXtPAFPN
    from kerasdet.models import Preprocessing

    model = RTMDet(
        80,
        backbone=CSPNeXt(0.167, 0.375),
        neck=CSPNeXtPAFPN(channels=96, num_blocks=1),
        coder=DistanceCoder(activation="linear"),
        preprocessing=Preprocessing(**{**RTMDET_PREPROCESSING, "shortest": size, "longest": size}),
    )
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        if variable.name == "bias" and "box_distances" in variable.path:
            variable.assign(rng.uniform(8, 40, variable.shape))
        if variable.name == "kernel" and "class_logits" in variable.path:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    outputs = model(make_image(size)[None], training=False)
    logits = np.concatenate([np.ravel(level) for level in outputs["class_logits"].values()])
    threshold = model.postprocessing.score_threshold
    shift = np.log(threshold / (1 - threshold)) - np.sort(logits)[-CANDIDATES]
    for variable in model.variables:
        if variable.name == "bias" and "class_logits" in variable.path:
            variable.assign(variable + shift)
    return model


def write(size, folder, sides):
    """Writes the files to measure."""
    from kerasdet.export import export_onnx, export_openvino, export_saved_model, export_tflite

    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(size)
    for side in sides:
        precision = side.rpartition(" ")[2]
        if SIDES[side] == "saved_model":
            export_saved_model(model, folder / side)
            continue
        export = {"onnx": export_onnx, "openvino": export_openvino, "tflite": export_tflite}[SIDES[side]]
        calibration = {"calibration_images": [make_image(size)]} if precision == "int8" else {}
        suffix = {"onnx": ".onnx", "tflite": ".tflite", "openvino": ""}[SIDES[side]]
        options = {"precision": precision, "size": (size, size), "input_type": "uint8", **calibration}
        export(model, folder / f"{side}{suffix}", **options)


def measure(kind, path, size, threads, runs):
    """Prints times and peak memory of a file in a process that imports only the runtime of the file."""
    image = make_image(size)[None]
    run = {
        "saved_model": saved_model,
        "tflite": tflite,
        "onnx": onnx,
        "openvino": openvino,
        "peer": ssdlite,
    }[kind](path, image, threads)
    run(), run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(json.dumps([times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def saved_model(path, image, threads):
    """Returns a function that runs a SavedModel."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    detect = tf.saved_model.load(path).signatures["serving_default"]
    image = tf.constant(image)
    return lambda: detect(image=image)["num_detections"].numpy()


def tflite(path, image, threads):
    """Returns a function that runs a TFLite file."""
    from ai_edge_litert.interpreter import Interpreter

    detect = Interpreter(path, num_threads=threads).get_signature_runner()
    return lambda: detect(image=image)


def onnx(path, image, threads):
    """Returns a function that runs an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image})


def openvino(path, image, threads):
    """Returns a function that runs OpenVINO IR."""
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    model = ov.Core().compile_model(f"{path}/model.xml", "CPU", config)
    return lambda: model({"image": image})


def ssdlite(path, image, threads):
    """Returns a function that runs torchvision's SSDLite."""
    import torch
    from torchvision.models import detection

    torch.set_num_threads(threads)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    pixels = torch.from_numpy(image[0]).permute(2, 0, 1)

    def run():
        with torch.inference_mode():
            return len(model([pixels.float() / 255])[0]["boxes"])

    return run


def compare(size, options):
    """Measures all sides at one size, in turns; returns and prints their rows."""
    results, sizes = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.files or temporary) / str(size)
        missing = [side for side in options.sides if not list(folder.glob(f"{side}*"))]
        if missing:
            _run(sys.executable, ["--write", str(folder), "--sizes", str(size), "--sides", *missing])
        paths = {side: path for side in options.sides for path in folder.glob(f"{side}*")}
        for _ in range(options.rounds):
            for side, path in paths.items():
                _measure(results, side, sys.executable, [SIDES[side], str(path)], size, options)
            if options.peer_python and size == 320:
                _measure(results, PEER, options.peer_python, ["peer", "-"], size, options)
        sizes = {side: _size(path) / 2**20 for side, path in paths.items()}
    print(f"\n{size}x{size}, {options.threads} threads\n{'':<44} MiB   median ms   min ms   max ms   peak MiB")
    rows = []
    for side, rounds in results.items():
        times = [1e3 * value for values, _ in rounds for value in values]
        row = {"size": size, "side": side, "mebibytes": sizes.get(side), "median_ms": statistics.median(times)}
        row |= {"min_ms": min(times), "max_ms": max(times), "peak_mebibytes": max(peak for _, peak in rounds)}
        rows.append(row)
        print(
            f"{side:<42} {row['mebibytes'] or float('nan'):5.1f} {row['median_ms']:11.1f} {row['min_ms']:8.1f} "
            f"{row['max_ms']:8.1f} {row['peak_mebibytes']:10.0f}",
            flush=True,
        )
    return rows


def _measure(results, side, python, arguments, size, options):
    shared = ["--sizes", str(size), "--runs", str(options.runs), "--threads", str(options.threads)]
    output = _run(python, ["--measure", *arguments, *shared])
    results.setdefault(side, []).append(json.loads(output.strip().splitlines()[-1]))


def _size(path):
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _run(python, arguments):
    run = subprocess.run([python, __file__, *arguments], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{arguments} failed: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout


def main():
    """Runs the rounds, prints the tables and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[640, 320])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--peer-python", help="Python that has torchvision")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10, help="number of runs in each process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--files", type=Path, help="folder that keeps the exported files")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.sizes[0], options.threads, options.runs)
    elif options.write:
        write(options.sizes[0], Path(options.write), options.sides)
    else:
        rows = [row for size in options.sizes for row in compare(size, options)]
        if options.json:
            facts = {"model": "RTMDet-tiny", "processor": processor(), "threads": options.threads, "rows": rows}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
