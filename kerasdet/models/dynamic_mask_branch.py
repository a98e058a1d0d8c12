"""Defines the mask branch of RTMDet-Ins, in which each point predicts the convolution kernels of its own mask."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.geometry import mask_targets
from kerasdet.geometry.boxes import centers
from kerasdet.geometry.masks import CROP_SIZE
from kerasdet.geometry.matching import gather_gt
from kerasdet.inference.padded import BranchOutput
from kerasdet.keras_utils import ConfigFromInit, float_dtype, freeze, policy_scope
from kerasdet.layers import ConvNorm, Tower, make_norm
from kerasdet.layers.heads import small_normal
from kerasdet.layers.rtmdet_head import LevelPredictors
from kerasdet.losses import dice
from kerasdet.models.branch import Branch
from kerasdet.models.dense import all_levels
from kerasdet.ops.distribute import global_sum

if TYPE_CHECKING:
    from kerasdet.data.pipeline import Dataset

_CHANNELS = 8  # channels of the mask features, and of the dynamic convolutions
_COORDINATES = 2
# Sizes of the three dynamic 1x1 convolutions, and the length of a kernel that holds their weights and biases
_WEIGHTS = ((_CHANNELS, _CHANNELS + _COORDINATES), (_CHANNELS, _CHANNELS), (1, _CHANNELS))
_KERNEL_SIZE = sum(rows * columns + rows for rows, columns in _WEIGHTS)
_INTEREST = 8  # coordinates relative to a point are divided by this many strides of the point's level


@keras.saving.register_keras_serializable(package="kerasdet")
class DynamicMaskBranch(ConfigFromInit, Branch):
    """Predicts an instance mask for each point by convolutions whose weights the point predicts (RTMDet-Ins).

    The method is that of CondInst (https://arxiv.org/abs/2003.05664), with the sizes of RTMDet-Ins (arXiv 2212.07784).
    All points share features at the stride of the finest level, usually 8 pixels. A point predicts 169 values: the
    weights and biases of three 1x1 convolutions. The input of the convolutions is the shared features and the position
    relative to the point. Their output is the point's mask, which covers the whole network input.

    The outputs are ``mask_probs`` (B, D, h, w), and ``mask_boxes`` (B, D, 4) yxyx in pixels, the area that the masks
    cover: the whole network input, or the image in test-time augmentation.

    Args:
        num_convs: Number of 3x3 convolutions before the layer that predicts the kernels; each level has its own.
        feature_convs: Number of 3x3 convolutions of the shared features.
        norm: Norm of the 3x3 convolutions, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        loss_weight: Factor of the loss.

    Raises:
        UserError: If `num_convs`, `feature_convs` or `loss_weight` is negative.
    """

    target_key = "masks"
    loss_names = ("mask_loss",)
    output_names = ("mask_probs", "mask_boxes")
    metric = "segm"
    convention = "mmdet"
    _how_to_read_targets = "set CocoDataset.masks=True (Python: masks=True); Pascal VOC datasets have no masks"

    def __init__(
        self,
        *,
        num_convs: int = 2,
        feature_convs: int = 4,
        norm: str | None = "bn",
        norm_epsilon: float = 1e-5,
        loss_weight: float = 2.0,
        **kwargs,
    ):
        super().__init__(**{"name": "mask_branch", **kwargs})
        counts = {"num_convs": num_convs, "feature_convs": feature_convs}
        check_numbers("DynamicMaskBranch", 0, **counts, loss_weight=loss_weight)
        self.num_convs = num_convs
        self.feature_convs = feature_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.loss_weight = loss_weight
        self.attached_to = None

    @property
    def outputs(self) -> dict[str, BranchOutput]:
        """Maps the name of each output to a `BranchOutput`, which holds its name in exports and its rescaling."""
        return {
            "mask_probs": BranchOutput("detection_masks"),
            "mask_boxes": BranchOutput("detection_mask_boxes", "swapped_boxes"),
        }

    def attach(self, *, levels: Sequence[str], channels: int) -> None:
        """Creates the layers and variables, unless they exist.

        Args:
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the branch's convolutions.

        Raises:
            UserError: If the branch belongs to a model with other levels or another number of channels.
        """
        sizes = (tuple(levels), channels)
        if self.attached_to is not None:
            if self.attached_to != sizes:
                raise UserError(
                    f"This {type(self).__name__} belongs to a model with (levels, channels) = {self.attached_to}; the "
                    f"new model has {sizes}. Make a new {type(self).__name__} for each model."
                )
            return
        self.attached_to = sizes
        self.stride = 2 ** int(levels[0][1:])
        with policy_scope(self.dtype_policy):
            self._create_layers(tuple(levels), channels)
        self.build((None, None, None, channels))
        if not self.trainable:
            freeze(self)

    def _create_layers(self, levels, channels):
        norm = {"norm": self.norm, "norm_epsilon": self.norm_epsilon, "activation": "silu"}
        self.kernel_towers = {
            level: Tower(self.num_convs, channels, (level,), **norm, name=f"kernel_tower_{level}") for level in levels
        }
        self.kernels = LevelPredictors(_KERNEL_SIZE, levels, name="kernels")

        def conv(filters, kernel_size, name, **options):
            return ConvNorm(filters, kernel_size, kernel_initializer=small_normal(), name=name, **options)

        self.fusion = conv(channels, 1, "fusion")
        self.convs = [
            conv(channels, 3, f"conv{i}", norm=make_norm(self.norm, self.norm_epsilon), activation="silu")
            for i in range(self.feature_convs)
        ]
        self.projection = conv(_CHANNELS, 1, "projection")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for levels of shape (B, h, w, C); only `attach` calls this."""
        for tower in self.kernel_towers.values():
            tower.build(input_shape)
        self.kernels.build(input_shape)
        self.fusion.build((*input_shape[:-1], input_shape[-1] * len(self.kernel_towers)))
        for conv in (*self.convs, self.projection):
            conv.build(input_shape)

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict:
        """Predicts the convolution kernels of all points, and the features that all points share.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            A dict of ``kernels``, a dict from level name to (B, R_l, 169) for the R_l points of the level, and
            ``features`` (B, h, w, 8) float32 at the resolution of the finest level.
        """
        kernels = {
            level: self.kernels(self.kernel_towers[level](x, level=level, training=training), level=level)
            for level, x in pyramid.items()
        }
        first, *others = pyramid.values()
        size = tf.shape(first)[1:3]
        x = self.fusion(tf.concat([first, *(tf.cast(tf.image.resize(y, size), y.dtype) for y in others)], -1))
        for conv in self.convs:
            x = conv(x, training=training)
        return {"kernels": kernels, "features": tf.cast(self.projection(x), float_dtype())}

    def mask_logits(self, outputs: Mapping, points: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
        """Computes mask logits for selected points.

        Args:
            outputs: Result of `call`.
            points: (B, P) indices of the selected points among the R points of all levels.
            squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as
                side.

        Returns:
            The mask logits, (B, P, h, w), for the h x w cells of the finest level. A logit is that of the top-left
            corner of its cell.
        """
        kernels = tf.gather(all_levels(outputs, "kernels"), points, batch_dims=1)  # (B, P, 169)
        return _convolve(outputs["features"], kernels, tf.gather(squares, points), self.stride)

    def compute_targets(self, outputs: Mapping, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Samples the ground-truth masks at twice the resolution of the features.

        Args:
            outputs: Result of `call`.
            batch: Ground truth with ``boxes`` (B, M, 4) yxyx in pixels and ``masks`` (B, M, S, S), cropped to the
                boxes: bool, or uint8 with the covered fraction of each cell times 255.

        Returns:
            A dict of ``masks`` (B, M, 2 * h, 2 * w) bool, each object's mask in the whole network input.

        Raises:
            UserError: If ``masks`` is neither bool nor uint8.
        """
        height, width = tf.unstack(2 * tf.shape(outputs["features"])[1:3])
        crops = mask_targets.checked_crops(batch["masks"])
        return {"masks": mask_targets.sample_crops(crops, batch["boxes"], height, width, self.stride // 2)}

    def object_centers(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Computes the centres of mass of the objects' masks, for the matcher.

        Args:
            batch: Ground truth with ``boxes`` (B, M, 4) yxyx in pixels and ``masks`` (B, M, S, S), cropped to the
                boxes: bool, or uint8 with the covered fraction of each cell times 255.

        Returns:
            The centres of mass, (B, M, 2) as (y, x) in pixel indices, which are 0.5 less than continuous coordinates
            (mmdetection); (0, 0) for empty masks.
        """
        return mask_targets.mask_centers(mask_targets.checked_crops(batch["masks"]), batch["boxes"])

    def compute_losses(
        self, outputs: Mapping, targets: Mapping[str, tf.Tensor], matched_gt: tf.Tensor, squares: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the mean dice loss of the masks of matched points.

        Args:
            outputs: Result of `call`.
            targets: Result of `compute_targets`.
            matched_gt: (B, R) int32, the index of each point's object in the ground truth; negative for points without
                an object.
            squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as
                side.

        Returns:
            A dict of the scalar ``mask_loss``.
        """
        positive = matched_gt >= 0
        counts = tf.reduce_sum(tf.cast(positive, tf.int32), 1)  # (B,)
        # indices of each image's positive points, padded to the largest number in an image
        is_real, points = tf.math.top_k(tf.cast(positive, tf.int32), tf.maximum(tf.reduce_max(counts), 1))  # (B, P)
        logits = self.mask_logits(outputs, points, squares)  # (B, P, h, w)
        truth = tf.cast(gather_gt(targets["masks"], tf.gather(matched_gt, points, batch_dims=1)), float_dtype())
        size = tf.shape(truth)  # B, P, 2 * h, 2 * w
        logits = tf.reshape(logits, [-1, size[2] // 2, size[3] // 2, 1])
        logits = tf.reshape(tf.image.resize(logits, size[2:]), size)
        loss = dice(logits, truth, tf.cast(is_real, float_dtype()))
        count = tf.maximum(global_sum(tf.cast(tf.reduce_sum(counts), float_dtype())), 1.0)
        return {"mask_loss": self.loss_weight * loss / count}

    def detect(
        self, outputs: Mapping, points: tf.Tensor, squares: tf.Tensor, detections: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Computes the masks of detections.

        Args:
            outputs: Result of `call`.
            points: (B, D) index of the point that predicted each detection, among the R points of all levels.
            squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as
                side.
            detections: ``class_ids`` (B, D), -1 for padding.

        Returns:
            A dict of ``mask_probs`` (B, D, h, w) and ``mask_boxes`` (B, D, 4) yxyx in pixels, zero for padding.
        """
        logits = self.mask_logits(outputs, points, squares)  # (B, D, h, w)
        size = tf.fill([tf.shape(logits)[0], 1], self.stride) * tf.shape(logits)[2:][None]  # (B, 2)
        return self.postprocess(tf.sigmoid(logits), {**detections, "image_size": size})

    def image_maps(self, outputs: Mapping, points: tf.Tensor, squares: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        """Computes the masks of selected points, cropped to the image and resized to S x S, for test-time augmentation.

        Args:
            outputs: Result of `call`.
            points: (B, D) indices of the selected points among the R points of all levels.
            squares: (R, 4) yxyx in pixels: each point's square, centred on the point, with the stride of its level as
                side.
            image_size: (B, 2) heights and widths of the images in the network's input, in pixels.

        Returns:
            The masks, (B, D, S, S) probabilities; S is 112 (`kerasdet.geometry.masks.CROP_SIZE`).
        """
        logits = self.mask_logits(outputs, points, squares)  # (B, D, h, w)
        rows, columns = (
            _cell_weights(image_size[:, axis], tf.shape(logits)[2 + axis], self.stride) for axis in (0, 1)
        )  # (B, 1, S, h), (B, 1, S, w)
        return tf.sigmoid(tf.matmul(tf.matmul(rows, logits), columns, transpose_b=True))

    def postprocess(self, maps: tf.Tensor, detections: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the masks of detections, and the boxes that the masks cover.

        Args:
            maps: (B, D, h, w) mask probabilities, of any resolution.
            detections: ``class_ids`` (B, D), -1 for padding, and ``image_size`` (B, 2), height and width in pixels of
                the area that the maps cover.

        Returns:
            A dict of ``mask_probs`` (B, D, h, w) and ``mask_boxes`` (B, D, 4) yxyx in pixels, zero for padding.
        """
        valid = (detections["class_ids"] >= 0)[..., None]  # (B, D, 1)
        size = tf.cast(detections["image_size"], float_dtype())
        boxes = tf.concat([tf.zeros_like(size), size], -1)[:, None]  # (B, 1, 4)
        return {
            "mask_probs": tf.where(valid[..., None], maps, 0.0),
            "mask_boxes": tf.where(valid, boxes, 0.0),
        }

    def has_targets(self, dataset: "Dataset") -> bool:
        """Tells whether a dataset was read with masks.

        Args:
            dataset: A dataset for training or evaluation.

        Returns:
            True if its records hold the run lengths of masks.
        """
        return dataset.records[0].num_runs is not None


def _convolve(features, kernels, squares, stride):
    """Applies each point's three 1x1 convolutions to the features and the positions relative to the point.

    Args:
        features: (B, h, w, 8).
        kernels: (B, P, 169): the weights of the three convolutions, each stored as (outputs, inputs), then their
            biases. The inputs of the first convolution are the relative x and y, then the features.
        squares: (B, P, 4) yxyx in pixels: each point's square, with the stride of its level as side.
        stride: Pixels per cell of the features.

    Returns:
        Logits (B, P, h, w).
    """
    batch, height, width, _ = tf.unstack(tf.shape(features))
    number = tf.shape(kernels)[1]
    rows, columns = (tf.cast(tf.range(length) * stride, features.dtype) for length in (height, width))
    places = tf.reshape(tf.stack(tf.meshgrid(columns, rows), -1), [-1, _COORDINATES])  # (h * w, 2) as (x, y)
    points = tf.reverse(centers(squares), [-1])[:, :, None]  # (B, P, 1, 2)
    scale = _INTEREST * (squares[..., 2:3] - squares[..., :1])[..., None]  # (B, P, 1, 1)
    places = (points - places) / scale  # (B, P, h * w, 2)
    sizes = [rows * columns for rows, columns in _WEIGHTS] + [rows for rows, _ in _WEIGHTS]
    parts = tf.split(kernels, sizes, -1)
    weights = [
        tf.reshape(part, [batch, number, *shape]) for part, shape in zip(parts, _WEIGHTS, strict=False)
    ]  # (B, P, rows, columns)
    biases = [part[:, :, None] for part in parts[len(_WEIGHTS) :]]  # (B, P, 1, rows)
    x = tf.matmul(places, weights[0][..., :_COORDINATES], transpose_b=True)  # (B, P, h * w, 8)
    flat = tf.reshape(features, [batch, 1, -1, _CHANNELS])
    x += tf.matmul(flat, weights[0][..., _COORDINATES:], transpose_b=True) + biases[0]
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = tf.matmul(tf.nn.relu(x), weight, transpose_b=True) + bias
    return tf.reshape(x, [batch, number, height, width])


def _cell_weights(length, cells, stride):
    """Computes bilinear weights (B, 1, S, cells) that resample cells to S points in the first `length` (B,) pixels."""
    pixels = (tf.range(CROP_SIZE, dtype=float_dtype()) + 0.5) / CROP_SIZE * tf.cast(length, float_dtype())[:, None]
    positions = tf.clip_by_value(pixels / stride - 0.5, 0.0, tf.cast(cells - 1, float_dtype()))  # (B, S)
    return tf.nn.relu(1 - tf.abs(positions[:, None, :, None] - tf.range(tf.cast(cells, float_dtype()))))
