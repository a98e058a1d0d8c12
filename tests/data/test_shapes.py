"""Tests the generated dataset with readers that did not write it: pycocotools and NumPy."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from kerasdet.data import shapes

SIZE = (96, 128)
SCALE = (0.2, 0.5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes") / "set", num_images=150, image_size=SIZE, scale=SCALE)


@pytest.fixture(scope="module")
def coco(path):
    return COCO(path)


def _files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def _keypoints(annotation):
    return np.array(annotation["keypoints"]).reshape(4, 3)


def test_seed_decides_every_byte(tmp_path):
    first = shapes.write(tmp_path / "a", num_images=4, seed=3).parent
    second = shapes.write(tmp_path / "b", num_images=4, seed=3).parent
    other = shapes.write(tmp_path / "c", num_images=4, seed=4).parent
    assert _files(first) == _files(second)
    assert not set(_files(first).values()) & set(_files(other).values())


def test_longer_dataset_begins_with_the_shorter(tmp_path):
    short = shapes.write(tmp_path / "short", num_images=2)
    long = shapes.write(tmp_path / "long", num_images=5)
    for name in ("000001.jpg", "000002.jpg"):
        assert (short.parent / "images" / name).read_bytes() == (long.parent / "images" / name).read_bytes()
    few, many = json.loads(short.read_text())["annotations"], json.loads(long.read_text())["annotations"]
    assert few == many[: len(few)]


def test_files_and_ids_follow_the_coco_layout(path, coco):
    assert path.name == "annotations.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["annotations.json", "images"]
    assert sorted(p.name for p in (path.parent / "images").iterdir()) == [f"{i:06d}.jpg" for i in range(1, 151)]
    for image in coco.dataset["images"][:10]:
        with Image.open(path.parent / "images" / image["file_name"]) as picture:
            assert picture.mode == "RGB"
            assert picture.size == (image["width"], image["height"]) == (SIZE[1], SIZE[0])
    assert [a["id"] for a in coco.dataset["annotations"]] == list(range(1, len(coco.anns) + 1))
    assert sorted(coco.cats) == [1, 2, 3, 4, 5]
    assert [c["name"] for c in coco.dataset["categories"] if "keypoints" in c] == ["arrow"]


def test_boxes_and_areas_match_the_masks(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert mask.shape == SIZE
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x, y, x + width, y + height)
        assert annotation["area"] == mask.sum() > 0
        assert annotation["iscrowd"] == 0


def test_masks_of_an_image_are_disjoint(coco):
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image_id))]
        assert np.sum(masks, axis=0).max() <= 1


def test_keypoints_lie_on_their_arrows_with_true_visibility(coco):
    arrow = coco.getCatIds(["arrow"])[0]
    arrows = [a for a in coco.anns.values() if a["category_id"] == arrow]
    assert all("keypoints" not in a for a in coco.anns.values() if a["category_id"] != arrow)
    seen = Counter()
    for annotation in arrows:
        points = _keypoints(annotation)
        named = points[:, 2] > 0
        seen.update(points[:, 2].tolist())
        assert annotation["num_keypoints"] == named.sum()
        assert np.all((points[named, :2] >= 0) & (points[named, :2] < (SIZE[1], SIZE[0])))
        assert not points[~named].any()
        mask = np.pad(coco.annToMask(annotation), 1)
        for x, y, visibility in points:
            if visibility == 2:
                assert mask[y : y + 3, x : x + 3].any(), "A visible keypoint is not next to its arrow."
            if visibility == 1:
                others = coco.loadAnns(coco.getAnnIds(annotation["image_id"]))
                assert any(coco.annToMask(o)[y, x] for o in others if o["id"] > annotation["id"])
    assert min(seen[0], seen[1], seen[2]) > 0


def test_left_wing_is_left_when_seen_from_the_tail(coco):
    checked = 0
    for annotation in coco.anns.values():
        if annotation.get("num_keypoints") != 4:
            continue
        tip, left, right, tail = _keypoints(annotation)[:, :2].astype(float)
        (forward_x, forward_y), (across_x, across_y) = tip - tail, left - right
        assert forward_x * across_y - forward_y * across_x < 0  # y points down
        checked += 1
    assert checked > 30


def test_categories_are_balanced_and_arrows_point_everywhere(coco):
    counts = Counter(a["category_id"] for a in coco.anns.values())
    mean = len(coco.anns) / 5
    assert all(0.7 * mean < counts[k] < 1.3 * mean for k in coco.cats)
    quadrants = Counter()
    for annotation in coco.anns.values():
        if annotation.get("num_keypoints") == 4:
            tip, _, _, tail = _keypoints(annotation)[:, :2]
            quadrants[tuple(tip > tail)] += 1
    assert len(quadrants) == 4


def test_colours_do_not_reveal_the_class(path, coco):
    """Classifies by the nearest mean colour of a class, which must be little better than chance."""
    colours, classes = [], []
    for annotation in coco.anns.values():
        image = np.asarray(Image.open(path.parent / "images" / coco.imgs[annotation["image_id"]]["file_name"]))
        colours.append(image[coco.annToMask(annotation) > 0].mean(axis=0))
        classes.append(annotation["category_id"])
    colours, classes = np.array(colours), np.array(classes)
    half = len(classes) // 2
    means = np.array([colours[:half][classes[:half] == k].mean(axis=0) for k in range(1, 6)])
    guesses = np.linalg.norm(colours[half:, None] - means, axis=-1).argmin(axis=1) + 1
    assert np.mean(guesses == classes[half:]) < 0.35


def test_occlusion_happens_but_leaves_shapes_visible(coco):
    """Uses that a whole disk fills pi / 4 of its box; a disk that fills less is partly hidden."""
    disk, square = coco.getCatIds(["disk"])[0], coco.getCatIds(["square"])[0]
    overlapping = 0
    for image_id in coco.imgs:
        boxes = [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(image_id))]
        for i, (x, y, w, h) in enumerate(boxes):
            overlapping += any(x < p + r and p < x + w and y < q + s and q < y + h for p, q, r, s in boxes[:i])
    assert overlapping > 30
    fills = [a["area"] / (a["bbox"][2] * a["bbox"][3]) for a in coco.anns.values() if a["category_id"] == disk]
    assert min(fills) < 0.7 < np.pi / 4 - 0.05 < np.median(fills)
    smallest = min(a["area"] for a in coco.anns.values() if a["category_id"] == square)
    assert smallest > 0.25 * 0.5 * (SCALE[0] * SIZE[0]) ** 2 * 0.7


def test_scale_limits_the_size_of_shapes(coco):
    least, greatest = SCALE[0] * SIZE[0], SCALE[1] * SIZE[0]
    whole = []
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        assert max(width, height) <= greatest + 2
        only = len(coco.getAnnIds(annotation["image_id"])) == 1
        if only and x > 0 and y > 0 and x + width < SIZE[1] and y + height < SIZE[0]:
            whole.append(max(width, height))
    assert min(whole) >= least - 2
    assert max(whole) > 1.8 * min(whole)


def test_objects_limits_the_number_of_shapes(tmp_path):
    path = shapes.write(tmp_path / "set", num_images=40, objects=(0, 2))
    annotations = json.loads(path.read_text())["annotations"]
    counts = Counter(a["image_id"] for a in annotations)
    assert {counts[i] for i in range(1, 41)} == {0, 1, 2}


def test_write_keeps_an_existing_dataset(tmp_path):
    folder = tmp_path / "new" / "set"
    path = shapes.write(folder, num_images=2)
    before = path.stat().st_mtime_ns
    assert shapes.write(folder, num_images=2) == path
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == ["set"], "A temporary folder is left."


def test_write_fills_an_empty_folder(tmp_path):
    (tmp_path / "set").mkdir()
    assert shapes.write(tmp_path / "set", num_images=1).exists()


def test_write_refuses_a_folder_with_other_contents(tmp_path):
    shapes.write(tmp_path / "set", num_images=2)
    with pytest.raises(
        ValueError, match=r"holds a generated shapes dataset with num_images=\d+; expected num_images=\d+\. Use"
    ):
        shapes.write(tmp_path / "set", num_images=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="files that are not generated shapes"):
        shapes.write(tmp_path / "mine", num_images=2)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    with pytest.raises(ValueError, match="is a file"):
        shapes.write(tmp_path / "mine" / "notes.txt", num_images=2)


def test_failed_write_leaves_no_files(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        shapes.write(tmp_path / "set", num_images=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"image_size": (8, 128)}, "image_size"),
        ({"objects": (3, 2)}, "objects"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"scale": (0.01, 0.5)}, "shorter than 6 pixels"),
    ],
)
def test_arguments_out_of_range_raise(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes.write(tmp_path / "set", **({"num_images": 1} | arguments))
    assert not list(tmp_path.iterdir())
