"""Measures a RetinaNet in each runtime, for one image on the CPU: SavedModel, ONNX Runtime, OpenVINO, torchvision.

    python benchmarks/runtimes.py [--peer-python PYTHON] [--cases r50 r18] [--rounds N] [--folder FOLDER] [--out JSON]

The models have an FPN, 80 classes and random weights, and go from pixels to boxes: "r50" is a ResNet-50 at 800x1344,
"r18" a ResNet-18 at 320x320. All scores pass the threshold, which saturates NMS. Each measurement has its own process,
and the sides take turns, so that noise affects all of them. On a busy machine compare the minima, and the
processor's time of all threads, which waiting for a core hardly changes. `--folder` keeps the files, and a second run
measures those that it finds there. PYTHON has torch and torchvision.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {"r50": (50, (800, 1344)), "r18": (18, (320, 320))}
FILES = {  # side -> format, options of the export
    "SavedModel float32": ("saved_model", {}),
    "ONNX Runtime float32": ("onnx", {}),
    "ONNX Runtime float32, fixed size": ("onnx", {"fixed": True}),
    "ONNX Runtime int8, fixed size": ("onnx", {"fixed": True, "precision": "int8"}),
    "OpenVINO float32": ("openvino", {}),
    "OpenVINO float32, fixed size": ("openvino", {"fixed": True}),
    "OpenVINO int8, fixed size": ("openvino", {"fixed": True, "precision": "int8"}),
}
PEERS = ("torchvision eager", "torchvision compiled")
BASE = "SavedModel float32"


def _path(folder, case, side):
    return Path(folder) / f"{case} {side}{'.onnx' if FILES[side][0] == 'onnx' else ''}"


def write(case, folder):
    """Writes the files that the folder lacks."""
    import numpy as np

    import kerasdet
    from kerasdet.export import export_onnx, export_openvino, export_saved_model
    from kerasdet.models import Preprocessing

    missing = [side for side in FILES if not _path(folder, case, side).exists()]
    if not missing:
        return
    depth, size = CASES[case]
    rule = Preprocessing(shortest=min(size), longest=max(size))
    model = kerasdet.RetinaNet(80, backbone=kerasdet.ResNet(depth), preprocessing=rule)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("beta", "moving_mean", "bias"):  # a prior of 0.5 for the classes
            variable.assign(rng.normal(0, 0.05, variable.shape))
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(2)]
    for side in missing:
        kind, options = FILES[side]
        path = _path(folder, case, side)
        if kind == "saved_model":
            export_saved_model(model, path)
            continue
        precision = options.get("precision", "float32")
        export = export_onnx if kind == "onnx" else export_openvino
        export(
            model,
            path,
            precision=precision,
            size=size if options.get("fixed") else None,
            input_type="uint8",
            calibration_images=images if precision == "int8" else (),
        )


def measure(case, side, folder, runs):
    """Measures several runs in this process, which imports only the runtime of the side.

    Returns:
        For each run its seconds, and those of the processor, summed over all threads.
    """
    size = CASES[case][1]
    if side in PEERS:
        return _seconds(_torchvision(case, side, size), runs)
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    path, kind = _path(folder, case, side), FILES[side][0]
    if kind == "saved_model":
        import tensorflow as tf

        detect, tensor = tf.saved_model.load(str(path)).signatures["serving_default"], tf.constant(image)
        return _seconds(lambda: detect(image=tensor)["num_detections"].numpy(), runs)
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads would count as busy
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return _seconds(lambda: session.run(None, {"image": image}), runs)
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path / "model.xml", "CPU", hints)
    request = compiled.create_infer_request()
    return _seconds(lambda: request.infer({"image": image}), runs)


def _torchvision(case, side, size):
    import torch
    from torchvision.models import detection
    from torchvision.models.detection import backbone_utils
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    depth = CASES[case][0]
    channels = 256 if depth == 50 else 64
    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=f"resnet{depth}",
        weights=None,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(8 * channels, 256),
    )
    anchors = detection.retinanet._default_anchorgen()
    options = {"min_size": min(size), "max_size": max(size), "detections_per_img": 100}
    model = detection.RetinaNet(backbone, 81, anchor_generator=anchors, **options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("cls_logits.bias"):
            parameter.data.fill_(0.0)
    if "compiled" in side:
        model = torch.compile(model)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)

    def run():
        with torch.inference_mode():
            model([image.float() / 255])

    return run


def _seconds(run, count):
    run(), run()
    seconds = []
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        seconds.append([time.perf_counter() - start, time.process_time() - cpu_start])
    return seconds


def _run(python, arguments, options):
    shared = ["--folder", str(options.folder), "--runs", str(options.runs)]
    run = subprocess.run([python, __file__, *arguments, *shared], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{arguments} failed: {(run.stderr.strip() or 'no message').splitlines()[-1]}")
    return run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""


def _compare(case, options):
    """Measures all sides of a case in turns; returns side -> milliseconds."""
    _run(sys.executable, ["--write", case], options)
    sides = dict.fromkeys(FILES, sys.executable)
    if options.peer_python:
        sides |= dict.fromkeys(PEERS, options.peer_python)
    times = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, python in sides.items():
            times[side] += json.loads(_run(python, ["--measure", case, side], options))
    return {
        side: {
            "min_ms": round(1e3 * min(wall for wall, _ in seconds), 1),
            "median_ms": round(1e3 * statistics.median(wall for wall, _ in seconds), 1),
            "min_cpu_ms": round(1e3 * min(cpu for _, cpu in seconds), 1),
            "runs": len(seconds),
        }
        for side, seconds in times.items()
    }


def _machine():
    model = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main():
    """Runs the rounds, prints the tables and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peer-python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="number of runs in each process")
    parser.add_argument("--folder", help="folder for the files (default: a temporary one)")
    parser.add_argument("--out", default=str(Path(__file__).with_name("results") / "runtimes.json"), metavar="JSON")
    parser.add_argument("--write", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.folder)
    elif options.measure:
        print(json.dumps(measure(*options.measure, options.folder, options.runs)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            options.folder = options.folder or temporary
            Path(options.folder).mkdir(parents=True, exist_ok=True)
            results = {"machine": _machine(), "cases": {case: _compare(case, options) for case in options.cases}}
        for case, sides in results["cases"].items():
            print(f"\n{case}, {'x'.join(map(str, CASES[case][1]))}\n{'':<34} min ms  median ms  min CPU ms  relative")
            for side, row in sides.items():
                relative = row["min_ms"] / sides[BASE]["min_ms"]
                numbers = f"{row['min_ms']:6.0f} {row['median_ms']:10.0f} {row['min_cpu_ms']:11.0f} {relative:9.2f}"
                print(f"{side:<34} {numbers}")
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
