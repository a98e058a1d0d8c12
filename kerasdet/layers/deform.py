"""Defines a deformable convolution with the interface of `ConvNorm`."""

import keras
import tensorflow as tf

from kerasdet.ops.deform_conv import deform_conv2d


class DeformConvNorm(keras.layers.Layer):
    """Applies a deformable convolution that predicts its own offsets, then a norm, then an activation.

    The sublayer `offset` is an ordinary convolution with the same kernel size, strides and dilation. It predicts an
    offset (y, x) for each position of the kernel. In version 2 it also predicts, in the last third of its channels, the
    logits of a mask in (0, 1), by which the sampled values are multiplied. The weights of `offset` start at zero: a new
    layer computes an ordinary convolution, in version 2 of halved inputs.

    Args:
        filters: Number of output channels.
        kernel_size: Height and width of the kernel in cells; odd.
        strides: Step of the kernel in cells, along both axes.
        dilation: Distance between neighbouring positions of the kernel, in cells.
        groups: Number of channel groups that are convolved separately.
        deform_groups: Number of input channel groups, each with its own offsets.
        deform_version: 1 (https://arxiv.org/abs/1703.06211), or 2 for offsets and a mask
            (https://arxiv.org/abs/1811.11168).
        norm: Layer that normalises the convolution's output, from `kerasdet.layers.make_norm`. None for no norm.
        activation: Name of a Keras activation, or a function. None for no activation.
        use_bias: Whether the convolution has a bias. None adds a bias only if `norm` is None.
        kernel_initializer: Keras initializer of the kernel. None: ``VarianceScaling(2, "fan_out")``.
        bias_initializer: Keras initializer of the bias.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `deform_version` is neither 1 nor 2.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        deform_version: int = 1,
        norm: keras.layers.Layer | None = None,
        activation: str | None = None,
        use_bias: bool | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        bias_initializer: keras.initializers.Initializer | str = "zeros",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if deform_version not in (1, 2):
            raise ValueError(f"deform_version is {deform_version}: choose 1 (offsets) or 2 (offsets and a mask).")
        self.deform_groups = deform_groups
        self.deform_version = deform_version
        self.pad = keras.layers.ZeroPadding2D(dilation * (kernel_size - 1) // 2, name="pad")
        self.offset = keras.layers.Conv2D(
            deform_groups * kernel_size**2 * (deform_version + 1),
            kernel_size,
            strides=strides,
            dilation_rate=dilation,
            kernel_initializer="zeros",
            name="offset",
        )
        # This layer is never called. It holds kernel and bias under the same names as `ConvNorm`, so that both layers
        # load the same entries of a checkpoint.
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            dilation_rate=dilation,
            groups=groups,
            use_bias=norm is None if use_bias is None else use_bias,
            kernel_initializer=kernel_initializer or keras.initializers.VarianceScaling(2.0, "fan_out"),
            bias_initializer=bias_initializer,
            name="conv",
        )
        self.norm = norm
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, H, W, C); B, H and W may be None."""
        self.offset.build(input_shape)
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.conv.filters))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Predicts offsets and applies the deformable convolution, norm and activation.

        Args:
            x: (B, H, W, C).
            training: Whether the norm uses the statistics of the batch.

        Returns:
            Features (B, ceil(H / strides), ceil(W / strides), filters).
        """
        offsets, mask = self.offset(self.pad(x)), None
        if self.deform_version == 2:
            channels = offsets.shape[-1]
            offsets, mask = tf.split(offsets, [channels // 3 * 2, channels // 3], axis=-1)
            mask = tf.sigmoid(mask)
        x = deform_conv2d(
            x,
            self.conv.kernel,
            offsets,
            mask,
            strides=self.conv.strides[0],
            padding=self.pad.padding[0][0],
            dilations=self.conv.dilation_rate[0],
            groups=self.conv.groups,
            deformable_groups=self.deform_groups,
        )
        if self.conv.use_bias:
            x += tf.cast(self.conv.bias, x.dtype)
        if self.norm is not None:
            x = self.norm(x, training=training)
        return self.activation(x)
