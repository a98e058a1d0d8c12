"""Trains small detectors from random weights for the same processor time, and compares AP, latency and size.

    python benchmarks/from_scratch.py shapes bccd dsb --data FOLDER [--seconds 200] [--json FILE]

Each recipe runs in a process of its own, with images and batches of half the recipe's size; only the generated shapes
keep their size. A few steps measure the processor time of a step, and the run then gets as many steps as fit into
`--seconds`, with the learning rate's schedule stretched over them. Building the model, tracing and evaluation do not
count. Latency is the processor
time of `detect` for one image, the median of 20, with resizing and post-processing. With `--int8` each RTMDet is also
exported to TFLite in 8 bits, calibrated on 32 training images, and evaluated beside the same file in float32. FOLDER
has the folders `bccd` and `dsb_small`.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import processor

RECIPES = {
    "shapes": ("retinanet_r18_fpn_shapes", "mask_rcnn_r18_fpn_shapes", "rtmdet_tiny_shapes", "rtmdet_ins_tiny_shapes"),
    "bccd": ("retinanet_r18_fpn_bccd", "rtmdet_tiny_bccd"),
    "dsb": ("mask_rcnn_r18_fpn_dsb", "rtmdet_ins_tiny_dsb"),
}
FOLDERS = {"bccd": "bccd", "dsb": "dsb_small"}
PROBE, TRACED = 16, 4  # steps that measure the time of a step; the first TRACED of them do not count
SMALL = {
    "retinanet_r18_fpn_shapes": ["BATCH_SIZE=8"],
    "mask_rcnn_r18_fpn_shapes": ["BATCH_SIZE=8"],
    "rtmdet_tiny_shapes": ["BATCH_SIZE=8"],
    "rtmdet_ins_tiny_shapes": ["BATCH_SIZE=8"],
    "retinanet_r18_fpn_bccd": [
        "BATCH_SIZE=4",
        "SHORTEST_EDGE=160",
        "LONGEST_EDGE=214",
        "ResizeShortestEdge.shortest=(144, 160, 176)",
        "ResizeShortestEdge.longest=235",
        "octave_sizes.smallest=10.0",
    ],
    "rtmdet_tiny_bccd": [
        "BATCH_SIZE=4",
        "SHORTEST_EDGE=224",
        "LONGEST_EDGE=224",
        "ResizeShortestEdge.shortest=(208, 224)",
        "ResizeShortestEdge.longest=224",
    ],
    "mask_rcnn_r18_fpn_dsb": [
        "BATCH_SIZE=4",
        "SHORTEST_EDGE=192",
        "LONGEST_EDGE=192",
        "ResizeShortestEdge.shortest=(160, 192, 224)",
        "ResizeShortestEdge.longest=224",
        "octave_sizes.smallest=4.0",
    ],
    "rtmdet_ins_tiny_dsb": [
        "BATCH_SIZE=4",
        "SHORTEST_EDGE=192",
        "LONGEST_EDGE=192",
        "ResizeShortestEdge.shortest=(160, 192, 224)",
        "ResizeShortestEdge.longest=224",
        "PadTo.size=(224, 224)",
    ],
}


def overrides_for(dataset, options, folder):
    """Returns the overrides that name the data."""
    if dataset == "shapes":
        return [f"TRAIN_DIR={folder / 'train'}", f"EVAL_DIR={folder / 'eval'}"]
    data = Path(options.data) / FOLDERS[dataset]
    return [f"TRAIN_ANNOTATIONS={data / 'train.json'}", f"EVAL_ANNOTATIONS={data / 'val.json'}"]


@functools.cache
def step_ends():
    """Returns the list to which the callback `StepClock` appends the processor seconds at the end of each step."""
    import gin
    import keras

    ends = []

    @gin.register
    class StepClock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ends.append(time.process_time())

    return ends


def train(recipe, steps, settings):
    """Trains a recipe for a number of steps; returns the model and the processor seconds at the end of each step.

    The warmup and the mean of RTMDet's weights span an eighth of the steps.
    """
    from kerasdet import config

    step_ends().clear()
    short = [f"STEPS={steps}", "train.validation=None", "train.callbacks=[@StepClock()]"]
    if recipe.startswith("rtmdet"):
        short += [f"WarmupFlatCosine.warmup_steps={steps // 8}", f"AdamW.ema_momentum={1 - 8 / steps}"]
    else:
        short += [f"WarmupCosine.warmup_steps={steps // 8}"]
    config.load(recipe, [*settings, *short])
    return config.train(), list(step_ends())


def run_recipe(recipe, dataset, options, folder):
    """Trains a recipe and prints its row as JSON."""
    import numpy as np

    import kerasdet
    from kerasdet import config
    from kerasdet.evaluation import evaluate
    from kerasdet.export import export_tflite

    own = [*overrides_for(dataset, options, Path(options.shapes)), *SMALL[recipe]]
    _, ends = train(recipe, PROBE, [*own, f"OUT_DIR={folder / 'probe'}"])
    steps = max(round(options.seconds * (PROBE - TRACED) / (ends[-1] - ends[TRACED - 1])), PROBE)
    model, ends = train(recipe, steps, [*own, f"OUT_DIR={folder / 'run'}"])
    data = config.eval_data()
    seconds = (ends[-1] - ends[TRACED - 1]) * steps / (steps - TRACED)
    row = {"dataset": dataset, "recipe": recipe, "steps": steps, "batch_size": config.macro("BATCH_SIZE")}
    row |= {"processor_seconds": seconds, **summary(evaluate(model, data))}
    images = [record.path for record in data.records[:20]]
    times = []
    for path in [*images[:3], *images]:
        start = time.process_time()
        model.detect(path)
        times.append(time.process_time() - start)
    row["latency_ms"] = 1e3 * statistics.median(times[3:])
    row["parameters"] = int(sum(np.prod(variable.shape) for variable in model.variables))
    if options.int8 and recipe.startswith("rtmdet"):
        for precision in ("float32", "int8"):
            calibration = {"calibration_images": training_images(32)} if precision == "int8" else {}
            file = folder / f"{precision}.tflite"
            path = export_tflite(model, file, precision=precision, input_type="uint8", **calibration)
            found = summary(evaluate(kerasdet.load(path), data))
            row |= {f"tflite_{precision}_{name}": value for name, value in found.items()}
            row[f"tflite_{precision}_mebibytes"] = path.stat().st_size / 2**20
    if options.keep:
        model.save(Path(options.keep) / f"{recipe}.keras")
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
    parser.add_argument("--seconds", type=float, default=200, help="processor time of each training")
    parser.add_argument("--recipes", nargs="+", help="only these")
    parser.add_argument("--int8", action="store_true", help="evaluate TFLite files of RTMDet, too")
    parser.add_argument("--keep", help="folder for the trained models")
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
    """Adds a row to the results; replaces an existing row of the same recipe."""
    facts = json.loads(path.read_text()) if path.exists() else {"rows": []}
    facts["processor"] = processor()
    facts["rows"] = [old for old in facts["rows"] if old["recipe"] != row["recipe"]] + [row]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
