"""Defines VGG with SSD's dilated convolutions (https://arxiv.org/abs/1409.1556, https://arxiv.org/abs/1512.02325)."""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.layers.conv import ConvNorm


@keras.saving.register_keras_serializable(package="kerasdet")
class VGG(ConfigFromInit, keras.Model):
    """Computes ``c3`` (stride 8) and ``c4`` (stride 16) of normalised images, the features that SSD predicts from.

    The model follows the protocol `kerasdet.layers.Backbone`. ``c3`` is VGG-16's conv4_3. ``c4`` is computed from
    conv5_3 by two convolutions in place of VGG's fully connected layers, the first with a dilation of 6. There are no
    norms.

    Args:
        stages: Number of 3x3 convolutions in each of the five stages.
        width: Number of channels of the first stage; the next three stages double them, and the fifth keeps them.
        fc_channels: Number of channels of ``c4``.
        freeze_at: Number of stages that are frozen (not trained), counted from the input. 0 freezes nothing.
        **kwargs: Arguments of `keras.Model`.

    Attributes:
        features: Names of the returned feature maps, ``("c3", "c4")``.
        channels: Number of channels of each feature map, by name.
        strides: Pixels of the image per cell of each feature map, by name.

    Raises:
        UserError: If `stages` does not hold five integers of 1 or more.

    Example:
        >>> {name: tuple(x.shape) for name, x in VGG()(tf.zeros([1, 300, 300, 3])).items()}
        {'c3': (1, 38, 38, 512), 'c4': (1, 19, 19, 1024)}
    """

    def __init__(
        self,
        stages: Sequence[int] = (2, 2, 3, 3, 3),
        *,
        width: int = 64,
        fc_channels: int = 1024,
        freeze_at: int = 0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if len(stages) != 5 or min(stages) < 1:
            raise UserError(
                f"VGG got stages={tuple(stages)}: expected five integers of 1 or more, such as (2, 2, 3, 3, 3)."
            )
        self.stages = tuple(stages)
        self.width = width
        self.fc_channels = fc_channels
        self.freeze_at = freeze_at

        def conv(filters, kernel_size, name, **options):
            return ConvNorm(filters, kernel_size, activation="relu", name=name, **options)

        widths = [width * 2 ** min(index, 3) for index in range(5)]
        self.convs = [
            conv(filters, 3, f"conv{stage}_{number}")
            for stage, (filters, count) in enumerate(zip(widths, self.stages, strict=True), start=1)
            for number in range(1, count + 1)
        ]
        self.fc = [conv(fc_channels, 3, "conv6", dilation=6), conv(fc_channels, 1, "conv7")]
        # PyTorch's pooling drops an odd last row; only SSD's third pooling keeps it (ceil_mode)
        self.pools = [keras.layers.MaxPooling2D(2, 2, "same" if stage == 2 else "valid") for stage in range(4)]
        self.last_pool = keras.layers.MaxPooling2D(3, 1, "same")
        self.features = ("c3", "c4")
        self.channels = {"c3": widths[3], "c4": fc_channels}
        self.strides = {"c3": 8, "c4": 16}
        for layer in self.convs[: sum(self.stages[:freeze_at])]:
            layer.trainable = False
        self.build((None, None, None, 3))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for images of shape (B, H, W, 3); B, H and W may be None."""
        channels = input_shape[-1]
        for layer in [*self.convs, *self.fc]:
            layer.build((None, None, None, channels))
            channels = layer.conv.filters
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Computes the feature maps of normalised images.

        Args:
            images: (B, H, W, 3) float, normalised.
            training: Ignored: the model has no norms.

        Returns:
            A dict of ``c3`` and ``c4``, (B, h, w, C) each. ``c3`` has ceil((H // 4) / 2) rows, and ``c4`` half
            as many, rounded down. The numbers of columns follow from W in the same way.
        """
        x, convs = images, iter(self.convs)
        for stage, (count, pool) in enumerate(zip(self.stages, [*self.pools, self.last_pool], strict=True)):
            for conv in itertools.islice(convs, count):
                x = conv(x)
            if stage == 3:
                finest = x
            x = pool(x)
        for conv in self.fc:
            x = conv(x)
        return {"c3": finest, "c4": x}
