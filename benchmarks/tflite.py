"""Measures size and latency of TFLite files and of a float32 SavedModel: one image of 320x320 on the CPU.

    python benchmarks/tflite.py [--models retinanet fcos] [--size H W] [--threads N] [--rounds N]

The models have 80 classes, random weights and uint8 input. "retinanet" and "fcos" have a ResNet-18 and FPN,
"retinanet_mobilenet" has Keras' MobileNetV3-Large instead, "ssdlite" is torchvision's on MobileNetV3-Large. In "idle"
runs no score passes the threshold; in "busy" runs all scores pass, which saturates post-processing. Each measurement
has its own process, and the sides take turns, so that noise affects all of them.
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

MODELS = ("retinanet", "fcos", "retinanet_mobilenet", "ssdlite")
LOADS = {"idle": -12.0, "busy": 0.0}  # bias of the class logits
SAVED_MODEL = "SavedModel float32"
FILES = [("nms", precision) for precision in ("float32", "float16", "dynamic", "int8")]
FILES += [("postprocess", "float32"), ("raw", "float32"), ("postprocess", "int8"), ("raw", "int8")]


def write_all(model_name, load, size, folder):
    """Writes the files to measure."""
    import numpy as np

    import kerasdet
    from kerasdet.checkpoints import SOURCES
    from kerasdet.checkpoints.build import build
    from kerasdet.export import export_saved_model, export_tflite
    from kerasdet.layers import KerasApplication
    from kerasdet.models import Preprocessing

    if model_name == "ssdlite":
        model = build(SOURCES["torchvision/ssdlite320_mobilenet_v3_large"], 80, {}, None)
    else:
        mobile = model_name == "retinanet_mobilenet"
        model = (kerasdet.FCOS if model_name == "fcos" else kerasdet.RetinaNet)(
            80,
            backbone=KerasApplication("MobileNetV3Large") if mobile else kerasdet.ResNet(18),
            preprocessing=Preprocessing(shortest=min(size), longest=max(size)),
        )
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        if variable.name == "bias":  # not zero, because the graph optimiser would remove the addition
            offset = LOADS[load] if "class_logits" in variable.path else 0.0
            value = rng.normal(0, 0.05, variable.shape) + offset
            if model.has_background and "class_logits" in variable.path:
                value.reshape(-1, 81)[:, -1] = 0  # scores depend on the difference to the background
            variable.assign(value)
    export_saved_model(model, folder / SAVED_MODEL)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(4)]
    for kind, precision in FILES:
        path = folder / f"{kind} {precision}.tflite"
        calibration = {"calibration_images": images} if precision == "int8" else {}
        options = {"precision": precision, "size": size, "input_type": "uint8", **calibration}
        export_tflite(model, path, postprocessing=kind, **options)


def measure(path, size, threads, runs):
    """Measures a file in a process that imports only the runtime of the file."""
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    if path.endswith(".tflite"):
        from ai_edge_litert.interpreter import Interpreter

        detect = Interpreter(path, num_threads=threads).get_signature_runner()

        def run():
            detect(image=image)
    else:
        import tensorflow as tf

        detect = tf.saved_model.load(path).signatures["serving_default"]
        image = tf.constant(image)

        def run():
            detect(image=image)["num_detections"].numpy()

    run(), run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(json.dumps([times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def _compare(model_name, load, options):
    """Measures all sides of one model, in turns, and prints their table."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        _run(["--write", model_name, load, "--path", folder], options)
        sides = {SAVED_MODEL: Path(folder) / SAVED_MODEL}
        sides |= {" ".join(file): Path(folder) / f"{' '.join(file)}.tflite" for file in FILES}
        for _ in range(options.rounds):
            for side, path in sides.items():
                output = _run(["--measure", "--path", str(path)], options)
                results.setdefault(side, []).append(json.loads(output.strip().splitlines()[-1]))
        sizes = {side: _size(path) / 2**20 for side, path in sides.items()}
    base = statistics.median(value for values, _ in results[SAVED_MODEL] for value in values)
    print(f"\n{model_name}, {load}, {options.size[0]}x{options.size[1]}, {options.threads} threads")
    print(f"{'':<22} MiB   median ms   min ms   max ms   peak MiB   relative")
    for side, rounds in results.items():
        times = [1e3 * value for values, _ in rounds for value in values]
        median = statistics.median(times)
        print(
            f"{side:<20} {sizes[side]:5.1f} {median:11.1f} {min(times):8.1f} {max(times):8.1f} "
            f"{max(peak for _, peak in rounds):10.0f} {median / base / 1e3:10.2f}",
            flush=True,
        )


def _size(path):
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _run(arguments, options):
    shared = ["--size", *map(str, options.size), "--runs", str(options.runs), "--threads", str(options.threads)]
    run = subprocess.run([sys.executable, __file__, *arguments, *shared], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{arguments} failed: {run.stderr.strip().splitlines()[-1]}")
    return run.stdout


def main():
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10, help="number of runs in each process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", nargs=2, type=int, default=[320, 320], metavar=("H", "W"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.path, options.size, options.threads, options.runs)
    elif options.write:
        write_all(*options.write, options.size, Path(options.path))
    else:
        for model_name in options.models:
            for load in options.loads:
                _compare(model_name, load, options)


if __name__ == "__main__":
    main()
