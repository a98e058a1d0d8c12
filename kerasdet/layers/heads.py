"""Heads of dense detectors, shared by all levels of a pyramid."""

import math

import keras
import tensorflow as tf

from kerasdet.keras_utils import float_dtype
from kerasdet.layers.conv import ConvNorm
from kerasdet.layers.deform import DeformConvNorm
from kerasdet.layers.norm import make_norm


class Tower(keras.layers.Layer):
    """A stack of 3x3 convolutions with norm and ReLU, shared by all levels.

    Group norm is shared, too; batch statistics differ between levels, so every level has a batch norm of its own.

    Args:
        num_convs: How many.
        channels: Of every one.
        levels: Names of the pyramid's levels.
        norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        norm_epsilon: Added to variances.
        deform_last: Make the last convolution a deformable one of version 2.
        use_bias: Of the convolutions, by default only without a norm.
    """

    def __init__(
        self,
        num_convs,
        channels,
        levels,
        norm=None,
        norm_epsilon=1e-5,
        deform_last=False,
        use_bias=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        use_bias = norm is None if use_bias is None else use_bias

        def conv(index):
            options = {"use_bias": use_bias, "kernel_initializer": _small_normal(), "name": f"conv{index}"}
            if deform_last and index == num_convs - 1:
                return DeformConvNorm(channels, 3, deform_version=2, **options)
            return ConvNorm(channels, 3, **options)

        self.convs = [conv(i) for i in range(num_convs)]
        self.norm_keys = ("shared",) if norm in (None, "gn") else tuple(levels)
        self.norms = [
            make_norm(norm, norm_epsilon, name=f"norm{i}_{key}") for i in range(num_convs) for key in self.norm_keys
        ]

    def build(self, input_shape):
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (None, None, None, self.channels)
        for norm in self.norms:
            if norm is not None:
                norm.build(shape)

    def call(self, x, level, training=False):
        key = self.norm_keys.index(level) if len(self.norm_keys) > 1 else 0
        for conv, norm in zip(self.convs, self.norms[key :: len(self.norm_keys)], strict=True):
            x = conv(x)
            if norm is not None:
                x = norm(x, training=training)
            x = keras.ops.relu(x)
        return x


class RetinaNetHead(keras.layers.Layer):
    """Classification and box regression of RetinaNet.

    Args:
        num_classes: K.
        num_anchors: A.
        levels: Names of the pyramid's levels.
        num_convs: In each tower.
        channels: Of the towers.
        norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        norm_epsilon: Added to variances.
        prior_probability: Of an anchor's holding an object, before training.
        deform_last: Make the towers' last convolutions deformable ones.
    """

    def __init__(
        self,
        num_classes,
        num_anchors,
        levels,
        num_convs=4,
        channels=256,
        norm=None,
        norm_epsilon=1e-5,
        prior_probability=0.01,
        deform_last=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        tower = (num_convs, channels, levels, norm, norm_epsilon)
        self.class_tower = Tower(*tower, deform_last=deform_last, name="class_tower")
        self.box_tower = Tower(*tower, deform_last=deform_last, name="box_tower")
        self.class_logits = ConvNorm(
            num_anchors * num_classes,
            3,
            kernel_initializer=_small_normal(),
            bias_initializer=_prior_bias(prior_probability),
            name="class_logits",
        )
        self.box_deltas = ConvNorm(num_anchors * 4, 3, kernel_initializer=_small_normal(), name="box_deltas")

    def build(self, input_shape):
        for tower, last in ((self.class_tower, self.class_logits), (self.box_tower, self.box_deltas)):
            tower.build(input_shape)
            last.build((*input_shape[:-1], tower.channels))

    def call(self, pyramid, training=False):
        """Predictions for every anchor.

        Args:
            pyramid: level -> (B, h, w, C).

        Returns:
            ``class_logits``: level -> (B, h * w * A, K), ``box_deltas``: level -> (B, h * w * A, 4), float32.
        """
        class_logits, box_deltas = {}, {}
        for level, x in pyramid.items():
            logits = self.class_logits(self.class_tower(x, level=level, training=training))  # (B, h, w, A * K)
            class_logits[level] = _per_anchor(logits, self.num_classes)
            deltas = self.box_deltas(self.box_tower(x, level=level, training=training))  # (B, h, w, A * 4)
            box_deltas[level] = _per_anchor(deltas, 4)
        return {"class_logits": class_logits, "box_deltas": box_deltas}


def _per_anchor(x, size):
    """(B, h, w, A * size) as (B, h * w * A, size), float32."""
    return tf.cast(tf.reshape(x, [tf.shape(x)[0], -1, size]), float_dtype())


def _small_normal():
    """A new one for every layer: a Keras initializer without a seed gives the same values each time it is called."""
    return keras.initializers.RandomNormal(stddev=0.01)


def _prior_bias(probability):
    """The bias that gives every logit this probability."""
    return keras.initializers.Constant(-math.log((1 - probability) / probability))


class FCOSHead(keras.layers.Layer):
    """Classification, distances to the sides of boxes and centerness of FCOS (https://arxiv.org/abs/2006.09214).

    Args:
        num_classes: K.
        levels: Names of the pyramid's levels.
        num_convs: In each tower.
        channels: Of the towers.
        norm: A name of `kerasdet.layers.norm.NORMS`, or None.
        use_bias: Of the towers' convolutions; None for only without a norm.
        deform_last: Make the towers' last convolutions deformable ones.
        centerness_on_boxes: Predict centerness from the tower of the boxes, or else from that of the classes.
        level_scales: Multiply the boxes' raw predictions by a learnt number, one for each level.
        activation: Of the distances, "relu" or "exp".
        prior_probability: Of a point's lying in an object, before training.
    """

    def __init__(
        self,
        num_classes,
        levels,
        num_convs=4,
        channels=256,
        norm="gn",
        use_bias=True,
        deform_last=False,
        centerness_on_boxes=True,
        level_scales=False,
        activation="relu",
        prior_probability=0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.centerness_on_boxes = centerness_on_boxes
        self.activation = tf.exp if activation == "exp" else tf.nn.relu
        tower = {
            "levels": levels,
            "norm": norm,
            "deform_last": deform_last,
            "use_bias": use_bias,
        }
        self.class_tower = Tower(num_convs, channels, **tower, name="class_tower")
        self.box_tower = Tower(num_convs, channels, **tower, name="box_tower")
        self.class_logits = ConvNorm(
            num_classes,
            3,
            kernel_initializer=_small_normal(),
            bias_initializer=_prior_bias(prior_probability),
            name="class_logits",
        )
        self.box_distances = ConvNorm(4, 3, kernel_initializer=_small_normal(), name="box_distances")
        self.centerness = ConvNorm(1, 3, kernel_initializer=_small_normal(), name="centerness")
        self.scales = {level: Scale(name=f"scale_{level}") for level in levels} if level_scales else {}

    def build(self, input_shape):
        for tower in (self.class_tower, self.box_tower):
            tower.build(input_shape)
        for last in (self.class_logits, self.box_distances, self.centerness):
            last.build((*input_shape[:-1], self.class_tower.channels))
        for scale in self.scales.values():
            scale.build(())

    def call(self, pyramid, training=False):
        """Predictions for every point.

        Args:
            pyramid: level -> (B, h, w, C).

        Returns:
            ``class_logits``: level -> (B, h * w, K), ``box_distances``: level -> (B, h * w, 4), ``centerness``:
            level -> (B, h * w) logits, float32.
        """
        class_logits, box_distances, centerness = {}, {}, {}
        for level, x in pyramid.items():
            of_classes = self.class_tower(x, level=level, training=training)
            of_boxes = self.box_tower(x, level=level, training=training)
            class_logits[level] = _per_anchor(self.class_logits(of_classes), self.num_classes)
            distances = _per_anchor(self.box_distances(of_boxes), 4)
            if level in self.scales:
                distances = self.scales[level](distances)
            box_distances[level] = self.activation(distances)
            logits = self.centerness(of_boxes if self.centerness_on_boxes else of_classes)
            centerness[level] = _per_anchor(logits, 1)[..., 0]
        return {"class_logits": class_logits, "box_distances": box_distances, "centerness": centerness}


class Scale(keras.layers.Layer):
    """Multiplication by one learnt number, 1 at first, in float32."""

    def __init__(self, **kwargs):
        super().__init__(**{"autocast": False, **kwargs})

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x):
        return x * self.scale


class RPNHead(keras.layers.Layer):
    """Objectness and box regression of a region proposal network.

    Args:
        num_anchors: A.
        num_convs: 3x3 convolutions before the 1x1 predictors; 0 for none.
        channels: Of these.
    """

    def __init__(self, num_anchors, num_convs=1, channels=256, **kwargs):
        super().__init__(**kwargs)
        self.convs = [
            ConvNorm(channels, 3, activation="relu", kernel_initializer=_small_normal(), name=f"conv{i}")
            for i in range(num_convs)
        ]
        self.objectness = ConvNorm(num_anchors, 1, kernel_initializer=_small_normal(), name="objectness")
        self.box_deltas = ConvNorm(num_anchors * 4, 1, kernel_initializer=_small_normal(), name="box_deltas")

    def build(self, input_shape):
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.conv.filters)
        self.objectness.build(shape)
        self.box_deltas.build(shape)

    def call(self, pyramid):
        """Predictions for every anchor.

        Args:
            pyramid: level -> (B, h, w, C).

        Returns:
            ``objectness``: level -> (B, h * w * A) logits, ``box_deltas``: level -> (B, h * w * A, 4), float32.
        """
        objectness, box_deltas = {}, {}
        for level, x in pyramid.items():
            for conv in self.convs:
                x = conv(x)
            objectness[level] = _per_anchor(self.objectness(x), 1)[..., 0]
            box_deltas[level] = _per_anchor(self.box_deltas(x), 4)
        return {"objectness": objectness, "box_deltas": box_deltas}
