"""Defines the base class of the heads of dense detectors, and the layers that these heads are built from."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.arguments import check_numbers
from kerasdet.errors import UserError
from kerasdet.keras_utils import float_dtype, freeze, policy_scope
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.deform import DeformConvNorm
from kerasdet.layers.norm import make_norm


class Tower(keras.layers.Layer):
    """Applies a stack of 3x3 convolutions with norm and activation to any level of a pyramid.

    The levels share the convolutions and, with "gn", the norms. Each level has its own batch norms, because the
    statistics of levels differ.

    Args:
        num_convs: Number of convolutions; 0 makes the tower an identity.
        channels: Number of output channels of each convolution.
        levels: Names of the pyramid's levels.
        norm: Norm after each convolution, a name in `kerasdet.layers.norm.NORMS`, or None for no norm.
        norm_epsilon: Constant that the norms add to variances.
        deform_last: Whether the last convolution is a modulated deformable convolution (DCNv2).
        use_bias: Whether the convolutions have biases. None: only if there is no norm.
        activation: Name of the Keras activation after each convolution and its norm.
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
    """Base class of heads that predict classes and boxes for each anchor or point of a pyramid.

    The constructor of a head does not take the numbers of classes, anchors and channels: the model passes these to
    `attach`, which creates the layers and variables. A subclass defines `create_layers`, `build` and `call`.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"name": "head", **kwargs})
        self.attached_to = None

    def attach(self, *, num_classes: int, num_anchors: int, levels: Sequence[str], channels: int) -> None:
        """Creates the layers and variables.

        Models with the same numbers of classes, anchors and channels and the same levels may share one head, and thus
        its weights. A second call with the same arguments changes nothing.

        Args:
            num_classes: K, number of classes without background.
            num_anchors: A, number of anchors in each cell; `SSDHead` takes one number per level.
            levels: Names of the pyramid's levels, finest first.
            channels: Number of channels of each level, and of the towers; `SSDHead` takes one number per level.

        Raises:
            UserError: If the head belongs to a model with other numbers of classes, anchors or channels, or other
                levels, or does not accept the number of anchors.
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
            "use the head in kerasdet.FCOS or kerasdet.RTMDet, and do not set their argument anchors."
        )


def predictor(filters: int, name: str, kernel_size: int = 3) -> ConvNorm:
    """Makes the last convolution of a head, without norm and activation.

    Args:
        filters: Number of output channels.
        name: Name of the layer.
        kernel_size: Height and width of the kernel in cells; odd.

    Returns:
        The layer, without variables yet.
    """
    return ConvNorm(filters, kernel_size, kernel_initializer=small_normal(), name=name)


def class_predictor(filters: int, prior_probability: float) -> ConvNorm:
    """Makes the last convolution of a head that predicts classes with a sigmoid.

    Args:
        filters: Number of output channels.
        prior_probability: Probability of each class before training, set by the initial bias. In (0, 1).

    Returns:
        The layer, without variables yet.
    """
    bias = keras.initializers.Constant(prior_bias(prior_probability))
    return ConvNorm(filters, 3, kernel_initializer=small_normal(), bias_initializer=bias, name="class_logits")


def check_prior(owner: str, prior_probability: float) -> None:
    """Checks the initial probability of a class.

    Args:
        owner: Name of the head, for the error message.
        prior_probability: Value of the head's argument of this name.

    Raises:
        UserError: If the value is not a number in (0, 1), at least 1e-6 from both ends.
    """
    check_numbers(owner, 1e-6, 1 - 1e-6, prior_probability=prior_probability)


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
