import numpy as np
import pytest
from analysis.cases import instances_of, iou, scalar_matches
from evaluation.random_cases import random_case
from evaluation.test_engines import reference

from kerasdet.analysis import best_threshold, calibration, class_ap, class_curves, confusion, match, overall_curve, tide
from kerasdet.analysis.bootstrap import coco_matches, images_with_objects, interval, resampled, weights
from kerasdet.analysis.precision import curve, shortest_between

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_twelve_numbers_equal_pycocotools(iou_type):
    for seed in range(6):
        truth, results = random_case(seed, iou_type)
        instances = instances_of(truth, results, iou_type == "segm")
        matches = coco_matches(instances)
        numbers = resampled(instances, matches, weights(instances.num_images, samples=1))
        expected = reference(truth, results, iou_type)
        np.testing.assert_allclose([numbers[name][0] for name in NUMBERS], expected, rtol=0, atol=1e-12)
        ap = class_ap(instances, matches)
        np.testing.assert_allclose(np.nanmean(ap[0]), expected[0], atol=1e-12)
        np.testing.assert_allclose(numbers["class"][0], ap[0].mean(0), atol=1e-12)


def test_resampling_equals_evaluating_copies_of_the_images():
    truth, results = random_case(1, ties=False)
    instances = instances_of(truth, results)
    drawn = weights(instances.num_images, samples=3, seed=5)
    numbers = resampled(instances, coco_matches(instances), drawn)
    image_ids = sorted(image["id"] for image in truth["images"])
    for sample, times in enumerate(drawn.astype(int)):
        copies = {"images": [], "annotations": [], "categories": truth["categories"]}
        found = []
        for image_id, count in zip(image_ids, times, strict=True):
            for _ in range(count):
                new = len(copies["images"]) + 1
                copies["images"].append({**truth["images"][0], "id": new})
                for a in truth["annotations"]:
                    if a["image_id"] == image_id:
                        copies["annotations"].append({**a, "image_id": new, "id": len(copies["annotations"]) + 1})
                found += [{**e, "image_id": new} for e in results if e["image_id"] == image_id]
        expected = reference(copies, found, "bbox")
        np.testing.assert_allclose([numbers[name][sample] for name in NUMBERS], expected, rtol=0, atol=1e-9)


def scalar_best(truth, results, category=None):
    """The best F1 by trying every score, with the matches of scalar code."""
    verdicts, _ = scalar_matches(truth, results)
    objects = sum(
        not (a["iscrowd"] or a["difficult"]) and category in (None, a["category_id"]) for a in truth["annotations"]
    )
    best = (0.0, None, None)
    for score in sorted({e["score"] for e in results}, reverse=True):
        kept = [
            v
            for i, v in verdicts.items()
            if results[i]["score"] >= score and v is not None and category in (None, results[i]["category_id"])
        ]
        if kept and objects:
            precision, recall = sum(kept) / len(kept), sum(kept) / objects
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
            best = max(best, (f1, precision, recall), key=lambda each: each[0])
    return best


def test_best_thresholds_equal_scalar_code():
    for seed in range(6):
        truth, results = random_case(seed, ties=seed % 2 == 0)
        instances = instances_of(truth, results)
        matches = match(instances, [0.5])
        curves = class_curves(instances, matches)
        for points, category in [
            (overall_curve(instances, matches), None),
            *zip(curves, sorted(c["id"] for c in truth["categories"]), strict=True),
        ]:
            f1, precision, recall = scalar_best(truth, results, category)
            best = best_threshold(points)
            if f1 == 0:
                assert best is None
                continue
            assert (best.f1, best.precision, best.recall) == pytest.approx((f1, precision, recall))
            # what `predict --score-threshold` keeps: scores above it
            above = [e for e in results if e["score"] > best.score]
            again = scalar_best(truth, above, category)
            assert again[0] == pytest.approx(f1)


def test_thresholds_have_few_digits_and_keep_their_detections():
    assert shortest_between(0.4213, 0.4391) == 0.43
    assert 0.12341 <= shortest_between(0.12341, 0.12342) < 0.12342
    only = best_threshold(curve(np.array([0.02]), np.array([True]), 1))
    assert 0 <= only.score < 0.02
    assert best_threshold(curve(np.array([-0.5, -0.7]), np.array([True, True]), 2)).score < -0.7
    assert best_threshold(curve(np.zeros(0), np.zeros(0, bool), 3)) is None


def test_confusion_equals_scalar_code():
    for seed in range(6):
        truth, results = random_case(seed, ties=False)
        ids = sorted(category["id"] for category in truth["categories"])
        verdicts, taken = scalar_matches(truth, results)
        expected = np.zeros((len(ids) + 1, len(ids) + 1), int)
        by_id = {a["id"]: a for a in truth["annotations"]}
        free = {a["id"] for a in truth["annotations"] if not (a["iscrowd"] or a["difficult"])} - set(taken)
        owner = {index: key for key, index in taken.items()}
        # a crowd's entry holds its last detection only, and is never counted
        rest = []
        for index, verdict in verdicts.items():
            if verdict:
                k = ids.index(by_id[owner[index]]["category_id"])
                expected[k, k] += 1
            elif verdict is False:
                rest.append(index)
        for index in sorted(rest, key=lambda i: (results[i]["image_id"], -results[i]["score"])):
            entry = results[index]
            there = [a for a in free if by_id[a]["image_id"] == entry["image_id"]]
            near = [(iou(entry["bbox"], by_id[a]["bbox"]), -a) for a in there]
            near = [each for each in near if each[0] >= 0.5]
            row = len(ids)
            if near:
                chosen = -max(near)[1]
                free.discard(chosen)
                row = ids.index(by_id[chosen]["category_id"])
            expected[row, ids.index(entry["category_id"])] += 1
        for a in free:
            expected[ids.index(by_id[a]["category_id"]), -1] += 1
        np.testing.assert_array_equal(confusion(instances_of(truth, results)), expected)


def test_bins_of_calibration_include_their_lower_edges():
    scores = np.arange(11) / 10
    assert calibration(scores, np.ones(11, bool)).counts.tolist() == [1] * 9 + [2]


def test_intervals_of_few_images_are_wider_and_stay_in_range():
    values = np.array([0.5, *np.linspace(0.4, 0.6, 101)])
    spans = [interval(values, images) for images in (2, 5, 100, 10_000)]
    widths = [span.high - span.low for span in spans]
    assert widths[0] == 1 and widths == sorted(widths, reverse=True)
    student = 2.7764 / 1.95996 * np.sqrt(5 / 4)  # t of four degrees of freedom
    assert widths[1:] == pytest.approx([0.19 * student, 0.19 * 1.0176, 0.19], rel=5e-3)
    assert np.isnan(interval(values, 1).low) and interval(values, 1).value == 0.5


def test_images_with_objects_are_counted_by_size_and_class():
    truth, results = random_case(2)
    instances = instances_of(truth, results)
    counts = images_with_objects(instances, coco_matches(instances))
    assert counts.keys() == resampled(instances, coco_matches(instances), weights(instances.num_images, 1)).keys()
    real = [a for a in truth["annotations"] if not (a["iscrowd"] or a["difficult"])]
    assert counts["AR10"] == len({a["image_id"] for a in real})
    assert counts["APs"] == counts["ARs"] == len({a["image_id"] for a in real if a["area"] <= 32**2})
    ids = sorted(category["id"] for category in truth["categories"])
    assert counts["class"].tolist() == [len({a["image_id"] for a in real if a["category_id"] == k}) for k in ids]


def test_calibration_of_known_scores():
    scores = np.array([0.05, 0.95, 0.95, 1.0, 0.55])
    result = calibration(scores, np.array([False, True, False, True, True]))
    assert result.counts.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert result.accuracy[9] == pytest.approx(2 / 3) and np.isnan(result.accuracy[1])
    assert result.error == pytest.approx((0.05 + 3 * abs(2 / 3 - 2.9 / 3) + 0.45) / 5)
    assert np.isnan(calibration(np.zeros(0), np.zeros(0, bool)).error)


@pytest.mark.parametrize("empty", ["objects", "detections", "both", "images"])
def test_nothing_to_analyse_gives_nan_and_zeros(empty):
    truth, results = random_case(0)
    if empty != "detections":
        truth["annotations"] = []
    if empty in ("detections", "both", "images"):
        results = []
    if empty == "images":
        truth["images"] = truth["images"][:1]
    instances = instances_of(truth, results)
    matches = coco_matches(instances)
    numbers = resampled(instances, matches, weights(instances.num_images, samples=2))
    if empty == "detections":
        assert numbers["AP"][0] == 0
    else:
        assert np.isnan(numbers["AP"]).all()
    assert confusion(instances).sum() == len(results) + int((~instances.ignored).sum())
    assert best_threshold(overall_curve(instances, matches)) is None
    errors = tide(instances)
    assert errors.ap == 0 and not any(errors.cost[name] for name in ("classification", "localisation", "duplicate"))
