import io
import itertools
import json
import logging

import numpy as np
import pytest
from conftest import shared
from PIL import Image

from kerasdet.data import CocoDataset, values
from kerasdet.errors import UserError


def jpeg(height, width, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def png(height, width):
    file = io.BytesIO()
    Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width)).save(file, "PNG")
    return file.getvalue()


def image(image_id=1, file_name="a.jpg", height=20, width=30):
    return {"id": image_id, "file_name": file_name, "height": height, "width": width}


def box(*xywh, annotation_id=1, image_id=1, category_id=7, **more):
    return {"id": annotation_id, "image_id": image_id, "category_id": category_id, "bbox": list(xywh), **more}


def write(folder, images=None, annotations=(), categories=((7, "cat"), (3, "dog")), files=None):
    """Writes a dataset of gray JPEGs; `files` {name: bytes} replaces the contents of files, None leaves one out."""
    images = [image()] if images is None else images
    contents = {item["file_name"]: jpeg(int(item["height"] or 1), item["width"]) for item in images} | (files or {})
    for name, content in contents.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    categories = [{"id": category_id, "name": name} for category_id, name in categories]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": categories}))
    return path


def test_records_follow_the_json(tmp_path):
    images = [image(5, "sub/b.jpg"), image(2, "a.jpg", 10, 12)]
    annotations = [
        box(1, 2, 3, 4, annotation_id=1, image_id=2),
        box(4, 5, 6, 7, annotation_id=2, image_id=5, category_id=3),
        box(0, 0, 12, 10, annotation_id=3, image_id=2, iscrowd=1),
    ]
    dataset = CocoDataset(write(tmp_path, images, annotations))
    assert (dataset.category_ids, dataset.class_names, dataset.num_classes) == ((3, 7), ("dog", "cat"), 2)
    assert [record.image_id for record in dataset.records] == [5, 2] and len(dataset) == 2
    first, second = dataset.records
    assert (second.height, second.width) == (10, 12) and first.path.endswith("sub/b.jpg")
    np.testing.assert_array_equal(first.boxes, [[5, 4, 12, 10]])
    np.testing.assert_array_equal(second.boxes, [[2, 1, 6, 4], [0, 0, 10, 12]])
    assert (second.boxes.dtype, second.class_ids.dtype, second.is_crowd.dtype) == (np.float32, np.int32, bool)
    assert first.class_ids.tolist() == [0] and second.class_ids.tolist() == [1, 1]
    assert second.is_crowd.tolist() == [False, True]
    with pytest.raises(ValueError, match="read-only"):
        second.boxes[0] = 0


def test_unusable_boxes_are_dropped_and_counted(tmp_path, caplog):
    annotations = [
        box(5, 5, 0, 5, annotation_id=1),
        box(5, 5, 4, -2, annotation_id=2),
        box(float("nan"), 5, 4, 4, annotation_id=3),
        box(30, 5, 4, 4, annotation_id=4),
        box(-9, -9, 4, 4, annotation_id=5),
        box(-2, 15, 10, 10, annotation_id=6),
        box(0, 0, 30.000001, 20, annotation_id=7),
        box(1, 1, 2, 2, annotation_id=7),
    ]
    with caplog.at_level(logging.INFO, "kerasdet"):
        dataset = CocoDataset(write(tmp_path, annotations=annotations))
    np.testing.assert_array_equal(dataset.records[0].boxes, [[15, 0, 20, 8], [0, 0, 20, 30], [1, 1, 3, 3]])
    assert dataset.counts == {
        "images": 1,
        "bad_images": 0,
        "images_without_objects": 0,
        "boxes": 3,
        "crowd_boxes": 0,
        "zero_area_boxes": 1,
        "negative_boxes": 1,
        "outside_boxes": 2,
        "clipped_boxes": 1,
        "duplicate_annotation_ids": 1,
        "infinite_boxes": 1,
    }
    assert "1 boxes without area dropped, 1 boxes of negative width or height dropped" in caplog.records[0].message


def test_images_without_objects_are_kept_or_dropped(tmp_path):
    images = [image(1, "a.jpg"), image(2, "b.jpg"), image(3, "c.jpg")]
    annotations = [box(1, 1, 5, 5, image_id=2), box(1, 1, 5, 5, annotation_id=2, image_id=3, iscrowd=1)]
    path = write(tmp_path, images, annotations)
    kept, dropped = CocoDataset(path), CocoDataset(path, keep_images_without_objects=False)
    assert [len(record.boxes) for record in kept.records] == [0, 1, 1]
    assert kept.records[0].boxes.shape == (0, 4)
    assert [record.image_id for record in dropped.records] == [2]
    assert kept.counts["images_without_objects"] == dropped.counts["images_without_objects"] == 2
    assert CocoDataset(write(tmp_path, images)).counts["boxes"] == 0


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"annotations": []}', 'no "images"'),
        ('{"images": {}, "annotations": [], "categories": []}', "not a list"),
        ('{"images": [], "annotations": [], "categories": []}', '"images" is empty'),
    ],
)
def test_json_that_is_not_coco_raises(tmp_path, content, message):
    path = write(tmp_path)
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        CocoDataset(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"annotations": [box(1, 2, 3, 4, annotation_id=8, image_id=99)]},
            "annotation 8 has the image_id 99, but no entry",
        ),
        (
            {"annotations": [box(1, 2, 3, 4, annotation_id=8, category_id=1)]},
            "annotation 8 has the category_id 1, but no entry",
        ),
        ({"annotations": [box(1, 2, 3, 4, annotation_id=8, image_id=[1])]}, "annotation 8 .*image_id"),
        ({"annotations": [box(1, 2, 3, annotation_id=8)]}, "annotation 8 has .* expected four numbers"),
        ({"annotations": [box(1, 2, 3, None, annotation_id=8)]}, "annotation 8 has .* expected four numbers"),
        ({"annotations": [{"id": 8, "image_id": 1, "category_id": 7}]}, 'annotation 8 has no "bbox"'),
        ({"annotations": [{"image_id": 1}]}, 'an annotation .* has no "category_id"'),
        ({"images": [image(), image(1, "b.jpg")]}, "two images share the id 1"),
        ({"images": [image("one")]}, r'images\[0\] .* expected an integer "id"'),
        ({"categories": ((1, "cat"), (1, "dog"))}, '"cat" and "dog" share the id 1'),
    ],
)
def test_errors_name_file_and_item(tmp_path, change, message):
    path = write(tmp_path, **change)
    with pytest.raises(UserError, match=message) as error:
        CocoDataset(path)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_paths_and_unknown_options_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        CocoDataset(tmp_path / "none.json")
    path = write(tmp_path)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        CocoDataset(path, images=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="on_bad_image is 'ignore'"):
        CocoDataset(path, on_bad_image="ignore")


def test_bad_images_raise_or_are_skipped(tmp_path, rng):
    damaged = bytearray(png(20, 30))
    damaged[60] ^= 0xFF
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(noise, "JPEG", quality=95)
    files = {
        "missing.jpg": None,
        "truncated.jpg": noise.getvalue()[:-300],
        "text.jpg": b"not an image",
        "empty.jpg": b"",
        "size.jpg": jpeg(21, 30),
        "short.png": png(20, 30)[:-12],
        "crc.png": bytes(damaged),
        "good.png": png(20, 30),
        "trailer.jpg": jpeg(20, 30) + bytes(9000),
    }
    path = write(tmp_path, [image(i, name) for i, name in enumerate(files)], files=files)
    with pytest.raises(ValueError, match=r"7 of 9 images.*missing\.jpg: does not exist.*truncated.*; \.\.\.") as error:
        CocoDataset(path)
    assert "size.jpg: is 21x30 (height x width), but the annotations say 20x30" in str(error.value)
    dataset = CocoDataset(path, on_bad_image="skip")
    assert [record.path.split("/")[-1] for record in dataset.records] == ["good.png", "trailer.jpg"]
    assert dataset.counts["bad_images"] == 7


def test_format_that_tensorflow_cannot_read_raises(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PPM")
    with pytest.raises(ValueError, match="is PPM; convert it"):
        CocoDataset(write(tmp_path, files={"a.jpg": file.getvalue()}))


def test_exif_applies_unless_sizes_are_those_of_stored_pixels(tmp_path):
    images = [image(1, "rotated.jpg", 30, 20), image(2, "stored.jpg", 20, 30), image(3, "turned.jpg", 20, 30)]
    files = {"rotated.jpg": jpeg(20, 30, 6), "stored.jpg": jpeg(20, 30, 6), "turned.jpg": jpeg(20, 30, 3)}
    dataset = CocoDataset(write(tmp_path, images, files=files))
    assert [record.exif for record in dataset.records] == [True, False, True]


@pytest.mark.parametrize("name, classes", [("bccd/train.json", 3), ("coco_cc/val.json", 80)])
def test_real_datasets_keep_every_image_and_box(name, classes):
    path = shared("data") / name
    dataset, data = CocoDataset(path), json.loads(path.read_text())
    assert dataset.num_classes == classes and len(dataset) == len(data["images"])
    assert dataset.counts["boxes"] == len(data["annotations"])
    total = sum(float(np.prod(r.boxes[:, 2:] - r.boxes[:, :2], axis=1).sum()) for r in dataset.records)
    np.testing.assert_allclose(total, sum(a["bbox"][2] * a["bbox"][3] for a in data["annotations"]), rtol=1e-4)


SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]
PERSON = {"id": 7, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}


def write_keypoints(folder, annotations, *categories, images=None):
    path = write(folder, images, annotations)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "categories": [{"id": 3, "name": "dog"}, *(categories or (PERSON,))]}))
    return path


def test_masks_become_run_lengths(tmp_path):
    images = [image(5, "b.jpg"), image(2, "a.jpg", 10, 12), image(9, "c.jpg")]
    annotations = [
        box(2, 2, 6, 6, annotation_id=1, image_id=2, segmentation=SQUARE),
        box(0, 0, 12, 10, annotation_id=2, image_id=2, iscrowd=1, segmentation={"size": [10, 12], "counts": [0, 120]}),
        box(1, 1, 5, 5, annotation_id=3, image_id=9, segmentation=[]),
        box(1, 1, 5, 5, annotation_id=4, image_id=9, segmentation=[[1, 1, 2, 2]]),
        box(0, 0, 2, 20, annotation_id=5, image_id=9, segmentation={"size": [20, 30], "counts": [0, 40, 560]}),
    ]
    path = write(tmp_path, images, annotations)
    dataset = CocoDataset(path, masks=True)
    empty, square, stripe = dataset.records
    assert dataset.counts["objects_without_mask"] == 2 and dataset.counts["boxes"] == 3
    assert len(empty.runs) == len(empty.num_runs) == 0
    assert square.num_runs.tolist() == [13, 2] and square.runs.tolist() == [22, *[6, 4] * 5, 6, 42, 0, 120]
    assert stripe.runs.tolist() == [0, 40, 560] and stripe.boxes.tolist() == [[0, 0, 20, 2]]
    plain = CocoDataset(path)
    assert plain.records[1].runs is None and plain.records[1].num_runs is None and plain.counts["boxes"] == 5


@pytest.mark.parametrize(
    "segmentation, message",
    [
        (None, 'no annotation has a "segmentation"'),
        ([], 'no annotation has a "segmentation"'),
        (
            [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]],
            "no polygon has a coordinate .*annotation 4 has .*; expected polygons in pixels",
        ),
        ([1, 2, 3, 4, 5, "x"], "annotation 4 has a polygon with the entry 'x'"),
        ({"size": [30, 20], "counts": [0, 600]}, r"annotation 4 has an RLE mask of size \[30, 20\], .* \[20, 30\]"),
        ({"size": [20, 30], "counts": [0, 60]}, "annotation 4 has an RLE mask of 60 pixels"),
        ({"size": [20, 30], "counts": "~~~"}, 'annotation 4 has an RLE mask whose compressed "counts" are damaged'),
    ],
)
def test_bad_masks_raise(tmp_path, segmentation, message):
    path = write(tmp_path, annotations=[box(1, 1, 5, 5, annotation_id=4, segmentation=segmentation)])
    with pytest.raises(ValueError, match=message) as error:
        CocoDataset(path, masks=True)
    assert str(path) in str(error.value)


def test_keypoints_become_pixel_centres(tmp_path):
    annotations = [
        box(1, 1, 9, 9, annotation_id=1, keypoints=[4, 5, 2, 0, 0, 0, 6.5, 7, 1]),
        box(1, 1, 9, 9, annotation_id=2, category_id=3),
        box(1, 1, 9, 9, annotation_id=3, image_id=2, keypoints=[0] * 9),
    ]
    path = write_keypoints(tmp_path, annotations, images=[image(1, "a.jpg"), image(2, "b.jpg")])
    dataset = CocoDataset(path, keypoints=True)
    assert dataset.keypoint_names == ("nose", "left_eye", "right_eye")
    assert dataset.skeleton == ((0, 1), (0, 2)) and dataset.keypoint_flip == (0, 2, 1)
    expected = [[[5.5, 4.5, 2], [0, 0, 0], [7.5, 7, 1]], [[0, 0, 0]] * 3]
    np.testing.assert_array_equal(dataset.records[0].keypoints, expected)
    assert dataset.records[0].keypoints.dtype == np.float32
    assert len(CocoDataset(path, keypoints=True, keep_images_without_objects=False)) == 1
    plain = CocoDataset(path, keep_images_without_objects=False)
    assert len(plain) == 2 and plain.records[0].keypoints is None and plain.keypoint_names == ()


def test_keypoints_outside_their_box_and_wrong_counts_of_them_are_counted(tmp_path):
    annotations = [
        box(1, 1, 9, 9, keypoints=[25, 15, 2, 0, 0, 0, 29, 19, 1], num_keypoints=2),
        box(1, 1, 9, 9, annotation_id=2, keypoints=[4, 5, 2, 11, 0, 2, 29, 19, 0], num_keypoints=3),
        box(8, 9, 9, 9, annotation_id=3, keypoints=[9, 9, 2, 12, 12, 2, 0, 0, 2], num_keypoints=3),
    ]
    dataset = CocoDataset(write_keypoints(tmp_path, annotations), keypoints=True)
    assert dataset.counts["keypoints_outside_boxes"] == 2 and dataset.counts["contradicting_counts"] == 1
    assert 'annotation 1 has "bbox" [1, 1, 9, 9] and a keypoint at [25, 15]' in [
        f"{each.item} {each.text}" for each in dataset.problems
    ]


@pytest.mark.parametrize(
    "keypoints, categories, message",
    [
        ([1, 2, 2], (PERSON,), "annotation 1 has .* expected 9 numbers"),
        ([1, 2, 3] * 3, (PERSON,), "annotation 1 has .* expected 9 numbers"),
        (["a"] * 9, (PERSON,), "annotation 1 has .* expected 9 numbers"),
        (
            [0.1, 0.1, 2] * 3,
            (PERSON,),
            r"no keypoint has a coordinate above 1 \(first: \[0.1, 0.1\]\); expected x and y",
        ),
        ([0] * 9, ({"id": 7, "name": "person"},), 'no category has "keypoints"'),
        ([0] * 9, (PERSON, {**PERSON, "id": 8, "keypoints": ["tail"]}), "categories 7 and 8 have different keypoints"),
        ([0] * 9, ({**PERSON, "skeleton": [[0, 3]]},), "pairs of numbers from 1 to 3"),
        ([0] * 9, ({**PERSON, "keypoints": "nose"},), "are 'nose'; expected a list of names"),
    ],
)
def test_bad_keypoints_raise(tmp_path, keypoints, categories, message):
    path = write_keypoints(tmp_path, [box(1, 1, 9, 9, keypoints=keypoints)], *categories)
    with pytest.raises(ValueError, match=message):
        CocoDataset(path, keypoints=True)


def test_run_lengths_of_real_masks_cover_the_image():
    dataset = CocoDataset(shared("data/coco_cc/val.json"), masks=True)
    for record in dataset.records:
        starts = np.cumsum([0, *record.num_runs])
        for start, end in itertools.pairwise(starts):
            assert record.runs[start:end].sum() == record.height * record.width


def test_problems_name_files_and_annotations(tmp_path):
    annotations = [
        box(5, 5, 0, 5, annotation_id=1),
        box(-2, 5, 10, 5, annotation_id=2),
        box(50, 5, 4, 4, annotation_id=3),
        box(1, 1, 4, 4, annotation_id=4) | {"image_id": "1"},
    ]
    path = write(tmp_path, [image(1), image(2, "b.jpg")], annotations, files={"b.jpg": None})
    dataset = CocoDataset(path, on_bad_image="skip")
    a, b = (str(tmp_path / "images" / name) for name in ("a.jpg", "b.jpg"))
    assert [(each.kind, each.item, each.text) for each in dataset.problems] == [
        ("bad_images", b, "does not exist"),
        ("converted_values", "annotation 4", "has \"image_id\" '1' instead of 1"),
        ("zero_area_boxes", f"annotation 1 of {a}", 'has "bbox" [5, 5, 0, 5]'),
        ("outside_boxes", f"annotation 3 of {a}", 'has "bbox" [50, 5, 4, 4]'),
        ("clipped_boxes", f"annotation 2 of {a}", 'has "bbox" [-2, 5, 10, 5]'),
    ]
    assert all(dataset.counts[each.kind] == 1 for each in dataset.problems)


def test_a_list_of_problems_ends_and_their_count_does_not(tmp_path):
    many = values.MAX_LISTED + 3
    dataset = CocoDataset(write(tmp_path, annotations=[box(5, 5, 0, 5, annotation_id=i) for i in range(many)]))
    assert len(dataset.problems) == values.MAX_LISTED and dataset.counts["zero_area_boxes"] == many


def test_strict_says_what_is_wrong_with_a_box(tmp_path):
    path = write(tmp_path, annotations=[box(5, 5, 0, 5, annotation_id=1)])
    with pytest.raises(UserError, match=r"annotation 1 of .*\[5, 5, 0, 5\] \(kind: zero area boxes\), which --strict"):
        CocoDataset(path, strict=True)
    path = write(tmp_path, annotations=[box("5", 5, 4, 5, annotation_id=1)])
    with pytest.raises(UserError, match=r"annotation 1 has .*\['5', 5, 4, 5\] instead of \[5\.0, 5\.0, 4\.0, 5\.0\]"):
        CocoDataset(path, strict=True)
