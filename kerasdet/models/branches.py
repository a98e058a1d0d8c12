"""Defines branches, which predict masks, keypoints or other outputs for each region of an R-CNN.

`RoIHeads` pools features of each region, runs the branches on them and asks each branch for everything else. A new
branch is one subclass of `Branch` in one file. It defines

- attributes: `target_key`, `loss_names`, `output_names`, `metric`, `rescaling`, `export_names`;
- the network: `build` and `call`;
- training: `compute_targets` and `compute_losses`;
- inference: `select_class_maps`, `hflip` and `postprocess`;
- data: `check_dataset`, and `learn_names` if it has names to learn.

A branch works in ``RoIHeads(branches=[MyBranch()])`` and is saved with the model. For gin
files, its module also calls ``gin.register``.

The outputs of a branch may have any shape (B, D, ...). `predict`, `detect_batch` and exports return them; `detect` puts
outputs other than ``mask_probs`` and ``keypoints`` into `Detections.extras`. The verification of an export compares
them: "positions" must agree like keypoints, other outputs in their mean difference.

`Branch` has an example.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry import keypoints as keypoint_ops
from kerasdet.geometry import masks as mask_ops
from kerasdet.geometry.matching import gather_gt
from kerasdet.inference.detections import BranchOutput
from kerasdet.keras_utils import ConfigFromInit, float_dtype, freeze, policy_scope
from kerasdet.layers.region_heads import KeypointHead, MaskHead
from kerasdet.ops.distribute import global_sum

if TYPE_CHECKING:
    from kerasdet.data.pipeline import Dataset


RESCALINGS = ("boxes_relative", "positions")


class Branch(keras.layers.Layer):
    """Base class of all branches; the module's docstring lists what a subclass defines.

    A user makes a branch without classes and channels, because model and neck know these. The model calls `attach`.

    Args:
        pool_size: Side of the features that are pooled for this branch, in cells. None shares the features of the box
            head, which saves one pooling.
        **kwargs: Arguments of `keras.layers.Layer`. Outputs are keyed by `name`, which is unique in a model.

    Attributes:
        target_key: Key of a training batch that holds the ground truth, such as ``"masks"``.
        loss_names: Keys that `compute_losses` returns.
        output_names: Keys that `postprocess` adds to detections.
        metric: COCO's ``iouType`` that measures the outputs: ``"segm"``, ``"keypoints"``, or None if none does.
        rescaling: How outputs follow an image that is resized, one of `RESCALINGS`. ``"boxes_relative"`` outputs, such
            as maps inside the boxes or numbers, do not change; ``"positions"`` outputs are (B, D, ..., 3) with
            (y, x, score), whose y and x scale.
        export_names: Output name -> its name in exports. The default is ``detection_`` and the output's name.
        convention: Source framework whose reading of the outputs the branch follows, or None if all agree.
        skeleton: Pairs of point indices that pictures join by a line.
        norm: Norm of the branch's convolutions, a name in `kerasdet.layers.norm.NORMS`, or None.
        map_size: Side of the maps that `call` returns, if it returns maps; `build` sets it.

    Example:
        A branch that predicts one number for each region, from ``difficulty`` (B, M) in the batch::

            import keras
            import tensorflow as tf
            import kerasdet
            from kerasdet.geometry.matching import gather_gt
            from kerasdet.keras_utils import ConfigFromInit, float_dtype
            from kerasdet.models import Branch, RoIHeads
            from kerasdet.ops.distribute import global_sum

            @keras.saving.register_keras_serializable(package="my_package")
            class DifficultyBranch(ConfigFromInit, Branch):
                target_key = "difficulty"
                loss_names = ("difficulty_loss",)
                output_names = ("difficulty",)

                def __init__(self, *, loss_weight=1.0, **kwargs):
                    super().__init__(**{"name": "difficulty_branch", **kwargs})
                    self.loss_weight = loss_weight

                def build(self, input_shape):  # (N, S, S, C)
                    self.dense = keras.layers.Dense(1, name="dense")
                    self.dense.build((None, input_shape[-1]))

                def call(self, pooled, training=False):
                    return self.dense(tf.reduce_mean(pooled, [1, 2]))  # (N, 1)

                def compute_targets(self, rois, matched_gt, batch):
                    return {"difficulty": gather_gt(batch["difficulty"], matched_gt)}  # (B, P)

                def compute_losses(self, logits, targets, positive):
                    weights = tf.cast(positive, float_dtype())  # (B, P)
                    logits = tf.cast(tf.reshape(logits, tf.shape(weights)), float_dtype())
                    error = tf.abs(logits - tf.cast(targets["difficulty"], float_dtype()))
                    count = tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)  # on all replicas
                    return {"difficulty_loss": self.loss_weight * tf.reduce_sum(error * weights) / count}

                def select_class_maps(self, logits, class_ids):
                    return tf.reshape(tf.cast(logits, float_dtype()), tf.shape(class_ids))  # (B, D)

                def postprocess(self, maps, detections):
                    return {"difficulty": tf.where(detections["class_ids"] >= 0, maps, 0.0)}

            model = kerasdet.FasterRCNN(3, roi_heads=RoIHeads(branches=[DifficultyBranch()]))
    """

    target_key: str
    loss_names: tuple[str, ...]
    output_names: tuple[str, ...]
    metric: str | None = None
    rescaling: str = "boxes_relative"
    export_names: Mapping[str, str] = {}
    convention: str | None = None
    skeleton: tuple[tuple[int, int], ...] = ()
    norm: str | None = None
    _how_to_read_targets = (
        "read them into the records of the dataset (CONTRIBUTING.md, 'Add a branch to R-CNNs'), or train with `fit` on "
        "batches that have them"
    )

    def __init__(self, *, pool_size: int | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # boxes and targets stay float32 under every policy
        self.pool_size = pool_size

    def attach(self, *, num_classes: int, channels: int, pool_size: int) -> None:
        """Creates the layers and variables, unless they exist.

        Args:
            num_classes: K, number of classes without background.
            channels: Channels of the pooled features.
            pool_size: Side of the box head's pooled features, for branches that share them.

        Raises:
            UserError: If the branch belongs to a model with another number of classes.
        """
        if self.built:
            if self.num_classes != num_classes:
                raise UserError(
                    f"This {type(self).__name__} belongs to a model with {self.num_classes} classes and cannot serve "
                    f"one with {num_classes}: make a new {type(self).__name__} for each model."
                )
            return
        self.num_classes = num_classes
        size = self.pool_size or pool_size
        with policy_scope(self.dtype_policy):
            self.build((None, size, size, channels))
        if not self.trainable:
            freeze(self)

    def get_build_config(self) -> None:
        """Returns None: Keras must not build a loaded branch before its model attaches it."""
        return None

    @property
    def outputs(self) -> dict[str, BranchOutput]:
        """Output name -> its name in exports and its rescaling."""
        return {
            name: BranchOutput(self.export_names.get(name, f"detection_{name}"), self.rescaling)
            for name in self.output_names
        }

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether outputs in training depend on which other regions are in the batch."""
        return self.norm in ("bn", "sync_bn")

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Computes the targets of the branch for sampled regions.

        Args:
            rois: (B, P, 4).
            matched_gt: (B, P) int32, a region's index into the ground truth; negative for regions without an object.
            batch: Ground truth with ``boxes`` (B, M, 4), ``class_ids`` (B, M) and `target_key`.

        Returns:
            Targets for `compute_losses`, each (B, P, ...).
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_targets.")

    def compute_losses(
        self, logits: tf.Tensor, targets: Mapping[str, tf.Tensor], positive: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the losses, on positive regions only.

        Args:
            logits: (B * P, ...) result of `call`.
            targets: Result of `compute_targets`.
            positive: (B, P) bool, which regions have an object.

        Returns:
            A scalar for each of `loss_names`, averaged over all replicas.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_losses.")

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Selects the maps, or other predictions, of the detected classes.

        Args:
            logits: (B * D, ...) result of `call`; maps are (B * D, S, S, ...).
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            (B, D, ...), and (B, D, S, S, ...) for maps. Test-time augmentation averages them over views of an image.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select_class_maps.")

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """Turns maps of a mirrored image into maps of the image itself.

        Override it if predictions that are not maps also tell left from right.

        Args:
            maps: Result of `select_class_maps`. Maps are (B, D, S, S, ...).

        Returns:
            The maps with their columns reversed. Predictions with fewer than two axes after (B, D), such as a number
            for each region, return unchanged.
        """
        return tf.reverse(maps, [3]) if maps.shape.rank > 3 else maps

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes the outputs of detections.

        Args:
            maps: (B, D, ...) result of `select_class_maps`.
            detections: ``boxes`` (B, D, 4) and ``class_ids`` (B, D), -1 for padding.

        Returns:
            `output_names`, each (B, D, ...), zero for padding.
        """
        raise NotImplementedError(f"{type(self).__name__} must define postprocess.")

    def has_targets(self, dataset: "Dataset") -> bool:
        """Returns whether a dataset was read with the ground truth of this branch."""
        return getattr(dataset.records[0], self.target_key, None) is not None

    def check_dataset(self, dataset: "Dataset") -> None:
        """Checks that the branch can learn from a dataset.

        Raises:
            UserError: If the dataset lacks the ground truth of this branch.
        """
        if not self.has_targets(dataset):
            raise UserError(
                f"The model's {type(self).__name__} learns {self.target_key}, and {dataset.annotations} was read "
                f"without them: {self._how_to_read_targets}."
            )

    def learn_names(self, dataset: "Dataset") -> None:
        """Copies names, such as keypoint names, from the training dataset to the branch; does nothing by default.

        Args:
            dataset: The training dataset.
        """


@keras.saving.register_keras_serializable(package="kerasdet")
class MaskBranch(ConfigFromInit, Branch):
    """Predicts an instance mask for each region (Mask R-CNN, https://arxiv.org/abs/1703.06870).

    Args:
        pool_size: Side of the pooled features, in cells; masks are twice as large. None shares the features of the box
            head.
        num_convs: 3x3 convolutions of the head.
        channels: Channels of the head's convolutions.
        norm: Norm of the head's convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        convention: Framework that the branch follows when it pastes masks and crops targets: "detectron2" or
            "torchvision".
        loss_weight: Factor of the loss.
    """

    target_key = "masks"
    loss_names = ("mask_loss",)
    output_names = ("mask_probs",)
    metric = "segm"
    rescaling = "boxes_relative"
    export_names = {"mask_probs": "detection_masks"}  # noqa: RUF012
    _how_to_read_targets = "set CocoDataset.masks=True (masks=True); Pascal VOC has none"

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
        self.num_convs = num_convs
        self.channels = channels
        self.norm = norm
        self.convention = convention
        self.loss_weight = loss_weight

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the head for pooled features of shape (N, h, h, C); only `attach` calls this."""
        self.head = MaskHead(self.num_classes, self.num_convs, self.channels, norm=self.norm, name="head")
        self.head.build(input_shape)
        self.map_size = 2 * input_shape[1]

    def call(self, pooled: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns mask logits (N, S, S, K) of pooled features (N, S / 2, S / 2, C)."""
        return self.head(pooled, training=training)

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Crops the ground truth to each region; see `Branch.compute_targets` for the arguments.

        Returns:
            ``masks`` (B, P, S, S) in [0, 1] and ``class_ids`` (B, P).

        Raises:
            ValueError: If the ground truth has floats.
        """
        masks = tf.convert_to_tensor(batch["masks"])
        if masks.dtype.is_floating:
            raise ValueError(
                f"batch['masks'] is {masks.dtype.name}: give bool, or uint8 with each cell's covered share times 255."
            )
        if masks.dtype.is_bool:
            masks = tf.cast(masks, tf.uint8) * 255
        masks = mask_ops.crop_masks_for_rois(
            tf.pad(masks, [[0, 0], [0, 1], [0, 0], [0, 0]]),  # one row that nothing matches: M may be 0
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

        See `Branch.compute_losses` for the arguments.

        Returns:
            ``mask_loss``, ().
        """
        weights = tf.cast(tf.reshape(positive, [-1]), float_dtype())  # (N,)
        logits = _of_class(logits, tf.reshape(targets["class_ids"], [-1]))  # (N, S, S)
        masks = tf.reshape(targets["masks"], tf.shape(logits))
        loss = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(masks, float_dtype()), logits)
        loss = tf.reduce_sum(tf.reduce_mean(loss, [1, 2]) * weights)
        return {"mask_loss": self.loss_weight * loss / tf.maximum(global_sum(tf.reduce_sum(weights)), 1.0)}

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Returns mask probabilities (B, D, S, S) of logits (B * D, S, S, K) for the classes (B, D)."""
        probs = tf.sigmoid(_of_class(logits, tf.reshape(class_ids, [-1])))
        return tf.reshape(probs, tf.concat([tf.shape(class_ids), tf.shape(probs)[1:]], 0))

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns ``mask_probs`` (B, D, S, S), probabilities inside the boxes of `detections`."""
        return {"mask_probs": tf.where((detections["class_ids"] >= 0)[..., None, None], maps, 0.0)}

    def has_targets(self, dataset: "Dataset") -> bool:
        """Returns whether a dataset was read with masks, which its records hold as run lengths."""
        return dataset.records[0].num_runs is not None


def _of_class(logits, class_ids):
    """Selects the maps (N, S, S) of one class each; logits (N, S, S, K), class_ids (N,)."""
    return tf.gather(tf.transpose(logits, [0, 3, 1, 2]), tf.maximum(class_ids, 0), batch_dims=1)


@keras.saving.register_keras_serializable(package="kerasdet")
class KeypointBranch(ConfigFromInit, Branch):
    """Predicts a heatmap for each keypoint of a region (Mask R-CNN, https://arxiv.org/abs/1703.06870, section 5).

    Args:
        num_keypoints: J, number of keypoints of an object.
        pool_size: Side of the pooled features, in cells; heatmaps are four times as large. None shares the features of
            the box head.
        num_convs: 3x3 convolutions of the head.
        channels: Channels of the head's convolutions.
        convention: Framework that the branch follows when it scores a keypoint: "detectron2" or "torchvision".
        loss_weight: Factor of the loss.
        keypoint_names: J names; "left" and "right" in a name mark its side. If J is 17, the default names are those of
            a person in COCO. Training sets them from the dataset.
        skeleton: Pairs of keypoint indices from 0 that drawings connect by a line. If J is 17, the default is COCO's.
            Training sets them from the dataset.

    Raises:
        UserError: If the number of names is not the number of keypoints.
    """

    target_key = "keypoints"
    loss_names = ("keypoint_loss",)
    output_names = ("keypoints",)
    metric = "keypoints"
    rescaling = "positions"
    export_names = {"keypoints": "detection_keypoints"}  # noqa: RUF012
    _how_to_read_targets = "set CocoDataset.keypoints=True (keypoints=True); Pascal VOC has none"

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
        if num_keypoints == len(keypoint_ops.PERSON_KEYPOINTS):
            keypoint_names = keypoint_ops.PERSON_KEYPOINTS if keypoint_names is None else keypoint_names
            skeleton = keypoint_ops.PERSON_SKELETON if skeleton is None else skeleton
        if keypoint_names and len(keypoint_names) != num_keypoints:
            raise UserError(
                f"There are {num_keypoints} keypoints and {len(keypoint_names)} keypoint_names: give one name for each "
                "keypoint."
            )
        self.num_keypoints = num_keypoints
        self.num_convs = num_convs
        self.channels = channels
        self.convention = convention
        self.loss_weight = loss_weight
        self.keypoint_names = tuple(keypoint_names or ())
        self.skeleton = tuple(tuple(bone) for bone in skeleton or ())

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the head for pooled features of shape (N, h, h, C); only `attach` calls this."""
        self.head = KeypointHead(self.num_keypoints, self.num_convs, self.channels, name="head")
        self.head.build(input_shape)
        self.map_size = 4 * input_shape[1]

    def call(self, pooled: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns heatmap logits (N, S, S, J) of pooled features (N, S / 4, S / 4, C)."""
        return self.head(pooled)

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Finds the heatmap cell of each keypoint; see `Branch.compute_targets` for the arguments.

        Returns:
            ``cells`` (B, P, J), index into the S * S cells, and ``visible`` (B, P, J) bool, which cells have a loss.
        """
        cells, visible = keypoint_ops.heatmap_targets(
            gather_gt(batch["keypoints"], matched_gt), rois, size=self.map_size
        )
        return {"cells": cells, "visible": visible}

    def compute_losses(
        self, logits: tf.Tensor, targets: Mapping[str, tf.Tensor], positive: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the cross entropy over the cells of each heatmap, averaged over visible keypoints.

        See `Branch.compute_losses` for the arguments.

        Returns:
            ``keypoint_loss``, ().
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
        """Returns heatmaps (B, D, S, S, J) of logits (B * D, S, S, J); all classes share them."""
        return tf.reshape(logits, tf.concat([tf.shape(class_ids), tf.shape(logits)[1:]], 0))

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """Turns heatmaps of a mirrored image (B, D, S, S, J) into those of the image itself: left becomes right.

        Raises:
            UserError: If there are no `keypoint_names` to tell left from right.
        """
        if not self.keypoint_names:
            raise UserError(
                f"The {self.num_keypoints} keypoints have no names, by which a mirror image tells left from right: "
                "give KeypointBranch keypoint_names."
            )
        return tf.gather(super().hflip(maps), keypoint_ops.flip_order(self.keypoint_names), axis=4)

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns ``keypoints`` (B, D, J, 3) as (y, x, score), in the coordinates of the boxes of `detections`."""
        keypoints = keypoint_ops.keypoints_from_heatmaps(maps, detections["boxes"], convention=self.convention)
        return {"keypoints": tf.where((detections["class_ids"] >= 0)[..., None, None], keypoints, 0.0)}

    def check_dataset(self, dataset: "Dataset") -> None:
        """Checks that a dataset has as many keypoints as the branch.

        Raises:
            UserError: If it has another number, or was read without keypoints.
        """
        super().check_dataset(dataset)
        if self.num_keypoints != len(dataset.keypoint_names):
            raise UserError(
                f"The model has {self.num_keypoints} keypoints and {dataset.annotations} has "
                f"{len(dataset.keypoint_names)}: set KeypointBranch.num_keypoints to {len(dataset.keypoint_names)}."
            )

    def learn_names(self, dataset: "Dataset") -> None:
        """Copies the names of the keypoints and the skeleton from a dataset."""
        self.keypoint_names, self.skeleton = dataset.keypoint_names, dataset.skeleton
