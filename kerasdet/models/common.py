"""Defines helpers for all models: the divisor of losses, checks of parts, and copies with another score threshold."""

from collections.abc import Mapping
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.resnet import ResNet
from kerasdet.models.detector import Detector
from kerasdet.ops.distribute import global_sum

AnyDetector = TypeVar("AnyDetector", bound=Detector)
NORMALIZERS = ("ema", "batch", "image", "image_sum")


@keras.saving.register_keras_serializable(package="kerasdet")
class LossNormalizer(ConfigFromInit):
    """Computes the divisor of a dense detector's losses from the number of positives, counted over all replicas.

    A positive is an anchor or point that is matched to an object. The divisor counts at least one positive.

    Args:
        method: "ema": the running mean of the number of positives per batch (detectron2). "batch": the number of
            positives in this batch (FCOS of mmdetection and torchvision). "image": each image's loss is divided by its
            own number of positives, then averaged over images (torchvision's RetinaNet). "image_sum": the number of
            positives in this batch, where an image without positives counts as one positive (mmdetection's RetinaNet).
        momentum: Weight of the old running mean in the new one, in [0, 1]; only for "ema".
        start: Initial value of the running mean, a number of positives; only for "ema".

    Raises:
        UserError: If `method` is unknown, `momentum` is outside [0, 1], or `start` is negative.
    """

    def __init__(self, method: str = "ema", momentum: float = 0.9, start: float = 100.0):
        if method not in NORMALIZERS:
            raise UserError(f"LossNormalizer.method is {method!r}: choose one of {', '.join(map(repr, NORMALIZERS))}.")
        check_numbers("LossNormalizer", 0, 1, momentum=momentum)
        check_numbers("LossNormalizer", 0, start=start)
        self.method = method
        self.momentum = momentum
        self.start = start

    def __call__(self, matched_gt: tf.Tensor, running_mean: tf.Tensor) -> tf.Tensor:
        """Computes the divisor of the losses of a batch.

        Args:
            matched_gt: (B, R) int32 from a matcher: the index of each anchor's object, negative for anchors without an
                object.
            running_mean: Scalar, the running mean of the number of positives before this batch; only "ema" reads it.

        Returns:
            The divisor, a scalar float32, or (B, 1) for "image". With "ema" this is the new running mean.
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
        threshold: Detections of the copy have scores above this, or of at least this if the model is a
            `ProposalNetwork`. In [0, 1].

    Returns:
        A model with equal weights; `model` does not change.

    Raises:
        UserError: If the model's `postprocessing` has no score threshold.
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
    """Checks that a backbone follows the protocol and returns the features that the neck merges.

    A backbone other than `ResNet` runs once on a small black image. The shapes of its features are compared with its
    attributes `channels` and `strides`.

    Args:
        backbone: A model that follows the protocol `kerasdet.layers.backbone.Backbone`.
        neck: A layer with `in_features`, the names of the features that it merges.

    Raises:
        TypeError: If `backbone` is a class, or lacks the dicts `channels` and `strides`.
        UserError: If a feature is missing, or its shape differs from the stated channels or stride.
    """
    protocol = (
        "the protocol kerasdet.layers.backbone.Backbone: it returns features by name, and has dicts `channels` and "
        "`strides` such as {'c3': 128, 'c4': 256, 'c5': 512} and {'c3': 8, 'c4': 16, 'c5': 32}."
    )
    if isinstance(backbone, type):
        raise TypeError(f"backbone is the class {backbone.__name__}: give an object, {backbone.__name__}(...).")
    for attribute in ("channels", "strides"):
        if not isinstance(getattr(backbone, attribute, None), Mapping):
            name = type(backbone).__name__
            what = repr(backbone) if isinstance(backbone, str) else f"a {name} without `{attribute}`"
            raise TypeError(f"backbone is {what}: give a kerasdet.ResNet, or a Keras model that follows {protocol}")
    _check_strides(backbone, neck)
    if type(backbone).call is not ResNet.call:  # ResNet computes channels and strides from the layers that it builds
        _check_features(backbone)


def _check_strides(backbone, neck):
    """Raises a UserError unless the backbone has all features of the neck, with the strides that their names state."""
    name = type(backbone).__name__
    wanted = tuple(getattr(neck, "in_features", ()))
    source = getattr(getattr(neck, "top", None), "in_feature", "p")
    wanted += (source,) if not source.startswith("p") and source not in wanted else ()
    if missing := [feature for feature in wanted if feature not in backbone.channels]:
        fix = f"let {name} return {' and '.join(missing)} (names state strides: c3 has a stride of 8 pixels)"
        if hasattr(backbone, "out_features"):
            fix = f"give {name} out_features={wanted}"
        raise UserError(
            f"The neck merges {', '.join(wanted)}, but the backbone {name} lacks {', '.join(missing)}: {fix}. Or give "
            f"the model a neck with other in_features; {name} has {', '.join(backbone.channels)}."
        )
    for feature in wanted:
        if feature not in backbone.strides:
            raise UserError(
                f"{name}.strides lacks {feature}: state a stride in pixels for each feature, such as {{'c3': 8}}."
            )
        level = feature[1:]
        if level.isdigit() and backbone.strides[feature] != 2 ** int(level):
            raise UserError(
                f"{name} states a stride of {backbone.strides[feature]} pixels for {feature}, but the neck and the "
                f"anchors need {2 ** int(level)}: name each feature after its stride, such as c3 for 8 pixels, and do "
                "not dilate stages that the neck merges."
            )


def _check_features(backbone):
    """Raises a UserError if the features of a small image differ from what the backbone states."""
    name = type(backbone).__name__
    height, width = 64, 128  # multiples of all usual strides, so that rounding does not matter
    try:
        features = backbone(tf.zeros([1, height, width, 3], float_dtype()), training=False)
    except Exception:  # some architectures reject images of this size; other mistakes appear in the first real call
        return
    if not isinstance(features, Mapping):
        raise UserError(
            f"The backbone {name} returns a {type(features).__name__}: expected a dict of (B, h, w, C) tensors with "
            f"the keys {', '.join(backbone.channels)}. Change its `call`."
        )
    if missing := [feature for feature in backbone.channels if feature not in features]:
        raise UserError(
            f"{name}.channels lists {', '.join(missing)}, but `call` returns only {', '.join(map(str, features))}: "
            "return every listed feature."
        )
    for feature, channels in backbone.channels.items():
        shape = tuple(getattr(features[feature], "shape", ()))
        stride = backbone.strides.get(feature)
        if len(shape) != 4 or shape[3] != channels:
            raise UserError(
                f"{name}.channels states {channels} channels for {feature}, but `call` returns the shape {shape}: "
                f"expected (B, h, w, {channels}). Return such a tensor, or correct channels['{feature}']."
            )
        if stride and shape[1:3] != (expected := (-(-height // stride), -(-width // stride))):
            raise UserError(
                f"{name} makes {feature} of {shape[1]} x {shape[2]} cells from an image of {height} x {width} pixels, "
                f"but a stride of {stride} needs {expected[0]} x {expected[1]}: correct `strides`, or pad all "
                'convolutions and poolings ("same", not "valid").'
            )


def check_num_classes(model: str, num_classes: int) -> None:
    """Checks that the number of classes is an integer of 1 or more.

    Args:
        model: Name of the model's class, for the error message.
        num_classes: K, number of classes without background.

    Raises:
        UserError: If `num_classes` is not an integer of 1 or more.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer):
        raise UserError(f"num_classes of {model} is {num_classes!r}: give a whole number, 1 or more.")
    if num_classes < 1:
        raise UserError(
            f"num_classes of {model} is {num_classes}: give 1 or more. The background is not counted as a class."
        )
