"""Defines FCOS."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet import losses
from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.geometry import coders
from kerasdet.geometry.anchors import AnchorGenerator, point_squares
from kerasdet.geometry.coders import DistanceCoder
from kerasdet.geometry.matching import FCOSMatcher
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, ConvTop, FCOSHead, ResNet
from kerasdet.losses import FocalLoss, GIoULoss, IoULoss, SmoothL1Loss
from kerasdet.models import dense
from kerasdet.models.common import LossNormalizer, check_backbone, check_num_classes
from kerasdet.models.detector import Detector
from kerasdet.models.postprocess import Postprocessing, best_class_only, top_candidates
from kerasdet.ops.distribute import global_sum

SCORE_CONVENTIONS = ("sqrt", "product")


@keras.saving.register_keras_serializable(package="kerasdet")
class Centerness(ConfigFromInit):
    """Configures how FCOS uses centerness in its losses and in the scores of detections.

    The centerness of a point is 1 at the centre of its object's box and falls to 0 at the sides.

    Args:
        loss_weight: Factor of the centerness loss.
        weights_boxes: If True, the box loss is the average over positive points, weighted by their centerness
            (mmdetection). If False, all positive points have the same weight.
        score_convention: Rule that combines class probability and centerness into the score. "sqrt": the score is the
            square root of their product (detectron2, torchvision). "product": the score is their product, but
            `score_threshold` and `pre_nms_top_k` of `Postprocessing` apply to the class probability alone
            (mmdetection).

    Raises:
        UserError: If `score_convention` is unknown, or `loss_weight` is negative.
    """

    def __init__(self, loss_weight: float = 1.0, weights_boxes: bool = False, score_convention: str = "sqrt"):
        check_numbers("Centerness", 0, loss_weight=loss_weight)
        if score_convention not in SCORE_CONVENTIONS:
            raise UserError(f"Centerness.score_convention is {score_convention!r}: choose 'sqrt' or 'product'.")
        self.loss_weight = loss_weight
        self.weights_boxes = weights_boxes
        self.score_convention = score_convention


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOS(ConfigFromInit, Detector):
    """Detects objects from points at every position of a feature pyramid (https://arxiv.org/abs/2006.09214).

    The defaults are those of detectron2, except that the default backbone has random weights and no frozen layers. A
    point is represented by a square anchor: centred on the point, as large as the stride of its level.

    Args:
        num_classes: K, number of classes without background.
        class_names: Names of the K classes in the order of their ids; training sets them from the data.
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. By default
            `ResNet(50)`.
        neck: Layer that maps features to a pyramid. By default an FPN with P6 and P7 made from P5.
        anchors: Generates one square per cell of the pyramid. By default `point_squares` of the neck's levels.
        coder: Converts the raw predictions of the head to distances, and distances to boxes and back. By default
            `DistanceCoder()`.
        head: Predicts class logits, distances and centerness. By default `FCOSHead()`.
        matcher: Matches points to ground-truth objects. By default `FCOSMatcher()`, centre sampling within 1.5 strides.
        class_loss: Classification loss. By default `FocalLoss()`.
        box_loss: Box loss, `GIoULoss`, `IoULoss` or `SmoothL1Loss`. By default `GIoULoss()`.
        centerness: How losses and scores use centerness. By default `Centerness()`.
        normalizer: Computes the divisor of the losses. By default `LossNormalizer("ema", start=300)`.
        postprocessing: Score threshold and NMS of detections. By default
            `Postprocessing(score_threshold=0.2, nms_threshold=0.6)`.
        preprocessing: Resize rule and pixel statistics. By default `Preprocessing()`.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If `num_classes` is not a positive integer, the number of class names is not `num_classes`, the
            backbone lacks a feature that the neck merges, the levels of anchors and neck differ, a cell has several
            anchors, or the matcher does not have one range per level.

    Example:
        >>> model = kerasdet.FCOS(num_classes=3, class_names=["cat", "dog", "bird"])
        >>> model.compile(optimizer=keras.optimizers.AdamW(1e-4))
        >>> detections = model.detect("street.jpg")
    """

    single_stage = True
    supports_decode_all = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        anchors: AnchorGenerator | None = None,
        coder: DistanceCoder | None = None,
        head: keras.layers.Layer | None = None,
        matcher: FCOSMatcher | None = None,
        class_loss: FocalLoss | None = None,
        box_loss: GIoULoss | IoULoss | SmoothL1Loss | None = None,
        centerness: Centerness | None = None,
        normalizer: LossNormalizer | None = None,
        postprocessing: Postprocessing | None = None,
        preprocessing: Preprocessing | None = None,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(), ("class_loss", "box_loss", "centerness_loss"), **kwargs)
        check_num_classes("FCOS", num_classes)
        self.num_classes = num_classes
        self.class_names = class_names
        self.backbone = backbone or ResNet(50)
        self.neck = neck or FPN(top=ConvTop("p5"))
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or point_squares(self.neck.levels)
        self.coder = coder or DistanceCoder()
        self.head = head or FCOSHead()
        self.matcher = matcher or FCOSMatcher()
        self.class_loss = class_loss or FocalLoss()
        self.box_loss = box_loss or GIoULoss()
        self.centerness = centerness or Centerness()
        self.normalizer = normalizer or LossNormalizer(start=300.0)
        self.postprocessing = postprocessing or Postprocessing(score_threshold=0.2, nms_threshold=0.6)
        _check_ranges(self.matcher, self.neck)
        dense.attach_head(self)
        dense.add_running_mean(self)
        self.built = True

    def call(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict:
        """Predicts class logits, distances and centerness for every point.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Four dicts by level name: ``class_logits`` (B, R_l, K); ``box_distances`` (B, R_l, 4) as (t, l, b, r);
            ``centerness`` (B, R_l) logits; and ``anchors`` (R_l, 4), the points' squares, yxyx in pixels. R_l is the
            number of cells of level l; points are in row-major order of cells.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        outputs = self.head(pyramid, training=training)
        distances = {level: self.coder.activate(raw) for level, raw in outputs["box_distances"].items()}
        return {**outputs, "box_distances": distances, "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Matches points to ground truth.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M). Crowds are never
                matched.

        Returns:
            A dict of ``matched_gt`` (B, R), ``class_ids`` (B, R) and ``boxes`` (B, R, 4) yxyx in pixels, for each point
            (see `kerasdet.models.dense.matched_targets`), and ``centerness`` (B, R), 1 for points without an object.
        """
        anchors = dense.all_levels(outputs, "anchors")  # (R, 4)
        targets = dense.matched_targets(self.matcher(outputs["anchors"], batch), anchors, batch)
        return {**targets, "centerness": coders.centerness(self.coder.encode(targets["boxes"], anchors))}

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes ``class_loss``, ``box_loss`` and ``centerness_loss``, weighted and normalised.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict from the name of each loss to its value, a scalar float32.
        """
        normalizer = self.normalizer(targets["matched_gt"], self.mean_positives)  # () or (B, 1)
        is_positive = tf.cast(targets["matched_gt"] >= 0, float_dtype())  # (B, R)
        box_weights = positive = is_positive / normalizer
        if self.centerness.weights_boxes:
            box_weights = is_positive * targets["centerness"]
            box_weights /= tf.maximum(global_sum(tf.reduce_sum(box_weights)), 1e-6)
        anchors, distances = dense.all_levels(outputs, "anchors"), dense.all_levels(outputs, "box_distances")
        centerness_loss = losses.centerness(dense.all_levels(outputs, "centerness"), targets["centerness"], positive)
        return {
            "class_loss": dense.class_loss(self, outputs, targets, normalizer),
            "box_loss": self.box_loss(distances, anchors, targets["boxes"], box_weights, self.coder),
            "centerness_loss": centerness_loss * self.centerness.loss_weight,
        }

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Updates the running mean of the number of positive points, if the normalizer is "ema".

        Args:
            targets: Result of `compute_targets`.
        """
        dense.update_running_mean(self, targets)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the network's outputs into candidates: the `pre_nms_top_k` best pairs of box and class of each level.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels of the network's input, ``scores`` (B, N) with 0 for candidates
            at or below the score threshold, and ``class_ids`` (B, N). N is the number of candidates of all levels.
        """
        levels = []
        for level, anchors in outputs["anchors"].items():
            ranks, factor = self.level_scores(outputs, level)
            ranks, indices, class_ids = top_candidates(ranks, self.postprocessing.pre_nms_top_k, tf.identity)
            distances = tf.gather(outputs["box_distances"][level], indices, batch_dims=1)  # (B, n, 4)
            boxes = self.coder.decode(distances, tf.gather(anchors, indices))  # (B, n, 4)
            scores = ranks * tf.gather(factor, indices, batch_dims=1)  # (B, n)
            scores = tf.where(ranks > self.postprocessing.score_threshold, scores, 0.0)
            levels.append({"boxes": boxes, "scores": scores, "class_ids": class_ids})
        return {name: tf.concat([level[name] for level in levels], 1) for name in levels[0]}

    def decode_all(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes a box for every point, for runtimes that apply NMS themselves; `pre_nms_top_k` is not used.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, R, 4) yxyx in pixels of the network's input, and ``scores`` (B, R, K). Boxes are
            clipped if `postprocessing.clip_before_nms` is True. A score is 0 if a filter of `postprocessing` drops the
            box for this class.
        """
        levels = [self.level_scores(outputs, level) for level in outputs["anchors"]]
        ranks, factor = (tf.concat(values, 1) for values in zip(*levels, strict=True))
        boxes = self.coder.decode(dense.all_levels(outputs, "box_distances"), dense.all_levels(outputs, "anchors"))
        return dense.filtered(self.postprocessing, boxes, ranks, factor, image_size)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies NMS to each class separately.

        Args:
            candidates: Result of `decode`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, and ``valid`` (B,).
        """
        # `decode` has applied the score threshold
        return self.postprocessing.apply_nms(candidates, image_size, score_threshold=0.0)

    def level_scores(self, outputs: Mapping, level: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the values that the score threshold applies to, and factors that convert them to scores.

        Args:
            outputs: Result of `call`.
            level: Name of a pyramid level, such as "p3".

        Returns:
            Values (B, R_l, K) that the score threshold applies to, and factors (B, R_l). A score is the product of
            value and factor.
        """
        ranks = tf.sigmoid(outputs["class_logits"][level])  # (B, R_l, K)
        factor = tf.sigmoid(outputs["centerness"][level])  # (B, R_l)
        if self.centerness.score_convention == "sqrt":
            ranks, factor = tf.sqrt(ranks * factor[..., None]), tf.ones_like(factor)
        return (ranks if self.postprocessing.multi_label else best_class_only(ranks)), factor


def _check_ranges(matcher, neck):
    """Raises a UserError unless the matcher has a range for each level of the neck."""
    ranges = getattr(matcher, "regress_ranges", neck.levels)
    if len(ranges) != len(neck.levels):
        raise UserError(
            f"FCOSMatcher.regress_ranges has {len(ranges)} ranges, but the neck has {len(neck.levels)} levels, "
            f"{tuple(neck.levels)}: give one (low, high) pair in pixels per level."
        )
