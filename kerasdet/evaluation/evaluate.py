"""Evaluates any predictor on a dataset, in the coordinates of the original images."""

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras.utils import Progbar

from kerasdet.arguments import check_object
from kerasdet.data.dataset import Dataset
from kerasdet.data.pipeline import evaluation_batches
from kerasdet.data.transforms import ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.evaluation.coco import evaluate_proposals
from kerasdet.evaluation.engines import check_engine
from kerasdet.evaluation.ground_truth import read_ground_truth
from kerasdet.evaluation.metrics import DetectorMetrics
from kerasdet.evaluation.rules import evaluate_rules
from kerasdet.inference.predictor import Predictor
from kerasdet.inference.preprocessing import KeepSize
from kerasdet.ops.distribute import all_gather_object, worker_rank


def evaluate(
    predictor: Predictor, dataset: Dataset, *, batch_size: int = 1, engine: str | None = None
) -> DetectorMetrics:
    """Measures the COCO AP of a predictor on a dataset, or the recall of a `ProposalNetwork`.

    Args:
        predictor: Anything that detects: a Keras model, a loaded export or an `AugmentedPredictor`. It resizes the
            images by its own resize rule.
        dataset: A `kerasdet.data.Dataset`. Masks and keypoints are scored even if the dataset was read without masks
            and keypoints.
        batch_size: Number of images in a batch; the images of a batch are padded to one size.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.

    Returns:
        Metrics with the AP of boxes, in total and for each class, and the AP of masks and keypoints if both predictor
        and ground truth have them. For a predictor without classes, the recall that `evaluate_proposals` returns.

    Raises:
        UserError: If an argument is of the wrong type, the dataset has objects of classes that the predictor does not
            know, or the engine is unknown or not installed.

    Example:
        >>> model = kerasdet.load("runs/mine")
        >>> metrics = kerasdet.evaluate(model, CocoDataset("mine/val.json"), batch_size=8)
        >>> 0 <= metrics["AP"] <= 1
        True
    """
    is_predictor = hasattr(predictor, "detect_batch")
    check_object("evaluate.predictor", predictor, is_predictor, "a detector", 'kerasdet.load("runs/first")')
    check_object("evaluate.dataset", dataset, hasattr(dataset, "records"), "a dataset", 'open_dataset("data", "val")')
    metrics, _ = evaluate_with_results(predictor, dataset, batch_size=batch_size, engine=engine)
    return metrics


def evaluate_with_results(
    predictor: Predictor, dataset: Dataset, *, batch_size: int = 1, engine: str | None = None, rules: str = "coco"
) -> tuple[DetectorMetrics, list[dict]]:
    """Evaluates a predictor by named rules, and also returns the detections.

    Args:
        predictor: A Keras model, a loaded export or an `AugmentedPredictor`.
        dataset: A `kerasdet.data.Dataset`.
        batch_size: Number of images in a batch; the images of a batch are padded to one size.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.
        rules: Name of the scoring rules, see `evaluate_rules`.

    Returns:
        The metrics, and the detections as entries of a COCO results file.

    Raises:
        UserError: If the dataset has objects of classes that the predictor does not know, or the rules or the engine
            cannot be used.
    """
    if predictor.num_classes is not None:
        dataset = match_dataset(predictor.num_classes, predictor.class_names, dataset)
    batches = predictor_batches(predictor, dataset, batch_size)
    image_ids = [record.image_id for record in dataset.records]
    category_ids = None if predictor.num_classes is None else dataset.category_ids
    return evaluate_batches(predictor, batches, dataset.ground_truth, category_ids, image_ids, engine, rules)


def predictor_batches(predictor: Predictor, dataset: Dataset, batch_size: int = 1) -> tf.data.Dataset:
    """Makes batches of a dataset, resized and padded by a predictor's rule. Each worker gets a part of the images.

    Args:
        predictor: Predictor whose `preprocessing` resizes and pads the images.
        dataset: A `kerasdet.data.Dataset`.
        batch_size: Number of images in a batch.

    Returns:
        A finite `tf.data.Dataset` of dicts with `image` (B, H, W, 3), `image_size` (B, 2), heights and widths without
        padding, `original_size` (B, 2), heights and widths before resizing, in pixels, and `image_id` (B,); see
        `kerasdet.data.pipeline.evaluation_batches`.
    """
    rule, resize, pad_to = predictor.preprocessing, None, None
    if not isinstance(rule, KeepSize):
        resize = ResizeShortestEdge(rule.shortest, rule.longest, rounding=rule.rounding, kernel=rule.kernel)
        pad_to = (rule.padded_size(rule.longest),) * 2 if rule.letterboxes else None
    options = {"resize": resize, "size_divisor": rule.size_divisor, "pad_to": pad_to}
    return evaluation_batches(dataset, batch_size, **options, shard=worker_rank(_strategy(predictor)))


def validation_losses(model: Predictor, dataset: Dataset) -> dict[str, float]:
    """Computes the losses of a detector on a dataset, with each image as its own batch.

    Args:
        model: A Keras detector, on any number of replicas.
        dataset: A dataset that was read with the masks or keypoints that the model learns.

    Returns:
        Means over all images by name: each loss under its name with the prefix "val_", such as `val_box_loss`, and the
        sum of these losses as `val_loss`.
    """
    losses = list(model.batch_losses(predictor_batches(model, dataset)))
    losses = [each for part in all_gather_object(_strategy(model), losses) for each in part]
    return {f"val_{name}": float(np.mean([each[name] for each in losses])) for name in losses[0]}


def _strategy(predictor):
    """Returns the strategy of a Keras model; other predictors get the current strategy."""
    return getattr(predictor, "distribute_strategy", None) or tf.distribute.get_strategy()


def match_dataset(num_classes: int, class_names: Sequence[str] | None, dataset: Dataset) -> Dataset:
    """Reorders the classes of a dataset as the model orders them.

    Args:
        num_classes: Number of classes of the model.
        class_names: Names of the model's classes, in the order of the class ids. None: the names are unknown, and the
            dataset is not changed.
        dataset: A `kerasdet.data.Dataset`.

    Returns:
        The dataset with the class ids of the model, see `kerasdet.data.Dataset.with_classes`.

    Raises:
        UserError: If the dataset has objects of other classes, if the classes cannot be matched by name, or if
            `class_names` is None and the numbers of classes differ.
    """
    if class_names and tuple(class_names) != tuple(dataset.class_names):
        return dataset.with_classes(class_names)
    if num_classes != dataset.num_classes:
        raise UserError(
            f"The model has {num_classes} classes without names, but {dataset.annotations} has {dataset.num_classes}: "
            "expected the same number. Evaluate on a dataset with the classes on which the model was trained."
        )
    return dataset


def evaluate_batches(
    predictor: Predictor,
    batches: Iterable[Mapping],
    ground_truth: str | Path | Mapping,
    category_ids: Sequence[int] | None,
    image_ids: Sequence[int] | None = None,
    engine: str | None = None,
    rules: str = "coco",
) -> tuple[DetectorMetrics, list[dict]]:
    """Measures the AP of a predictor on batches of images.

    Args:
        predictor: Keras model, loaded export or other `Predictor`.
        batches: Dicts with `image` (B, H, W, 3), `image_size` (B, 2), heights and widths without padding in pixels,
            `original_size` (B, 2), heights and widths before resizing in pixels, and `image_id` (B,). The last batch
            may be smaller.
        ground_truth: Path of a COCO annotation file, or its contents as a dict.
        category_ids: Category ids in the ground truth, one for each of the K classes. None for a predictor without
            classes: all detections get the first category of the ground truth and are scored by `evaluate_proposals`.
        image_ids: Ids of the images to score. None: all images of the ground truth.
        engine: Library that computes AP, "hotcoco" or "pycocotools"; both give the same numbers. None: hotcoco.
        rules: Name of the scoring rules, see `evaluate_rules`.

    Returns:
        The metrics, and the detections as entries of a COCO results file.

    Raises:
        ValueError: If an image occurs twice, is missing or is not among `image_ids`, or a category is not in the ground
            truth.
        UserError: If the rules or the engine cannot be used, or rules other than "coco" are used for a predictor
            without classes.
    """
    check_engine(engine)  # checked here, before hours of detection
    truth = read_ground_truth(ground_truth)
    known = [category["id"] for category in truth["categories"]]
    score = functools.partial(evaluate_rules, rules)
    if rules != "coco":
        score(truth, [], image_ids)  # fails now if a package or a key of the ground truth is missing
    if category_ids is None:
        if rules != "coco":
            raise UserError(
                f"The rules {rules!r} score classes, but the model predicts boxes without classes: use COCO's rules "
                "(--metrics coco; Python: rules='coco')."
            )
        score, category_ids = evaluate_proposals, known[:1]
    for category_id in category_ids:
        if category_id not in known:
            raise ValueError(
                f"category_ids has {category_id}, which is not a category id of the ground truth: pass one of its "
                f"{len(known)} ids for each class."
            )
    wanted = {image["id"] for image in truth["images"]} if image_ids is None else set(np.asarray(image_ids).tolist())
    rank, workers = worker_rank(_strategy(predictor))
    progress = Progbar(-(-len(wanted) // workers), unit_name="image", verbose=_verbosity() if rank == 0 else 0)
    seen, results = set(), []
    try:
        for batch, padded in _detected(predictor, batches):
            ids = np.asarray(batch["image_id"]).tolist()
            for image_id, detections in zip(ids, predictor.unpad(padded, batch["original_size"]), strict=True):
                _check_image(image_id, seen, wanted)
                seen.add(image_id)
                results += detections.to_coco(image_id, category_ids)
            progress.update(len(seen))
    finally:
        if 0 < len(seen) < progress.target:  # after an error or Ctrl-C the message begins on a new line
            progress.update(len(seen), finalize=True)
    parts = all_gather_object(_strategy(predictor), {"seen": sorted(seen), "results": results})
    seen, results = {image for part in parts for image in part["seen"]}, [r for part in parts for r in part["results"]]
    if len(seen) < len(wanted):
        raise ValueError(
            f"{len(wanted) - len(seen)} of {len(wanted)} images are missing from the batches; the first is image "
            f"{min(wanted - seen)}. Pass every image once, or set image_ids to evaluate a subset."
        )
    return score(truth, results, image_ids=sorted(wanted), engine=engine), results


def _verbosity():
    """Returns the verbosity of Keras' progress bar: a moving bar on terminals and in notebooks, one line in files."""
    return 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2


def _detected(predictor: Predictor, batches: Iterable[Mapping]) -> Iterator[tuple[Mapping, Mapping]]:
    """Yields batches and their padded detections; a model on several replicas works on several batches at once."""
    if _strategy(predictor).num_replicas_in_sync > 1:
        yield from predictor.predict_batches(
            {name: batch[name] for name in ("image", "image_size", "original_size", "image_id")} for batch in batches
        )
        return
    for batch in batches:
        yield batch, predictor.detect_batch({name: batch[name] for name in ("image", "image_size", "original_size")})


def _check_image(image_id, seen, wanted):
    if image_id in seen:
        raise ValueError(f"Image {image_id} occurs twice in the batches: pass every image once.")
    if image_id not in wanted:
        raise ValueError(
            f"Image {image_id} is in the batches but not in image_ids: add it to image_ids, or remove it from the "
            "batches."
        )
