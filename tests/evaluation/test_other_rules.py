"""Compares LVIS' numbers with those of lvis-api, and VOC's with scalar code."""

import json
import math

import numpy as np
import pytest
from analysis.cases import iou
from evaluation.lvis_cases import ANSWERS, lvis_case
from evaluation.random_cases import random_case

from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_lvis, evaluate_voc


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_lvis_numbers_equal_lvis_api(iou_type):
    for seed in range(6):
        expected = json.loads(ANSWERS.read_text())[f"{iou_type}_{seed}"]
        metrics = evaluate_lvis(*lvis_case(seed, iou_type), iou_type)
        assert set(metrics.summary) == set(expected)
        for name, value in expected.items():
            value = math.nan if value < 0 else value
            assert metrics[name] == pytest.approx(value, abs=1e-12, nan_ok=True), (seed, name)


@pytest.mark.parametrize(
    "section,key,message",
    [
        ("images", "neg_category_ids", "image 1 has no list neg_category_ids"),
        ("categories", "frequency", "category 3 has the frequency None"),
    ],
)
def test_ground_truth_without_the_keys_of_lvis_is_an_error(section, key, message):
    truth, results = lvis_case(0, "bbox")
    del truth[section][0][key]
    with pytest.raises(UserError, match=message):
        evaluate_lvis(truth, results, "bbox")


def scalar_voc(truth, results, category):
    """The loop of VOC's devkit, with an AP of eleven points and one of the area."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    total = sum(not (a["difficult"] or a["iscrowd"]) for a in objects)
    found, right, wrong, points = set(), 0, 0, []
    for entry in sorted((e for e in results if e["category_id"] == category), key=lambda e: -e["score"]):
        near = [(iou(entry["bbox"], a["bbox"]), a) for a in objects if a["image_id"] == entry["image_id"]]
        overlap, best = max(near, key=lambda pair: pair[0], default=(0, None))
        if overlap > 0.5:
            if best["difficult"] or best["iscrowd"]:
                continue
            right, wrong = (right, wrong + 1) if best["id"] in found else (right + 1, wrong)
            found.add(best["id"])
        else:
            wrong += 1
        points.append((right / total if total else math.nan, right / (right + wrong)))
    if not total:
        return math.nan, math.nan
    eleven = sum(max((p for r, p in points if r >= t / 10 - 1e-12), default=0) for t in range(11)) / 11
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[index:])
        last = recall
    return eleven, area


def test_voc_numbers_equal_scalar_code():
    for seed in range(6):
        truth, results = random_case(seed, ties=False)
        metrics = evaluate_voc(truth, results)
        values = [scalar_voc(truth, results, category["id"]) for category in truth["categories"]]
        np.testing.assert_allclose(list(metrics.per_class.values()), [area for _, area in values], atol=1e-12)
        expected = np.nanmean(values, 0)
        np.testing.assert_allclose([metrics["AP07"], metrics["AP12"]], expected, atol=1e-12)


def test_voc_without_objects_or_detections():
    truth, results = random_case(0)
    assert evaluate_voc(truth, [])["AP12"] == 0
    assert math.isnan(evaluate_voc({**truth, "annotations": []}, results)["AP07"])
