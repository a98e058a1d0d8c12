"""Reads and writes TFRecord files with the features of the TensorFlow Object Detection API."""

import functools
import glob
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet.data.files import read_text
from kerasdet.data.values import Changes
from kerasdet.errors import UserError
from kerasdet.geometry import rle

SUFFIXES = (".tfrecord", ".tfrecords", ".record")
_SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})(\.\w+)?$")
# A string of protobuf's text format, and an escape in it
_STRING = r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_FREEBASE = ("/m/", "/g/")  # prefixes of Freebase ids, which the label maps of COCO and Open Images use as names
_FRAME = 16  # bytes around each record: its length and two checksums
_HEADER = 12  # length and checksum before the contents of a record
# Decimals of coordinates in pixels. Normalised float32 coordinates are not more precise in images of 8000 pixels.
_DECIMALS = 3


def is_tfrecord(path: Path) -> bool:
    """Tells by its name whether a file is a TFRecord, such as `val.tfrecord` or `coco_val.record-00000-of-00010`.

    Args:
        path: Path of the file.

    Returns:
        True if the name is that of a TFRecord file.
    """
    return _SHARD.sub("", path.name).lower().endswith(SUFFIXES) or (
        _SHARD.search(path.name) is not None and path.suffix.lower() in SUFFIXES
    )


def stem_of(path: Path) -> str:
    """Returns the name of a TFRecord file without shard number and suffix; all shards of a dataset share it.

    Args:
        path: Path of a file.

    Returns:
        A name such as "coco_val".
    """
    name = _SHARD.sub("", path.name)
    return name.rsplit(".", 1)[0] if name.lower().endswith(SUFFIXES) else name


def shards(path: Path) -> list[Path]:
    """Lists the files of a dataset of TFRecords.

    Args:
        path: A file, one of several shards, or a pattern such as `train-*.tfrecord`.

    Returns:
        Sorted paths. For one shard, the paths of all shards of the dataset.

    Raises:
        UserError: If a shard is missing.
    """
    found = sorted(map(Path, glob.glob(str(path)))) if glob.has_magic(str(path)) and not path.exists() else [path]
    if len(found) == 1 and (match := _SHARD.search(found[0].name)):
        name = found[0].name
        pattern = f"{glob.escape(name[: match.start()])}-*-of-{match[2]}{match[3] or ''}"
        found = sorted(found[0].parent.glob(pattern))
    for file in found:
        match = _SHARD.search(file.name)
        others = {f.name for f in found}
        for number in range(int(match[2]) if match else 0):
            shard = f"{file.name[: match.start()]}-{number:0{len(match[1])}}-of-{match[2]}{match[3] or ''}"
            if shard not in others:
                raise UserError(
                    f"The shard {file.parent / shard} does not exist, but {file} does. Copy all {int(match[2])} shards."
                )
    return found


def read_label_map(path: Path) -> dict[int, dict[str, Any]]:
    """Reads a label map of the TensorFlow Object Detection API (`.pbtxt`).

    Args:
        path: Path of the file.

    Returns:
        A dict from category id to COCO category with `id` and `name`. If the name of an item is an id of Freebase, such
        as "/m/01yrx" in COCO's own label map, `name` is its display name and `freebase_id` is this id. If the item has
        keypoints, `keypoints` is the list of their names.

    Raises:
        UserError: If an item lacks id or name, two items have the same id, or the file has no item.
    """
    text = re.sub(r"^\s*#.*", "", read_text(path), flags=re.MULTILINE)
    categories = {}
    for number, body in enumerate(
        re.findall(rf"item\s*:?\s*\{{((?:[^{{}}\"']|{_STRING}|\{{[^{{}}]*\}})*)\}}", text), 1
    ):
        own = re.sub(r"\{[^{}]*\}", "", body)
        found = re.search(r"(?<![\w])id\s*:\s*(-?\d+)", own)
        name = re.search(rf"(?<![\w])name\s*:\s*({_STRING})", own)
        display = re.search(rf"display_name\s*:\s*({_STRING})", own)
        name = name or display
        if not found or not name:
            raise UserError(f"{path}: item {number} is {body.strip()!r}; expected an id and a name. Correct the file.")
        category = {"id": int(found[1]), "name": _unescaped(name[1][1:-1])}
        if display and category["name"].startswith(_FREEBASE):
            category.update(name=_unescaped(display[1][1:-1]), freebase_id=category["name"])
        if keypoints := re.findall(rf"keypoints\s*:?\s*\{{[^{{}}]*label\s*:\s*({_STRING})[^{{}}]*\}}", body):
            category["keypoints"] = [_unescaped(each[1:-1]) for each in keypoints]
        if category["id"] in categories:
            raise UserError(f"{path}: two items have the id {category['id']}. Give each class a unique id.")
        categories[category["id"]] = category
    if not categories:
        raise UserError(
            f"{path} has no item; expected one item {{ id: 1 name: 'cat' }} per class. Use another label map."
        )
    return categories


def _unescaped(text):
    """Decodes the escapes of protobuf's text format, which writes letters outside ASCII as octal bytes of UTF-8."""

    def decoded(found):
        code = found[1].decode()
        if code[0] in "01234567":
            return bytes([int(code, 8) & 255])
        if code[0] in "xuU" and len(code) > 1:
            return bytes([int(code[1:], 16)]) if code[0] == "x" else chr(int(code[1:], 16)).encode()
        return {"n": b"\n", "t": b"\t", "r": b"\r"}.get(code, found[1])

    return _ESCAPE.sub(decoded, text.encode()).decode("utf-8", errors="replace")


def read_slice(path: str, offset: int, length: int) -> bytes:
    """Reads a part of a file, which may be on a remote file system.

    Args:
        path: Path or URL of the file.
        offset: Position of the first byte.
        length: Number of bytes.

    Returns:
        The bytes of this part.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def read_tfrecords(
    files: Sequence[Path],
    categories: Mapping[int, Mapping[str, Any]] | None,
    changes: Changes,
    progress: Callable = iter,
) -> dict:
    """Reads the annotations of TFRecord files. Images are not copied: their position in the file is stored.

    Coordinates are rounded to 0.001 pixels, because normalised float32 coordinates are not more precise.

    Args:
        files: Paths of the files.
        categories: Result of `read_label_map`; None: ids and names come from the records.
        changes: Counts the class texts that are not in the label map.
        progress: Function that wraps an iterable to show progress.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file. The ids of the images
        are `image/source_id` if all of these are different integers, otherwise 1, 2, ...

    Raises:
        UserError: If a file is damaged or compressed, or a record is invalid. The message names the file and the
            record, counted from 0.
    """
    entries, annotations, seen, joints = [], [], {}, []
    for path in files:
        for number, (offset, content) in enumerate(progress(_records(path))):
            where = f"{path}: record {number}"
            features = _features(content, where)
            image_id = len(entries) + 1
            entry = _image(features, content, path, offset, image_id, where)
            entries.append(entry)
            for annotation in _objects(features, entry, where, joints):
                annotation.update(id=len(annotations) + 1, image_id=image_id)
                name = annotation.pop("name")
                if categories is None:
                    annotation["category_id"] = seen.setdefault(
                        name or str(annotation["category_id"]), annotation["category_id"]
                    )
                else:
                    annotation["category_id"] = _known(annotation["category_id"], name, categories, where, changes)
                annotations.append(annotation)
    if not entries:
        raise UserError(f"{files[0]} holds no record; expected one record for each image. Write the file again.")
    _use_source_ids(entries, annotations)
    found = list(categories.values()) if categories else _categories(seen, files)
    if joints:
        found = [{"keypoints": joints[0], **category} for category in found]
    return {"images": entries, "annotations": annotations, "categories": found}


def _records(path):
    """Yields (offset, bytes) of each record of a file."""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(
                f"{path} is compressed with gzip; expected a file without compression, because images are read in "
                "random order. Decompress it."
            )
    offset = _HEADER
    try:
        for content in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield offset, content
            offset += len(content) + _FRAME
        is_whole = offset - _HEADER == path.stat().st_size  # TensorFlow takes a cut header for the end of the file
    except tf.errors.DataLossError:
        is_whole = False
    if not is_whole:
        raise UserError(
            f"{path} is damaged or truncated at byte {offset - _HEADER}, or is not a TFRecord file. Copy or write it "
            "again."
        )


def _features(content, where):
    """Returns the features of a record as lists by name."""
    try:
        example = tf.train.Example.FromString(content)
    except Exception:  # protobuf's DecodeError, whose module differs between its versions
        example = tf.train.Example()
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    if not features.get("image/encoded"):
        raise UserError(
            f'{where} has the features {", ".join(sorted(features)[:8]) or "none"}; expected "image/encoded" and the '
            "other features of the TensorFlow Object Detection API. Write the file with these features."
        )
    return features


def _first(features, name, default=None):
    values = features.get(name)
    return values[0] if values else default


def _text(value):
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _image(features, content, path, offset, image_id, where):
    encoded = features["image/encoded"][0]
    height, width = _first(features, "image/height"), _first(features, "image/width")
    if not height or not width:
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                height, width = image.height, image.width
        except Exception:  # Pillow's readers raise almost anything on damaged files
            raise UserError(f"{where} holds an image that cannot be read. Write the record again.") from None
    name = _text(_first(features, "image/filename", b"")) or f"{path.stem}_{image_id}"
    place = functools.partial(read_slice, str(path), offset + content.index(encoded), len(encoded))
    source_id = _text(_first(features, "image/source_id", b""))
    entry = {"id": image_id, "file_name": f"{path}:{name}", "height": int(height), "width": int(width)}
    return {**entry, "content": place, "source_id": source_id}


def _use_source_ids(entries, annotations):
    """Uses `image/source_id` as the id of images if all of them are different integers, as in COCO."""
    sources = [entry.pop("source_id") for entry in entries]
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in sources) and len(set(sources)) == len(
        sources
    ):
        id_of = {entry["id"]: int(source) for entry, source in zip(entries, sources, strict=True)}
        for entry in entries:
            entry["id"] = id_of[entry["id"]]
        for annotation in annotations:
            annotation["image_id"] = id_of[annotation["image_id"]]


def _objects(features, entry, where, joints):
    """Yields the annotations of a record, with "name" and without ids."""
    prefix = "image/object/"
    edges = [features.get(f"{prefix}bbox/{edge}", []) for edge in ("xmin", "ymin", "xmax", "ymax")]
    count = len(edges[0])
    labels = features.get(f"{prefix}class/label", [])
    texts = [_text(text) for text in features.get(f"{prefix}class/text", [])]
    columns = {"xmin": edges[0], "ymin": edges[1], "xmax": edges[2], "ymax": edges[3]}
    columns.update(label=labels or [0] * count, text=texts or [""] * count)
    if any(len(column) != count for column in columns.values()) or (count and not labels and not texts):
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise UserError(
            f"{where} has {lengths}; expected lists of the same length, one value per object. Write the record again."
        )
    size = np.array([entry["width"], entry["height"]] * 2, np.float64)
    corners = np.array(edges, np.float64).T.reshape(-1, 4)
    if (np.abs(corners) > 2).any():
        raise UserError(
            f"{where} has the box coordinate {np.abs(corners).max():g}; expected fractions of the image size, in [0, "
            "1]. Divide pixel coordinates by the width or height of the image."
        )
    corners = np.round(corners * size, _DECIMALS)  # (N, 4) as x1, y1, x2, y2
    masks = _masks(features, count, entry, where)
    keypoints = _keypoints(features, count, size[:2], where, joints)
    crowd, difficult = (features.get(f"{prefix}{name}", []) for name in ("is_crowd", "difficult"))
    for row, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        annotation = {"category_id": int(columns["label"][row]), "name": columns["text"][row]}
        annotation["bbox"] = [x1, y1, round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)]
        annotation["iscrowd"] = int(crowd[row]) if row < len(crowd) else 0
        if row < len(difficult) and difficult[row]:
            annotation["difficult"] = 1
        if masks is not None:
            annotation["segmentation"] = rle.encode(masks[row][None])[0]
        if keypoints is not None:
            annotation["keypoints"] = keypoints[row]
        yield annotation


def _masks(features, count, entry, where):
    """Returns the masks (H, W) bool of a record, or None. Masks are stored as PNG files or as pixel values."""
    values = features.get("image/object/mask")
    if not values or not count:
        return None
    shape = entry["height"], entry["width"]
    try:
        if isinstance(values[0], bytes):
            masks = [np.array(Image.open(io.BytesIO(value)).convert("L")) > 0 for value in values]
        else:
            masks = list(np.array(values, np.float32).reshape(-1, *shape) > 0)
        if len(masks) != count or any(mask.shape != shape for mask in masks):
            raise ValueError(f"{len(masks)} masks for {count} objects in an image of {shape[0]}x{shape[1]}")
    except (OSError, ValueError) as error:
        raise UserError(f"{where} has masks that cannot be read: {error}. Write the record again.") from None
    return masks


def _keypoints(features, count, size, where, joints):
    """Returns x, y and visibility of each object's keypoints in a flat list, or None."""
    prefix = "image/object/keypoint/"
    xs, ys = features.get(f"{prefix}x", []), features.get(f"{prefix}y", [])
    if not xs or not count:
        return None
    seen = features.get(f"{prefix}visibility") or [2 if x or y else 0 for x, y in zip(xs, ys, strict=False)]
    if not len(xs) == len(ys) == len(seen) or len(xs) % count:
        raise UserError(
            f"{where} has {len(xs)} x and {len(ys)} y coordinates of keypoints and "
            f"{len(features.get(f'{prefix}visibility', []))} visibilities for {count} objects; expected the same "
            "number of each (visibilities may be missing), a multiple of the number of objects. Write the record again."
        )
    number = len(xs) // count
    if not joints:
        texts = [_text(text) for text in features.get(f"{prefix}text", [])[:number]]
        joints.append(texts if len(texts) == number else [f"keypoint_{i}" for i in range(1, number + 1)])
    if len(joints[0]) != number:
        raise UserError(
            f"{where} has {number} keypoints per object; expected {len(joints[0])}, as in the earlier records. Write "
            "the record again."
        )
    points = np.nan_to_num(np.stack([xs, ys, np.zeros(len(xs))], 1)) * [*size, 0]
    points = np.round(points, _DECIMALS)
    points[:, 2] = seen
    points[points[:, 2] == 0] = 0
    return points.reshape(count, -1).tolist()


def _known(label, name, categories, where, changes):
    """Returns the category id of an object, by its label or, without a label, by its class name."""
    by_name = {each: category_id for category_id, category in categories.items() for each in _names(category)}
    if label in categories:
        own = categories[label]["name"]
        if name and name not in _names(categories[label]):
            fact = f"has the label {label}, which is {own!r} in the label map, but the class text {name!r}"
            if name in by_name:
                raise UserError(
                    f"{where} {fact}, which has the label {by_name[name]} there; expected a label and a text of the "
                    "same class. Use the label map with which the file was written, or write the record again."
                )
            changes.note("contradicting_texts", where, fact)
        return label
    if name in by_name:
        return by_name[name]
    raise UserError(
        f"{where} has the label {label} ({name!r}), which is not in the label map. Use the label map with which the "
        "file was written."
    )


def _names(category):
    return [category[key] for key in ("name", "freebase_id") if key in category]


def _categories(seen, files):
    """Returns the categories of records without a label map."""
    owners: dict[int, list[str]] = {}
    for name, label in sorted(seen.items()):
        owners.setdefault(label, []).append(name)
    if same := next((names for names in owners.values() if len(names) > 1), None):  # no labels, or contradicting texts
        raise UserError(
            f"{files[0]}: the classes {', '.join(same[:5])} have the same label; expected one label per class. Put the "
            "label map (.pbtxt) beside the file."
        )
    return [{"id": category_id, "name": name} for name, category_id in sorted(seen.items(), key=lambda item: item[1])]
