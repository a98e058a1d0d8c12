"""Measures the engines that compute AP, and the analysis, on generated detections of the size of COCO val2017.

    python benchmarks/evaluation.py [--images 5000] [--objects 36000] [--detections 200000] [--json FILE]

Both engines score the same boxes. The script fails if their results differ in a single bit.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from machine import processor

from kerasdet.analysis import coco_matches, collect, resampled, tide, weights
from kerasdet.evaluation.engines import ENGINES, accumulate

CLASSES = 80


def generate(images, objects, detections, seed=0):
    """Returns contents of a COCO file and detections, three near each object and the others at random."""
    rng = np.random.default_rng(seed)
    dataset = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
    }

    def entry(number, image, category, box, **fields):
        x, y, width, height = np.maximum(box, 1).tolist()
        values = {"id": number, "image_id": int(image), "category_id": int(category), "iscrowd": 0}
        return values | {"bbox": [x, y, width, height], "area": width * height} | fields

    def boxes(count):
        return np.concatenate([rng.random((count, 2)) * 400, 5 + rng.random((count, 2)) * 200], 1)

    owners, classes = rng.integers(1, images + 1, objects), rng.integers(1, CLASSES + 1, objects)
    places, crowds = boxes(objects), rng.random(objects) < 0.01
    annotations = [entry(n + 1, owners[n], classes[n], places[n], iscrowd=int(crowds[n])) for n in range(objects)]
    near = np.arange(min(3 * objects, detections)) // 3
    moved = places[near] + rng.normal(0, 10, (len(near), 4))
    rest = detections - len(near)
    found_boxes = np.concatenate([moved, boxes(rest)])
    found_images = np.concatenate([owners[near], rng.integers(1, images + 1, rest)])
    found_classes = np.concatenate([classes[near], rng.integers(1, CLASSES + 1, rest)])
    scores = rng.random(detections)
    found = [
        entry(n + 1, found_images[n], found_classes[n], found_boxes[n], score=float(scores[n]))
        for n in range(detections)
    ]
    return {**dataset, "annotations": annotations}, {**dataset, "annotations": found}


def timed(function):
    """Returns the result of a function and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 5000), ("objects", 36000), ("detections", 200000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="file to write the results to")
    options = parser.parse_args()
    truth, found = generate(options.images, options.objects, options.detections)
    image_ids = [image["id"] for image in truth["images"]]
    category_ids = [category["id"] for category in truth["categories"]]
    seconds, numbers = {}, {}
    for engine in ENGINES:
        numbers[engine], seconds[engine] = timed(
            lambda engine=engine: accumulate(truth, found, "bbox", image_ids, category_ids, engine=engine)
        )
    first, second = (numbers[engine] for engine in ENGINES)
    if not (np.array_equal(first.precision, second.precision) and np.array_equal(first.recall, second.recall)):
        raise SystemExit("The engines give different numbers.")
    instances, seconds["overlaps"] = timed(
        lambda: collect(truth["annotations"], found["annotations"], image_ids, category_ids)
    )
    matches, seconds["matches"] = timed(lambda: coco_matches(instances))
    _, seconds["200 resampled evaluations"] = timed(
        lambda: resampled(instances, matches, weights(instances.num_images))
    )
    _, seconds["errors"] = timed(lambda: tide(instances))
    for name, value in seconds.items():
        print(f"{name:<28} {value:7.2f} s")
    if options.json:
        rows = [{"part": name, "seconds": value} for name, value in seconds.items()]
        sizes = {name: getattr(options, name) for name in ("images", "objects", "detections")}
        Path(options.json).write_text(json.dumps({"processor": processor(), **sizes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
