"""The convolution that everything is built of."""

import keras


class ConvNorm(keras.layers.Layer):
    """Convolution padded as PyTorch pads, then a norm, then an activation.

    TensorFlow's "SAME" puts the odd pixel of padding at the bottom right; a stride of 2 then samples other pixels
    than the source frameworks do. Here both sides get ``dilation * (kernel_size - 1) / 2``.

    Args:
        filters: Output channels.
        kernel_size: Odd.
        strides: Step in both directions.
        dilation: Distance of the taps.
        groups: Parts of the channels that do not see one another.
        norm: A layer of `kerasdet.layers.norm`, or None.
        activation: A Keras activation, or None.
        use_bias: By default only without a norm.
        kernel_initializer: He's normal over the outputs, as ResNets are initialised.
        bias_initializer: A Keras initializer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: keras.layers.Layer | None = None,
        activation: str | None = None,
        use_bias: bool | None = None,
        kernel_initializer=None,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        padding = dilation * (kernel_size - 1) // 2
        self.pad = keras.layers.ZeroPadding2D(padding, name="pad") if strides > 1 and padding else None
        # TensorFlow 2.21's oneDNN writes out of bounds in the gradient of a 1x1 kernel with strides
        self.skip = strides if kernel_size == 1 else 1
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides // self.skip,
            dilation_rate=dilation,
            groups=groups,
            padding="same" if self.pad is None else "valid",
            use_bias=norm is None if use_bias is None else use_bias,
            kernel_initializer=kernel_initializer or keras.initializers.VarianceScaling(2.0, "fan_out"),
            bias_initializer=bias_initializer,
            name="conv",
        )
        self.norm = norm
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.conv.filters))

    def call(self, x, training=False):
        x = x[:, :: self.skip, :: self.skip] if self.skip > 1 else x
        x = self.conv(x if self.pad is None else self.pad(x))
        if self.norm is not None:
            x = self.norm(x, training=training)
        return self.activation(x)
