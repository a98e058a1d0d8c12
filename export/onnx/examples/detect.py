"""Detects objects with a file of `kerasdet export --format onnx`: ``python detect.py MODEL.onnx IMAGE``.

Only onnxruntime, NumPy and Pillow are needed. The file must have the postprocessing ``nms`` (the default).
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image


def filling(rule: dict) -> tuple[int, ...]:
    """Returns the colour (red, green, blue) of the padding around an image.

    Args:
        rule: The entry ``preprocessing`` of the description in the file.
    """
    if rule["letterbox_value"] is not None:
        return (round(rule["letterbox_value"]),) * 3
    mean = map(round, rule["mean"])
    return tuple(mean) if rule["channel_order"] == "rgb" else tuple(mean)[::-1]


def detect(session: onnxruntime.InferenceSession, picture: Image.Image) -> list[tuple[str, float, list[float]]]:
    """Returns class, score and box (y1, x1, y2, x2) of each object, in pixels of the image."""
    properties = session.get_modelmeta().custom_metadata_map
    names, rule = json.loads(properties.get("class_names", "null")), json.loads(properties["kerasdet"])["preprocessing"]
    [image] = session.get_inputs()
    _, height, width, _ = image.shape  # numbers if the file has a fixed size, else names
    fixed = isinstance(height, int)
    if fixed:
        scale = min(height / picture.height, width / picture.width)
    else:
        scale = min(rule["shortest"] / min(picture.size), rule["longest"] / max(picture.size))
    size = [max(round(side * scale), 1) for side in picture.size]
    resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    if fixed:
        canvas = Image.new("RGB", (width, height), filling(rule))
        canvas.paste(resized)
        resized = canvas
    pixels = np.asarray(resized, np.uint8 if image.type == "tensor(uint8)" else np.float32)
    outputs = [output.name for output in session.get_outputs()]
    found = {name: value[0] for name, value in zip(outputs, session.run(outputs, {"image": pixels[None]}), strict=True)}
    scale_back = np.tile([resized.height * picture.height / size[1], resized.width * picture.width / size[0]], 2)
    count = int(found["num_detections"])
    return [
        (names[int(label)] if names else str(int(label)), float(score), (box * scale_back).tolist())
        for label, score, box in zip(
            found["detection_classes"][:count],
            found["detection_scores"][:count],
            found["detection_boxes"][:count],
            strict=True,
        )
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.model, providers=onnxruntime.get_available_providers())
    for name, score, box in detect(session, Image.open(options.image)):
        print(name, f"{score:.3f}", *(f"{side:.1f}" for side in box))
