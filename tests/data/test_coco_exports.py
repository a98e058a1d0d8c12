import shutil

import numpy as np
import pytest
from foreign_data import boxes_of, coco, picture, write_json, write_text

from kerasdet.data import open_dataset
from kerasdet.errors import UserError

NAMES = ["a.png", "b.png", "c.png"]


def pictures(folder, names=NAMES):
    for seed, name in enumerate(names):
        picture(folder / name, seed)


def renamed(change):
    """Returns a COCO dict with other paths of images."""
    data = coco(NAMES)
    for image in data["images"]:
        image["file_name"] = change(image["file_name"])
    return data


def check(dataset, names=NAMES):
    data = coco(NAMES)
    assert [record.path.rsplit("/", 1)[1] for record in dataset.records] == names
    for record in dataset.records:
        np.testing.assert_allclose(record.boxes, np.reshape(boxes_of(data, record.image_id), (-1, 4)))


def test_roboflow(tmp_path):
    for split in ("train", "valid", "test"):
        pictures(tmp_path / split)
        data = coco(NAMES)
        data["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
            {**category, "supercategory": "pets"} for category in data["categories"]
        ]
        write_json(tmp_path / split / "_annotations.coco.json", data)
    for split in ("train", "val", "valid", "validation", "test"):
        dataset = open_dataset(tmp_path, split)
        check(dataset)
        assert dataset.class_names == ("cat", "dog")
    with pytest.raises(UserError, match="has the splits test, train, val"):
        open_dataset(tmp_path)
    check(open_dataset(tmp_path / "valid"))


@pytest.mark.parametrize("images", ["images", "images/default"])
def test_cvat(tmp_path, images):
    pictures(tmp_path / images)
    write_json(tmp_path / "annotations/instances_default.json", coco(NAMES))
    check(open_dataset(tmp_path))


def test_fiftyone(tmp_path):
    pictures(tmp_path / "data")
    write_json(tmp_path / "labels.json", coco(NAMES))
    check(open_dataset(tmp_path))


def test_labelme2coco(tmp_path):
    pictures(tmp_path / "photos")
    write_json(tmp_path / "out/dataset.json", coco(NAMES))
    shutil.copytree(tmp_path / "photos", tmp_path / "out/photos")
    check(open_dataset(tmp_path / "out"))


def test_coco_2017(tmp_path):
    for split in ("train2017", "val2017"):
        pictures(tmp_path / split)
        for task in ("instances", "person_keypoints", "captions"):
            data = coco(NAMES) if task == "instances" else {"images": [], "annotations": []}
            write_json(tmp_path / "annotations" / f"{task}_{split}.json", data)
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path, split)
        check(dataset)
        assert f"/{split}2017/" in dataset.records[0].path


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"../../label-studio/data/media/upload/1/0a1b2c3d-{name}",
        lambda name: f"images\\1\\0a1b2c3d-{name}",
        lambda name: f"http://localhost:8080/data/upload/1/0a1b2c3d-{name}?d=1",
        lambda name: f"/data/local-files/?d=mine/images/{name}",
    ],
)
def test_label_studio(tmp_path, change):
    pictures(tmp_path / "images")
    write_json(tmp_path / "result.json", renamed(change))
    dataset = open_dataset(tmp_path)
    check(dataset)
    assert dataset.counts["image_paths_repaired"] == 3
    with pytest.raises(UserError, match="image 1 names the image"):
        open_dataset(tmp_path, strict=True)


def test_label_studio_with_hashes_on_disk(tmp_path):
    pictures(tmp_path / "images", [f"0a1b2c3d-{name}" for name in NAMES])
    write_json(tmp_path / "result.json", coco(NAMES))
    check(open_dataset(tmp_path), [f"0a1b2c3d-{name}" for name in NAMES])


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"C:\\Users\\me\\photos\\{name}",
        lambda name: f"/home/other/photos/{name}",
        lambda name: f"photos/{name}",
        lambda name: name.upper(),
        lambda name: name.replace(".png", ".jpg"),
        lambda name: f"file:///home/other/{name}",
    ],
)
def test_paths_of_other_machines(tmp_path, change):
    pictures(tmp_path / "images")
    write_json(tmp_path / "train.json", renamed(change))
    dataset = open_dataset(tmp_path, "train")
    check(dataset)
    assert dataset.counts["image_paths_repaired"] == 3


def test_names_with_spaces_accents_and_escapes(tmp_path):
    names = ["ein Bär.png", "日本.png", "100%.png"]
    pictures(tmp_path / "images", names)
    data = coco(names)
    data["images"][0]["file_name"] = "ein%20Ba\u0308r.png"  # decomposed, as macOS writes it
    write_json(tmp_path / "data.json", data)
    check(open_dataset(tmp_path), names)


def test_ambiguous_name_raises(tmp_path):
    pictures(tmp_path / "x")
    pictures(tmp_path / "y")
    write_json(tmp_path / "data.json", renamed(lambda name: f"/gone/{name}"))
    with pytest.raises(UserError, match=r"image 1 names the image '/gone/a\.png', which matches 2 files"):
        open_dataset(tmp_path)


def test_two_names_never_lead_to_one_file(tmp_path):
    pictures(tmp_path / "images")
    data = coco(["one/a.png", "two/a.png", "c.png"])
    write_json(tmp_path / "data.json", data)
    with pytest.raises(UserError, match=r"The only file found for this name, .*a\.png"):
        open_dataset(tmp_path)


def test_missing_image_is_named(tmp_path):
    pictures(tmp_path / "images", NAMES[:2])
    write_json(tmp_path / "data.json", coco(NAMES))
    with pytest.raises(UserError, match=r"c\.png: does not exist"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, on_bad_image="skip")) == 2


def test_two_files_for_a_split_raise(tmp_path):
    pictures(tmp_path / "images")
    for name in ("first", "second"):
        write_json(tmp_path / f"{name}.json", coco(NAMES))
    with pytest.raises(UserError, match=r"first\.json and .*second\.json could both be"):
        open_dataset(tmp_path)
    check(open_dataset(tmp_path / "first.json"))


@pytest.mark.parametrize("name", ["annotations/instances_{}2017.json", "{}/_annotations.coco.json"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [{"id": 1', "is not valid JSON"),
        ("", "is not valid JSON"),
        ('[{"image_id": 1, "score": 0.5}]', "is no COCO file, although .* is one"),
        ('{"images": [], "categories": []}', "is no COCO file, although .* is one"),
    ],
)
def test_damaged_file_of_a_split_raises(tmp_path, name, text, expected):
    good, bad = (tmp_path / name.format(split) for split in ("train", "val"))
    pictures(tmp_path / "images/train")
    write_json(good, coco(NAMES))
    write_text(bad, text)
    with pytest.raises(UserError, match=f"{bad.name} {expected}"):
        open_dataset(tmp_path, "train")


def test_files_that_are_no_split_do_not_stop_the_others(tmp_path, caplog):
    pictures(tmp_path / "images/train")
    write_json(tmp_path / "annotations/instances_train.json", coco(NAMES))
    write_json(tmp_path / "annotations/instances_test.json", {"images": [], "categories": []})
    write_json(tmp_path / "annotations/val_results.json", [{"image_id": 1, "score": 0.5}])
    check(open_dataset(tmp_path, "train"))
    assert 'instances_test.json has no "annotations" and is not read' in caplog.text


def detections_of(data):
    """Returns a COCO dict with scores, as `kerasdet predict --coco` writes it."""
    return {**data, "annotations": [{**annotation, "score": 0.5} for annotation in data["annotations"]]}


def test_detections_are_no_annotations_unless_they_are_alone(tmp_path, caplog):
    pictures(tmp_path / "images")
    write_json(tmp_path / "predicted.json", detections_of(coco(NAMES)))
    check(open_dataset(tmp_path))
    write_json(tmp_path / "annotations/train.json", coco(NAMES))
    check(open_dataset(tmp_path, "train"))
    with pytest.raises(UserError, match="has no split all; it has train"):
        open_dataset(tmp_path, "all")


@pytest.mark.parametrize("other", ["Pascal VOC", "LabelMe"])
def test_coco_files_beside_other_annotations_are_said(tmp_path, caplog, other):
    pictures(tmp_path / "images")
    if other == "Pascal VOC":
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        file = write_text(
            tmp_path / "Annotations/a.xml",
            "<annotation><size><width>64</width><height>48</height></size>"
            f"<object><name>dog</name>{box}</object></annotation>",
        )
    else:
        shape = {"label": "dog", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
        size = {"imageHeight": 48, "imageWidth": 64, "imageData": None}
        file = write_json(tmp_path / "images/a.json", {"shapes": [shape], "imagePath": "a.png", **size})
    write_json(tmp_path / "predicted.json", detections_of(coco(NAMES)))
    assert open_dataset(tmp_path).class_names == ("dog",)
    assert f"read as {other}; the annotations in {tmp_path}/predicted.json are not read" in caplog.text
    write_json(tmp_path / "labelled.json", coco(NAMES))
    assert open_dataset(tmp_path).class_names == ("cat", "dog")
    assert f"read as COCO; the annotations in {file} are not read" in caplog.text


def test_images_of_another_split_are_not_taken(tmp_path):
    pictures(tmp_path / "images/train")
    for split in ("train", "val"):
        write_json(tmp_path / f"annotations/instances_{split}.json", coco(NAMES))
    check(open_dataset(tmp_path, "train"))
    with pytest.raises(
        UserError,
        match=r"of the split val names the image 'a.png', but only another split has this file: .*/images/train/a.png",
    ):
        open_dataset(tmp_path, "val")
    write_json(tmp_path / "annotations/instances_val.json", renamed(lambda name: f"train/{name}"))
    check(open_dataset(tmp_path, "val"))
