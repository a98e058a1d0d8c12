"""Writes datasets as YOLO: `data.yaml`, `images/SPLIT/` and `labels/SPLIT/`."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from kerasdet.data.portable import Part
from kerasdet.data.progress import progress
from kerasdet.data.regions import join_polygons, mask_of, polygons_of
from kerasdet.geometry.keypoints import flip_order

log = logging.getLogger(__name__)


def write(parts: Sequence[Part], folder: Path) -> Counter[str]:
    """Writes splits with YOLO's label files. Class ids are 0..K-1 in the order of the categories.

    Objects with masks become polygons. If a dataset has masks, objects without a mask become rectangles, because
    Ultralytics ignores the polygons of a dataset with boxes. The parts of a mask are joined by bridges of zero width,
    and holes are lost. Datasets with keypoints get boxes and keypoints, and no polygons.

    Args:
        parts: Splits of the dataset.
        folder: Empty folder to write to.

    Returns:
        Counts of values that the format cannot store, by name, such as "crowds" and "masks".
    """
    lost: Counter[str] = Counter()
    annotations = [each for part in parts for item in part.items for each in item.annotations]
    joint_names = max((category.get("keypoints") or () for category in parts[0].categories), key=len)
    joints = len(joint_names)
    polygons = not joints and any(each.get("segmentation") for each in annotations)
    without_mask = 0
    for part in parts:
        class_of = {category["id"]: class_id for class_id, category in enumerate(part.categories)}
        images, labels = folder / "images" / part.name, folder / "labels" / part.name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for item in progress(part.items, f"Writing {part.name}"):
            item.save(images / item.name)
            size = item.record.height, item.record.width
            rows = []
            for annotation in item.annotations:
                if annotation["iscrowd"]:
                    lost["crowds"] += 1
                    continue
                lost["difficult flags"] += bool(annotation.get("difficult"))
                lost["masks"] += bool(annotation.get("segmentation")) and not polygons
                without_mask += polygons and not annotation.get("segmentation")
                values = _polygon(annotation, *size) if polygons else _box(annotation["bbox"], *size)
                values += _keypoints(annotation.get("keypoints"), joints, *size)
                rows.append(" ".join([str(class_of[annotation["category_id"]]), *map(_number, values)]))
            (labels / item.name).with_suffix(".txt").write_text("".join(f"{row}\n" for row in rows))
    names = {class_id: category["name"] for class_id, category in enumerate(parts[0].categories)}
    shape = {"kpt_shape": [joints, 3], "flip_idx": list(flip_order(joint_names))} if joints else {}
    data = {**{part.name: f"images/{part.name}" for part in parts}, **shape, "names": names}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    if without_mask:
        log.warning(
            "%s: %d objects without a mask, beside others with one, are written as rectangles: training masks on this "
            "dataset takes the rectangles for masks.",
            folder,
            without_mask,
        )
    return lost


def _number(value):
    """Formats a number so that reading it gives the same value."""
    return repr(float(value)).removesuffix(".0")


def _box(box, height, width):
    x, y, w, h = box
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def _polygon(annotation, height, width):
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        outlines = polygons_of(mask_of(segmentation, height, width))
    else:
        outlines = [np.reshape(polygon, (-1, 2)) for polygon in segmentation or ()]
    if not outlines:
        x, y, w, h = annotation["bbox"]
        outlines = [np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])]
    return (np.clip(join_polygons(outlines), 0, (width, height)) / (width, height)).ravel().tolist()


def _keypoints(keypoints, count, height, width):
    points = np.reshape(keypoints or [0.0] * 3 * count, (-1, 3)) / (width, height, 1)
    return points.ravel().tolist()
