"""Defines the branch that predicts keypoints of each region."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers, check_positive
from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry.matching import gather_gt
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers.region_heads import KeypointHead
from kerasdet.models.branch import Branch
from kerasdet.ops.distribute import global_sum

if TYPE_CHECKING:
    from kerasdet.data.pipeline import Dataset


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointBranch(ConfigFromInit, Branch):
    """Predicts a heatmap for each keypoint of a region (Mask R-CNN, https://arxiv.org/abs/1703.06870, section 5).

    Args:
        num_keypoints: J, number of keypoints of an object.
        pool_size: Side of the pooled features, in cells; heatmaps have S = 4 * pool_size cells a side. None: as for the
            box head, whose pooled features the branch then reuses in training.
        num_convs: Number of 3x3 convolutions of the head.
        channels: Number of channels of the head's convolutions.
        convention: Source framework that defines a keypoint's score: "detectron2" (probability) or "torchvision"
            (logit).
        loss_weight: Factor of the loss.
        keypoint_names: J names; "left" or "right" in a name states the side of the keypoint. None: the names of a
            person in COCO if J is 17, else no names. Training sets them from the dataset.
        skeleton: Pairs of keypoint indices from 0 that drawings connect by a line. None: COCO's skeleton of a person if
            J is 17, else no lines. Training sets it from the dataset.

    Raises:
        UserError: If the number of names is not `num_keypoints`, or a number is out of its range.
        ValueError: If `convention` is unknown.
    """

    target_key = "keypoints"
    loss_names = ("keypoint_loss",)
    output_names = ("keypoints",)
    metric = "keypoints"
    rescaling = "positions"
    export_names = {"keypoints": "detection_keypoints"}  # noqa: RUF012
    _how_to_read_targets = (
        "set CocoDataset.keypoints=True (Python: keypoints=True); Pascal VOC datasets have no keypoints"
    )

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
        super().__init__(pool_size=pool_size, **{"name": "keypoint_branch", **kwargs})
        keypoint_ops.check_convention(convention)
        check_positive("KeypointBranch", num_keypoints=num_keypoints, channels=channels, pool_size=pool_size)
        check_numbers("KeypointBranch", 0, num_convs=num_convs, loss_weight=loss_weight)
        if num_keypoints == len(keypoint_ops.PERSON_KEYPOINTS):
            keypoint_names = keypoint_ops.PERSON_KEYPOINTS if keypoint_names is None else keypoint_names
            skeleton = keypoint_ops.PERSON_SKELETON if skeleton is None else skeleton
        if keypoint_names and len(keypoint_names) != num_keypoints:
            raise UserError(
                f"KeypointBranch has num_keypoints={num_keypoints} and {len(keypoint_names)} keypoint_names: give one "
                "name for each keypoint."
            )
        self.num_keypoints = num_keypoints
        self.num_convs = num_convs
        self.channels = channels
        self.convention = convention
        self.loss_weight = loss_weight
        self.keypoint_names = tuple(keypoint_names or ())
        self.skeleton = tuple(tuple(bone) for bone in skeleton or ())

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the head for pooled features of shape (N, S / 4, S / 4, C); only `attach` calls this."""
        self.head = KeypointHead(self.num_keypoints, self.num_convs, self.channels, name="head")
        self.head.build(input_shape)
        self.map_size = 4 * input_shape[1]

    def call(self, pooled: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Predicts heatmaps.

        Args:
            pooled: (N, S / 4, S / 4, C) pooled features of N regions.
            training: Ignored: the head has no norms.

        Returns:
            Heatmaps of logits, (N, S, S, J).
        """
        return self.head(pooled)

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Finds the heatmap cell of each keypoint.

        Args:
            rois: (B, P, 4) yxyx in pixels of the network's input: sampled regions, the positive ones of an image first.
            matched_gt: (B, P) int32, the index of each region's object in the ground truth; negative for regions
                without an object.
            batch: Ground truth with ``keypoints`` (B, M, J, 3) as (y, x, visibility), in pixels.

        Returns:
            A dict of ``cells`` (B, P, J) int32, the index of each keypoint's cell in the S x S heatmap, counted row by
            row, and 0 where ``visible`` is false, and ``visible`` (B, P, J) bool, true for keypoints that are labelled
            and inside the region.

        Raises:
            UserError: If the ground truth has another number of keypoints than the branch.
        """
        if batch["keypoints"].shape[2] not in (None, self.num_keypoints):
            raise UserError(
                f"The batch has {batch['keypoints'].shape[2]} keypoints for each object: expected the "
                f"{self.num_keypoints} of the KeypointBranch. Change KeypointBranch.num_keypoints, or the batch."
            )
        cells, visible = keypoint_ops.heatmap_targets(
            gather_gt(batch["keypoints"], matched_gt), rois, size=self.map_size
        )
        return {"cells": cells, "visible": visible}

    def compute_losses(
        self, logits: tf.Tensor, targets: Mapping[str, tf.Tensor], positive: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the cross entropy over heatmap cells, averaged over the visible keypoints of positive regions.

        Args:
            logits: (B * P, S, S, J) result of `call`.
            targets: Result of `compute_targets`.
            positive: (B, P) bool, which regions have an object.

        Returns:
            A dict of the scalar ``keypoint_loss``.
        """
        cells = tf.reshape(targets["cells"], [-1, self.num_keypoints])  # (N, J)
        weights = tf.cast(targets["visible"] & positive[..., None], float_dtype())
        weights = tf.reshape(weights, tf.shape(cells))  # (N, J)
        maps = tf.reshape(
            tf.transpose(logits, [0, 3, 1, 2]), [-1, self.num_keypoints, self.map_size**2]
        )  # (N, J, S * S)
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(cells, maps) * weights)
        return {"keypoint_loss": self.loss_weight * loss / tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)}

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Groups the heatmaps by image; all classes share the same heatmaps.

        Args:
            logits: (B * D, S, S, J) result of `call`.
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            Heatmaps of logits, (B, D, S, S, J).
        """
        return tf.reshape(logits, tf.concat([tf.shape(class_ids), tf.shape(logits)[1:]], 0))

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """Converts heatmaps of a mirrored image to heatmaps of the image itself.

        The columns are reversed, and the heatmaps of left and right keypoints are swapped.

        Args:
            maps: (B, D, S, S, J) heatmaps.

        Returns:
            The heatmaps (B, D, S, S, J) of the image itself.

        Raises:
            UserError: If there are no `keypoint_names` to tell left from right.
        """
        if not self.keypoint_names:
            raise UserError(
                f"The {self.num_keypoints} keypoints have no names, so left and right ones cannot be swapped in a "
                "mirror image: give KeypointBranch keypoint_names such as 'left_eye', or use "
                "kerasdet.inference.AugmentedPredictor(model, hflip=False) instead of --tta."
            )
        return tf.gather(super().hflip(maps), keypoint_ops.flip_order(self.keypoint_names), axis=4)

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Decodes heatmaps into keypoints.

        Args:
            maps: (B, D, S, S, J) result of `select_class_maps`.
            detections: ``boxes`` (B, D, 4) yxyx in pixels and ``class_ids`` (B, D), -1 for padding.

        Returns:
            A dict of ``keypoints`` (B, D, J, 3) as (y, x, score), with y and x in pixels; zero for padding.
        """
        keypoints = keypoint_ops.keypoints_from_heatmaps(maps, detections["boxes"], convention=self.convention)
        return {"keypoints": tf.where((detections["class_ids"] >= 0)[..., None, None], keypoints, 0.0)}

    def check_dataset(self, dataset: "Dataset") -> None:
        """Checks that a dataset has as many keypoints as the branch.

        Args:
            dataset: The training dataset.

        Raises:
            UserError: If the dataset has another number of keypoints, or was read without keypoints.
        """
        super().check_dataset(dataset)
        if self.num_keypoints != len(dataset.keypoint_names):
            raise UserError(
                f"The model has {self.num_keypoints} keypoints, but {dataset.annotations} has "
                f"{len(dataset.keypoint_names)}: set KeypointBranch.num_keypoints to {len(dataset.keypoint_names)}."
            )

    def learn_names(self, dataset: "Dataset") -> None:
        """Copies the names of the keypoints and the skeleton from a dataset.

        Args:
            dataset: The training dataset.
        """
        self.keypoint_names, self.skeleton = dataset.keypoint_names, dataset.skeleton
