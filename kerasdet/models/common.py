"""Helpers of all models: the normaliser of losses, checks of parts, and copies with another score threshold."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.models.detector import Detector
from kerasdet.ops.distribute import global_sum

AnyDetector = TypeVar("AnyDetector", bound=Detector)
NORMALIZERS = ("ema", "batch", "image", "image_sum")


@keras.saving.register_keras_serializable(package="kerasdet")
class LossNormalizer(ConfigFromInit):
    """Computes the divisor of a dense detector's losses; all replicas count their positives together.

    Args:
        method: "ema" divides by the running mean of positives in a batch (detectron2), "batch" by the positives of
            this batch (FCOS of mmdetection and torchvision), "image" divides each image by its own positives and
            averages over images (torchvision's RetinaNet), "image_sum" divides by the positives of this batch, where an
            image without any counts as one (mmdetection's RetinaNet).
        momentum: Weight of the old running mean in the new one, in [0, 1); only for "ema".
        start: First value of the running mean, in anchors; only for "ema".

    Raises:
        UserError: If `method` is unknown.
    """

    def __init__(self, method: str = "ema", momentum: float = 0.9, start: float = 100.0):
        if method not in NORMALIZERS:
            raise UserError(
                f"LossNormalizer has no method {method!r}: choose one of {', '.join(map(repr, NORMALIZERS))}."
            )
        self.method = method
        self.momentum = momentum
        self.start = start

    def __call__(self, matched_gt: tf.Tensor, running_mean: tf.Tensor) -> tf.Tensor:
        """Returns the divisor of this batch.

        Args:
            matched_gt: (B, R) int32 from a matcher.
            running_mean: () mean of positives before this batch; only "ema" reads it.

        Returns:
            () or, for "image", (B, 1). For "ema" it is also the next running mean.
        """
        positives = tf.reduce_sum(tf.cast(matched_gt >= 0, float_dtype()), 1, keepdims=True)  # (B, 1)
        if self.method == "image":
            return tf.maximum(positives, 1.0) * global_sum(tf.cast(tf.shape(positives)[0], float_dtype()))
        if self.method == "image_sum":
            positives = tf.maximum(positives, 1.0)
        total = tf.maximum(global_sum(tf.reduce_sum(positives)), 1.0)
        if self.method != "ema":
            return total
        return self.momentum * running_mean + (1 - self.momentum) * total


def with_score_threshold(model: AnyDetector, threshold: float) -> AnyDetector:
    """Copies a detector and gives the copy another score threshold.

    Args:
        model: Any detector whose `postprocessing` has a score threshold.
        threshold: Detections of the copy with a score at or below this are dropped. In [0, 1].

    Returns:
        A model with equal weights; `model` does not change.

    Raises:
        UserError: If the model has no score threshold, like a `ProposalNetwork`.
    """
    if not hasattr(getattr(model, "postprocessing", None), "score_threshold"):
        raise UserError(
            f"{type(model).__name__} has no score threshold: give a detector whose postprocessing has one, such as "
            "RetinaNet."
        )
    copy = type(model).from_config(model.get_config())
    for new, old in zip(copy.variables, model.variables, strict=True):
        new.assign(old)
    copy.postprocessing.score_threshold = threshold  # `from_config` has copied the post-processing
    return copy


def check_backbone(backbone: keras.Model, neck: keras.layers.Layer) -> None:
    """Checks that a backbone returns the features that the neck merges.

    Args:
        backbone: A model that follows the protocol `kerasdet.layers.backbone.Backbone`.
        neck: A layer with `in_features`, the names of the features that it merges.

    Raises:
        TypeError: If the backbone does not follow the protocol, for example a name.
        ValueError: If the backbone lacks a feature.
    """
    channels = getattr(backbone, "channels", None)
    if not isinstance(channels, Mapping):
        what = repr(backbone) if isinstance(backbone, str) else f"a {type(backbone).__name__} without `channels`"
        raise TypeError(
            f"backbone is {what}: give a kerasdet.ResNet, or a Keras model that keeps the protocol "
            "kerasdet.layers.backbone.Backbone: it returns features by name and has `channels` and `strides` of each, "
            "such as {'c3': 128, 'c4': 256, 'c5': 512} and {'c3': 8, 'c4': 16, 'c5': 32}."
        )
    given = getattr(backbone, "out_features", channels)  # a ResNet knows the channels of all of its stages
    missing = [name for name in getattr(neck, "in_features", ()) if name not in given]
    if missing:
        raise ValueError(
            f"The neck merges {', '.join(neck.in_features)}, and the backbone lacks {', '.join(missing)}: give "
            f"ResNet out_features={tuple(neck.in_features)}."
        )


def checked_names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Returns a model's class names as a tuple, or None if they are unknown.

    Args:
        class_names: The names, or None.
        num_classes: Number of classes K.

    Raises:
        ValueError: If there are not K names.
    """
    if not class_names:
        return None
    if len(class_names) != num_classes:
        raise ValueError(
            f"There are {num_classes} classes and {len(class_names)} class names: {', '.join(class_names)}. Give one "
            "name for each class."
        )
    return tuple(class_names)


def check_num_classes(model: str, num_classes: int) -> None:
    """Raises a UserError unless `num_classes` is at least 1; `model` names the class in the message."""
    if num_classes < 1:
        raise UserError(f"{model} needs at least one class, got num_classes={num_classes}: background is not a class.")
