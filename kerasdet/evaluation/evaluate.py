"""The evaluation loop: a model over batches of images, scored in the images' own coordinates."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from keras.utils import Progbar

from kerasdet.data.pipeline import evaluation_batches
from kerasdet.data.transforms import ResizeShortestEdge
from kerasdet.evaluation.coco import coco_results, evaluate_all, evaluate_proposals, read_ground_truth
from kerasdet.evaluation.metrics import DetectorMetrics
from kerasdet.geometry import rle
from kerasdet.ops.distribute import all_gather_object, worker_rank

_logger = logging.getLogger(__name__)


def evaluate(model, dataset, *, batch_size: int = 1) -> DetectorMetrics:
    """Measures the COCO AP of a detector on a data set, every image once, or the recall of a `ProposalNetwork`.

    Args:
        model: A detector, or an `AugmentedDetector`; images are resized by its own rule.
        dataset: A `kerasdet.data.CocoDataset` or `VocDataset`, which need not have been read with masks or keypoints.
        batch_size: Images at a time; images of a batch are padded to one size.

    Returns:
        The numbers and per-class AP of boxes, and of masks and keypoints where model and ground truth have them. Of a
        model without classes what `evaluate_proposals` says.

    Raises:
        ValueError: If model and data differ in their number of classes.
    """
    metrics, _ = evaluate_with_results(model, dataset, batch_size=batch_size)
    return metrics


def evaluate_with_results(model, dataset, *, batch_size: int = 1) -> tuple[DetectorMetrics, list[dict]]:
    """`evaluate`, and the detections in COCO's results format."""
    if model.num_classes is not None:
        if model.num_classes != dataset.num_classes:
            raise ValueError(
                f"The model has {model.num_classes} classes, {dataset.annotations} has {dataset.num_classes}: "
                "evaluate on the classes the model was trained for."
            )
        _check_names(model.class_names, dataset)
    batches = model_batches(model, dataset, batch_size)
    image_ids = [record.image_id for record in dataset.records]
    category_ids = None if model.num_classes is None else dataset.category_ids
    return evaluate_batches(model, batches, dataset.ground_truth, category_ids, image_ids)


def model_batches(model, dataset, batch_size: int = 1):
    """This worker's share of a data set, in batches that are resized by the model's own rule."""
    shard, rule = worker_rank(_strategy(model)), model.preprocessing
    if rule is None:
        return evaluation_batches(dataset, batch_size, shard=shard)
    resize = ResizeShortestEdge(rule.shortest, rule.longest, rounding=rule.rounding, kernel=rule.kernel)
    return evaluation_batches(dataset, batch_size, resize=resize, size_divisor=rule.size_divisor, shard=shard)


def validation_losses(model, dataset) -> dict[str, float]:
    """The losses of a detector, ``val_loss`` and its parts: the mean over images, each a batch of its own.

    Args:
        model: A detector that is trained, on any number of replicas.
        dataset: Read with the masks or keypoints that the model learns.
    """
    losses = list(model.batch_losses(model_batches(model, dataset)))
    losses = [each for part in all_gather_object(_strategy(model), losses) for each in part]
    return {f"val_{name}": float(np.mean([each[name] for each in losses])) for name in losses[0]}


def _strategy(model):
    return getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()


def _check_names(class_names, dataset):
    """Numbers of one class under the name of another would go unnoticed."""
    theirs = tuple(dataset.class_names)
    if not class_names or tuple(class_names) == theirs:
        return
    if set(class_names) == set(theirs):
        raise ValueError(
            f"{dataset.annotations} orders the classes {', '.join(theirs[:5])} ..., the model "
            f"{', '.join(class_names[:5])} ...: give the categories the ids of the training data."
        )
    _logger.warning(
        "%s names its classes otherwise than the model: they are matched by their order.", dataset.annotations
    )


def evaluate_batches(
    model,
    batches: Iterable[dict],
    ground_truth,
    category_ids: Sequence[int] | None,
    image_ids: Sequence[int] | None = None,
) -> tuple[DetectorMetrics, list[dict]]:
    """Measures the COCO AP of a detector.

    Args:
        model: Its `predict_on_batch` takes `image` and `image_size` and returns detections in the coordinates of the
            network's input, padded at the bottom right; for detections with `mask_probs` it has `encode_masks` or
            `paste_masks`.
        batches: Dicts with `image` (B, H, W, 3), `image_size` (B, 2) valid height and width of it, `image_id` (B,) and
            `original_size` (B, 2) height and width of the image in the data set. The last batch may be smaller.
        ground_truth: A COCO annotation file, or the dict it holds.
        category_ids: (K,) the data set's category id of every class id; None for a model without classes, whose
            results all get the ground truth's first category and are scored by `evaluate_proposals`.
        image_ids: The images to score; None for all of the ground truth.

    Returns:
        The metrics, and the results they were computed from (COCO's results format).

    Raises:
        ValueError: An image came twice, not at all or is not to be scored, or a category is not in the ground truth.
    """
    truth = read_ground_truth(ground_truth)
    known = [category["id"] for category in truth["categories"]]
    score = evaluate_all
    if category_ids is None:
        score, category_ids = evaluate_proposals, known[:1]
    for category_id in category_ids:
        if category_id not in known:
            raise ValueError(f"category_ids names category {category_id}, which the ground truth lacks.")
    wanted = {image["id"] for image in truth["images"]} if image_ids is None else set(np.asarray(image_ids).tolist())
    number, workers = worker_rank(_strategy(model))
    progress = Progbar(-(-len(wanted) // workers), unit_name="image", verbose=int(number == 0))
    seen, results = set(), []
    for batch, detections in _predictions(model, batches):
        ids = np.asarray(batch["image_id"]).tolist()
        for image_id in ids:
            _check_image(image_id, seen, wanted)
            seen.add(image_id)
        detections = {name: np.array(value) for name, value in detections.items()}
        image_size, original_size = np.asarray(batch["image_size"]), np.asarray(batch["original_size"])
        detections["boxes"] = to_original(detections["boxes"], image_size, original_size)
        if "keypoints" in detections:
            factor = (original_size / image_size)[:, None, None]  # (B, 1, 1, 2)
            detections["keypoints"][..., :2] *= factor
        if "mask_probs" in detections:
            detections["segmentations"] = [
                _segmentations(model, detections, i, *size) for i, size in enumerate(original_size.tolist())
            ]
        results += coco_results(detections, ids, category_ids)
        progress.update(len(seen))
    parts = all_gather_object(_strategy(model), {"seen": sorted(seen), "results": results})
    seen, results = {image for part in parts for image in part["seen"]}, [r for part in parts for r in part["results"]]
    if len(seen) < len(wanted):
        raise ValueError(
            f"{len(wanted) - len(seen)} of {len(wanted)} images never came, image {min(wanted - seen)} first; "
            "give image_ids to evaluate a part of the data set."
        )
    return score(truth, results, image_ids=sorted(wanted)), results


def _predictions(model, batches):
    """Batches and their detections, on several replicas at a time where the model is trained on several."""
    if _strategy(model).num_replicas_in_sync > 1:
        yield from model.predict_batches(batches)
        return
    for batch in batches:
        yield batch, model.predict_on_batch({"image": batch["image"], "image_size": batch["image_size"]})


def _segmentations(model, detections, image, height, width):
    """The masks of one image's detections as RLE, by way of full-size masks only where the model knows no other."""
    count = detections["valid"][image]
    probs, boxes = detections["mask_probs"][image, :count], detections["boxes"][image, :count].astype(np.float32)
    if hasattr(model, "encode_masks"):
        return model.encode_masks(probs, boxes, height, width)
    return rle.encode(model.paste_masks(probs, boxes, height, width))


def _check_image(image_id, seen, wanted):
    if image_id in seen:
        raise ValueError(f"Image {image_id} came twice: every image must be evaluated once.")
    if image_id not in wanted:
        raise ValueError(f"Image {image_id} came for evaluation, but is not among the images to score.")


def to_original(boxes: np.ndarray, image_size: np.ndarray, original_size: np.ndarray) -> np.ndarray:
    """Maps boxes on resized images back to the original images and clips them there.

    Args:
        boxes: (B, D, 4) yxyx in pixels of the resized images.
        image_size: (B, 2) height and width of the resized images, without padding.
        original_size: (B, 2) height and width of the original images.

    Returns:
        (B, D, 4) float64 yxyx in pixels of the original images.
    """
    limit = np.tile(original_size, 2)[:, None].astype(np.float64)  # (B, 1, 4)
    scale = limit / np.tile(image_size, 2)[:, None]  # (B, 1, 4)
    return np.clip(boxes * scale, 0.0, limit)
