"""Writes small datasets in the formats of other tools, with independent code."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)  # height and width
NAMES = ("cat", "dog")


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """Writes a PNG or JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(names: list[str], *, polygons: bool = True) -> dict:
    """Makes the contents of a COCO file with two objects in each image but the last, which has none."""
    data = {
        "images": [{"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate(names, 1)],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for image_id in range(1, len(names)):
        for category_id in (1, 2):
            x, y, w, h = 2 * image_id + category_id, 3 * category_id, 10 + image_id, 12.5
            annotation = {"image_id": image_id, "category_id": category_id, "bbox": [x, y, w, h], "iscrowd": 0}
            if polygons:
                annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            data["annotations"].append({"id": len(data["annotations"]) + 1, "area": w * h, **annotation})
    return data


def boxes_of(data: dict, image_id: int) -> list[list[float]]:
    """Returns the boxes of an image as yxyx."""
    boxes = [a["bbox"] for a in data["annotations"] if a["image_id"] == image_id]
    return [[y, x, y + h, x + w] for x, y, w, h in boxes]


def png_base64(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_labelme(folder: Path, data: dict, images: Path | None) -> None:
    """Writes a COCO dict as LabelMe files beside copies of the images; None puts the images into the files."""
    names = {category["id"]: category["name"] for category in data["categories"]}
    folder.mkdir(parents=True, exist_ok=True)
    for image in data["images"]:
        shapes = []
        for a in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            points = [[x, y], [x + w, y + h]]
            shapes.append(
                {"label": names[a["category_id"]], "points": points, "shape_type": "rectangle", "group_id": None}
            )
        content = (images / image["file_name"]).read_bytes() if images else None
        if content:
            (folder / image["file_name"]).write_bytes(content)
        write_json(
            folder / f"{Path(image['file_name']).stem}.json",
            {
                "version": "5.4.1",
                "flags": {},
                "shapes": shapes,
                "imagePath": image["file_name"],
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            },
        )
