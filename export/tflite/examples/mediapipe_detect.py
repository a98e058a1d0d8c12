"""Detects objects with MediaPipe: ``python mediapipe_detect.py MODEL.tflite IMAGE``.

The file comes from `kerasdet export --format tflite` with the postprocessing ``nms`` or ``postprocess``. Only mediapipe
is needed.
"""

import argparse

import mediapipe as mp
from mediapipe.tasks import python as tasks
from mediapipe.tasks.python import vision


def detect(model: str, image: str, min_score: float = 0.3) -> list[tuple[str, float, tuple[int, int, int, int]]]:
    """Returns label, score and box (y1, x1, y2, x2) of each object, in pixels of the image."""
    options = vision.ObjectDetectorOptions(tasks.BaseOptions(model_asset_path=model), score_threshold=min_score)
    with vision.ObjectDetector.create_from_options(options) as detector:
        found = detector.detect(mp.Image.create_from_file(image)).detections
    results = []
    for detection in found:
        best, box = detection.categories[0], detection.bounding_box
        corners = (box.origin_y, box.origin_x, box.origin_y + box.height, box.origin_x + box.width)
        results.append((best.category_name or str(best.index), best.score, corners))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    options = parser.parse_args()
    for label, score, box in detect(options.model, options.image):
        print(label, f"{score:.3f}", *box)
