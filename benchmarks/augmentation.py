"""Compares augmentations on two small datasets. The choice in `base/small_data.gin` is based on the results.

    python benchmarks/augmentation.py --data FOLDER [--images 24] [--seeds 0 1 2] [--steps bccd=400 dsb=400]

FOLDER holds `bccd/` and `dsb_small/`, each with `train.json`, `val.json` and `images/`. Each run trains a RetinaNet
with a narrow ResNet-18 from random weights, on small images. All runs of a dataset use the same few training images,
drawn at random, and see each about sixty times. They take the same number of steps, average their weights (EMA), and
differ only in `train.transforms` and the seed. The table has the mean AP on all validation images at the end, and its
smallest and largest value over the seeds. Runs that are in `--out` are not repeated. `--json FILE` also writes the
table to a file.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from machine import processor

RECIPE, BATCH = "retinanet_r18_fpn_bccd", 4
NARROW = ("BACKBONE_WIDTH=16", "HEAD_CHANNELS=32", "LR=0.002", "AdamW.use_ema=True", "AdamW.ema_momentum=0.97")
DATASETS = {
    "bccd": ("bccd", (160, 214), ["NUM_CLASSES=3", "octave_sizes.smallest=10.0"]),
    "dsb": ("dsb_small", (160, 160), ["NUM_CLASSES=1", "octave_sizes.smallest=5.0"]),
}
ARMS = {
    "none": "[@ResizeShortestEdge()]",
    "sizes, flips": "[@ResizeShortestEdge(), @RandomFlip()]",
    "colours, sizes, flips": "[@RandomPhotometricDistort(), @ResizeShortestEdge(), @RandomFlip()]",
    "colours, zoom, crops, sizes, flips": "[@RandomPhotometricDistort(), @RandomZoomOut(), @RandomApply(),"
    " @ResizeShortestEdge(), @RandomFlip()]",
}
STRENGTH = (
    "RandomPhotometricDistort.channel_probability=0.0",
    "RandomZoomOut.side=(1.0, 2.0)",
    "RandomZoomOut.probability=0.3",
    "RandomApply.transforms=[@RandomIoUCrop()]",
    "RandomApply.probability=0.5",
)


def overrides(dataset: str, arm: str, steps: int) -> list[str]:
    """Returns the gin overrides of a run, without those of the data and the seed."""
    _, (shortest, longest), own = DATASETS[dataset]
    scales = (shortest,) if arm == "none" else tuple(round(shortest * f / 16) * 16 for f in (0.9, 1, 1.1))
    return [
        *NARROW,
        *own,
        *STRENGTH,
        f"train.transforms={ARMS[arm]}",
        f"STEPS={steps}",
        f"BATCH_SIZE={BATCH}",
        f"SHORTEST_EDGE={shortest}",
        f"LONGEST_EDGE={longest}",
        f"ResizeShortestEdge.shortest={scales}",
        f"ResizeShortestEdge.longest={round(longest * 1.1)}",
        f"Checkpointing.steps_per_epoch={steps}",
        "Validation.every=1",
    ]


def write_subset(folder: Path, count: int, destination: Path) -> Path:
    """Writes a training set of `count` images of a dataset, drawn at random, and returns the path of its JSON."""
    contents = json.loads((folder / "train.json").read_text())
    contents["images"] = random.Random(0).sample(contents["images"], count)
    ids = {image["id"] for image in contents["images"]}
    contents["annotations"] = [box for box in contents["annotations"] if box["image_id"] in ids]
    destination.mkdir(parents=True, exist_ok=True)
    path = destination / f"{folder.name}.json"
    path.write_text(json.dumps(contents))
    return path


def train(dataset: str, arm: str, seed: int, options: argparse.Namespace) -> dict:
    """Trains in a process of its own and returns the metrics of the last step."""
    out = Path(options.out) / f"{dataset}_{arm.replace(', ', '_')}_{seed}"
    data = Path(options.data) / DATASETS[dataset][0]
    log = out / "metrics.jsonl"
    if not _finished(log):
        images = write_subset(data, options.images, Path(options.out))
        settings = [
            *overrides(dataset, arm, options.steps[dataset]),
            f"SEED={seed}",
            f"TRAIN_ANNOTATIONS={images}",
            f"TRAIN_IMAGES={data}/images",
            f"EVAL_ANNOTATIONS={data}/val.json",
            f"OUT_DIR={out}",
        ]
        command = [sys.executable, "-m", "kerasdet", "train", RECIPE]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *(word for setting in settings for word in ("--set", setting))], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        print(f"{dataset} {arm} seed {seed}: {time.perf_counter() - start:.0f} s, {_finished(log)}", flush=True)
    return _finished(log)


def _finished(log):
    """Returns the last AP in a run's log, or None if the run has not been evaluated."""
    if not log.is_file():
        return None
    found = {}
    for line in log.read_text().splitlines():
        found.update({key: value for key, value in json.loads(line).items() if "AP" in key})
    return found or None


def rows_of(results: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """Returns mean, minimum and maximum of each metric over the seeds."""
    rows = []
    for dataset, arms in results.items():
        for arm, runs in arms.items():
            for metric in sorted(runs[0]):
                values = [run[metric] for run in runs]
                row = {"dataset": dataset, "augmentation": arm, "metric": metric, "mean": sum(values) / len(values)}
                rows.append({**row, "min": min(values), "max": max(values), "seeds": len(values)})
    return rows


def print_table(rows: list[dict]) -> None:
    """Prints a Markdown table."""
    print("| dataset | augmentation | metric | mean | min | max |\n|---|---|---|---|---|---|")
    for row in rows:
        words = [f"{value:.3f}" if isinstance(value, float) else value for value in list(row.values())[:-1]]
        print(f"| {' | '.join(words)} |")


def main() -> None:
    """Trains all runs, seed by seed, and prints the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with bccd/ and dsb_small/")
    parser.add_argument("--out", default="runs/augmentation", help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--images", type=int, default=24, help="number of training images of each dataset")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--steps", nargs="+", metavar="NAME=N", default=("bccd=400", "dsb=400"))
    parser.add_argument("--json", help="file for the table")
    options = parser.parse_args()
    options.steps = {name: int(steps) for name, _, steps in (pair.partition("=") for pair in options.steps)}
    results = {dataset: {arm: [] for arm in options.arms} for dataset in options.steps}
    for seed in options.seeds:
        for dataset, arms in results.items():
            for arm, runs in arms.items():
                runs.append(train(dataset, arm, seed, options))
        print_table(rows_of(results))
    if options.json:
        steps = ", ".join(f"{name} {steps}" for name, steps in options.steps.items())
        facts = {
            "processor": processor(),
            "recipe": RECIPE,
            "images": options.images,
            "steps": steps,
            "batch_size": BATCH,
        }
        Path(options.json).write_text(json.dumps({**facts, "rows": rows_of(results)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
