"""Region proposal network, alone and as the first stage of R-CNNs."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet import losses
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, gather_gt, match_iou
from kerasdet.geometry.sampling import per_image_uniform, sample_balanced
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, MaxPoolTop, ResNet
from kerasdet.layers.heads import RPNHead
from kerasdet.models.detector import Detector, check_backbone, unpack_inputs
from kerasdet.ops import nms
from kerasdet.ops.distribute import global_sum

FPN_LEVELS = ("p2", "p3", "p4", "p5", "p6")


def default_anchors() -> AnchorGenerator:
    """One size a level, 32 pixels on p2 to 512 on p6."""
    return AnchorGenerator(sizes=[[2**i] for i in range(5, 10)], levels=FPN_LEVELS)


def default_neck() -> FPN:
    """p2 to p5, and p6 by pooling."""
    return FPN(("c2", "c3", "c4", "c5"), top=MaxPoolTop())


def default_backbone() -> ResNet:
    """ResNet-50 with frozen batch norm, stem and first stage."""
    return ResNet(50, out_features=("c2", "c3", "c4", "c5"), freeze_at=2)


@keras.saving.register_keras_serializable(package="kerasdet")
class RPN(ConfigFromInit, keras.layers.Layer):
    """Objectness and boxes of anchors, and the proposals they make (https://arxiv.org/abs/1506.01497).

    Args:
        anchors: Over all levels of the neck.
        coder: Between boxes and deltas.
        num_convs: 3x3 convolutions of the head; 0 leaves two 1x1 regressors.
        foreground_iou: From this overlap on an anchor is positive.
        background_iou: Below this it is negative.
        samples_per_image: Anchors that are trained on.
        positive_fraction: The most positives among them.
        straddle_threshold: Anchors that pass the image border by this many pixels or more are not trained on; None
            trains on all.
        smooth_l1_beta: Where smooth L1 turns linear; 0 is L1.
        normalizer: What divides the losses: "fixed", `samples_per_image` for each image (detectron2), or "sampled",
            how many were sampled (torchvision).
        train_pre_nms_top_k: Candidates of each level in training.
        train_post_nms_top_k: Proposals of an image in training.
        pre_nms_top_k: Candidates of each level in inference.
        post_nms_top_k: Proposals of an image in inference.
        nms_threshold: IoU above which the lower objectness of a level goes.
        min_size: Proposals with a shorter side go, empty ones in any case.

    Raises:
        ValueError: If `normalizer` is unknown, or the sample has no room for positives.
    """

    def __init__(
        self,
        *,
        anchors: AnchorGenerator | None = None,
        coder: DeltaCoder | None = None,
        num_convs: int = 1,
        foreground_iou: float = 0.7,
        background_iou: float = 0.3,
        samples_per_image: int = 256,
        positive_fraction: float = 0.5,
        straddle_threshold: float | None = None,
        smooth_l1_beta: float = 0.0,
        normalizer: str = "fixed",
        train_pre_nms_top_k: int = 2000,
        train_post_nms_top_k: int = 1000,
        pre_nms_top_k: int = 1000,
        post_nms_top_k: int = 1000,
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, **kwargs})
        if normalizer not in ("fixed", "sampled"):
            raise ValueError(f"RPN has no normalizer {normalizer!r}: choose 'fixed' or 'sampled'.")
        check_sample(samples_per_image, positive_fraction)
        self.anchors = anchors or default_anchors()
        self.coder = coder or DeltaCoder()
        self.num_convs = num_convs
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.samples_per_image = samples_per_image
        self.positive_fraction = positive_fraction
        self.straddle_threshold = straddle_threshold
        self.smooth_l1_beta = smooth_l1_beta
        self.normalizer = normalizer
        self.train_pre_nms_top_k = train_pre_nms_top_k
        self.train_post_nms_top_k = train_post_nms_top_k
        self.pre_nms_top_k = pre_nms_top_k
        self.post_nms_top_k = post_nms_top_k
        self.nms_threshold = nms_threshold
        self.min_size = min_size

    def build(self, input_shape):
        self.head = RPNHead(self.anchors.num_anchors, self.num_convs, input_shape[-1], name="head")
        self.head.build(input_shape)

    def call(self, pyramid, image):
        """Predictions for every anchor.

        Args:
            pyramid: level -> (B, h, w, C).
            image: (B, H, W, 3), padded; only its size counts.

        Returns:
            ``objectness``: level -> (B, R_l) logits, ``box_deltas``: level -> (B, R_l, 4), ``anchors``: level ->
            (R_l, 4).
        """
        pyramid = {level: pyramid[level] for level in self.anchors.levels}
        grids = {level: tuple(tf.unstack(tf.shape(x)[1:3])) for level, x in pyramid.items()}
        return {**self.head(pyramid), "anchors": self.anchors(grids, tuple(tf.unstack(tf.shape(image)[1:3])))}

    def propose(self, outputs: Mapping, image_size: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
        """The best boxes after clipping and non-maximum suppression within each level.

        Args:
            outputs: Of `call`.
            image_size: (B, 2) int32, without padding.
            training: Chooses the numbers before and after suppression.

        Returns:
            ``boxes`` (B, P, 4), ``logits`` (B, P) descending, ``valid`` (B,); padding is zero.
        """
        if training:
            candidates = self.decode(outputs, image_size, self.train_pre_nms_top_k)
            return self.apply_nms(candidates, self.train_post_nms_top_k)
        return self.apply_nms(self.decode(outputs, image_size, self.pre_nms_top_k), self.post_nms_top_k)

    def decode(self, outputs: Mapping, image_size: tf.Tensor, top_k: int) -> dict[str, tf.Tensor]:
        """The best boxes of each level, clipped.

        Returns:
            ``boxes`` (B, N, 4), ``logits`` (B, N), minus infinity for what is too small, ``level_ids`` (B, N).
        """
        boxes, logits, level_ids = [], [], []
        for level_id, (level, objectness) in enumerate(outputs["objectness"].items()):
            values, indices = tf.math.top_k(objectness, tf.minimum(top_k, tf.shape(objectness)[1]))
            deltas = tf.gather(outputs["box_deltas"][level], indices, batch_dims=1)
            boxes.append(self.coder.decode(deltas, tf.gather(outputs["anchors"][level], indices)))
            logits.append(values)
            level_ids.append(tf.fill(tf.shape(values), level_id))
        boxes = box_ops.clip(tf.concat(boxes, 1), image_size)  # (B, N, 4)
        size = boxes[..., 2:] - boxes[..., :2]
        large = tf.reduce_all((size > 0) & (size >= self.min_size), -1)
        logits = tf.where(large, tf.concat(logits, 1), -float("inf"))
        return {"boxes": boxes, "logits": logits, "level_ids": tf.concat(level_ids, 1)}

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], top_k: int) -> dict[str, tf.Tensor]:
        """Proposals out of candidates; see `propose`."""
        boxes, logits = candidates["boxes"], candidates["logits"]
        indices, valid = nms(
            boxes, logits, candidates["level_ids"], iou_threshold=self.nms_threshold, max_detections=top_k
        )
        chosen = tf.maximum(indices, 0)
        keep = indices >= 0
        return {
            "boxes": tf.where(keep[..., None], tf.gather(boxes, chosen, batch_dims=1), 0.0),
            "logits": tf.where(keep, tf.gather(logits, chosen, batch_dims=1), 0.0),
            "valid": valid,
        }

    def compute_targets(self, outputs: Mapping, batch: Mapping, image_size, seed: int, step) -> dict[str, tf.Tensor]:
        """What the sampled anchors should say.

        Returns:
            ``positive`` and ``negative``: which are trained on, (B, R) bool; ``boxes`` (B, R, 4), an anchor's own where
            it has no match.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        matched_gt = match_iou(
            anchors,
            batch["boxes"],
            (batch["class_ids"] >= 0) & ~batch["is_crowd"],
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            allow_low_quality_matches=True,
        )
        if self.straddle_threshold is not None:
            margin = self.straddle_threshold
            limit = tf.cast(image_size, float_dtype())[:, None, :] + margin  # (B, 1, 2)
            inside = tf.reduce_all((anchors[:, :2] >= -margin) & (anchors[:, 2:] < limit), -1)  # (B, R)
            matched_gt = tf.where(inside, matched_gt, IGNORE)
        priority = per_image_uniform(tf.shape(anchors)[0], seed, step, _image_ids(batch))
        positive, negative = sample_balanced(
            matched_gt, priority, size=self.samples_per_image, positive_fraction=self.positive_fraction
        )
        boxes = tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), anchors)
        return {"positive": positive, "negative": negative, "boxes": boxes}

    def compute_losses(self, outputs: Mapping, targets: Mapping) -> dict[str, tf.Tensor]:
        """``rpn_class_loss`` and ``rpn_box_loss``."""
        anchors = tf.concat(list(outputs["anchors"].values()), 0)
        logits = tf.concat(list(outputs["objectness"].values()), 1)  # (B, R)
        deltas = tf.concat(list(outputs["box_deltas"].values()), 1)  # (B, R, 4)
        positive = tf.cast(targets["positive"], float_dtype())
        sampled = positive + tf.cast(targets["negative"], float_dtype())
        if self.normalizer == "fixed":
            normalizer = global_sum(tf.cast(self.samples_per_image * tf.shape(logits)[0], float_dtype()))
        else:
            normalizer = tf.maximum(global_sum(tf.reduce_sum(sampled)), 1.0)
        class_loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(positive, logits) * sampled)
        box_loss = losses.smooth_l1(
            deltas, self.coder.encode(targets["boxes"], anchors), positive[..., None], beta=self.smooth_l1_beta
        )
        return {"rpn_class_loss": class_loss / normalizer, "rpn_box_loss": box_loss / normalizer}


def _image_ids(batch):
    """What keys an image's random numbers: its id, or else its place in the batch."""
    return batch["image_id"] if "image_id" in batch else tf.range(tf.shape(batch["boxes"])[0])


@keras.saving.register_keras_serializable(package="kerasdet")
class ProposalNetwork(ConfigFromInit, Detector):
    """A region proposal network alone: a detector of objects of one unnamed kind.

    Args:
        backbone: Images to features, by default a ResNet-50.
        neck: Features to a pyramid, by default an FPN with P2 to P6.
        rpn: Head, anchors and proposals.
        preprocessing: Resize rule and pixel statistics.
        seed: Of the sampling of anchors.

    Raises:
        TypeError: If `backbone` is no backbone.
        ValueError: If it lacks what the neck merges.
    """

    num_classes = None  # objects of any class train it, and what it finds has none
    class_names = ("object",)

    def __init__(
        self,
        *,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        rpn: RPN | None = None,
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(), ("rpn_class_loss", "rpn_box_loss"), **kwargs)
        self.seed = seed
        self.backbone = backbone or default_backbone()
        self.neck = neck or default_neck()
        check_backbone(self.backbone, self.neck)
        self.rpn = rpn or RPN()
        build_pyramid(self.backbone, self.neck, self.rpn)
        self.step = self.add_weight(name="step", initializer="zeros", dtype="int64", trainable=False)
        self.built = True

    @property
    def max_detections(self) -> int:
        """D, the number of proposals."""
        return self.rpn.post_nms_top_k

    def call(self, inputs, training=False):
        """Predictions for every anchor; see `RPN.call`."""
        image, image_size = unpack_inputs(inputs)
        features = self.backbone(self.preprocessing.normalize(image, image_size), training=training)
        return self.rpn(self.neck(features, training=training), image=image)

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """See `RPN.compute_targets`; objects of every class count."""
        return self.rpn.compute_targets(outputs, batch, batch["image_size"], self.seed, self.step)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """``rpn_class_loss`` and ``rpn_box_loss``."""
        return self.rpn.compute_losses(outputs, targets)

    def after_step(self, targets):
        self.step.assign_add(1)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """See `RPN.decode`."""
        return self.rpn.decode(outputs, image_size, self.rpn.pre_nms_top_k)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Proposals as detections of class 0."""
        proposals = self.rpn.apply_nms(candidates, self.max_detections)
        valid = tf.sequence_mask(proposals["valid"], self.max_detections)
        return {
            "boxes": proposals["boxes"],
            "scores": tf.where(valid, tf.sigmoid(proposals["logits"]), 0.0),
            "class_ids": tf.where(valid, 0, -1),
            "valid": proposals["valid"],
        }


def check_sample(samples_per_image: int, positive_fraction: float) -> None:
    """Checks that there is room for a positive.

    Raises:
        ValueError: If there is none.
    """
    if int(samples_per_image * positive_fraction) < 1:
        raise ValueError(
            f"samples_per_image={samples_per_image} with positive_fraction={positive_fraction} leaves no room for "
            "positives: raise one of them until their product is 1 or more."
        )


def build_pyramid(backbone, neck, rpn) -> None:
    """Creates the variables of neck and RPN, as far as they are not there yet."""
    if not neck.built:
        neck.build({name: (None, None, None, channels) for name, channels in backbone.channels.items()})
    if missing := [level for level in rpn.anchors.levels if level not in neck.levels]:
        raise ValueError(
            f"The RPN has anchors for {', '.join(missing)}, which the neck does not make: it makes "
            f"{', '.join(neck.levels)}."
        )
    if not rpn.built:
        rpn.build((None, None, None, neck.channels))
