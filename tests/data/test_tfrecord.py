import gzip
import io

import numpy as np
import pytest
import tensorflow as tf
from foreign_data import SIZE, write_text
from PIL import Image

from kerasdet.data import evaluation_batches, open_dataset
from kerasdet.errors import UserError

H, W = SIZE
LABEL_MAP = """
# the classes
item {
  name: "cat"
  id: 3
  display_name: 'Cat'
}
item { id: 7 name: 'dog'
  keypoints { id: 0 label: "nose" }
}
"""
PIXELS = np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def example(**changes):
    """Makes a record as the scripts of the TensorFlow Object Detection API do."""
    features = {
        "image/height": [H],
        "image/width": [W],
        "image/filename": [b"a.png"],
        "image/source_id": [b"42"],
        "image/encoded": [png(PIXELS)],
        "image/format": [b"png"],
        "image/object/bbox/xmin": [0.25, 0.1],
        "image/object/bbox/xmax": [0.75, 0.2],
        "image/object/bbox/ymin": [0.5, 0.1],
        "image/object/bbox/ymax": [1.0, 0.2],
        "image/object/class/text": [b"dog", b"cat"],
        "image/object/class/label": [7, 3],
        "image/object/is_crowd": [0, 1],
    }
    for name, values in changes.items():
        features[name.replace("__", "/")] = values
    made = {}
    for name, values in features.items():
        if values and isinstance(values[0], bytes):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        elif values and isinstance(values[0], int):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def write(path, *records, label_map=LABEL_MAP):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    if label_map:
        write_text(path.parent / "label_map.pbtxt", label_map)
    return path


def test_records_are_read_in_place(tmp_path):
    other = np.random.default_rng(1).integers(0, 255, (H, W, 3), np.uint8)
    write(tmp_path / "val.record", example(), example(image__encoded=[png(other)], image__source_id=[b"43"]))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (3, 7)
    first, second = dataset.records
    assert (first.image_id, second.image_id) == (42, 43)
    np.testing.assert_allclose(first.boxes, [[24, 16, 48, 48], [4.8, 6.4, 9.6, 12.8]], atol=1e-3)
    assert first.class_ids.tolist() == [1, 0]
    assert first.is_crowd.tolist() == [False, True]
    batch = next(iter(evaluation_batches(dataset, 2, size_divisor=1)))
    np.testing.assert_array_equal(batch["image"], [PIXELS, other])


def test_shards_and_splits(tmp_path):
    for split in ("train", "val"):
        for number in range(3):
            write(tmp_path / f"coco_{split}.record-0000{number}-of-00003", example(image__source_id=[b"%d" % number]))
    for path in (tmp_path, tmp_path / "coco_train.record-00001-of-00003", tmp_path / "coco_train.record-*"):
        dataset = open_dataset(path, "train")
        assert [record.image_id for record in dataset.records] == [0, 1, 2]
    (tmp_path / "coco_val.record-00002-of-00003").unlink()
    with pytest.raises(UserError, match=r"coco_val\.record-00002-of-00003 does not exist"):
        open_dataset(tmp_path, "val")


def test_roboflow(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / split / "pets.tfrecord", example())
        (tmp_path / split / "label_map.pbtxt").rename(tmp_path / split / "pets_label_map.pbtxt")
    assert len(open_dataset(tmp_path, "val")) == 1


def test_masks_as_png_and_as_numbers(tmp_path):
    masks = np.zeros((2, H, W), np.uint8)
    masks[0, 24:48, 16:48], masks[1, 5:9, 7:12] = 1, 1
    crops = []
    for name, values in (("png", [png(mask) for mask in masks]), ("float", masks.astype(float).ravel().tolist())):
        write(tmp_path / name / "a.tfrecord", example(image__object__mask=values))
        batch = next(iter(evaluation_batches(open_dataset(tmp_path / name, masks=True), 1)))
        crops.append(batch["masks"].numpy()[0])
    np.testing.assert_array_equal(*crops)
    assert crops[0][0].min() == 255


def test_keypoints(tmp_path):
    changes = {
        "image__object__keypoint__x": [0.5, 0.25, 0.0, 0.0],
        "image__object__keypoint__y": [0.5, 0.75, 0.0, 0.0],
        "image__object__keypoint__visibility": [2, 1, 0, 0],
        "image__object__keypoint__text": [b"nose", b"left_ear"] * 2,
    }
    label_map = LABEL_MAP.replace('  keypoints { id: 0 label: "nose" }\n', "")
    write(tmp_path / "a.tfrecord", example(**changes), label_map=label_map)
    dataset = open_dataset(tmp_path, keypoints=True)
    assert dataset.keypoint_names == ("nose", "left_ear")
    np.testing.assert_allclose(dataset.records[0].keypoints[0], [[24.5, 32.5, 2], [36.5, 16.5, 1]])
    assert not dataset.records[0].keypoints[1].any()


def test_classes_without_a_label_map(tmp_path):
    write(tmp_path / "a.tfrecord", example(), label_map=None)
    assert open_dataset(tmp_path).class_names == ("cat", "dog")
    fox = example(image__object__class__label=[1, 3], image__object__class__text=[b"ant", b"fox"])
    owl = example(image__object__class__label=[3, 3], image__object__class__text=[b"fox", b"owl"])
    write(tmp_path / "a.tfrecord", fox, owl, label_map=None)
    with pytest.raises(UserError, match=r"the classes fox, owl have the same label; .* label map"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"image__object__class__label": [9, 3], "image__object__class__text": [b"fox", b"cat"]}, r"label 9 \('fox'\)"),
        (
            {"image__object__class__text": [b"cat", b"cat"]},
            r"record 1 has the label 7, which is 'dog' in the label map, but the class text 'cat'",
        ),
        ({"image__object__bbox__xmax": [0.75]}, "1 xmax"),
        ({"image__object__bbox__xmax": [48.0, 9.0]}, "coordinate 48"),
        ({"image__encoded": []}, 'expected "image/encoded"'),
        ({"image__object__mask": [b"x", b"y"]}, "masks that cannot be read"),
        (
            {"image__object__keypoint__x": [0.5], "image__object__keypoint__y": [0.5]},
            "1 x and 1 y coordinates of keypoints and 0 visibilities",
        ),
        ({"image__height": [0], "image__encoded": [b"nothing"]}, "image that cannot be read"),
    ],
)
def test_bad_record_is_named(tmp_path, changes, expected):
    path = write(tmp_path / "a.tfrecord", example(), example(**changes))
    with pytest.raises(UserError, match=expected) as error:
        open_dataset(tmp_path)
    assert f"{path}: record 1" in str(error.value)


def test_damaged_and_compressed_files_are_named(tmp_path):
    path = write(tmp_path / "a.tfrecord", example(), example())
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"a\.tfrecord is damaged or truncated at byte {len(content) // 2}"):
        open_dataset(tmp_path)
    path.write_bytes(content[: len(content) // 2 + 8])  # inside the header of the second record
    with pytest.raises(UserError, match=rf"a\.tfrecord is damaged or truncated at byte {len(content) // 2}"):
        open_dataset(tmp_path)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="compressed with gzip"):
        open_dataset(tmp_path)


def test_damaged_image_in_a_record_is_named(tmp_path):
    write(tmp_path / "a.tfrecord", example(image__encoded=[b"no image"]))
    with pytest.raises(UserError, match=r"a\.tfrecord:a\.png: is not a JPEG"):
        open_dataset(tmp_path)


def test_escapes_in_a_label_map_are_decoded(tmp_path):
    """The text format of protobuf writes letters outside ASCII as octal bytes, and quotes with a backslash."""
    folder = tmp_path / "data [v2]"
    label_map = 'item { id: 3 name: "K\\303\\244se" } item { id: 7 name: "5\\" \\u732b" }'
    write(folder / "a.tfrecord", example(image__object__class__text=[]), label_map=label_map)
    assert open_dataset(folder / "a.tfrecord").class_names == ("Käse", '5" 猫')


@pytest.mark.parametrize("text", ["item { name: 'cat' }", "item { id: 1 name: 'a' } item { id: 1 name: 'b' }"])
def test_bad_label_map_is_named(tmp_path, text):
    write(tmp_path / "a.tfrecord", example(), label_map=text)
    with pytest.raises(UserError, match=r"label_map\.pbtxt"):
        open_dataset(tmp_path)


def test_class_texts_that_are_not_in_the_label_map_are_counted(tmp_path):
    write(tmp_path / "a.tfrecord", example(image__object__class__text=[b"Hund", b"cat"]))
    dataset = open_dataset(tmp_path)
    assert dataset.records[0].class_ids.tolist() == [1, 0]
    assert dataset.counts["contradicting_texts"] == 1


@pytest.mark.parametrize("text", [b"cat", b"/m/01yrx"])
def test_ids_of_freebase_are_replaced_by_display_names(tmp_path, text):
    label_map = "item {\n  name: '/m/01yrx'\n  id: 3\n  display_name: 'cat'\n}\nitem { id: 7 name: 'dog' }"
    write(tmp_path / "a.tfrecord", example(image__object__class__text=[b"dog", text]), label_map=label_map)
    dataset = open_dataset(tmp_path, strict=True)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.records[0].class_ids.tolist() == [1, 0]


def test_file_without_records_is_named(tmp_path):
    write(tmp_path / "train.tfrecord")
    with pytest.raises(UserError, match=r"train\.tfrecord holds no record; expected one record for each image"):
        open_dataset(tmp_path)
