import contextlib
import copy
import gzip
import io
import json
import lzma
import math
import pickle
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kerasdet.errors import UserError
from kerasdet.evaluation import coco
from kerasdet.evaluation.coco import evaluate_all, evaluate_coco
from kerasdet.evaluation.ground_truth import read_ground_truth
from kerasdet.evaluation.metrics import SUMMARY, CocoMetrics

FAKES = {"bbox": "fakebbox100", "segm": "fakesegm100"}


def reference(iou_type):
    folder = shared("data/cocoapi_eval")
    known = json.loads(shared("reference/known_answers.json").read_text())[f"cocoapi_{iou_type}"]
    return folder / "instances_val2014_100.json", folder / f"instances_val2014_{FAKES[iou_type]}_results.json", known


def assert_known(metrics, known):
    assert list(metrics.summary) == list(SUMMARY)
    np.testing.assert_allclose(list(metrics.summary.values()), known, rtol=0, atol=1e-9)


def shuffled_but_for_ties(results, seed):
    """Shuffles results, but keeps the order of ties in one image and category, which pycocotools ranks by order."""
    places = random.Random(seed).sample(range(len(results)), len(results))
    ties = defaultdict(list)
    for place, index in enumerate(places):
        entry = results[index]
        ties[entry["image_id"], entry["category_id"], entry["score"]].append(place)
    for group in ties.values():
        for place, index in zip(group, sorted(places[place] for place in group), strict=True):
            places[place] = index
    return [results[index] for index in places]


def small_truth():
    """Two images and three categories with gaps in their ids; category 9 has no object."""
    boxes = [(1, 4, [10, 10, 20, 20]), (1, 7, [50, 50, 40, 40]), (2, 4, [0, 0, 100, 100])]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 120, "width": 160} for i in (1, 2)],
        "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "yeti"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, category, box) in enumerate(boxes, 1)
        ],
    }


def perfect(truth):
    return [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in truth["annotations"]]


@pytest.mark.parametrize("iou_type", FAKES)
def test_metrics_equal_published_numbers(iou_type, capsys):
    truth, results, known = reference(iou_type)
    metrics = evaluate_coco(truth, str(results), iou_type)
    assert_known(metrics, known)
    assert len(metrics.per_class) == 80
    assert capsys.readouterr().out == ""
    seen = [ap for ap in metrics.per_class.values() if not math.isnan(ap)]
    assert np.mean(seen) == pytest.approx(metrics["AP"], abs=1e-9)


@pytest.mark.parametrize("iou_type", FAKES)
def test_metrics_do_not_depend_on_order_and_ids(iou_type):
    truth_path, results_path, known = reference(iou_type)
    truth, results = json.loads(truth_path.read_text()), json.loads(results_path.read_text())
    results = shuffled_but_for_ties(results, seed=0)
    random.Random(1).shuffle(truth["annotations"])
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number  # 0 included
    category = {c["id"]: 1000 - c["id"] for c in truth["categories"]}
    image = {i["id"]: 7 * i["id"] for i in truth["images"]}
    for entry in (*truth["annotations"], *results):
        entry.update(category_id=category[entry["category_id"]], image_id=image[entry["image_id"]])
    for entry in truth["categories"]:
        entry["id"] = category[entry["id"]]
    for entry in truth["images"]:
        entry["id"] = image[entry["id"]]
    assert_known(evaluate_coco(truth, results, iou_type), known)


def test_masks_with_boxes_use_mask_area():
    truth, results_path, known = reference("segm")
    results = [{**entry, "bbox": [0, 0, 1, 1]} for entry in json.loads(results_path.read_text())]
    assert_known(evaluate_coco(truth, results, "segm"), known)


@pytest.mark.parametrize("numbering", [lambda i: i, lambda i: 5])
def test_annotation_id_zero_and_duplicate_ids_match(numbering):
    truth = small_truth()
    results = perfect(truth)
    for i, annotation in enumerate(truth["annotations"]):
        annotation["id"] = numbering(i)
    metrics = evaluate_coco(truth, results)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == pytest.approx(1.0)


def test_missing_area_and_iscrowd_are_filled_in():
    complete, bare = small_truth(), small_truth()
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    results = perfect(complete)[:2]
    assert evaluate_coco(bare, results) == evaluate_coco(complete, results)


def test_detections_in_a_crowd_are_not_false_positives():
    truth = small_truth()
    results = perfect(truth)
    truth["annotations"][0]["iscrowd"] = 1
    results.append({"image_id": 1, "category_id": 4, "bbox": [12, 12, 6, 6], "score": 0.99})
    assert evaluate_coco(truth, results).per_class["cat"] == pytest.approx(1.0)


def test_evaluation_does_not_change_its_arguments():
    truth = small_truth()
    results = perfect(truth)
    before = copy.deepcopy((truth, results))
    evaluate_coco(truth, results)
    assert (truth, results) == before


def test_empty_results_score_zero(tmp_path):
    truth = small_truth()
    (tmp_path / "results.json").write_text("[]")
    metrics = evaluate_coco(truth, tmp_path / "results.json")
    assert all(value == 0 for value in metrics.summary.values())
    assert metrics.per_class["cat"] == 0 and math.isnan(metrics.per_class["yeti"])


@pytest.mark.parametrize("results", [[], [{"image_id": 1, "category_id": 4, "bbox": [0, 0, 5, 5], "score": 0.5}]])
def test_ground_truth_without_annotations_is_undefined(results):
    metrics = evaluate_coco({**small_truth(), "annotations": []}, results)
    assert all(math.isnan(value) for value in [*metrics.summary.values(), *metrics.per_class.values()])


def test_image_ids_restrict_the_evaluation():
    truth = small_truth()
    results = perfect(truth)[:2]  # image 2 has a miss
    assert evaluate_coco(truth, results)["AR100"] < 1
    assert evaluate_coco(truth, results, image_ids=[1])["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image_ids is empty"):
        evaluate_coco(truth, results, image_ids=[])
    with pytest.raises(ValueError, match="image_ids has 3, but the ground truth has no image with this id"):
        evaluate_coco(truth, results, image_ids=[1, 3])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 99}, r"result 2 is for image 99, which is not in the ground truth"),
        (
            {"image_id": "one"},
            r"result 2 is for image 'one', which is not in the ground truth: .* one of the 2 images, such as 1",
        ),
        ({"image_id": 2**70}, r"result 2 is for image 1180591620717411303424, which"),
        ({"score": True}, r"result 2 has the score True"),
        ({"bbox": None}, r"result 2 has no bbox"),
        ({"bbox": [50, 50, -10, -10]}, r"result 2 has the bbox .*where width and height are 0 or more"),
        ({"category_id": 0}, r"result 2 is of category 0, which is not in the ground truth"),
        ({"score": float("nan")}, r"result 2 has the score nan"),
        ({"score": 1e308}, r"result 2 has the score 1e\+308; expected a finite number, such as 0\.87"),
        ({"score": "high"}, r"result 2 has the score 'high'"),
        ({"bbox": [1, 2, 3]}, r"result 2 has the bbox \[1, 2, 3\]; expected x, y, width, height"),
    ],
)
def test_wrong_result_raises(change, message):
    results = perfect(small_truth())
    results[1].update(change)
    with pytest.raises(ValueError, match=message):
        evaluate_coco(small_truth(), results)


def test_result_without_required_keys_raises():
    truth = small_truth()
    with pytest.raises(ValueError, match="result 1 has no score and no bbox"):
        evaluate_coco(truth, [{"image_id": 1, "category_id": 4}])
    with pytest.raises(ValueError, match=r"result 1 is .1\.jpg.: expected an object with an image_id"):
        evaluate_coco(truth, ["1.jpg"])


def test_files_of_another_format_raise(tmp_path):
    truth = small_truth()
    broken, listed = tmp_path / "broken.json", tmp_path / "list.json"
    broken.write_text('{"images": [')
    listed.write_text("[]")
    with pytest.raises(FileNotFoundError, match=r"The file .*absent\.json does not exist"):
        evaluate_coco(truth, tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        evaluate_coco(broken, [])
    for name, content, message in (
        (
            "results.pkl",
            pickle.dumps([{"img_id": 1}]),
            r"results\.pkl is a Python pickle; .* writes results\.bbox\.json",
        ),
        ("val.json.gz", gzip.compress(b"[]"), r"val\.json\.gz is compressed with gzip; .*Unpack it"),
        ("val.json.xz", lzma.compress(b"[]"), r"val\.json\.xz is compressed with xz; .*Unpack it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            evaluate_coco(truth, tmp_path / name)
        with pytest.raises(UserError, match=message):
            read_ground_truth(tmp_path / name)
    with pytest.raises(ValueError, match=r"list\.json holds a list"):
        evaluate_coco(listed, [])
    with pytest.raises(ValueError, match=r"the results is a COCO dataset, .*; expected a list of detections"):
        evaluate_coco(truth, truth)
    with pytest.raises(ValueError, match='has no "categories"'):
        read_ground_truth({"images": truth["images"], "annotations": []})
    with pytest.raises(ValueError, match="iou_type is 'boxes'"):
        evaluate_coco(truth, [], "boxes")


def test_ground_truth_without_geometry_raises():
    truth = small_truth()
    with pytest.raises(ValueError, match=r"annotation 1 and all other annotations have no segmentation"):
        evaluate_coco(truth, [], "segm")
    del truth["annotations"][2]["bbox"]
    with pytest.raises(ValueError, match='annotation 3 has no "bbox"'):
        evaluate_coco(truth, [])
    truth["annotations"][2].update(bbox=[0, 0, 1, 1], id=70)
    del truth["annotations"][2]["image_id"]
    with pytest.raises(ValueError, match='annotation 70 has no "image_id"'):
        evaluate_coco(truth, [])


def test_masks_of_wrong_format_or_size_raise():
    truth = small_truth()
    for annotation in truth["annotations"]:
        annotation["segmentation"] = [[10, 10, 30, 10, 30, 30]]
    entry = {"image_id": 1, "category_id": 4, "score": 0.5}
    with pytest.raises(ValueError, match=r"\]\], without a polygon of at least three points; expected polygons"):
        evaluate_coco(truth, [{**entry, "segmentation": [[1, 1, 2, 1]]}], "segm")
    message = r"result 1 has an RLE mask of size \[5, 5\], but the image has height and width \[120, 160\]"
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth, [{**entry, "segmentation": {"size": [5, 5], "counts": "i0"}}], "segm")
    del truth["images"][1]["height"]
    with pytest.raises(ValueError, match="image 2 has no height and width, which are needed to score masks"):
        evaluate_coco(truth, [], "segm")


def test_table_and_json():
    metrics = evaluate_coco(small_truth(), perfect(small_truth()))
    content = json.loads(metrics.to_json())
    assert content["iou_type"] == "bbox"
    assert content["summary"]["AP"] == pytest.approx(1.0)
    assert content["per_class"]["yeti"] is None
    lines = metrics.table().splitlines()
    assert lines[0].split() == ["bbox", *SUMMARY]
    assert lines[1].split()[0] == "1.000"
    assert lines[3].split() == ["class", "AP"] * 3
    assert lines[4].split() == ["cat", "1.000", "dog", "1.000", "yeti", "-"]
    assert CocoMetrics("bbox", {"AP": 0.5}, {f"class {i}": 0.1 * i for i in range(4)}).table().count("\n") == 5


def test_categories_with_equal_names_are_told_apart_by_id():
    truth = small_truth()
    truth["categories"][1]["name"] = "cat"
    del truth["categories"][2]["name"]
    assert list(evaluate_coco(truth, perfect(truth)).per_class) == ["cat (4)", "cat (7)", "9"]


def test_scoring_does_not_import_tensorflow():
    folder = Path(coco.__file__).parent
    code = f"""
import sys, types
for name, path in (("kerasdet", {str(folder.parent)!r}), ("kerasdet.evaluation", {str(folder)!r}),
                   ("kerasdet.data", {str(folder.parent / "data")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
import kerasdet.evaluation.coco
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def keypoint_data(rng, count, categories=(1,)):
    """Makes ground truth with `count` keypoints on three images, some invisible, and detections near them."""
    truth = {
        "images": [{"id": i, "height": 400, "width": 400} for i in (1, 2, 3)],
        "categories": [
            {"id": 1, "name": "person", "keypoints": [str(j) for j in range(count)]},
            {"id": 2, "name": "cup"},
        ],
        "annotations": [],
    }
    results = []
    for i in range(14):
        (x, y), side = rng.uniform(0, 200, 2), rng.uniform(20, 150)
        places = rng.uniform(0, side, (count, 2)) + np.array([x, y])
        points = np.concatenate([places, rng.integers(0, 3, (count, 1))], 1)
        points[:, 2] *= i % 5 > 0
        box = [float(v) for v in (x, y, side, side)]
        common = {"image_id": i % 3 + 1, "category_id": int(rng.choice(categories))}
        annotation = {"id": i + 1, **common, "bbox": box, "area": side * side * 0.6, "iscrowd": int(i == 7)}
        annotation |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
        truth["annotations"].append(annotation)
        points[:, :2] += rng.normal(0, side * 0.03, (count, 2))
        results.append({**common, "keypoints": points.ravel().tolist(), "score": float(rng.uniform())})
    return truth, results


def reference_keypoints(truth, results, sigmas=None):
    """Scores with pycocotools as its own examples do."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = copy.deepcopy(truth)
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(copy.deepcopy(results)), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("count, sigmas", [(17, None), (4, None), (4, [0.02, 0.05, 0.1, 0.03])])
def test_keypoints_equal_pycocotools(rng, count, sigmas):
    truth, results = keypoint_data(rng, count)
    metrics = evaluate_coco(truth, results, "keypoints", sigmas=sigmas)
    expected = reference_keypoints(truth, results, sigmas or (None if count == 17 else [0.05] * count))
    assert list(metrics.summary) == ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    np.testing.assert_allclose([-1 if math.isnan(v) else v for v in metrics.summary.values()], expected, atol=1e-12)
    assert 0.2 < metrics["AP"] < 1 and list(metrics.per_class) == ["person"]
    assert metrics.table().splitlines()[0].split() == ["keypoints", *metrics.summary]


def test_categories_without_keypoints_do_not_count(rng):
    truth, results = keypoint_data(rng, 4)
    cup = {"id": 90, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}
    with_cup = {**truth, "annotations": [*truth["annotations"], cup]}
    stray = {"image_id": 1, "category_id": 2, "keypoints": [0] * 12, "score": 1.0}
    assert evaluate_coco(with_cup, [*results, stray], "keypoints") == evaluate_coco(truth, results, "keypoints")


def test_wrong_keypoints_raise(rng):
    truth, results = keypoint_data(rng, 4)
    with pytest.raises(ValueError, match="no category with keypoints"):
        evaluate_coco(small_truth(), [], "keypoints")
    with pytest.raises(ValueError, match=r"3 sigmas, but .* has 4 keypoints"):
        evaluate_coco(truth, results, "keypoints", sigmas=[0.1] * 3)
    with pytest.raises(ValueError, match=r"result 1 has the keypoints .*; expected 12 numbers"):
        evaluate_coco(truth, [{**results[0], "keypoints": [1, 2, 3]}], "keypoints")
    truth["annotations"][2]["keypoints"] = [1, 2, 3]
    with pytest.raises(ValueError, match=r"annotation \d+ has .*expected 12 numbers"):
        evaluate_coco(truth, results, "keypoints")


def test_evaluate_all_scores_what_results_and_ground_truth_share(rng):
    truth, keypoints = keypoint_data(rng, 4)
    code = {"size": [400, 400], "counts": mask.encode(np.ones((400, 400), np.uint8, order="F"))["counts"].decode()}
    results = [{**r, "bbox": [1, 2, 30, 40], "segmentation": code} for r in keypoints]
    metrics = evaluate_all(truth, results)
    assert list(metrics.by_type) == ["bbox", "keypoints"]  # the ground truth has no masks
    for annotation in truth["annotations"]:
        annotation["segmentation"] = code
    metrics = evaluate_all(truth, results)
    assert list(metrics.by_type) == ["bbox", "segm", "keypoints"]
    assert metrics["keypoints/AP"] == evaluate_coco(truth, keypoints, "keypoints")["AP"]
    assert metrics["AP50"] == metrics.by_type["bbox"]["AP50"]
    assert list(metrics.summary)[:2] == ["AP", "AP50"] and list(metrics.summary)[12] == "segm/AP"
    content = json.loads(metrics.to_json())
    assert content["iou_type"] == "bbox" and content["keypoints"]["summary"]["AP"] == metrics["keypoints/AP"]
    assert metrics.table() == "\n\n".join(part.table() for part in metrics.by_type.values())
    assert list(evaluate_all(truth, keypoints).by_type) == ["keypoints"]
    assert list(evaluate_all(truth, []).by_type) == ["bbox"]


def test_repeated_boxes_and_images_are_counted(caplog):
    truth = small_truth()
    first, *_ = truth["annotations"]
    truth["annotations"].append({**first, "id": 99})
    truth["images"] = [{**image, "file_name": "a.jpg"} for image in truth["images"]]
    truth["images"].append({**truth["images"][0], "id": 99})
    evaluate_coco(truth, perfect(truth))
    assert "1 boxes that occur more than once in an image (first: annotation 99 has the image, class and" in caplog.text
    assert "image files that several images share (first: image a.jpg is in the dataset more than once)" in caplog.text


def test_images_with_more_objects_than_coco_counts_and_repeated_results_are_said_once(caplog):
    square = {"category_id": 1, "area": 9}
    boxes = [[4.0 * (k % 16), 4.0 * (k // 16), 3.0, 3.0] for k in range(101)]
    shapes = [{"bbox": b, "segmentation": [[b[0], b[1], b[0] + 3, b[1], b[0] + 3, b[1] + 3]]} for b in boxes]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 64} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{**square, **shape, "image_id": 1, "id": k} for k, shape in enumerate(shapes, 1)],
    }
    found = [{**shape, "image_id": 1, "category_id": 1, "score": 0.9} for shape in shapes]
    metrics = evaluate_all(truth, found)
    assert metrics["AR100"] < 1 and list(metrics.by_type) == ["bbox", "segm"]
    limit = "Images with more than 100 objects of a class: 1. COCO's rules count the best 100 detections of a class"
    assert caplog.text.count(limit) == 1 and "equal an earlier one" not in caplog.text

    caplog.clear()
    truth["annotations"].pop()
    evaluate_all(truth, [*found[:100], *found[:30]])
    assert caplog.text.count("30 of 130 results equal an earlier one in image, class, score and geometry (first: ") == 1
    assert "result 101)" in caplog.text and limit not in caplog.text


@pytest.mark.parametrize("change", [{"iscrowd": 1}, {"difficult": True}])
def test_objects_that_do_not_count_explain_a_missing_ap(change, caplog):
    truth = small_truth()
    for annotation in truth["annotations"]:
        annotation.update(change)
    assert math.isnan(evaluate_coco(truth, perfect(truth))["AP"])
    assert "has no object to find: all 3 objects are crowds" in caplog.text


@pytest.mark.parametrize(
    "key, geometry", [("segmentation", {"size": [120, 160], "counts": "x"}), ("keypoints", [1] * 51)]
)
def test_detections_without_a_type_of_the_ground_truth_raise(key, geometry):
    results = [{"image_id": 1, "category_id": 4, "score": 0.5, key: geometry}]
    what = "masks" if key == "segmentation" else "keypoints"
    with pytest.raises(UserError, match=rf"^The detections in the results have {what} but no boxes, and the ground"):
        evaluate_all(small_truth(), results)


@pytest.mark.parametrize("as_corners", [False, True])
def test_corners_in_the_place_of_sizes_warn(caplog, as_corners):
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 1, (50, 2)) * (120, 80)
    boxes = np.concatenate([starts, rng.uniform(4, 40, (50, 2))], 1)  # most fit the image of 160 x 120, even as corners
    boxes[:, 2:] = np.minimum(boxes[:, 2:], (160, 120) - boxes[:, :2])
    boxes[:, 2:] += boxes[:, :2] * as_corners
    beyond = int(((boxes[:, :2] + boxes[:, 2:]) > 1.1 * np.array([160, 120])).any(1).sum())
    results = [{"image_id": 1, "category_id": 4, "score": 0.5, "bbox": box} for box in boxes.tolist()]
    evaluate_all(small_truth(), results)
    assert (beyond > 0) == as_corners
    assert (f"{beyond} of 50 boxes extend far beyond their image" in caplog.text) == as_corners
