"""Writes the detections of ``kerasdet predict``: dicts for JSON, crops of the objects, and a COCO file."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from kerasdet.files import replacing, writing
from kerasdet.inference import Detections, Predictor
from kerasdet.inference.interop import TRACK_ID
from kerasdet.inference.video import WRITTEN_BY
from kerasdet.paths import prepare_file

_END = 1 << 16  # number of bytes


def records(found: Detections) -> list[dict]:
    """Converts detections to values for JSON.

    Args:
        found: Detections of one image.

    Returns:
        One dict per object with `label`, `class_id`, `score` and `box` (yxyx in pixels of the image). If the model
        predicts keypoints or masks, also `keypoints`, a list of (y, x, score), or `segmentation`, a compressed RLE as
        in COCO's results. With a tracker also `track_id`, None for objects without an id. `extras` holds further
        outputs of the model's branches, by name.
    """
    rows = []
    for box, score, class_id, label in zip(found.boxes, found.scores, found.class_ids, found.labels, strict=True):
        box = [round(float(value), 3) for value in box]
        rows.append({"label": label, "class_id": int(class_id), "score": round(float(score), 5), "box": box})
    if found.keypoints is not None:
        for row, keypoints in zip(rows, found.keypoints, strict=True):
            row["keypoints"] = np.round(keypoints.astype(float), 3).tolist()
    if found.mask_probs is not None:
        for row, segmentation in zip(rows, found.encode_masks(), strict=True):
            row["segmentation"] = segmentation
    extras = dict(found.extras)
    if (ids := extras.pop(TRACK_ID, None)) is not None:
        for row, track_id in zip(rows, ids.tolist(), strict=True):
            row["track_id"] = track_id if track_id >= 0 else None
    if extras:
        for index, row in enumerate(rows):
            row["extras"] = {name: value[index].tolist() for name, value in extras.items()}
    return rows


def save_picture(image: np.ndarray, path: Path) -> None:
    """Writes a PNG file that `is_drawing` recognises.

    Args:
        image: (H, W, 3) uint8 RGB.
        path: Path of the file.

    Raises:
        OSError: If the file cannot be written.
    """
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", WRITTEN_BY)
    with writing(path):
        Image.fromarray(image).save(path, pnginfo=texts)


def is_drawing(path: Path) -> bool:
    """Tells whether kerasdet wrote a picture or video, so that another one may replace it.

    Args:
        path: Path of a PNG or MP4 file.

    Returns:
        Whether the file has the mark of `save_picture` or `VideoWriter`.
    """
    with path.open("rb") as file:  # PNG files have the mark at their beginning, MP4 files at their end
        ends = file.read(_END)
        file.seek(max(path.stat().st_size - _END, 0))
        ends += file.read()
    return WRITTEN_BY.encode() in ends


def save_crops(found: Detections, image: np.ndarray, folder: Path, name: str) -> None:
    """Writes a picture of each detected object, into one folder per class.

    Args:
        found: Detections of the image.
        image: (H, W, 3) uint8 RGB.
        folder: Folder in which the folders of the classes are created.
        name: Beginning of the file names, to which the number of the object is appended.
    """
    height, width = image.shape[:2]
    for index, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True)):
        top, left = np.maximum(np.floor(box[:2]), 0).astype(int)
        bottom, right = np.minimum(np.ceil(box[2:]), (height, width)).astype(int)
        if top < bottom and left < right:
            path = folder / (re.sub(r"[^\w.,+ -]", "_", label).strip(". ") or "_") / f"{name}_{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(image[top:bottom, left:right], path)


class CocoFile:
    """Collects detections as a COCO dataset whose annotations have scores, and writes it.

    Labelling tools, FiftyOne and `CocoDataset` can read the file. Its annotations are also valid entries of a COCO
    results file. Category ids are class ids + 1.

    Args:
        path: Path of the file to write.
        predictor: Predictor whose classes become the categories.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, path: str, predictor: Predictor):
        self.path = prepare_file(path, "--coco", may_be_coco=True)
        names = predictor.class_names or [str(k) for k in range(predictor.num_classes or 1)]
        self.category_ids = [k + 1 for k in range(len(names))]
        self.categories = [{"id": k, "name": name} for k, name in zip(self.category_ids, names, strict=True)]
        self.images = []
        self.annotations = []

    def add(self, found: Detections, file_name: str) -> None:
        """Adds the detections of an image.

        Args:
            found: Detections of the image.
            file_name: Path of the image.
        """
        image_id = len(self.images) + 1
        height, width = found.image_size
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        ids = found.extras.get(TRACK_ID)
        for index, entry in enumerate(found.to_coco(image_id, self.category_ids)):
            entry |= {"id": len(self.annotations) + 1, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            if "keypoints" in entry:
                entry["num_keypoints"] = len(entry["keypoints"]) // 3
            if ids is not None and ids[index] >= 0:
                entry["attributes"] = {"track_id": int(ids[index])}
            self.annotations.append(entry)

    def write(self) -> None:
        """Writes the file.

        Raises:
            OSError: If the file cannot be written.
        """
        content = {"images": self.images, "categories": self.categories, "annotations": self.annotations}
        with replacing(self.path) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
