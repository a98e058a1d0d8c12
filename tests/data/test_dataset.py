"""Tests the type of datasets: where images are found, which are used, and classes in the order of a model."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from kerasdet.data import CocoDataset, Dataset, evaluation_batches
from kerasdet.errors import UserError
from kerasdet.evaluation import evaluate_all


def contents(names=("a.png",), categories=("cat", "dog"), **image):
    return {
        "images": [{"id": i, "file_name": n, "height": 20, "width": 30, **image} for i, n in enumerate(names, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
        "annotations": [
            {"image_id": i, "category_id": 1 + i % len(categories), "bbox": [2, 3, 8, 9]}
            for i in range(1, len(names) + 1)
        ],
    }


def save(path, size=(20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


@pytest.mark.parametrize(
    "annotations, image, file_name",
    [
        ("data/train.json", "data/images/a.png", "a.png"),
        ("train/_annotations.coco.json", "train/a.png", "a.png"),  # Roboflow
        ("export/result.json", "export/images/a.png", "images/a.png"),  # Label Studio
        ("export/result.json", "export/images/a.png", "images\\a.png"),
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),  # CVAT
        ("annotations/instances_default.json", "images/a.png", "a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),  # COCO
        ("via/project.json", "via/a.png", "a.png"),  # VIA
    ],
)
def test_images_are_found_where_tools_put_them(tmp_path, annotations, image, file_name):
    save(tmp_path / image)
    path = tmp_path / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents([file_name])))
    [record] = CocoDataset(path).records
    assert record.path.replace("images/images", "images").endswith("a.png") and len(record.boxes) == 1


def test_equal_last_parts_are_not_confused(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"2 of 2 images .*cam1/a\.png: does not exist"):
        Dataset(contents(["cam1/a.png", "cam2/a.png"]), tmp_path, source="data")


def test_absolute_file_names_need_no_folder(tmp_path):
    save(tmp_path / "a.png")
    dataset = Dataset(contents([str(tmp_path / "a.png")]), None, source="data")
    assert dataset.records[0].path == str(tmp_path / "a.png")


def test_pixels_reach_batches_in_every_format(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((30, 20))
    names = ["a.webp", "b.bmp", "c.gif", "d.png", "e.jpg"]
    for name in names:
        (picture.quantize(16) if name[-3:] in ("bmp", "gif") else picture).save(tmp_path / name)
    dataset = Dataset(contents(names), tmp_path, source="data")
    assert [record.by_pil for record in dataset.records] == [True, False, True, False, False]
    [batch] = evaluation_batches(dataset, 5, size_divisor=1)
    for image, name in zip(batch["image"], names, strict=True):
        np.testing.assert_array_equal(image, Image.open(tmp_path / name).convert("RGB"))


def test_images_above_max_pixels_are_bad_and_can_be_allowed(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: has 600 pixels, more than max_pixels=599; pass max_pixels=600"):
        Dataset(contents(), tmp_path, source="data", max_pixels=599)
    assert len(Dataset(contents(), tmp_path, source="data", max_pixels=600)) == 1
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    data = contents(["huge.png"], height=14000, width=14000)
    with pytest.raises(UserError, match=r"huge\.png: has 196000000 pixels, more than max_pixels=178956970"):
        Dataset(data, tmp_path, source="data")
    assert len(Dataset(data, tmp_path, source="data", max_pixels=2 * 10**8)) == 1


def test_sizes_of_rotated_images_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", exif=exif)
    dataset = Dataset(contents(["a.jpg"], height=None), tmp_path, source="data")
    assert (dataset.records[0].height, dataset.records[0].width, dataset.records[0].exif) == (30, 20, True)
    assert dataset.counts["missing_sizes"] == 1
    assert [(i["height"], i["width"]) for i in dataset.ground_truth["images"]] == [(30, 20)]


@pytest.fixture
def dataset(tmp_path):
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        save(tmp_path / name)
    return lambda categories: Dataset(contents(names, categories), tmp_path, source="held out")


def perfect(dataset):
    return [
        {
            "image_id": r.image_id,
            "category_id": dataset.category_ids[k],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9,
        }
        for r in dataset.records
        for k, (y1, x1, y2, x2) in zip(r.class_ids.tolist(), r.boxes.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    "own, model",
    [
        (("cat", "dog"), ("dog", "cat")),
        (("dog",), ("cat", "dog")),
        (("fox", "cat"), ("cat", "dog", "fox")),
        (("unused", "cat", "dog", "fox"), ("fox", "dog", "cat")),
    ],
)
def test_classes_follow_a_model_by_name(dataset, own, model, caplog):
    before = dataset(own)
    with caplog.at_level(logging.INFO, "kerasdet"):
        after = before.with_classes(model)
    assert after.class_names == model and after.num_classes == len(after.category_ids) == len(model)
    for old, new in zip(before.records, after.records, strict=True):
        assert [before.class_names[i] for i in old.class_ids] == [after.class_names[i] for i in new.class_ids]
    metrics = evaluate_all(after.ground_truth, perfect(after))
    assert metrics["AP"] == pytest.approx(1.0)
    present = {before.class_names[i] for r in before.records for i in r.class_ids}
    assert {name for name, ap in metrics.by_type["bbox"].per_class.items() if ap == pytest.approx(1)} == present
    assert "matched by name" in caplog.text
    assert before.class_names == own


def test_classes_of_other_names_match_by_order_with_a_warning(dataset, caplog):
    own = dataset(("chat", "dog"))
    assert own.with_classes(("cat", "dog")) is own
    assert "held out and the model have different class names" in caplog.text
    assert dataset(("cat", "dog")).with_classes(("cat", "dog")).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "own, model, message",
    [
        (("cat", "dog"), ("cat",), "held out has objects of dog; expected the classes of the model, cat"),
        (("dog", "wolf"), ("cat", "dog"), "held out has objects of wolf; expected the classes of the model, cat, dog"),
        (("a", "b", "c"), ("cat", "dog"), "held out has objects of a, b, c"),
        (("cat", "cat"), ("dog", "cat"), "two classes of the same name"),
    ],
)
def test_objects_of_unknown_classes_raise(dataset, own, model, message):
    with pytest.raises(UserError, match=message):
        dataset(own).with_classes(model)


def test_ground_truth_of_a_file_follows_the_classes(tmp_path):
    save(tmp_path / "images/a.png")
    path = tmp_path / "data.json"
    path.write_text(json.dumps(contents()))
    after = CocoDataset(path).with_classes(("fox", "dog", "cat"))
    assert evaluate_all(after.ground_truth, perfect(after))["AP"] == pytest.approx(1.0)
    assert [category["name"] for category in after.ground_truth["categories"]] == ["fox", "dog", "cat"]


def test_areas_that_show_corners_and_similar_names_are_said(tmp_path, caplog):
    save(tmp_path / "a.png")
    data = contents(["a.png"])
    data["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 12, 9], "area": 60}]
    data["categories"] = [{"id": 1, "name": "Cat"}, {"id": 2, "name": "cat"}]
    assert Dataset(data, tmp_path, source="data", strict=True).counts["similar_names"] == 1
    assert 'every "area" fits a box [x1, y1, x2, y2]' in caplog.text
    caplog.clear()
    data["annotations"][0]["area"] = 108
    Dataset(data, tmp_path, source="data")
    assert "every area" not in caplog.text


def test_repeated_boxes_are_said(tmp_path):
    save(tmp_path / "a.png")
    data = contents(["a.png"])
    box = {"image_id": 1, "category_id": 1, "bbox": [9, 9, 4, 4]}
    data["annotations"] = [{"id": 1, **box}, {"id": 2, **box}, {"id": 3, **box, "bbox": [9, 9, 4, 5]}]
    assert Dataset(data, tmp_path, source="data").counts["repeated_boxes"] == 1


def test_negative_lengths_are_named_as_such(tmp_path):
    save(tmp_path / "a.png")
    data = contents(["a.png"])
    data["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, -4, -4]}]
    dataset = Dataset(data, tmp_path, source="data")
    assert (dataset.counts["negative_boxes"], dataset.counts["zero_area_boxes"]) == (1, 0)
