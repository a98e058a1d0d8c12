"""Defines RTMDet and RTMDet-Ins (https://arxiv.org/abs/2212.07784)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.anchors import AnchorGenerator, point_squares
from kerasdet.geometry.coders import DistanceCoder
from kerasdet.geometry.dynamic_matching import DynamicSoftLabelAssigner
from kerasdet.geometry.matching import IGNORE
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import CSPNeXt, CSPNeXtPAFPN, RTMDetHead
from kerasdet.losses import GIoULoss, IoULoss, QualityFocalLoss
from kerasdet.models import dense
from kerasdet.models.common import check_backbone, check_num_classes
from kerasdet.models.detector import Detector
from kerasdet.models.dynamic_mask_branch import DynamicMaskBranch
from kerasdet.models.postprocess import Postprocessing, best_class_only, top_candidates
from kerasdet.ops.distribute import global_sum

_DENSE = {"clip_before_nms": True, "empty_boxes": "drop_before_nms"}
# mmdetection's pixel statistics and letterbox
_PREPROCESSING = {
    "mean": (103.53, 116.28, 123.675),
    "std": (57.375, 57.12, 58.395),
    "channel_order": "bgr",
    "shortest": 640,
    "longest": 640,
    "rounding": "mmdetection",
    "kernel": "opencv",
    "letterbox_value": 114,
}


@keras.saving.register_keras_serializable(package="kerasdet")
class RTMDet(ConfigFromInit, Detector):
    """Detects objects from points at every position of a feature pyramid (https://arxiv.org/abs/2212.07784).

    The defaults are those of mmdetection's RTMDet-l. A point is the top-left corner of a cell. By default images are
    letterboxed: they are padded to a square with grey pixels that the network sees as part of the image. Boxes may
    therefore extend beyond the image, as in mmdetection.

    Args:
        num_classes: K, number of classes without background.
        class_names: Names of the K classes in the order of their ids; training sets them from the data.
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. By default
            `CSPNeXt()`.
        neck: Layer that maps features to a pyramid. By default `CSPNeXtPAFPN()`.
        anchors: Generates one square per cell of the pyramid. By default `point_squares` of the neck's levels with an
            offset of 0.
        coder: Converts the raw predictions of the head to distances, and distances to boxes and back. By default
            `DistanceCoder(activation="exp")`. RTMDet-tiny and RTMDet-s have the activation "linear".
        head: Predicts class logits and distances. By default `RTMDetHead()`.
        matcher: Matches points to ground-truth objects. By default `DynamicSoftLabelAssigner()`.
        class_loss: Classification loss with soft targets. By default `QualityFocalLoss()`.
        box_loss: Box loss, `GIoULoss` or `IoULoss`. By default `GIoULoss(weight=2)`.
        branches: Further predictions for each point: ``[DynamicMaskBranch()]`` for masks, or an empty list.
        postprocessing: Score threshold and NMS of detections. By default mmdetection's: a score threshold of 0.001,
            30,000 candidates per level, an IoU threshold of 0.65, and 300 detections.
        preprocessing: Resize rule and pixel statistics. By default mmdetection's letterbox of 640 pixels.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If `num_classes` is not a positive integer, the number of class names is not `num_classes`, the
            backbone lacks a feature that the neck merges, the levels of anchors and neck differ, or a cell has several
            anchors.

    Example:
        >>> model = kerasdet.RTMDet(
        ...     num_classes=3,
        ...     backbone=CSPNeXt(deepen_factor=0.167, widen_factor=0.375),
        ...     neck=CSPNeXtPAFPN(channels=96, num_blocks=1),
        ...     coder=DistanceCoder(activation="linear"),
        ... )
        >>> model.compile(optimizer=keras.optimizers.AdamW(1e-3))
        >>> detections = model.detect("street.jpg")
    """

    single_stage = True

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
        matcher: DynamicSoftLabelAssigner | None = None,
        class_loss: QualityFocalLoss | None = None,
        box_loss: GIoULoss | IoULoss | None = None,
        branches: Sequence[DynamicMaskBranch] = (),
        postprocessing: Postprocessing | None = None,
        preprocessing: Preprocessing | None = None,
        **kwargs,
    ):
        loss_names = ("class_loss", "box_loss", *(name for branch in branches for name in branch.loss_names))
        super().__init__(preprocessing or Preprocessing(**_PREPROCESSING), loss_names, **kwargs)
        check_num_classes(type(self).__name__, num_classes)
        self.num_classes = num_classes
        self.class_names = class_names
        self.backbone = backbone or CSPNeXt()
        self.neck = neck or CSPNeXtPAFPN()
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or point_squares(self.neck.levels, offset=0.0)
        self.coder = coder or DistanceCoder(activation="exp")
        self.head = head or RTMDetHead()
        self.matcher = matcher or DynamicSoftLabelAssigner()
        self.class_loss = class_loss or QualityFocalLoss()
        self.box_loss = box_loss or GIoULoss(weight=2.0)
        self.branches = list(branches)
        self.postprocessing = postprocessing or Postprocessing(0.001, 30000, 0.65, 300, **_DENSE)
        dense.attach_head(self)
        for branch in self.branches:
            branch.attach(levels=self.neck.levels, channels=self.neck.channels)
        self.built = True

    @property
    def supports_decode_all(self) -> bool:
        """Whether `decode_all` returns all that the model predicts: false for models with branches, such as masks."""
        return not self.branches

    def call(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict:
        """Predicts class logits and distances for every point, and the outputs of the branches.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Three dicts by level name: ``class_logits`` (B, R_l, K); ``box_distances`` (B, R_l, 4) as (t, l, b, r); and
            ``anchors`` (R_l, 4), the points' squares, yxyx in pixels. R_l is the number of cells of level l; points are
            in row-major order of cells. The outputs of each branch are under the branch's name.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        outputs = self.head(pyramid, training=training)
        distances = {level: self.coder.activate(raw) for level, raw in outputs["box_distances"].items()}
        branches = {branch.name: branch(pyramid, training=training) for branch in self.branches}
        return {**outputs, "box_distances": distances, "anchors": anchors, **branches}

    def forward(self, batch: Mapping[str, tf.Tensor], training: bool) -> dict:
        """Runs the model on a training batch, to compute its losses.

        Args:
            batch: Training batch; see `kerasdet.models.batch.training_batch`.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            The result of `call`.

        Raises:
            UserError: If the batch lacks the ground truth of a branch.
        """
        for branch in self.branches:
            branch.check_batch(batch)
        return super().forward(batch, training)

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict:
        """Matches points to ground truth by the classes and boxes that the network predicts at the points.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M) and ``image_size``
                (B, 2), heights and widths without padding in pixels, and the `target_key` of each branch. Crowds are
                never matched.

        Returns:
            A dict of ``matched_gt`` (B, R), ``class_ids`` (B, R) and ``boxes`` (B, R, 4) yxyx in pixels, for each point
            (see `kerasdet.models.dense.matched_targets`); ``soft_labels`` (B, R), the IoU of each matched point's
            predicted box with its object; and the targets of each branch under the branch's name.
        """
        anchors = dense.all_levels(outputs, "anchors")  # (R, 4)
        boxes = self.coder.decode(dense.all_levels(outputs, "box_distances"), anchors)  # (B, R, 4)
        centers = next((branch.object_centers(batch) for branch in self.branches), None)
        logits = dense.all_levels(outputs, "class_logits")
        matched_gt, soft_labels = self.matcher(logits, boxes, anchors, batch, centers)
        return {
            **dense.matched_targets(matched_gt, anchors, batch),
            "soft_labels": soft_labels,
            **{branch.name: branch.compute_targets(outputs[branch.name], batch) for branch in self.branches},
        }

    def compute_losses(self, outputs: Mapping, targets: Mapping) -> dict[str, tf.Tensor]:
        """Computes ``class_loss`` and ``box_loss``, each divided by the sum of soft labels, and the branches' losses.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict from the name of each loss to its value, a scalar float32.
        """
        anchors, logits = dense.all_levels(outputs, "anchors"), dense.all_levels(outputs, "class_logits")
        soft_labels = targets["soft_labels"]  # (B, R), 0 without an object
        normalizer = tf.maximum(global_sum(tf.reduce_sum(soft_labels)), 1.0)
        valid = tf.cast(targets["matched_gt"] != IGNORE, float_dtype()) / normalizer  # (B, R)
        one_hot = tf.one_hot(targets["class_ids"], self.num_classes, dtype=logits.dtype)  # (B, R, K)
        distances = dense.all_levels(outputs, "box_distances")
        losses = {
            "class_loss": self.class_loss(logits, one_hot * soft_labels[..., None], valid[..., None]),
            "box_loss": self.box_loss(distances, anchors, targets["boxes"], soft_labels / normalizer, self.coder),
        }
        for branch in self.branches:
            losses |= branch.compute_losses(outputs[branch.name], targets[branch.name], targets["matched_gt"], anchors)
        return losses

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the network's outputs into candidates: the `pre_nms_top_k` best pairs of box and class of each level.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels of the network's input; ``scores`` (B, N), 0 for candidates at
            or below the score threshold; ``class_ids`` (B, N); and ``points`` (B, N), the index of the point that
            predicts the candidate. N is the number of candidates of all levels.
        """
        levels, first = [], 0
        for level, anchors in outputs["anchors"].items():
            logits = outputs["class_logits"][level]  # (B, R_l, K)
            logits = logits if self.postprocessing.multi_label else best_class_only(logits)
            scores, points, class_ids = top_candidates(logits, self.postprocessing.pre_nms_top_k)  # (B, n) each
            distances = tf.gather(outputs["box_distances"][level], points, batch_dims=1)  # (B, n, 4)
            boxes = self.coder.decode(distances, tf.gather(anchors, points))  # (B, n, 4)
            scores = tf.where(scores > self.postprocessing.score_threshold, scores, 0.0)
            levels.append({"boxes": boxes, "scores": scores, "class_ids": class_ids, "points": points + first})
            first += tf.shape(anchors)[0]
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
        logits = dense.all_levels(outputs, "class_logits")
        scores = tf.sigmoid(logits if self.postprocessing.multi_label else best_class_only(logits))
        boxes = self.coder.decode(dense.all_levels(outputs, "box_distances"), dense.all_levels(outputs, "anchors"))
        return dense.filtered(self.postprocessing, boxes, scores, None, image_size)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies NMS to each class separately.

        Args:
            candidates: Result of `decode`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, and ``valid`` (B,).
        """
        detections = self.postprocessing.apply_nms(candidates, image_size)
        return {name: value for name, value in detections.items() if name != "points"}

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns the network's outputs into padded detections, with masks if the model has a mask branch.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, ``valid`` (B,), and the outputs of the branches.
        """
        detections = self.postprocessing.apply_nms(self.decode(outputs, image_size), image_size)
        points, anchors = detections.pop("points"), dense.all_levels(outputs, "anchors")
        for branch in self.branches:
            detections |= branch.detect(outputs[branch.name], points, anchors, detections)
        return detections

    def branch_inputs(self, outputs: Mapping, image_size: tf.Tensor) -> dict:
        """Collects the inputs of `branch_maps`, for test-time augmentation.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of the entries of `outputs` and ``image_size``; empty if the model has no branches.
        """
        return {**outputs, "image_size": image_size} if self.branches else {}

    def branch_maps(
        self, branch: DynamicMaskBranch, inputs: Mapping, boxes: tf.Tensor, class_ids: tf.Tensor
    ) -> tf.Tensor:
        """Computes a branch's outputs for detected boxes, for test-time augmentation.

        Each box gets the output of the point whose prediction has the largest product of score and IoU with the box.

        Args:
            branch: One of `branches`.
            inputs: Result of `branch_inputs`.
            boxes: (B, D, 4) yxyx in pixels of the network's input.
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            Mask probabilities, (B, D, S, S), see `DynamicMaskBranch.image_maps`.
        """
        anchors = dense.all_levels(inputs, "anchors")  # (R, 4)
        decoded = self.coder.decode(dense.all_levels(inputs, "box_distances"), anchors)  # (B, R, 4)
        logits = tf.transpose(dense.all_levels(inputs, "class_logits"), [0, 2, 1])  # (B, K, R)
        scores = tf.sigmoid(tf.gather(logits, tf.maximum(class_ids, 0), batch_dims=1))  # (B, D, R)
        points = tf.argmax(box_ops.iou(boxes, decoded) * scores, -1)  # (B, D)
        return branch.image_maps(inputs[branch.name], points, anchors, inputs["image_size"])


@keras.saving.register_keras_serializable(package="kerasdet")
class RTMDetIns(RTMDet):
    """Detects objects and instance masks: an `RTMDet` with a `DynamicMaskBranch`.

    Args:
        num_classes: K, number of classes without background.
        coder: Converts the raw predictions of the head to distances, and distances to boxes and back. By default
            `DistanceCoder(activation="relu")`, whose distances are never negative.
        head: Predicts class logits and distances. By default `RTMDetHead(box_tower=False, box_bias=1)`, which predicts
            classes and distances from one tower.
        branches: Further predictions for each point. By default ``[DynamicMaskBranch()]``.
        postprocessing: Score threshold and NMS of detections. By default mmdetection's: a score threshold of 0.05,
            1,000 candidates per level, an IoU threshold of 0.6, and 100 detections.
        **kwargs: Arguments of `RTMDet`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        coder: DistanceCoder | None = None,
        head: keras.layers.Layer | None = None,
        branches: Sequence[DynamicMaskBranch] | None = None,
        postprocessing: Postprocessing | None = None,
        **kwargs,
    ):
        super().__init__(
            num_classes,
            coder=coder or DistanceCoder(activation="relu"),
            head=head or RTMDetHead(box_tower=False, box_bias=1.0),
            branches=[DynamicMaskBranch()] if branches is None else branches,
            postprocessing=postprocessing or Postprocessing(0.05, 1000, 0.6, 100, **_DENSE),
            **kwargs,
        )
