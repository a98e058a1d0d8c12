"""Scores detections by the rules of LVIS, in which only some categories were annotated in each image."""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Sequence

from kerasdet.errors import UserError
from kerasdet.evaluation.cases import Source, cases_of_type
from kerasdet.evaluation.engines import check_engine, shifted, shifts_of
from kerasdet.evaluation.metrics import CocoMetrics

SUMMARY = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
_MAX_DETECTIONS = 300  # in an image, of all categories together
_IMAGE_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def evaluate_lvis(
    ground_truth: Source, results: Source, iou_type: str = "segm", image_ids: Sequence[int] | None = None
) -> CocoMetrics:
    """Scores results against LVIS ground truth, with the same numbers as lvis-api.

    Annotators of LVIS looked only for some categories in each image: those with objects in the image, and those in the
    image's `neg_category_ids`. Detections of other categories are ignored. Wrong detections of a category in the
    image's `not_exhaustive_category_ids` are ignored as well. In each image, only the 300 detections with the highest
    scores count. Boxes and masks without area are left out, as in lvis-api.

    Args:
        ground_truth: Path of an LVIS annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        iou_type: "segm" or "bbox".
        image_ids: Ids of the images to score. None: all images of the ground truth.

    Returns:
        Thirteen metrics, such as `AP`, `AP50` and `AR@300`. `APr`, `APc` and `APf` are the AP of rare, common and
        frequent categories, by the `frequency` of each category. The AP of each class is not computed.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If `iou_type` is unknown, a file does not have COCO's format, the ground truth lacks LVIS' own keys,
            a result refers to an image or a category that is not in the ground truth, or hotcoco is not installed.
    """
    if iou_type not in ("bbox", "segm"):
        raise UserError(f"iou_type is {iou_type!r}: LVIS scores 'bbox' and 'segm'. Choose one of these.")
    check_engine("hotcoco")
    import hotcoco

    cases, where = cases_of_type(ground_truth, results, iou_type, image_ids)
    for image in cases.images:
        if missing := [key for key in _IMAGE_KEYS if not isinstance(image.get(key), list)]:
            raise UserError(
                f"{where}: image {image['id']} has no list {missing[0]}, which the rules of LVIS need. Use an "
                "annotation file of LVIS v1, or COCO's rules (--metrics coco, Python: evaluate_coco)."
            )
    for category in cases.categories:
        if category.get("frequency") not in ("r", "c", "f"):
            raise UserError(
                f"{where}: category {category['id']} has the frequency {category.get('frequency')!r}; expected 'r', "
                "'c' or 'f'. Use an annotation file of LVIS v1."
            )
    shifts = shifts_of({"images": cases.images, "categories": cases.categories})
    images = [
        {**image, **{key: [each + shifts["category_id"] for each in image[key]] for key in _IMAGE_KEYS}}
        for image in cases.images
    ]
    dataset = {"images": images, "categories": cases.categories}
    truth = {**dataset, "annotations": [entry for entry in cases.annotations if entry["area"] > 0]}
    found = {**dataset, "annotations": [entry for entry in _best(cases.detections) if entry["area"] > 0]}
    evaluation = hotcoco.COCOeval(
        *(hotcoco.COCO(shifted(each, shifts)) for each in (truth, found)), iou_type, lvis_style=True
    )
    params = evaluation.params
    params.imgIds = [image_id + shifts["image_id"] for image_id in cases.image_ids]
    evaluation.params = params
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    numbers = evaluation.get_results()
    summary = {name: math.nan if numbers[name] < 0 else float(numbers[name]) for name in SUMMARY}
    return CocoMetrics(iou_type, summary, {})


def _best(detections):
    """Keeps the 300 best detections of each image; hotcoco 1.3 would apply this limit to each category separately."""
    by_image = defaultdict(list)
    for entry in sorted(detections, key=lambda entry: -entry["score"]):
        by_image[entry["image_id"]].append(entry)
    kept = {entry["id"] for entries in by_image.values() for entry in entries[:_MAX_DETECTIONS]}
    return [entry for entry in detections if entry["id"] in kept]
