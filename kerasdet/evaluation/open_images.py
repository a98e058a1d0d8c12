"""Scores detections by the rules of Open Images, in which one box may enclose a group of objects."""

import contextlib
import io
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence

from kerasdet.evaluation.cases import Source, cases_of_type
from kerasdet.evaluation.engines import check_engine, shifted, shifts_of
from kerasdet.evaluation.metrics import CocoMetrics


def evaluate_open_images(ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None) -> CocoMetrics:
    """Scores boxes as the Open Images Challenge does, at an IoU of 0.5.

    A box with a true `is_group_of` (or `isgroupof`, `IsGroupOf`) encloses a group of objects. All detections with at
    least half of their area inside a group's box count as one correct detection, which has the highest of their scores;
    a group without such a detection is missed. Every other box matches at most one detection. An image may list, as
    `neg_category_ids`, the categories that annotators looked for and did not find; detections of categories that are
    neither listed nor annotated in the image then do not count. Crowds and difficult objects are left out, because Open
    Images does not have them. Detections of parent classes are not derived from detections of their child classes.

    Args:
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        image_ids: Ids of the images to score. None: all images of the ground truth.

    Returns:
        The metric `AP50`, averaged over the classes with boxes, and the AP50 of each class.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, a result refers to an image or a category that is not in the
            ground truth, or hotcoco is not installed.
    """
    check_engine("hotcoco")
    import hotcoco

    cases, _ = cases_of_type(ground_truth, results, "bbox", image_ids)
    objects = [entry for entry in cases.annotations if not (entry["ignored"] or entry["iscrowd"])]
    detections = _judged(cases, objects)
    dataset = {
        "images": [{"id": image["id"]} for image in cases.images],
        "categories": [{"id": key, "name": name} for key, name in cases.names.items()],
    }
    shifts = shifts_of(dataset)
    truth, found = (
        hotcoco.COCO(shifted({**dataset, "annotations": entries}, shifts)) for entries in (objects, detections)
    )
    evaluation = hotcoco.COCOeval(truth, found, "bbox", oid_style=True)
    params = evaluation.params
    params.imgIds = [image_id + shifts["image_id"] for image_id in cases.image_ids]
    params.maxDets = [max(len(detections), 1)]  # no limit
    evaluation.params = params
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # hotcoco 1.3 warns that it does not know `neg_category_ids`
        evaluation.run()
    numbers = evaluation.results(per_class=True)
    having = {entry["category_id"] for entry in objects}
    per_class = {
        name: float(numbers["per_class"][name]) if key in having else math.nan for key, name in cases.names.items()
    }
    return CocoMetrics("bbox", {"AP50": float(numbers["metrics"]["AP"]) if having else math.nan}, per_class)


def _judged(cases, objects):
    """Returns the detections of categories that annotators looked for in the image."""
    looked_for = defaultdict(set)
    for entry in objects:
        looked_for[entry["image_id"]].add(entry["category_id"])
    exhaustive = set()  # images without the list: all categories count
    for image in cases.images:
        if isinstance(image.get("neg_category_ids"), list):
            looked_for[image["id"]].update(image["neg_category_ids"])
        else:
            exhaustive.add(image["id"])
    return [
        entry
        for entry in cases.detections
        if entry["image_id"] in exhaustive or entry["category_id"] in looked_for[entry["image_id"]]
    ]
