"""Measures how many images a second the training pipeline delivers, with boxes and masks, and whether its memory grows.

    python benchmarks/data.py --annotations TRAIN.json [--also PATH] [--peer-python PYTHON] [--rounds N] [--memory]

Cases are `resize` (800/1333 and flip) and `lsj` (photometric distortion, large-scale jitter to 1024, flip). Each
measurement runs in a process of its own, and the pipelines take turns. With a Python that has torchvision
(`--peer-python`) the peer is transforms v2 in a DataLoader with two workers over `CocoDetection`, which decodes by PIL
and libjpeg-turbo. kerasdet also pads its images to batches; the peer does not.
`--also PATH` measures a second dataset of the same images, such as one of TFRecord files, beside the first.
`--memory` reads 2000 images an epoch for three epochs, and prints the resident memory after each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import processor

BATCH, WARM_UP, IMAGES, WORKERS = 2, 20, 160, 2
CASES = ("resize", "lsj")
EPOCHS, EPOCH_IMAGES = 3, 2000


def transforms_of(case: str) -> list:
    """Returns kerasdet's transforms of a case."""
    from kerasdet.data.transforms import RandomFlip, RandomPhotometricDistort, ResizeShortestEdge, ScaleJitter

    if case == "resize":
        return [ResizeShortestEdge((800,), 1333), RandomFlip()]
    return [RandomPhotometricDistort(), ScaleJitter((1024, 1024), (0.1, 2.0)), RandomFlip()]


def open_data(path: str):
    """Opens a dataset of any format with masks, without the images that have no object."""
    from kerasdet.data import open_dataset

    return open_dataset(path, masks=True, keep_images_without_objects=False)


def measure_kerasdet(case: str, path: str) -> float:
    """Returns images per second of kerasdet's pipeline."""
    from kerasdet.data import training_batches

    batches = training_batches(open_data(path), BATCH, transforms_of(case))
    return _speed(batches.as_numpy_iterator())


def measure_torchvision(case: str, path: str) -> float:
    """Returns images per second of torchvision's transforms in a DataLoader."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    steps = {
        "resize": [v2.RandomShortestSize([800], 1333, antialias=True)],
        "lsj": [
            v2.RandomPhotometricDistort(),
            v2.ScaleJitter((1024, 1024), (0.1, 2.0), antialias=True),
            v2.RandomCrop((1024, 1024), pad_if_needed=True),
        ],
    }[case]
    steps = [v2.ToImage(), *steps, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()]
    data = datasets.CocoDetection(Path(path).parent / "images", path, transforms=v2.Compose(steps))
    data.ids = [i for i in data.ids if data.coco.getAnnIds(imgIds=i)]
    data = datasets.wrap_dataset_for_transforms_v2(data, target_keys=["boxes", "labels", "masks"])
    endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**6)
    loader = torch.utils.data.DataLoader(
        data, BATCH, sampler=endless, num_workers=WORKERS, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    return _speed(iter(loader))


def _speed(batches):
    for _ in range(WARM_UP // BATCH):
        next(batches)
    start = time.perf_counter()
    for _ in range(IMAGES // BATCH):
        next(batches)
    return IMAGES / (time.perf_counter() - start)


def measure_memory(case: str, path: str) -> list[float]:
    """Returns the resident memory in MiB after each epoch of repeated images, the first included."""
    from types import SimpleNamespace

    from kerasdet.data import training_batches

    records = open_data(path).records
    repeated = SimpleNamespace(records=(records * (EPOCH_IMAGES // len(records) + 1))[:EPOCH_IMAGES])
    batches, memory = iter(training_batches(repeated, BATCH, transforms_of(case))), []
    for _ in range(EPOCHS):
        for _ in range(EPOCH_IMAGES // BATCH):
            next(batches)
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(resident * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return memory


def run(python: str, *arguments: str):
    """Measures in a process of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [python, __file__, "--measure", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if found.returncode:
        raise SystemExit(found.stderr)
    return json.loads(found.stdout.strip().splitlines()[-1])


def compare(options: argparse.Namespace) -> list[dict]:
    """Measures all pipelines in turns, prints a table and returns its rows."""
    columns = {"kerasdet": (sys.executable, "kerasdet", options.annotations)}
    if options.also:
        columns[f"kerasdet, {Path(options.also).name}"] = (sys.executable, "kerasdet", options.also)
    if options.peer_python:
        columns["torchvision"] = (options.peer_python, "peer", options.annotations)
    rows = []
    print(f"{'':<36} images/s     min     max   kerasdet is", flush=True)
    for case in options.cases:
        speeds = {name: [] for name in columns}
        for _ in range(options.rounds):
            for name, (python, kind, *arguments) in columns.items():
                speeds[name].append(run(python, kind, case, *arguments))
        for name, values in speeds.items():
            ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["kerasdet"], values, strict=True))
            speed = statistics.median(values)
            label = f"{case}, {name}"
            print(f"{label:<36} {speed:8.1f} {min(values):7.1f} {max(values):7.1f} {ratio:10.2f}x", flush=True)
            row = {"case": case, "pipeline": name, "images_per_second": speed, "min": min(values), "max": max(values)}
            rows.append({**row, "kerasdet_is_times": ratio})
    return rows


def main() -> None:
    """Runs the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", help="COCO file with masks; its images are in images/ beside it")
    parser.add_argument("--also", help="another dataset of the same images")
    parser.add_argument("--peer-python", help="a Python interpreter with torchvision")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--json", help="file to write the results to")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, *arguments = options.measure
        measure = {"kerasdet": measure_kerasdet, "peer": measure_torchvision, "memory": measure_memory}[kind]
        print(json.dumps(measure(*arguments)))
        return
    if not options.annotations:
        parser.error("--annotations is missing: give a COCO file with masks")
    if options.memory:
        rows = []
        for case in options.cases:
            memory = run(sys.executable, "memory", case, options.annotations)
            growth = memory[-1] - memory[0]
            print(f"{case}: {', '.join(f'{m:.0f}' for m in memory)} MiB after each epoch, {growth:+.0f} MiB in all")
            rows.append({"case": case, **{f"mebibytes_after_epoch_{i}": m for i, m in enumerate(memory, 1)}})
    else:
        rows = compare(options)
    if options.json:
        facts = {"processor": processor(), "threads": len(os.sched_getaffinity(0)), "rows": rows}
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
