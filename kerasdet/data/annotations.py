"""Reads the values of COCO annotations: the one reader that training data and evaluation share."""

import json

import numpy as np

from kerasdet.errors import UserError
from kerasdet.geometry import rle


def read_json(path):
    """Parses a JSON file."""
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist. Check the path.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}. Export or download the annotations again.") from None
    return data


def check_sections(data, path):
    """Checks that the three sections of a COCO file are lists of objects."""
    if isinstance(data, list):
        raise UserError(
            f"{path} holds a list, as files of detections do; expected a COCO dataset with images, annotations and "
            "categories. Give the ground-truth file."
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or key not in data:
            raise UserError(
                f'{path} has no "{key}"; a COCO dataset has images, annotations and categories. Convert the file to '
                "COCO format."
            )
        if not isinstance(data[key], list) or not all(isinstance(item, dict) for item in data[key]):
            raise UserError(f'{path}: "{key}" is not a list of JSON objects, as COCO requires. Correct the file.')
    for key in ("images", "categories"):
        if not data[key]:
            raise UserError(f'{path}: "{key}" is empty; expected at least one entry. Correct the file.')


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def categories(data, path):
    """Returns the category ids in ascending order and their names."""
    names = {}
    for number, category in enumerate(data["categories"]):
        category_id, name = category.get("id"), category.get("name")
        if not _is_int(category_id) or not isinstance(name, str):
            raise UserError(
                f'{path}: category number {number} is {category}; it needs an integer "id" and a string "name". Add '
                "them to the file."
            )
        if category_id in names:
            raise UserError(
                f'{path}: categories "{names[category_id]}" and "{name}" share the id {category_id}. Give each '
                "category an id of its own."
            )
        names[category_id] = name
    ids = tuple(sorted(names))
    return ids, tuple(names[i] for i in ids)


def image_sizes(data, path):
    """Maps image id to (height, width), in the order of the JSON."""
    sizes = {}
    for number, image in enumerate(data["images"]):
        image_id, size = image.get("id"), (image.get("height"), image.get("width"))
        if not _is_int(image_id) or not image.get("file_name") or not isinstance(image["file_name"], str):
            raise UserError(
                f'{path}: image number {number} is {image}; it needs an integer "id" and a "file_name". Add them to '
                "the file."
            )
        if not all(_is_int(length) and length > 0 for length in size):
            raise UserError(
                f'{path}: image {image_id} has (height, width) {size}; expected positive integers. Correct "height" '
                'and "width".'
            )
        if image_id in sizes:
            raise UserError(
                f"{path}: two images share the id {image_id}; the second is {image['file_name']}. Give each image an "
                "id of its own."
            )
        sizes[image_id] = size
    return sizes


def keypoint_names(data, path):
    """Returns names and skeleton of the keypoints, which all categories with keypoints must share."""
    categories = [category for category in data["categories"] if category.get("keypoints")]
    if not categories:
        raise UserError(
            f'{path}: no category has "keypoints", which keypoints=True needs. Add the names of the keypoints to the '
            "category, or read the dataset without keypoints."
        )
    first, *others = categories
    names = first["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path}: the "keypoints" of category {first["id"]} are not a list of names. Correct the category.'
        )
    for other in others:
        if other["keypoints"] != names:
            raise UserError(
                f"{path}: categories {first['id']} and {other['id']} have different keypoints, but a model has one "
                "set. Keep the keypoints of one of the two."
            )
    try:
        skeleton = tuple((int(a) - 1, int(b) - 1) for a, b in first.get("skeleton", []))
        valid = all(0 <= i < len(names) for pair in skeleton for i in pair)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError(
            f'{path}: the "skeleton" of category {first["id"]} is not a list of pairs of numbers from 1 to '
            f"{len(names)}. Correct the category."
        )
    return tuple(names), skeleton


def keypoints(data, count, path):
    """Returns the keypoints of all annotations: (N, J, 3) float32 as (y, x, visibility), in continuous pixels."""
    keypoints = np.zeros((len(data["annotations"]), count, 3), np.float32)  # (x, y, visibility)
    for row, annotation in zip(keypoints, data["annotations"], strict=True):
        if not annotation.get("keypoints"):
            continue
        try:
            row[:] = np.array(annotation["keypoints"], np.float32).reshape(count, 3)
        except (TypeError, ValueError):
            row[:] = np.nan
        if not np.isfinite(row).all() or not np.isin(row[:, 2], (0, 1, 2)).all():
            raise UserError(
                f'{path}: {_name(annotation)} has "keypoints" {str(annotation["keypoints"])[:80]}; expected '
                f"{3 * count} numbers, x, y and visibility (0, 1 or 2) for each of the {count} keypoints of its "
                "category. Correct the annotation."
            )
    labelled = keypoints[..., 2:] > 0
    return np.where(labelled, keypoints[..., [1, 0, 2]] + np.float32([0.5, 0.5, 0]), np.float32(0))


def runs(data, sizes, path):
    """Returns the run lengths of every annotation's mask; an empty array if the mask covers no pixel."""
    runs = []
    for annotation in data["annotations"]:
        segmentation = annotation.get("segmentation")
        if not isinstance(segmentation, list | dict):
            raise UserError(
                f'{path}: {_name(annotation)} has no "segmentation", which masks=True needs. Add polygons or an RLE, '
                "or read the dataset without masks."
            )
        try:
            runs.append(rle.runs_from_segmentation(segmentation, *sizes[annotation["image_id"]]))
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise UserError(f"{path}: {_name(annotation)} {reason}. Correct its segmentation.") from None
    if runs and not any(map(len, runs)):
        raise UserError(
            f"{path}: no annotation has a mask, which masks=True needs. Add segmentations, or read the dataset "
            "without masks."
        )
    return runs


def _name(annotation):
    return f"annotation {annotation['id']}" if "id" in annotation else f"an annotation ({str(annotation)[:200]})"


def annotation_error(annotation, image_ids, category_ids):
    """Returns the error message for an annotation that could not be read."""
    name = _name(annotation)
    for key, section, known in (("image_id", "images", image_ids), ("category_id", "categories", category_ids)):
        if key not in annotation:
            return f'{name} has no "{key}". Add the id of an entry of "{section}".'
        if not _is_int(annotation[key]) or annotation[key] not in known:
            return (
                f'{name} has the {key} {annotation[key]!r}, but no entry of "{section}" has that id. Correct the id '
                "or add the entry."
            )
    if "bbox" not in annotation:
        return f'{name} has no "bbox". Add the four numbers [x, y, width, height] in pixels.'
    return (
        f'{name} has "bbox" {annotation["bbox"]!r}; expected four numbers [x, y, width, height] in pixels. Correct '
        "the annotation."
    )
