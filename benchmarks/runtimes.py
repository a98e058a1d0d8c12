"""Measures a RetinaNet in each runtime, for one image on the CPU: SavedModel, ONNX Runtime, OpenVINO, torchvision.

    python benchmarks/runtimes.py r50 [--peer-python PYTHON] [--rounds N] [--runs N] [--folder FOLDER] [--json FILE]

The models have an FPN, 80 classes and random weights, and go from pixels to boxes: "r50" is a ResNet-50 at 800x1344,
"r18" a ResNet-18 at 320x320. All scores pass the threshold, so that NMS reads all candidates. Each measurement has its
own process, and the sides take turns, so that noise affects all of them. On a busy machine compare the
processor times: they are summed over all threads, and waiting for a core hardly changes them. `--write` only writes the
files; `--folder` keeps them, and a second run measures those that it finds there. PYTHON has torch and torchvision.
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
BASE = "SavedModel float32"
CONVERTED = "OpenVINO, converted from the SavedModel"
PEERS = ("torchvision compiled",)


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
        For each run: elapsed seconds, and processor seconds summed over all threads.
    """
    size = CASES[case][1]
    if side in PEERS:
        return _seconds(_torchvision(case, size), runs)
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    source = BASE if side == CONVERTED else side
    path, kind = _path(folder, case, source), FILES[source][0]
    if side == BASE:
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
    graph = openvino.convert_model(path) if side == CONVERTED else openvino.Core().read_model(path / "model.xml")
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    return _seconds(lambda: request.infer({"image": image}), runs)


def _torchvision(case, size):
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


def _run(python, arguments):
    run = subprocess.run([python, __file__, *map(str, arguments)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{arguments} failed: {(run.stderr.strip() or 'no message').splitlines()[-1]}")
    return run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""


def compare(case, folder, peer_python, rounds, runs):
    """Measures all sides of a case in turns.

    Returns:
        A row for each side: milliseconds, and the processor's time as a fraction of the SavedModel's.
    """
    _run(sys.executable, [case, "--write", "--folder", folder])
    sides = dict.fromkeys([*FILES, CONVERTED], sys.executable)
    if peer_python:
        sides |= dict.fromkeys(PEERS, peer_python)
    times = {side: [] for side in sides}
    for _ in range(rounds):
        for side, python in sides.items():
            arguments = [case, "--measure", side, "--folder", folder, "--runs", runs]
            times[side] += json.loads(_run(python, arguments))
    walls = {side: statistics.median(wall for wall, _ in seconds) for side, seconds in times.items()}
    busy = {side: statistics.median(cpu for _, cpu in seconds) for side, seconds in times.items()}
    return [
        {
            "runtime": side,
            "min_ms": round(1e3 * min(wall for wall, _ in seconds)),
            "median_ms": round(1e3 * walls[side]),
            "median_cpu_ms": round(1e3 * busy[side]),
            "relative": round(busy[side] / busy[BASE], 2),
            "runs": len(seconds),
        }
        for side, seconds in times.items()
    ]


def _machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = found.get("flags", "").split()
    return {
        "processor": found.get("model name", platform.processor()),
        "family_and_model": f"{found.get('cpu family', '?')}, {found.get('model', '?')}",
        "avx512": "avx512f" in flags,
        "amx": "amx_tile" in flags,
        "load_average": os.getloadavg()[0],
        "cores": len(os.sched_getaffinity(0)),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main():
    """Runs the rounds, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--peer-python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="number of runs in each process")
    parser.add_argument("--folder", help="folder for the files (default: a temporary one)")
    parser.add_argument("--json", metavar="FILE", help="default: benchmarks/results/runtimes_CASE.json")
    parser.add_argument("--write", action="store_true", help="only write the files into the folder")
    parser.add_argument("--measure", metavar="SIDE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.case, options.folder)
        return
    if options.measure:
        print(json.dumps(measure(options.case, options.measure, options.folder, options.runs)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = compare(options.case, folder, options.peer_python, options.rounds, options.runs)
    depth, size = CASES[options.case]
    command = f"python benchmarks/runtimes.py {options.case} --rounds {options.rounds} --runs {options.runs}"
    command += " --peer-python PYTHON_WITH_TORCHVISION" * bool(options.peer_python)
    facts = {"command": command, "model": f"RetinaNet, ResNet-{depth}", "size": "x".join(map(str, size)), **_machine()}
    print(f"{'':<40} min ms  median ms  CPU ms  relative")
    for row in rows:
        numbers = f"{row['min_ms']:6} {row['median_ms']:10} {row['median_cpu_ms']:7} {row['relative']:9.2f}"
        print(f"{row['runtime']:<40} {numbers}")
    path = Path(options.json or Path(__file__).with_name("results") / f"runtimes_{options.case}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
