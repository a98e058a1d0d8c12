"""Scores detections by COCO's rules: AP and recall of boxes, masks and keypoints.

This module does not import TensorFlow: scoring a file of detections needs only NumPy, pycocotools and hotcoco.
"""

from collections.abc import Sequence

from kerasdet.errors import UserError
from kerasdet.evaluation.cases import cases_of_type, read_cases, warn_of_limit
from kerasdet.evaluation.engines import check_engine, mean_of_known
from kerasdet.evaluation.ground_truth import Source
from kerasdet.evaluation.metrics import PROPOSAL_SUMMARY, CocoMetrics, DetectorMetrics
from kerasdet.evaluation.results import GEOMETRY

PROPOSAL_LIMITS = (100, 300, 1000)  # numbers of highest-scored boxes per image for which recall is measured


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
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area. None: COCO's values for 17 keypoints, 0.05 for any other number.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        The metrics of each type. Empty results are scored as boxes.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format, the files have no type in common, a result refers to an image
            or a category that is not in the ground truth, or the engine is unknown or not installed.
    """
    check_engine(engine)
    all_cases = read_cases(ground_truth, results, image_ids, sigmas)
    warn_of_limit(all_cases)
    return DetectorMetrics({cases.iou_type: cases.metrics(engine) for cases in all_cases})


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
        iou_type: "bbox", "segm" for masks (RLE or polygons), or "keypoints" for the categories that have keypoints in
            the ground truth.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        sigmas: (J,) standard deviation of the annotations of each of the J keypoints, as a fraction of the square root
            of the object's area. None: COCO's values for 17 keypoints, 0.05 for any other number.
        engine: Library that computes AP, "hotcoco" or "pycocotools" (the reference); both give the same numbers. None:
            hotcoco.

    Returns:
        COCO's twelve metrics such as AP and AP50 (ten for keypoints), and the AP of each class.

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If `iou_type` is unknown, a file does not have COCO's format, a result refers to an image or a
            category that is not in the ground truth, or the engine is unknown or not installed.
    """
    if iou_type not in GEOMETRY:
        raise UserError(f"iou_type is {iou_type!r}: choose one of {', '.join(map(repr, GEOMETRY))}.")
    check_engine(engine)
    cases, _ = cases_of_type(ground_truth, results, iou_type, image_ids, sigmas)
    warn_of_limit([cases])
    return cases.metrics(engine)


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
        UserError: If a file does not have COCO's format, a result refers to an image or a category that is not in the
            ground truth, or the engine is unknown or not installed.
    """
    cases, _ = cases_of_type(ground_truth, results, "bbox", image_ids)
    numbers = cases.accumulate(engine, PROPOSAL_LIMITS)
    recall = numbers.recall.mean(0)[0]  # (all, small, medium and large, limits)
    values = [*recall[0], *recall[1:, -1]]
    summary = {name: mean_of_known(value) for name, value in zip(PROPOSAL_SUMMARY, values, strict=True)}
    return DetectorMetrics({"bbox": CocoMetrics("bbox", summary, {})})
