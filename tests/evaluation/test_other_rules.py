"""Compares LVIS' numbers with those of lvis-api, and those of VOC, Open Images and Boundary AP with plain code."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from analysis.cases import iou
from evaluation.lvis_cases import ANSWERS, CASES, lvis_case
from evaluation.random_cases import HEIGHT, WIDTH, random_case
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kerasdet import cli
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_boundary, evaluate_lvis, evaluate_open_images, evaluate_rules, evaluate_voc
from kerasdet.evaluation.cases import cases_of_type


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_lvis_numbers_equal_lvis_api(iou_type):
    for seed in range(CASES):
        expected = json.loads(ANSWERS.read_text())[f"{iou_type}_{seed}"]
        metrics = evaluate_lvis(*lvis_case(seed, iou_type), iou_type)
        assert set(metrics.summary) == set(expected)
        for name, value in expected.items():
            value = math.nan if value < 0 else value
            assert metrics[name] == pytest.approx(value, abs=1e-12, nan_ok=True), (seed, name)


def test_negative_ids_do_not_change_the_numbers_of_lvis():
    truth, results = lvis_case(0, "bbox")
    ids = [image["id"] for image in truth["images"][1:]]
    expected = [evaluate_lvis(truth, results, "bbox", chosen).summary for chosen in (None, ids)]
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [each - 50 for each in image[key]]
    for entry in (*truth["images"], *truth["categories"]):
        entry["id"] -= 50
    for entry in (*truth["annotations"], *results):
        entry |= {"image_id": entry["image_id"] - 50, "category_id": entry["category_id"] - 50}
    chosen = [each - 50 for each in ids]
    np.testing.assert_equal([evaluate_lvis(truth, results, "bbox", some).summary for some in (None, chosen)], expected)


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
        if overlap >= 0.5:  # as VOCevaldet.m: ovmax>=VOCopts.minoverlap
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
    return eleven, area_under(points)


def test_voc_numbers_equal_scalar_code():
    for seed in range(6):
        truth, results = random_case(seed, ties=False)
        metrics = evaluate_voc(truth, results)
        values = [scalar_voc(truth, results, category["id"]) for category in truth["categories"]]
        np.testing.assert_allclose(list(metrics.per_class.values()), [area for _, area in values], atol=1e-12)
        expected = np.nanmean(values, 0)
        np.testing.assert_allclose([metrics["AP07"], metrics["AP12"]], expected, atol=1e-12)


def test_voc_counts_a_detection_with_an_iou_of_exactly_one_half():
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20]}],
    }
    result = {"image_id": 1, "category_id": 1, "score": 0.9}
    assert evaluate_voc(truth, [{**result, "bbox": [0, 0, 10, 10]}])["AP12"] == 1
    assert evaluate_voc(truth, [{**result, "bbox": [0, 0, 10, 9.9]}])["AP12"] == 0


def test_voc_without_objects_or_detections():
    truth, results = random_case(0)
    assert evaluate_voc(truth, [])["AP12"] == 0
    assert math.isnan(evaluate_voc({**truth, "annotations": []}, results)["AP07"])


def area_under(points):
    """The area under the curve of (recall, precision), with the best precision at each recall or above."""
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[index:])
        last = recall
    return area


def scalar_open_images(truth, results, category):
    """The rules of the challenge's evaluator: first single objects, then groups, each of which counts once."""
    objects = [a for a in truth["annotations"] if a["category_id"] == category]
    labels = []  # (score, right)
    for image in truth["images"]:
        here = [a for a in objects if a["image_id"] == image["id"]]
        if not here and category not in image.get("neg_category_ids", [category]):
            continue
        found, best = set(), {}
        mine = [e for e in results if (e["image_id"], e["category_id"]) == (image["id"], category)]
        for entry in sorted(mine, key=lambda e: -e["score"]):
            near = [(iou(entry["bbox"], a["bbox"]), a["id"]) for a in here if not a["is_group_of"]]
            overlap, nearest = max(near, default=(0, None))
            if overlap >= 0.5 and nearest not in found:
                found.add(nearest)
                labels.append((entry["score"], True))
                continue
            inside = [(iou(entry["bbox"], a["bbox"], crowd=True), a["id"]) for a in here if a["is_group_of"]]
            share, group = max(inside, default=(0, None))
            if share >= 0.5:
                best.setdefault(group, entry["score"])
            else:
                labels.append((entry["score"], False))
        labels += [(score, True) for score in best.values()]
    if not objects:
        return math.nan
    points, right = [], 0
    for count, (_, is_right) in enumerate(sorted(labels, key=lambda pair: -pair[0]), 1):
        right += is_right
        points.append((right / len(objects), right / count))
    return area_under(points)


@pytest.mark.parametrize("exhaustive", [True, False])
def test_open_images_numbers_equal_scalar_code(exhaustive):
    for seed in range(6):
        truth, results = random_case(seed, crowds=0, difficult=0, ties=False)
        rng = np.random.default_rng(seed)
        for annotation in truth["annotations"]:
            annotation["is_group_of"] = bool(rng.random() < 0.3)
        for image in () if exhaustive else truth["images"]:
            image["neg_category_ids"] = [c["id"] for c in truth["categories"] if rng.random() < 0.3]
        metrics = evaluate_open_images(truth, results)
        expected = [scalar_open_images(truth, results, category["id"]) for category in truth["categories"]]
        np.testing.assert_allclose(list(metrics.per_class.values()), expected, atol=1e-12)
        assert metrics["AP50"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_names_of_group_of_boxes_and_negative_ids():
    truth, results = random_case(1, crowds=0, difficult=0)
    numbers = set()
    for key, value in (("is_group_of", True), ("isgroupof", 1), ("IsGroupOf", "1"), ("other", 1)):
        annotations = [{**a, key: value} for a in truth["annotations"]]
        numbers.add(evaluate_open_images({**truth, "annotations": annotations}, results)["AP50"])
    assert len(numbers) == 2
    before = evaluate_open_images(truth, results)["AP50"]
    for entry in (*truth["images"], *truth["categories"]):
        entry["id"] -= 50
    for entry in (*truth["annotations"], *results):
        entry |= {"image_id": entry["image_id"] - 50, "category_id": entry["category_id"] - 50}
    assert evaluate_open_images(truth, results)["AP50"] == before
    assert evaluate_open_images(truth, [])["AP50"] == 0
    assert math.isnan(evaluate_open_images({**truth, "annotations": []}, results)["AP50"])


class PlainBoundary(COCOeval):
    """pycocotools with the smaller of the masks' IoU and that of their rims."""

    def computeIoU(self, image_id, category_id):
        overlaps = super().computeIoU(image_id, category_id)
        objects, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        found = [found[i] for i in np.argsort([-entry["score"] for entry in found], kind="mergesort")][:100]
        for d, g in np.ndindex(np.shape(overlaps) if len(overlaps) else (0, 0)):
            if not objects[g]["iscrowd"]:
                first, second = rim(found[d]["segmentation"]), rim(objects[g]["segmentation"])
                overlaps[d, g] = min(overlaps[d, g], (first & second).sum() / max((first | second).sum(), 1))
        return overlaps


def rim(code):
    """The pixels whose distance (the larger of both axes) to a pixel outside is at most 2 % of the diagonal."""
    mask = mask_utils.decode(code).astype(bool)
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    inner = np.pad(mask, width)
    for axis in (0, 1):
        inner = np.logical_and.reduce([np.roll(inner, step, axis) for step in range(-width, width + 1)])
    return mask & ~inner[width:-width, width:-width]


def solid(box):
    """The mask of a box without the holes that `random_case` makes: its rim is a part of it."""
    x, y, width, height = map(int, box)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[y : y + height + 1, x : x + width + 1] = 1
    code = mask_utils.encode(pixels)
    return {**code, "counts": code["counts"].decode()}


def test_boundary_ap_equals_pycocotools_with_plain_rims():
    pytest.importorskip("faster_coco_eval")
    for seed in range(2):
        truth, results = random_case(seed, "segm", in_bytes=seed == 0, images=5)
        for entry in (*truth["annotations"], *results) if seed else ():
            entry["segmentation"] = solid(entry["bbox"])
        metrics = evaluate_boundary(truth, results)
        cases, _ = cases_of_type(truth, results, "segm")
        datasets = [COCO(), COCO()]
        with contextlib.redirect_stdout(io.StringIO()):
            for dataset, entries in zip(datasets, (cases.annotations, cases.detections), strict=True):
                sections = {"images": list(cases.images), "categories": list(cases.categories)}
                dataset.dataset = {**sections, "annotations": [dict(entry) for entry in entries]}
                dataset.createIndex()
            reference = PlainBoundary(*datasets, "segm")
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        expected = np.where(reference.stats < 0, np.nan, reference.stats)
        np.testing.assert_allclose(list(metrics.summary.values()), expected, atol=1e-12)
    assert metrics["AP75"] < evaluate_rules("coco", truth, results)["segm/AP75"]


def test_unknown_rules_name_the_option():
    with pytest.raises(UserError, match=r"rules is 'pascal': expected one of coco, voc, .* Change --metrics \(Python:"):
        evaluate_rules("pascal", {}, [])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    truth, results = lvis_case(1, "segm")
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    "rules,key,name",
    [("coco", "segm", "AP"), ("lvis", "segm", "APr"), ("boundary", "boundary", "AP75")],
)
def test_eval_takes_the_rules(files, rules, key, name, capsys):
    pytest.importorskip("faster_coco_eval")
    words = ["eval", "--detections", str(files / "found.json"), "--annotations", str(files / "truth.json")]
    assert cli.main([*words, "--metrics", rules, "--json", str(files / "numbers.json")]) == 0
    numbers = json.loads((files / "numbers.json").read_text())
    expected = evaluate_rules(rules, str(files / "truth.json"), str(files / "found.json"))
    assert numbers[key]["summary"][name] == expected[f"{key}/{name}"]
    assert key in capsys.readouterr().out


@pytest.mark.parametrize(
    "words,message",
    [
        (["--metrics", "voc"], "result 1 has no bbox"),
        (["--metrics", "voc", "--engine", "pycocotools"], "--engine is only for COCO's AP"),
    ],
)
def test_rules_that_do_not_fit_are_one_sentence(files, words, message, capsys):
    paths = ["--detections", str(files / "found.json"), "--annotations", str(files / "truth.json")]
    assert cli.main(["eval", *paths, *words]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_rules_of_a_model_are_checked_before_it_detects(tmp_path, capsys):
    import tiny

    from kerasdet.data import shapes

    shapes.write(tmp_path, num_images=2, seed=3, image_size=(96, 128))
    tiny.detector(num_classes=5).save(tmp_path / "model.keras")
    words = ["eval", str(tmp_path / "model.keras"), "--annotations", str(tmp_path / "annotations.json"), "--metrics"]
    assert cli.main([*words, "open-images"]) == 0
    assert "AP50" in capsys.readouterr().out
    assert cli.main([*words, "lvis"]) == 2
    assert "has no list neg_category_ids" in capsys.readouterr().err
