"""FCOS."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet import losses
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.anchors import AnchorGenerator, point_squares
from kerasdet.geometry.coders import DistanceCoder, centerness
from kerasdet.geometry.matching import IGNORE, match_fcos
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, ConvTop, FCOSHead, ResNet
from kerasdet.models import dense
from kerasdet.models.detector import Detector, check_backbone, checked_names
from kerasdet.models.postprocess import detections_from_candidates, top_candidates
from kerasdet.ops.distribute import global_sum

REGRESS_RANGES = ((0, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
BOX_LOSSES = ("giou", "iou", "linear_iou")


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOS(ConfigFromInit, Detector):
    """FCOS: A Simple and Strong Anchor-free Object Detector (https://arxiv.org/abs/2006.09214).

    The defaults are detectron2's. A point is the middle of a square anchor as large as its stride.

    Args:
        num_classes: K, without background.
        class_names: Of the K classes, for people; training sets them from the data.
        backbone: Images to features, by default a ResNet-50 with frozen batch norm, stem and first stage.
        neck: Features to a pyramid, by default an FPN with P6 and P7 made of P5.
        anchors: A generator of one square a cell, by default `point_squares` of the neck's levels.
        coder: Between boxes and distances; with normalised ones the head ends in a ReLU, else in an exponential.
        preprocessing: Resize rule and pixel statistics.
        head_convs: Convolutions in each tower of the head.
        head_norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        head_bias: Whether the towers' convolutions have biases beside a norm.
        deform_last: Make the towers' last convolutions deformable ones.
        centerness_on_boxes: Predict centerness from the tower of the boxes, or else from that of the classes.
        level_scales: Multiply the boxes' raw predictions by a learnt number, one for each level.
        prior_probability: Of a point's lying in an object, before training.
        regress_ranges: For each level, in pixels, between what the largest of a point's distances to the sides of its
            box lies.
        center_radius: In strides, how far a positive point may be from the centre of its box; None for no bound.
        matching_rule: "detectron2" (and torchvision) or "mmdet"; see `kerasdet.geometry.matching.match_fcos`.
        ignore_crowd_iof: Points with more than this share of their square in a crowd are ignored (mmdetection's
            ``ignore_iof_thr``); None: crowds leave no trace (all published FCOS).
        focal_alpha: Weight of positives in the focal loss.
        focal_gamma: Its exponent.
        box_loss: "giou", "iou" (its negative logarithm) or "linear_iou".
        centerness_weights_boxes: Weight the box loss by the centerness of the points, and divide it by the sum of
            these weights in the batch (mmdetection).
        class_loss_weight: Factor of the classification loss.
        box_loss_weight: Factor of the box loss.
        centerness_loss_weight: Factor of the centerness loss.
        normalizer: What divides the losses: "ema", the running mean of positives in a batch (detectron2); "batch",
            the positives of the batch (torchvision, mmdetection); "image", each image's own, and the mean over images.
        ema_momentum: Of "ema".
        ema_start: Its first value.
        score_rule: "sqrt", the root of class probability times centerness (detectron2, torchvision); "product": class
            probabilities pass the threshold and are ranked, and centerness multiplies them then (mmdetection).
        score_threshold: Detections need a score above it.
        pre_nms_top_k: Candidates of each level.
        multi_label: Whether a point may give boxes of several classes, or else only of the likeliest.
        min_size: Boxes whose height or width in the image is not above this go; None keeps all.
        nms_threshold: IoU above which the lower score of a class goes.
        max_detections: D.
        clip_before_nms: Clip boxes first (torchvision), or last and then drop what is empty (detectron2).

    Raises:
        TypeError: If `backbone` is no backbone.
        ValueError: If it lacks what the neck merges, an argument has no such choice, there is not one range a level or
            one anchor a cell, or the anchors' levels are not the neck's.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        anchors: AnchorGenerator | None = None,
        coder: DistanceCoder | None = None,
        preprocessing: Preprocessing | None = None,
        head_convs: int = 4,
        head_norm: str | None = "gn",
        head_bias: bool = True,
        deform_last: bool = False,
        centerness_on_boxes: bool = True,
        level_scales: bool = False,
        prior_probability: float = 0.01,
        regress_ranges: Sequence[Sequence[float]] = REGRESS_RANGES,
        center_radius: float | None = 1.5,
        matching_rule: str = "detectron2",
        ignore_crowd_iof: float | None = None,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss: str = "giou",
        centerness_weights_boxes: bool = False,
        class_loss_weight: float = 1.0,
        box_loss_weight: float = 1.0,
        centerness_loss_weight: float = 1.0,
        normalizer: str = "ema",
        ema_momentum: float = 0.9,
        ema_start: float = 300.0,
        score_rule: str = "sqrt",
        score_threshold: float = 0.2,
        pre_nms_top_k: int = 1000,
        multi_label: bool = True,
        min_size: float | None = None,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        clip_before_nms: bool = False,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(), ("class_loss", "box_loss", "centerness_loss"), **kwargs)
        if box_loss not in BOX_LOSSES:
            raise ValueError(f"FCOS has no box loss {box_loss!r}: choose 'giou', 'iou' or 'linear_iou'.")
        if score_rule not in ("sqrt", "product"):
            raise ValueError(f"FCOS has no score rule {score_rule!r}: choose 'sqrt' or 'product'.")
        if matching_rule not in ("detectron2", "mmdet"):
            raise ValueError(f"FCOS has no matching rule {matching_rule!r}: choose 'detectron2' or 'mmdet'.")
        dense.check_normalizer("FCOS", normalizer)
        if num_classes < 1:
            raise ValueError(f"FCOS needs at least one class, got num_classes={num_classes}.")
        self.num_classes = num_classes
        self.class_names = checked_names(class_names, num_classes)
        self.backbone = backbone or ResNet(50, freeze_at=2)
        self.neck = neck or FPN(top=ConvTop("p5"))
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or point_squares(self.neck.levels)
        dense.check_levels(self.anchors, self.neck)
        if self.anchors.num_anchors != 1:
            raise ValueError(f"FCOS has one point a cell, its anchors have {self.anchors.num_anchors}.")
        if len(regress_ranges) != len(self.neck.levels):
            raise ValueError(
                f"FCOS needs a range for each of the {len(self.neck.levels)} levels {self.neck.levels}, "
                f"got {len(regress_ranges)} regress_ranges."
            )
        self.coder = coder or DistanceCoder()
        self.head_convs = head_convs
        self.head_norm = head_norm
        self.head_bias = head_bias
        self.deform_last = deform_last
        self.centerness_on_boxes = centerness_on_boxes
        self.level_scales = level_scales
        self.prior_probability = prior_probability
        self.regress_ranges = tuple(tuple(bounds) for bounds in regress_ranges)
        self.center_radius = center_radius
        self.matching_rule = matching_rule
        self.ignore_crowd_iof = ignore_crowd_iof
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.centerness_weights_boxes = centerness_weights_boxes
        self.class_loss_weight = class_loss_weight
        self.box_loss_weight = box_loss_weight
        self.centerness_loss_weight = centerness_loss_weight
        self.normalizer = normalizer
        self.ema_momentum = ema_momentum
        self.ema_start = ema_start
        self.score_rule = score_rule
        self.score_threshold = score_threshold
        self.pre_nms_top_k = pre_nms_top_k
        self.multi_label = multi_label
        self.min_size = min_size
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.clip_before_nms = clip_before_nms

        self.head = FCOSHead(
            num_classes,
            self.neck.levels,
            head_convs,
            self.neck.channels,
            head_norm,
            head_bias or None,
            deform_last,
            centerness_on_boxes,
            level_scales,
            "relu" if self.coder.normalize else "exp",
            prior_probability,
            name="head",
        )
        dense.build_neck_and_head(self)
        self.mean_positives = self.add_weight(
            name="mean_positives", initializer=keras.initializers.Constant(ema_start), trainable=False
        )
        self.built = True

    def call(self, inputs, training=False):
        """Predictions for every point.

        Args:
            inputs: ``image`` (B, H, W, 3) and ``image_size`` (B, 2), or a bare image tensor without padding.

        Returns:
            ``class_logits``: level -> (B, R_l, K), ``box_distances``: level -> (B, R_l, 4), ``centerness``: level ->
            (B, R_l) logits, ``anchors``: level -> (R_l, 4), the points' squares; R_l runs over rows and columns.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        return {**self.head(pyramid, training=training), "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What each point should say.

        Args:
            outputs: Of the model.
            batch: With ``boxes`` (B, M, 4), ``class_ids`` (B, M) and ``is_crowd`` (B, M); crowds are not trained on.

        Returns:
            As `dense.matched_targets`, and ``centerness`` (B, R), 1 where there is no match.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        matched_gt = match_fcos(
            anchors,
            self._ranges(outputs["anchors"]),
            batch["boxes"],
            dense.valid_gt_mask(batch),
            radius=self.center_radius,
            convention=self.matching_rule,
            ignored=dense.ignore_mask(anchors, batch, self.ignore_crowd_iof),
        )
        targets = dense.matched_targets(matched_gt, anchors, batch)
        return {**targets, "centerness": centerness(self.coder.encode(targets["boxes"], anchors))}

    def _ranges(self, anchors):
        """Each point's regress range, (R, 2)."""
        counts = [tf.shape(level)[0] for level in anchors.values()]
        return tf.repeat(tf.constant(self.regress_ranges, float_dtype()), counts, axis=0)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``class_loss``, ``box_loss`` and ``centerness_loss``, weighted and normalised scalars."""
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        logits = tf.concat(list(outputs["class_logits"].values()), 1)  # (B, R, K)
        distances = tf.concat(list(outputs["box_distances"].values()), 1)  # (B, R, 4)
        centerness_logits = tf.concat(list(outputs["centerness"].values()), 1)  # (B, R)
        normalizer = self._normalizer(targets)  # () or (B, 1)
        valid = tf.cast(targets["matched_gt"] != IGNORE, float_dtype()) / normalizer  # (B, R)
        is_positive = tf.cast(targets["matched_gt"] >= 0, float_dtype())
        positive = is_positive / normalizer
        class_loss = losses.focal(
            logits,
            tf.one_hot(targets["class_ids"], self.num_classes, dtype=logits.dtype),
            valid[..., None],
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        box_weights = positive
        if self.centerness_weights_boxes:
            box_weights = is_positive * targets["centerness"]
            box_weights /= tf.maximum(global_sum(tf.reduce_sum(box_weights)), 1e-6)
        boxes = self.coder.decode(distances, anchors)
        if self.box_loss == "giou":
            box_loss = losses.giou(boxes, targets["boxes"], box_weights)
        else:
            box_loss = losses.iou(boxes, targets["boxes"], box_weights, linear=self.box_loss == "linear_iou")
        centerness_loss = losses.centerness(centerness_logits, targets["centerness"], positive)
        return {
            "class_loss": class_loss * self.class_loss_weight,
            "box_loss": box_loss * self.box_loss_weight,
            "centerness_loss": centerness_loss * self.centerness_loss_weight,
        }

    def _normalizer(self, targets):
        return dense.loss_normalizer(targets["matched_gt"], self.normalizer, self.mean_positives, self.ema_momentum)

    def after_step(self, targets):
        if self.normalizer == "ema":
            self.mean_positives.assign(self._normalizer(targets))

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Boxes before suppression, in the coordinates of the network's input.

        Args:
            outputs: Of the model.
            image_size: (B, 2) int32, without padding.

        Returns:
            ``boxes`` (B, N, 4), ``scores`` (B, N) with 0 for none, ``class_ids`` (B, N).
        """
        levels = [self._level_candidates(outputs, level, image_size) for level in outputs["class_logits"]]
        return {name: tf.concat([level[name] for level in levels], 1) for name in levels[0]}

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Out of candidates: ``boxes`` (B, D, 4), ``scores`` (B, D), ``class_ids`` (B, D), ``valid`` (B,)."""
        return detections_from_candidates(
            candidates,
            image_size,
            score_threshold=0.0,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            clip_before_nms=self.clip_before_nms,
            drop_empty=not self.clip_before_nms,
        )

    def level_scores(self, outputs: Mapping, level: str) -> tuple[tf.Tensor, tf.Tensor]:
        """What the points of a level are ranked by, and what multiplies it afterwards.

        Returns:
            (B, R_l, K) which must pass the threshold, and (B, R_l).
        """
        scores = tf.sigmoid(outputs["class_logits"][level])  # (B, R_l, K)
        factor = tf.sigmoid(outputs["centerness"][level])  # (B, R_l)
        if self.score_rule == "sqrt":
            scores, factor = tf.sqrt(scores * factor[..., None]), tf.ones_like(factor)
        if not self.multi_label:
            best = tf.reduce_max(scores, -1, keepdims=True)
            scores = tf.where(scores == best, scores, 0.0)
        return scores, factor

    def min_size_mask(self, boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        """Which boxes (B, N, 4) `min_size` leaves, (B, N) bool; image_size (B, 2)."""
        if self.min_size is None:
            return tf.ones(tf.shape(boxes)[:2], tf.bool)
        corner, opposite = tf.split(box_ops.clip(boxes, image_size), 2, -1)
        return tf.reduce_all(opposite - corner > self.min_size, -1)

    def _level_candidates(self, outputs, level, image_size):
        """The best boxes of a level, their scores and classes; a score of 0 is none."""
        scores, factor = self.level_scores(outputs, level)
        scores, indices, class_ids = top_candidates(scores, self.pre_nms_top_k, tf.identity)
        distances = tf.gather(outputs["box_distances"][level], indices, batch_dims=1)
        boxes = self.coder.decode(distances, tf.gather(outputs["anchors"][level], indices))
        keep = (scores > self.score_threshold) & self.min_size_mask(boxes, image_size)
        scores *= tf.gather(factor, indices, batch_dims=1)
        return {"boxes": boxes, "scores": tf.where(keep, scores, 0.0), "class_ids": class_ids}
