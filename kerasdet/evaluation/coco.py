"""Scores detections by COCO's rules: AP and recall of boxes, masks and keypoints.

This module does not import TensorFlow: scoring a file of detections needs only NumPy, pycocotools and hotcoco.
"""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.cocoeval import Params

from kerasdet.data.annotations import CHANGES, GroundTruth, name_of, read_contents, read_json
from kerasdet.data.values import Changes, is_missing, show
from kerasdet.errors import UserError
from kerasdet.evaluation.engines import Accumulated, accumulate, check_engine, mean_of_known
from kerasdet.evaluation.metrics import PROPOSAL_SUMMARY, CocoMetrics, DetectorMetrics
from kerasdet.evaluation.results import GEOMETRY, ResultsReader, as_rle, warn_of_units

_logger = logging.getLogger(__name__)

Source = str | os.PathLike | dict | list  # a path, or the content of the file
PROPOSAL_LIMITS = (100, 300, 1000)  # recall is measured for this many best boxes per image
UNIFORM_SIGMA = 0.05  # annotators' spread for other keypoints than COCO's 17, for which nobody has measured it


def read_ground_truth(source: Source) -> GroundTruth:
    """Reads COCO ground truth and checks its values.

    Args:
        source: Path of an annotation file, or its contents as a dict, which is not changed.

    Returns:
        The ground truth, a dict of the lists `images`, `categories` and `annotations` whose values have the right
        types.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not COCO ground truth.
    """
    content, name = _content(source, "the ground truth")
    contents = read_contents(content, name)
    sections = {"images": contents.images, "categories": contents.categories, "annotations": contents.annotations}
    return GroundTruth(sections, name)


def check_ground_truth(source: Source, iou_types: Sequence[str]) -> None:
    """Checks, before training starts, that evaluations can read the ground truth.

    Args:
        source: Path of an annotation file, or its contents as a dict.
        iou_types: Types of geometry to score, such as ("bbox", "segm"). Types that the ground truth lacks are skipped,
            because `evaluate_all` does not score them.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the ground truth is invalid.
    """
    content, name = _content(source, "the ground truth")
    for iou_type in _types_of(content, iou_types):
        _prepare(_read(content, name, [iou_type], log=False), iou_type)


def evaluate_all(
    ground_truth: Source,
    results: Source,
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    engine: str | None = None,
) -> DetectorMetrics:
    """Scores boxes, masks and keypoints: every type that both results and ground truth have.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each keypoint, as a fraction of the object's size. None:
            COCO's values for 17 keypoints, 0.05 for any other number.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        The metrics of each type. Empty results are scored as boxes.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    check_engine(engine)
    all_cases = read_cases(ground_truth, results, image_ids, sigmas)
    return DetectorMetrics({cases.iou_type: cases.metrics(engine) for cases in all_cases})


def read_cases(
    ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> list["Cases"]:
    """Reads detections and ground truth for each type that both have: boxes, masks and keypoints.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections. If the results are empty, the
            type is boxes.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each keypoint, as a fraction of the object's size. None:
            COCO's values for 17 keypoints, 0.05 for any other number.

    Returns:
        One `Cases` per type.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    (truth, truth_name), (entries, results_name) = _content(ground_truth, "the ground truth"), _results(results)
    chosen = _shared_types(truth, truth_name, entries, results_name)
    contents = _read(truth, truth_name, chosen)
    return [_cases(contents, entries, results_name, iou_type, image_ids, sigmas) for iou_type in chosen]


def types_of(ground_truth: Source, results: Source) -> list[str]:
    """Returns the types of "bbox", "segm" and "keypoints" that both files have; "bbox" for empty results.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If the files have no type in common.
    """
    return _shared_types(*_content(ground_truth, "the ground truth"), *_results(results))


def _shared_types(truth, truth_name, entries, results_name):
    offered = [name for name, key in GEOMETRY.items() if any(not is_missing(e.get(key)) for e in entries)]
    shared = _types_of(truth, offered or ["bbox"])
    if not shared:
        lacking = " and ".join({"segm": "masks", "keypoints": "keypoints"}[each] for each in offered)
        raise UserError(
            f"The detections in {results_name} have {lacking} but no boxes, and {truth_name} has no {lacking}: "
            f"expected geometry that both have. Add a bbox to each detection, or use ground truth with {lacking}."
        )
    return shared


def cases_of_type(
    ground_truth: Source, results: Source, iou_type: str, image_ids: Sequence[int] | None = None
) -> tuple["Cases", str]:
    """Reads detections and ground truth of one type.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        iou_type: "bbox", "segm" or "keypoints".
        image_ids: Ids of the images to score. None: all images of the ground truth.

    Returns:
        The `Cases`, and the name of the ground truth for error messages.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    content, name = _content(ground_truth, "the ground truth")
    return _cases(_read(content, name, [iou_type]), *_results(results), iou_type, image_ids), name


def evaluate_coco(
    ground_truth: Source,
    results: Source,
    iou_type: str = "bbox",
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    engine: str | None = None,
) -> CocoMetrics:
    """Scores results against ground truth by COCO's rules.

    Among equal scores of one class in one image, the earlier result ranks higher, as in pycocotools. Annotations with
    ``"difficult": true``, as in Pascal VOC, count neither as found nor as missed.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict, which is not changed.
        results: Path of a COCO results file, or its contents as a list of detections, which is not changed.
        iou_type: "bbox", "segm" for masks as compressed RLE, or "keypoints" for the categories that have keypoints in
            the ground truth.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each keypoint, as a fraction of the object's size. None:
            COCO's values for 17 keypoints, 0.05 for any other number.
        engine: Library that computes AP, "hotcoco" or "pycocotools" (the reference); both give the same numbers. None:
            hotcoco.

    Returns:
        COCO's twelve metrics such as AP and AP50 (ten for keypoints), and the AP of each class.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    if iou_type not in GEOMETRY:
        raise UserError(f"iou_type is {iou_type!r}: choose one of {', '.join(map(repr, GEOMETRY))}.")
    check_engine(engine)
    contents = _read(*_content(ground_truth, "the ground truth"), [iou_type])
    return _cases(contents, *_results(results), iou_type, image_ids, sigmas).metrics(engine)


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """Holds the ground truth and the detections of an evaluation, after reading and checking.

    Args:
        iou_type: "bbox", "segm" or "keypoints".
        images: Entries `images` of the COCO ground truth.
        categories: Entries `categories` of the COCO ground truth.
        annotations: Annotations of the scored images, for COCOeval. If `ignored` is true, an object counts neither as
            found nor as missed; crowds have `iscrowd` instead.
        detections: The detections in the form of annotations, in the order of the results.
        image_ids: Ids of the scored images, ascending.
        names: Maps the ids of the scored categories to class names, by ascending id.
        sigmas: (J,) standard deviation of the annotations of each keypoint, as a fraction of the object's size; None
            without keypoints.
    """

    iou_type: str
    images: Sequence[Mapping]
    categories: Sequence[Mapping]
    annotations: Sequence[Mapping]
    detections: Sequence[Mapping]
    image_ids: Sequence[int]
    names: Mapping[int, str]
    sigmas: np.ndarray | None

    def accumulate(self, engine: str | None = None, limits: Sequence[int] | None = None) -> Accumulated:
        """Computes precision and recall with an engine.

        Args:
            engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.
            limits: Maximum numbers of boxes per image for which class-agnostic recall is measured. None: classes are
                scored separately with COCO's limits.

        Returns:
            The arrays of precision and recall.

        Raises:
            UserError: If the engine is unknown or not installed.
        """
        # only masks need the sizes of images; hotcoco would also read invalid sizes that are not needed
        dataset = {
            "images": [{"id": i["id"], "height": i["height"] or 0, "width": i["width"] or 0} for i in self.images],
            "categories": [{"id": category["id"], "name": category["name"]} for category in self.categories],
        }
        return accumulate(
            {**dataset, "annotations": self.annotations},
            {**dataset, "annotations": self.detections},
            self.iou_type,
            self.image_ids,
            list(self.names),
            sigmas=self.sigmas,
            limits=limits,
            engine=engine,
        )

    def metrics(self, engine: str | None = None) -> CocoMetrics:
        """Computes COCO's metrics and the AP of each class.

        Args:
            engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

        Returns:
            COCO's metrics, and the AP of each class.

        Raises:
            UserError: If the engine is unknown or not installed.
        """
        numbers = self.accumulate(engine)
        precision = numbers.precision[:, :, :, 0, -1]  # (10 thresholds, 101 recalls, K)
        per_class = {name: mean_of_known(precision[:, :, k]) for k, name in enumerate(self.names.values())}
        return CocoMetrics(self.iou_type, numbers.summary(self.iou_type), per_class)


def evaluate_proposals(
    ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None, engine: str | None = None
) -> DetectorMetrics:
    """Measures the class-agnostic average recall of boxes (mean over IoU thresholds 0.50 to 0.95).

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections. The categories of the results are
            ignored.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        The metrics ``AR100``, ``AR300`` and ``AR1000``, the recall with the best 100, 300 and 1000 boxes of each image;
        and ``ARs``, ``ARm`` and ``ARl``, the recall of small, medium and large objects with the best 1000 boxes.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    contents = _read(*_content(ground_truth, "the ground truth"), ["bbox"])
    numbers = _cases(contents, *_results(results), "bbox", image_ids).accumulate(engine, PROPOSAL_LIMITS)
    recall = numbers.recall.mean(0)[0]  # (all, small, medium and large, limits)
    values = [*recall[0], *recall[1:, -1]]
    summary = {name: mean_of_known(value) for name, value in zip(PROPOSAL_SUMMARY, values, strict=True)}
    return DetectorMetrics({"bbox": CocoMetrics("bbox", summary, {})})


def _prepare(contents, iou_type, image_ids=None, sigmas=None):
    """Checks ground truth; returns its annotations for COCOeval, ids of its categories and images, and the sigmas."""
    where = contents.changes.source
    categories, sigmas = _scored_categories(contents.categories, iou_type, sigmas, where)
    images = {image["id"]: image for image in contents.images}
    image_ids = sorted(images) if image_ids is None else _checked_image_ids(image_ids, images, where)
    scored = set(image_ids)
    if iou_type == "segm":
        _check_masks(contents, scored, where)
    annotations = [
        _for_coco(annotation, number, iou_type, images[annotation["image_id"]], sigmas, where)
        for number, annotation in enumerate(contents.annotations, 1)
        if annotation["image_id"] in scored and annotation["category_id"] in categories
    ]
    return annotations, sorted(categories), image_ids, sigmas


def _cases(contents, entries, results_name, iou_type, image_ids=None, sigmas=None):
    """Reads and checks the ground truth and detections of one type."""
    annotations, category_ids, image_ids, sigmas = _prepare(contents, iou_type, image_ids, sigmas)
    names = _class_names(contents.categories)
    images = {image["id"]: image for image in contents.images}
    count = 0 if sigmas is None else len(sigmas)
    reader = ResultsReader(iou_type, images, names, count, contents.changes.source, Changes(results_name))
    detections = reader.read(entries)
    _log_changes(reader.changes)
    if not any(map(_is_counted, annotations)):
        kinds = "crowds (iscrowd 1), difficult objects or objects without a mask or labelled keypoint"
        reason = f": all {len(annotations)} objects are {kinds}, which are not counted" if annotations else ""
        _logger.warning("%s has no object to find%s, so AP is not defined.", contents.changes.source, reason)
    if iou_type == "bbox":
        warn_of_units(detections, images, results_name)
    return Cases(
        iou_type,
        contents.images,
        contents.categories,
        annotations,
        detections,
        image_ids,
        {category_id: names[category_id] for category_id in category_ids},
        sigmas,
    )


def _is_counted(annotation):
    """Returns whether an annotation counts as found or missed."""
    return not (annotation["iscrowd"] or annotation["ignored"] or annotation.get("num_keypoints") == 0)


def _content(source, otherwise):
    """Returns the contents of a file, or `source` itself if it is no path, and a name for messages."""
    if isinstance(source, (str, os.PathLike)):
        return read_json(source), os.fspath(source)
    return source, getattr(source, "source", otherwise)


def _results(source):
    """Returns the entries of a results file, and the name of the file for messages."""
    entries, name = _content(source, "the results")
    if isinstance(entries, dict) and isinstance(entries.get("annotations"), list):
        raise UserError(
            f"{name} is a COCO dataset, such as `kerasdet predict --coco` writes; expected a list of detections with "
            "the image ids of the ground truth. Write such a list with `kerasdet eval --save-detections`."
        )
    if not isinstance(entries, list):
        raise UserError(
            f"Cannot read {name}, a {type(entries).__name__}: expected a list of detections. Use a file in COCO's "
            "results format."
        )
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise UserError(
                f"{name}: result {number} is {show(entry)}: expected an object with an image_id. Use a file in "
                "COCO's results format."
            )
    return entries, name


def _read(content, name, iou_types, log=True):
    """Reads the ground truth for some types, and logs missing and converted values."""
    contents = read_contents(content, name, masks="segm" in iou_types, keypoints="keypoints" in iou_types)
    without_mask = [a for a in contents.annotations if "segm" in iou_types and a["segmentation"] is None]
    if log:
        _log_changes(contents.changes)
    if log and without_mask:
        _logger.warning(
            "%s: %d objects have no mask (first: %s): detected masks inside their boxes count neither as right nor as "
            "wrong.",
            name,
            len(without_mask),
            name_of(without_mask[0]),
        )
    return contents


def _types_of(truth, iou_types):
    """Returns the types that the ground truth has; `read_contents` checks the values later."""
    data = truth if isinstance(truth, Mapping) else {}

    def has_any(section, key):
        items = data.get(section)
        return isinstance(items, list) and any(isinstance(i, Mapping) and not is_missing(i.get(key)) for i in items)

    has = {
        "bbox": True,
        "segm": has_any("annotations", "segmentation"),
        "keypoints": has_any("categories", "keypoints"),
    }
    return [iou_type for iou_type in iou_types if has[iou_type]]


def _log_changes(changes):
    if changes.counts:
        _logger.warning("%s: %s", changes.source, ", ".join(changes.describe(CHANGES)))


def _class_names(categories):
    """Returns the name of each category by id; adds the id to names that several categories share."""
    names = {category["id"]: category["name"] for category in categories}
    while len(set(names.values())) < len(names):  # again if a longer name is the name of another category
        count = Counter(names.values())
        names = {key: name if count[name] == 1 else f"{name} ({key})" for key, name in names.items()}
    return names


def _scored_categories(categories, iou_type, sigmas, where):
    """Returns the ids of the categories to score, and the sigma (J,) of each keypoint."""
    if iou_type != "keypoints":
        return [category["id"] for category in categories], None
    having = [category for category in categories if category["keypoints"]]
    if not having:
        raise UserError(f"{where} has no category with keypoints: score boxes or masks, or use a file with keypoints.")
    count = len(having[0]["keypoints"])
    if any(len(category["keypoints"]) != count for category in having):
        raise UserError(
            f"{where} has categories with different numbers of keypoints: score each of these categories from a "
            "separate file."
        )
    if sigmas is None:
        standard = Params(iouType="keypoints").kpt_oks_sigmas
        sigmas = standard if len(standard) == count else np.full(count, UNIFORM_SIGMA)
    if len(sigmas) != count:
        raise UserError(
            f"There are {len(sigmas)} sigmas, but {where} has {count} keypoints: pass one sigma per keypoint."
        )
    return [category["id"] for category in having], np.asarray(sigmas, np.float64)


def _checked_image_ids(image_ids, images, where):
    chosen = sorted(set(np.asarray(image_ids).tolist()))
    if not chosen:
        raise UserError(
            "image_ids is empty, so there is nothing to evaluate: pass at least one id, or None for all images."
        )
    for image_id in chosen:
        if image_id not in images:
            raise UserError(
                f"image_ids has {image_id!r}, but {where} has no image of this id: remove the id from image_ids."
            )
    return chosen


def _check_masks(contents, scored, where):
    """Checks that the ground truth has masks, and the sizes of the scored images."""
    for image in contents.images:
        if image["id"] in scored and image["height"] is None:
            raise UserError(
                f"{where}: image {image['id']} has no height and width, which are needed to score masks. Add height "
                "and width to the image."
            )
    if contents.annotations and all(annotation["segmentation"] is None for annotation in contents.annotations):
        raise UserError(
            f"{where}: {name_of(contents.annotations[0])} and all other annotations have no segmentation. Add masks, "
            "or score boxes."
        )


def _for_coco(annotation, number, iou_type, image, sigmas, where):
    """Returns the keys of an annotation that COCOeval needs.

    pycocotools 2.0 takes id 0 for "no match", and merges annotations that share an id. An object without a mask becomes
    a crowd that fills its box, so that a mask found there is neither right nor wrong. A difficult object counts neither
    as found nor as missed, and is matched by ordinary IoU; its area lies outside all area ranges.
    """
    result = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "area", "iscrowd")}
    result |= {"id": number, "ignored": bool(annotation["difficult"])}
    if annotation.get("is_group_of"):
        result["is_group_of"] = True
    if result["ignored"] and iou_type != "keypoints":
        result["area"] = -1.0
    if iou_type == "segm":
        segmentation = annotation["segmentation"]
        if segmentation is None:
            x, y, w, h = annotation["bbox"]
            segmentation, result["iscrowd"] = [[x, y, x + w, y, x + w, y + h, x, y + h]], 1
        try:
            result["segmentation"] = as_rle(segmentation, image["height"], image["width"])
        except ValueError as error:
            raise UserError(f"{where}: {name_of(annotation)} {error}. Correct its segmentation.") from None
    if iou_type == "keypoints":
        keypoints = annotation["keypoints"] or [0] * (3 * len(sigmas))
        visible = sum(v > 0 for v in keypoints[2::3])
        result |= {"keypoints": keypoints, "num_keypoints": 0 if result["ignored"] else visible}
    return result
