"""What R-CNNs predict about a region beside its class and box: branches that `FasterRCNN` can carry.

A branch pools features of its own or shares those of the box head, and has losses on positive regions only.
"""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import masks as mask_ops
from kerasdet.geometry.matching import gather_gt
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.roi_heads import KeypointHead, MaskHead
from kerasdet.ops.distribute import global_sum


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskBranch(ConfigFromInit, keras.layers.Layer):
    """Instance masks (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    Args:
        num_classes: K.
        pool_size: Of the features pooled for this branch; None takes those of the box head. Masks are twice as large.
        num_convs: Of the head.
        channels: Of the head.
        norm: Of the head's convolutions, a name of `kerasdet.layers.norm.NORMS`, or None.
        convention: How masks are pasted and targets cropped: "detectron2" or "torchvision".
        loss_weight: Factor of the loss.
    """

    target_key = "masks"  # entry of a batch that the branch learns from
    loss_names = ("mask_loss",)
    output_names = ("mask_probs",)
    metric = "segm"

    def __init__(
        self,
        num_classes: int,
        *,
        pool_size: int | None = 14,
        num_convs: int = 4,
        channels: int = 256,
        norm: str | None = None,
        convention: str = "detectron2",
        loss_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, "name": "mask_branch", **kwargs})
        mask_ops.check_convention(convention)
        self.num_classes = num_classes
        self.pool_size = pool_size
        self.num_convs = num_convs
        self.channels = channels
        self.norm = norm
        self.convention = convention
        self.loss_weight = loss_weight

    def learn_names(self, dataset) -> None:
        """Takes no names: masks have none."""

    def check_dataset(self, dataset) -> None:
        """Checks that a dataset was read with masks.

        Raises:
            UserError: If it was not.
        """
        if dataset.records[0].num_runs is None:
            raise UserError(
                f"The model learns masks, and {dataset.annotations} was read without them: set CocoDataset.masks=True "
                "(masks=True); Pascal VOC has none."
            )

    def build(self, input_shape):
        self.head = MaskHead(self.num_classes, self.num_convs, self.channels, norm=self.norm, name="head")
        self.head.build(input_shape)
        self.mask_size = 2 * input_shape[1]

    def call(self, pooled, training=False):
        """Mask logits (N, S, S, K) of pooled features (N, S / 2, S / 2, C)."""
        return self.head(pooled, training=training)

    def compute_targets(self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping) -> dict[str, tf.Tensor]:
        """``masks`` (B, P, S, S), the ground truth in the frame of each region, and ``class_ids`` (B, P)."""
        masks = tf.convert_to_tensor(batch["masks"])
        if masks.dtype.is_floating:
            raise ValueError("masks are floats: give uint8, the covered share of each cell times 255, or bool.")
        if masks.dtype.is_bool:
            masks = tf.cast(masks, tf.uint8) * 255
        masks = mask_ops.crop_masks_for_rois(
            tf.pad(masks, [[0, 0], [0, 1], [0, 0], [0, 0]]),  # one row that nothing matches: M may be 0
            tf.pad(batch["boxes"], [[0, 0], [0, 1], [0, 0]]),
            rois,
            matched_gt,
            size=self.mask_size,
            convention=self.convention,
            image_size=batch["image_size"],
        )
        return {"masks": masks, "class_ids": gather_gt(batch["class_ids"], matched_gt)}

    def compute_losses(self, logits: tf.Tensor, targets: Mapping, positive: tf.Tensor) -> dict[str, tf.Tensor]:
        """``mask_loss``: cross entropy of the true class's mask, averaged over pixels of positive regions.

        Args:
            logits: (B * P, S, S, K).
            targets: Of `compute_targets`.
            positive: (B, P) bool.
        """
        weights = tf.cast(tf.reshape(positive, [-1]), float_dtype())  # (N,)
        logits = _of_class(logits, tf.reshape(targets["class_ids"], [-1]))  # (N, S, S)
        masks = tf.reshape(targets["masks"], tf.shape(logits))
        loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(masks, float_dtype()), logits)
        loss = tf.reduce_sum(tf.reduce_mean(loss, [1, 2]) * weights)
        return {"mask_loss": self.loss_weight * loss / tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)}

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Masks as probabilities (B, D, S, S) of logits (B * D, S, S, K); class_ids (B, D)."""
        probs = tf.sigmoid(_of_class(logits, tf.reshape(class_ids, [-1])))
        return tf.reshape(probs, tf.concat([tf.shape(class_ids), tf.shape(probs)[1:]], 0))

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """The maps of mirrored regions, (B, D, S, S), as those of the regions themselves."""
        return tf.reverse(maps, [3])

    def postprocess(self, maps: tf.Tensor, detections: Mapping) -> dict[str, tf.Tensor]:
        """``mask_probs`` (B, D, S, S) inside the boxes of `detections`."""
        return {"mask_probs": tf.where((detections["class_ids"] >= 0)[..., None, None], maps, 0.0)}


def _of_class(logits, class_ids):
    """The maps (N, S, S) of one class each; logits (N, S, S, K), class_ids (N,)."""
    return tf.gather(tf.transpose(logits, [0, 3, 1, 2]), tf.maximum(class_ids, 0), batch_dims=1)


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointBranch(ConfigFromInit, keras.layers.Layer):
    """Keypoints as heatmaps (Mask R-CNN, section 5).

    Args:
        num_keypoints: J.
        pool_size: Of the features pooled for this branch; None takes those of the box head. Heatmaps are four times
            as large.
        num_convs: Of the head.
        channels: Of the head.
        convention: How a keypoint is read off its heatmap: "detectron2" or "torchvision".
        loss_weight: Factor of the loss.
        keypoint_names: J names, in which "left" and "right" are sides; by default those of a COCO person where J is 17.
            Training sets them from the data.
        skeleton: Pairs of indices from 0 to be joined in pictures, likewise.

    Raises:
        ValueError: If there are not as many names as keypoints.
    """

    target_key = "keypoints"
    loss_names = ("keypoint_loss",)
    output_names = ("keypoints",)
    metric = "keypoints"

    def __init__(
        self,
        num_keypoints: int = 17,
        *,
        pool_size: int | None = 14,
        num_convs: int = 8,
        channels: int = 512,
        convention: str = "detectron2",
        loss_weight: float = 1.0,
        keypoint_names: Sequence[str] | None = None,
        skeleton: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, "name": "keypoint_branch", **kwargs})
        keypoint_ops.check_convention(convention)
        if num_keypoints == len(keypoint_ops.PERSON_KEYPOINTS):
            keypoint_names = keypoint_ops.PERSON_KEYPOINTS if keypoint_names is None else keypoint_names
            skeleton = keypoint_ops.PERSON_SKELETON if skeleton is None else skeleton
        if keypoint_names and len(keypoint_names) != num_keypoints:
            raise ValueError(f"There are {num_keypoints} keypoints and {len(keypoint_names)} keypoint_names.")
        self.keypoint_names = tuple(keypoint_names or ())
        self.skeleton = tuple(tuple(bone) for bone in skeleton or ())
        self.num_keypoints = num_keypoints
        self.pool_size = pool_size
        self.num_convs = num_convs
        self.channels = channels
        self.convention = convention
        self.loss_weight = loss_weight

    def learn_names(self, dataset) -> None:
        """Takes the dataset's keypoint names and skeleton."""
        self.keypoint_names, self.skeleton = dataset.keypoint_names, dataset.skeleton

    def check_dataset(self, dataset) -> None:
        """Checks that a dataset was read with as many keypoints as the branch predicts.

        Raises:
            UserError: If it was not.
        """
        if dataset.records[0].keypoints is None:
            raise UserError(
                f"The model learns keypoints, and {dataset.annotations} was read without them: set "
                "CocoDataset.keypoints=True (keypoints=True); Pascal VOC has none."
            )
        if self.num_keypoints != len(dataset.keypoint_names):
            raise UserError(
                f"The model has {self.num_keypoints} keypoints and {dataset.annotations} has "
                f"{len(dataset.keypoint_names)}: set KeypointBranch.num_keypoints to {len(dataset.keypoint_names)}."
            )

    def build(self, input_shape):
        self.head = KeypointHead(self.num_keypoints, self.num_convs, self.channels, name="head")
        self.head.build(input_shape)
        self.heatmap_size = 4 * input_shape[1]

    def call(self, pooled, training=False):
        """Heatmap logits (N, S, S, J) of pooled features (N, S / 4, S / 4, C)."""
        return self.head(pooled)

    def compute_targets(self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping) -> dict[str, tf.Tensor]:
        """``cells`` (B, P, J), the index of the heatmap's cell, and ``visible`` (B, P, J): what has a loss."""
        cells, visible = keypoint_ops.heatmap_targets(
            gather_gt(batch["keypoints"], matched_gt), rois, size=self.heatmap_size
        )
        return {"cells": cells, "visible": visible}

    def compute_losses(self, logits: tf.Tensor, targets: Mapping, positive: tf.Tensor) -> dict[str, tf.Tensor]:
        """``keypoint_loss``: cross entropy over the cells of a heatmap, averaged over visible keypoints.

        Args:
            logits: (B * P, S, S, J).
            targets: Of `compute_targets`.
            positive: (B, P) bool.
        """
        cells = tf.reshape(targets["cells"], [-1, self.num_keypoints])  # (N, J)
        weights = tf.cast(targets["visible"] & positive[..., None], float_dtype())
        weights = tf.reshape(weights, tf.shape(cells))
        maps = tf.reshape(tf.transpose(logits, [0, 3, 1, 2]), [-1, self.num_keypoints, self.heatmap_size**2])
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(cells, maps) * weights
        return {
            "keypoint_loss": self.loss_weight
            * tf.reduce_sum(loss)
            / tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)
        }

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Heatmaps (B, D, S, S, J) of logits (B * D, S, S, J); class_ids (B, D)."""
        return tf.reshape(logits, tf.concat([tf.shape(class_ids), tf.shape(logits)[1:]], 0))

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """The maps of mirrored regions, (B, D, S, S, J), as those of the regions themselves: left becomes right.

        Raises:
            ValueError: If there are no `keypoint_names` to tell left from right.
        """
        if not self.keypoint_names:
            raise ValueError(
                f"The {self.num_keypoints} keypoints have no names, by which a mirror image tells left from right: "
                "give KeypointBranch keypoint_names."
            )
        return tf.gather(tf.reverse(maps, [3]), keypoint_ops.flip_order(self.keypoint_names), axis=4)

    def postprocess(self, maps: tf.Tensor, detections: Mapping) -> dict[str, tf.Tensor]:
        """``keypoints`` (B, D, J, 3) as (y, x, score), in the coordinates of `detections`."""
        keypoints = keypoint_ops.keypoints_from_heatmaps(maps, detections["boxes"], convention=self.convention)
        return {"keypoints": tf.where((detections["class_ids"] >= 0)[..., None, None], keypoints, 0.0)}
