"""Defines SSD and SSDLite (https://arxiv.org/abs/1512.02325, https://arxiv.org/abs/1801.04381)."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.default_boxes import DefaultBoxes, SSDMatcher
from kerasdet.geometry.matching import NEGATIVE
from kerasdet.inference.preprocessing import Preprocessing
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import VGG, SSDHead, SSDNeck
from kerasdet.losses import GIoULoss, IoULoss, SmoothL1Loss
from kerasdet.models import dense
from kerasdet.models.common import LossNormalizer, check_backbone, check_num_classes
from kerasdet.models.detector import Detector
from kerasdet.models.postprocess import Postprocessing, best_class_only

# torchvision's pixel statistics and resize rule of SSD300
_PREPROCESSING = {
    "mean": (122.99925, 116.9991, 103.9992),
    "std": (1.0, 1.0, 1.0),
    "shortest": 300,
    "longest": 300,
    "rounding": "square",
    "kernel": "bilinear",
    "size_divisor": 1,
}


@keras.saving.register_keras_serializable(package="kerasdet")
class SSD(ConfigFromInit, Detector):
    """Detects objects from default boxes at every position of feature maps of several sizes (SSD, arXiv 1512.02325).

    The defaults are those of torchvision's SSD300, except that no layer is frozen. Images are stretched to a square.
    For SSDLite (https://arxiv.org/abs/1801.04381), start from the recipe `ssdlite_mobilenetv3_coco`: it differs in
    backbone, neck, head, default boxes, postprocessing and preprocessing.

    Args:
        num_classes: K, number of classes without background.
        class_names: Names of the K classes in the order of their ids; training sets them from the data.
        backbone: Keras model that maps images to features, as `kerasdet.layers.backbone` describes. By default `VGG()`.
        neck: Layer that maps features to levels, whose channels may differ. By default SSD300's `SSDNeck`.
        anchors: Default boxes of the neck's levels. By default `DefaultBoxes()`, which fits only the default backbone
            and neck at 300 x 300 pixels.
        coder: Converts between boxes and the deltas that the head predicts. By default `DeltaCoder((10, 10, 5, 5))`.
        head: Predicts class logits and box deltas. By default `SSDHead()`.
        matcher: Matches default boxes to ground truth. By default `SSDMatcher()`.
        box_loss: Box loss, `SmoothL1Loss`, `IoULoss` or `GIoULoss`. By default `SmoothL1Loss(beta=1)`.
        negative_ratio: Number of negatives per positive in the classification loss of each image. The negatives with
            the highest losses are selected (hard negative mining). An image without positives has no loss.
        normalizer: Computes the divisor of the losses. By default `LossNormalizer("batch")`.
        postprocessing: Score threshold and NMS of detections; its `pre_nms_top_k` is per class. By default
            torchvision's: a score threshold of 0.01, 400 candidates per class, an IoU threshold of 0.45, and 200
            detections.
        preprocessing: Resize rule and pixel statistics. By default torchvision's square of 300 pixels.

    Raises:
        TypeError: If `backbone` is a class, or lacks `channels` or `strides`.
        UserError: If `num_classes` is not a positive integer, the number of class names is not `num_classes`, the
            backbone lacks a feature of the neck, the levels of neck and default boxes differ, or `negative_ratio` is
            not positive.

    Example:
        >>> model = kerasdet.SSD(num_classes=3, class_names=["cat", "dog", "bird"])
        >>> model.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9))
        >>> detections = model.detect("street.jpg")
    """

    has_background = True
    single_stage = True
    supports_decode_all = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] | None = None,
        backbone: keras.Model | None = None,
        neck: keras.layers.Layer | None = None,
        anchors: DefaultBoxes | None = None,
        coder: DeltaCoder | None = None,
        head: keras.layers.Layer | None = None,
        matcher: SSDMatcher | None = None,
        box_loss: SmoothL1Loss | IoULoss | GIoULoss | None = None,
        negative_ratio: float = 3.0,
        normalizer: LossNormalizer | None = None,
        postprocessing: Postprocessing | None = None,
        preprocessing: Preprocessing | None = None,
        **kwargs,
    ):
        super().__init__(preprocessing or Preprocessing(**_PREPROCESSING), ("class_loss", "box_loss"), **kwargs)
        check_num_classes("SSD", num_classes)
        if negative_ratio <= 0:
            raise UserError(f"SSD.negative_ratio is {negative_ratio}: give a number above 0, such as 3.")
        self.num_classes = num_classes
        self.class_names = class_names
        self.backbone = backbone or VGG()
        self.neck = neck or SSDNeck(unpadded=2, finest_scale=20.0)
        check_backbone(self.backbone, self.neck)
        self.anchors = anchors or DefaultBoxes()
        self.coder = coder or DeltaCoder((10.0, 10.0, 5.0, 5.0))
        self.head = head or SSDHead()
        self.matcher = matcher or SSDMatcher()
        self.box_loss = box_loss or SmoothL1Loss(beta=1.0)
        self.negative_ratio = negative_ratio
        self.normalizer = normalizer or LossNormalizer("batch")
        self.postprocessing = postprocessing or Postprocessing(
            0.01, 400, 0.45, 200, clip_before_nms=True, empty_boxes="keep"
        )
        dense.attach_head(self)
        dense.add_running_mean(self)
        self.built = True

    def call(self, inputs: Mapping[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict:
        """Predicts class logits and box deltas for every default box.

        Args:
            inputs: A dict of ``image`` (B, H, W, 3), RGB in 0..255, and ``image_size`` (B, 2), heights and widths
                without padding in pixels; or a bare image tensor without padding.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Three dicts by level name: ``class_logits`` (B, R_l, K + 1), background last; ``box_deltas`` (B, R_l, 4) as
            (dy, dx, dh, dw); and ``anchors`` (R_l, 4) yxyx in pixels. R_l is the number of default boxes of level l, in
            row-major order of cells.
        """
        pyramid, anchors = dense.pyramid_and_anchors(self, inputs, training)
        return {**self.head(pyramid, training=training), "anchors": anchors}

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Matches default boxes to ground truth.

        Args:
            outputs: Result of `call`.
            batch: ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M) and ``is_crowd`` (B, M). Crowds are never
                matched.

        Returns:
            A dict of ``matched_gt`` (B, R), ``class_ids`` (B, R) and ``boxes`` (B, R, 4) yxyx in pixels for each
            default box; see `kerasdet.models.dense.matched_targets`.
        """
        anchors = dense.all_levels(outputs, "anchors")  # (R, 4)
        return dense.matched_targets(self.matcher(anchors, batch), anchors, batch)

    def compute_losses(self, outputs: Mapping, targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes ``class_loss`` (positives and hardest negatives) and ``box_loss`` (positives), both normalised.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.

        Returns:
            A dict from the name of each loss to its value, a scalar float32.
        """
        matched_gt = targets["matched_gt"]  # (B, R)
        normalizer = self.normalizer(matched_gt, self.mean_positives)  # () or (B, 1)
        is_positive = matched_gt >= 0
        labels = tf.where(is_positive, targets["class_ids"], self.num_classes)
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, dense.all_levels(outputs, "class_logits"))
        counts = self.negative_ratio * tf.reduce_sum(tf.cast(is_positive, float_dtype()), 1, keepdims=True)  # (B, 1)
        hardness = tf.where(matched_gt == NEGATIVE, tf.stop_gradient(each), -1.0)
        rank = tf.argsort(tf.argsort(hardness, direction="DESCENDING"))  # (B, R)
        is_hard = (tf.cast(rank, float_dtype()) < counts) & (matched_gt == NEGATIVE)
        positive = tf.cast(is_positive, float_dtype()) / normalizer
        weights = positive + tf.cast(is_hard, float_dtype()) / normalizer
        deltas, anchors = dense.all_levels(outputs, "box_deltas"), dense.all_levels(outputs, "anchors")
        return {
            "class_loss": tf.reduce_sum(each * weights),
            "box_loss": self.box_loss(deltas, anchors, targets["boxes"], positive, self.coder),
        }

    def after_step(self, targets: Mapping[str, tf.Tensor]) -> None:
        """Updates the running mean of the number of positive default boxes, if the normalizer is "ema".

        Args:
            targets: Result of `compute_targets`.
        """
        dense.update_running_mean(self, targets)

    def decode(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes the network's outputs into candidates: the `pre_nms_top_k` best boxes of each class.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, N, 4) yxyx in pixels of the network's input, ``scores`` (B, N), and ``class_ids``
            (B, N). N is the number of candidates of all classes.
        """
        boxes, scores = self._boxes_and_scores(outputs)
        best = tf.minimum(self.postprocessing.pre_nms_top_k, tf.shape(scores)[1])
        scores, indices = tf.math.top_k(tf.transpose(scores, [0, 2, 1]), best)  # (B, K, n)
        class_ids = tf.broadcast_to(tf.range(self.num_classes)[:, None], tf.shape(indices))
        scores, indices, class_ids = (
            tf.reshape(x, [tf.shape(x)[0], self.num_classes * best]) for x in (scores, indices, class_ids)
        )  # (B, K * n)
        return {"boxes": tf.gather(boxes, indices, batch_dims=1), "scores": scores, "class_ids": class_ids}

    def decode_all(self, outputs: Mapping, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decodes a box for every default box, for runtimes that apply NMS themselves; `pre_nms_top_k` is not used.

        Args:
            outputs: Result of `call`.
            image_size: (B, 2) int32 heights and widths without padding, in pixels.

        Returns:
            A dict of ``boxes`` (B, R, 4) yxyx in pixels of the network's input, and ``scores`` (B, R, K). Boxes are
            clipped if `postprocessing.clip_before_nms` is True. A score is 0 if a filter of `postprocessing` drops the
            box for this class.
        """
        boxes, scores = self._boxes_and_scores(outputs)
        return dense.filtered(self.postprocessing, boxes, scores, None, image_size)

    def _boxes_and_scores(self, outputs):
        """Decodes all boxes, (B, R, 4), and their scores without background, (B, R, K)."""
        scores = tf.nn.softmax(dense.all_levels(outputs, "class_logits"))[..., :-1]
        if not self.postprocessing.multi_label:
            scores = best_class_only(scores)
        return self.coder.decode(dense.all_levels(outputs, "box_deltas"), dense.all_levels(outputs, "anchors")), scores

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
