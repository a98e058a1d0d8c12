"""What models that predict at every anchor or point of a pyramid have in common."""

from collections.abc import Mapping

import tensorflow as tf

from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.matching import covered, gather_gt
from kerasdet.keras_utils import float_dtype
from kerasdet.models.detector import Detector, unpack_inputs
from kerasdet.ops.distribute import global_sum


def pyramid_and_anchors(
    model: Detector, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """The pyramid of a model's inputs, level -> (B, h, w, C), and its anchors, level -> (R_l, 4)."""
    image, image_size = unpack_inputs(inputs)
    features = model.backbone(model.preprocessing.normalize(image, image_size), training=training)
    pyramid = model.neck(features, training=training)
    grids = {level: tuple(tf.unstack(tf.shape(x)[1:3])) for level, x in pyramid.items()}
    return pyramid, model.anchors(grids, tuple(tf.unstack(tf.shape(image)[1:3])))


def valid_gt_mask(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The ground truth that is no padding and no crowd, (B, M) bool."""
    return (batch["class_ids"] >= 0) & ~batch["is_crowd"]


def ignore_mask(anchors: tf.Tensor, batch: Mapping[str, tf.Tensor], min_iof: float | None) -> tf.Tensor | None:
    """Anchors (B, R) that are ignored, more than `min_iof` of their area being in a crowd; None for a bound of None."""
    return None if min_iof is None else covered(anchors, batch["boxes"], batch["is_crowd"], min_iof=min_iof)


def matched_targets(matched_gt: tf.Tensor, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What the anchors should say.

    Returns:
        ``matched_gt`` (B, R), ``class_ids`` (B, R) with -1 where there is no object, and ``boxes`` (B, R, 4), an
        anchor's own where it has no match.
    """
    positive = matched_gt >= 0
    return {
        "matched_gt": matched_gt,
        "class_ids": tf.where(positive, gather_gt(batch["class_ids"], matched_gt), -1),
        "boxes": tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), anchors),
    }


def loss_normalizer(matched_gt: tf.Tensor, rule: str, mean_positives: tf.Tensor, momentum: float) -> tf.Tensor:
    """What divides an anchor's losses; replicas count together.

    Args:
        matched_gt: (B, R).
        rule: "ema", the running mean of positives in a batch; "batch", the positives of the batch; "image", each
            image's own, times the images.
        mean_positives: The running mean before this batch.
        momentum: Its share in the next.

    Returns:
        () or, for "image", (B, 1).
    """
    positives = tf.reduce_sum(tf.cast(matched_gt >= 0, float_dtype()), 1, keepdims=True)  # (B, 1)
    if rule == "image":
        return tf.maximum(positives, 1.0) * global_sum(tf.cast(tf.shape(positives)[0], float_dtype()))
    total = tf.maximum(global_sum(tf.reduce_sum(positives)), 1.0)
    return total if rule == "batch" else momentum * mean_positives + (1 - momentum) * total


def check_normalizer(name: str, normalizer: str) -> None:
    """Raises a ValueError unless `loss_normalizer` has this rule; `name` is the model's."""
    if normalizer not in ("ema", "batch", "image"):
        raise ValueError(f"{name} has no normalizer {normalizer!r}: choose 'ema', 'batch' or 'image'.")


def check_levels(anchors: AnchorGenerator, neck) -> None:
    """Raises a ValueError unless the anchors are for the levels that the neck makes."""
    if tuple(anchors.levels) != tuple(neck.levels):
        raise ValueError(f"The anchors are for levels {anchors.levels}, the neck makes {neck.levels}.")


def build_neck_and_head(model: Detector) -> None:
    """Creates the variables of neck and head, as far as they are not there yet."""
    if not model.neck.built:
        model.neck.build({name: (None, None, None, channels) for name, channels in model.backbone.channels.items()})
    model.head.build((None, None, None, model.neck.channels))
