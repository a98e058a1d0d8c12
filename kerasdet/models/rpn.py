"""Implements the region proposal network (RPN), the first stage of R-CNNs."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, IoUMatcher, gather_gt
from kerasdet.geometry.sampling import BalancedSampler, sampling_priority
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, MaxPoolTop, ResNet
from kerasdet.layers.rpn_head import RPNHead
from kerasdet.losses import SmoothL1Loss
from kerasdet.models.common import check_backbone
from kerasdet.ops import nms
from kerasdet.ops.distribute import global_sum

FPN_LEVELS = ("p2", "p3", "p4", "p5", "p6")
NORMALIZERS = ("fixed", "sampled", "image_sum")


def default_anchors() -> AnchorGenerator:
    """Makes the default anchors of R-CNNs: one size for each level, from 32 pixels on p2 to 512 on p6.

    Returns:
        The anchor generator.
    """
    return AnchorGenerator(sizes=[[2**i] for i in range(5, 10)], levels=FPN_LEVELS)


def default_neck() -> FPN:
    """Makes the default neck of R-CNNs: an FPN with p2 to p5, and p6 subsampled from p5.

    Returns:
        The FPN layer.
    """
    return FPN(("c2", "c3", "c4", "c5"), top=MaxPoolTop())


def default_backbone() -> ResNet:
    """Makes the default backbone of R-CNNs: a ResNet-50 with c2 to c5, random weights and no frozen layers.

    Returns:
        The Keras model.
    """
    return ResNet(50, out_features=("c2", "c3", "c4", "c5"))


@keras.saving.register_keras_serializable(package="kerasdet")
class ProposalSelection(ConfigFromInit):
    """Selects proposals from predicted boxes: the best boxes of each level, then non-maximum suppression (NMS).

    Args:
        pre_nms_top_k: Maximum number of candidates per level before NMS, in inference.
        post_nms_top_k: Maximum number of proposals per image in inference.
        train_pre_nms_top_k: Maximum number of candidates per level before NMS, in training.
        train_post_nms_top_k: Maximum number of proposals per image in training.
        nms_threshold: Boxes of a level that overlap a better one by more than this IoU are dropped. In [0, 1].
        min_size: Boxes with a side below this many pixels after clipping to the image are dropped before NMS. Empty
            boxes are always dropped.
        score_threshold: Boxes with an objectness below this probability are dropped before NMS. In [0, 1].

    Raises:
        UserError: If a maximum is not a positive integer, or another number is out of its range.
    """

    def __init__(
        self,
        pre_nms_top_k: int = 1000,
        post_nms_top_k: int = 1000,
        train_pre_nms_top_k: int = 2000,
        train_post_nms_top_k: int = 1000,
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        score_threshold: float = 0.0,
    ):
        check_positive(
            "ProposalSelection",
            pre_nms_top_k=pre_nms_top_k,
            post_nms_top_k=post_nms_top_k,
            train_pre_nms_top_k=train_pre_nms_top_k,
            train_post_nms_top_k=train_post_nms_top_k,
        )
        check_numbers("ProposalSelection", 0, 1, nms_threshold=nms_threshold, score_threshold=score_threshold)
        check_numbers("ProposalSelection", 0, min_size=min_size)
        self.pre_nms_top_k = pre_nms_top_k
        self.post_nms_top_k = post_nms_top_k
        self.train_pre_nms_top_k = train_pre_nms_top_k
        self.train_post_nms_top_k = train_post_nms_top_k
        self.nms_threshold = nms_threshold
        self.min_size = min_size
        self.score_threshold = score_threshold

    @property
    def max_detections(self) -> int:
        """Maximum number of proposals per image in inference: the D of a `ProposalNetwork`'s detections."""
        return self.post_nms_top_k

    def decode(
        self, outputs: Mapping, image_size: tf.Tensor, coder: DeltaCoder, training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Decodes the best boxes of each level, clipped to the image.

        Args:
            outputs: Result of `RPN.call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.
            coder: Box coder of the RPN.
            training: Whether to use `train_pre_nms_top_k` instead of `pre_nms_top_k`.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels, ``logits`` (B, N), which are minus infinity for empty boxes
            and boxes that `min_size` or `score_threshold` drops, and ``level_ids`` (B, N), the index of each box's
            pyramid level. N is the number of candidates of all levels.
        """
        top_k = self.train_pre_nms_top_k if training else self.pre_nms_top_k
        boxes, logits, level_ids = [], [], []
        for level_id, (level, objectness) in enumerate(outputs["objectness"].items()):
            values, indices = tf.math.top_k(objectness, tf.minimum(top_k, tf.shape(objectness)[1]))
            deltas = tf.gather(outputs["box_deltas"][level], indices, batch_dims=1)
            boxes.append(coder.decode(deltas, tf.gather(outputs["anchors"][level], indices)))
            logits.append(values)
            level_ids.append(tf.fill(tf.shape(values), level_id))
        boxes = box_ops.clip(tf.concat(boxes, 1), image_size)  # (B, N, 4)
        size = boxes[..., 2:] - boxes[..., :2]
        large = tf.reduce_all((size > 0) & (size >= self.min_size), -1)
        logits = tf.concat(logits, 1)
        keep = large & (tf.sigmoid(logits) >= self.score_threshold) if self.score_threshold > 0 else large
        logits = tf.where(keep, logits, -float("inf"))
        return {"boxes": boxes, "logits": logits, "level_ids": tf.concat(level_ids, 1)}

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Applies NMS to each level separately, then keeps the boxes with the highest scores of all levels.

        Args:
            candidates: Result of `decode`.
            training: Whether to use `train_post_nms_top_k` instead of `post_nms_top_k`.

        Returns:
            A dict of ``boxes`` (B, P, 4) yxyx in pixels, ``logits`` (B, P) descending, and ``valid`` (B,), the number
            of proposals of each image. P is `post_nms_top_k` or `train_post_nms_top_k`. The remaining rows are 0.
        """
        boxes, logits = candidates["boxes"], candidates["logits"]
        indices, valid = nms(
            boxes,
            logits,
            candidates["level_ids"],
            iou_threshold=self.nms_threshold,
            max_detections=self.train_post_nms_top_k if training else self.post_nms_top_k,
        )
        chosen = tf.maximum(indices, 0)
        keep = indices >= 0
        return {
            "boxes": tf.where(keep[..., None], tf.gather(boxes, chosen, batch_dims=1), 0.0),
            "logits": tf.where(keep, tf.gather(logits, chosen, batch_dims=1), 0.0),
            "valid": valid,
        }


@keras.saving.register_keras_serializable(package="kerasdet")
class RPN(ConfigFromInit, keras.layers.Layer):
    """Proposes regions: predicts for each anchor whether it contains an object, and its box (arXiv 1506.01497).

    Args:
        anchors: Generates the anchors of all levels of the neck. None: `default_anchors()`.
        coder: Converts between boxes and their deltas relative to anchors. None: `DeltaCoder()`.
        num_convs: Number of 3x3 convolutions of the head; 0 keeps only the two 1x1 predictors.
        matcher: Matches anchors to ground-truth objects in training. None: `IoUMatcher(0.7, 0.3)`.
        sampler: Samples the anchors to train on. None: `BalancedSampler(256, 0.5)`.
        box_loss: Loss of the boxes of positive anchors, such as `GIoULoss()`. None: `SmoothL1Loss()`.
        normalizer: Divisor of both losses, counted over all replicas. "fixed": the sampler's `samples_per_image` times
            the number of images (detectron2). "sampled": the number of sampled anchors (torchvision). "image_sum": the
            sum over images of the sampled positives and negatives, counting at least one of each (mmdetection).
        straddle_threshold: Anchors that extend more than this many pixels beyond the top or left of the image, or this
            many or more beyond the bottom or right, are ignored in training. None: no anchor is ignored for its
            position.
        proposals: Selects the proposals from the predicted boxes. None: `ProposalSelection()`.

    Raises:
        UserError: If `normalizer` is unknown.
    """

    def __init__(
        self,
        *,
        anchors: AnchorGenerator | None = None,
        coder: DeltaCoder | None = None,
        num_convs: int = 1,
        matcher: IoUMatcher | None = None,
        sampler: BalancedSampler | None = None,
        box_loss: SmoothL1Loss | None = None,
        normalizer: str = "fixed",
        straddle_threshold: float | None = None,
        proposals: ProposalSelection | None = None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, "name": "rpn", **kwargs})  # anchors stay float32 under every policy
        if normalizer not in NORMALIZERS:
            raise UserError(f"RPN.normalizer is {normalizer!r}: choose one of {', '.join(map(repr, NORMALIZERS))}.")
        self.anchors = anchors or default_anchors()
        self.coder = coder or DeltaCoder()
        self.num_convs = num_convs
        self.matcher = matcher or IoUMatcher(0.7, 0.3)
        self.sampler = sampler or BalancedSampler(256, 0.5)
        self.box_loss = box_loss or SmoothL1Loss()
        self.normalizer = normalizer
        self.straddle_threshold = straddle_threshold
        self.proposals = proposals or ProposalSelection()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the head for features of shape (B, h, w, C)."""
        self.head = RPNHead(self.anchors.num_anchors, self.num_convs, input_shape[-1], name="head")
        self.head.build(input_shape)

    def call(self, pyramid: Mapping[str, tf.Tensor], image: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts objectness logits and box deltas for every anchor.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            image: (B, H, W, 3), the padded network input. Only its height and width are used, to lay out the anchors.

        Returns:
            Three dicts by level name: ``objectness`` (B, R_l) logits, ``box_deltas`` (B, R_l, 4) as (dy, dx, dh, dw),
            and ``anchors`` (R_l, 4) yxyx in pixels. R_l is the number of anchors of level l. Anchors are in row-major
            order of cells; within a cell they follow `AnchorGenerator.cell_anchors`.
        """
        pyramid = {level: pyramid[level] for level in self.anchors.levels}
        grids = {level: tuple(tf.unstack(tf.shape(x)[1:3])) for level, x in pyramid.items()}
        return {**self.head(pyramid), "anchors": self.anchors(grids, tuple(tf.unstack(tf.shape(image)[1:3])))}

    def propose(self, outputs: Mapping, image_size: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Selects the region proposals of each image.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.
            training: Whether to use the `train_*` limits of `ProposalSelection`.

        Returns:
            A dict of ``boxes`` (B, P, 4) yxyx in pixels of the network's input, ``logits`` (B, P) descending, and
            ``valid`` (B,), the number of proposals of each image; the rest of the P rows is padding.
        """
        candidates = self.proposals.decode(outputs, image_size, self.coder, training)
        return self.proposals.apply_nms(candidates, training)

    def match(self, anchors: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Matches anchors to ground truth, and ignores anchors that `straddle_threshold` excludes.

        Args:
            anchors: (R, 4) yxyx in pixels.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M) and ``image_size``
                (B, 2), heights and widths without padding in pixels.

        Returns:
            The matches, (B, R) int32: an index into the image's ground truth, `NEGATIVE` (-1) or `IGNORE` (-2).
        """
        matched_gt = self.matcher(anchors, batch)
        if self.straddle_threshold is None:
            return matched_gt
        margin = self.straddle_threshold
        limit = tf.cast(batch["image_size"], float_dtype())[:, None, :] + margin  # (B, 1, 2)
        inside = tf.reduce_all((anchors[:, :2] >= -margin) & (anchors[:, 2:] < limit), -1)  # (B, R)
        return tf.where(inside, matched_gt, IGNORE)

    def compute_targets(
        self, outputs: Mapping, batch: Mapping[str, tf.Tensor], seed: int, step: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Samples anchors to train on and computes their targets. Of the class ids, only the padding (-1) matters.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M) and ``image_size``
                (B, 2), heights and widths without padding in pixels.
            seed: Seed of the sampling.
            step: Scalar integer, the training step.

        Returns:
            A dict of ``positive`` and ``negative`` (B, R) bool, the sampled anchors, and ``boxes`` (B, R, 4) yxyx in
            pixels: the objects of the sampled positive anchors, and the anchors themselves for all others.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        matched_gt = self.match(anchors, batch)
        priority = sampling_priority(tf.shape(anchors)[0], seed, step, batch)
        positive, negative = self.sampler(matched_gt, priority)
        boxes = tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), anchors)
        return {"positive": positive, "negative": negative, "boxes": boxes}

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes the losses of the sampled anchors.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict of the scalars ``rpn_class_loss`` (all sampled anchors) and ``rpn_box_loss`` (positive anchors only),
            each divided by the normalizer.
        """
        anchors = tf.concat(list(outputs["anchors"].values()), 0)  # (R, 4)
        logits = tf.concat(list(outputs["objectness"].values()), 1)  # (B, R)
        deltas = tf.concat(list(outputs["box_deltas"].values()), 1)  # (B, R, 4)
        positive = tf.cast(targets["positive"], float_dtype())
        negative = tf.cast(targets["negative"], float_dtype())
        sampled = positive + negative
        if self.normalizer == "fixed":
            normalizer = global_sum(tf.cast(self.sampler.samples_per_image * tf.shape(logits)[0], float_dtype()))
        else:
            least = 1.0 if self.normalizer == "image_sum" else 0.0
            counts = [tf.maximum(tf.reduce_sum(kind, 1), least) for kind in (positive, negative)]  # (B,) each
            normalizer = tf.maximum(global_sum(tf.reduce_sum(counts)), 1.0)
        class_loss = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(positive, logits) * sampled)
        box_loss = self.box_loss(deltas, anchors, targets["boxes"], positive, self.coder)
        return {"rpn_class_loss": class_loss / normalizer, "rpn_box_loss": box_loss / normalizer}


def build_pyramid(backbone: keras.Model, neck: keras.layers.Layer, rpn: RPN) -> None:
    """Checks that backbone, neck and RPN fit together, and creates the variables of neck and RPN.

    Args:
        backbone: Model that follows the protocol `kerasdet.layers.backbone.Backbone`.
        neck: Layer that maps features to a pyramid, such as an `FPN`.
        rpn: Region proposal network.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If the backbone lacks a feature that the neck merges, or the neck lacks a level of the anchors.
    """
    check_backbone(backbone, neck)
    if not neck.built:
        neck.build({name: (None, None, None, channels) for name, channels in backbone.channels.items()})
    if missing := [level for level in rpn.anchors.levels if level not in neck.levels]:
        raise UserError(
            f"The RPN has anchors for {', '.join(missing)}, but the neck makes only {', '.join(neck.levels)}: give "
            f"RPN(anchors=AnchorGenerator(sizes, levels={tuple(neck.levels)})), with sizes for each of these levels."
        )
    if not rpn.built:
        rpn.build((None, None, None, neck.channels))
