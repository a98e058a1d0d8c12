import re

import numpy as np
import pytest
from foreign_data import SIZE, coco, write_json
from PIL import Image, ImageEnhance

from kerasdet.data import open_dataset
from kerasdet.data.check import check
from kerasdet.data.duplicates import Fingerprints, fingerprints, near_duplicates
from kerasdet.data.split import assign, check_shares, split
from kerasdet.errors import UserError


def scene(seed, size=(96, 128)):
    """Returns a smooth random picture; different seeds give different pictures."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def make(root, pictures, *, split="all", change=lambda data: data):
    """Writes a COCO dataset of pictures."""
    names = [f"{split}_{number}.png" for number in range(len(pictures))]
    (root / "images").mkdir(parents=True, exist_ok=True)
    data = coco([*names, "spare.png"])
    data["images"].pop()
    for name, image, entry in zip(names, pictures, data["images"], strict=True):
        image.save(root / "images" / name)
        entry["width"], entry["height"] = image.size
    write_json(root / f"{split}.json", change(data))
    return root


def test_changed_copies_are_near_duplicates_and_others_are_not(tmp_path):
    original = scene(0)
    copies = [original, original.resize((256, 192)), ImageEnhance.Brightness(original).enhance(1.02)]
    original.save(tmp_path / "a.jpg", quality=60)
    copies.append(Image.open(tmp_path / "a.jpg"))
    dark = [Image.fromarray(np.full((*SIZE, 3), value, np.uint8)) for value in (0, 40)]
    root = make(tmp_path / "data", [scene(1), *copies, *(scene(seed) for seed in range(2, 8)), *dark])
    records = open_dataset(root).records
    assert near_duplicates(fingerprints(records)) == [[1, 2, 3, 4]]


def test_shares_of_every_class_are_kept():
    rng = np.random.default_rng(0)
    table = rng.poisson([3, 0.5, 0.1, 0.02], (1000, 4))
    owners = assign(table, [], [0.7, 0.2, 0.1], seed=1)
    for part, share in enumerate((0.7, 0.2, 0.1)):
        assert abs((owners == part).mean() - share) < 0.01
        got, wanted = table[owners == part].sum(0), share * table.sum(0)
        assert (np.abs(got - wanted) <= np.maximum(2, 0.02 * wanted)).all()


def test_groups_stay_together():
    table = np.random.default_rng(0).poisson(1, (100, 3))
    groups = [list(range(i, i + 5)) for i in range(0, 50, 5)]
    owners = assign(table, groups, [0.8, 0.2])
    assert all(len(set(owners[group])) == 1 for group in groups)
    assert (assign(table, groups, [0.8, 0.2]) == owners).all()
    assert (assign(table, groups, [0.8, 0.2], seed=1) != owners).any()
    assert 10 <= (owners == 1).sum() <= 30


def test_parts_hold_every_image_once_and_copies_together(tmp_path):
    pictures = [scene(seed) for seed in range(8)]
    source = make(tmp_path / "source", [*pictures, pictures[0], pictures[1]])
    counts = split(source, tmp_path / "target", {"train": 0.6, "val": 0.4})
    parts = {name: open_dataset(tmp_path / "target", name).records for name in ("train", "val")}
    assert {name: len(records) for name, records in parts.items()} == {n: counts[n]["images"] for n in parts}
    owner = {record.path.rsplit("_", 1)[1]: name for name, records in parts.items() for record in records}
    assert len(owner) == 10
    assert owner["0.png"] == owner["8.png"] and owner["1.png"] == owner["9.png"]
    assert counts["all"]["near_duplicates"] == 4
    assert sum(counts[name]["boxes of cat"] for name in parts) == 10


def test_splits_of_the_source_are_joined(tmp_path):
    for number, name in enumerate(("train", "val")):
        make(tmp_path / "source", [scene(10 * number + i) for i in range(4)], split=name)
    split(tmp_path / "source", tmp_path / "target", {"a": 0.5, "b": 0.5}, to="yolo")
    sizes = [len(open_dataset(tmp_path / "target", name)) for name in ("a", "b")]
    assert sizes == [4, 4]


def test_images_of_several_splits_count_once(tmp_path):
    for name in ("train", "trainval"):
        make(tmp_path / "data", [scene(seed) for seed in range(4)], split="x")
        (tmp_path / "data/x.json").rename(tmp_path / f"data/{name}.json")
    made = split(tmp_path / "data", tmp_path / "new", {"train": 0.5, "val": 0.5})
    assert made["train"]["images"] + made["val"]["images"] == 4


@pytest.mark.parametrize(
    "parts,expected",
    [({"train": 0.8, "val": 0.3}, "sum to 1.1"), ({"train": 1.2, "val": -0.2}, "positive"), ({}, "sum")],
)
def test_wrong_shares_raise(tmp_path, parts, expected):
    with pytest.raises(UserError, match=expected):
        split(make(tmp_path / "source", [scene(0)]), tmp_path / "target", parts)


def test_wrong_arguments_raise(tmp_path):
    source = make(tmp_path / "source", [scene(0)])
    for options, expected in (
        ({"seed": -1}, r"split\.seed is -1: expected an integer from 0"),
        ({"to": "pascal"}, "format to write is 'pascal'; expected one of coco"),
        ({"parts": ["train", "val"]}, "expected a share for each name"),
    ):
        with pytest.raises(UserError, match=expected):
            split(source, tmp_path / "target", **{"parts": {"train": 0.5, "val": 0.5}, **options})
        assert not (tmp_path / "target").exists()


def test_part_without_an_image_raises(tmp_path):
    with pytest.raises(UserError, match="gets none of the"):
        split(make(tmp_path / "source", [scene(0)]), tmp_path / "target", {"train": 0.8, "val": 0.2})


def test_clean_dataset_has_no_errors(tmp_path):
    report = check(make(tmp_path, [scene(seed) for seed in range(3)], split="train"), strict=True)
    assert report.errors == []
    assert "train: 3 images, 6 objects" in str(report)
    assert "cat  3" in str(report)


def test_faults_are_listed(tmp_path):
    def spoil(data):
        data["annotations"][0]["bbox"] = ["3", "3", "10", "10"]
        data["annotations"][1]["bbox"] = [3, 3, 0, 10]
        return data

    make(tmp_path, [scene(seed) for seed in range(4)], split="train", change=spoil)
    make(tmp_path, [scene(0), scene(9)], split="val")
    for name, content in (("train_2.png", None), ("train_3.png", b"no image")):
        (tmp_path / "images" / name).unlink() if content is None else (tmp_path / "images" / name).write_bytes(content)
    report = check(tmp_path)
    text = str(report)
    assert len(report.errors) == 2
    for part in ("train_2.png does not exist", "train_3.png is not a", "annotation 1 has", "annotation 2 "):
        assert part in text
    assert "near duplicates in train" in text and "groups of near duplicates in several splits: 1" in text
    assert len(check(tmp_path, strict=True).errors) == 4


def test_near_duplicates_in_one_split_are_named(tmp_path):
    text = str(check(make(tmp_path, [scene(0), scene(1), scene(0)], split="train")))
    assert "images that are near duplicates of others: 2" in text
    assert re.search(r"near duplicates in train: \S+train_0\.png, \S+train_2\.png$", text, re.MULTILINE)
    assert "train_1.png" not in text and "several splits" not in text


def test_every_unreadable_object_is_listed(tmp_path):
    def spoil(data):
        for number, segmentation in enumerate([[["a", 1, 2, 3, 4, 5]], {"size": [2, 2], "counts": [1]}, None]):
            data["annotations"][number]["segmentation"] = segmentation
        data["annotations"][2]["bbox"] = [1, 2, 3]
        height, width = (data["images"][0][key] for key in ("height", "width"))
        data["annotations"][3]["segmentation"] = {"size": [height, width], "counts": "broken"}
        return data

    make(tmp_path, [scene(seed) for seed in range(3)], split="train", change=spoil)
    assert len(check(tmp_path).errors) == 1  # without masks, which one object lacks
    dataset = open_dataset(tmp_path, "train", masks=True, on_bad_object="skip")
    assert [problem.item for problem in dataset.problems] == [f"annotation {n}" for n in (1, 2, 3, 4)]
    assert dataset.counts["boxes"] == len(dataset.ground_truth["annotations"]) == 2
    with pytest.raises(UserError, match="annotation 1 has a polygon"):
        open_dataset(tmp_path, "train", masks=True)


def test_groups_equal_those_of_all_pairs():
    rng = np.random.default_rng(0)
    own = rng.integers(0, 9, 100)
    bits = (rng.random((9, 128)) < 0.5)[own] ^ (rng.random((100, 128)) < 0.05)
    thumbnails = np.float32(rng.uniform(0, 255, (9, 256))[own] + rng.normal(0, 5, (100, 256)))
    near = (bits[:, None] != bits).sum(2) <= 10
    near &= np.abs(thumbnails[:, None] - thumbnails).mean(2) <= 6
    reach = np.linalg.matrix_power(near.astype(float), 100) > 0
    groups = near_duplicates(Fingerprints(bits, thumbnails))
    assert {tuple(group) for group in groups} == {tuple(np.flatnonzero(row)) for row in reach if row.sum() > 1}
    assert len(groups) > 3


def test_thousands_of_equal_images_are_compared_in_one_pass():
    many = Fingerprints(np.ones((30_000, 128), bool), np.zeros((30_000, 256), np.float32))
    assert near_duplicates(many) == [list(range(30_000))]  # all pairs would take hours


def test_unreadable_split_does_not_hide_the_other(tmp_path):
    make(tmp_path, [scene(0)], split="train")
    make(tmp_path, [scene(1)], split="val", change=lambda data: data | {"categories": []})
    report = check(tmp_path)
    assert len(report.errors) == 1 and "categories" in report.errors[0]
    assert "train: 1 images" in str(report)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data | {"categories": ["cat", "dog"]}, r'"categories" is not a list of JSON objects'),
        (lambda data: data | {"annotations": [*data["annotations"], None]}, r'"annotations" is not a list'),
        (lambda data: data | {"images": [data["images"][0] | {"file_name": "a\0.png"}]}, "without a null byte"),
        (lambda data: data | {"images": [data["images"][0] | {"file_name": "gone.png"}]}, "gone.png does not exist"),
    ],
)
def test_unusable_contents_are_reported(tmp_path, change, expected):
    report = check(make(tmp_path, [scene(0)], split="train", change=change))
    assert re.search(expected, "\n".join(report.errors))


def test_xml_of_an_encoding_that_python_lacks_is_reported(tmp_path):
    scene(0).save(tmp_path / "a.png")
    text = '<?xml version="1.0" encoding="gbk"?><annotation><object><name>猫</name></object></annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("gbk"))
    assert "save it as UTF-8" in check(tmp_path).errors[0]


def test_parts_of_one_split_raise():
    with pytest.raises(UserError, match="names val and valid mean the same split"):
        check_shares({"train": 0.5, "val": 0.25, "valid": 0.25})


def test_split_without_objects_is_an_error(tmp_path):
    report = check(make(tmp_path, [scene(0)], split="train", change=lambda data: data | {"annotations": []}))
    assert report.errors == ["no image has an object, so there is nothing to train on: annotate objects"]
