"""Measures SavedModels and torchvision's detectors: seconds and peak memory for one image of 800x1344 on the CPU.

    python benchmarks/export.py [--peer-python PYTHON] [--client DETECT] [--models retinanet fcos mask_rcnn]
    python benchmarks/export.py --differences MODEL IMAGE...

The models are ResNet-50-FPN detectors with 80 classes and random weights, from uint8 pixels to boxes in image pixels.
In "idle" runs no score passes the threshold; in "busy" runs all scores pass, which saturates post-processing. Each
measurement has its own process, and the sides take turns, so that noise affects all of them. `--client` takes the C++
client that `export/cpp/build.sh` builds, and measures its peak memory: that of a server without Python. The second
command prints how bfloat16 changes the detections of a trained model (a run or a ``.keras`` file).
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

MODELS = {"retinanet": "RetinaNet", "fcos": "FCOS", "mask_rcnn": "MaskRCNN"}
LOADS = {"idle": -12.0, "busy": 0.0}  # bias of the class logits
OURS = ("kerasdet float32", "kerasdet bfloat16")
PEERS = ("torchvision eager", "torchvision compiled", "torchvision bfloat16", "torchvision compiled bfloat16")


def write_saved_model(model_name, load, precision, size, path):
    """Writes the SavedModel to measure."""
    import numpy as np

    import kerasdet
    from kerasdet.export import export_saved_model
    from kerasdet.models import Preprocessing

    model = getattr(kerasdet, MODELS[model_name])(
        80, preprocessing=Preprocessing(shortest=min(size), longest=max(size))
    )
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.05, variable.shape))
        if variable.name == "bias":  # not zero, because the graph optimiser would remove the addition
            offset = LOADS[load] if "class_logits" in variable.path else 0.0
            noise = rng.normal(0, 0.05, variable.shape) + offset
            if model_name == "mask_rcnn" and "class_logits" in variable.path:
                noise[-1] -= offset  # background class
            variable.assign(noise)
    export_saved_model(model, path, precision=precision)


def measure_saved_model(path, size, runs):
    """Measures a SavedModel with TensorFlow alone: times, and the number of detections."""
    import numpy as np
    import tensorflow as tf

    detect = tf.saved_model.load(path).signatures["serving_default"]
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8))
    return _times(lambda: int(detect(image=image)["num_detections"].numpy()[0]), runs)


def measure_torchvision(model_name, load, mode, size, runs):
    """Measures the same model of torchvision."""
    import contextlib

    import torch
    from torchvision.models import detection

    torch.manual_seed(0)
    build = {
        "retinanet": detection.retinanet_resnet50_fpn,
        "fcos": detection.fcos_resnet50_fpn,
        "mask_rcnn": detection.maskrcnn_resnet50_fpn,
    }[model_name]
    detections = "box_detections_per_img" if model_name == "mask_rcnn" else "detections_per_img"
    options = {"weights": None, "weights_backbone": None, "num_classes": 81, detections: 100}
    model = build(**options, min_size=min(size), max_size=max(size)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.bias", "cls_score.bias")) and "rpn" not in name:
            parameter.data.fill_(LOADS[load])
            if model_name == "mask_rcnn":
                parameter.data[0] = 0.0
    if "compiled" in mode:
        model = torch.compile(model)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    low = torch.autocast("cpu", torch.bfloat16) if "bfloat16" in mode else contextlib.nullcontext()

    def run():
        with torch.inference_mode(), low:
            return len(model([image.float() / 255])[0]["boxes"])

    return _times(run, runs)


def measure_client(client, path, size):
    """Returns the peak memory in MiB of the C++ client, which detects in one JPEG four times."""
    import numpy as np
    import tensorflow as tf

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(tf.io.encode_jpeg(image).numpy())
        file.flush()
        subprocess.run([client, path, *[file.name] * 4], capture_output=True, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _times(run, count):
    run(), run()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - start)
    return times, found


def _measure(options):
    model_name, load, side = options.measure
    if options.client:
        print(json.dumps(measure_client(options.client, options.path, options.size)))
        return
    if side in OURS:
        times, found = measure_saved_model(options.path, options.size, options.runs)
    else:
        times, found = measure_torchvision(model_name, load, side, options.size, options.runs)
    print(json.dumps([times, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def _compare(model_name, load, options):
    """Measures all sides of one model, in turns, and prints their table."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = [*OURS, *(PEERS if options.peer_python else ())]
        for side in OURS:
            path = Path(folder) / side
            arguments = ["--write", model_name, load, side.split()[-1], "--path", str(path)]
            _run(sys.executable, arguments, options)
        for _ in range(options.rounds):
            for side in sides:
                python = sys.executable if side in OURS else options.peer_python
                arguments = ["--measure", model_name, load, side, "--path", str(Path(folder) / side)]
                output = _run(python, arguments, options)
                if output is not None:
                    results.setdefault(side, []).append(json.loads(output.strip().splitlines()[-1]))
        servers = {}
        for side in OURS if options.client else ():
            arguments = ["--measure", model_name, load, side, "--path", str(Path(folder) / side)]
            servers[side] = float(_run(sys.executable, [*arguments, "--client", options.client], options))
    base = results.get("torchvision compiled") or results[OURS[0]]
    base = statistics.median(base[0][0])
    print(f"\n{model_name}, {load}, {options.size[0]}x{options.size[1]}, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':<30} median s   min s   max s   peak MiB   detections   relative")
    for side, rounds in results.items():
        times = [value for values, _, _ in rounds for value in values]
        median = statistics.median(times)
        print(
            f"{side:<30} {median:8.3f} {min(times):7.3f} {max(times):7.3f} {max(r[2] for r in rounds):10.0f} "
            f"{rounds[0][1]:12} {median / base:10.2f}"
        )
    for side, peak in servers.items():
        print(f"{side + ', C++ client':<30} {peak:36.0f}")


def _run(python, arguments, options):
    size = ["--size", *map(str, options.size), "--runs", str(options.runs)]
    run = subprocess.run([python, __file__, *arguments, *size], capture_output=True, text=True)
    if run.returncode:
        print(f"{arguments[1:4]} failed: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return run.stdout


def _differences(path, images):
    """Prints how a trained model's detections differ in bfloat16."""
    import kerasdet
    from kerasdet.export import export_and_verify

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        print(export_and_verify(kerasdet.load(path), out, verify_images=images, precision="bfloat16")[1])


def main():
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python interpreter with torchvision")
    parser.add_argument("--client", help="the C++ client, to measure its memory")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="number of runs in each process")
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1344], metavar=("H", "W"))
    parser.add_argument("--differences", nargs="+", metavar="MODEL IMAGE")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options)
    elif options.write:
        write_saved_model(*options.write, options.size, options.path)
    elif options.differences:
        _differences(options.differences[0], options.differences[1:])
    else:
        for model_name in options.models:
            for load in options.loads:
                _compare(model_name, load, options)


if __name__ == "__main__":
    main()
