"""Defines Faster, Mask and Keypoint R-CNN: an `RPN` proposes regions, then `RoIHeads` classify and refine them."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.models.branch import Branch
from kerasdet.models.common import check_num_classes
from kerasdet.models.detector import Detector, unpack_inputs
from kerasdet.models.keypoint_branch import KeypointBranch
from kerasdet.models.mask_branch import MaskBranch
from kerasdet.models.postprocess import Postprocessing
from kerasdet.models.roi_heads import RoIHeads
from kerasdet.models.rpn import RPN, build_pyramid, default_backbone, default_neck


@keras.saving.register_keras_serializable(package="kerasdet")
class FasterRCNN(ConfigFromInit, Detector):
    """Detects objects with Faster R-CNN on a feature pyramid (https://arxiv.org/abs/1506.01497, https://arxiv.org/abs/1612.03144).

    Args:
        num_classes: K, number of classes without background.
        class_names: Names of the K classes in the order of their ids; training sets them from the dataset.
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. None: a ResNet-50
            with random weights.
        neck: Layer that maps features to a pyramid. None: an FPN with levels p2 to p6.
        rpn: First stage, which proposes regions. None: `RPN()`.
        roi_heads: Second stage, which classifies and refines the regions; its branches add masks and keypoints. None:
            `RoIHeads()`.
        preprocessing: Resize rule and pixel statistics. None: `Preprocessing()`.
        seed: Seed for the random sampling of anchors and regions in training.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If `num_classes` is not a positive integer, the number of class names is not `num_classes`, the
            backbone lacks a feature that the neck merges, or the neck lacks a level of the anchors.

    Example:
        >>> model = kerasdet.FasterRCNN(3, roi_heads=RoIHeads(sampler=BalancedSampler(128, 0.25)))
        >>> detections = model.detect("street.jpg")
    """

    has_background = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        rpn: RPN | None = None,
        roi_heads: RoIHeads | None = None,
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
        **kwargs,
    ):
        roi_heads = roi_heads or RoIHeads()
        loss_names = ("rpn_class_loss", "rpn_box_loss", *roi_heads.loss_names)
        super().__init__(preprocessing or Preprocessing(), loss_names, **kwargs)
        check_num_classes(type(self).__name__, num_classes)
        self.num_classes = num_classes
        self.class_names = class_names
        self.backbone = backbone or default_backbone()
        self.neck = neck or default_neck()
        self.rpn = rpn or RPN()
        self.roi_heads = roi_heads
        self.seed = seed
        build_pyramid(self.backbone, self.neck, self.rpn)
        # Regions are pooled only from the levels of the features, not from those that the FPN's `top` adds, such as p6
        levels = [f"p{name[1:]}" for name in self.neck.in_features]
        roi_heads.attach(num_classes=num_classes, levels=levels, channels=self.neck.channels)
        self.step = self.add_weight(name="step", initializer="zeros", dtype="int64", trainable=False)
        self.built = True

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Branches of `roi_heads`."""
        return tuple(self.roi_heads.branches)

    @property
    def postprocessing(self) -> Postprocessing:
        """Post-processing of `roi_heads`, which makes the detections."""
        return self.roi_heads.postprocessing

    def forward(self, batch: Mapping[str, tf.Tensor], training: bool) -> dict:
        """Runs the model on a training batch: samples regions and predicts for them.

        Args:
            batch: Training batch; see `kerasdet.models.batch.training_batch`.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            The result of `call` with `ground_truth`.

        Raises:
            UserError: If the batch lacks the ground truth of a branch.
        """
        for branch in self.branches:
            branch.check_batch(batch)
        return self(batch, ground_truth=batch, training=training)

    def call(
        self,
        inputs: Mapping[str, tf.Tensor] | tf.Tensor,
        ground_truth: Mapping[str, tf.Tensor] | None = None,
        training: bool = False,
    ) -> dict:
        """Runs both stages: predicts for every anchor, selects regions, and predicts for every region.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            ground_truth: Batch with ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M).
                The second stage then predicts for a sample of proposals and ground-truth boxes. None: it predicts for
                all proposals.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            A dict of ``rpn``, the result of `RPN.call`; ``pyramid``, a dict from level name to features (B, h, w, C);
            and the entries that `RoIHeads.call` returns.
        """
        image, image_size = unpack_inputs(inputs)
        if image_size is None:
            image_size = tf.broadcast_to(tf.shape(image)[1:3], [tf.shape(image)[0], 2])
        features = self.backbone(self.preprocessing.normalize(image, image_size), training=training)
        pyramid = self.neck(features, training=training)
        rpn = self.rpn(pyramid, image=image)
        proposals = self.rpn.propose(rpn, image_size, training=ground_truth is not None)
        # the first stage samples with `seed`; another seed makes the samples independent
        regions = self.roi_heads.select_regions(proposals, ground_truth, self.seed + 1, self.step)
        return {"rpn": rpn, "pyramid": pyramid, **self.roi_heads(pyramid, regions, training=training)}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict:
        """Samples anchors, and computes the targets of the sampled anchors and regions.

        Args:
            outputs: Result of `call` with ground truth.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M), ``image_size`` (B, 2),
                heights and widths without padding in pixels, and the `target_key` of each branch, such as ``masks``.

        Returns:
            A dict of ``rpn``, the result of `RPN.compute_targets`, and the entries that `RoIHeads.compute_targets`
            returns.
        """
        return {
            "rpn": self.rpn.compute_targets(outputs["rpn"], batch, self.seed, self.step),
            **self.roi_heads.compute_targets(outputs, batch),
        }

    def compute_losses(self, outputs: Mapping, targets: Mapping) -> dict[str, tf.Tensor]:
        """Computes the losses of both stages, a scalar for each.

        Args:
            outputs: Result of `call` with ground truth.
            targets: Result of `compute_targets`.

        Returns:
            A dict of ``rpn_class_loss``, ``rpn_box_loss``, ``class_loss``, ``box_loss`` and the losses of the branches,
            each a scalar.
        """
        return {
            **self.rpn.compute_losses(outputs["rpn"], targets["rpn"]),
            **self.roi_heads.compute_losses(outputs, targets),
        }

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Counts the training steps; the sampling of anchors and regions depends on the step.

        Args:
            targets: Result of `compute_targets`.
        """
        self.step.assign_add(1)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the boxes of all regions and classes, clipped to the image.

        Args:
            outputs: Result of `call` without ground truth.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, P * K, 4) yxyx in pixels of the network's input, ``scores`` (B, P * K) and
            ``class_ids`` (B, P * K), for P regions and K classes; see `RoIHeads.decode`.
        """
        return self.roi_heads.decode(outputs, image_size)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies NMS to each class separately.

        Args:
            candidates: Result of `decode`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, and ``valid`` (B,).
        """
        return self.postprocessing.apply_nms(candidates, image_size)

    def postprocess(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns the network's outputs into padded detections, and runs the branches on the detected boxes.

        Args:
            outputs: Result of `call` without ground truth.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, ``valid`` (B,), and the outputs of the branches.
        """
        return self.roi_heads.add_branch_outputs(super().postprocess(outputs, image_size), outputs["pyramid"])

    def branch_maps(
        self, branch: Branch, pyramid: Mapping[str, tf.Tensor], boxes: tf.Tensor, class_ids: tf.Tensor
    ) -> tf.Tensor:
        """Runs a branch on detected boxes, for test-time augmentation.

        Args:
            branch: One of `branches`.
            pyramid: Features (B, h, w, C) by level name.
            boxes: (B, D, 4) yxyx in pixels of the network's input.
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            Masks, heatmaps or other predictions of the detected classes, (B, D, ...).
        """
        return self.roi_heads.branch_maps(branch, pyramid, boxes, class_ids)


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskRCNN(FasterRCNN):
    """Detects objects and their masks with Mask R-CNN (https://arxiv.org/abs/1703.06870).

    The model is a `FasterRCNN` whose second stage has a `MaskBranch` by default.

    Args:
        num_classes: K, number of classes without background.
        roi_heads: Second stage; it predicts masks only if its branches include a `MaskBranch`. None:
            ``RoIHeads(branches=[MaskBranch()])``.
        **kwargs: Arguments of `FasterRCNN`.
    """

    def __init__(self, num_classes: int, *, roi_heads: RoIHeads | None = None, **kwargs):
        super().__init__(num_classes, roi_heads=roi_heads or RoIHeads(branches=[MaskBranch()]), **kwargs)


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointRCNN(FasterRCNN):
    """Detects objects and their keypoints with Keypoint R-CNN (Mask R-CNN, section 5).

    The model is a `FasterRCNN` whose second stage has a `KeypointBranch` by default.

    Args:
        num_classes: K, number of classes without background; 1 if people are the only class.
        roi_heads: Second stage; it predicts keypoints only if its branches include a `KeypointBranch`. None:
            ``RoIHeads(branches=[KeypointBranch()])``, for the 17 keypoints of a person in COCO.
        **kwargs: Arguments of `FasterRCNN`.
    """

    def __init__(self, num_classes: int = 1, *, roi_heads: RoIHeads | None = None, **kwargs):
        super().__init__(num_classes, roi_heads=roi_heads or RoIHeads(branches=[KeypointBranch()]), **kwargs)
