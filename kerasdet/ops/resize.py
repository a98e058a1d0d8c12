"""Resizes and pads images with the arithmetic of the source frameworks, in stock TensorFlow ops.

Every static shape may be unknown. `kerasdet.inference.preprocessing` chooses rounding and kernel for a model.
"""

import tensorflow as tf

ROUNDINGS = ("detectron2", "torchvision", "mmdetection")
KERNELS = ("pil", "bilinear", "opencv")
UINT8_KERNELS = ("pil", "opencv")  # whose results are whole numbers

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
        rounding: "detectron2" scales the shorter edge, then shrinks both edges if the longer one exceeds its limit, and
            rounds to the nearest pixel (`ResizeShortestEdge`). The others scale once, by the smaller of the two
            factors: "torchvision" rounds down (`GeneralizedRCNNTransform`), "mmdetection" to the nearest pixel
            (`mmcv.imrescale`).

    Returns:
        The new height and width in pixels, () int32 each.

    Raises:
        ValueError: If `rounding` is unknown.

    Example:
        >>> [int(x) for x in shortest_edge_size(480, 640, 800, 1333, "detectron2")]
        [800, 1067]
    """
    height, width, shortest, longest = (tf.cast(x, tf.float64) for x in (height, width, shortest, longest))
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}: expected one of {', '.join(ROUNDINGS)}. Choose one of them.")
    if rounding != "detectron2":
        scale = tf.minimum(shortest / tf.minimum(height, width), longest / tf.maximum(height, width))
        offset = 0.5 if rounding == "mmdetection" else 0.0
        return tf.cast(height * scale + offset, tf.int32), tf.cast(width * scale + offset, tf.int32)
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
            which comes first (Pillow up to 12), and after the vertical one. "opencv" equals `cv2.resize` with
            INTER_LINEAR on uint8 (`mmcv.imrescale`): not antialiased, in fixed-point arithmetic. Both round floats to
            integers first.

    Returns:
        (..., height, width, C) float32.

    Raises:
        ValueError: If `kernel` is unknown.
    """
    image = tf.convert_to_tensor(image)
    if kernel == "bilinear":
        return tf.image.resize(tf.cast(image, tf.float32), size, "bilinear", antialias=False)
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}: expected one of {', '.join(KERNELS)}. Choose one of them.")
    image = image if image.dtype.is_integer else tf.clip_by_value(tf.round(image), 0, 255)
    image = tf.cast(image, tf.int32)
    if kernel == "opencv":
        return tf.cast(_opencv_resize(image, size), tf.float32)
    image = _pil_pass(image, size[1], axis=-2)  # (..., H, width, C)
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


def _opencv_resize(image, size):
    """Resizes an int32 image (..., H, W, C) as OpenCV's INTER_LINEAR does for uint8, in its fixed-point arithmetic.

    OpenCV blends columns with weights of 11 bits, then rows, and drops bits in between. At exactly half the size it
    takes means of 2x2 pixels instead.
    """
    shape = tf.shape(image)
    height, width = size[0], size[1]
    is_half = (shape[-3] == 2 * height) & (shape[-2] == 2 * width)
    resized = tf.cond(is_half, lambda: _mean_of_2x2(image), lambda: _opencv_blend(image, height, width))
    return tf.ensure_shape(resized, [*image.shape[:-3], None, None, image.shape[-1]])


def _mean_of_2x2(image):
    """Averages blocks of 2x2 pixels; it is traced for odd sizes, too, and then leaves out the last row or column."""
    upper, lower = image[..., :-1:2, :, :], image[..., 1::2, :, :]
    rows = upper + lower
    return tf.bitwise.right_shift(rows[..., :-1:2, :] + rows[..., 1::2, :] + 2, 2)


def _opencv_blend(image, height, width):
    """Blends two columns, then two rows, for each output pixel; 27 bits are the most that a value has."""
    left, right, weights = _opencv_taps(width, tf.shape(image)[-2], clamp=True)
    rows = tf.gather(image, left, axis=-2) * weights[:, :1] + tf.gather(image, right, axis=-2) * weights[:, 1:]
    upper, lower, weights = _opencv_taps(height, tf.shape(image)[-3], clamp=False)
    weights = weights[:, :, None, None]

    def part(index, weight):
        return tf.bitwise.right_shift(tf.bitwise.right_shift(tf.gather(rows, index, axis=-3), 4) * weight, 16)

    total = part(upper, weights[:, 0]) + part(lower, weights[:, 1])
    return tf.clip_by_value(tf.bitwise.right_shift(total + 2, 2), 0, 255)


def _opencv_taps(size, length, clamp):
    """Returns the two source positions (size,) of each output position and their weights (size, 2), in 1/2048."""
    scale = 1 / (tf.cast(size, tf.float64) / tf.cast(length, tf.float64))  # OpenCV divides twice, too
    center = tf.cast((tf.range(tf.cast(size, tf.float64), dtype=tf.float64) + 0.5) * scale - 0.5, tf.float32)
    first = tf.cast(tf.floor(center), tf.int32)
    fraction = center - tf.cast(first, tf.float32)
    if clamp:
        fraction = tf.where((first < 0) | (first >= length - 1), 0.0, fraction)
        first = tf.clip_by_value(first, 0, length - 1)
    weights = tf.cast(tf.round(tf.stack([1 - fraction, fraction], 1) * 2048), tf.int32)
    return tf.clip_by_value(first, 0, length - 1), tf.clip_by_value(first + 1, 0, length - 1), weights


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
