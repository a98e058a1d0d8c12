"""Writes datasets as TFRecord with the features of the TensorFlow Object Detection API."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet.data import jpeg
from kerasdet.data.portable import Item, Part
from kerasdet.data.progress import progress
from kerasdet.data.regions import mask_of

_IMAGES_OF_SHARD = 1000
_orientation = tf.function(jpeg.exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])


def write(parts: Sequence[Part], folder: Path) -> Counter[str]:
    """Writes splits as `SPLIT-00000-of-00001.tfrecord`, 1000 images each, and `label_map.pbtxt`.

    Labels are the category ids, or 1..K if an id is below 1. Each mask is stored as a PNG. Images with an EXIF rotation
    are stored upright as PNG, because other readers of TFRecords ignore EXIF. Images in formats that TensorFlow cannot
    decode are stored as PNG as well.

    Args:
        parts: Splits of the dataset.
        folder: Empty folder to write to.

    Returns:
        Counts of values that the format cannot store, by name; empty for TFRecord.
    """
    folder.mkdir(parents=True, exist_ok=True)
    categories = parts[0].categories
    as_they_are = min(category["id"] for category in categories) > 0
    label_of = {c["id"]: c["id"] if as_they_are else number for number, c in enumerate(categories, 1)}
    for part in parts:
        names = {category["id"]: category["name"] for category in part.categories}
        joints = max((category.get("keypoints") or [] for category in part.categories), key=len)
        count = max(-(-len(part.items) // _IMAGES_OF_SHARD), 1)
        items = iter(progress(part.items, f"Writing {part.name}"))
        for number in range(count):
            size = len(part.items[number * _IMAGES_OF_SHARD :][:_IMAGES_OF_SHARD])
            with tf.io.TFRecordWriter(str(folder / f"{part.name}-{number:05}-of-{count:05}.tfrecord")) as writer:
                for _ in range(size):
                    writer.write(_example(next(items), names, label_of, joints).SerializeToString())
    blocks = [f"item {{\n  id: {label_of[c['id']]}\n  name: {_quoted(c['name'])}\n}}\n" for c in categories]
    (folder / "label_map.pbtxt").write_text("".join(blocks), encoding="utf-8")
    return Counter()


def _quoted(name):
    return json.dumps(name, ensure_ascii=False)


def _example(item: Item, names, label_of, joints):
    record, annotations = item.record, item.annotations
    encoded, name = record.encoded(), item.name
    if record.by_pil or (record.exif and int(_orientation(encoded[: jpeg.EXIF_SEARCH])) != 1):
        encoded, name = _png(record.image()), str(Path(name).with_suffix(".png"))
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    x1, y1 = boxes[:, :2].T
    x2, y2 = (boxes[:, :2] + boxes[:, 2:]).T
    features = {
        "image/height": [record.height],
        "image/width": [record.width],
        "image/filename": [name.encode()],
        "image/source_id": [str(record.image_id).encode()],
        "image/key/sha256": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/encoded": [encoded],
        "image/format": [
            b"png" if encoded[:4] == b"\x89PNG" else Path(name).suffix[1:].replace("jpg", "jpeg").encode()
        ],
        "image/object/bbox/xmin": x1 / record.width,
        "image/object/bbox/xmax": x2 / record.width,
        "image/object/bbox/ymin": y1 / record.height,
        "image/object/bbox/ymax": y2 / record.height,
        "image/object/class/text": [names[a["category_id"]].encode() for a in annotations],
        "image/object/class/label": [label_of[a["category_id"]] for a in annotations],
        "image/object/is_crowd": [a["iscrowd"] for a in annotations],
        "image/object/difficult": [int(bool(a.get("difficult"))) for a in annotations],
        "image/object/area": np.array([a["area"] for a in annotations], np.float64),
    }
    if any(annotation.get("segmentation") for annotation in annotations):
        masks = [mask_of(a.get("segmentation") or [], record.height, record.width) for a in annotations]
        features["image/object/mask"] = [_png(mask.astype(np.uint8)) for mask in masks]
    if joints:
        empty = [0.0] * 3 * len(joints)
        points = np.array([a.get("keypoints") or empty for a in annotations], np.float64).reshape(-1, 3)
        features["image/object/keypoint/x"] = points[:, 0] / record.width
        features["image/object/keypoint/y"] = points[:, 1] / record.height
        features["image/object/keypoint/visibility"] = points[:, 2].astype(int).tolist()
        features["image/object/keypoint/text"] = [joint.encode() for joint in joints] * len(annotations)
        features["image/object/keypoint/num"] = [int((row > 0).sum()) for row in points[:, 2].reshape(-1, len(joints))]
    return tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in features.items()}))


def _feature(values):
    if isinstance(values, np.ndarray):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
