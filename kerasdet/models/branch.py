"""Defines branches, which predict masks, keypoints or other outputs for each region of an R-CNN.

`RoIHeads` pools features of each region and runs the branches on them. Each branch computes its own targets, losses and
outputs. A new branch is one subclass of `Branch` in one file. If its ground truth consists of numbers, the argument
`extra_annotation_keys` of a dataset reads it. A branch defines:

- attributes: `target_key`, `loss_names`, `output_names`, `metric`, `rescaling`, `export_names`;
- the network: `build` and `call`;
- training: `compute_targets` and `compute_losses`;
- inference: `select_class_maps`, `hflip` and `postprocess`;
- data: `check_dataset`, and `learn_names` if the branch takes names from the dataset.

Pass a branch as ``RoIHeads(branches=[MyBranch()])``; it is saved with the model. To use it in gin files, decorate the
class with ``gin.register``.

The outputs of a branch may have any shape (B, D, ...). `predict`, `detect_batch` and exports return them; `detect` puts
outputs other than ``mask_probs`` and ``keypoints`` into `Detections.extras`. The verification of an export compares
outputs whose rescaling is "positions" by the tolerance of keypoints, and others by their mean difference.

The docstring of `Branch` has an example. `mask_branch` and `keypoint_branch` define the branches of Mask R-CNN and
Keypoint R-CNN.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.inference.padded import BranchOutput
from kerasdet.keras_utils import freeze, policy_scope

if TYPE_CHECKING:
    from kerasdet.data.pipeline import Dataset


RESCALINGS = ("boxes_relative", "positions", "swapped_boxes")


class Branch(keras.layers.Layer):
    """Base class of all branches; `kerasdet.models.branch` lists what a subclass defines.

    The constructor of a branch does not take the numbers of classes and channels: the model passes these to `attach`,
    which creates the layers.

    Args:
        pool_size: Height and width, in cells, of the features that are pooled for this branch. None: as for the box
            head, whose pooled features the branch then reuses in training, which saves time.
        **kwargs: Arguments of `keras.layers.Layer`. Outputs are keyed by `name`, which must be unique in a model.

    Attributes:
        num_classes: K, number of classes without background. `attach` sets it before it calls `build`; the number of
            channels is the last entry of `input_shape`.
        target_key: Key of a training batch that holds the ground truth, such as ``"masks"``.
        loss_names: Keys that `compute_losses` returns.
        output_names: Keys that `postprocess` adds to detections.
        metric: ``iouType`` with which COCO's evaluation measures the outputs: ``"segm"`` or ``"keypoints"``. None: the
            outputs are not evaluated.
        rescaling: How outputs change when the image is resized, one of `RESCALINGS`. ``"boxes_relative"`` outputs, such
            as masks inside the boxes or scalars, do not change. ``"positions"`` outputs are (B, D, ..., 3) as (y, x,
            score), and y and x scale with the image. ``"swapped_boxes"`` is for the mask boxes of RTMDet-Ins; see
            `kerasdet.inference.padded.BranchOutput`.
        export_names: Maps the name of an output to its name in exports. By default that is ``detection_`` and the
            output's name.
        convention: Source framework whose way of decoding the outputs the branch follows, such as "detectron2", or None
            if the frameworks agree.
        skeleton: Pairs of keypoint indices, from 0, that drawings connect by a line.
        norm: Norm of the branch's convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        map_size: S, height and width of the maps that `call` returns, in cells. `build` sets it in branches with maps.

    Example:
        A branch that predicts one value for each region; the batch holds the ground truth ``difficulty`` (B, M)::

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
        "add this key to extra_annotation_keys of the dataset if its annotations hold numbers under it, or train with "
        "`fit` on batches that contain the key (CONTRIBUTING.md, 'Add a branch to R-CNNs')"
    )

    def __init__(self, *, pool_size: int | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # boxes and targets stay float32 under every Keras precision policy
        self.pool_size = pool_size

    def attach(self, *, num_classes: int, channels: int, pool_size: int) -> None:
        """Creates the layers and variables, unless they exist, and freezes them if the branch is not trainable.

        Args:
            num_classes: K, number of classes without background.
            channels: Number of channels of the pooled features.
            pool_size: Height and width, in cells, of the box head's pooled features. The branch uses it only if its own
                attribute `pool_size` is None.

        Raises:
            UserError: If the branch belongs to a model with another number of classes.
        """
        if self.built:
            if self.num_classes != num_classes:
                raise UserError(
                    f"This {type(self).__name__} belongs to a model with {self.num_classes} classes; the new model has "
                    f"{num_classes}. Make a new {type(self).__name__} for each model."
                )
            return
        self.num_classes = num_classes
        size = self.pool_size or pool_size
        with policy_scope(self.dtype_policy):
            self.build((None, size, size, channels))
        if not self.trainable:
            freeze(self)

    def get_build_config(self) -> None:
        """Returns None: Keras must not build the branch on loading, because `attach` builds it."""
        return None

    @property
    def outputs(self) -> dict[str, BranchOutput]:
        """Maps the name of each output to a `BranchOutput`, which holds its name in exports and its rescaling."""
        return {
            name: BranchOutput(self.export_names.get(name, f"detection_{name}"), self.rescaling)
            for name in self.output_names
        }

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether the branch has batch norms, which make a region's output in training depend on the other regions."""
        return self.norm in ("bn", "sync_bn")

    def check_batch(self, batch: Mapping[str, tf.Tensor]) -> None:
        """Checks that a training batch has the ground truth of this branch.

        Args:
            batch: Training batch, a dict of tensors.

        Raises:
            UserError: If the batch lacks `target_key`.
        """
        if self.target_key not in batch:
            raise UserError(
                f"The training batch lacks '{self.target_key}', the ground truth of the {type(self).__name__}: it has "
                f"{', '.join(batch)}. Add '{self.target_key}' to the batch, or remove the branch from the model."
            )

    def compute_targets(
        self, rois: tf.Tensor, matched_gt: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Computes the targets of the branch for sampled regions.

        Args:
            rois: (B, P, 4) yxyx in pixels of the network's input: sampled regions, the positive ones of an image first.
            matched_gt: (B, P) int32, the index of each region's object in the ground truth; negative for regions
                without an object.
            batch: Training batch with ``boxes`` (B, M, 4) yxyx in pixels, ``class_ids`` (B, M), ``image_size`` (B, 2),
                heights and widths without padding in pixels, and the key `target_key`.

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
            A dict with a scalar for each of `loss_names`, normalised over all replicas (for example by their number of
            positives).
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_losses.")

    def select_class_maps(self, logits: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
        """Selects the predictions of the detected classes, such as the mask of the detected class out of K masks.

        Args:
            logits: (B * D, ...) result of `call`. Maps, such as masks, are (B * D, S, S, ...).
            class_ids: (B, D) int32, -1 for padding.

        Returns:
            The selected predictions, (B, D, ...), or (B, D, S, S, ...) for maps. Test-time augmentation averages them
            over views of an image.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select_class_maps.")

    def hflip(self, maps: tf.Tensor) -> tf.Tensor:
        """Converts predictions for a mirrored image to predictions for the image itself, by reversing their columns.

        Override this method if the branch has other predictions that distinguish left from right.

        Args:
            maps: Result of `select_class_maps`. Maps are (B, D, S, S, ...).

        Returns:
            The maps with their columns reversed. Predictions with fewer than two axes after (B, D), such as one scalar
            per region, are unchanged.
        """
        return tf.reverse(maps, [3]) if maps.shape.rank > 3 else maps

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Computes the branch's outputs for detected objects.

        Args:
            maps: (B, D, ...) result of `select_class_maps`.
            detections: ``boxes`` (B, D, 4) yxyx in pixels and ``class_ids`` (B, D), -1 for padding.

        Returns:
            A dict with a tensor (B, D, ...) for each of `output_names`, zero for padding.
        """
        raise NotImplementedError(f"{type(self).__name__} must define postprocess.")

    def has_targets(self, dataset: "Dataset") -> bool:
        """Tells whether a dataset was read with the ground truth of this branch.

        Args:
            dataset: A dataset for training or evaluation.

        Returns:
            True if the records of the dataset, or their extra annotation keys, contain `target_key`.
        """
        is_extra = self.target_key in getattr(dataset, "extra_shapes", {})
        return is_extra or getattr(dataset.records[0], self.target_key, None) is not None

    def check_dataset(self, dataset: "Dataset") -> None:
        """Checks that the branch can learn from a dataset.

        Args:
            dataset: The training dataset.

        Raises:
            UserError: If the dataset lacks the ground truth of this branch.
        """
        if not self.has_targets(dataset):
            raise UserError(
                f"The model's {type(self).__name__} learns {self.target_key}, but {dataset.annotations} was read "
                f"without {self.target_key}: {self._how_to_read_targets}."
            )

    def learn_names(self, dataset: "Dataset") -> None:
        """Copies names, such as keypoint names, from the training dataset to the branch; does nothing by default.

        Args:
            dataset: The training dataset.
        """
