"""Faster, Mask and Keypoint R-CNN: one body, whose branches say what is predicted beside class and box."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from kerasdet import losses, ops
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, gather_gt, match_iou
from kerasdet.geometry.sampling import per_image_uniform, sample_balanced
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.roi_heads import BoxHead, BoxPredictor
from kerasdet.models.branches import KeypointBranch, MaskBranch
from kerasdet.models.detector import Detector, check_backbone, checked_names, unpack_inputs
from kerasdet.models.postprocess import detections_from_candidates
from kerasdet.models.rpn import RPN, build_pyramid, check_sample, default_backbone, default_neck
from kerasdet.ops.distribute import global_sum


@keras.saving.register_keras_serializable(package="kerasdet")
class FasterRCNN(ConfigFromInit, Detector):
    """Faster R-CNN on a feature pyramid (https://arxiv.org/abs/1506.01497, https://arxiv.org/abs/1612.03144).

    Args:
        num_classes: K, without background.
        class_names: Of the K classes, for people; training sets them from the data.
        backbone: Images to features, by default a ResNet-50 with frozen batch norm, stem and first stage.
        neck: Features to a pyramid, by default an FPN with P2 to P6.
        rpn: Proposals.
        box_head: Pooled features to vectors, by default two fully connected layers.
        branches: What else is predicted, such as `MaskBranch` and `KeypointBranch`; any of them together.
        coder: Between boxes and deltas of the second stage.
        preprocessing: Resize rule and pixel statistics.
        pooler: How features of a region are pooled: "roi_align", or "roi_pool" for maxima of whole cells.
        pool_size: Of the features pooled for the box head.
        pool_sampling: ROIAlign's samples in each direction of a bin; 0 adapts to the region's size.
        pool_aligned: Without ROIAlign's half-pixel shift.
        level_epsilon: Added to a region's level before it is rounded down; torchvision has 1e-6.
        class_agnostic: One box for a region and not one for each class.
        samples_per_image: Regions that are trained on.
        positive_fraction: The most positives among them.
        foreground_iou: From this overlap on a proposal is positive, below it is negative.
        smooth_l1_beta: Where smooth L1 turns linear; 0 is L1.
        score_threshold: Detections need a score above it.
        nms_threshold: IoU above which the lower score of a class goes.
        max_detections: D.
        min_size: Boxes with a shorter side are dropped before suppression, as torchvision does.
        seed: Of the sampling.

    Raises:
        TypeError: If `backbone` is no backbone.
        ValueError: If it lacks what the neck merges, `pooler` is unknown, the sample has no room for positives, or
            there are not as many names as classes.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        rpn: RPN | None = None,
        box_head: BoxHead | None = None,
        branches: Sequence[keras.layers.Layer] = (),
        coder: DeltaCoder | None = None,
        preprocessing: Preprocessing | None = None,
        pooler: str = "roi_align",
        pool_size: int = 7,
        pool_sampling: int = 0,
        pool_aligned: bool = True,
        level_epsilon: float = 0.0,
        class_agnostic: bool = False,
        samples_per_image: int = 512,
        positive_fraction: float = 0.25,
        foreground_iou: float = 0.5,
        smooth_l1_beta: float = 0.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        min_size: float = 0.0,
        seed: int = 0,
        **kwargs,
    ):
        loss_names = ["rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss"]
        loss_names += [name for branch in branches for name in branch.loss_names]
        super().__init__(preprocessing or Preprocessing(), loss_names, **kwargs)
        if pooler not in ("roi_align", "roi_pool"):
            raise ValueError(f"FasterRCNN has no pooler {pooler!r}: choose 'roi_align' or 'roi_pool'.")
        check_sample(samples_per_image, positive_fraction)
        if num_classes < 1:
            raise ValueError(f"{type(self).__name__} needs at least one class, got num_classes={num_classes}.")
        self.num_classes = num_classes
        self.class_names = checked_names(class_names, num_classes)
        self.backbone = backbone or default_backbone()
        self.neck = neck or default_neck()
        check_backbone(self.backbone, self.neck)
        self.rpn = rpn or RPN()
        self.box_head = box_head or BoxHead()
        self.branches = list(branches)
        _check_branches(self.branches, num_classes)
        self.coder = coder or DeltaCoder((10.0, 10.0, 5.0, 5.0))
        self.pooler = pooler
        self.pool_size = pool_size
        self.pool_sampling = pool_sampling
        self.pool_aligned = pool_aligned
        self.level_epsilon = level_epsilon
        self.class_agnostic = class_agnostic
        self.samples_per_image = samples_per_image
        self.positive_fraction = positive_fraction
        self.foreground_iou = foreground_iou
        self.smooth_l1_beta = smooth_l1_beta
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.min_size = min_size
        self.seed = seed

        self.box_predictor = BoxPredictor(num_classes, class_agnostic, name="box_predictor")
        build_pyramid(self.backbone, self.neck, self.rpn)
        if not self.box_head.built:
            self.box_head.build((None, pool_size, pool_size, self.neck.channels))
        self.box_predictor.build((None, self.box_head.out_channels))
        for branch in self.branches:
            if not branch.built:
                size = branch.pool_size or pool_size
                branch.build((None, size, size, self.neck.channels))
        self.step = self.add_weight(name="step", initializer="zeros", dtype="int64", trainable=False)
        self.built = True

    def forward(self, batch, training):
        for branch in self.branches:
            if branch.target_key not in batch:
                raise ValueError(f"The {type(branch).__name__} learns from {branch.target_key}, which the batch lacks.")
        return self(batch, ground_truth=batch, training=training)

    def call(self, inputs, ground_truth=None, training=False):
        """Predictions for every anchor, and for every proposal.

        Args:
            inputs: ``image`` (B, H, W, 3) and ``image_size`` (B, 2), or a bare image tensor without padding.
            ground_truth: A batch with ``boxes``, ``class_ids`` and ``is_crowd``: regions are then sampled for training.
            training: Whether norms use the batch.

        Returns:
            ``rpn``: see `RPN.call`; ``rois`` (B, P, 4) and ``roi_valid`` (B, P), of which ``class_logits``
            (B, P, K + 1), the background last, and ``box_deltas`` (B, P, K or 1, 4); ``pyramid``: level ->
            (B, h, w, C). With ground truth also ``matched_gt`` (B, P), positives first, and each branch's logits
            under its name.
        """
        image, image_size = unpack_inputs(inputs)
        if image_size is None:
            image_size = tf.broadcast_to(tf.shape(image)[1:3], [tf.shape(image)[0], 2])
        features = self.backbone(self.preprocessing.normalize(image, image_size), training=training)
        pyramid = self.neck(features, training=training)
        rpn = self.rpn(pyramid, image=image)
        proposals = self.rpn.propose(rpn, image_size, training=ground_truth is not None)
        rois = tf.stop_gradient(proposals["boxes"])
        outputs = {"rpn": rpn, "pyramid": pyramid}
        if ground_truth is None:
            outputs["roi_valid"] = tf.sequence_mask(proposals["valid"], tf.shape(rois)[1])
        else:
            rois, outputs["matched_gt"] = self._sample(rois, proposals["valid"], ground_truth)
            outputs["roi_valid"] = outputs["matched_gt"] != IGNORE
        pooled = self._pool(pyramid, rois, self.pool_size)
        shape = tf.shape(rois)[:2]
        if ground_truth is not None:
            positive = outputs["matched_gt"] >= 0
            positives = self._positives(tf.reshape(pooled, [*tf.unstack(shape), *pooled.shape[1:]]), positive)
            shared = tf.reshape(positives, [-1, *pooled.shape[1:]])
            for branch in self.branches:
                if branch.pool_size is None:
                    outputs[branch.name] = branch(shared, training=training)
                else:
                    outputs[branch.name] = self._branch_logits(
                        branch, pyramid, self._positives(rois, positive), training
                    )
        class_logits, box_deltas = self.box_predictor(self.box_head(pooled, training=training))
        return {
            **outputs,
            "rois": rois,
            "class_logits": tf.reshape(class_logits, [shape[0], shape[1], self.num_classes + 1]),
            "box_deltas": tf.reshape(box_deltas, [shape[0], shape[1], -1, 4]),
        }

    def _pool(self, pyramid, rois, size):
        """Features of regions, (B * P, size, size, C), from the levels that the neck has features for."""
        levels = [f"p{name[1:]}" for name in self.neck.in_features]
        pyramid = {level: pyramid[level] for level in levels}
        if self.pooler == "roi_pool":
            pooled = ops.multilevel_roi_pool(pyramid, rois, output_size=size, level_epsilon=self.level_epsilon)
        else:
            pooled = ops.multilevel_roi_align(
                pyramid,
                rois,
                output_size=size,
                sampling_ratio=self.pool_sampling,
                aligned=self.pool_aligned,
                level_epsilon=self.level_epsilon,
            )
        return tf.reshape(pooled, [-1, size, size, self.neck.channels])

    def _branch_logits(self, branch, pyramid, rois, training=False):
        return branch(self._pool(pyramid, rois, branch.pool_size or self.pool_size), training=training)

    def _sample(self, proposals, valid, ground_truth):
        """Regions to train on, ground truth among them, positives first: rois (B, S, 4) and matched_gt (B, S)."""
        gt_valid = (ground_truth["class_ids"] >= 0) & ~ground_truth["is_crowd"]
        candidates = tf.concat([proposals, ground_truth["boxes"]], 1)  # (B, N, 4)
        usable = tf.concat([tf.sequence_mask(valid, tf.shape(proposals)[1]), gt_valid], 1)
        matched_gt = match_iou(
            candidates,
            ground_truth["boxes"],
            gt_valid,
            foreground_iou=self.foreground_iou,
            background_iou=self.foreground_iou,
            allow_low_quality_matches=False,
        )
        matched_gt = tf.where(usable, matched_gt, IGNORE)
        count = tf.shape(candidates)[1]
        ids = ground_truth["image_id"] if "image_id" in ground_truth else tf.range(tf.shape(candidates)[0])
        priority = per_image_uniform(count, self.seed + 1, self.step, ids)
        positive, negative = sample_balanced(
            matched_gt, priority, size=self.samples_per_image, positive_fraction=self.positive_fraction
        )
        kind = tf.where(positive, 0, tf.where(negative, 1, 2))
        order = tf.argsort(kind, stable=True)[:, : self.samples_per_image]
        matched_gt = tf.where(kind < 2, matched_gt, IGNORE)
        return tf.gather(candidates, order, batch_dims=1), tf.gather(matched_gt, order, batch_dims=1)

    def _positives(self, regions, positive):
        """The first of the sampled regions (B, S, ...), among which all those that are `positive` (B, S) are.

        They are as many as the image with the most has, in steps of 8, as each size costs oneDNN a kernel of its own.
        Statistics of a batch norm would depend on how many: then, and in static shapes, as many as there may be.
        """
        most = int(self.samples_per_image * self.positive_fraction)
        by_batch = any(getattr(branch, "norm", None) in ("bn", "sync_bn") for branch in self.branches)
        if not by_batch and not ops.static_shapes():
            count = tf.reduce_max(tf.reduce_sum(tf.cast(positive, tf.int32), 1))
            most = tf.clip_by_value((count + 7) // 8 * 8, 1, most)
        return regions[:, :most]

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict:
        """What each sampled anchor and region should say.

        Args:
            outputs: Of the model, called with ground truth.
            batch: With ``boxes`` (B, M, 4), ``class_ids`` (B, M), ``is_crowd`` (B, M) and what the branches need.

        Returns:
            ``rpn``: see `RPN.compute_targets`; ``class_ids`` (B, S), K for background; ``boxes`` (B, S, 4), a region's
            own where it has no match; ``positive`` and ``sampled`` (B, S) bool; each branch's under its name.
        """
        matched_gt, rois = outputs["matched_gt"], outputs["rois"]
        positive = matched_gt >= 0
        branches = {
            branch.name: branch.compute_targets(
                self._positives(rois, positive), self._positives(matched_gt, positive), batch
            )
            for branch in self.branches
        }
        return {
            "rpn": self.rpn.compute_targets(outputs["rpn"], batch, batch["image_size"], self.seed, self.step),
            "class_ids": tf.where(positive, gather_gt(batch["class_ids"], matched_gt), self.num_classes),
            "boxes": tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), rois),
            "positive": positive,
            "sampled": matched_gt != IGNORE,
            **branches,
        }

    def compute_losses(self, outputs: Mapping, targets: Mapping) -> dict[str, tf.Tensor]:
        """``rpn_class_loss``, ``rpn_box_loss``, ``class_loss``, ``box_loss`` and those of the branches."""
        sampled = tf.cast(targets["sampled"], float_dtype())
        count = tf.maximum(global_sum(tf.reduce_sum(sampled)), 1.0)
        class_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets["class_ids"], outputs["class_logits"])
        deltas = outputs["box_deltas"]  # (B, S, K or 1, 4)
        own = tf.minimum(targets["class_ids"], tf.shape(deltas)[2] - 1)
        deltas = tf.gather(deltas, own, batch_dims=2)  # (B, S, 4)
        weights = tf.cast(targets["positive"], float_dtype())[..., None]
        anchors = tf.where(weights > 0, outputs["rois"], [0.0, 0.0, 1.0, 1.0])  # padding has no size to divide by
        goals = self.coder.encode(tf.where(weights > 0, targets["boxes"], anchors), anchors)
        box_loss = losses.smooth_l1(deltas, goals, weights, beta=self.smooth_l1_beta)
        positive = self._positives(targets["positive"], targets["positive"])
        branch_losses = [
            branch.compute_losses(outputs[branch.name], targets[branch.name], positive) for branch in self.branches
        ]
        return {
            **self.rpn.compute_losses(outputs["rpn"], targets["rpn"]),
            "class_loss": tf.reduce_sum(class_loss * sampled) / count,
            "box_loss": box_loss / count,
            **{name: value for values in branch_losses for name, value in values.items()},
        }

    def after_step(self, targets):
        self.step.assign_add(1)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Boxes before suppression, in the coordinates of the network's input.

        Args:
            outputs: Of the model, called without ground truth.
            image_size: (B, 2) int32, without padding.

        Returns:
            ``boxes`` (B, P * K, 4), ``scores`` (B, P * K) with 0 for none, ``class_ids`` (B, P * K).
        """
        scores = tf.nn.softmax(outputs["class_logits"])[..., : self.num_classes]  # (B, P, K)
        boxes = self.coder.decode(outputs["box_deltas"], outputs["rois"][:, :, None])  # (B, P, K or 1, 4)
        boxes = tf.broadcast_to(boxes, tf.concat([tf.shape(scores), [4]], 0))
        boxes = box_ops.clip(tf.reshape(boxes, [tf.shape(boxes)[0], -1, 4]), image_size)  # (B, P * K, 4)
        size = boxes[..., 2:] - boxes[..., :2]
        usable = tf.reduce_all(size >= self.min_size, -1) & tf.repeat(outputs["roi_valid"], self.num_classes, axis=1)
        scores = tf.where(usable, tf.reshape(scores, tf.shape(usable)), 0.0)
        class_ids = tf.broadcast_to(tf.range(tf.shape(scores)[1]) % self.num_classes, tf.shape(scores))
        return {"boxes": boxes, "scores": scores, "class_ids": class_ids}

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Out of candidates: ``boxes`` (B, D, 4), ``scores`` (B, D), ``class_ids`` (B, D), ``valid`` (B,)."""
        return detections_from_candidates(
            candidates,
            image_size,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            clip_before_nms=True,
            drop_empty=True,
        )

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """As of every detector, and what the branches add; these run on no more regions than the fullest image has."""
        detections = super().postprocess(outputs, image_size)
        most = self.max_detections
        if not ops.static_shapes():
            most = tf.maximum(tf.reduce_max(detections["valid"]), 1)
        first = {name: detections[name][:, :most] for name in ("boxes", "class_ids")}
        for branch in self.branches:
            maps = self.branch_maps(branch, outputs["pyramid"], first["boxes"], first["class_ids"])
            for name, value in branch.postprocess(maps, first).items():
                missing = [[0, 0], [0, self.max_detections - most]] + [[0, 0]] * (value.shape.rank - 2)
                shape = [None, self.max_detections, *value.shape[2:]]
                detections[name] = tf.ensure_shape(tf.pad(value, missing), shape)
        return detections

    def branch_maps(self, branch, pyramid: Mapping, boxes: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """A branch's masks or heatmaps, (B, D, S, S, ...), of boxes (B, D, 4) and their classes (B, D)."""
        return branch.select_class_maps(self._branch_logits(branch, pyramid, boxes), class_ids)

    def paste_masks(self, mask_probs: tf.Tensor, boxes: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Full-size masks of one image, by the rule of the model's source.

        Args:
            mask_probs: (D, S, S).
            boxes: (D, 4) in pixels of the image.
            height: Of the image.
            width: Of the image.

        Returns:
            (D, height, width) bool.

        Raises:
            ValueError: If the model has no `MaskBranch`.
        """
        return ops.paste_masks(mask_probs, boxes, height, width, convention=self._mask_convention())

    def encode_masks(self, mask_probs: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict]:
        """The compressed RLE of what `paste_masks` gives, without full-size masks where the ops are compiled.

        Args:
            mask_probs: (D, S, S).
            boxes: (D, 4) in pixels of the image.
            height: Of the image.
            width: Of the image.

        Returns:
            For each mask {"size", "counts"}, as in COCO's result files.

        Raises:
            ValueError: If the model has no `MaskBranch`.
        """
        return ops.encode_masks(mask_probs, boxes, height, width, convention=self._mask_convention())

    def _mask_convention(self):
        conventions = [branch.convention for branch in self.branches if isinstance(branch, MaskBranch)]
        if not conventions:
            raise ValueError(f"This {type(self).__name__} finds no masks: give it a MaskBranch among its branches.")
        return conventions[0]


def _check_branches(branches, num_classes):
    """Branches that would overwrite one another's outputs, or are for other classes, are an error."""
    for names in ([branch.name for branch in branches], [name for branch in branches for name in branch.loss_names]):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"Two branches have the name or loss {', '.join(sorted(twice))}: give one of each kind.")
    for branch in branches:
        if getattr(branch, "num_classes", num_classes) != num_classes:
            raise ValueError(
                f"The model has {num_classes} classes and its {type(branch).__name__} {branch.num_classes}: "
                "give both the same num_classes."
            )


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskRCNN(FasterRCNN):
    """Mask R-CNN (https://arxiv.org/abs/1703.06870): `FasterRCNN` with a `MaskBranch`, unless `branches` says more."""

    def __init__(self, num_classes: int, *, branches: Sequence[keras.layers.Layer] | None = None, **kwargs):
        super().__init__(num_classes, branches=[MaskBranch(num_classes)] if branches is None else branches, **kwargs)


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointRCNN(FasterRCNN):
    """Keypoint R-CNN (Mask R-CNN, section 5): `FasterRCNN` with a `KeypointBranch`, unless `branches` says more."""

    def __init__(self, num_classes: int = 1, *, branches: Sequence[keras.layers.Layer] | None = None, **kwargs):
        super().__init__(num_classes, branches=[KeypointBranch()] if branches is None else branches, **kwargs)
