"""Detects objects with a file of `kerasdet export --format onnx`: ``python detect.py MODEL.onnx IMAGE``.

Only onnxruntime, NumPy and Pillow are needed. The file must have the postprocessing ``nms`` (the default).
"""

import argparse
import json

import numpy as np
import onnxruntime
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


def sizes(rule: dict, picture: tuple[int, int], shape: list) -> tuple[tuple[int, int], tuple[int, int]]:
    """Computes the size of the resized picture, and the size of the input that holds it top left.

    Args:
        rule: The entry ``preprocessing`` of the description in the file.
        picture: Width and height of the picture in pixels.
        shape: Shape (B, H, W, 3) of the file's input.

    Returns:
        Both sizes, (width, height) in pixels.
    """
    _, height, width, _ = shape  # numbers if the file has a fixed size, else names
    fixed = isinstance(height, int)
    if rule["rounding"] == "square":  # SSD stretches its images
        whole = (width, height) if fixed else (min(rule["shortest"], rule["longest"]),) * 2
        return whole, whole
    if fixed:
        scale = min(width / picture[0], height / picture[1])
    else:
        scale = min(rule["shortest"] / min(picture), rule["longest"] / max(picture))
    offset = 1e-9 if rule["rounding"] == "torchvision" else 0.5  # torchvision rounds down
    size = tuple(max(int(side * scale + offset), 1) for side in picture)
    if fixed:
        return size, (width, height)
    if rule["letterbox_value"] is None:
        return size, size
    return size, (-(-rule["longest"] // rule["size_divisor"]) * rule["size_divisor"],) * 2  # RTMDet pads to a square


def detect(session: onnxruntime.InferenceSession, picture: Image.Image) -> list[tuple[str, float, list[float]]]:
    """Returns class, score and box (y1, x1, y2, x2) of each object, in pixels of the image."""
    properties = session.get_modelmeta().custom_metadata_map
    names, rule = json.loads(properties.get("class_names", "null")), json.loads(properties["kerasdet"])["preprocessing"]
    [image] = session.get_inputs()
    size, whole = sizes(rule, picture.size, image.shape)
    canvas = Image.new("RGB", whole, filling(rule))
    canvas.paste(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    pixels = np.asarray(canvas, np.uint8 if image.type == "tensor(uint8)" else np.float32)
    outputs = [output.name for output in session.get_outputs()]
    found = {name: value[0] for name, value in zip(outputs, session.run(outputs, {"image": pixels[None]}), strict=True)}
    count = int(found["num_detections"])
    scale_back = np.tile([whole[1] * picture.height / size[1], whole[0] * picture.width / size[0]], 2)
    boxes = np.clip(found["detection_boxes"][:count] * scale_back, 0, np.tile(picture.size[::-1], 2))
    return [
        (names[int(label)] if names else str(int(label)), float(score), box.tolist())
        for label, score, box in zip(
            found["detection_classes"][:count], found["detection_scores"][:count], boxes, strict=True
        )
        if (box[:2] < box[2:]).all()  # else the box lies outside of the image
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(options.model, providers=onnxruntime.get_available_providers())
    for name, score, box in detect(session, ImageOps.exif_transpose(Image.open(options.image))):
        print(name, f"{score:.3f}", *(f"{side:.1f}" for side in box))
