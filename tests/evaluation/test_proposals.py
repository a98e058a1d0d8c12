"""Average recall of boxes without classes, and a `ProposalNetwork` from training to the command line."""

import json
import math

import numpy as np
import pytest
import tiny
from conftest import shared
from evaluation.test_coco import small_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kerasdet import ProposalNetwork, cli, evaluate
from kerasdet.data import RandomFlip
from kerasdet.evaluation import evaluate_proposals
from kerasdet.evaluation.evaluate import evaluate_batches
from kerasdet.inference import Predictor
from kerasdet.layers import FPN, MaxPoolTop
from kerasdet.models import RPN, Preprocessing, ProposalSelection
from kerasdet.training import SGD, Validation, WarmupMultiStep, train

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
NAMES = ["AR100", "AR300", "AR1000", "ARs", "ARm", "ARl"]
AREAS = {"ARs": (0, 32**2), "ARm": (32**2, 96**2), "ARl": (96**2, 1e10)}


def iou(box, other):
    (x, y, w, h), (u, v, a, b) = box, other
    width, height = min(x + w, u + a) - max(x, u), min(y + h, v + b) - max(y, v)
    overlap = max(width, 0) * max(height, 0)
    return overlap / (w * h + a * b - overlap)


def scalar_recall(truth, results, limit, area=(0, 1e10)):
    """COCO's rule in plain loops: by descending score, each box takes the best object that is left."""
    recalls = []
    for threshold in np.linspace(0.5, 0.95, 10):
        found = total = 0
        for image in truth["images"]:
            objects = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]]
            # a box takes an object of another area only if no object of this area fits
            counted = [area[0] <= w * h <= area[1] for _, _, w, h in objects]
            boxes = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda r: -r["score"])
            free = set(range(len(objects)))
            for box in boxes[:limit]:
                overlaps = {i: iou(box["bbox"], objects[i]) for i in free}
                good = [i for i in free if overlaps[i] >= threshold - 1e-10]
                good = [i for i in good if counted[i]] or good
                if good:
                    best = max(good, key=overlaps.get)
                    free.remove(best)
                    found += counted[best]
            total += sum(counted)
        recalls.append(found / total)
    return np.mean(recalls)


@pytest.fixture
def scene(rng):
    """Four images with objects of all sizes, and two hundred boxes around them in each image."""
    truth = {
        "images": [{"id": i, "height": 400, "width": 400} for i in range(1, 5)],
        "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for k, side in enumerate((12, 20, 28, 50, 70, 90, 120, 150)):
            box = [*rng.uniform(0, 250, 2), *(side * rng.uniform(0.8, 1.25, 2))]
            truth["annotations"].append({"image_id": image["id"], "category_id": (4, 7)[k % 2], "bbox": box})
            for _ in range(25):
                moved = box + rng.normal(0, 0.15, 4) * side
                moved[2:] = np.maximum(moved[2:], 1)
                entry = {"image_id": image["id"], "category_id": 4, "bbox": moved.tolist()}
                results.append({**entry, "score": float(rng.uniform())})
    return truth, results


def test_recall_equals_scalar_code(scene):
    truth, results = scene
    metrics = evaluate_proposals(truth, results)
    assert list(metrics.summary) == NAMES
    assert metrics["AR100"] == pytest.approx(scalar_recall(truth, results, 100))
    assert metrics["AR300"] == metrics["AR1000"] == pytest.approx(scalar_recall(truth, results, 300))
    assert metrics["AR100"] < metrics["AR300"] < 1
    for name, area in AREAS.items():
        assert metrics[name] == pytest.approx(scalar_recall(truth, results, 1000, area))


def test_recall_ignores_classes(scene):
    truth, results = scene
    other = [{**entry, "category_id": 7 if i % 3 else 4} for i, entry in enumerate(results)]
    assert evaluate_proposals(truth, other) == evaluate_proposals(truth, results)


def test_recall_equals_pycocotools():
    folder = shared("data/cocoapi_eval")
    truth, results = (folder / f"instances_val2014_{part}.json" for part in ("100", "fakebbox100_results"))
    coco = COCO(truth)
    evaluation = COCOeval(coco, coco.loadRes(str(results)), "bbox")
    evaluation.params.imgIds = sorted({entry["image_id"] for entry in json.loads(results.read_text())})
    evaluation.params.useCats, evaluation.params.maxDets = 0, [100, 300, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]  # (thresholds, areas, limits)
    expected = [recall[:, 0, 0], recall[:, 0, 1], recall[:, 0, 2], *(recall[:, k, 2] for k in (1, 2, 3))]
    metrics = evaluate_proposals(truth, results, evaluation.params.imgIds)
    np.testing.assert_allclose(list(metrics.summary.values()), [values.mean() for values in expected])


def test_crowds_do_not_count_and_absent_sizes_are_nan():
    truth = small_truth()
    truth["annotations"][2]["iscrowd"] = 1
    results = [{"image_id": 1, "category_id": 9, "bbox": [10, 10, 20, 20], "score": 0.4}]
    metrics = evaluate_proposals(truth, results)
    assert metrics["AR100"] == 0.5 and metrics["ARs"] == 1 and metrics["ARm"] == 0
    assert math.isnan(metrics["ARl"])
    assert evaluate_proposals(truth, [])["AR1000"] == 0
    assert json.loads(metrics.to_json())["summary"]["ARl"] is None
    assert metrics.table().split() == ["bbox", *NAMES, "0.500", "0.500", "0.500", "1.000", "0.000", "-"]


class Oracle(Predictor):
    """Finds every box of the ground truth, without classes."""

    def __init__(self, truth):
        self.truth = truth

    def detect_batch(self, batch):
        image_id = int(batch["image"][0, 0, 0, 0])
        boxes = [(y, x, y + h, x + w) for x, y, w, h in (a["bbox"] for a in self.truth if a["image_id"] == image_id)]
        return {
            "boxes": np.float32([boxes]),
            "scores": np.full((1, len(boxes)), 0.5, np.float32),
            "class_ids": np.zeros((1, len(boxes)), np.int32),
            "valid": np.int32([len(boxes)]),
        }


def test_oracle_has_full_recall():
    truth = small_truth()
    size = np.int32([[120, 160]])
    batches = [
        {"image": np.full((1, 120, 160, 3), i), "image_id": [i], "image_size": size, "original_size": size}
        for i in (1, 2)
    ]
    metrics, results = evaluate_batches(Oracle(truth["annotations"]), batches, truth, None)
    assert metrics["AR100"] == 1
    assert {entry["category_id"] for entry in results} == {4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network without classes, trained on a dataset of five classes, and its run."""
    folder = tmp_path_factory.mktemp("proposals")
    data = tiny.shapes_data(folder / "data", num_images=6)
    features = ("c2", "c3", "c4", "c5")
    model = ProposalNetwork(
        backbone=tiny.backbone(out_features=features),
        neck=FPN(features, 16, top=MaxPoolTop()),
        rpn=RPN(proposals=ProposalSelection(post_nms_top_k=150, train_post_nms_top_k=50)),
        preprocessing=Preprocessing(shortest=64, longest=96),
    )
    optimizer = SGD(WarmupMultiStep(0.02, milestones=(90,), warmup_steps=10))
    train(
        model,
        data,
        optimizer=optimizer,
        steps=30,
        batch_size=2,
        transforms=[RandomFlip()],
        out_dir=folder / "run",
        validation=Validation(data),
    )
    return model, data, folder / "run"


@pytest.mark.slow
def test_proposal_network_trains_and_evaluates_without_classes(run):
    model, data, out_dir = run
    assert model.class_names == ("object",)
    metrics = evaluate(model, data, batch_size=4)
    assert list(metrics.summary) == NAMES
    assert 0.1 < metrics["AR100"] <= metrics["AR300"] == metrics["AR1000"]
    logged = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["AR1000"] == pytest.approx(metrics["AR1000"], abs=0.02)


@pytest.mark.slow
def test_proposal_network_on_the_command_line(run, tmp_path, capsys):
    _, data, out_dir = run
    numbers, found = tmp_path / "numbers.json", tmp_path / "found.json"
    arguments = ["--annotations", str(data.annotations), "--json", str(numbers), "--save-detections", str(found)]
    assert cli.main(["eval", str(out_dir), *arguments]) == 0
    header, values = capsys.readouterr().out.strip().splitlines()[-2:]
    assert header.split() == ["bbox", *NAMES] and len(values.split()) == len(NAMES)
    assert list(json.loads(numbers.read_text())["summary"]) == NAMES
    assert len(json.loads(found.read_text())) > 6 * 20
    picture = next((data.annotations.parent / "images").iterdir())
    assert cli.main(["predict", str(out_dir), str(picture), "--score-threshold", "0", "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert {d["label"] for d in entry["detections"]} == {"object"}
