"""Scores detections by the rules of a named benchmark."""

from collections.abc import Sequence

from kerasdet.errors import UserError
from kerasdet.evaluation.boundary import evaluate_boundary
from kerasdet.evaluation.cases import Source, types_of
from kerasdet.evaluation.coco import evaluate_all
from kerasdet.evaluation.lvis import evaluate_lvis
from kerasdet.evaluation.metrics import DetectorMetrics
from kerasdet.evaluation.open_images import evaluate_open_images
from kerasdet.evaluation.voc import evaluate_voc

RULES = ("coco", "voc", "lvis", "open-images", "boundary")


def evaluate_rules(
    rules: str,
    ground_truth: Source,
    results: Source,
    image_ids: Sequence[int] | None = None,
    engine: str | None = None,
) -> DetectorMetrics:
    """Scores results by the rules of COCO or another benchmark.

    Args:
        rules: "coco" (`evaluate_all`), "voc" (`evaluate_voc`), "lvis" (`evaluate_lvis` of boxes and masks),
            "open-images" (`evaluate_open_images`) or "boundary" (`evaluate_boundary`).
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        results: Path of a COCO results file, or its contents as a list of detections.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        engine: Library that computes AP by the rules "coco", "hotcoco" or "pycocotools"; both give the same numbers.
            None: hotcoco. Other rules ignore this argument.

    Returns:
        The metrics by type of detection: "bbox", "segm" or "keypoints", if the rules score the type. For the rules
        "boundary" the only type is "boundary".

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If the rules are unknown, the files are invalid or lack values that the rules need, or a library that
            the rules need is not installed.
    """
    if rules == "coco":
        return evaluate_all(ground_truth, results, image_ids, engine=engine)
    if rules == "lvis":
        types = [each for each in types_of(ground_truth, results) if each != "keypoints"]
        return DetectorMetrics({each: evaluate_lvis(ground_truth, results, each, image_ids) for each in types})
    single = {"voc": evaluate_voc, "open-images": evaluate_open_images, "boundary": evaluate_boundary}
    if rules not in single:
        raise UserError(f"rules is {rules!r}: expected one of {', '.join(RULES)}. Change --metrics (Python: rules=).")
    metrics = single[rules](ground_truth, results, image_ids)
    return DetectorMetrics({metrics.iou_type: metrics})
