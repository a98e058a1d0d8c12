"""Defines deformable convolution (version 1: https://arxiv.org/abs/1703.06211, 2: https://arxiv.org/abs/1811.11168)."""

import tensorflow as tf

from kerasdet.ops.dispatch import compiled_ops
from kerasdet.ops.sparse import weighted_rows


def deform_conv2d(
    x: tf.Tensor,
    kernel: tf.Tensor,
    offsets: tf.Tensor,
    mask: tf.Tensor | None = None,
    *,
    strides: int = 1,
    padding: int = 0,
    dilations: int = 1,
    groups: int = 1,
    deformable_groups: int = 1,
) -> tf.Tensor:
    """Applies a deformable convolution: each position of the kernel (a tap) samples the features at its own offset.

    Samples between cells are interpolated bilinearly. Outside the feature map the features are 0. The backward pass
    recomputes the samples, because storing them would need kh * kw times the memory of `x`.

    Args:
        x: (B, H, W, C), the features, of any float dtype.
        kernel: (kh, kw, C / groups, O), the weights of the convolution.
        offsets: (B, h, w, G * kh * kw * 2), the offsets in cells, as (y, x) per tap. Each of the G deformable groups of
            C / G channels has its own offsets.
        mask: (B, h, w, G * kh * kw), the factors by which the samples are multiplied (version 2). None: version 1.
        strides: Step of the kernel in cells, along both axes.
        padding: Number of zero cells added on all four sides.
        dilations: Distance between neighbouring taps in cells.
        groups: Number of channel groups that are convolved separately; an output channel depends on C / groups input
            channels.
        deformable_groups: G, the number of channel groups that have their own offsets.

    Returns:
        The output, (B, h, w, O) of the dtype of `x`, computed in float32. (h, w) is the size of `offsets`.

    Raises:
        ValueError: If the channels of `x`, `kernel`, `offsets` and `mask` do not fit each other or the numbers of
            groups.

    Example:
        >>> x, kernel = tf.ones([1, 8, 8, 16]), tf.ones([3, 3, 16, 4])
        >>> offsets = tf.zeros([1, 8, 8, 3 * 3 * 2])  # zero offsets: an ordinary convolution
        >>> deform_conv2d(x, kernel, offsets, padding=1).shape
        TensorShape([1, 8, 8, 4])
    """
    x, kernel, offsets = tf.convert_to_tensor(x), tf.convert_to_tensor(kernel), tf.convert_to_tensor(offsets)
    _check(x.shape[-1], kernel.shape, offsets.shape[-1], mask, groups, deformable_groups)
    convolve = _reference if compiled_ops() is None else _compiled
    arguments = [tf.cast(value, tf.float32) for value in (x, kernel, offsets, mask) if value is not None]
    result = convolve(arguments, strides, padding, dilations, groups, deformable_groups)
    return tf.ensure_shape(tf.cast(result, x.dtype), [*offsets.shape[:3], kernel.shape[3]])


def _compiled(arguments, stride, padding, dilation, groups, deformable_groups):
    """Samples the columns with the compiled op and multiplies them with the kernel in TensorFlow."""
    library = compiled_ops()
    kernel_height, kernel_width, depth, filters = arguments[1].shape
    attributes = {
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "deformable_groups": deformable_groups,
        "masked": len(arguments) == 4,
    }
    rows = kernel_height * kernel_width * depth  # rows of a group's kernel as a matrix

    @tf.custom_gradient
    def convolve(x, kernel, offsets, *mask):
        size = tf.shape(offsets)[:3]
        inputs = {"x": x, "offsets": offsets, "mask": mask[0] if mask else tf.zeros(tf.concat([size, [0]], 0))}
        matrix = _split(tf.reshape(kernel, [rows, filters]), groups)
        columns = library.kerasdet_deform_columns(**inputs, **attributes)
        columns = tf.ensure_shape(columns, [groups, None, rows])  # (groups, B * h * w, rows)

        def gradient(upstream):
            upstream = _split(tf.reshape(upstream, [-1, filters]), groups)  # (groups, B * h * w, O / groups)
            to_columns = tf.matmul(upstream, matrix, transpose_b=True)
            to_x, to_offsets, to_mask, columns = library.kerasdet_deform_columns_grad(
                **inputs, grad=to_columns, **attributes
            )
            columns = tf.ensure_shape(columns, [groups, None, rows])
            to_matrix = tf.matmul(columns, upstream, transpose_a=True)
            to_kernel = tf.reshape(_join(to_matrix, groups), kernel.shape)
            to_x, to_offsets = tf.ensure_shape(to_x, x.shape), tf.ensure_shape(to_offsets, offsets.shape)
            return [to_x, to_kernel, to_offsets, *[tf.ensure_shape(to_mask, value.shape) for value in mask]]

        result = _join(tf.matmul(columns, matrix), groups)
        return tf.reshape(result, tf.concat([size, [filters]], 0)), gradient

    return convolve(*arguments)


def _split(matrix, groups):
    """Splits the columns of a matrix (N, columns) into groups: (groups, N, columns / groups)."""
    if groups == 1:
        return matrix[tf.newaxis]
    return tf.transpose(tf.reshape(matrix, [-1, groups, matrix.shape[1] // groups]), [1, 0, 2])


def _join(matrices, groups):
    """Reverses `_split`."""
    if groups == 1:
        return matrices[0]
    return tf.reshape(tf.transpose(matrices, [1, 0, 2]), [tf.shape(matrices)[1], groups * matrices.shape[2]])


def _reference(arguments, strides, padding, dilations, groups, deformable_groups):
    """Computes the convolution in stock TensorFlow ops."""
    kernel_height, kernel_width, _, filters = arguments[1].shape
    channels, taps = arguments[0].shape[-1], kernel_height * kernel_width

    def convolve(x, kernel, offsets, *mask):
        grid = _taps(tf.shape(offsets)[1:3], kernel_height, kernel_width, strides, padding, dilations)
        shape = tf.concat([tf.shape(offsets)[:3], [deformable_groups, taps]], 0)
        points = grid + tf.reshape(offsets, tf.concat([shape, [2]], 0))  # (B, h, w, G, taps, 2)
        points = tf.einsum("bhwgtc->bhwtgc", points)
        indices, weights = _corners(points, tf.shape(x))
        if mask:
            weights *= tf.einsum("bhwgt->bhwtg", tf.reshape(mask[0], shape))[..., None]
        table = tf.reshape(x, [-1, channels // deformable_groups])  # (B * H * W * G, C / G)
        samples = weighted_rows(table, tf.reshape(indices, [-1, 4]), tf.reshape(weights, [-1, 4]))
        samples = tf.reshape(samples, [-1, taps, groups, channels // groups])
        by_group = tf.reshape(kernel, [taps, channels // groups, groups, filters // groups])
        result = tf.einsum("ntgc,tcgo->ngo", samples, by_group)
        return tf.reshape(result, tf.concat([shape[:3], [filters]], 0))

    return _recompute(convolve)(*arguments)


def _recompute(function):
    """Wraps `function` so that its gradient recomputes it and stores only the arguments."""

    @tf.custom_gradient
    def forward(*arguments):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                result = function(*arguments)
            return tape.gradient(result, arguments, upstream)

        return function(*arguments), gradient

    return forward


def _taps(size, kernel_height, kernel_width, strides, padding, dilations):
    """Returns the positions of the taps without offsets, in cells: (h, w, 1, taps, 2) as (y, x)."""
    axes = [
        tf.range(length)[:, None] * strides - padding + tf.range(taps) * dilations
        for length, taps in ((size[0], kernel_height), (size[1], kernel_width))
    ]
    shape = [size[0], size[1], kernel_height, kernel_width]
    y = tf.broadcast_to(axes[0][:, None, :, None], shape)
    x = tf.broadcast_to(axes[1][None, :, None, :], shape)
    grid = tf.cast(tf.stack([y, x], -1), tf.float32)
    return tf.reshape(grid, [size[0], size[1], 1, kernel_height * kernel_width, 2])


def _corners(points, shape):
    """Finds the four cells around each point and their bilinear weights.

    Args:
        points: (B, h, w, taps, G, 2), positions in cells as (y, x).
        shape: (4,) int32, the shape of the feature map.

    Returns:
        Indices into the B * H * W * G cells, and weights, which are 0 outside the map: (B, h, w, taps, G, 4) each.
    """
    groups = points.shape[4]
    lower = tf.stop_gradient(tf.floor(points))
    fraction = points - lower
    limit = shape[1:3]
    # Every point outside the map has weight 0. Clipping keeps distant points in the range of int32.
    lower = tf.cast(tf.clip_by_value(lower, -2.0, tf.cast(limit, tf.float32)), tf.int32)
    image = tf.reshape(tf.range(shape[0]), [-1, 1, 1, 1, 1])
    indices, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            cell = lower + tf.constant([dy, dx])
            inside = tf.reduce_all((cell >= 0) & (cell < limit), -1)
            cell = tf.clip_by_value(cell, 0, limit - 1)
            row = image * shape[1] + cell[..., 0]
            indices.append((row * shape[2] + cell[..., 1]) * groups + tf.range(groups))
            weight_y = fraction[..., 0] if dy else 1 - fraction[..., 0]
            weight_x = fraction[..., 1] if dx else 1 - fraction[..., 1]
            weights.append(tf.where(inside, weight_y * weight_x, 0.0))
    return tf.stack(indices, -1), tf.stack(weights, -1)


def _check(channels, kernel_shape, num_offsets, mask, groups, deformable_groups):
    taps = kernel_shape[0] * kernel_shape[1]
    if channels % groups or kernel_shape[3] % groups or channels % deformable_groups:
        raise ValueError(
            f"deform_conv2d has {channels} input channels, {kernel_shape[3]} filters, groups={groups} and "
            f"deformable_groups={deformable_groups}: groups must divide channels and filters, deformable_groups must "
            "divide the channels. Change groups or deformable_groups."
        )
    if kernel_shape[2] != channels // groups:
        raise ValueError(
            f"The kernel of deform_conv2d has {kernel_shape[2]} input channels: expected {channels // groups}, the "
            f"{channels} channels of x divided by {groups} groups. Change the kernel or `groups`."
        )
    expected = deformable_groups * taps
    for name, number, given in (("offsets", expected * 2, num_offsets), ("mask", expected, _channels(mask))):
        if given not in (None, number):
            raise ValueError(
                f"`{name}` of deform_conv2d has {given} channels: expected {number}, for {deformable_groups} "
                f"deformable groups of {taps} kernel positions. Change `{name}` or `deformable_groups`."
            )


def _channels(x):
    return None if x is None else x.shape[-1]
