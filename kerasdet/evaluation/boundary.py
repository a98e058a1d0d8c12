"""Scores masks by the IoU of their boundaries, which shows errors that hardly change the mask IoU of large objects."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from kerasdet.errors import require_extra
from kerasdet.evaluation.cases import Source, cases_of_type
from kerasdet.evaluation.engines import Accumulated, mean_of_known
from kerasdet.evaluation.metrics import CocoMetrics


def evaluate_boundary(ground_truth: Source, results: Source, image_ids: Sequence[int] | None = None) -> CocoMetrics:
    """Measures Boundary AP (https://arxiv.org/abs/2103.16562): COCO's AP of masks with the smaller of two IoUs.

    The first is the IoU of the masks. The second is the IoU of their boundary regions: the pixels of a mask whose
    distance from its outline is at most 2 % of the image's diagonal. faster-coco-eval computes both.

    Args:
        ground_truth: Path of a COCO annotation file with masks, or its contents as a dict.
        results: Path of a COCO results file with masks, or its contents as a list of detections.
        image_ids: Ids of the images to score. None: all images of the ground truth.

    Returns:
        The twelve metrics of COCO for masks, and the AP of each class; the `iou_type` is "boundary".

    Raises:
        FileNotFoundError: If a file does not exist.
        UserError: If a file does not have COCO's format or has no masks, a result refers to an image or a category that
            is not in the ground truth, or faster-coco-eval is not installed.
    """
    library = require_extra("faster_coco_eval", "Boundary AP", "boundary")
    cases, _ = cases_of_type(ground_truth, results, "segm", image_ids)
    dataset = {
        "images": [{key: image[key] for key in ("id", "height", "width")} for image in cases.images],
        "categories": [{"id": key, "name": name} for key, name in cases.names.items()],
    }
    entries = [[_with_text(entry) for entry in each] for each in (cases.annotations, cases.detections)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (library.COCO({**dataset, "annotations": each}) for each in entries)
        evaluation = library.COCOeval_faster(truth, found, "boundary", print_function=lambda *_: None)
        evaluation.params.imgIds, evaluation.params.catIds = list(cases.image_ids), list(cases.names)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
    per_class = {name: mean_of_known(precision[:, :, k, 0, -1]) for k, name in enumerate(cases.names.values())}
    return CocoMetrics("boundary", Accumulated(precision, recall).summary("segm"), per_class)


def _with_text(entry):
    """Returns an entry whose RLE is a string, because faster-coco-eval does not read bytes."""
    counts = entry["segmentation"]["counts"]
    if isinstance(counts, str):
        return entry
    return {**entry, "segmentation": {**entry["segmentation"], "counts": counts.decode()}}
