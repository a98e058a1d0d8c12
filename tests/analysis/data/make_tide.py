"""Writes tide.json, the errors that tidecv 1.0.1 finds in random cases and in cocoapi's fake results.

pip install tidecv seaborn pandas appdirs opencv-python
PYTHONPATH=tests python tests/analysis/data/make_tide.py ../shared/data/cocoapi_eval
"""

import json
import sys
from pathlib import Path

from evaluation.random_cases import random_case
from pycocotools.coco import COCO
from tidecv import TIDE, Data

NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def run(truth, results, iou_type):
    objects, found = Data("objects"), Data("found")
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        objects.add_image(image["id"], "")
    for a in truth["annotations"]:
        add = objects.add_ignore_region if a["iscrowd"] else objects.add_ground_truth
        add(a["image_id"], a["category_id"], a["bbox"], coco.annToRLE(a) if iou_type == "segm" else None)
    for e in results:
        found.add_detection(e["image_id"], e["category_id"], e["score"], e.get("bbox"), e.get("segmentation"))
    mode = TIDE.MASK if iou_type == "segm" else TIDE.BOX
    done = TIDE().evaluate(objects, found, mode=mode)
    special = {kind.short_name: value / 100 for kind, value in done.fix_special_errors().items()}
    return {
        "ap": done.ap / 100,
        "cost": {NAMES[kind.short_name]: value / 100 for kind, value in done.fix_main_errors().items()},
        "counts": {NAMES[kind.short_name]: value for kind, value in done.count_errors().items()},
        "false_positives": special["FalsePos"],
        "false_negatives": special["FalseNeg"],
    }


def main():
    folder, answers = Path(sys.argv[1]), {}
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    for iou_type in ("bbox", "segm"):
        results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
        answers[f"cocoapi_{iou_type}"] = run(truth, results, iou_type)
        for seed in range(8):
            case = random_case(seed, iou_type, difficult=0, ties=seed % 2 == 0)
            answers[f"{iou_type}_{seed}"] = run(*case, iou_type)
    Path(__file__).with_name("tide.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
