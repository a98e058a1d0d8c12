"""Implements the steps that RetinaNet, FCOS, SSD and RTMDet share.

These models predict for every anchor or point of a feature pyramid. A positive is an anchor or point that is matched to
an object.
"""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.matching import IGNORE, gather_gt
from kerasdet.keras_utils import float_dtype
from kerasdet.models.detector import Detector, unpack_inputs
from kerasdet.models.postprocess import Postprocessing


def attach_head(model: Detector) -> None:
    """Creates the variables of a model's neck and head, unless they exist.

    Args:
        model: Detector with `backbone`, `neck`, `anchors`, `head` and `num_classes`.

    Raises:
        UserError: If anchors and neck have different levels, or the head does not accept the number of anchors per
            cell.
    """
    anchors, neck = model.anchors, model.neck
    if tuple(anchors.levels) != tuple(neck.levels):
        raise UserError(
            f"The anchors are for the levels {tuple(anchors.levels)}, but the neck makes {tuple(neck.levels)}. Pass "
            f"anchors for the levels of the neck, such as {type(anchors).__name__}(..., levels={tuple(neck.levels)})."
        )
    if not neck.built:
        neck.build({name: (None, None, None, channels) for name, channels in model.backbone.channels.items()})
    model.head.attach(
        num_classes=model.num_classes, num_anchors=anchors.num_anchors, levels=neck.levels, channels=neck.channels
    )


def add_running_mean(model: Detector) -> None:
    """Creates the variable for the running mean of the number of positives, which `LossNormalizer("ema")` uses.

    Args:
        model: Detector with a `normalizer`.
    """
    model.mean_positives = model.add_weight(
        name="mean_positives", initializer=keras.initializers.Constant(model.normalizer.start), trainable=False
    )


def pyramid_and_anchors(
    model: Detector, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Runs backbone and neck, and generates the anchors.

    Args:
        model: Detector with `preprocessing`, `backbone`, `neck` and `anchors`.
        inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths without
            padding in pixels; or a bare image tensor without padding.
        training: Whether batch norms use the statistics of the batch.

    Returns:
        Two dicts by level name: the pyramid, (B, h, w, C), and the anchors, (R_l, 4) yxyx in pixels of the network's
        input. R_l is the number of anchors of level l.
    """
    image, image_size = unpack_inputs(inputs)
    features = model.backbone(model.preprocessing.normalize(image, image_size), training=training)
    pyramid = model.neck(features, training=training)
    grids = {level: tuple(tf.unstack(tf.shape(x)[1:3])) for level, x in pyramid.items()}
    return pyramid, model.anchors(grids, tuple(tf.unstack(tf.shape(image)[1:3])))


def all_levels(outputs: Mapping, name: str) -> tf.Tensor:
    """Concatenates an output over all pyramid levels.

    Args:
        outputs: Result of the model's `call`: for each output name, a dict from level name to (B, R_l, ...), or to
            (R_l, 4) for ``anchors``.
        name: Name of the output, such as "class_logits".

    Returns:
        The concatenated output, (B, R, ...), or (R, 4) for ``anchors``.
    """
    return tf.concat(list(outputs[name].values()), 0 if name == "anchors" else 1)


def matched_targets(matched_gt: tf.Tensor, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Looks up the class and box of the object that each anchor is matched to.

    Args:
        matched_gt: (B, R) int32 from a matcher: the index of each anchor's object, negative for anchors without an
            object.
        anchors: (R, 4) yxyx in pixels.
        batch: ``boxes`` (B, M, 4) yxyx in pixels and ``class_ids`` (B, M).

    Returns:
        A dict of ``matched_gt`` (B, R); ``class_ids`` (B, R), -1 for anchors without an object; and ``boxes``
        (B, R, 4) yxyx in pixels, which for anchors without an object are the anchors themselves.
    """
    positive = matched_gt >= 0
    return {
        "matched_gt": matched_gt,
        "class_ids": tf.where(positive, gather_gt(batch["class_ids"], matched_gt), -1),
        "boxes": tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), anchors),
    }


def class_loss(model: Detector, outputs: Mapping, targets: Mapping[str, tf.Tensor], normalizer: tf.Tensor) -> tf.Tensor:
    """Computes the classification loss of all anchors that are not ignored.

    Args:
        model: Detector with `class_loss` and `num_classes`.
        outputs: Result of the model's `call`, with ``class_logits``, a dict from level name to (B, R_l, K).
        targets: Result of `matched_targets`.
        normalizer: Divisor from `LossNormalizer`, a scalar or (B, 1).

    Returns:
        The loss, a scalar.
    """
    logits = all_levels(outputs, "class_logits")  # (B, R, K)
    valid = tf.cast(targets["matched_gt"] != IGNORE, float_dtype()) / normalizer  # (B, R)
    one_hot = tf.one_hot(targets["class_ids"], model.num_classes, dtype=logits.dtype)  # (B, R, K)
    return model.class_loss(logits, one_hot, valid[..., None])


def update_running_mean(model: Detector, targets: Mapping[str, tf.Tensor]) -> None:
    """Updates the running mean of the number of positives per batch, if the model's normalizer is "ema".

    Args:
        model: Detector with a `normalizer`.
        targets: Result of `compute_targets`, with ``matched_gt`` (B, R).
    """
    if model.normalizer.method == "ema":
        model.mean_positives.assign(model.normalizer(targets["matched_gt"], model.mean_positives))


def filtered(
    postprocessing: Postprocessing, boxes: tf.Tensor, scores: tf.Tensor, factor: tf.Tensor | None, image_size: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Applies the score and size filters that precede NMS to the boxes of all anchors, for `decode_all` of the models.

    Args:
        postprocessing: Post-processing of the model.
        boxes: (B, R, 4) yxyx in pixels of the network's input.
        scores: (B, R, K), compared with the score threshold.
        factor: (B, R), by which the scores are multiplied after the comparison. None: no factor.
        image_size: (B, 2) heights and widths without padding, in pixels.

    Returns:
        A dict of ``boxes`` (B, R, 4) yxyx in pixels, and ``scores`` (B, R, K). Boxes are clipped if
        `postprocessing.clip_before_nms` is True. A score is 0 if a filter drops the box for this class.
    """
    keep = scores > postprocessing.score_threshold  # (B, R, K)
    if factor is not None:
        scores *= factor[..., None]
    scores = tf.where(keep, scores, 0.0)
    mask = postprocessing.box_mask(boxes, image_size)  # (B, R) or None
    if mask is not None:
        scores = tf.where(mask[..., None], scores, 0.0)
    if postprocessing.clip_before_nms:
        boxes = box_ops.clip(boxes, image_size)
    return {"boxes": boxes, "scores": scores}
