"""Resizes and pads images in the arithmetic of the source frameworks, as stock TensorFlow graph functions.

Every static shape may be unknown. `kerasdet.inference.preprocessing` chooses the rule and kernel for a model.
"""

import tensorflow as tf

_PIL_PRECISION = 22


def shortest_edge_size(height, width, shortest, longest, rounding):
    """The size at which the shorter edge is `shortest`, or the longer one `longest` where that is smaller.

    Args:
        height: () int, in pixels, as are all others.
        width: () int.
        shortest: () int.
        longest: () int.
        rounding: "detectron2" rounds to the nearest (`ResizeShortestEdge`), "torchvision" down
            (`GeneralizedRCNNTransform`).

    Returns:
        (height, width), () int32 each.

    Raises:
        ValueError: for another `rounding`.
    """
    height, width, shortest, longest = (tf.cast(x, tf.float64) for x in (height, width, shortest, longest))
    if rounding == "torchvision":
        scale = tf.minimum(shortest / tf.minimum(height, width), longest / tf.maximum(height, width))
        return tf.cast(height * scale, tf.int32), tf.cast(width * scale, tf.int32)
    if rounding != "detectron2":
        raise ValueError(f'rounding is "detectron2" or "torchvision", not {rounding!r}.')
    scale = shortest / tf.minimum(height, width)
    new_height = tf.where(height < width, shortest, scale * height)
    new_width = tf.where(height < width, scale * width, shortest)
    limit = tf.maximum(new_height, new_width)
    shrink = tf.where(limit > longest, longest / limit, 1.0)
    return tf.cast(new_height * shrink + 0.5, tf.int32), tf.cast(new_width * shrink + 0.5, tf.int32)


def resize(image, size, kernel):
    """Resizes to `size`.

    Args:
        image: (..., H, W, C), uint8 or float 0..255.
        size: (height, width), ints or a (2,) tensor.
        kernel: "bilinear" is `torch.nn.functional.interpolate` (half-pixel centres, no antialiasing); "pil" is
            `PIL.Image.resize(BILINEAR)` on uint8, antialiased, integral after each of its two passes. Pillow up to 12
            runs the horizontal pass first, always, and so does this.

    Returns:
        (..., height, width, C) float32.

    Raises:
        ValueError: for another `kernel`.
    """
    image = tf.convert_to_tensor(image)
    if kernel == "bilinear":
        return tf.image.resize(tf.cast(image, tf.float32), size, "bilinear", antialias=False)
    if kernel != "pil":
        raise ValueError(f'kernel is "bilinear" or "pil", not {kernel!r}.')
    image = image if image.dtype.is_integer else tf.clip_by_value(tf.round(image), 0, 255)
    image = _pil_pass(tf.cast(image, tf.int32), size[1], axis=-2)  # (..., H, width, C)
    return tf.cast(_pil_pass(image, size[0], axis=-3), tf.float32)  # (..., height, width, C)


def _pil_pass(image, size, axis):
    """Resamples an int32 image along one axis, in the fixed-point arithmetic of Pillow's `Resample.c`."""
    length = tf.shape(image)[axis]
    scale = tf.cast(length, tf.float64) / tf.cast(size, tf.float64)
    support = tf.maximum(scale, 1.0)
    center = (tf.range(tf.cast(size, tf.float64), dtype=tf.float64) + 0.5) * scale  # (size,)
    first = tf.maximum(tf.cast(center - support + 0.5, tf.int32), 0)
    last = tf.minimum(tf.cast(center + support + 0.5, tf.int32), length)
    taps = tf.range(tf.reduce_max(last - first))
    index = first + tf.expand_dims(taps, -1)  # (taps, size)
    distance = (tf.cast(index, tf.float64) - center + 0.5) * (1 / support)
    weight = tf.where(index < last, tf.maximum(1 - tf.abs(distance), 0.0), 0.0)
    weight = weight / tf.reduce_sum(weight, 0)
    weight = tf.cast(weight * 2**_PIL_PRECISION + 0.5, tf.int32)  # (taps, size)
    index = tf.minimum(index, length - 1)

    def tap(i):
        along_axis = tf.reshape(weight[i], [-1] + [1] * (-axis - 1))
        return tf.gather(image, index[i], axis=axis) * along_axis

    total = tap(0) + 2 ** (_PIL_PRECISION - 1)
    shape = total.shape
    _, total = tf.while_loop(
        lambda i, _: i < tf.size(taps),
        lambda i, total: (i + 1, tf.ensure_shape(total + tap(i), shape)),
        (1, total),
    )
    return tf.bitwise.right_shift(total, _PIL_PRECISION)


def pad_to(image, height, width):
    """Pads an image (..., H, W, C) with zeros at the bottom and the right to (..., height, width, C)."""
    shape = tf.shape(image)
    batch = [[0, 0]] * (len(image.shape) - 3)
    return tf.pad(image, [*batch, [0, height - shape[-3]], [0, width - shape[-2]], [0, 0]])
