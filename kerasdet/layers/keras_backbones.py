"""Makes backbones from models of `keras.applications` and KerasHub, with the protocol `kerasdet.layers.Backbone`."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.geometry.anchors import level_number
from kerasdet.keras_compat import flatten_layers
from kerasdet.keras_utils import ConfigFromInit, check_data_format
from kerasdet.layers.backbone import IMAGENET_MEAN, IMAGENET_STD, check_features

_COARSEST = 32  # images are padded to a multiple of this many pixels
# Prefix of an architecture -> mean and standard deviation of the pixels that its weights expect, on a scale of 0..255.
# The first matching prefix applies, because EfficientNetV2 B0 to B3 expect other statistics than S, M and L.
_PIXELS = {
    "ConvNeXt": (IMAGENET_MEAN, IMAGENET_STD),
    "EfficientNetV2B": (IMAGENET_MEAN, IMAGENET_STD),
    "EfficientNetV2": ((128.0,) * 3, (128.0,) * 3),
    "MobileNet": ((127.5,) * 3, (127.5,) * 3),
}


class _Pyramid(keras.Model):
    """Base class of backbones that run another Keras model, `self.backbone`; subclasses call `connect`."""

    def connect(self, features: Mapping[str, keras.KerasTensor], mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets `features`, `channels` and `strides`, which the protocol of backbones needs, and prepares `call`.

        Args:
            features: Output tensors of `self.backbone` by feature name, finest first.
            mean: Means of the pixels that the model expects, RGB on a scale of 0..255.
            std: Standard deviations of the pixels that the model expects, RGB on a scale of 0..255.
        """
        check_data_format()
        self.features = tuple(features)
        self.channels = {name: int(tensor.shape[-1]) for name, tensor in features.items()}
        self.strides = {name: 2 ** level_number(name) for name in features}
        scale = [theirs / own for theirs, own in zip(IMAGENET_STD, std, strict=True)]
        shift = [(theirs - own) / width for theirs, own, width in zip(IMAGENET_MEAN, mean, std, strict=True)]
        # In a namespace, so that Keras stores the layers once
        network = keras.Model(self.backbone.inputs, dict(features))
        self._network = SimpleNamespace(model=network, scale=scale, shift=shift)
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Computes the feature maps.

        Args:
            images: (B, H, W, 3) float, normalised by ImageNet's means and standard deviations.
            training: Whether norms and dropout run in training mode.

        Returns:
            Feature maps (B, h, w, C) by name; h and w are H and W divided by the stride, rounded up.
        """
        scale, shift = (tf.constant(value, images.dtype) for value in (self._network.scale, self._network.shift))
        size = tf.shape(images)[1:3]
        x = images * scale + shift
        if any(side is None or side % _COARSEST for side in images.shape[1:3]):
            bottom, right = tf.unstack(-size % _COARSEST)
            x = tf.pad(x, [[0, 0], [0, bottom], [0, right], [0, 0]])
        features = self._network.model(x, training=training)
        cells = {name: -(-size // self.strides[name]) for name in self.features}
        return {name: features[name][:, : cells[name][0], : cells[name][1]] for name in self.features}


def _set_norms(backbone, frozen):
    """Freezes the batch norms of a model if `frozen` is True; frozen norms use their stored statistics."""
    for layer in flatten_layers(backbone):
        if frozen and isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


@keras.saving.register_keras_serializable(package="kerasdet")
class PyramidBackbone(ConfigFromInit, _Pyramid):
    """Makes a backbone from a Keras model with `pyramid_outputs`, such as KerasHub's feature pyramid backbones.

    Args:
        backbone: Keras model whose only input is the images. Its attribute `pyramid_outputs` is a dict from names to
            output tensors; a name such as "P3" states the stride, ``2**3`` pixels.
        out_features: Names of the returned feature maps: ``c3`` stands for "P3", and so on.
        input_mean: Means of the pixels that the model expects, RGB on a scale of 0..255.
        input_std: Standard deviations of the pixels that the model expects, RGB on a scale of 0..255.
        freeze_norms: Whether the batch norms are frozen and use their stored statistics. Pass True for pretrained
            models.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        UserError: If the model has no `pyramid_outputs`, or lacks one of the features.

    Example:
        >>> hub = keras_hub.models.ResNetBackbone.from_preset("resnet_50_imagenet")
        >>> model = kerasdet.RetinaNet(3, backbone=PyramidBackbone(hub, freeze_norms=True))
    """

    def __init__(
        self,
        backbone: keras.Model,
        *,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        input_mean: Sequence[float] = IMAGENET_MEAN,
        input_std: Sequence[float] = IMAGENET_STD,
        freeze_norms: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        outputs = getattr(backbone, "pyramid_outputs", None)
        if not isinstance(outputs, Mapping):
            raise UserError(
                f"PyramidBackbone got a {type(backbone).__name__}: expected a Keras model with `pyramid_outputs`, such "
                "as keras_hub.models.ResNetBackbone. For other models, write a backbone as kerasdet.layers.Backbone "
                "describes."
            )
        available = {f"c{level_number(name.lower())}": tensor for name, tensor in outputs.items()}
        check_features(type(backbone).__name__, out_features, available)
        self.backbone = backbone
        self.out_features = tuple(out_features)
        self.input_mean = tuple(input_mean)
        self.input_std = tuple(input_std)
        self.freeze_norms = freeze_norms
        _set_norms(backbone, freeze_norms)
        self.connect({name: available[name] for name in out_features}, input_mean, input_std)


@keras.saving.register_keras_serializable(package="kerasdet")
class KerasApplication(ConfigFromInit, _Pyramid):
    """Makes a backbone from an architecture of `keras.applications`.

    Each feature is the output of the last layer with the feature's stride. Leave the mean, standard deviation and
    channel order of the detector's `Preprocessing` at their defaults (ImageNet, RGB): the backbone converts the pixels
    to the range that the architecture expects.

    Args:
        architecture: Name of a ConvNeXt, EfficientNetV2 or MobileNet in `keras.applications`, such as
            "EfficientNetV2B0".
        pretrained: "imagenet" to download Keras' weights, or the path of a weights file without the classifier. None
            for random weights.
        out_features: Names of the returned feature maps, ``c2`` (stride 4) to ``c5`` (stride 32).
        freeze_norms: Whether the batch norms are frozen and use their stored statistics. None: only if `pretrained` is
            given.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        UserError: If the architecture or a feature is unknown, or the pretrained weights cannot be loaded.

    Example:
        >>> model = kerasdet.RetinaNet(3, backbone=KerasApplication("ConvNeXtTiny", pretrained="imagenet"))
    """

    def __init__(
        self,
        architecture: str = "EfficientNetV2B0",
        *,
        pretrained: str | None = None,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        freeze_norms: bool | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        make = getattr(keras.applications, str(architecture), None)
        pixels = next((pixels for prefix, pixels in _PIXELS.items() if str(architecture).startswith(prefix)), None)
        if pixels is None or not callable(make):
            names = [name for name in dir(keras.applications) if name.startswith(tuple(_PIXELS))]
            raise UserError(
                f"KerasApplication.architecture is {architecture!r}: expected one of {', '.join(names)}. Change "
                "architecture."
            )
        self.architecture = architecture
        self.pretrained = pretrained
        self.out_features = tuple(out_features)
        self.freeze_norms = pretrained is not None if freeze_norms is None else freeze_norms
        options = {} if architecture in ("MobileNet", "MobileNetV2") else {"include_preprocessing": False}
        try:
            self.backbone = make(include_top=False, weights=pretrained, input_shape=(None, None, 3), **options)
        except Exception as error:  # Keras raises errors of many types, for a failed download a plain Exception
            if pretrained is None:
                raise
            raise UserError(
                f"KerasApplication.pretrained is {pretrained!r}, but these weights of {architecture} cannot be loaded: "
                f"{' '.join(str(error).split()).rstrip('.')}. Expected 'imagenet' (which Keras downloads) or the path "
                "of a weights file without the classifier. Change pretrained, or connect to the internet once."
            ) from None
        available = _last_of_each_stride(self.backbone)
        check_features(architecture, out_features, available)
        _set_norms(self.backbone, self.freeze_norms)
        self.connect({name: available[name] for name in out_features}, *pixels)

    def get_config(self) -> dict:
        """Returns the constructor arguments, with `pretrained=None`: a loaded model gets its weights from its file."""
        return {**super().get_config(), "pretrained": None}


def _last_of_each_stride(model):
    """Returns the outputs of the last layers with strides of 4 to 32 pixels, by names of features."""
    tensors = [layer.output for layer in model.layers if isinstance(layer.output, keras.KerasTensor)]
    side = 8 * _COARSEST
    shapes = keras.Model(model.inputs, tensors).compute_output_spec(keras.KerasTensor((1, side, side, 3)))
    found = {}
    for tensor, spec in zip(tensors, shapes, strict=True):
        for level in (2, 3, 4, 5):
            if len(spec.shape) == 4 and tuple(spec.shape[1:3]) == (side >> level, side >> level):
                found[f"c{level}"] = tensor
    return found
