"""RetinaNet."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet import losses
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, match_iou
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, ConvTop, ResNet, RetinaNetHead
from kerasdet.models import dense
from kerasdet.models.detector import Detector, check_backbone, checked_names
from kerasdet.models.postprocess import detections_from_candidates, top_candidates


@keras.saving.register_keras_serializable(package="kerasdet")
class RetinaNet(ConfigFromInit, Detector):
    """Focal Loss for Dense Object Detection (https://arxiv.org/abs/1708.02002).

    Args:
        num_classes: K, without background.
        class_names: Of the K classes, for people; training sets them from the data.
        backbone: Images to features, by default a ResNet-50 with frozen batch norm, stem and first stage.
        neck: Features to a pyramid, by default an FPN with P6 and P7 made of C5.
        anchors: An anchor generator over the levels of the neck.
        coder: Between boxes and deltas.
        preprocessing: Resize rule and pixel statistics.
        head_convs: Convolutions in each tower of the head.
        head_norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        deform_last: Make the towers' last convolutions deformable ones.
        prior_probability: Of an anchor's holding an object, before training.
        foreground_iou: From this overlap on an anchor is positive.
        background_iou: Below this it is negative.
        ignore_crowd_iof: Anchors with more than this share of their area in a crowd are ignored (mmdetection's
            ``ignore_iof_thr``); None: crowds leave no trace (torchvision, detectron2).
        focal_alpha: Weight of positives in the focal loss.
        focal_gamma: Its exponent.
        box_loss: "smooth_l1" on deltas or "giou" on boxes.
        smooth_l1_beta: Where smooth L1 turns linear; 0 is L1.
        class_loss_weight: Factor of the classification loss.
        box_loss_weight: Factor of the box loss.
        normalizer: What divides the losses: "ema", the running mean of positives in a batch (detectron2); "batch",
            the positives of the batch; "image", each image's own, and the mean over images (torchvision).
        ema_momentum: Of "ema".
        ema_start: Its first value.
        score_threshold: Detections need a score above it.
        pre_nms_top_k: Candidates of each level.
        nms_threshold: IoU above which the lower score of a class goes.
        max_detections: D.
        clip_before_nms: Clip boxes first (torchvision), or last and then drop what is empty (detectron2).

    Raises:
        TypeError: If `backbone` is no backbone.
        ValueError: If it lacks what the neck merges, `box_loss` or `normalizer` is unknown, or the anchors' levels are
            not the neck's.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        anchors: AnchorGenerator | None = None,
        coder: DeltaCoder | None = None,
        preprocessing: Preprocessing | None = None,
        head_convs: int = 4,
        head_norm: str | None = None,
        deform_last: bool = False,
        prior_probability: float = 0.01,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        ignore_crowd_iof: float | None = None,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        class_loss_weight: float = 1.0,
        box_loss_weight: float = 1.0,
        normalizer: str = "ema",
        ema_momentum: float = 0.9,
        ema_start: float = 100.0,
        score_threshold: float = 0.05,
        pre_nms_top_k: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        clip_before_nms: bool = False,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(), ("class_loss", "box_loss"), **kwargs)
        if box_loss not in ("smooth_l1", "giou"):
            raise ValueError(f"RetinaNet has no box loss {box_loss!r}: choose 'smooth_l1' or 'giou'.")
        dense.check_normalizer("RetinaNet", normalizer)
        if num_classes < 1:
            raise ValueError(f"RetinaNet needs at least one class, got num_classes={num_classes}.")
        self.num_classes = num_classes
        self.class_names = checked_names(class_names, num_classes)
        self.backbone = backbone or ResNet(50, freeze_at=2)
        self.neck = neck or FPN(top=ConvTop("c5"))
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or AnchorGenerator()
        dense.check_levels(self.anchors, self.neck)
        self.coder = coder or DeltaCoder()
        self.head_convs = head_convs
        self.head_norm = head_norm
        self.deform_last = deform_last
        self.prior_probability = prior_probability
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.ignore_crowd_iof = ignore_crowd_iof
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.class_loss_weight = class_loss_weight
        self.box_loss_weight = box_loss_weight
        self.normalizer = normalizer
        self.ema_momentum = ema_momentum
        self.ema_start = ema_start
        self.score_threshold = score_threshold
        self.pre_nms_top_k = pre_nms_top_k
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.clip_before_nms = clip_before_nms

        self.head = RetinaNetHead(
            num_classes,
            self.anchors.num_anchors,
            self.neck.levels,
            head_convs,
            self.neck.channels,
            head_norm,
            prior_probability=prior_probability,
            deform_last=deform_last,
            name="head",
        )
        dense.build_neck_and_head(self)
        self.mean_positives = self.add_weight(
            name="mean_positives", initializer=keras.initializers.Constant(ema_start), trainable=False
        )
        self.built = True

    def call(self, inputs, training=False):
        """Predictions for every anchor.

        Args:
            inputs: ``image`` (B, H, W, 3) and ``image_size`` (B, 2), or a bare image tensor without padding.

        Returns:
            ``class_logits``: level -> (B, R_l, K), ``box_deltas``: level -> (B, R_l, 4), ``anchors``: level ->
            (R_l, 4); R_l runs over rows, columns and a cell's anchors.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        return {**self.head(pyramid, training=training), "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What each anchor should say.

        Args:
            outputs: Of the model.
            batch: With ``boxes`` (B, M, 4), ``class_ids`` (B, M) and ``is_crowd`` (B, M); crowds are not trained on.

        Returns:
            As `dense.matched_targets`.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        matched_gt = match_iou(
            anchors,
            batch["boxes"],
            dense.valid_gt_mask(batch),
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            allow_low_quality_matches=True,
            ignored=dense.ignore_mask(anchors, batch, self.ignore_crowd_iof),
        )
        return dense.matched_targets(matched_gt, anchors, batch)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``class_loss`` and ``box_loss``, weighted and normalised scalars."""
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        logits = tf.concat(list(outputs["class_logits"].values()), 1)  # (B, R, K)
        deltas = tf.concat(list(outputs["box_deltas"].values()), 1)  # (B, R, 4)
        normalizer = self._normalizer(targets)  # () or (B, 1)
        valid = tf.cast(targets["matched_gt"] != IGNORE, float_dtype()) / normalizer  # (B, R)
        positive = tf.cast(targets["matched_gt"] >= 0, float_dtype()) / normalizer
        class_loss = losses.focal(
            logits,
            tf.one_hot(targets["class_ids"], self.num_classes, dtype=logits.dtype),
            valid[..., None],
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        if self.box_loss == "giou":
            box_loss = losses.giou(self.coder.decode(deltas, anchors), targets["boxes"], positive)
        else:
            box_loss = losses.smooth_l1(
                deltas, self.coder.encode(targets["boxes"], anchors), positive[..., None], beta=self.smooth_l1_beta
            )
        return {"class_loss": class_loss * self.class_loss_weight, "box_loss": box_loss * self.box_loss_weight}

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
            ``boxes`` (B, N, 4), ``scores`` (B, N), ``class_ids`` (B, N).
        """
        levels = []
        for level, logits in outputs["class_logits"].items():
            scores, indices, class_ids = top_candidates(logits, self.pre_nms_top_k)
            deltas = tf.gather(outputs["box_deltas"][level], indices, batch_dims=1)
            boxes = self.coder.decode(deltas, tf.gather(outputs["anchors"][level], indices))
            levels.append({"boxes": boxes, "scores": scores, "class_ids": class_ids})
        return {name: tf.concat([level[name] for level in levels], 1) for name in levels[0]}

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Out of candidates: ``boxes`` (B, D, 4), ``scores`` (B, D), ``class_ids`` (B, D), ``valid`` (B,)."""
        return detections_from_candidates(
            candidates,
            image_size,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            clip_before_nms=self.clip_before_nms,
            drop_empty=not self.clip_before_nms,
        )
