import json
from pathlib import Path

import numpy as np
import pytest
from analysis.cases import instances_of
from conftest import shared
from evaluation.random_cases import random_case

from kerasdet.analysis import collect, tide
from kerasdet.analysis.tide import ERRORS, RIGHT
from kerasdet.evaluation.cases import read_cases

ANSWERS = json.loads((Path(__file__).parent / "data" / "tide.json").read_text())


def assert_same(errors, known):
    assert errors.counts == known["counts"]
    assert errors.ap == pytest.approx(known["ap"], abs=1e-12)
    assert errors.cost == pytest.approx(known["cost"], abs=1e-12)
    assert errors.false_positives == pytest.approx(known["false_positives"], abs=1e-12)
    assert errors.false_negatives == pytest.approx(known["false_negatives"], abs=1e-12)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_errors_of_random_cases_equal_tidecv(iou_type):
    for seed in range(8):
        truth, results = random_case(seed, iou_type, difficult=0, ties=seed % 2 == 0)
        assert_same(tide(instances_of(truth, results, iou_type == "segm")), ANSWERS[f"{iou_type}_{seed}"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_errors_of_published_results_equal_tidecv(iou_type):
    folder = shared("data/cocoapi_eval")
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    (cases,) = read_cases(folder / "instances_val2014_100.json", results)
    instances = collect(
        cases.annotations, cases.detections, cases.image_ids, list(cases.names), masks=iou_type == "segm"
    )
    assert_same(tide(instances), ANSWERS[f"cocoapi_{iou_type}"])


def test_each_kind_of_error_is_told_apart():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": k, "bbox": box, "area": 100, "iscrowd": 0}
            for n, (k, box) in enumerate(
                [(1, [0, 0, 10, 10]), (1, [50, 0, 10, 10]), (1, [100, 0, 10, 10]), (2, [150, 0, 10, 10])], 1
            )
        ],
    }
    boxes = [
        (1, [0, 0, 10, 10], 0.9),  # right
        (1, [0, 0, 10, 11], 0.8),  # duplicate
        (2, [50, 0, 10, 10], 0.7),  # classification
        (1, [105, 0, 10, 10], 0.6),  # localisation
        (1, [155, 0, 10, 10], 0.5),  # both
        (2, [300, 0, 10, 10], 0.4),  # background
    ]
    results = [{"image_id": 1, "category_id": k, "bbox": box, "score": score} for k, box, score in boxes]
    errors = tide(instances_of(truth, results))
    names = [ERRORS[kind] if kind != RIGHT else "right" for kind in errors.kinds]
    assert names == ["right", "duplicate", "classification", "localisation", "both", "background"]
    assert errors.objects.tolist() == [0, 0, 1, 2, 3, -1]
    assert errors.missed.tolist() == [False, True, True, True]
    assert errors.unexplained.tolist() == [False, False, False, True]


def test_no_detection_misses_every_object():
    truth, _ = random_case(3, difficult=0)
    errors = tide(instances_of(truth, []))
    assert errors.ap == 0 and not np.any(errors.kinds)
    assert errors.counts["missed"] == sum(not a["iscrowd"] for a in truth["annotations"])
