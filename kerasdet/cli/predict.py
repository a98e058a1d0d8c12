"""Implements ``kerasdet predict``: detections as a table, JSON and drawn images."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kerasdet.data import images as image_ops
from kerasdet.errors import UserError
from kerasdet.inference import Detections, Predictor


def predict(
    predictor: Predictor, paths: Sequence[str], *, score_threshold: float, draw: str | None, as_json: bool
) -> None:
    """Detects objects in images one by one and prints the detections.

    Args:
        predictor: A Keras model or an export.
        paths: The image files.
        score_threshold: Detections with a score at or below this are dropped. In [0, 1].
        draw: An existing folder for images with drawn detections; None draws nothing.
        as_json: Whether to print one JSON array instead of a table.

    Raises:
        UserError: If a picture would overwrite an image, or images could not be read; the others are printed
            nevertheless.
    """
    own = getattr(getattr(predictor, "postprocessing", None), "score_threshold", None)
    if own is not None and score_threshold < own:
        print(
            f"The model itself drops detections with a score of {own:g} or less, so --score-threshold "
            f"{score_threshold:g} shows no more than {own:g} does.",
            file=sys.stderr,
        )
    names = _picture_names(paths)
    if draw is not None:
        _check_pictures(draw, names, paths)
    entries = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = image_ops.read(path)
        except (OSError, ValueError) as error:
            entries.append({"image": path, "error": " ".join(str(error).split())})
        else:
            found = predictor.detect(image).filter(score=score_threshold)
            entries.append({"image": path, "detections": _records(found)})
            if draw is not None:
                _draw(found, image, Path(draw) / f"{name}.png")
        if not as_json:
            _print_entry(entries[-1])
    if as_json:
        print(json.dumps(entries, indent=1))
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        raise UserError(f"{len(errors)} of {len(entries)} images could not be read: {errors[0]}")


def _picture_names(paths):
    """Returns a file name for each drawn image; images with equal names also get their number."""
    stems = [Path(path).stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{index:03d}_{stem}" for index, stem in enumerate(stems)]


def _check_pictures(folder, names, paths):
    """Checks that no picture would replace one of the images."""
    images = {Path(path).resolve(): path for path in paths}
    for name in names:
        if (image := images.get((Path(folder) / f"{name}.png").resolve())) is not None:
            raise UserError(f"--draw {folder} would overwrite the image {image}: choose another folder.")


def _print_entry(entry):
    if "error" in entry:
        print(f"{entry['image']}: not read")
        return
    print(f"{entry['image']}: {len(entry['detections'])} objects")
    for record in entry["detections"]:
        y1, x1, y2, x2 = record["box"]
        print(f"  {record['label']:<20} {record['score']:.3f}   y {y1:7.1f} to {y2:7.1f}   x {x1:7.1f} to {x2:7.1f}")


def _records(found: Detections) -> list[dict]:
    """Returns detections as plain values: label, class_id, score and box (yxyx in pixels of the image).

    Models with keypoints add ``keypoints``, (y, x, score) each. Models with masks add ``segmentation``, a compressed
    RLE as in COCO's results. Further outputs of a model's branches are in ``extras``, by name.
    """
    records = []
    for box, score, class_id, label in zip(found.boxes, found.scores, found.class_ids, found.labels, strict=True):
        box = [round(float(value), 3) for value in box]
        records.append({"label": label, "class_id": int(class_id), "score": round(float(score), 5), "box": box})
    if found.keypoints is not None:
        for record, keypoints in zip(records, found.keypoints, strict=True):
            record["keypoints"] = np.round(keypoints.astype(float), 3).tolist()
    if found.mask_probs is not None:
        for record, segmentation in zip(records, found.encode_masks(), strict=True):
            record["segmentation"] = segmentation
    if found.extras:
        for index, record in enumerate(records):
            record["extras"] = {name: value[index].tolist() for name, value in found.extras.items()}
    return records


def _draw(found, image, path):
    scale = 2 if max(found.image_size) < 400 else 1  # names stay legible in small images
    Image.fromarray(found.draw(image, scale=scale)).save(path)
