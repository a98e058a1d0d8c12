"""Implements the second stage of R-CNNs: it predicts classes, boxes, masks and keypoints of proposed regions."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet import ops
from kerasdet.errors import UserError
from kerasdet.geometry import boxes as box_ops
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, IoUMatcher, gather_gt, valid_gt_mask
from kerasdet.geometry.sampling import BalancedSampler, sampling_priority
from kerasdet.keras_utils import ConfigFromInit, float_dtype, freeze, policy_scope
from kerasdet.layers.region_heads import BoxHead, BoxPredictor
from kerasdet.layers.roi_pooler import RoIPooler
from kerasdet.losses import SmoothL1Loss
from kerasdet.models.branch import RESCALINGS, Branch
from kerasdet.models.postprocess import Postprocessing
from kerasdet.ops.distribute import global_sum

ADD_GT_AS_PROPOSALS = ("before_matching", "after_matching")

_DETECTIONS = (  # names of outputs and of their exports that every model has, and that no branch may use
    *("boxes", "scores", "class_ids", "valid"),
    *("detection_boxes", "detection_scores", "detection_classes", "num_detections"),
)


@keras.saving.register_keras_serializable(package="kerasdet")
class RoIHeads(ConfigFromInit, keras.layers.Layer):
    """Predicts classes, boxes and the branches' outputs for proposed regions (Fast R-CNN and Mask R-CNN).

    The constructor does not take the numbers of classes and channels: the model knows them and passes them to `attach`,
    which creates the layers.

    Args:
        pooler: Pools the features of each region; its `output_size` is S, the side of the box head's input in cells.
            None: `RoIPooler()`.
        box_head: Layer that maps pooled features (N, S, S, C) of N regions to vectors (N, `out_channels`). Its `build`
            sets the attribute `out_channels`. None: `BoxHead()`.
        branches: Further predictions for each region, such as `MaskBranch` and `KeypointBranch`, in any combination.
        matcher: Matches proposals to ground-truth objects in training. None:
            `IoUMatcher(0.5, 0.5, allow_low_quality_matches=False)`.
        sampler: Samples the regions to train on. None: `BalancedSampler(512, 0.25)`.
        add_gt_as_proposals: When the ground-truth boxes are added to the proposals to train on. "before_matching": they
            are matched like proposals, so of two objects with the same box only one is matched (detectron2,
            torchvision). "after_matching": each ground-truth box is matched to its own object, and takes no part in
            low-quality matches (mmdetection).
        coder: Converts between boxes and their deltas relative to regions. None: `DeltaCoder((10, 10, 5, 5))`.
        box_loss: Loss of the boxes of positive regions, such as `GIoULoss()`. None: `SmoothL1Loss()`, plain L1.
        class_agnostic: Whether a region has a single box for all classes instead of one box per class.
        postprocessing: Turns scored boxes into detections. Boxes are always clipped to the image before NMS, as in all
            R-CNNs; `pre_nms_top_k` and `multi_label` have no effect. None: `Postprocessing(clip_before_nms=True)`.

    Raises:
        UserError: If `add_gt_as_proposals` is unknown, a branch lacks an attribute, or two branches share a name, a
            loss or an output.

    Example:
        >>> heads = RoIHeads(pooler=RoIPooler(14), branches=[MaskBranch(), KeypointBranch(17)])
        >>> model = kerasdet.FasterRCNN(80, roi_heads=heads)
    """

    def __init__(
        self,
        *,
        pooler: RoIPooler | None = None,
        box_head: keras.layers.Layer | None = None,
        branches: Sequence[Branch] = (),
        matcher: IoUMatcher | None = None,
        sampler: BalancedSampler | None = None,
        add_gt_as_proposals: str = "before_matching",
        coder: DeltaCoder | None = None,
        box_loss: SmoothL1Loss | None = None,
        class_agnostic: bool = False,
        postprocessing: Postprocessing | None = None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, "name": "roi_heads", **kwargs})  # boxes stay float32 under every policy
        if add_gt_as_proposals not in ADD_GT_AS_PROPOSALS:
            raise UserError(
                f"RoIHeads.add_gt_as_proposals is {add_gt_as_proposals!r}: choose 'before_matching' or "
                "'after_matching'."
            )
        self.pooler = pooler or RoIPooler()
        self.box_head = box_head or BoxHead()
        self.branches = _checked_branches(branches)
        self.matcher = matcher or IoUMatcher(0.5, 0.5, allow_low_quality_matches=False)
        self.sampler = sampler or BalancedSampler(512, 0.25)
        self.add_gt_as_proposals = add_gt_as_proposals
        self.coder = coder or DeltaCoder((10.0, 10.0, 5.0, 5.0))
        self.box_loss = box_loss or SmoothL1Loss()
        self.class_agnostic = class_agnostic
        self.postprocessing = postprocessing or Postprocessing(clip_before_nms=True)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Keys that `compute_losses` returns."""
        return ("class_loss", "box_loss", *(name for branch in self.branches for name in branch.loss_names))

    def attach(self, *, num_classes: int, levels: Sequence[str], channels: int) -> None:
        """Creates the layers and variables, unless they exist.

        Args:
            num_classes: K, number of classes without background.
            levels: Names of the pyramid's levels to pool from.
            channels: Number of channels of each level.

        Raises:
            UserError: If the heads belong to a model with another number of classes or channels, or other levels.
        """
        sizes = (num_classes, tuple(levels), channels)
        if self.built:
            if self._sizes != sizes:
                raise UserError(
                    f"These RoIHeads belong to a model with (num_classes, levels, channels) = {self._sizes}; the new "
                    f"model has {sizes}. Make new RoIHeads for each model."
                )
            return
        self._sizes = sizes
        self.num_classes = num_classes
        size = self.pooler.output_size
        with policy_scope(self.dtype_policy):
            if not self.box_head.built:
                self.box_head.build((None, size, size, channels))
            self.box_predictor = BoxPredictor(num_classes, self.class_agnostic, name="box_predictor")
            self.box_predictor.build((None, self.box_head.out_channels))
        for branch in self.branches:
            branch.attach(num_classes=num_classes, channels=channels, pool_size=size)
        self.built = True
        if not self.trainable:
            freeze(self)

    def get_build_config(self) -> None:
        """Returns None: Keras must not build the layer on loading, because `attach` builds it."""
        return None

    def select_regions(
        self,
        proposals: Mapping[str, tf.Tensor],
        ground_truth: Mapping[str, tf.Tensor] | None = None,
        seed: int = 0,
        step: tf.Tensor | int = 0,
    ) -> dict[str, tf.Tensor]:
        """Selects the regions to predict for: all proposals or, given ground truth, a sample to train on.

        Args:
            proposals: Result of `RPN.propose`: ``boxes`` (B, N, 4) yxyx in pixels, and ``valid`` (B,), the number of
                proposals of each image; the rest of the N rows is padding.
            ground_truth: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M) and optionally
                ``image_id`` (B,); see `kerasdet.geometry.sampling.sampling_priority`. None: all proposals are selected.
            seed: Seed of the sampling; only used with ground truth.
            step: Scalar integer, the training step; only used with ground truth.

        Returns:
            A dict of ``rois`` (B, P, 4) yxyx in pixels and ``roi_valid`` (B, P) bool, false for padding. P is N without
            ground truth. With ground truth it is at most the sampler's `samples_per_image`, and the dict also has
            ``matched_gt`` (B, P) int32: the index of each region's object in the ground truth, negative for regions
            without an object. The regions with an object come first.
        """
        rois = tf.stop_gradient(proposals["boxes"])
        valid = tf.sequence_mask(proposals["valid"], tf.shape(rois)[1])
        if ground_truth is None:
            return {"rois": rois, "roi_valid": valid}
        gt_valid = valid_gt_mask(ground_truth)
        with_gt = tf.concat([rois, ground_truth["boxes"]], 1)  # (B, N + M, 4)
        if self.add_gt_as_proposals == "before_matching":
            matched_gt = self.matcher(with_gt, ground_truth)
        else:
            own = tf.broadcast_to(tf.range(tf.shape(gt_valid)[1]), tf.shape(gt_valid))  # (B, M)
            matched_gt = tf.concat([self.matcher(rois, ground_truth), own], 1)
        rois = with_gt
        matched_gt = tf.where(tf.concat([valid, gt_valid], 1), matched_gt, IGNORE)  # (B, N + M)
        priority = sampling_priority(tf.shape(rois)[1], seed, step, ground_truth)
        positive, negative = self.sampler(matched_gt, priority)
        kind = tf.where(positive, 0, tf.where(negative, 1, 2))
        order = tf.argsort(kind, stable=True)[:, : self.sampler.samples_per_image]
        matched_gt = tf.gather(tf.where(kind < 2, matched_gt, IGNORE), order, batch_dims=1)  # (B, P)
        return {
            "rois": tf.gather(rois, order, batch_dims=1),  # (B, P, 4)
            "roi_valid": matched_gt != IGNORE,
            "matched_gt": matched_gt,
        }

    def call(
        self, pyramid: Mapping[str, tf.Tensor], regions: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Predicts classes and boxes of every region and, in training, the branches' outputs for positive regions.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            regions: Result of `select_regions`.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            A dict of the entries of `regions`, ``class_logits`` (B, P, K + 1) with the background last, and
            ``box_deltas`` (B, P, K, 4) as (dy, dx, dh, dw), or (B, P, 1, 4) if `class_agnostic`. If the regions were
            selected with ground truth, also the logits (B * Q, ...) of each branch for the first Q regions of each
            image, which include all positives, under the branch's name.
        """
        rois = regions["rois"]
        batch, count = tf.unstack(tf.shape(rois)[:2])
        pooled = self.pool(pyramid, rois)  # (B * P, S, S, C)
        outputs = dict(regions)
        if "matched_gt" in regions:
            positive = regions["matched_gt"] >= 0
            by_image = tf.reshape(pooled, [batch, count, *pooled.shape[1:]])
            shared = tf.reshape(self._leading_positives(by_image, positive), [-1, *pooled.shape[1:]])
            own = self._leading_positives(rois, positive)
            for branch in self.branches:
                features = shared if branch.pool_size is None else self.pool(pyramid, own, branch)
                outputs[branch.name] = branch(features, training=training)
        class_logits, box_deltas = self.box_predictor(self.box_head(pooled, training=training))
        outputs["class_logits"] = tf.reshape(class_logits, [batch, count, self.num_classes + 1])
        outputs["box_deltas"] = tf.reshape(box_deltas, [batch, count, -1, 4])
        return outputs

    def pool(self, pyramid: Mapping[str, tf.Tensor], rois: tf.Tensor, branch: Branch | None = None) -> tf.Tensor:
        """Pools the features of regions for a branch or, by default, for the box head.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            rois: (B, P, 4) yxyx in pixels of the network's input.
            branch: One of `branches`, or None for the box head.

        Returns:
            The pooled features, (B * P, S, S, C). S is the `pool_size` of the branch, by default the `output_size` of
            `pooler`.
        """
        _, levels, _ = self._sizes
        return self.pooler({level: pyramid[level] for level in levels}, rois, branch.pool_size if branch else None)

    def branch_maps(
        self, branch: Branch, pyramid: Mapping[str, tf.Tensor], boxes: tf.Tensor, class_ids: tf.Tensor
    ) -> tf.Tensor:
        """Runs a branch on detected boxes.

        Args:
            branch: One of `branches`.
            pyramid: Features (B, h, w, C) by level name.
            boxes: (B, D, 4) yxyx in pixels of the network's input.
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            Masks, heatmaps or other predictions of the detected classes, (B, D, ...).

        Raises:
            UserError: If the branch returns another shape.
        """
        maps = branch.select_class_maps(branch(self.pool(pyramid, boxes, branch), training=False), class_ids)
        # (B * D, ...), the shape of the branch's `call`, would be broadcast against (B, D) without an error.
        shape = maps.shape
        if shape.rank is not None and (shape.rank < 2 or shape[1] not in (None, class_ids.shape[1])):
            raise UserError(
                f"{type(branch).__name__}.select_class_maps returns the shape {tuple(shape)}: expected (B, D, ...). "
                "Reshape its result to the shape of class_ids, followed by the shape of one prediction."
            )
        return maps

    def _leading_positives(self, regions, positive):
        """Returns the first Q of `regions` (B, P, ...), which include all positives: `select_regions` puts them first.

        Q is the largest number of positives in an image, rounded up to a multiple of 8, because oneDNN compiles a
        kernel for each number it sees. With static shapes, or with batch norms, whose statistics would depend on Q, it
        is the largest number of positives that the sampler allows.

        Args:
            regions: (B, P, ...), values of the regions.
            positive: (B, P) bool, which regions have an object.
        """
        most = self.sampler.max_positives
        if not ops.static_shapes() and not any(branch.uses_batch_statistics for branch in self.branches):
            count = tf.reduce_max(tf.reduce_sum(tf.cast(positive, tf.int32), 1))
            most = tf.clip_by_value((count + 7) // 8 * 8, 1, most)
        return regions[:, :most]

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict:
        """Computes the targets of sampled regions.

        Args:
            outputs: Result of `call` on regions that were selected with ground truth.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``image_size`` (B, 2), heights and widths
                without padding in pixels, and the `target_key` of each branch. Only branches use ``image_size``.

        Returns:
            A dict of ``class_ids`` (B, P), K for background; ``boxes`` (B, P, 4) yxyx in pixels, which for regions
            without an object are the regions themselves; ``positive`` and ``sampled`` (B, P) bool; and, under its name,
            the targets of each branch for the first Q regions of each image, see `call`.
        """
        matched_gt, rois = outputs["matched_gt"], outputs["rois"]
        positive = matched_gt >= 0
        leading = self._leading_positives(rois, positive), self._leading_positives(matched_gt, positive)
        return {
            "class_ids": tf.where(positive, gather_gt(batch["class_ids"], matched_gt), self.num_classes),
            "boxes": tf.where(positive[..., None], gather_gt(batch["boxes"], matched_gt), rois),
            "positive": positive,
            "sampled": matched_gt != IGNORE,
            **{branch.name: branch.compute_targets(*leading, batch) for branch in self.branches},
        }

    def compute_losses(self, outputs: Mapping, targets: Mapping) -> dict[str, tf.Tensor]:
        """Computes the losses of the second stage.

        The class and box losses are averaged over the sampled regions of all replicas; branches average their own.

        Args:
            outputs: Result of `call` on regions that were selected with ground truth.
            targets: Result of `compute_targets`.

        Returns:
            A dict with a scalar for each of `loss_names`.
        """
        sampled = tf.cast(targets["sampled"], float_dtype())
        count = tf.maximum(global_sum(tf.reduce_sum(sampled)), 1.0)
        class_loss = tf.nn.sparse_softmax_cross_entropy_with_logits(targets["class_ids"], outputs["class_logits"])
        deltas = outputs["box_deltas"]  # (B, P, K or 1, 4)
        own = tf.minimum(targets["class_ids"], tf.shape(deltas)[2] - 1)
        deltas = tf.gather(deltas, own, batch_dims=2)  # (B, P, 4)
        positive = targets["positive"]
        # Padding regions have no size to divide by, and a weight of 0 does not remove an infinite loss
        anchors = tf.where(positive[..., None], outputs["rois"], [0.0, 0.0, 1.0, 1.0])
        boxes = tf.where(positive[..., None], targets["boxes"], anchors)
        box_loss = self.box_loss(deltas, anchors, boxes, tf.cast(positive, float_dtype()), self.coder)
        result = {"class_loss": tf.reduce_sum(class_loss * sampled) / count, "box_loss": box_loss / count}
        leading = self._leading_positives(positive, positive)
        for branch in self.branches:
            losses = branch.compute_losses(outputs[branch.name], targets[branch.name], leading)
            _check_names(branch, "compute_losses", losses, "loss_names")
            result |= losses
        return result

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the boxes of all regions and classes, clipped to the image.

        Args:
            outputs: Result of `call` on all proposals.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, P * K, 4) yxyx in pixels of the network's input, ``scores`` (B, P * K), which are 0
            for padding and for boxes that `Postprocessing.box_mask` excludes, and ``class_ids`` (B, P * K).
        """
        scores = tf.nn.softmax(outputs["class_logits"])[..., : self.num_classes]  # (B, P, K)
        boxes = self.coder.decode(outputs["box_deltas"], outputs["rois"][:, :, None])  # (B, P, K or 1, 4)
        boxes = tf.broadcast_to(boxes, tf.concat([tf.shape(scores), [4]], 0))
        boxes = box_ops.clip(tf.reshape(boxes, [tf.shape(boxes)[0], -1, 4]), image_size)  # (B, P * K, 4)
        usable = tf.repeat(outputs["roi_valid"], self.num_classes, axis=1)  # (B, P * K)
        mask = self.postprocessing.box_mask(boxes, image_size)
        if mask is not None:
            usable &= mask
        scores = tf.where(usable, tf.reshape(scores, tf.shape(usable)), 0.0)
        class_ids = tf.broadcast_to(tf.range(tf.shape(scores)[1]) % self.num_classes, tf.shape(scores))
        return {"boxes": boxes, "scores": scores, "class_ids": class_ids}

    def add_branch_outputs(
        self, detections: Mapping[str, tf.Tensor], pyramid: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Adds the outputs of the branches to detections.

        To save time, the branches run only on the first boxes of each image: as many as the largest number of
        detections in an image of the batch. With static shapes they run on all D boxes.

        Args:
            detections: Padded detections: ``boxes`` (B, D, 4) yxyx in pixels, ``class_ids`` (B, D) and ``valid`` (B,).
            pyramid: Features (B, h, w, C) by level name.

        Returns:
            The padded detections with the branches' outputs, each (B, D, ...), zero for padding.
        """
        found = dict(detections)
        most = padded = self.postprocessing.max_detections
        if not ops.static_shapes():
            most = tf.maximum(tf.reduce_max(detections["valid"]), 1)
        first = {name: detections[name][:, :most] for name in ("boxes", "class_ids")}
        for branch in self.branches:
            maps = self.branch_maps(branch, pyramid, **first)
            outputs = branch.postprocess(maps, first)
            _check_outputs(branch, outputs)
            for name, value in outputs.items():
                missing = [[0, 0], [0, padded - most]] + [[0, 0]] * (value.shape.rank - 2)
                found[name] = tf.ensure_shape(tf.pad(value, missing), [None, padded, *value.shape[2:]])
        return found


def _checked_branches(branches):
    """Returns the branches as a list; raises a UserError if one is incomplete or two share a name, loss or output."""
    if isinstance(branches, Branch):
        raise UserError(f"RoIHeads.branches is a {type(branches).__name__}: give a list, also for a single branch.")
    branches = list(branches)
    for branch in branches:
        if isinstance(branch, type):
            raise UserError(
                f"RoIHeads.branches contains the class {branch.__name__}: give an object, {branch.__name__}()."
            )
        if not isinstance(branch, Branch):
            raise UserError(
                f"RoIHeads.branches contains {branch!r}: give objects of subclasses of kerasdet.models.Branch."
            )
        for attribute in ("target_key", "loss_names", "output_names"):
            value = getattr(branch, attribute, None)
            if not (isinstance(value, str) if attribute == "target_key" else isinstance(value, list | tuple)):
                kind = "a string" if attribute == "target_key" else "a tuple of strings"
                raise UserError(f"{type(branch).__name__}.{attribute} is {value!r}: define it in the class as {kind}.")
    for names in ([branch.name for branch in branches], [name for branch in branches for name in branch.loss_names]):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"RoIHeads.branches has two branches with the name or loss {', '.join(sorted(twice))}: give one branch "
                "of each kind."
            )
    taken = {*_DETECTIONS}
    for branch in branches:
        if branch.rescaling not in RESCALINGS:
            raise UserError(
                f"{type(branch).__name__}.rescaling is {branch.rescaling!r}: choose {' or '.join(RESCALINGS)}."
            )
        for name, output in branch.outputs.items():
            if {name, output.export_name} & taken:
                raise UserError(
                    f"Two outputs have the name {name}, or {output.export_name} in exports: rename the output of "
                    f"{type(branch).__name__} in its output_names or export_names."
                )
            taken |= {name, output.export_name}
    return branches


def _check_names(branch, method, result, attribute):
    """Raises a UserError if a branch's method returns other names than the branch states."""
    stated = getattr(branch, attribute)
    if set(result) != set(stated):
        raise UserError(
            f"{type(branch).__name__}.{method} returns {', '.join(result) or 'nothing'}, but {attribute} is "
            f"{', '.join(stated) or 'empty'}: give both the same names."
        )


def _check_outputs(branch, outputs):
    """Raises a UserError unless a branch returns the outputs that it states, and positions have the right shape."""
    _check_names(branch, "postprocess", outputs, "output_names")
    for name, value in outputs.items():
        if branch.rescaling == "positions" and value.shape[-1] != 3:
            raise UserError(
                f"{name} of {type(branch).__name__} has the shape {tuple(value.shape)}, but outputs with "
                "rescaling='positions' need (B, D, ..., 3) with (y, x, score): return that shape, or set rescaling "
                f"to 'boxes_relative'."
            )
