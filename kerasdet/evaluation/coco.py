"""Scores detections with pycocotools, and converts them to COCO's results format.

This module does not import TensorFlow: NumPy and pycocotools are enough to score a detections file.
"""

import contextlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from kerasdet.errors import UserError
from kerasdet.evaluation.metrics import KEYPOINT_SUMMARY, PROPOSAL_SUMMARY, SUMMARY, CocoMetrics, DetectorMetrics

Source = str | os.PathLike | dict | list  # a path, or the content of the file
GEOMETRY = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
PROPOSAL_LIMITS = (100, 300, 1000)  # numbers of best boxes per image for which recall is measured
UNIFORM_SIGMA = 0.05  # annotators' spread at keypoints other than COCO's 17; nobody has measured it there


def read_ground_truth(source: Source) -> dict:
    """Reads COCO ground truth and checks everything that an evaluation needs of it.

    Args:
        source: Path of an annotation file, or its content, which is not changed.

    Returns:
        Dict with `images`, `categories` and `annotations`. The annotations are copies with ids from 1 and a value
        for `iscrowd`.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not COCO ground truth.
    """
    content, where = _read_json(source, "the ground truth")
    if not isinstance(content, dict):
        raise UserError(f"{where} is not COCO ground truth: expected an object, found {type(content).__name__}.")
    for key in ("images", "categories"):
        if not content.get(key):
            raise UserError(f"{where} is not COCO ground truth: it has no {key}. Give a COCO annotation file.")
    annotations = []
    # pycocotools 2.0 treats id 0 as "no match" and merges annotations that share an id.
    for number, annotation in enumerate(content.get("annotations", []), 1):
        for key in ("image_id", "category_id"):
            if key not in annotation:
                raise UserError(f"{where}: annotation {annotation.get('id', number)} has no {key}: COCO needs one.")
        annotations.append({**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd") or 0)})
    return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def evaluate_all(
    ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> DetectorMetrics:
    """Scores boxes, masks and keypoints, as far as both results and ground truth have them.

    Args:
        ground_truth: Path of a COCO annotation file, or its content.
        results: Path of a COCO results file, or its content.
        image_ids: Ids of the images to score. None scores all images of the ground truth.
        sigmas: (J,) as in `evaluate_coco`.

    Returns:
        The metrics of each type. Empty results are scored as boxes.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: As `evaluate_coco`.
    """
    truth, (entries, _) = read_ground_truth(ground_truth), _read_json(results, "the results")
    offered = {name for name, key in GEOMETRY.items() if any(key in e for e in entries if isinstance(e, dict))}
    if not any(annotation.get("segmentation") for annotation in truth["annotations"]):
        offered.discard("segm")
    if not any(category.get("keypoints") for category in truth["categories"]):
        offered.discard("keypoints")
    return DetectorMetrics(
        {
            iou_type: evaluate_coco(ground_truth, results, iou_type, image_ids, sigmas)
            for iou_type in GEOMETRY
            if iou_type in (offered or {"bbox"})
        }
    )


def evaluate_coco(
    ground_truth: Source,
    results: Source,
    iou_type: str = "bbox",
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> CocoMetrics:
    """Scores results against ground truth with pycocotools.

    Among equal scores of one class in one image, the earlier result ranks higher, as in pycocotools. Annotations with a
    true `difficult`, as in Pascal VOC, count neither as found nor as missed.

    Args:
        ground_truth: Path of a COCO annotation file, or its content, which is not changed.
        results: Path of a COCO results file, or its content, which is not changed.
        iou_type: "bbox", "segm" for masks as compressed RLE, or "keypoints" for the categories that have keypoints in
            the ground truth.
        image_ids: Ids of the images to score. None scores all images of the ground truth.
        sigmas: (J,) annotators' spread at each keypoint, as a fraction of the object's size. None takes COCO's values
            for 17 keypoints and 0.05 for any other number.

    Returns:
        COCO's twelve numbers (ten for keypoints), and the AP of each class.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result names an image or a category that the ground truth
            lacks.
    """
    if iou_type not in GEOMETRY:
        raise UserError(f"iou_type is {iou_type!r}; it must be one of {', '.join(map(repr, GEOMETRY))}.")
    evaluation, names = _accumulate(ground_truth, results, iou_type, image_ids, sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    fields = KEYPOINT_SUMMARY if iou_type == "keypoints" else SUMMARY
    summary = {name: _nan_if_undefined(value) for name, value in zip(fields, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10 thresholds, 101 recalls, K)
    per_class = {
        names[category_id]: _nan_if_undefined(precision[:, :, k].mean())
        for k, category_id in enumerate(evaluation.params.catIds)
    }
    return CocoMetrics(iou_type, summary, per_class)


def evaluate_proposals(
    ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None
) -> DetectorMetrics:
    """Measures the average recall (mean over IoU 0.50 to 0.95) of boxes, whatever their class.

    Args:
        ground_truth: Path of a COCO annotation file, or its content.
        results: Path of a COCO results file, or its content. Its categories may be any of the ground truth's.
        image_ids: Ids of the images to score. None scores all images of the ground truth.

    Returns:
        ``AR100``, ``AR300`` and ``AR1000``, the recall of the best 100, 300 and 1000 boxes of each image, and ``ARs``,
        ``ARm`` and ``ARl``, the recall of small, medium and large objects among the best 1000. No AP and no classes.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: As `evaluate_coco`.
    """
    evaluation, _ = _accumulate(ground_truth, results, "bbox", image_ids, limits=PROPOSAL_LIMITS)
    recall = evaluation.eval["recall"].mean(0)[0]  # (all, small, medium and large, limits)
    values = [*recall[0], *recall[1:, -1]]
    summary = {name: _nan_if_undefined(value) for name, value in zip(PROPOSAL_SUMMARY, values, strict=True)}
    return DetectorMetrics({"bbox": CocoMetrics("bbox", summary, {})})


def _accumulate(ground_truth, results, iou_type, image_ids, sigmas=None, limits=None):
    """Runs COCOeval; returns it and the category names. `limits`, numbers of boxes per image, also disables classes."""
    truth = read_ground_truth(ground_truth)
    truth_name = _name_of(ground_truth, "the ground truth")
    categories, sigmas = _scored_categories(truth["categories"], iou_type, sigmas, truth_name)
    annotations = [a for a in truth["annotations"] if iou_type != "keypoints" or a["category_id"] in categories]
    annotations = [
        _with_area(_with_keypoints(a, iou_type, sigmas, truth_name), iou_type, truth_name) for a in annotations
    ]
    images = {image["id"]: image for image in truth["images"]}
    if iou_type == "segm":
        _check_image_sizes(images, truth_name)
    entries, results_name = _read_json(results, "the results")
    if not isinstance(entries, list):
        raise UserError(f"{results_name} must hold a list of detections, found {type(entries).__name__}.")
    names = _class_names(truth["categories"])
    detections = [
        _checked_result(entry, number, iou_type, images, names, results_name, truth_name, sigmas)
        for number, entry in enumerate(entries, 1)
    ]
    image_ids = sorted(images) if image_ids is None else _checked_image_ids(image_ids, images, truth_name)
    with contextlib.redirect_stdout(io.StringIO()):
        truth_index = _indexed({**truth, "annotations": annotations})
        evaluation = _Evaluation(truth_index, _indexed({**truth, "annotations": detections}), iou_type)
        evaluation.params.imgIds = image_ids
        evaluation.params.catIds = sorted(categories)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = sigmas
        if limits:
            evaluation.params.useCats = 0
            evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation, names


class _Evaluation(COCOeval):
    """COCOeval that ignores annotations with `difficult`; unlike crowds, they match by ordinary IoU."""

    def _prepare(self):
        super()._prepare()
        for annotations in self._gts.values():
            for annotation in annotations:
                annotation["ignore"] = annotation["ignore"] or annotation.get("difficult", 0)


def _nan_if_undefined(value):
    return math.nan if value < 0 else float(value)


def _indexed(dataset):
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _is_path(source):
    return isinstance(source, (str, os.PathLike))


def _name_of(source, otherwise):
    return os.fspath(source) if _is_path(source) else otherwise


def _read_json(source, otherwise):
    """Returns the content of a path, or the content itself, and its name for messages."""
    name = _name_of(source, otherwise)
    if not _is_path(source):
        return source, name
    if not os.path.isfile(source):
        raise FileNotFoundError(f"There is no file {name}: check the path.")
    with open(source, encoding="utf-8") as file:
        try:
            return json.load(file), name
        except ValueError as error:
            raise UserError(f"{name} is not a JSON file: {error}. Give a file in COCO's format.") from None


def _class_names(categories):
    """Category id -> name, with the id added to names that several categories share."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    count = Counter(names.values())
    return {key: name if count[name] == 1 else f"{name} ({key})" for key, name in names.items()}


def _scored_categories(categories, iou_type, sigmas, where):
    """Ids of the categories to score, and the sigma (J,) of each keypoint."""
    if iou_type != "keypoints":
        return [category["id"] for category in categories], None
    having = [category for category in categories if category.get("keypoints")]
    if not having:
        raise UserError(f"{where} has no category with keypoints: score boxes or masks, or give another file.")
    count = len(having[0]["keypoints"])
    if any(len(category["keypoints"]) != count for category in having):
        raise UserError(f"{where} has categories with different numbers of keypoints: score one category at a time.")
    if sigmas is None:
        standard = Params(iouType="keypoints").kpt_oks_sigmas
        sigmas = standard if len(standard) == count else np.full(count, UNIFORM_SIGMA)
    if len(sigmas) != count:
        raise UserError(f"There are {len(sigmas)} sigmas for the {count} keypoints of {where}: give one for each.")
    return [category["id"] for category in having], np.asarray(sigmas, np.float64)


def _with_keypoints(annotation, iou_type, sigmas, where):
    if iou_type != "keypoints":
        return annotation
    keypoints = annotation.get("keypoints") or [0] * (3 * len(sigmas))
    if len(keypoints) != 3 * len(sigmas) or not _are_numbers(keypoints):
        raise UserError(
            f"{where}: the annotation at position {annotation['id']} (image {annotation['image_id']}) needs "
            f"{3 * len(sigmas)} numbers as keypoints."
        )
    return {**annotation, "keypoints": keypoints, "num_keypoints": sum(v > 0 for v in keypoints[2::3])}


def _with_area(annotation, iou_type, where):
    needed = {GEOMETRY[iou_type]} if annotation.get("area") is not None else {GEOMETRY[iou_type], "bbox"}
    if iou_type == "keypoints":
        needed.add("bbox")
    for key in sorted(needed):
        if annotation.get(key) is None or len(annotation[key]) == 0:
            raise UserError(
                f"{where}: the annotation at position {annotation['id']} (image {annotation['image_id']}) has no "
                f"{key}. Add it, or remove the annotation."
            )
    if "bbox" not in needed:
        return annotation
    area = annotation.get("area")
    return {**annotation, "area": annotation["bbox"][2] * annotation["bbox"][3] if area is None else area}


def _check_image_sizes(images, where):
    for image_id, image in images.items():
        if not image.get("height") or not image.get("width"):
            raise UserError(f"{where}: image {image_id} has no height and width, which masks need. Add them.")


def _checked_image_ids(image_ids, images, where):
    chosen = sorted(set(np.asarray(image_ids).tolist()))
    if not chosen:
        raise UserError("image_ids is empty, so there is nothing to evaluate: give at least one id, or None for all.")
    for image_id in chosen:
        if image_id not in images:
            raise UserError(f"image_ids names image {image_id!r}, which {where} lacks. Remove it from image_ids.")
    return chosen


def _checked_result(entry, number, iou_type, images, names, where, truth_name, sigmas):
    """Checks one result and copies the fields that COCOeval reads."""
    key = GEOMETRY[iou_type]
    missing = [k for k in ("image_id", "category_id", "score", key) if not isinstance(entry, dict) or k not in entry]
    if missing:
        raise UserError(
            f"{where}: result {number} has no {' and no '.join(missing)}. Add the key, or export the results again."
        )
    image_id, category_id, score, geometry = entry["image_id"], entry["category_id"], entry["score"], entry[key]
    if image_id not in images:
        raise UserError(
            f"{where}: result {number} is for image {image_id!r}, which {truth_name} lacks: give its own results."
        )
    if category_id not in names:
        raise UserError(
            f"{where}: result {number} is of category {category_id!r}, which {truth_name} lacks: use its category ids."
        )
    if not _are_numbers([score]):
        raise UserError(f"{where}: result {number} has the score {score!r}; expected a finite number.")
    if iou_type == "bbox":
        if len(geometry) != 4 or not _are_numbers(geometry):
            raise UserError(f"{where}: result {number} has the bbox {geometry!r}; expected x, y, width, height.")
        area = geometry[2] * geometry[3]
    elif iou_type == "keypoints":
        if len(geometry) != 3 * len(sigmas) or not _are_numbers(geometry):
            raise UserError(f"{where}: result {number} needs {3 * len(sigmas)} numbers as keypoints.")
        # COCO's loadRes takes the extent of the keypoints only if there is no box; here the area never depends on that.
        area = float(np.ptp(geometry[0::3]) * np.ptp(geometry[1::3]))
    else:
        _check_rle(geometry, images[image_id], f"{where}: result {number}")
        # COCO's size classes go by mask area, but its loadRes takes the box's area if the entry has a box.
        area = float(mask_utils.area(geometry))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        key: geometry,
        "area": area,
        "iscrowd": 0,
    }


def _are_numbers(values):
    return all(isinstance(value, (int, float, np.number)) and math.isfinite(value) for value in values)


def _check_rle(rle, image, what):
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), (str, bytes)):
        raise UserError(f"{what} has a segmentation that is not compressed RLE: encode its mask with pycocotools.mask.")
    size = [image["height"], image["width"]]
    if list(rle.get("size", [])) != size:
        raise UserError(f"{what} has a mask of size {rle.get('size')}, but its image is {size}.")
