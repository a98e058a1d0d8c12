"""Resizes and pads images with the arithmetic of the source frameworks, in stock TensorFlow ops.

Every static shape may be unknown. `kerasdet.inference.preprocessing` chooses rounding and kernel for a model.
"""

import tensorflow as tf

_PIL_PRECISION = 22  # bits behind the binary point of Pillow's 8-bit resampling weights


def shortest_edge_size(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    shortest: int | tf.Tensor,
    longest: int | tf.Tensor,
    rounding: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the size of an image whose shorter edge is resized to `shortest`.

    If the longer edge would then exceed `longest`, it is resized to `longest` instead. The aspect ratio is kept.

    Args:
        height: () int. Height of the image in pixels.
        width: () int. Width of the image in pixels.
        shortest: () int. Target length of the shorter edge in pixels.
        longest: () int. Largest length of the longer edge in pixels.
        rounding: "detectron2" rounds to the nearest pixel (`ResizeShortestEdge`), "torchvision" rounds down
            (`GeneralizedRCNNTransform`).

    Returns:
        The new height and width in pixels, () int32 each.

    Raises:
        ValueError: If `rounding` is unknown.

    Example:
        >>> [int(x) for x in shortest_edge_size(480, 640, 800, 1333, "detectron2")]
        [800, 1067]
    """
    height, width, shortest, longest = (tf.cast(x, tf.float64) for x in (height, width, shortest, longest))
    if rounding == "torchvision":
        scale = tf.minimum(shortest / tf.minimum(height, width), longest / tf.maximum(height, width))
        return tf.cast(height * scale, tf.int32), tf.cast(width * scale, tf.int32)
    if rounding != "detectron2":
        raise ValueError(f'rounding is {rounding!r}: expected "detectron2" or "torchvision". Choose one of them.')
    scale = shortest / tf.minimum(height, width)
    new_height = tf.where(height < width, shortest, scale * height)
    new_width = tf.where(height < width, scale * width, shortest)
    limit = tf.maximum(new_height, new_width)
    shrink = tf.where(limit > longest, longest / limit, 1.0)
    return tf.cast(new_height * shrink + 0.5, tf.int32), tf.cast(new_width * shrink + 0.5, tf.int32)


def resize(image: tf.Tensor, size: tuple[int, int] | tf.Tensor, kernel: str) -> tf.Tensor:
    """Resizes images to a size.

    Args:
        image: (..., H, W, C) uint8, or float in 0..255.
        size: New height and width in pixels, two ints or a (2,) tensor.
        kernel: "bilinear" equals `torch.nn.functional.interpolate` (half-pixel centres, no antialiasing). "pil" equals
            `PIL.Image.resize` with BILINEAR on uint8: antialiased, and rounded to integers after the horizontal pass,
            which comes first (Pillow up to 12), and after the vertical one.

    Returns:
        (..., height, width, C) float32.

    Raises:
        ValueError: If `kernel` is unknown.
    """
    image = tf.convert_to_tensor(image)
    if kernel == "bilinear":
        return tf.image.resize(tf.cast(image, tf.float32), size, "bilinear", antialias=False)
    if kernel != "pil":
        raise ValueError(f'kernel is {kernel!r}: expected "bilinear" or "pil". Choose one of them.')
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


def pad_to(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Pads images with zeros at the bottom and on the right.

    Args:
        image: (..., H, W, C).
        height: Height after padding in pixels, at least H.
        width: Width after padding in pixels, at least W.

    Returns:
        (..., height, width, C) of the type of `image`.
    """
    shape = tf.shape(image)
    batch = [[0, 0]] * (len(image.shape) - 3)
    return tf.pad(image, [*batch, [0, height - shape[-3]], [0, width - shape[-2]], [0, 0]])
