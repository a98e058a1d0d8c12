import json

import numpy as np
import pytest
from foreign_data import SIZE, boxes_of, coco, picture, png_base64, write_json, write_labelme, write_text
from PIL import Image

from kerasdet.data import evaluation_batches, open_dataset
from kerasdet.errors import UserError


def write(folder, shapes, **keys):
    picture(folder / "a.png", 0)
    data = {"shapes": shapes, "imagePath": "a.png", "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    write_json(folder / "a.json", data | keys)


def test_files_match_their_source(tmp_path):
    data = coco(["a.png", "b.png", "c.png"])
    for seed, image in enumerate(data["images"]):
        picture(tmp_path / "images" / image["file_name"], seed)
    write_labelme(tmp_path / "labelme", data, tmp_path / "images")
    dataset = open_dataset(tmp_path / "labelme")
    assert dataset.class_names == ("cat", "dog")
    for record in dataset.records:
        np.testing.assert_allclose(record.boxes, np.reshape(boxes_of(data, record.image_id), (-1, 4)))
    assert dataset.records[0].class_ids.tolist() == [0, 1]


def test_shapes(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 1
    write(
        tmp_path,
        [
            {"label": "x", "points": [[30, 20], [10, 5]], "shape_type": "rectangle"},
            {"label": "x", "points": [[1, 2], [11, 2], [6, 12]], "shape_type": "polygon"},
            {"label": "x", "points": [[30, 20], [30, 30]], "shape_type": "circle"},
            {"label": "x", "points": [[20, 30], [27, 35]], "shape_type": "mask", "mask": png_base64(mask * 255)},
            {"label": "x", "points": [[1, 1]], "shape_type": "point"},
            {"label": "x", "points": [[1, 1], [5, 5]], "shape_type": "linestrip"},
        ],
    )
    dataset = open_dataset(tmp_path, masks=True)
    rectangle, polygon, circle, drawn = dataset.records[0].boxes
    assert rectangle.tolist() == [5, 10, 20, 30]
    assert polygon.tolist() == [2, 1, 12, 11]
    np.testing.assert_allclose(circle, [10, 20, 30, 40], atol=0.3)
    assert drawn.tolist() == [31, 22, 34, 27]
    assert dataset.counts["shapes_without_area"] == 2
    masks = next(iter(evaluation_batches(dataset, 1)))["masks"].numpy()[0]
    assert (masks[3] > 127).all()  # the mask fills its box
    assert 0.7 < (masks[2] > 127).mean() < 0.85  # pi / 4
    with pytest.raises(UserError, match="shape 5 is a point"):
        open_dataset(tmp_path, strict=True)


def test_shapes_of_a_group_are_one_object(tmp_path):
    part = {"label": "x", "shape_type": "rectangle", "group_id": 1}
    write(tmp_path, [{**part, "points": [[1, 1], [5, 5]]}, {**part, "points": [[20, 20], [30, 30]]}])
    assert open_dataset(tmp_path).records[0].boxes.tolist() == [[1, 1, 30, 30]]


def test_image_inside_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    shape = {"label": "x", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}
    write(tmp_path, [shape], imageData=png_base64(pixels), imagePath="..\\photos\\gone.png")
    (tmp_path / "a.png").unlink()
    batch = next(iter(evaluation_batches(open_dataset(tmp_path), 1, size_divisor=1)))
    np.testing.assert_array_equal(batch["image"][0], pixels)


def test_windows_path_leads_to_the_image(tmp_path):
    write(tmp_path / "labels", [], imagePath="..\\images\\a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "labels/a.png").rename(tmp_path / "images/a.png")
    write_text(tmp_path / "labels.txt", "__ignore__\n_background_\nx\n")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("x",)
    with Image.open(dataset.records[0].path) as image:
        assert image.size == SIZE[::-1]


def test_splits_share_the_classes(tmp_path):
    for split, label in (("train", "cat"), ("val", "dog")):
        write(tmp_path / split, [{"label": label, "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}])
    for split, class_id in (("train", 0), ("val", 1)):
        dataset = open_dataset(tmp_path, split)
        assert dataset.class_names == ("cat", "dog")
        assert dataset.records[0].class_ids.tolist() == [class_id]


@pytest.mark.parametrize(
    "shape,expected",
    [
        ({"label": "x", "points": [[1, 2]], "shape_type": "polygon"}, "shape 1 is a polygon"),
        ({"label": "x", "points": [[1, "a"], [2, 2]], "shape_type": "rectangle"}, "shape 1 is a rect"),
        ({"label": "x", "points": [[1, 1], [2, 2]], "shape_type": "star"}, "shape 1 is a star"),
        ({"label": "x", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "??"}, "mask"),
    ],
)
def test_bad_shape_is_named(tmp_path, shape, expected):
    write(tmp_path, [shape])
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(tmp_path)
    assert str(tmp_path / "a.json") in str(error.value)


def test_damaged_image_data_is_named(tmp_path):
    write(tmp_path, [{"label": "x", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}], imageData="AAAA")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.json.*imageData"):
        open_dataset(tmp_path)


def test_damaged_file_among_others_is_named(tmp_path):
    write(tmp_path, [{"label": "x", "points": [[1, 1], [5, 5]], "shape_type": "rectangle"}])
    write_text(tmp_path / "b.json", json.dumps({"shapes": []})[:-1])
    with pytest.raises(UserError, match=r"b\.json is not valid JSON"):
        open_dataset(tmp_path)


def rectangle(label, corner, **keys):
    y, x = corner
    return {"label": label, "points": [[x, y], [x + 8, y + 6]], "shape_type": "rectangle", **keys}


def test_size_of_the_file_must_be_the_image_s(tmp_path):
    write(tmp_path, [rectangle("x", (1, 1))], imageHeight=SIZE[0] // 2, imageWidth=SIZE[1] // 2)
    with pytest.raises(UserError, match=r"a.png: is 48x64 .* but the annotations say 24x32"):
        open_dataset(tmp_path)


def test_group_0_of_all_shapes_is_no_group(tmp_path):
    write(tmp_path, [rectangle("x", (1, 1), group_id=0), rectangle("x", (20, 20), group_id=0)])
    dataset = open_dataset(tmp_path, strict=True)
    assert dataset.records[0].boxes.tolist() == [[1, 1, 7, 9], [20, 20, 26, 28]]
    assert dataset.counts["default_groups"] == 1
    write(tmp_path, [rectangle("x", (1, 1), group_id=0), rectangle("x", (20, 20), group_id=0), rectangle("x", (9, 9))])
    dataset = open_dataset(tmp_path, strict=True)
    assert dataset.records[0].boxes.tolist() == [[1, 1, 26, 28], [9, 9, 15, 17]]
    assert dataset.counts["joined_shapes"] == 1


def test_labels_lose_spaces_and_images_without_a_file_are_counted(tmp_path):
    write(tmp_path, [rectangle("x", (1, 1)), rectangle("x ", (20, 20))])
    picture(tmp_path / "b.png", 1)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("x",)
    assert dataset.counts["boxes"] == 2
    assert [problem.item for problem in dataset.problems] == [str(tmp_path / "b.png")]


def test_bad_shapes_are_skipped_on_request(tmp_path):
    rotated = {"label": "x", "points": [[1, 1], [20, 1], [20, 9], [1, 9]], "shape_type": "rotation"}
    write(tmp_path, [rotated, rectangle("x", (20, 20))])
    dataset = open_dataset(tmp_path, on_bad_object="skip")
    assert (dataset.counts["boxes"], dataset.counts["bad_objects"]) == (1, 1)
    assert dataset.problems[0].item == f"{tmp_path / 'a.json'}: shape 1"
    assert dataset.problems[0].text.startswith("is a rotation, a rotated rectangle of X-AnyLabeling")


def test_file_of_another_image_raises(tmp_path):
    write(tmp_path, [rectangle("x", (1, 1))])
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    picture(tmp_path / "b.png", 1)
    with pytest.raises(
        UserError, match=r"b.json refers to 'a.png' in imagePath, but b.png, which also exists, matches the file name"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize("listed", ["", "__ignore__\n_background_\nx\n"])
def test_labels_that_mean_no_object_are_left_out(tmp_path, listed):
    write(tmp_path, [rectangle("__ignore__", (20, 20)), rectangle("x", (1, 1)), rectangle("_background_", (9, 9))])
    write_text(tmp_path / "labels.txt", listed)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("x",)
    assert dataset.records[0].boxes.tolist() == [[1, 1, 7, 9]]
    assert dataset.counts["ignored_shapes"] == 2


def test_points_and_shapes_without_a_label_make_no_class(tmp_path):
    point = {"label": "p", "points": [[1, 1]], "shape_type": "point"}
    write(tmp_path, [point, {"points": [[1, 1]]}, rectangle("x", (1, 1))])
    dataset = open_dataset(tmp_path, on_bad_object="skip")
    assert dataset.class_names == ("x",)
    assert (dataset.counts["shapes_without_area"], dataset.counts["bad_objects"]) == (1, 1)
    with pytest.raises(UserError, match=r'a\.json: shape 2 is .* expected an object with a "label"'):
        open_dataset(tmp_path)
