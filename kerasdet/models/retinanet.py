"""Defines RetinaNet."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IoUMatcher
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import FPN, ConvTop, ResNet, RetinaNetHead
from kerasdet.losses import FocalLoss, GIoULoss, IoULoss, SmoothL1Loss
from kerasdet.models import dense
from kerasdet.models.common import LossNormalizer, check_backbone, check_num_classes
from kerasdet.models.detector import Detector
from kerasdet.models.postprocess import Postprocessing, best_class_only, top_candidates


@keras.saving.register_keras_serializable(package="kerasdet")
class RetinaNet(ConfigFromInit, Detector):
    """Detects objects from anchors at every position of a feature pyramid (https://arxiv.org/abs/1708.02002).

    The defaults are those of detectron2, except that the default backbone has random weights and no frozen layers.

    Args:
        num_classes: K, number of classes without background.
        class_names: Names of the K classes in the order of their ids; training sets them from the data.
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. By default
            `ResNet(50)`.
        neck: Layer that maps features to a pyramid. By default an FPN with P6 and P7 made from C5.
        anchors: Generates the anchors of all levels of the neck. By default `AnchorGenerator()`, nine anchors per cell.
        coder: Converts between boxes and the deltas that the head predicts. By default `DeltaCoder()`.
        head: Predicts class logits and box deltas. By default `RetinaNetHead()`, four convolutions without norm.
        matcher: Matches anchors to ground-truth objects. By default `IoUMatcher(0.5, 0.4)`.
        class_loss: Classification loss. By default `FocalLoss()`.
        box_loss: Box loss, `SmoothL1Loss`, `IoULoss` or `GIoULoss`. By default `SmoothL1Loss(beta=0)`, plain L1.
        normalizer: Computes the divisor of the losses. By default `LossNormalizer("ema", start=100)`.
        postprocessing: Score threshold and NMS of detections. By default `Postprocessing()`.
        preprocessing: Resize rule and pixel statistics. By default `Preprocessing()`.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If `num_classes` is not a positive integer, the number of class names is not `num_classes`, the
            backbone lacks a feature that the neck merges, or the levels of anchors and neck differ.

    Example:
        >>> model = kerasdet.RetinaNet(num_classes=3, class_names=["cat", "dog", "bird"])
        >>> model.compile(optimizer=keras.optimizers.AdamW(1e-4))
        >>> detections = model.detect("street.jpg")
    """

    single_stage = True
    supports_decode_all = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        anchors: AnchorGenerator | None = None,
        coder: DeltaCoder | None = None,
        head: keras.layers.Layer | None = None,
        matcher: IoUMatcher | None = None,
        class_loss: FocalLoss | None = None,
        box_loss: SmoothL1Loss | IoULoss | GIoULoss | None = None,
        normalizer: LossNormalizer | None = None,
        postprocessing: Postprocessing | None = None,
        preprocessing: Preprocessing | None = None,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(), ("class_loss", "box_loss"), **kwargs)
        check_num_classes("RetinaNet", num_classes)
        self.num_classes = num_classes
        self.class_names = class_names
        self.backbone = backbone or ResNet(50)
        self.neck = neck or FPN(top=ConvTop("c5"))
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or AnchorGenerator()
        self.coder = coder or DeltaCoder()
        self.head = head or RetinaNetHead()
        self.matcher = matcher or IoUMatcher()
        self.class_loss = class_loss or FocalLoss()
        self.box_loss = box_loss or SmoothL1Loss()
        self.normalizer = normalizer or LossNormalizer()
        self.postprocessing = postprocessing or Postprocessing()
        dense.attach_head(self)
        dense.add_running_mean(self)
        self.built = True

    def call(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict:
        """Predicts class logits and box deltas for every anchor.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Three dicts by level name: ``class_logits`` (B, R_l, K); ``box_deltas`` (B, R_l, 4) as (dy, dx, dh, dw); and
            ``anchors`` (R_l, 4) yxyx in pixels. R_l is the number of anchors of level l. Anchors are in row-major order
            of cells; within a cell they follow `AnchorGenerator.cell_anchors`.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        return {**self.head(pyramid, training=training), "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Matches anchors to ground-truth objects.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M). Crowds are never
                matched.

        Returns:
            A dict of ``matched_gt`` (B, R), ``class_ids`` (B, R) and ``boxes`` (B, R, 4) yxyx in pixels for each
            anchor; see `kerasdet.models.dense.matched_targets`.
        """
        anchors = dense.all_levels(outputs, "anchors")  # (R, 4)
        return dense.matched_targets(self.matcher(anchors, batch), anchors, batch)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes ``class_loss`` and ``box_loss``, weighted and normalised.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict from the name of each loss to its value, a scalar float32.
        """
        normalizer = self.normalizer(targets["matched_gt"], self.mean_positives)  # () or (B, 1)
        positive = tf.cast(targets["matched_gt"] >= 0, float_dtype()) / normalizer  # (B, R)
        anchors, deltas = dense.all_levels(outputs, "anchors"), dense.all_levels(outputs, "box_deltas")
        return {
            "class_loss": dense.class_loss(self, outputs, targets, normalizer),
            "box_loss": self.box_loss(deltas, anchors, targets["boxes"], positive, self.coder),
        }

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Updates the running mean of the number of positive anchors, if the normalizer is "ema".

        Args:
            targets: Result of `compute_targets`.
        """
        dense.update_running_mean(self, targets)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the network's outputs into candidates: the `pre_nms_top_k` best pairs of box and class of each level.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32, heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels of the network's input, ``scores`` (B, N), and ``class_ids``
            (B, N). N is the number of candidates of all levels.
        """
        levels = []
        for level, logits in outputs["class_logits"].items():
            if not self.postprocessing.multi_label:
                logits = best_class_only(logits)
            scores, indices, class_ids = top_candidates(logits, self.postprocessing.pre_nms_top_k)
            deltas = tf.gather(outputs["box_deltas"][level], indices, batch_dims=1)  # (B, n, 4)
            boxes = self.coder.decode(deltas, tf.gather(outputs["anchors"][level], indices))  # (B, n, 4)
            levels.append({"boxes": boxes, "scores": scores, "class_ids": class_ids})
        return {name: tf.concat([level[name] for level in levels], 1) for name in levels[0]}

    def decode_all(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes a box for every anchor, for runtimes that apply NMS themselves; `pre_nms_top_k` is not used.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32, heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, R, 4) yxyx in pixels of the network's input, and ``scores`` (B, R, K). Boxes are
            clipped if `postprocessing.clip_before_nms` is True. A score is 0 if a filter of `postprocessing` drops the
            box for this class.
        """
        logits = dense.all_levels(outputs, "class_logits")  # (B, R, K)
        if not self.postprocessing.multi_label:
            logits = best_class_only(logits)
        boxes = self.coder.decode(dense.all_levels(outputs, "box_deltas"), dense.all_levels(outputs, "anchors"))
        return dense.filtered(self.postprocessing, boxes, tf.sigmoid(logits), None, image_size)

    def apply_nms(self, candidates: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Applies NMS to each class separately.

        Args:
            candidates: Result of `decode`.
            image_size: (B, 2) int32, heights and widths without padding, in pixels.

        Returns:
            Padded detections: a dict of ``boxes`` (B, D, 4) yxyx in pixels of the network's input, ``scores`` (B, D)
            descending, ``class_ids`` (B, D) with -1 for padding, and ``valid`` (B,).
        """
        return self.postprocessing.apply_nms(candidates, image_size)
