"""Makes small random LVIS evaluations; run as a script, writes data/lvis.json, the numbers of lvis-api 0.5.3.

pip install lvis
PYTHONPATH=tests python tests/evaluation/lvis_cases.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from evaluation.random_cases import random_case

ANSWERS = Path(__file__).parent / "data" / "lvis.json"
CASES = 7


def lvis_case(seed, iou_type):
    """Returns contents of an LVIS annotation file and entries of a results file; masks come without boxes.

    The last case has more than 300 detections in two images, but fewer than 300 of each category.
    """
    truth, results = random_case(seed, iou_type, crowds=0, difficult=0, ties=seed % 2 == 0, images=14, classes=6)
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in truth["categories"]]
    for category in truth["categories"]:
        category["frequency"] = "rcf"[rng.integers(3)]
    for image in truth["images"]:
        present = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [k for k in ids if k not in present and rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [k for k in ids if rng.random() < 0.2]
    if seed == CASES - 1:
        chosen, images = rng.integers(len(results), size=700), [image["id"] for image in truth["images"][:2]]
        results += [
            {**results[i], "image_id": images[n % 2], "score": float(rng.random())} for n, i in enumerate(chosen)
        ]
    if iou_type == "segm":
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    return truth, results


def main():
    from lvis import LVIS, LVISEval, LVISResults

    np.float = float  # lvis 0.5.3 names it so
    answers = {}
    for seed in range(CASES):
        for iou_type in ("bbox", "segm"):
            truth, results = lvis_case(seed, iou_type)
            for annotation in truth["annotations"]:
                annotation.setdefault("segmentation", [[0, 0, 1, 0, 1, 1]])
            for category in truth["categories"]:
                category |= {"image_count": 1, "instance_count": 1}
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(truth, file)
                file.flush()
                gt = LVIS(file.name)
                evaluation = LVISEval(gt, LVISResults(gt, results), iou_type)
                evaluation.run()
            answers[f"{iou_type}_{seed}"] = dict(evaluation.results)
    ANSWERS.parent.mkdir(exist_ok=True)
    ANSWERS.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
