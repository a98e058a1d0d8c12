import numpy as np
import pytest
import tensorflow as tf
from foreign_data import SIZE, coco, picture, write_json, write_text

from kerasdet.data import (
    CocoDataset,
    VocDataset,
    dataset_from_examples,
    evaluation_batches,
    open_dataset,
    training_batches,
)
from kerasdet.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
BOXES = [[1, 2, 11, 22], [5, 5, 9, 9]]


@pytest.mark.parametrize(
    "files,expected",
    [
        ({}, "is empty"),
        ({"a.png": None}, "holds 1 .png; .* Put the annotations"),
        ({"a.png": None, "labels.csv": "a,b"}, "Export the CSV again"),
        ({"a.png": None, "annotations.xml": "<?xml?><annotations></annotations>"}, "CVAT's own XML"),
        ({"a.png": None, "labels/a.txt": "0 0.5 0.5 0.5 0.5"}, 'add a data.yaml with "names"'),
        ({"a.zip": ""}, "Unpack the archive"),
        ({"a.doc": ""}, "Export the annotations in one of these formats"),
        ({"images/a.png": None, "annotations.xml": "<annotations></annotations>"}, "CVAT's own XML"),
        ({"images/a.png": None, "data.yaml": "names:\n\t- cat"}, r"data\.yaml is not valid YAML"),
        ({"images/a.png": None, "data.yaml": "names: [cat]"}, r"data\.yaml names no folder of images; .* train:"),
        ({"images/a.png": None, "data.yaml": "train: images"}, r'data\.yaml has no "names"; expected the class names'),
        ({"project.json": '[{"id": 1, "data": {}, "annotations": []}]'}, "project.json holds tasks of Label Studio"),
        ({"a.json": '[{"image": "a.png", "annotations": []}]'}, "annotations of CreateML; .* as COCO or YOLO"),
    ],
)
def test_unknown_folder_says_what_to_do(tmp_path, files, expected):
    for name, text in files.items():
        picture(tmp_path / name, 0) if text is None else write_text(tmp_path / name, text)
    with pytest.raises(UserError, match=expected):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "name,text,expected",
    [
        ("a.json", '[{"image_id": 1, "score": 0.5}]', "holds detections"),
        ("a.json", '[{"id": 1, "data": {}, "annotations": []}]', "tasks of Label Studio"),
        ("a.zip", "", "is an archive"),
        ("a.txt", "", "has an unknown format"),
        ("a.json", "{", "not valid JSON"),
    ],
)
def test_unknown_file_says_what_to_do(tmp_path, name, text, expected):
    with pytest.raises(UserError, match=expected):
        open_dataset(write_text(tmp_path / name, text))


def test_missing_and_remote_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        open_dataset(tmp_path / "nothing")


def test_remote_path_names_reason_and_remedy():
    pytest.importorskip("tensorflow", minversion="2.17")
    with pytest.raises(UserError, match=r"is on s3, .*tensorflow-io.* up to TensorFlow 2\.16; this is .*local disk"):
        open_dataset("s3://bucket/data")


def test_remote_folder_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDET_HOME", str(tmp_path / "home"))
    picture(tmp_path / "data/images/a.png", 0)
    write_json(tmp_path / "data/train.json", coco(["a.png"]))
    dataset = open_dataset(f"file://{tmp_path}/data", "train")
    assert dataset.records[0].path.startswith(str(tmp_path / "home"))
    copy = next((tmp_path / "home").rglob("a.png"))
    before = copy.stat().st_mtime_ns
    assert len(open_dataset(f"file://{tmp_path}/data/", "train")) == 1
    assert copy.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="file:///nothing cannot be copied"):
        open_dataset("file:///nothing")


def test_archive_unpacked_into_its_own_folder(tmp_path, caplog):
    root = tmp_path / "pets" / "pets"
    picture(root / "images/a.png", 0)
    write_json(root / "train.json", coco(["a.png"]))
    write_text(tmp_path / "pets/__MACOSX/x", "")
    caplog.set_level("INFO", "kerasdet.data")
    assert len(open_dataset(tmp_path / "pets", "train")) == 1
    assert "COCO with the splits train" in caplog.text


def test_missing_split_names_the_remedy(tmp_path):
    picture(tmp_path / "images/a.png", 0)
    write_json(tmp_path / "data.json", coco(["a.png"]))
    with pytest.raises(UserError, match=r"no split train; .* kerasdet data split"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    "classes,names,class_ids",
    [
        (["dog", "cat"], ("dog", "cat"), [1, 0]),
        (["dog"], ("dog",), [0]),
        ({"cat": "pet", "dog": "pet"}, ("pet",), [0, 0]),
        ({"cat": "tiger"}, ("tiger", "dog"), [0, 1]),
        ({"cat": None}, ("dog",), [0]),
    ],
)
def test_classes_are_selected_and_merged(tmp_path, classes, names, class_ids):
    picture(tmp_path / "images/a.png", 0)
    picture(tmp_path / "images/b.png", 0)
    write_json(tmp_path / "data.json", coco(["a.png", "b.png"]))
    dataset = open_dataset(tmp_path, classes=classes)
    assert dataset.class_names == names
    assert dataset.records[0].class_ids.tolist() == class_ids
    truth = dataset.ground_truth
    assert [dataset.category_ids[i] for i in class_ids] == [a["category_id"] for a in truth["annotations"]]


@pytest.mark.parametrize(
    "classes,expected",
    [(["dgo"], "Did you mean 'dog'"), ({"x": "y"}, "no class 'x'"), ([], "leaves no class"), ("dog", "is the string")],
)
def test_wrong_classes_are_named(tmp_path, classes, expected):
    picture(tmp_path / "images/a.png", 0)
    write_json(tmp_path / "data.json", coco(["a.png"]))
    with pytest.raises(UserError, match=expected):
        open_dataset(tmp_path, classes=classes)


def example(**changes):
    return {"image": PIXELS, "boxes": BOXES, "class_ids": [1, 0]} | changes


def test_examples_in_memory(tmp_path):
    path = picture(tmp_path / "a.png", 1)
    examples = [example(), example(image=str(path)), example(image=PIXELS[:, :, 0], boxes=[], class_ids=[])]
    dataset = dataset_from_examples(examples, ["cat", "dog"])
    batch = next(iter(evaluation_batches(dataset, 3, size_divisor=1)))
    np.testing.assert_array_equal(batch["image"][0], PIXELS)
    np.testing.assert_array_equal(batch["image"][1], tf.io.decode_png(path.read_bytes()))
    np.testing.assert_array_equal(batch["image"][2], np.repeat(PIXELS[:, :, :1], 3, 2))
    np.testing.assert_array_equal(batch["boxes"][0], BOXES)
    np.testing.assert_array_equal(batch["class_ids"], [[1, 0], [1, 0], [-1, -1]])


def test_tf_data_with_masks_and_keypoints():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 1:11, 2:22], masks[1, 5:9, 5:9] = True, True
    points = np.float32([[[3, 4, 2], [10.5, 20, 1]], [[6, 7, 2], [0, 0, 0]]])
    one = example(masks=masks, keypoints=points, is_crowd=[False, True], image_id=7)
    data = tf.data.Dataset.from_tensors({key: np.asarray(value) for key, value in one.items()})
    dataset = dataset_from_examples(data, ["cat", "dog"], keypoint_names=["left_ear", "right_ear"], masks=True)
    record = dataset.records[0]
    assert record.image_id == 7
    np.testing.assert_array_equal(record.keypoints, points)
    assert record.is_crowd.tolist() == [False, True]
    batch = next(iter(training_batches(dataset, 1)))
    assert (batch["masks"].numpy() == 255).all()


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"image": PIXELS / 255}, "image of type float64"),
        ({"image": PIXELS[None]}, "image of shape"),
        ({"class_ids": [0, 2]}, "class id 2; expected 0 to 1"),
        ({"class_ids": [0]}, "2 boxes, 1 class_ids"),
        ({"boxes": [[1, 2, 3]] * 2}, r"boxes of shape \(2, 3\)"),
        ({"box": BOXES}, "the key 'box'"),
        ({"masks": np.zeros((2, 5, 5))}, "masks of shape"),
    ],
)
def test_bad_example_is_named(changes, expected):
    with pytest.raises(UserError, match=f"Example 1 .*{expected}"):
        dataset_from_examples([example(), example(**changes)], ["cat", "dog"])


def test_masks_of_an_example_without_its_image_raise():
    with pytest.raises(UserError, match=r"Example 0 has masks, but its image /missing\.png does not exist"):
        dataset_from_examples([example(image="/missing.png", masks=np.ones((2, 8, 8)))], ["cat", "dog"])


def test_no_examples_raise():
    with pytest.raises(UserError, match="no examples"):
        dataset_from_examples(iter([]), ["cat"])


@pytest.mark.parametrize(
    "classes,expected",
    [
        ({"dog": False}, "classes maps 'dog' to False; expected the new name, or None"),
        ({"dog": 1}, "classes maps 'dog' to 1"),
        ({"dog": " "}, "classes maps 'dog' to ' '"),
        (["dog", "dog"], "classes has 'dog' twice"),
        (2, "classes is 2; expected a list of names"),
    ],
)
def test_wrong_choice_of_classes_raises(tmp_path, classes, expected):
    picture(tmp_path / "a.png", 0)
    path = write_json(tmp_path / "a.json", coco(["a.png"]))
    with pytest.raises(UserError, match=expected):
        open_dataset(path, classes=classes)


def test_two_examples_with_one_id_raise():
    with pytest.raises(UserError, match="Examples 0 and 2 have the same image_id 7; expected a unique id"):
        dataset_from_examples([example(image_id=7), example(), example(image_id=7)], ["cat", "dog"])


NAMES = {
    "examples": lambda names: dataset_from_examples([example()], names),
    "keypoints": lambda names: dataset_from_examples([example()], ["cat", "dog"], keypoint_names=names),
    "classes of a model": lambda names: dataset_from_examples([example()], ["cat", "dog"]).with_classes(names),
    "classes of VOC": lambda names: VocDataset("nothing", "train", class_names=names),
}


@pytest.mark.parametrize("call", NAMES)
@pytest.mark.parametrize(
    "names,expected",
    [("cat", r"the string 'cat'; .* Write \['cat'\]"), ({0: "cat"}, "expected a list of names"), ([1], "the item 1")],
)
def test_names_must_be_a_list_of_strings(call, names, expected):
    with pytest.raises(UserError, match=f"_names (is|has) .*{expected}"):
        NAMES[call](names)


EXAMPLES = {
    "empty names": ({}, [], "class_names is empty; expected the name of at least one class"),
    "ragged boxes": ({"boxes": [[1, 2, 3, 4], [1, 2]]}, ["a", "b"], "Example 0 has boxes .*; expected an array"),
    "texts as boxes": ({"boxes": [["a"] * 4] * 2}, ["a", "b"], "Example 0 has boxes .*; expected an array"),
    "text as id": ({"image_id": "a"}, ["a", "b"], "Example 0 has the image_id 'a'; expected an integer"),
    "texts as flags": ({"is_crowd": ["x", "y"]}, ["a", "b"], "Example 0 has is_crowd .*; expected an array"),
    "ragged image": ({"image": [[1, 2], [3]]}, ["a", "b"], "Example 0 has the image .*; expected an array"),
    "fractions": (
        {"boxes": [[0.1, 0.2, 0.3, 0.4]] * 2},
        ["a", "b"],
        r"first: \[0.1, 0.2, 0.3, 0.4\]\); expected \(y1, x1",
    ),
    "keypoints without names": (
        {"keypoints": np.ones((2, 3, 3))},
        ["a", "b"],
        "Example 0 has keypoints, but keypoint_names is empty",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_of_another_type_name_the_example(name):
    changes, names, expected = EXAMPLES[name]
    with pytest.raises(UserError, match=expected):
        dataset_from_examples([example(**changes)], names)


@pytest.mark.parametrize("path", [None, 3, ["mine"], {"images": []}])
def test_path_of_another_type_raises(path):
    with pytest.raises(UserError, match=r"The path of the dataset is .*: expected the path of a file or folder"):
        open_dataset(path)


@pytest.fixture
def two_files(tmp_path):
    picture(tmp_path / "images/a.png", 0)
    for split in ("train", "val"):
        write_json(tmp_path / f"{split}.json", coco(["a.png"]))
    return tmp_path


@pytest.mark.parametrize("split", [0, ["train", "val"]])
def test_split_of_another_type_raises(two_files, split):
    with pytest.raises(UserError, match=r"The split is .*; expected the name of one split, such as train, val"):
        open_dataset(two_files, split)


def test_file_of_another_split_leads_to_its_folder(two_files):
    with pytest.raises(UserError, match=rf"has no split val, only train; .* Give the folder {two_files}\."):
        open_dataset(two_files / "train.json", "val")


def test_pattern_and_folder_instead_of_a_file_say_so(two_files):
    with pytest.raises(UserError, match=r"\*\.json is a pattern of file names; .* Give the folder"):
        open_dataset(two_files / "*.json")
    with pytest.raises(UserError, match=f"{two_files} is a folder; expected a JSON file"):
        CocoDataset(two_files)


def test_limit_of_pixels_can_be_raised(two_files):
    with pytest.raises(
        UserError, match=r"more than max_pixels=9; pass max_pixels=.* \(gin: .*open_dataset\.max_pixels"
    ):
        open_dataset(two_files, "train", max_pixels=9)
    assert len(open_dataset(two_files, "train", max_pixels=SIZE[0] * SIZE[1])) == 1
    with pytest.raises(UserError, match=r"Dataset\.max_pixels is '2e8': expected a number of 1 or more\."):
        open_dataset(two_files, "train", max_pixels="2e8")
