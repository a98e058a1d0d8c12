import numpy as np
import pytest
from foreign_data import SIZE, picture, write_text

from kerasdet.data import open_dataset
from kerasdet.data.recognise import recognise
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
    assert (dataset.counts["zero_area_boxes"], dataset.counts["negative_boxes"]) == (1, 1)


def test_windows_files_scores_and_labels_without_image(tmp_path):
    make(tmp_path, ["\ufeff0 0.5 0.5 0.5 0.5\r\n\r\n1 0.25 0.25 0.5 0.5 0.9\r\n"])
    write_text(tmp_path / "labels/train/gone.txt", "0 0.5 0.5 0.5 0.5")
    dataset = open_dataset(tmp_path, "train")
    assert len(dataset.records[0].boxes) == 2
    assert dataset.counts["scores_ignored"] == 1
    assert dataset.counts["labels_without_image"] == 1
    with pytest.raises(UserError, match="line 3"):
        open_dataset(tmp_path, "train", strict=True)


def test_labels_of_another_split_have_an_image(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"images/{name}.png", 0)
        write_text(tmp_path / f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5")
    write_text(tmp_path / "train.txt", "images/a.png")
    write_text(tmp_path / "val.txt", "images/b.png")
    write_text(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\nnames: [dog]")
    for split in ("train", "val"):
        assert "labels_without_image" not in open_dataset(tmp_path, split, strict=True).counts


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


def test_class_list_in_another_encoding_warns(tmp_path, caplog):
    make(tmp_path, ["0 0.5 0.5 0.5 0.5"], yaml="train: images/train\nnames: [cat]\n")
    (tmp_path / "data.yaml").write_bytes("train: images/train\nnames: [猫, 狗]\n".encode("gbk"))
    open_dataset(tmp_path)
    assert f"{tmp_path}/data.yaml is not UTF-8 and was read as Latin-1: if names of classes look wrong" in caplog.text


def test_keypoints_follow_kpt_shape(tmp_path):
    make(
        tmp_path,
        ["0 0.5 0.5 0.5 0.5 0.5 0.25 2 0 0 0"],
        yaml="train: images/train\nkpt_shape: [2, 3]\nnames: [cat]\n",
    )
    record = open_dataset(tmp_path, keypoints=True).records[0]
    np.testing.assert_allclose(record.keypoints, [[[12.5, 32.5, 2], [0, 0, 0]]])


def test_flips_follow_flip_idx(tmp_path):
    yaml = "train: images/train\nkpt_shape: [3, 2]\nnames: [cat]\nflip_idx: "
    for text, order in (("[0, 2, 1]", (0, 2, 1)), ("[0, 1, 2]", (0, 1, 2))):
        make(tmp_path, ["0 0.5 0.5 0.5 0.5 0.5 0.25 0.5 0.5 0.5 0.75"], yaml=yaml + text)
        data = open_dataset(tmp_path, keypoints=True)
        assert data.keypoint_flip == order
        assert data.counts.get("unpaired_keypoints", 0) == (3 if order == (0, 1, 2) else 0)
    for text in ("[1, 2, 0]", "[0, 2]", "[0, 0, 0]", "yes"):
        write_text(tmp_path / "data.yaml", yaml + text)
        with pytest.raises(
            UserError, match=r"flip_idx is .* expected the index of the keypoint on the other side, from 0"
        ):
            open_dataset(tmp_path, keypoints=True)


@pytest.mark.parametrize(
    "yaml,expected",
    [
        ("train: images/train\nnc: 3\nnames: [cat, dog]\n", '"nc" is 3'),
        ("train: images/train\nnames: 5\n", '"names" is 5'),
        ("train: gone\nnames: [cat]\n", "train is 'gone'"),
        ("train: labels\nnames: [cat]\n", "contains no image"),
        ("train: [images\n", "not valid YAML"),
        ("train: images/train\nnames: [cat]\nkpt_shape: many\n", "kpt_shape is many"),
    ],
)
def test_wrong_yaml_is_named(tmp_path, yaml, expected):
    make(tmp_path, [""], yaml=yaml)
    with pytest.raises(UserError, match=expected):
        open_dataset(tmp_path / "data.yaml", "train")


def test_names_are_the_texts_of_the_file(tmp_path):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"], yaml="train: images/train\nnc: '4'\nnames: [no, null, 007, 1.0]\n")
    assert open_dataset(tmp_path, "train").class_names == ("no", "null", "007", "1.0")


def test_folder_beside_the_yaml_goes_before_one_above(tmp_path):
    make(tmp_path / "inner", ["1 0.5 0.5 0.5 0.5"], yaml="train: ../images/train\nnames: [cat, dog]\n")
    make(tmp_path, [None])
    dataset = open_dataset(tmp_path / "inner", "train")
    assert [record.path for record in dataset.records] == [str(tmp_path / "inner/images/train/0.png")]
    assert dataset.counts["split_paths_repaired"] == 1


def test_one_of_several_yaml_files_must_be_named_data(tmp_path):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"])
    write_text(tmp_path / "a.yaml", YAML.replace("cat, dog", "dog, cat"))
    assert open_dataset(tmp_path, "train").class_names == ("cat", "dog")
    (tmp_path / "data.yaml").rename(tmp_path / "b.yaml")
    with pytest.raises(UserError, match=r"several files of a YOLO dataset, a.yaml, b.yaml; .* Give the file"):
        open_dataset(tmp_path, "train")
    assert open_dataset(tmp_path / "b.yaml", "train").class_names == ("cat", "dog")


def test_every_folder_of_a_list_needs_images(tmp_path):
    make(tmp_path, [None], yaml="train: [images/train, images/more]\nnames: [cat]\n")
    (tmp_path / "images/more").mkdir()
    with pytest.raises(UserError, match="images/more, which contains no image"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("folder,suffix", [("labels", ".TXT"), ("Labels", ".txt")])
def test_label_files_of_another_case_are_found(tmp_path, folder, suffix):
    make(tmp_path, [None])
    write_text(tmp_path / folder / "train" / f"0{suffix}", "1 0.5 0.5 0.5 0.5")
    assert open_dataset(tmp_path, "train").counts["boxes"] == 1


def test_bad_rows_are_skipped_on_request(tmp_path):
    make(tmp_path, ["7 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n1 0.5 0.5\n"])
    dataset = open_dataset(tmp_path, "train", on_bad_object="skip")
    assert (dataset.counts["boxes"], dataset.counts["bad_objects"]) == (1, 2)
    label = tmp_path / "labels/train/0.txt"
    assert [problem.item for problem in dataset.problems] == [f"{label}: line 1", f"{label}: line 3"]
    assert dataset.problems[0].text.startswith("has the class id 7; expected one of 0 to 1")


@pytest.mark.parametrize("text", ["0 cat\n1 dog\n", "1: cat\n2: dog\n", "id,name\n0,cat\n1,dog\n", "- cat\n- dog\n"])
def test_class_list_with_more_than_names_raises(tmp_path, text):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"])
    (tmp_path / "data.yaml").unlink()
    write_text(tmp_path / "classes.txt", text)
    with pytest.raises(UserError, match=r"classes.txt .*; expected one class name per line"):
        open_dataset(tmp_path, "train")


def test_repeated_keys_raise_and_other_lists_are_said(tmp_path):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"])
    write_text(tmp_path / "classes.txt", "dog\ncat\n")
    assert open_dataset(tmp_path, "train").counts["other_class_lists"] == 1
    write_text(tmp_path / "data.yaml", "train: images/train\nnames: {0: cat, 0: fox, 1: dog}\n")
    with pytest.raises(UserError, match="has the key '0' twice; expected each key once"):
        open_dataset(tmp_path / "data.yaml", "train")


def test_label_of_two_images_and_annotations_of_another_format_are_said(tmp_path, caplog):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"])
    picture(tmp_path / "images/train/0.bmp", 1)
    write_text(tmp_path / "train.json", '{"images": [], "annotations": [], "categories": []}')
    assert open_dataset(tmp_path, "train").counts["shared_labels"] == 1
    assert "is read as YOLO" in caplog.text and "train.json are not read" in caplog.text


@pytest.mark.parametrize("key", ["valid", "val_extra"])
def test_two_keys_of_a_split_raise(tmp_path, key):
    make(tmp_path, [None], yaml=f"{YAML}{key}: images/train\n")
    with pytest.raises(UserError, match=f"data.yaml has the keys 'val' and '{key}', which both mean the split val"):
        open_dataset(tmp_path, "val")


def test_keys_of_other_folders_are_no_splits(tmp_path):
    make(tmp_path, ["1 0.5 0.5 0.5 0.5"], yaml=f"{YAML}train_labels: labels/train\nmore: images/train\nnote: ''\n")
    assert [*recognise(tmp_path).splits] == ["train", "val", "more"]
    assert open_dataset(tmp_path, "train").counts["boxes"] == 1


@pytest.mark.parametrize("entry", ["../valid/images", "/content/pets/val/images", "val.txt"])
def test_path_of_a_missing_split_is_not_repaired_to_another_folder(tmp_path, entry):
    picture(tmp_path / "images/0.png", 0)
    write_text(tmp_path / "val.txt", "/content/valid/images/0.png")
    write_text(tmp_path / "data.yaml", f"train: images\nval: {entry}\nnames: [cat]\n")
    assert len(open_dataset(tmp_path, "train")) == 1
    with pytest.raises(UserError, match=r"images.* does not exist"):
        open_dataset(tmp_path, "val")


def test_subsets_of_cvat_are_splits(tmp_path):
    write_text(tmp_path / "obj.names", "cat\n")
    for folder, subset in (("obj_Train_data", "train"), ("obj_Validation_data", "Validation")):
        picture(tmp_path / folder / f"{subset}.png", 0)
        write_text(tmp_path / folder / f"{subset}.txt", "0 0.5 0.5 0.5 0.5")
        write_text(tmp_path / f"{subset}.txt", f"data/{folder}/{subset}.png")
    assert [*recognise(tmp_path).splits] == ["train", "val"]
    assert [record.path for record in open_dataset(tmp_path, "val").records] == [
        str(tmp_path / "obj_Validation_data/Validation.png")
    ]
