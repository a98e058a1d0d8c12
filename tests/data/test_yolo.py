import numpy as np
import pytest
from foreign_data import SIZE, picture, write_text

from kerasdet.data import open_dataset
from kerasdet.errors import UserError

H, W = SIZE
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def make(root, labels, *, yaml=YAML, split="train"):
    """Writes images with label files; None leaves the file out."""
    for number, text in enumerate(labels):
        picture(root / "images" / split / f"{number}.png", number)
        if text is not None:
            write_text(root / "labels" / split / f"{number}.txt", text)
    write_text(root / "data.yaml", yaml)
    return root


def test_boxes_and_polygons_become_pixels(tmp_path):
    make(tmp_path, ["1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.25 0.5 0.75", "", None])
    dataset = open_dataset(tmp_path, "train")
    np.testing.assert_allclose(dataset.records[0].boxes, [[12, 24, 36, 40], [12, 16, 36, 32]])
    assert dataset.records[0].class_ids.tolist() == [1, 0]
    assert [len(record.boxes) for record in dataset.records] == [2, 0, 0]
    assert dataset.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "yaml",
    [
        "path: /datasets/pets\ntrain: images/train\nval: images/train\nnames: {0: cat, 1: dog}\n",
        "path: ../datasets/pets\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n",
        "train: ../train/../images/train\nnc: 2\nnames: ['cat', 'dog']\n",
        "train: [images/train]\nnames: [cat, dog]\n",
        "train: train.txt\nnames: [cat, dog]\n",
        "train: images\\train\nnames: [cat, dog]\n",
        "train: C:\\data\\pets\\images\\train\nnames: [cat, dog]\n",
        "\ufefftrain: /content/drive/pets/images/train\r\nnames: [cat, dog]\r\n",
    ],
)
def test_paths_of_other_machines_are_repaired(tmp_path, yaml):
    make(tmp_path, ["0 0.5 0.5 0.5 0.5"], yaml=yaml)
    write_text(tmp_path / "train.txt", "./images/train/0.png\r\n")
    dataset = open_dataset(tmp_path / "data.yaml", "train")
    assert [len(record.boxes) for record in dataset.records] == [1]
    assert dataset.class_names == ("cat", "dog")


def test_repaired_path_is_counted_and_refused_when_strict(tmp_path):
    make(tmp_path, ["0 0.5 0.5 0.5 0.5"], yaml="train: /gone/images/train\nnames: [cat]\n")
    assert open_dataset(tmp_path, "train").counts["split_paths_repaired"] == 1
    with pytest.raises(UserError, match="/gone/images/train"):
        open_dataset(tmp_path, "train", strict=True)


@pytest.mark.parametrize(
    "row,expected",
    [
        ("2 0.5 0.5 0.5 0.5", "line 2 has the class id 2; expected one of 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "class id -1"),
        ("0.5 0.5 0.5 0.5 0.5", "class id 0.5"),
        ("cat 0.5 0.5 0.5 0.5", "expected numbers"),
        ("0,0.5,0.5,0.5,0.5", "expected numbers"),
        ("0 0.5 nan 0.5 0.5", "expected numbers"),
        ("0 0.5 0.5 0.5", "has 3 numbers after the class id"),
        ("0 0.5 0.5 0.5 0.5 0.5 0.5 0.5", "has 7 numbers"),
        ("0 320 240 64 48", "coordinate 320; expected fractions"),
    ],
)
def test_bad_row_is_named(tmp_path, row, expected):
    make(tmp_path, [f"0 0.5 0.5 0.5 0.5\n{row}\n"])
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(tmp_path, "train")
    assert str(tmp_path / "labels/train/0.txt") in str(error.value)


def test_boxes_beyond_the_image_are_clipped_and_counted(tmp_path):
    make(tmp_path, ["0 0.9 0.5 0.4 0.5\n0 0.5 0.5 0 0.5\n0 0.5 0.5 -0.1 0.5"])
    dataset = open_dataset(tmp_path, "train")
    np.testing.assert_allclose(dataset.records[0].boxes, [[12, 0.7 * W, 36, W]], rtol=1e-6)
    assert dataset.counts["clipped_boxes"] == 1
    assert dataset.counts["zero_area_boxes"] == 2


def test_windows_files_scores_and_labels_without_image(tmp_path):
    make(tmp_path, ["\ufeff0 0.5 0.5 0.5 0.5\r\n\r\n1 0.25 0.25 0.5 0.5 0.9\r\n"])
    write_text(tmp_path / "labels/train/gone.txt", "0 0.5 0.5 0.5 0.5")
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.records[0].boxes) == 2
    assert dataset.counts["scores_ignored"] == 1
    assert dataset.counts["labels_without_image"] == 1
    with pytest.raises(UserError, match="line 3"):
        open_dataset(tmp_path, "train", strict=True)


def test_labels_beside_images_with_spaces_and_accents(tmp_path):
    picture(tmp_path / "train" / "ein Bär.png", 0)
    write_text(tmp_path / "train" / "ein Bär.txt", "0 0.5 0.5 0.5 0.5")
    write_text(tmp_path / "data.yaml", "train: train\nnames: [Bär]\n")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("Bär",)
    assert len(dataset.records[0].boxes) == 1


def test_folder_without_yaml_needs_a_class_list(tmp_path):
    picture(tmp_path / "images/a.png", 0)
    write_text(tmp_path / "labels/a.txt", "1 0.5 0.5 0.5 0.5")
    with pytest.raises(UserError, match="class list"):
        open_dataset(tmp_path)
    write_text(tmp_path / "classes.txt", "cat\ndog\n")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.records[0].class_ids.tolist() == [1]


def test_keypoints_follow_kpt_shape(tmp_path):
    make(
        tmp_path,
        ["0 0.5 0.5 0.5 0.5 0.5 0.25 2 0 0 0"],
        yaml="train: images/train\nkpt_shape: [2, 3]\nnames: [cat]\n",
    )
    record = open_dataset(tmp_path, keypoints=True).records[0]
    np.testing.assert_allclose(record.keypoints, [[[12.5, 32.5, 2], [0, 0, 0]]])


@pytest.mark.parametrize(
    "yaml,expected",
    [
        ("train: images/train\nnc: 3\nnames: [cat, dog]\n", '"nc" is 3'),
        ("train: images/train\nnames: 5\n", '"names" is 5'),
        ("train: gone\nnames: [cat]\n", "train is 'gone'"),
        ("train: labels\nnames: [cat]\n", "holds no image"),
        ("train: [images\n", "not valid YAML"),
        ("train: images/train\nnames: [cat]\nkpt_shape: many\n", "kpt_shape is many"),
    ],
)
def test_wrong_yaml_is_named(tmp_path, yaml, expected):
    make(tmp_path, [""], yaml=yaml)
    with pytest.raises(UserError, match=expected):
        open_dataset(tmp_path / "data.yaml", "train")
