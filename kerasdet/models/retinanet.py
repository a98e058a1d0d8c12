"""RetinaNet."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet import losses
from kerasdet.anchors import AnchorGenerator
from kerasdet.coders import DeltaCoder
from kerasdet.layers import FPN, ConvTop, ResNet, RetinaNetHead
from kerasdet.matching import IGNORE, gather_gt, match_iou
from kerasdet.models.detector import Detector, check_backbone, checked_names, split_inputs
from kerasdet.models.postprocess import detections_from_candidates, top_candidates
from kerasdet.models.preprocess import Preprocessing
from kerasdet.serialization import Configured


@keras.saving.register_keras_serializable(package="kerasdet")
class RetinaNet(Configured, Detector):
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
        prior_probability: Of an anchor's holding an object, before training.
        foreground_iou: From this overlap on an anchor is positive.
        background_iou: Below this it is negative.
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
        prior_probability: float = 0.01,
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
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
        if normalizer not in ("ema", "batch", "image"):
            raise ValueError(f"RetinaNet has no normalizer {normalizer!r}: choose 'ema', 'batch' or 'image'.")
        if num_classes < 1:
            raise ValueError(f"RetinaNet needs at least one class, got num_classes={num_classes}.")
        self.num_classes = num_classes
        self.class_names = checked_names(class_names, num_classes)
        self.backbone = backbone or ResNet(50, freeze_at=2)
        self.neck = neck or FPN(top=ConvTop("c5"))
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or AnchorGenerator()
        if tuple(self.anchors.levels) != tuple(self.neck.levels):
            raise ValueError(f"The anchors are for levels {self.anchors.levels}, the neck makes {self.neck.levels}.")
        self.coder = coder or DeltaCoder()
        self.head_convs = head_convs
        self.head_norm = head_norm
        self.prior_probability = prior_probability
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
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
            name="head",
        )
        if not self.neck.built:
            self.neck.build({name: (None, None, None, channels) for name, channels in self.backbone.channels.items()})
        self.head.build((None, None, None, self.neck.channels))
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
        image, image_size = split_inputs(inputs)
        features = self.backbone(self.preprocessing.normalize(image, image_size), training=training)
        pyramid = self.neck(features, training=training)
        grids = {level: tuple(tf.unstack(tf.shape(x)[1:3])) for level, x in pyramid.items()}
        anchors = self.anchors(grids, tuple(tf.unstack(tf.shape(image)[1:3])))
        return {**self.head(pyramid, training=training), "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What each anchor should say.

        Args:
            outputs: Of the model.
            batch: With ``boxes`` (B, M, 4), ``class_ids`` (B, M) and ``is_crowd`` (B, M); crowds are not trained on.

        Returns:
            ``matched_gt`` (B, R), ``class_ids`` (B, R) with -1 where there is no object, and ``boxes`` (B, R, 4), an
            anchor's own where it has no match.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        matched_gt = match_iou(
            anchors,
            batch["boxes"],
            (batch["class_ids"] >= 0) & ~batch["is_crowd"],
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            low_quality=True,
        )
        positive = matched_gt >= 0
        return {
            "matched_gt": matched_gt,
            "class_ids": tf.where(positive, gather_gt(batch["class_ids"], matched_gt), -1),
            "boxes": tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), anchors),
        }

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``class_loss`` and ``box_loss``, weighted and normalised scalars."""
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        logits = tf.concat(list(outputs["class_logits"].values()), 1)  # (B, R, K)
        deltas = tf.concat(list(outputs["box_deltas"].values()), 1)  # (B, R, 4)
        normalizer = self._normalizer(targets)  # () or (B, 1)
        valid = tf.cast(targets["matched_gt"] != IGNORE, tf.float32) / normalizer  # (B, R)
        positive = tf.cast(targets["matched_gt"] >= 0, tf.float32) / normalizer
        class_loss = losses.focal(
            logits,
            tf.one_hot(targets["class_ids"], self.num_classes),
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
        positives = tf.reduce_sum(tf.cast(targets["matched_gt"] >= 0, tf.float32), 1, keepdims=True)  # (B, 1)
        if self.normalizer == "image":
            return tf.maximum(positives, 1.0) * tf.cast(tf.shape(positives)[0], tf.float32)
        total = tf.maximum(tf.reduce_sum(positives), 1.0)
        if self.normalizer == "batch":
            return total
        return self.ema_momentum * self.mean_positives + (1 - self.ema_momentum) * total

    def after_step(self, targets):
        if self.normalizer == "ema":
            self.mean_positives.assign(self._normalizer(targets))

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections in the coordinates of the network's input.

        Args:
            outputs: Of the model.
            image_size: (B, 2) int32, without padding.

        Returns:
            ``boxes`` (B, D, 4), ``scores`` (B, D), ``class_ids`` (B, D), ``valid`` (B,).
        """
        levels = []
        for level, logits in outputs["class_logits"].items():
            scores, indices, class_ids = top_candidates(logits, self.pre_nms_top_k)
            deltas = tf.gather(outputs["box_deltas"][level], indices, batch_dims=1)
            boxes = self.coder.decode(deltas, tf.gather(outputs["anchors"][level], indices))
            levels.append({"boxes": boxes, "scores": scores, "class_ids": class_ids})
        return detections_from_candidates(
            {name: tf.concat([level[name] for level in levels], 1) for name in levels[0]},
            image_size,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            clip_before_nms=self.clip_before_nms,
            drop_empty=not self.clip_before_nms,
        )
