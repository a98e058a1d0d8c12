"""Tests the reader of annotation values: training and evaluation see the same objects, however they are written."""

import copy
import json
import logging

import numpy as np
import pytest
from PIL import Image

from kerasdet.data import CocoDataset
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_all, read_ground_truth

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20), (90, 80, 70)).save(folder / "images" / name)
    return folder


def plain():
    """Two images and three objects, one of them a crowd."""
    boxes = [(1, 3, [2.0, 2.0, 6.0, 6.0]), (1, 7, [10.0, 4.0, 8.0, 9.0]), (2, 7, [0.0, 0.0, 12.0, 10.0])]
    person = {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [2, 3]]}
    return {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in ((1, "a.png"), (2, "b.png"))],
        "categories": [{"id": 3, "name": "cat", **person}, {"id": 7, "name": "dog", **person}],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(number == 3),
                "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]],
                "keypoints": [4.0, 5.0, 2, 0, 0, 0, 6.5, 7.0, 1],
                "num_keypoints": 2,
            }
            for number, (image_id, category_id, box) in enumerate(boxes, 1)
        ],
    }


def everywhere(key, convert, section="annotations"):
    """Returns a change of one key in all items of a section."""

    def change(data):
        for item in data[section]:
            item[key] = convert(item[key])

    return change


def both(*changes):
    def change(data):
        for each in changes:
            each(data)

    return change


def first(**values):
    return lambda data: data["annotations"][0].update(values)


def without(key, section="annotations"):
    return lambda data: [item.pop(key) for item in data[section]]


def text_ids(data):
    for section, keys in (("images", ["id"]), ("categories", ["id"]), ("annotations", ["image_id", "category_id"])):
        for item in data[section]:
            item.update({key: str(item[key]) for key in keys})


def results():
    return [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9 - 0.1 * a["id"]}
        for a in plain()["annotations"]
    ]


def view(folder, data, **options):
    """Returns everything that training and evaluation take from a file."""
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    dataset = CocoDataset(path, masks=True, keypoints=True, **options)
    arrays = [
        (
            r.image_id,
            r.height,
            r.width,
            r.boxes.tolist(),
            r.class_ids.tolist(),
            r.is_crowd.tolist(),
            r.keypoints.tolist(),
        )
        for r in dataset.records
    ]
    runs = [r.runs.tolist() for r in dataset.records]
    words = {"names": dataset.class_names, "ids": dataset.category_ids, "skeleton": dataset.skeleton}
    metrics = [evaluate_all(truth, results()).to_json() for truth in (dataset.ground_truth, path)]
    truth = read_ground_truth(dataset.ground_truth)["annotations"]
    objects = [[a[key] for key in ("image_id", "category_id", "bbox", "area", "iscrowd")] for a in truth]
    return {"training": [arrays, runs, words], "truth": objects, "metrics": metrics}, dataset.counts


SAME = {
    "ids as text": text_ids,
    "image ids as float": both(everywhere("id", float, "images"), everywhere("image_id", float)),
    "image ids as float in text": everywhere("image_id", lambda i: f"{i}.0"),
    "some category ids as text": first(category_id="3"),
    "ids with spaces": everywhere("image_id", lambda i: f" {i} "),
    "sizes as float": everywhere("height", float, "images"),
    "sizes as text": everywhere("width", str, "images"),
    "sizes missing": without("height", "images"),
    "sizes null": everywhere("height", lambda _: None, "images"),
    "sizes 0": everywhere("width", lambda _: 0, "images"),
    "sizes -1": everywhere("width", lambda _: -1, "images"),
    "iscrowd as text": everywhere("iscrowd", str),
    "iscrowd as float": everywhere("iscrowd", float),
    "iscrowd as float in text": everywhere("iscrowd", lambda v: f"{v}.0"),
    "iscrowd as bool": everywhere("iscrowd", bool),
    "iscrowd as True in text": everywhere("iscrowd", lambda v: str(bool(v))),
    "iscrowd as null": everywhere("iscrowd", lambda v: v or None),
    "boxes as text": everywhere("bbox", lambda box: [str(v) for v in box]),
    "boxes as one text": everywhere("bbox", str),
    "boxes missing": both(without("bbox"), everywhere("area", float)),
    "boxes null": first(bbox=None),
    "boxes empty": first(bbox=[]),
    "area as text": everywhere("area", str),
    "area in a list": everywhere("area", lambda v: [v]),
    "area missing": without("area"),
    "area null": everywhere("area", lambda _: None),
    "area negative": everywhere("area", lambda _: -1),
    "area NaN": everywhere("area", lambda _: float("nan")),
    "area 0": everywhere("area", lambda _: 0),
    "area as words": everywhere("area", lambda _: "big"),
    "flat polygons": everywhere("segmentation", lambda s: s[0]),
    "polygons of points": everywhere("segmentation", lambda s: np.reshape(s[0], (-1, 2)).tolist()),
    "lists of polygons of points": everywhere("segmentation", lambda s: [np.reshape(s[0], (-1, 2)).tolist()]),
    "polygons of text": everywhere("segmentation", lambda s: [[str(v) for v in s[0]]]),
    "polygons as one text": everywhere("segmentation", json.dumps),
    "short polygons beside": everywhere("segmentation", lambda s: [[1, 1, 5, 5], *s, [3, 3], []]),
    "odd polygons": everywhere("segmentation", lambda s: [[*s[0], 9]]),
    "keypoints nested": everywhere("keypoints", lambda k: np.reshape(k, (3, 3)).tolist()),
    "keypoints as text": everywhere("keypoints", lambda k: [str(v) for v in k]),
    "keypoints null where hidden": everywhere("keypoints", lambda k: [*k[:3], None, None, 0, *k[6:]]),
    "keypoint counts missing": without("num_keypoints"),
    "skeleton from 0": everywhere("skeleton", lambda _: [[0, 1], [1, 2]], "categories"),
    "skeleton of text": everywhere("skeleton", lambda _: [["1", "2"], ["2", "3"]], "categories"),
    "names with spaces": everywhere("name", lambda name: f" {name} ", "categories"),
    "categories twice": lambda data: data["categories"].append(dict(data["categories"][0])),
    "images twice": lambda data: data["images"].append(dict(data["images"][0])),
    "an orphan": lambda data: data["annotations"].append({**data["annotations"][0], "id": 9, "image_id": 99}),
    "an infinite box": lambda data: data["annotations"].append(
        {**data["annotations"][0], "bbox": [1, 2, float("inf"), 4]}
    ),
    "paths of Windows": everywhere("file_name", lambda name: f"C:\\pics\\{name}", "images"),
    "paths of a server": everywhere("file_name", lambda name: f"/data/upload/1/{name}", "images"),
    "Roboflow's group": both(
        everywhere("name", str, "categories"),
        lambda data: [c.update(supercategory="animals") for c in data["categories"]],
        lambda data: data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"}),
    ),
    "extra keys": lambda data: [a.update(attributes={"occluded": False}) for a in data["annotations"]],
    "annotation ids missing": without("id"),
    "iscrowd in one only": lambda data: [a.pop("iscrowd") for a in data["annotations"][:2]],
}
SILENT = {
    "area missing",
    "area null",
    "keypoint counts missing",
    "iscrowd as null",
    "iscrowd in one only",
    "extra keys",
    "annotation ids missing",
}


@pytest.mark.parametrize("name", SAME)
def test_other_forms_of_a_value_mean_the_same_everywhere(folder, name, caplog):
    expected, counts = view(folder, plain())
    data = plain()
    SAME[name](data)
    caplog.clear()
    with caplog.at_level(logging.INFO, "kerasdet"):
        found, found_counts = view(folder, data)
    assert found == expected
    changed = {key for key in found_counts if key not in counts}
    assert bool(changed) == (name not in SILENT)
    if changed:
        assert "(first: " in caplog.records[0].message
        with pytest.raises(
            UserError, match=r"data\.json: .*which --strict \(Python and gin: strict=True\) does not allow"
        ):
            view(folder, data, strict=True)
    else:
        view(folder, data, strict=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(folder, encoding):
    expected, _ = view(folder, plain())
    path = folder / "marked.json"
    path.write_text(json.dumps(plain()), encoding=encoding)
    listed = folder / "marked_results.json"
    listed.write_text(json.dumps(results()), encoding=encoding)
    assert len(CocoDataset(path).records) == 2
    assert evaluate_all(path, listed).to_json() == expected["metrics"][0]


REFUSED = {
    "image id as words": (everywhere("image_id", lambda _: "one"), "annotation 1 has the image_id 'one'"),
    "image id as bool": (first(image_id=True), "annotation 1 has the image_id True"),
    "image id of 70 bits": (first(image_id=2**70), "annotation 1 has the image_id"),
    "image id as fraction": (first(image_id=1.5), "annotation 1 has the image_id 1.5"),
    "category id missing": (
        lambda data: data["annotations"][0].pop("category_id"),
        'annotation 1 has no "category_id"',
    ),
    "category id null": (first(category_id=None), "annotation 1 has the category_id None"),
    "category id unknown": (first(category_id=4), "annotation 1 has the category_id 4, but no entry"),
    "category id as a name": (first(category_id="cat"), "annotation 1 has the category_id 'cat'"),
    "iscrowd 2": (first(iscrowd=2), 'annotation 1 has "iscrowd" 2; expected 0 or 1'),
    "iscrowd as words": (first(iscrowd="maybe"), "annotation 1 has \"iscrowd\" 'maybe'"),
    "iscrowd in a list": (first(iscrowd=[0]), r'annotation 1 has "iscrowd" \[0\]'),
    "box of three": (first(bbox=[1, 2, 3]), 'annotation 1 has "bbox"'),
    "box of points": (first(bbox=[[1, 2], [3, 4]]), 'annotation 1 has "bbox"'),
    "box of words": (first(bbox="a box"), 'annotation 1 has "bbox"'),
    "box as dict": (first(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), 'annotation 1 has "bbox"'),
    "box with bool": (first(bbox=[1, 2, 3, True]), 'annotation 1 has "bbox"'),
    "boxes as fractions": (
        everywhere("bbox", lambda box: [v / 30 for v in box]),
        'no box has a number above 1 .*annotation 1 has "bbox" .* in pixels',
    ),
    "no box, no mask": (first(bbox=None, segmentation=[]), 'annotation 1 has no "bbox"'),
    "polygon of words": (first(segmentation=[["a"] * 6]), "annotation 1 has a polygon with the entry"),
    "polygon of NaN": (first(segmentation=[[float("nan")] * 6]), "annotation 1 has a polygon with the entry"),
    "mask of a number": (first(segmentation=7), 'annotation 1 has the "segmentation" 7'),
    "RLE of another size": (
        first(segmentation={"size": [30, 20], "counts": [600]}),
        r"annotation 1 has an RLE mask of size \[30, 20\]",
    ),
    "RLE of other pixels": (
        first(segmentation={"size": [20, 30], "counts": [500]}),
        "annotation 1 has an RLE mask of 500",
    ),
    "RLE of negative counts": (
        first(segmentation={"size": [20, 30], "counts": [-5, 605]}),
        'annotation 1 has an RLE mask whose "counts" contain -5',
    ),
    "RLE without counts": (first(segmentation={"size": [20, 30]}), "annotation 1 has an RLE mask"),
    "keypoints of two numbers": (first(keypoints=[1, 2] * 3), "annotation 1 has .*expected 9 numbers"),
    "keypoints visible 3": (first(keypoints=[1, 2, 3] * 3), "annotation 1 has .*expected 9 numbers"),
    "keypoints null but visible": (first(keypoints=[None, None, 2] * 3), "annotation 1 has .*expected 9 numbers"),
    "height as words": (everywhere("height", lambda _: "tall", "images"), "image 1 has the height 'tall'"),
    "height as bool": (everywhere("height", lambda _: True, "images"), "image 1 has the height True"),
    "category twice, two names": (
        lambda data: data["categories"].append({"id": 3, "name": "fox"}),
        '"cat" and "fox" share the id 3',
    ),
    "image twice, two files": (
        lambda data: data["images"].append({**data["images"][0], "file_name": "b.png"}),
        "share the id 1",
    ),
    "category name of a list": (everywhere("name", lambda name: [name], "categories"), "category 3 has the name"),
    "no annotation has an image": (
        everywhere("image_id", lambda i: i + 50),
        "annotation 1 has the image_id 51, .* the other annotations have no image",
    ),
    "annotations as dict": (lambda data: data.update(annotations={}), '"annotations" is not a list'),
    "image id null": (everywhere("id", lambda _: None, "images"), r"images\[0\] is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused_by_training_and_evaluation(folder, name):
    change, message = REFUSED[name]
    data = plain()
    change(data)
    path = folder / "refused.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        CocoDataset(path, masks=True, keypoints=True)
    everything = [{**entry, "segmentation": [SQUARE], "keypoints": [1, 1, 1] * 3} for entry in results()]
    with pytest.raises(UserError, match=message):
        evaluate_all(path, everything)


def test_all_crowd_flags_as_text_stay_objects(folder):
    data = plain()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = "0"
    path = folder / "crowds.json"
    path.write_text(json.dumps(data))
    dataset = CocoDataset(path)
    assert dataset.counts["crowd_boxes"] == 0 and not any(r.is_crowd.any() for r in dataset.records)


@pytest.mark.parametrize("empty", [[], None, "", {}, [[]], [[2, 2, 8, 8]], [[1, 1]], "missing"])
def test_objects_without_masks_train_no_mask_and_are_ignored_in_its_score(folder, empty, caplog):
    data = plain()
    data["annotations"][2]["iscrowd"] = 0
    for annotation in data["annotations"]:
        annotation["segmentation"] = [SQUARE] if annotation["id"] == 1 else annotation["segmentation"]
    expected = copy.deepcopy(data)
    if empty == "missing":
        del data["annotations"][1]["segmentation"]
    else:
        data["annotations"][1]["segmentation"] = empty
    path = folder / "mixed.json"
    path.write_text(json.dumps(data))
    dataset = CocoDataset(path, masks=True)
    assert dataset.counts["objects_without_mask"] == 1 and dataset.counts["boxes"] == 2
    found = [
        {**entry, "segmentation": annotation["segmentation"]}
        for entry, annotation in zip(results(), expected["annotations"], strict=True)
    ]
    metrics = evaluate_all(dataset.ground_truth, found)
    assert metrics["segm/AP"] == pytest.approx(1.0) and metrics["AP"] == pytest.approx(1.0)
    assert "1 objects have no mask (first: annotation 2)" in caplog.text


def test_results_are_read_like_annotations(folder, caplog):
    data = plain()
    expected = evaluate_all(data, results()).to_json()
    for change in (
        lambda e: e.update(image_id=str(e["image_id"])),
        lambda e: e.update(image_id=float(e["image_id"]), category_id=f"{e['category_id']}.0"),
        lambda e: e.update(score=str(e["score"])),
        lambda e: e.update(bbox=[str(v) for v in e["bbox"]]),
        lambda e: e.update(bbox=json.dumps(e["bbox"])),
        lambda e: e.update(segmentation=None, keypoints=[]),
    ):
        entries = results()
        for entry in entries:
            change(entry)
        assert evaluate_all(data, entries).to_json() == expected
    assert "values converted to the right type (first: result 1 has" in caplog.text


def test_masks_of_results_may_have_any_form(folder):
    data = plain()
    for annotation in data["annotations"]:
        annotation["segmentation"] = [SQUARE]
    runs = [42, *[6, 14] * 5, 6, 452]
    forms = (
        [SQUARE],
        SQUARE,
        {"size": [20, 30], "counts": runs},
        {"size": ["20", 30.0], "counts": list(map(str, runs))},
    )
    for form in forms:
        entries = [{**entry, "segmentation": form} for entry in results()]
        assert evaluate_all(data, entries)["segm/AP"] == pytest.approx(1.0)


def test_boxes_in_the_modes_of_detectron2_raise(folder):
    data = plain()
    for annotation in data["annotations"]:
        annotation["bbox_mode"] = 1
    assert len(CocoDataset(_written(folder, data)))
    data["annotations"][0]["bbox_mode"] = 0
    with pytest.raises(UserError, match=r'annotation 1 has "bbox_mode" 0 of detectron2; expected "bbox" as x, y'):
        CocoDataset(_written(folder, data))


@pytest.mark.parametrize("change", [lambda x, y, w, h: [x, y, x + w, y + h], lambda *box: [4 * v for v in box]])
def test_boxes_that_are_corners_or_of_another_size_are_named(folder, change, caplog):
    data = plain()
    for annotation in data["annotations"]:
        annotation["bbox"] = change(12, 14, 17, 6)
    CocoDataset(_written(folder, data))
    assert "data.json: most boxes extend far beyond their image (first: annotation 1 has " in caplog.text
    caplog.clear()
    CocoDataset(_written(folder, plain()))
    assert "most boxes" not in caplog.text


def test_contents_that_are_probably_wrong_are_counted(folder, caplog):
    data = plain()
    data["categories"][1]["name"] = "cat"
    data["images"][1]["file_name"] = "a.png"
    data["annotations"][0]["segmentation"] = [[20, 12, 28, 12, 28, 18]]
    counts = CocoDataset(_written(folder, data), masks=True).counts
    assert {key: counts[key] for key in ("repeated_names", "repeated_files", "masks_outside_boxes")} == {
        "repeated_names": 1,
        "repeated_files": 1,
        "masks_outside_boxes": 1,
    }
    for entry in (relative := results()):
        entry["bbox"] = [value / 30 for value in entry["bbox"]]
    assert evaluate_all(plain(), relative)["AP"] == 0
    assert "the results: no box has a number above 1" in caplog.text
    for entry in (corners := results()):
        entry["bbox"] = [20, 12, 29, 19]
    evaluate_all(plain(), corners)
    assert "boxes extend far beyond their image (first: [20" in caplog.text
    with pytest.raises(UserError, match=r"is a COCO dataset, such as `kerasdet predict --coco` writes"):
        evaluate_all(plain(), {"images": [], "annotations": []})


def test_negative_ids_are_ids(folder):
    data, entries = plain(), results()
    for item in (*data["annotations"], *entries):
        item["image_id"] -= 9
        item["category_id"] -= 9
    for item in (*data["images"], *data["categories"]):
        item["id"] -= 9
    CocoDataset(_written(folder, data))
    assert evaluate_all(data, entries).to_json() == evaluate_all(plain(), results()).to_json()


def _written(folder, data):
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return path
