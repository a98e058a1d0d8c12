import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from foreign_data import SIZE, coco, picture, write_json, write_labelme, write_text
from PIL import Image

from kerasdet.data import open_dataset, training_batches
from kerasdet.data.check import check
from kerasdet.data.convert import WRITERS, convert
from kerasdet.data.regions import join_polygons, mask_of, polygons_of
from kerasdet.data.split import split as split_dataset
from kerasdet.errors import UserError
from kerasdet.geometry import rle
from kerasdet.training.fingerprint import fingerprint

BCCD = Path(__file__).resolve().parents[2].parent / "shared/data/bccd"
NAMES = ["a.png", "b.png", "c.png"]


def make(root, change=lambda data: data, names=NAMES):
    """Writes a COCO dataset of two splits."""
    for split in ("train", "val"):
        for seed, name in enumerate(names):
            picture(root / "images" / split / name, seed)
        data = change(coco([f"{split}/{name}" for name in names]))
        write_json(root / f"{split}.json", data)
    return root


def assert_same(path, other, split="val", **options):
    """Compares pixels and objects of two datasets, from which the batches are made."""
    records, expected = (open_dataset(place, split, **options).records for place in (path, other))
    for record, wanted in zip(records, expected, strict=True):
        np.testing.assert_array_equal(record.image(), wanted.image())
        for name in ("boxes", "class_ids", "is_crowd", "num_runs", "runs", "keypoints"):
            np.testing.assert_array_equal(getattr(record, name), getattr(wanted, name), err_msg=name)


@pytest.mark.parametrize("to", sorted(WRITERS))
def test_round_trip_gives_identical_batches(tmp_path, to):
    source = make(tmp_path / "source")
    counts = convert(source, tmp_path / "target", to)
    options = {"masks": to != "voc"}
    for split in ("train", "val"):
        assert_same(tmp_path / "target", source, split, **options)
        assert counts[split]["boxes"] == 4
    assert open_dataset(tmp_path / "target", "val").class_names == ("cat", "dog")
    assert counts["lost"] == ({"masks": 8} if to == "voc" else {})


@pytest.mark.parametrize("to", ["coco", "tfrecord", "yolo"])
def test_keypoints_survive(tmp_path, to):
    def with_keypoints(data):
        for category in data["categories"]:
            category.update(keypoints=["left_ear", "right_ear"], skeleton=[[1, 2]])
        for annotation in data["annotations"]:
            annotation["keypoints"] = [5, 6, 2, 0, 0, 0] if annotation["id"] % 2 else [7.25, 8, 1, 9, 10, 2]
        return data

    source = make(tmp_path / "source", with_keypoints)
    counts = convert(source, tmp_path / "target", to)
    assert_same(tmp_path / "target", source, keypoints=True)
    assert counts["lost"] == ({"masks": 8} if to == "yolo" else {})
    assert open_dataset(tmp_path / "target", "val", keypoints=True).keypoint_flip == (1, 0)
    if to == "coco":
        assert json.loads((tmp_path / "target/val.json").read_text())["categories"][0]["skeleton"] == [[1, 2]]


@pytest.mark.parametrize("to", ["coco", "tfrecord", "yolo"])
def test_run_lengths_survive(tmp_path, to):
    mask = np.zeros(SIZE, bool)
    mask[5:20, 10:30] = mask[20:25, 10:12] = True

    def with_rle(data):
        for annotation in data["annotations"]:
            annotation.update(segmentation=rle.encode(mask[None])[0], bbox=[10, 5, 20, 20])
        return data

    source = make(tmp_path / "source", with_rle)
    convert(source, tmp_path / "target", to)
    assert_same(tmp_path / "target", source, masks=True)


def test_objects_without_a_mask_beside_others_are_counted_for_yolo(tmp_path, caplog):
    def with_a_box(data):
        data["annotations"][0]["segmentation"] = []
        return data

    convert(make(tmp_path / "source", with_a_box), tmp_path / "target", "yolo")
    assert "target: 2 objects without a mask, beside others with one, are written as rectangles" in caplog.text


@pytest.mark.parametrize("to", sorted(WRITERS))
def test_crowds_are_kept_or_counted(tmp_path, to):
    def with_crowd(data):
        data["annotations"][0]["iscrowd"] = 1
        return data

    counts = convert(make(tmp_path / "source", with_crowd), tmp_path / "target", to)
    has_crowds = to in ("coco", "tfrecord")
    assert open_dataset(tmp_path / "target", "val").counts["crowd_boxes"] == has_crowds
    assert counts["lost"]["crowds"] == (0 if has_crowds else 2)


def test_bccd_gives_identical_batches_in_every_format(tmp_path):
    if not BCCD.is_dir():
        pytest.skip("needs shared/data")
    whole = json.loads((BCCD / "val.json").read_text())
    images = sorted(whole["images"], key=lambda image: image["file_name"])[:6]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in whole["annotations"] if annotation["image_id"] in ids]
    source = tmp_path / "source"
    for image in images:
        (source / "images").mkdir(parents=True, exist_ok=True)
        (source / "images" / image["file_name"]).write_bytes((BCCD / "images" / image["file_name"]).read_bytes())
    write_json(source / "val.json", {**whole, "images": images, "annotations": annotations})
    write_labelme(tmp_path / "labelme", {**whole, "images": images, "annotations": annotations}, source / "images")
    write_text(tmp_path / "labelme/labels.txt", "".join(f"{c['name']}\n" for c in whole["categories"]))
    for to in WRITERS:
        convert(source, tmp_path / to, to)

    def batches(path, split):
        return list(training_batches(open_dataset(path, split), 2, seed=3).take(3))

    expected = batches(source, "val")
    assert sum(int((batch["class_ids"].numpy() >= 0).sum()) for batch in expected) == len(annotations)
    for path, split in ((tmp_path / "labelme", None), *((tmp_path / to, "val") for to in WRITERS)):
        for batch, other in zip(batches(path, split), expected, strict=True):
            for name in other.keys() - {"image_id"}:  # YOLO and LabelMe have no ids of images
                np.testing.assert_array_equal(batch[name], other[name], err_msg=f"{name} of {path}")


def test_splits_with_equal_names_stay_apart(tmp_path):
    source = make(tmp_path / "source", names=["A.PNG", "a.png", "a.jpg"])
    for to in WRITERS:
        convert(source, tmp_path / to, to)
        for split in ("train", "val"):
            assert_same(tmp_path / to, source, split)


def test_hidden_and_long_names_are_read_again(tmp_path):
    names = [".hidden.png", f"{'x' * 240}.png"]
    for name in names:
        picture(tmp_path / "source/images" / name, 0)
    write_json(tmp_path / "source/train.json", coco(names))
    for to in WRITERS:
        convert(tmp_path / "source", tmp_path / to, to)
        assert len(open_dataset(tmp_path / to, "train")) == 2
    write_json(tmp_path / "long/train.json", coco(["x" * 300 + ".png"]))
    with pytest.raises(UserError, match=r"images cannot be used: .* cannot be read"):
        open_dataset(tmp_path / "long", "train")


def test_messy_values_are_written_clean(tmp_path):
    def messy(data):
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        data["annotations"][0]["bbox"] = ["50", "-5", "40", "20"]  # leaves the image
        data["annotations"][1]["bbox"] = [3, 3, 0, 5]
        data["annotations"][2]["category_id"] = "1"
        return data

    source = make(tmp_path / "source", messy)
    for to in WRITERS:
        convert(source, tmp_path / to, to)
        dataset = open_dataset(tmp_path / to, "val")
        assert dataset.counts["clipped_boxes"] == dataset.counts["zero_area_boxes"] == 0
        assert_same(tmp_path / to, source)
    with pytest.raises(UserError, match="annotation 1"):
        convert(source, tmp_path / "strict", "coco", strict=True)


def test_exif_is_applied_in_tfrecords(tmp_path):
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(pixels).save(source / "images/a.jpg", exif=exif, quality=95)
    write_json(source / "val.json", coco(["a.jpg", "a.jpg"]) | {"images": coco(["a.jpg"])["images"]})
    for to in WRITERS:
        convert(source, tmp_path / to, to)
        assert_same(tmp_path / to, source)


def test_target_and_format_are_checked_first(tmp_path):
    source = make(tmp_path / "source")
    with pytest.raises(UserError, match="already holds files"):
        convert(source, source, "coco")
    with pytest.raises(UserError, match="format to write is 'voc2'"):
        convert(source, tmp_path / "target", "voc2")
    assert not (tmp_path / "target").exists()


def test_full_disk_leaves_nothing(tmp_path):
    source = make(tmp_path / "source")
    with pytest.raises(OSError, match=rf"{tmp_path}/target cannot be written: File too large"), tiny.disk(300):
        convert(source, tmp_path / "target", "yolo")
    assert not (tmp_path / "target").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=rf"TARGET .*{tmp_path}/file/new cannot be written: Not a directory"):
        convert(source, tmp_path / "file" / "new", "yolo")


def test_splits_with_other_classes_raise(tmp_path):
    source = make(tmp_path / "source")
    data = coco([f"val/{name}" for name in NAMES])
    data["categories"][1]["name"] = "fox"
    write_json(source / "val.json", data)
    with pytest.raises(UserError, match=r"train and val have different classes: id 2 is dog in train and fox in val\."):
        convert(source, tmp_path / "target", "coco")
    convert(source, tmp_path / "target", "yolo", classes=["cat"])
    assert open_dataset(tmp_path / "target", "val").class_names == ("cat",)


def test_outlines_of_masks_cover_their_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((12, 14), bool)
        for _ in range(3):
            y, x = rng.integers(0, 9, 2)
            mask[y : y + 3, x : x + 4] = True
        filled = np.zeros_like(mask)
        for polygon in polygons_of(mask):
            filled |= mask_of([polygon.ravel().tolist()], *mask.shape)
        assert (filled >= mask).all()
        joined = mask_of([join_polygons(polygons_of(mask)).ravel().tolist()], *mask.shape)
        np.testing.assert_array_equal(joined, filled)


def test_target_inside_the_source_raises(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=r"lies inside .*; expected a folder outside it"):
        convert(tmp_path, tmp_path / "new", "coco")


@pytest.mark.parametrize("to", sorted(WRITERS))
def test_flags_of_difficult_objects_survive_or_are_counted(tmp_path, to):
    def difficult(data):
        data["annotations"][0]["difficult"] = 1
        return data

    counts = convert(make(tmp_path / "source", difficult), tmp_path / "target", to)
    kept = sum(open_dataset(tmp_path / "target", split).counts.get("difficult_boxes", 0) for split in ("train", "val"))
    assert (kept, counts["lost"].get("difficult flags", 0)) == ((0, 2) if to == "yolo" else (2, 0))


@pytest.mark.parametrize("to", sorted(WRITERS))
def test_further_numbers_survive_or_are_counted(tmp_path, to):
    def further(data):
        for annotation in data["annotations"]:
            annotation.update(age=annotation["id"] + 0.5, angles=[1, 2], IsGroupOf=annotation["id"] == 1, note="wet")
        return data

    counts = convert(make(tmp_path / "source", further), tmp_path / "target", to)
    lost = {name: count for name, count in counts["lost"].items() if name != "masks"}
    if to != "coco":
        assert lost == {"values of age": 8, "values of angles": 8, "group flags": 2}
        return
    assert lost == {}
    annotations = json.loads((tmp_path / "target/val.json").read_text())["annotations"]
    assert [each["is_group_of"] for each in annotations] == [1, 0, 0, 0]
    (first, *_) = open_dataset(tmp_path / "target", "val", extra_annotation_keys=["age", "angles"]).records
    assert first.extra_values[0].tolist() == [1.5, 1, 2]


def fractions(polygon):
    return [[value / side for value, side in zip(polygon, (SIZE[1], SIZE[0]) * 4, strict=True)]]


@pytest.mark.parametrize(
    "fault, expected",
    [
        (fractions, r"no polygon has a coordinate above 1 \(first: annotation 1 .*Multiply the fractions"),
        (lambda polygon: {"size": [*SIZE], "counts": "b'PPY1'"}, 'annotation 1 has an RLE mask.*"counts"'),
        (lambda polygon: {"size": [9, 9], "counts": [81]}, r"annotation 1 has an RLE mask of size \[9, 9\]"),
        (lambda polygon: [[value + 100 for value in polygon]], "no mask covers a pixel .*annotation 1 has"),
    ],
)
def test_bad_masks_raise_the_same_error_in_check_convert_and_split(tmp_path, fault, expected):
    def with_faults(data):
        for annotation in data["annotations"]:
            annotation["segmentation"] = fault(annotation["segmentation"][0])
        for image in data["images"]:
            del image["height"], image["width"]
        return data

    source = make(tmp_path / "source", with_faults)
    with pytest.raises(UserError, match=rf"source \(train\): {expected}"):
        convert(source, tmp_path / "target", "coco")
    with pytest.raises(UserError, match=rf"source \(train\): {expected}"):
        split_dataset(source, tmp_path / "target", {"train": 0.5, "val": 0.5})
    assert not (tmp_path / "target").exists()
    assert re.search(expected, str(check(source)))


@pytest.mark.parametrize("categories", [["cat", "dog"], {"1": "cat"}])
def test_categories_of_another_form_raise(tmp_path, categories):
    picture(tmp_path / "data/images/a.png", 0)
    write_json(tmp_path / "data/all.json", {**coco(["a.png"]), "categories": categories})
    with pytest.raises(UserError, match='"categories" is not a list of JSON objects'):
        convert(tmp_path / "data", tmp_path / "new", to="coco")


def test_file_without_categories_is_an_error_of_check(tmp_path):
    picture(tmp_path / "images/a.png", 0)
    images = [{"id": 1, "file_name": "a.png"}]
    path = write_json(tmp_path / "captions.json", {"images": images, "annotations": [{"id": 1, "image_id": 1}]})
    assert 'has no "categories"; expected a COCO dataset' in str(check(path))


def test_ignored_annotations_are_counted(tmp_path):
    def with_a_flag(data):
        data["annotations"][0]["ignore"] = 1
        return data

    counts = convert(make(tmp_path / "source", with_a_flag), tmp_path / "target", "coco")
    assert counts["train"]["ignore_flags"] == 1


def test_masks_that_cover_no_pixel_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "kerasdet")

    def with_a_fraction(data):
        first, second, *_ = data["annotations"]
        first["segmentation"] = fractions(first["segmentation"][0])
        second.update(bbox=[5.6, 5, 0.3, 9], segmentation=[[5.6, 5, 5.9, 5, 5.9, 14, 5.6, 14]])  # too thin for a pixel
        return data

    source = make(tmp_path / "source", with_a_fraction)
    counts = convert(source, tmp_path / "yolo", "yolo")
    assert_same(tmp_path / "yolo", source)
    assert counts["train"]["empty_masks"] == counts["train"]["masks_outside_boxes"] == 1
    assert "1 masks that cover no pixel left out, but not their boxes (first: annotation 1" in caplog.text
    convert(source, tmp_path / "coco", "coco")
    written = [a["segmentation"] for a in json.loads((tmp_path / "coco/val.json").read_text())["annotations"]]
    assert written[0] == [] and written[1] == [[5.6, 5, 5.9, 5, 5.9, 14, 5.6, 14]]


@pytest.mark.parametrize("to", sorted(WRITERS))
def test_names_that_are_not_utf8_are_replaced(tmp_path, to, caplog):
    """Old archives hold such names, for example in Latin-1."""
    source = tmp_path / "source"
    for name in ("images/a.png", os.fsdecode(b"images/caf\xe9.png")):
        picture(source / name, seed=0)
        write_text((source / name.replace("images", "labels")).with_suffix(".txt"), "0 0.5 0.5 0.5 0.5\n")
    write_text(source / "data.yaml", "train: images\nnames: [cat]\n")
    with caplog.at_level("INFO", "kerasdet"):
        counts = convert(source, tmp_path / "target", to)
        data = open_dataset(source, "train")
    assert counts["train"]["undecodable_names"] == 1
    assert len(open_dataset(tmp_path / "target", "train").records) == 2
    assert fingerprint(data).startswith("2 images of 1 classes")
    assert r"caf\udce9.png" in caplog.text
    caplog.text.encode()  # logs can be written to files
    if to == "coco":
        next(iter(training_batches(data, 2)))


@pytest.mark.parametrize(("to", "file", "count"), [("yolo", "images/train/a.png", 3), ("voc", "Annotations/a.xml", 6)])
def test_hidden_folders_are_left_out(tmp_path, to, file, count):
    convert(make(tmp_path / "source"), tmp_path / "target", to)
    shutil.rmtree(tmp_path / "target/ImageSets", ignore_errors=True)
    copied = tmp_path / "target" / file
    copy = copied.parent / ".ipynb_checkpoints" / f"a-checkpoint{copied.suffix}"
    copy.parent.mkdir()
    shutil.copy(copied, copy)
    assert len(open_dataset(tmp_path / "target", "train" if to == "yolo" else None).records) == count


def test_renamed_images_are_counted(tmp_path):
    counts = convert(make(tmp_path / "source"), tmp_path / "target", "coco")
    assert counts["train"]["renamed_images"] == 0 and counts["val"]["renamed_images"] == len(NAMES)
