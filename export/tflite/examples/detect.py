"""Detects objects with a file of `kerasdet export --format tflite`: ``python detect.py MODEL.tflite IMAGE``.

Only ai-edge-litert, NumPy and Pillow are needed. The file must have the postprocessing ``nms`` (the default) or
``postprocess``.
"""

import argparse
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def detect(model: str, picture: Image.Image, threads: int = 4) -> list[tuple[str, float, list[float]]]:
    """Returns label, score and box (y1, x1, y2, x2) of each object, in pixels of the image."""
    with zipfile.ZipFile(model) as files:
        labels = files.read("labels.txt").decode().splitlines() if "labels.txt" in files.namelist() else None
    interpreter = Interpreter(model, num_threads=threads)
    run = interpreter.get_signature_runner()
    pixels = run.get_input_details()["image"]
    _, height, width, _ = pixels["shape"]
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    found = run(image=np.array(resized, pixels["dtype"])[None])
    count = int(found["num_detections"][0])
    sides = np.tile([picture.height, picture.width], 2)
    return [
        (labels[int(label)] if labels else str(int(label)), float(score), (box * sides).tolist())
        for label, score, box in zip(
            found["detection_classes"][0, :count],
            found["detection_scores"][0, :count],
            found["detection_boxes"][0, :count],
            strict=True,
        )
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    options = parser.parse_args()
    for label, score, box in detect(options.model, Image.open(options.image)):
        print(label, f"{score:.3f}", *(f"{side:.1f}" for side in box))
