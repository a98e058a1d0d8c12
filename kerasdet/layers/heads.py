"""Defines the heads of dense detectors and RPNs; the levels of a pyramid share the weights of a head."""

import math
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit, float_dtype, freeze, policy_scope
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.deform import DeformConvNorm
from kerasdet.layers.norm import make_norm


class Tower(keras.layers.Layer):
    """Applies a stack of 3x3 convolutions with norm and activation to any level of a pyramid.

    The levels share the convolutions and, with "gn", the norms. Batch norms are separate for each level, because levels
    have different statistics.

    Args:
        num_convs: Number of convolutions; 0 makes the tower an identity.
        channels: Number of output channels of each convolution.
        levels: Names of the pyramid's levels.
        norm: A name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        deform_last: Whether the last convolution is a modulated deformable convolution (DCNv2).
        use_bias: Whether the convolutions have biases; None adds them only if there is no norm.
        activation: Name of the Keras activation after each norm.
        norm_momentum: Weight of the old value when a training step updates a running average of the norms, in [0, 1].
    """

    def __init__(
        self,
        num_convs: int,
        channels: int,
        levels: Sequence[str],
        norm: str | None = None,
        norm_epsilon: float = 1e-5,
        deform_last: bool = False,
        use_bias: bool | None = None,
        activation: str = "relu",
        norm_momentum: float = 0.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        self.activation = keras.activations.get(activation)
        use_bias = norm is None if use_bias is None else use_bias

        def conv(index):
            options = {"use_bias": use_bias, "kernel_initializer": small_normal(), "name": f"conv{index}"}
            if deform_last and index == num_convs - 1:
                return DeformConvNorm(channels, 3, deform_version=2, **options)
            return ConvNorm(channels, 3, **options)

        self.convs = [conv(i) for i in range(num_convs)]
        self.norm_keys = ("shared",) if norm in (None, "gn") else tuple(levels)
        self.norms = [
            make_norm(norm, norm_epsilon, momentum=norm_momentum, name=f"norm{i}_{key}")
            for i in range(num_convs)
            for key in self.norm_keys
        ]

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for features of shape (B, h, w, C)."""
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (None, None, None, self.channels)
        for norm in self.norms:
            if norm is not None:
                norm.build(shape)

    def call(self, x: tf.Tensor, level: str, training: bool = False) -> tf.Tensor:
        """Applies the tower to one level.

        Args:
            x: (B, h, w, C) feature map.
            level: Name of the pyramid level, such as "p3"; it selects the batch norms.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Features (B, h, w, channels).
        """
        key = self.norm_keys.index(level) if len(self.norm_keys) > 1 else 0
        for conv, norm in zip(self.convs, self.norms[key :: len(self.norm_keys)], strict=True):
            x = conv(x)
            if norm is not None:
                x = norm(x, training=training)
            x = self.activation(x)
        return x


class DenseHead(keras.layers.Layer):
    """Base class of heads that predict something for each anchor of a pyramid.

    The constructor of a head does not take the numbers of classes, anchors and channels: the model passes these to
    `attach`, which creates the layers and variables. A subclass defines `create_layers`, `build` and `call`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"name": "head", **kwargs})
        self.attached_to = None

    def attach(self, *, num_classes: int, num_anchors: int, levels: Sequence[str], channels: int) -> None:
        """Creates the layers and variables.

        Models of equal sizes may share one head and thus its weights; the second call then changes nothing.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: A, number of anchors in each cell.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.

        Raises:
            UserError: If the head belongs to a model with other numbers of classes, anchors or channels, or other
                levels.
        """
        sizes = (num_classes, num_anchors, tuple(levels), channels)
        if self.attached_to == sizes:
            return
        if self.attached_to is not None:
            raise UserError(
                f"This {type(self).__name__} belongs to a model with (num_classes, num_anchors, levels, channels) = "
                f"{self.attached_to}; the new model has {sizes}. Make a new head for each model."
            )
        self.attached_to = sizes
        with policy_scope(self.dtype_policy):
            self.create_layers(num_classes, num_anchors, tuple(levels), channels)
        self.build((None, None, None, channels))
        if not self.trainable:
            freeze(self)

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the sublayers; a subclass must define it, and `attach` calls it.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: A, number of anchors in each cell.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.
        """
        raise NotImplementedError(f"{type(self).__name__} must define create_layers.")

    def get_build_config(self) -> None:
        """Returns None: Keras must not build the head on loading, because `attach` builds it."""
        return None


@keras.saving.register_keras_serializable(package="kerasdet")
class RetinaNetHead(ConfigFromInit, DenseHead):
    """Predicts classes and box deltas for each anchor (RetinaNet, https://arxiv.org/abs/1708.02002).

    Args:
        num_convs: Number of convolutions in each of the two towers.
        norm: Norm of the towers, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        deform_last: Whether the last convolution of each tower is a modulated deformable convolution (DCNv2).
        prior_probability: Probability of each class at each anchor before training, in (0, 1). A small value keeps
            the many negatives from dominating the first losses.

    Example:
        >>> model = kerasdet.RetinaNet(80, head=RetinaNetHead(num_convs=2, norm="gn"))
    """

    def __init__(
        self,
        num_convs: int = 4,
        norm: str | None = None,
        norm_epsilon: float = 1e-5,
        deform_last: bool = False,
        prior_probability: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_numbers("RetinaNetHead", 0, num_convs=num_convs)
        check_numbers("RetinaNetHead", 0, 1, prior_probability=prior_probability)
        self.num_convs = num_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.deform_last = deform_last
        self.prior_probability = prior_probability

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the towers and predictors.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: A, number of anchors in each cell.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.
        """
        self.num_classes = num_classes
        tower = (self.num_convs, channels, levels, self.norm, self.norm_epsilon, self.deform_last)
        self.class_tower = Tower(*tower, name="class_tower")
        self.box_tower = Tower(*tower, name="box_tower")
        self.class_logits = _class_predictor(num_anchors * num_classes, self.prior_probability)
        self.box_deltas = _predictor(num_anchors * 4, "box_deltas")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for tower, last in ((self.class_tower, self.class_logits), (self.box_tower, self.box_deltas)):
            tower.build(input_shape)
            last.build((*input_shape[:-1], tower.channels))

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits and box deltas for every anchor.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Two dicts by level name, float32: ``class_logits`` with (B, h * w * A, K), and ``box_deltas`` with
            (B, h * w * A, 4) as (dy, dx, dh, dw). A is the number of anchors in each cell.
        """
        class_logits, box_deltas = {}, {}
        for level, x in pyramid.items():
            logits = self.class_logits(self.class_tower(x, level=level, training=training))  # (B, h, w, A * K)
            class_logits[level] = per_anchor(logits, self.num_classes)
            deltas = self.box_deltas(self.box_tower(x, level=level, training=training))  # (B, h, w, A * 4)
            box_deltas[level] = per_anchor(deltas, 4)
        return {"class_logits": class_logits, "box_deltas": box_deltas}


@keras.saving.register_keras_serializable(package="kerasdet")
class FCOSHead(ConfigFromInit, DenseHead):
    """Predicts classes, distances to the sides of a box, and centerness for each point (FCOS, arXiv 2006.09214).

    The head returns raw distances, which may be negative. The `activate` method of the coder of `kerasdet.FCOS` makes
    them positive.

    Args:
        num_convs: Number of convolutions in each of the two towers.
        norm: Norm of the towers, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        use_bias: Whether the towers' convolutions have biases in addition to a norm. Without a norm they always do.
        deform_last: Whether the last convolution of each tower is a modulated deformable convolution (DCNv2).
        centerness_on_boxes: Whether the box tower predicts centerness; otherwise the class tower does.
        level_scales: Whether the raw distances of each level are multiplied by a trainable scalar, which starts at 1.
        prior_probability: Probability of each class at each point before training, in (0, 1).

    Example:
        >>> model = kerasdet.FCOS(80, head=FCOSHead(num_convs=2, level_scales=True))
    """

    def __init__(
        self,
        num_convs: int = 4,
        norm: str | None = "gn",
        norm_epsilon: float = 1e-5,
        use_bias: bool = True,
        deform_last: bool = False,
        centerness_on_boxes: bool = True,
        level_scales: bool = False,
        prior_probability: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_numbers("FCOSHead", 0, num_convs=num_convs)
        check_numbers("FCOSHead", 0, 1, prior_probability=prior_probability)
        self.num_convs = num_convs
        self.norm = norm
        self.norm_epsilon = norm_epsilon
        self.use_bias = use_bias
        self.deform_last = deform_last
        self.centerness_on_boxes = centerness_on_boxes
        self.level_scales = level_scales
        self.prior_probability = prior_probability

    def create_layers(self, num_classes: int, num_anchors: int, levels: tuple[str, ...], channels: int) -> None:
        """Creates the towers, predictors and level scales.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: Number of points in each cell; must be 1.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers.

        Raises:
            UserError: If `num_anchors` is not 1.
        """
        check_one_point(self, num_anchors)
        self.num_classes = num_classes
        use_bias = self.use_bias or None  # without a norm there are biases all the same
        tower = (self.num_convs, channels, levels, self.norm, self.norm_epsilon, self.deform_last, use_bias)
        self.class_tower = Tower(*tower, name="class_tower")
        self.box_tower = Tower(*tower, name="box_tower")
        self.class_logits = _class_predictor(num_classes, self.prior_probability)
        self.box_distances = _predictor(4, "box_distances")
        self.centerness = _predictor(1, "centerness")
        self.scales = {level: Scale(name=f"scale_{level}") for level in levels} if self.level_scales else {}

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables; only `attach` calls this."""
        check_attached(self)
        for tower in (self.class_tower, self.box_tower):
            tower.build(input_shape)
        for last in (self.class_logits, self.box_distances, self.centerness):
            last.build((*input_shape[:-1], self.class_tower.channels))
        for scale in self.scales.values():
            scale.build(())

    def call(self, pyramid: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts class logits, raw distances and centerness for every point.

        Args:
            pyramid: Features (B, h, w, C) by level name.
            training: Whether batch norms use the statistics of the batch.

        Returns:
            Three dicts by level name, float32: ``class_logits`` with (B, h * w, K), ``box_distances`` with (B, h * w,
            4) raw distances as (t, l, b, r), and ``centerness`` with (B, h * w) logits.
        """
        class_logits, box_distances, centerness = {}, {}, {}
        for level, x in pyramid.items():
            of_classes = self.class_tower(x, level=level, training=training)  # (B, h, w, C)
            of_boxes = self.box_tower(x, level=level, training=training)  # (B, h, w, C)
            class_logits[level] = per_anchor(self.class_logits(of_classes), self.num_classes)
            distances = per_anchor(self.box_distances(of_boxes), 4)
            box_distances[level] = self.scales[level](distances) if level in self.scales else distances
            logits = self.centerness(of_boxes if self.centerness_on_boxes else of_classes)  # (B, h, w, 1)
            centerness[level] = per_anchor(logits, 1)[..., 0]
        return {"class_logits": class_logits, "box_distances": box_distances, "centerness": centerness}


class Scale(keras.layers.Layer):
    """Multiplies by one trainable scalar that starts at 1, in float32 under every precision policy."""

    def __init__(self, **kwargs):
        # Keras would round inputs to 16 bits under a mixed policy, and distances in pixels do not fit into these
        super().__init__(**{"autocast": False, **kwargs})

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the trainable scalar, for inputs of any shape."""
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies `x`, of any shape, by the trainable scalar."""
        return x * self.scale


class RPNHead(keras.layers.Layer):
    """Predicts objectness and box deltas for each anchor (Faster R-CNN, https://arxiv.org/abs/1506.01497).

    Args:
        num_anchors: A, number of anchors in each cell.
        num_convs: Number of 3x3 convolutions before the 1x1 predictors; 0 for none.
        channels: Number of output channels of each 3x3 convolution.
    """

    def __init__(self, num_anchors: int, num_convs: int = 1, channels: int = 256, **kwargs):
        super().__init__(**kwargs)
        self.convs = [
            ConvNorm(channels, 3, activation="relu", kernel_initializer=small_normal(), name=f"conv{i}")
            for i in range(num_convs)
        ]
        self.objectness = _predictor(num_anchors, "objectness", kernel_size=1)
        self.box_deltas = _predictor(num_anchors * 4, "box_deltas", kernel_size=1)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the variables for features of shape (B, h, w, C)."""
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.conv.filters)
        self.objectness.build(shape)
        self.box_deltas.build(shape)

    def call(self, pyramid: Mapping[str, tf.Tensor]) -> dict[str, dict[str, tf.Tensor]]:
        """Predicts objectness and box deltas for every anchor.

        Args:
            pyramid: Features (B, h, w, C) by level name.

        Returns:
            Two dicts by level name, float32: ``objectness`` with (B, h * w * A) logits, and ``box_deltas`` with
            (B, h * w * A, 4) as (dy, dx, dh, dw).
        """
        objectness, box_deltas = {}, {}
        for level, x in pyramid.items():
            for conv in self.convs:
                x = conv(x)
            objectness[level] = per_anchor(self.objectness(x), 1)[..., 0]
            box_deltas[level] = per_anchor(self.box_deltas(x), 4)
        return {"objectness": objectness, "box_deltas": box_deltas}


def check_attached(head: DenseHead) -> None:
    """Checks that a head has layers, which a model creates by calling `DenseHead.attach`.

    Args:
        head: The head.

    Raises:
        RuntimeError: If `attach` was not called yet.
    """
    if head.attached_to is None:
        raise RuntimeError(
            f"{type(head).__name__} has no layers yet: pass the head to a model, or call attach(num_classes=..., "
            "num_anchors=..., levels=..., channels=...) first."
        )


def check_one_point(head: DenseHead, num_anchors: int) -> None:
    """Checks that an anchor-free head gets a single point per cell.

    Args:
        head: The head, for the error message.
        num_anchors: Number of anchors that the model has in each cell.

    Raises:
        UserError: If `num_anchors` is not 1.
    """
    if num_anchors != 1:
        raise UserError(
            f"{type(head).__name__} predicts for 1 point per cell, but the model has {num_anchors} anchors per cell: "
            "pass anchors=kerasdet.geometry.anchors.point_squares() to the model."
        )


def _predictor(filters, name, kernel_size=3):
    return ConvNorm(filters, kernel_size, kernel_initializer=small_normal(), name=name)


def _class_predictor(filters, prior_probability):
    """Returns a convolution whose initial bias gives each class the prior probability."""
    bias = keras.initializers.Constant(prior_bias(prior_probability))
    return ConvNorm(filters, 3, kernel_initializer=small_normal(), bias_initializer=bias, name="class_logits")


def prior_bias(probability: float) -> float:
    """Computes the initial bias for which a sigmoid output starts at a given probability.

    Args:
        probability: Initial probability, in (0, 1).

    Returns:
        The logit of the probability.
    """
    return -math.log((1 - probability) / probability)


def per_anchor(x: tf.Tensor, size: int) -> tf.Tensor:
    """Reshapes a feature map of predictions to one row per anchor.

    Args:
        x: (B, h, w, A * size), predictions for the A anchors of each cell.
        size: Number of values per anchor, such as K classes or 4 box deltas.

    Returns:
        The predictions, (B, h * w * A, size) float32.
    """
    return tf.cast(tf.reshape(x, [tf.shape(x)[0], -1, size]), float_dtype())


def small_normal() -> keras.initializers.Initializer:
    """Returns a new normal initializer with a standard deviation of 0.01, for predictors.

    Each layer needs a new object: layers that share a Keras initializer object would start with equal values.

    Returns:
        The Keras initializer.
    """
    return keras.initializers.RandomNormal(stddev=0.01)
