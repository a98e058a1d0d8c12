"""Writes datasets as COCO: `SPLIT.json` and `images/SPLIT/`."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kerasdet.data.portable import Part, further_values
from kerasdet.data.progress import progress


def write(parts: Sequence[Part], folder: Path) -> Counter[str]:
    """Writes splits as COCO files. The ids of images and categories are kept.

    Args:
        parts: Splits of the dataset.
        folder: Empty folder to write to.

    Returns:
        Counts of values that the format cannot store, by name; empty for COCO.
    """
    for part in parts:
        target = folder / "images" / part.name
        target.mkdir(parents=True)
        images, annotations = [], []
        for item in progress(part.items, f"Writing {part.name}"):
            item.save(target / item.name)
            size = {"height": item.record.height, "width": item.record.width}
            images.append({"id": item.record.image_id, "file_name": f"{part.name}/{item.name}", **size})
            annotations += [{**_plain(each), "id": len(annotations) + i} for i, each in enumerate(item.annotations, 1)]
        data = {"images": images, "annotations": annotations, "categories": [_category(c) for c in part.categories]}
        (folder / f"{part.name}.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return Counter()


def _plain(annotation):
    """Returns the keys of an annotation that COCO defines, `difficult` of Pascal VOC, and further numbers."""
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    plain = {**further_values(annotation), **{key: annotation[key] for key in keys}}
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
        segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    plain["segmentation"] = segmentation or []
    if annotation.get("keypoints"):
        plain["keypoints"] = annotation["keypoints"]
        plain["num_keypoints"] = sum(visibility > 0 for visibility in annotation["keypoints"][2::3])
    return {**plain, **({"difficult": 1} if annotation.get("difficult") else {})}


def _category(category):
    kept = {key: category[key] for key in ("id", "name", "supercategory") if key in category}
    if category.get("keypoints"):
        kept["keypoints"] = category["keypoints"]
        kept["skeleton"] = category.get("skeleton") or []
    return kept
