"""Defines the protocol of backbones: images in, named feature maps out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import tensorflow as tf

from kerasdet.arguments import check_names
from kerasdet.errors import UserError

# Pixel statistics by which the input of backbones is normalised, RGB on a scale of 0..255
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@runtime_checkable
class Backbone(Protocol):
    """Defines the attributes and the call that a detector needs from a backbone, such as `kerasdet.ResNet`.

    A backbone is a `keras.Model` that takes normalised images and returns feature maps by name. Necks and detectors
    only read the three attributes below and call the model, so any architecture can be used. When a detector is
    constructed, it runs the backbone on a small image and raises an error if the features differ from the attributes.
    To write a backbone:

    1. Subclass `keras.Model` and register it with `keras.saving.register_keras_serializable(package=...)`.
    2. Set `features`, `channels` and `strides` in the constructor. All three list the same names, finest first.
    3. Name a feature after its stride: ``c{l}`` has a stride of ``2**l`` pixels (``c3`` has 8). A neck derives the
       names of its outputs from these (``c3`` -> ``p3``). A dilated stage keeps its name and states its true stride in
       `strides`; a detector whose neck merges it raises an error.
    4. Pad like PyTorch if you convert PyTorch weights; `kerasdet.layers.ConvNorm` does so.
    5. Build all variables in the constructor, so that `load_weights` works before the first call.

    Attributes:
        features: Names of the returned feature maps, finest first, such as ``("c3", "c4", "c5")``.
        channels: Number of channels of each feature map, such as ``{"c3": 512, "c4": 1024, "c5": 2048}``.
        strides: Pixels of the image per cell of each feature map, such as ``{"c3": 8, "c4": 16, "c5": 32}``.

    Example:
        A backbone of plain convolutions::

            import keras
            import kerasdet
            from kerasdet.layers import ConvNorm

            @keras.saving.register_keras_serializable(package="my_package")
            class PlainBackbone(keras.Model):
                def __init__(self, width=32, **kwargs):
                    super().__init__(**kwargs)
                    self.width = width
                    self.features = ("c3", "c4", "c5")
                    self.channels = {"c3": width * 8, "c4": width * 16, "c5": width * 32}
                    self.strides = {"c3": 8, "c4": 16, "c5": 32}
                    self.convs = [ConvNorm(width * 2**i, 3, strides=2, activation="relu") for i in range(1, 6)]
                    self.build((None, None, None, 3))

                def build(self, input_shape):
                    channels = input_shape[-1]
                    for conv in self.convs:
                        conv.build((None, None, None, channels))
                        channels = conv.conv.filters
                    self.built = True

                def call(self, images, training=False):
                    x, features = images, {}
                    for level, conv in enumerate(self.convs, start=1):
                        x = conv(x, training=training)
                        features[f"c{level}"] = x
                    return {name: features[name] for name in self.features}

                def get_config(self):
                    return {**super().get_config(), "width": self.width}

            backbone = PlainBackbone()
            model = kerasdet.RetinaNet(80, backbone=backbone)
    """

    features: tuple[str, ...]
    channels: Mapping[str, int]
    strides: Mapping[str, int]

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Computes the feature maps of normalised images.

        Args:
            images: (B, H, W, 3) float, normalised; H and W need not be multiples of a stride.
            training: Whether batch norms, dropout and other layers run in training mode.

        Returns:
            Feature maps (B, h, w, C) by name, where C is ``channels[name]``, and h and w are H and W divided by
            ``strides[name]``, rounded up.
        """
        ...


def check_features(name: str, out_features: Sequence[str], available: Iterable[str]) -> None:
    """Checks the names of the features that a backbone returns.

    Args:
        name: Name of the backbone, for the error message.
        out_features: Names to return, such as ``c3``.
        available: Names that the backbone can compute.

    Raises:
        UserError: If `out_features` is empty or not a list of names, or has a name that is not available.
    """
    check_names(f"{name}.out_features", out_features)
    choice = f"expected some of {', '.join(available)}. Change out_features."
    if not out_features:
        raise UserError(f"{name}.out_features is empty: {choice}")
    if missing := [feature for feature in out_features if feature not in available]:
        raise UserError(f"{name} has no feature {', '.join(missing)}: {choice}")
