"""Defines convolutions with PyTorch's padding, a norm and an activation."""

import keras
import tensorflow as tf

from kerasdet.keras_utils import check_data_format


class ConvNorm(keras.layers.Layer):
    """Applies a convolution padded like PyTorch's, then a norm, then an activation.

    TensorFlow's "SAME" padding adds an odd pixel at the bottom right. With a stride of 2, its windows are one pixel
    off those of the source frameworks. This layer pads all four sides by ``dilation * (kernel_size - 1) / 2`` cells.

    Args:
        filters: Number of output channels.
        kernel_size: Height and width of the kernel in cells; odd.
        strides: Step of the kernel in cells, along both axes.
        dilation: Distance between neighbouring kernel taps in cells.
        groups: Number of channel groups that are convolved separately. Must divide the number of input channels and
            `filters`.
        padded: Whether to pad. If False the output is smaller than the input, as with "valid" padding.
        norm: Layer that normalises the convolution's output, from `kerasdet.layers.make_norm`. None for no norm.
        activation: Name of a Keras activation, or a function. None for no activation.
        use_bias: Whether the convolution has a bias. None adds a bias only if `norm` is None.
        kernel_initializer: Keras initializer of the kernel. None: ``VarianceScaling(2, "fan_out")``, He's normal
            initializer as in PyTorch's ResNets.
        bias_initializer: Keras initializer of the bias.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> layer = ConvNorm(64, 3, strides=2, norm=make_norm("bn"), activation="relu")
        >>> layer(tf.zeros([1, 65, 97, 3])).shape
        TensorShape([1, 33, 49, 64])
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padded: bool = True,
        norm: keras.layers.Layer | None = None,
        activation: str | None = None,
        use_bias: bool | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        bias_initializer: keras.initializers.Initializer | str = "zeros",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        check_data_format()  # every backbone and head of kerasdet has this layer
        padding = dilation * (kernel_size - 1) // 2
        self.pad = keras.layers.ZeroPadding2D(padding, name="pad") if strides > 1 and padding and padded else None
        # Workaround for oneDNN in TensorFlow 2.21 (CPU): the gradient of a strided 1x1 convolution writes out of bounds
        # when image sizes change, and corrupts the heap. Slicing first and convolving with stride 1 gives the same
        # numbers. It can go when the oldest supported TensorFlow has a fixed oneDNN.
        self.slice_step = strides if kernel_size == 1 else 1
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides // self.slice_step,
            dilation_rate=dilation,
            groups=groups,
            padding="same" if self.pad is None and padded else "valid",
            use_bias=norm is None if use_bias is None else use_bias,
            kernel_initializer=kernel_initializer or keras.initializers.VarianceScaling(2.0, "fan_out"),
            bias_initializer=bias_initializer,
            name="conv",
        )
        self.norm = norm
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, H, W, C); B, H and W may be None."""
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.conv.filters))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies convolution, norm and activation.

        Args:
            x: (B, H, W, C).
            training: Whether the norm uses the statistics of the batch.

        Returns:
            Features (B, ceil(H / strides), ceil(W / strides), filters); smaller if `padded` is False.
        """
        x = x[:, :: self.slice_step, :: self.slice_step] if self.slice_step > 1 else x
        x = self.conv(x if self.pad is None else self.pad(x))
        if self.norm is not None:
            x = self.norm(x, training=training)
        return self.activation(x)


class DepthwiseConvNorm(keras.layers.Layer):
    """Applies a depthwise convolution padded like PyTorch's, then a norm, then an activation.

    Args:
        kernel_size: Height and width of the kernels in cells; odd.
        strides: Step of the kernels in cells, along both axes.
        norm: Layer that normalises the convolution's output, from `kerasdet.layers.make_norm`. None for no norm.
        activation: Name of a Keras activation, or a function. None for no activation.
        use_bias: Whether the convolution has a bias. None adds a bias only if `norm` is None.
        kernel_initializer: Keras initializer of the kernels.
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> DepthwiseConvNorm(5, norm=make_norm("bn"), activation="silu")(tf.zeros([1, 8, 9, 64])).shape
        TensorShape([1, 8, 9, 64])
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        strides: int = 1,
        norm: keras.layers.Layer | None = None,
        activation: str | None = None,
        use_bias: bool | None = None,
        kernel_initializer: keras.initializers.Initializer | str = "glorot_uniform",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.pad = keras.layers.ZeroPadding2D(kernel_size // 2, name="pad") if strides > 1 else None
        self.conv = keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            padding="same" if self.pad is None else "valid",
            use_bias=norm is None if use_bias is None else use_bias,
            depthwise_initializer=kernel_initializer,
            name="depthwise_conv",
        )
        self.norm = norm
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of shape (B, H, W, C); B, H and W may be None."""
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies convolution, norm and activation.

        Args:
            x: (B, H, W, C).
            training: Whether the norm uses the statistics of the batch.

        Returns:
            Features (B, ceil(H / strides), ceil(W / strides), C).
        """
        x = self.conv(x if self.pad is None else self.pad(x))
        if self.norm is not None:
            x = self.norm(x, training=training)
        return self.activation(x)
