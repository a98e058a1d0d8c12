"""Trains small detectors from random weights for the same time, and compares AP, latency and size.

    python benchmarks/from_scratch.py shapes bccd dsb --data FOLDER [--seconds 200] [--json FILE]

Each recipe runs in a process of its own. A few steps measure the time of a step, and the run then gets as many steps as
fit into `--seconds`, with the learning rate's schedule stretched over them; evaluation does not count. Latency is that
of `detect` for one image, the median of 20, with resizing and post-processing. With `--int8` each RTMDet is also
exported to TFLite in 8 bits, calibrated on 32 training images, and evaluated. FOLDER has
the folders `bccd` and `dsb_small`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = {
    "shapes": ("retinanet_r18_fpn_shapes", "mask_rcnn_r18_fpn_shapes", "rtmdet_tiny_shapes", "rtmdet_ins_tiny_shapes"),
    "bccd": ("retinanet_r18_fpn_bccd", "rtmdet_tiny_bccd"),
    "dsb": ("mask_rcnn_r18_fpn_dsb", "rtmdet_ins_tiny_dsb"),
}
FOLDERS = {"bccd": "bccd", "dsb": "dsb_small"}
PROBE = 30  # steps; the time of a step is that of the last ten


def overrides_for(dataset, options, folder):
    """Returns the overrides that name the data."""
    if dataset == "shapes":
        return [f"TRAIN_DIR={folder / 'train'}", f"EVAL_DIR={folder / 'eval'}"]
    data = Path(options.data) / FOLDERS[dataset]
    return [f"TRAIN_ANNOTATIONS={data / 'train.json'}", f"EVAL_ANNOTATIONS={data / 'val.json'}"]


def seconds_of(out_dir, first=0):
    """Returns the seconds that the steps of a run after step `first` took."""
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    ends = [(line["step"], line["images_per_second"]) for line in lines if "images_per_second" in line]
    seconds, before = 0.0, 0
    for step, speed in ends:
        if before >= first:
            seconds += (step - before) / speed
        before = step
    return seconds  # times the batch size


def run_recipe(recipe, dataset, options, folder):
    """Trains a recipe and prints its row as JSON."""
    import numpy as np

    import kerasdet
    from kerasdet import config
    from kerasdet.evaluation import evaluate
    from kerasdet.export import export_tflite

    own = [*overrides_for(dataset, options, Path(options.shapes)), "train.validation=None", "train.log_every=10"]
    config.load(recipe, [*own, f"STEPS={PROBE}", f"OUT_DIR={folder / 'probe'}"])
    batch_size = config.macro("BATCH_SIZE")
    config.train()
    step = seconds_of(folder / "probe", PROBE - 10) * batch_size / 10
    steps = max(int(options.seconds / step), PROBE)
    config.load(recipe, [*own, f"STEPS={steps}", f"OUT_DIR={folder / 'run'}"])
    model, data = config.train(), config.eval_data()
    row = {"dataset": dataset, "recipe": recipe, "steps": steps, "batch_size": batch_size}
    row["seconds"] = seconds_of(folder / "run") * batch_size
    row |= summary(evaluate(model, data))
    images = [record.path for record in data.records[:20]]
    times = []
    for path in [*images[:3], *images]:
        start = time.perf_counter()
        model.detect(path)
        times.append(time.perf_counter() - start)
    row["latency_ms"] = 1e3 * statistics.median(times[3:])
    row["parameters"] = int(sum(np.prod(variable.shape) for variable in model.variables))
    if options.int8 and recipe.startswith("rtmdet"):
        path = export_tflite(
            model, folder / "model.tflite", precision="int8", input_type="uint8", calibration_images=training_images(32)
        )
        row["int8"] = summary(evaluate(kerasdet.load(path), data))
        row["int8_mebibytes"] = path.stat().st_size / 2**20
    print(json.dumps(row))


def training_images(count):
    """Returns paths of images of the configured training data, for calibration."""
    import gin

    data = gin.query_parameter("train.data").scoped_configurable_fn()
    return [record.path for record in data.records[:count]]


def summary(metrics):
    """Returns AP and AP50 of boxes, and of masks if there are any."""
    return {name: value for name, value in metrics.summary.items() if name.rpartition("/")[2] in ("AP", "AP50")}


def main():
    """Runs all recipes, prints a row for each and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", choices=RECIPES)
    parser.add_argument("--data", default="../shared/data", help="folder with bccd and dsb_small")
    parser.add_argument("--shapes", default="data/shapes", help="folder for the generated shapes")
    parser.add_argument("--seconds", type=float, default=200, help="training time of each recipe")
    parser.add_argument("--recipes", nargs="+", help="only these")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the results; rows are added to those that it has")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        with tempfile.TemporaryDirectory() as folder:
            run_recipe(*options.run, options, Path(folder))
        return
    for dataset in options.datasets:
        for recipe in RECIPES[dataset]:
            if options.recipes and recipe not in options.recipes:
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--run", recipe, dataset]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                raise RuntimeError(f"{recipe} failed: {run.stderr.strip().splitlines()[-1]}")
            row = json.loads(run.stdout.strip().splitlines()[-1])
            print(
                {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()},
                flush=True,
            )
            if options.json:
                add_row(options.json, row)


def add_row(path, row):
    """Adds a row to the results, in the place of one of the same recipe."""
    facts = json.loads(path.read_text()) if path.exists() else {"rows": []}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts["processor"] = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    facts["threads"] = len(os.sched_getaffinity(0))
    facts["rows"] = [old for old in facts["rows"] if old["recipe"] != row["recipe"]] + [row]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
