"""Defines the branch that predicts an instance mask for each region."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.geometry import masks as mask_ops
from kerasdet.geometry.mask_targets import checked_crops
from kerasdet.geometry.matching import gather_gt
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.region_heads import MaskHead
from kerasdet.models.branch import Branch
from kerasdet.ops.distribute import global_sum

if TYPE_CHECKING:
    from kerasdet.data.pipeline import Dataset


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskBranch(ConfigFromInit, Branch):
    """Predicts an instance mask for each region (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    Args:
        pool_size: Side of the pooled features, in cells; masks have S = 2 * pool_size cells a side. None: as for the
            box head, whose pooled features the branch then reuses in training.
        num_convs: Number of 3x3 convolutions of the head.
        channels: Number of channels of the head's convolutions.
        norm: Norm of the head's convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        convention: Source framework whose pasting of masks and cropping of targets is reproduced: "detectron2" or
            "torchvision".
        loss_weight: Factor of the loss.

    Raises:
        UserError: If a number is out of its range.
        ValueError: If `convention` is unknown.
    """

    target_key = "masks"
    loss_names = ("mask_loss",)
    output_names = ("mask_probs",)
    metric = "segm"
    rescaling = "boxes_relative"
    export_names = {"mask_probs": "detection_masks"}  # noqa: RUF012
    _how_to_read_targets = "set CocoDataset.masks=True (Python: masks=True); Pascal VOC datasets have no masks"

    def __init__(
        self,
        *,
        pool_size: int | None = 14,
        num_convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        convention: str = "detectron2",
        loss_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(pool_size=pool_size, **{"name": "mask_branch", **kwargs})
        mask_ops.check_convention(convention)
        check_positive("MaskBranch", channels=channels, pool_size=pool_size)
        check_numbers("MaskBranch", 0, num_convs=num_convs, loss_weight=loss_weight)
        self.num_convs = num_convs
        self.channels = channels
        self.norm = norm
        self.convention = convention
        self.loss_weight = loss_weight

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the head for pooled features of shape (N, S / 2, S / 2, C); only `attach` calls this."""
        self.head = MaskHead(self.num_classes, self.num_convs, self.channels, norm=self.norm, name="head")
        self.head.build(input_shape)
        self.map_size = 2 * input_shape[1]

    def call(self, pooled: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Predicts a mask per class.

        Args:
            pooled: (N, S / 2, S / 2, C) pooled features of N regions.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Mask logits, (N, S, S, K).
        """
        return self.head(pooled, training=training)

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Crops the ground-truth mask of each region's object to the region.

        Args:
            rois: (B, P, 4) yxyx in pixels of the network's input: sampled regions, the positive ones of an image first.
            matched_gt: (B, P) int32, the index of each region's object in the ground truth; negative for regions
                without an object.
            batch: Ground truth with ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``image_size`` (B, 2),
                heights and widths without padding in pixels, and ``masks`` (B, M, T, T), cropped to the boxes: bool, or
                uint8 with the covered fraction of each cell times 255. T is 112 in batches of kerasdet.

        Returns:
            A dict of ``masks`` (B, P, S, S) float32 in [0, 1], 0 for regions without an object, and ``class_ids``
            (B, P).

        Raises:
            UserError: If ``masks`` is neither bool nor uint8.
        """
        masks = checked_crops(batch["masks"])
        masks = mask_ops.crop_masks_for_rois(
            tf.pad(masks, [[0, 0], [0, 1], [0, 0], [0, 0]]),  # one more object, because M may be 0
            tf.pad(batch["boxes"], [[0, 0], [0, 1], [0, 0]]),
            rois,
            matched_gt,
            size=self.map_size,
            convention=self.convention,
            image_size=batch["image_size"],
        )
        return {"masks": masks, "class_ids": gather_gt(batch["class_ids"], matched_gt)}

    def compute_losses(
        self, logits: tf.Tensor, targets: Mapping[str, tf.Tensor], positive: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the cross entropy of the true class's mask, averaged over the pixels of positive regions.

        Args:
            logits: (B * P, S, S, K) result of `call`.
            targets: Result of `compute_targets`.
            positive: (B, P) bool, which regions have an object.

        Returns:
            A dict of the scalar ``mask_loss``.
        """
        weights = tf.cast(tf.reshape(positive, [-1]), float_dtype())  # (N,)
        logits = _of_class(logits, tf.reshape(targets["class_ids"], [-1]))  # (N, S, S)
        masks = tf.reshape(targets["masks"], tf.shape(logits))
        loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(masks, float_dtype()), logits)
        loss = tf.reduce_sum(tf.reduce_mean(loss, [1, 2]) * weights)
        return {"mask_loss": self.loss_weight * loss / tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)}

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Selects the masks of the detected classes.

        Args:
            logits: (B * D, S, S, K) result of `call`.
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            Mask probabilities, (B, D, S, S).
        """
        probs = tf.sigmoid(_of_class(logits, tf.reshape(class_ids, [-1])))
        return tf.reshape(probs, tf.concat([tf.shape(class_ids), tf.shape(probs)[1:]], 0))

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the masks of detected objects.

        Args:
            maps: (B, D, S, S) result of `select_class_maps`.
            detections: ``boxes`` (B, D, 4) yxyx in pixels and ``class_ids`` (B, D), -1 for padding.

        Returns:
            A dict of ``mask_probs`` (B, D, S, S): for each of the S x S cells of a box, the probability that it shows
            the object; zero for padding.
        """
        return {"mask_probs": tf.where((detections["class_ids"] >= 0)[..., None, None], maps, 0.0)}

    def has_targets(self, dataset: "Dataset") -> bool:
        """Tells whether a dataset was read with masks.

        Args:
            dataset: A dataset for training or evaluation.

        Returns:
            True if its records hold the run lengths of masks.
        """
        return dataset.records[0].num_runs is not None


def _of_class(logits, class_ids):
    """Selects from `logits` (N, S, S, K) the map of each region's class in `class_ids` (N,): (N, S, S)."""
    return tf.gather(tf.transpose(logits, [0, 3, 1, 2]), tf.maximum(class_ids, 0), batch_dims=1)
