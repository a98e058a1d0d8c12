"""Detects objects with a file of `kerasdet export --format tflite`: ``python detect.py MODEL.tflite IMAGE``.

Only ai-edge-litert, NumPy and Pillow are needed. The file must have the postprocessing ``nms`` (the default) or
``postprocess``.
"""

import argparse
import json
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps


def filling(rule: dict) -> tuple[int, ...]:
    """Returns the colour (red, green, blue) of the padding around an image.

    Args:
        rule: The entry ``preprocessing`` of the description in the file.
    """
    if rule["letterbox_value"] is not None:
        return (round(rule["letterbox_value"]),) * 3
    mean = map(round, rule["mean"])
    return tuple(mean) if rule["channel_order"] == "rgb" else tuple(mean)[::-1]


def detect(model: str, picture: Image.Image, threads: int = 4) -> list[tuple[str, float, list[float]]]:
    """Returns label, score and box (y1, x1, y2, x2) of each object, in pixels of the image."""
    with zipfile.ZipFile(model) as files:
        labels = files.read("labels.txt").decode().splitlines() if "labels.txt" in files.namelist() else None
        rule = json.loads(files.read("kerasdet.json"))["preprocessing"]
    interpreter = Interpreter(model, num_threads=threads)
    run = interpreter.get_signature_runner()
    pixels = run.get_input_details()["image"]
    _, height, width, _ = pixels["shape"]
    if rule["rounding"] == "square":  # SSD stretches its images
        size = (width, height)
    else:
        scale = min(height / picture.height, width / picture.width)
        size = tuple(max(round(side * scale), 1) for side in picture.size)
    resized = Image.new("RGB", (width, height), filling(rule))
    resized.paste(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    found = run(image=np.array(resized, pixels["dtype"])[None])
    count = int(found["num_detections"][0])
    scale_back = np.tile([picture.height * height / size[1], picture.width * width / size[0]], 2)
    boxes = np.clip(found["detection_boxes"][0, :count] * scale_back, 0, np.tile(picture.size[::-1], 2))
    return [
        (labels[int(label)] if labels else str(int(label)), float(score), box.tolist())
        for label, score, box in zip(
            found["detection_classes"][0, :count], found["detection_scores"][0, :count], boxes, strict=True
        )
        if (box[:2] < box[2:]).all()  # else the box lies outside of the image
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    options = parser.parse_args()
    for label, score, box in detect(options.model, ImageOps.exif_transpose(Image.open(options.image))):
        print(label, f"{score:.3f}", *(f"{side:.1f}" for side in box))
