"""Implements a detector that has only the first stage of R-CNNs, the region proposal network."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.models.detector import Detector, unpack_inputs
from kerasdet.models.rpn import RPN, ProposalSelection, build_pyramid, default_backbone, default_neck


@keras.saving.register_keras_serializable(package="kerasdet")
class ProposalNetwork(ConfigFromInit, Detector):
    """Detects objects without classifying them, by a region proposal network alone (https://arxiv.org/abs/1506.01497).

    Args:
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. None: a ResNet-50
            with random weights.
        neck: Layer that maps features to a pyramid. None: an FPN with levels p2 to p6.
        rpn: Predicts objects and selects the proposals. None: `RPN()`.
        preprocessing: Resize rule and pixel statistics. None: `Preprocessing()`.
        seed: Seed for the random sampling of anchors in training.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If the backbone lacks a feature that the neck merges, or the neck lacks a level of the anchors.
    """

    num_classes = None  # the model has no classes: it trains on objects of any class
    class_names = ("object",)
    single_stage = True

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
        self.backbone = backbone or default_backbone()
        self.neck = neck or default_neck()
        self.rpn = rpn or RPN()
        self.seed = seed
        build_pyramid(self.backbone, self.neck, self.rpn)
        self.step = self.add_weight(name="step", initializer="zeros", dtype="int64", trainable=False)
        self.built = True

    @property
    def postprocessing(self) -> ProposalSelection:
        """The selection of proposals, which are this model's detections: `proposals` of the RPN."""
        return self.rpn.proposals

    def call(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict:
        """Predicts objectness logits and box deltas for every anchor.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            The result of `RPN.call`: dicts by level name of ``objectness`` (B, R_l), ``box_deltas`` (B, R_l, 4) as
            (dy, dx, dh, dw), and ``anchors`` (R_l, 4) yxyx in pixels.
        """
        image, image_size = unpack_inputs(inputs)
        features = self.backbone(self.preprocessing.normalize(image, image_size), training=training)
        return self.rpn(self.neck(features, training=training), image=image)

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Samples the anchors to train on and computes their targets.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``is_crowd`` (B, M) and ``image_size``
                (B, 2), heights and widths without padding in pixels.

        Returns:
            A dict of ``positive`` and ``negative`` (B, R) bool and ``boxes`` (B, R, 4) yxyx in pixels, see
            `RPN.compute_targets`.
        """
        return self.rpn.compute_targets(outputs, batch, self.seed, self.step)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes ``rpn_class_loss`` and ``rpn_box_loss``, weighted and normalised.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict from the name of each loss to its value, a scalar float32.
        """
        return self.rpn.compute_losses(outputs, targets)

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Counts the training steps; the sampling of anchors depends on the step.

        Args:
            targets: Result of `compute_targets`.
        """
        self.step.assign_add(1)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the best boxes of each level, clipped to the image.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels, ``logits`` (B, N) and ``level_ids`` (B, N), see
            `ProposalSelection.decode`.
        """
        return self.rpn.proposals.decode(outputs, image_size, self.rpn.coder)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies NMS to each level separately.

        Args:
            candidates: Result of `decode`.
            image_size: (B, 2) int32. Not used, because `decode` has clipped the boxes.

        Returns:
            Padded detections of class 0: a dict of ``boxes`` (B, D, 4) yxyx in pixels, ``scores`` (B, D) descending,
            ``class_ids`` (B, D) with -1 for padding, and ``valid`` (B,).
        """
        proposals = self.rpn.proposals.apply_nms(candidates)
        valid = tf.sequence_mask(proposals["valid"], self.postprocessing.max_detections)
        return {
            "boxes": proposals["boxes"],
            "scores": tf.where(valid, tf.sigmoid(proposals["logits"]), 0.0),
            "class_ids": tf.where(valid, 0, -1),
            "valid": proposals["valid"],
        }
