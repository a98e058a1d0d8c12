"""Reads the detections and the ground truth of an evaluation.

This module does not import TensorFlow.
"""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.data.annotations import TYPE_NAMES
from kerasdet.data.values import Changes, is_missing, show
from kerasdet.errors import UserError
from kerasdet.evaluation.engines import Accumulated, accumulate, mean_of_known
from kerasdet.evaluation.ground_truth import Source, log_changes, open_source, prepare, read_for, types_in
from kerasdet.evaluation.metrics import CocoMetrics
from kerasdet.evaluation.results import GEOMETRY, ResultsReader, warn_of_units

_logger = logging.getLogger(__name__)

LIMITS = {"bbox": 100, "segm": 100, "keypoints": 20}  # COCO's largest number of detections of a class in an image


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
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area; None without keypoints.
    """

    iou_type: str
    images: Sequence[Mapping]
    categories: Sequence[Mapping]
    annotations: Sequence[Mapping]
    detections: Sequence[Mapping]
    image_ids: Sequence[int]
    names: Mapping[int, str]
    sigmas: np.ndarray | None

    @functools.cached_property
    def repeats(self) -> np.ndarray:
        """Tells which of the D detections equal an earlier one in image, class, score and geometry, (D,) bool."""
        seen, repeated = set(), np.zeros(len(self.detections), bool)
        for row, each in enumerate(self.detections):
            geometry = each[GEOMETRY[self.iou_type]]
            geometry = geometry["counts"] if isinstance(geometry, dict) else tuple(geometry)
            key = (each["image_id"], each["category_id"], each["score"], geometry)
            repeated[row] = key in seen
            seen.add(key)
        return repeated

    @property
    def images_beyond_limit(self) -> int:
        """Number of images with a class of which they have more objects than COCO's rules count detections."""
        objects = Counter((a["image_id"], a["category_id"]) for a in self.annotations if _is_counted(a))
        return len({image for (image, _), number in objects.items() if number > LIMITS[self.iou_type]})

    def accumulate(self, engine: str | None = None, limits: Sequence[int] | None = None) -> Accumulated:
        """Computes precision and recall with an engine.

        Args:
            engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.
            limits: Maximum numbers of boxes per image, such as (100, 300, 1000). Recall is measured for each number,
                and classes are ignored. None: classes are scored separately with COCO's limits.

        Returns:
            The arrays of precision and recall.

        Raises:
            UserError: If the engine is unknown or not installed.
        """
        # Only masks need the sizes of images, but hotcoco always reads them: unknown sizes become 0
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


def read_cases(
    ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> list[Cases]:
    """Reads detections and ground truth for each type that both have: boxes, masks and keypoints.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections. If the results are empty, the
            type is boxes.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area. None: COCO's values for 17 keypoints, 0.05 for any other number.

    Returns:
        One `Cases` per type.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, the files have no type in common, or a result refers to an
            image or a category that is not in the ground truth.
    """
    (truth, truth_name), (entries, results_name) = open_source(ground_truth, "the ground truth"), _results(results)
    chosen = _shared_types(truth, truth_name, entries, results_name)
    contents = read_for(truth, truth_name, chosen)
    cases = [_cases(contents, entries, results_name, iou_type, image_ids, sigmas) for iou_type in chosen]
    _warn_of_repeats(cases[0], results_name)
    return cases


def cases_of_type(
    ground_truth: Source,
    results: Source,
    iou_type: str,
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[Cases, str]:
    """Reads detections and ground truth of one type.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        iou_type: "bbox", "segm" or "keypoints".
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area. None: COCO's values for 17 keypoints, 0.05 for any other number.

    Returns:
        The `Cases`, and the name of the ground truth for error messages.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, or a result refers to an image or a category that is not in
            the ground truth.
    """
    (content, name), (entries, results_name) = open_source(ground_truth, "the ground truth"), _results(results)
    cases = _cases(read_for(content, name, [iou_type]), entries, results_name, iou_type, image_ids, sigmas)
    _warn_of_repeats(cases, results_name)
    return cases, name


def warn_of_limit(all_cases: Sequence[Cases]) -> None:
    """Warns once of images with more objects than COCO's rules count detections.

    Args:
        all_cases: The ground truth of each type that is scored by COCO's rules.
    """
    for cases in all_cases:
        if number := cases.images_beyond_limit:
            limit = LIMITS[cases.iou_type]
            _logger.warning(
                "Images with more than %d objects of a class: %d. COCO's rules count the best %d detections of a class "
                "in an image, so AP cannot reach 1.",
                limit,
                number,
                limit,
            )
            return


def _warn_of_repeats(cases, name):
    rows = np.flatnonzero(cases.repeats)
    if len(rows):
        _logger.warning(
            "%s: %d of %d results equal an earlier one in image, class, score and geometry (first: result %d). Each of "
            "them counts as a wrong detection and lowers AP: remove the repeated rows.",
            name,
            len(rows),
            len(cases.detections),
            rows[0] + 1,
        )


def types_of(ground_truth: Source, results: Source) -> list[str]:
    """Lists the types "bbox", "segm" and "keypoints" that both files have; ["bbox"] for empty results.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file is not JSON, the results are not a list of objects, or the files have no type in common.
    """
    return _shared_types(*open_source(ground_truth, "the ground truth"), *_results(results))


def _shared_types(truth, truth_name, entries, results_name):
    offered = [name for name, key in GEOMETRY.items() if any(not is_missing(e.get(key)) for e in entries)]
    shared = types_in(truth, offered or ["bbox"])
    if not shared:
        lacking = " and ".join(TYPE_NAMES[each] for each in offered)
        raise UserError(
            f"The detections in {results_name} have {lacking} but no boxes, and {truth_name} has no {lacking}: "
            f"expected geometry that both have. Add a bbox to each detection, or use ground truth with {lacking}."
        )
    return shared


def _cases(contents, entries, results_name, iou_type, image_ids=None, sigmas=None):
    """Reads and checks the ground truth and detections of one type."""
    annotations, category_ids, image_ids, sigmas = prepare(contents, iou_type, image_ids, sigmas)
    names = _class_names(contents.categories)
    images = {image["id"]: image for image in contents.images}
    count = 0 if sigmas is None else len(sigmas)
    reader = ResultsReader(iou_type, images, names, count, contents.changes.source, Changes(results_name))
    detections = reader.read(entries)
    log_changes(reader.changes)
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


def _results(source):
    """Returns the entries of a results file, and the name of the file for messages."""
    entries, name = open_source(source, "the results")
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


def _class_names(categories):
    """Returns the name of each category by id; adds the id to names that several categories share."""
    names = {category["id"]: category["name"] for category in categories}
    while len(set(names.values())) < len(names):  # again if a name with its id equals another category's name
        count = Counter(names.values())
        names = {key: name if count[name] == 1 else f"{name} ({key})" for key, name in names.items()}
    return names
