"""A deformable convolution in the place of an ordinary one."""

import keras
import tensorflow as tf

from kerasdet.ops.deform_conv import deform_conv2d


class DeformConvNorm(keras.layers.Layer):
    """Deformable convolution that finds its own offsets, then a norm, then an activation.

    An ordinary convolution (`offset`, zero at first) of the same kernel size, strides and dilation gives the offsets as
    (y, x) per tap and, in version 2, after all of these the logits of the mask. At first it is an ordinary convolution,
    in version 2 with halved outputs.

    Args:
        filters: Output channels.
        kernel_size: Odd.
        strides: Step in both directions.
        dilation: Distance of the taps.
        groups: Of the convolution.
        deform_groups: Parts of the input channels with offsets of their own.
        deform_version: 1, or 2 with a mask.
        norm: A layer of `kerasdet.layers.norm`, or None.
        activation: A Keras activation, or None.
        use_bias: By default only without a norm.
        kernel_initializer: He's normal over the outputs.
        bias_initializer: A Keras initializer.

    Raises:
        ValueError: If the version is neither 1 nor 2.
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
        kernel_initializer=None,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if deform_version not in (1, 2):
            raise ValueError(f"Deformable convolution has no version {deform_version}: choose 1 or 2 (with a mask).")
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
        # Never called: it holds the variables under the names that they have in `ConvNorm`.
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

    def build(self, input_shape):
        self.offset.build(input_shape)
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.conv.filters))

    def call(self, x, training=False):
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
