"""Resizes and pads images with the arithmetic of the source frameworks.

Single RGB images of dtype uint8 are resized by a compiled op if the library loads; stock TensorFlow ops give the same
pixels. Heights and widths may be unknown when a graph is traced. `kerasdet.inference.preprocessing` holds a model's
choice of rounding and kernel.
"""

import tensorflow as tf

from kerasdet.ops.dispatch import compiled_ops

tf.no_gradient("Kerasdet>Resize")

ROUNDINGS = ("detectron2", "torchvision", "mmdetection", "square")
KERNELS = ("pil", "bilinear", "opencv")
UINT8_KERNELS = ("pil", "opencv")  # kernels with uint8 results

_PIL_PRECISION = 22  # fractional bits of Pillow's weights for 8-bit images


def shortest_edge_size(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    shortest: int | tf.Tensor,
    longest: int | tf.Tensor,
    rounding: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the size of an image whose shorter edge is resized to `shortest`.

    If the longer edge would then exceed `longest`, it is resized to `longest` instead. The aspect ratio is preserved,
    except with the rounding "square".

    Args:
        height: Height of the image in pixels, an integer.
        width: Width of the image in pixels, an integer.
        shortest: Target length of the shorter edge in pixels, an integer.
        longest: Largest length of the longer edge in pixels, an integer.
        rounding: "detectron2" scales the shorter edge, then shrinks both edges if the longer one exceeds its limit, and
            rounds to the nearest pixel (`ResizeShortestEdge`). "torchvision" (`GeneralizedRCNNTransform`) and
            "mmdetection" (`mmcv.imrescale`) scale both edges once, by the smaller of `shortest` / shorter edge and
            `longest` / longer edge; "torchvision" rounds down, "mmdetection" to the nearest pixel. "square" stretches
            every image to a square of side `shortest`, or `longest` if that is smaller (SSD).

    Returns:
        The new height and width in pixels, two scalar int32 tensors.

    Raises:
        ValueError: If `rounding` is unknown.

    Example:
        >>> [int(x) for x in shortest_edge_size(480, 640, 800, 1333, "detectron2")]
        [800, 1067]
    """
    height, width, shortest, longest = (tf.cast(x, tf.float64) for x in (height, width, shortest, longest))
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}: expected one of {', '.join(ROUNDINGS)}. Change rounding.")
    if rounding == "square":
        side = tf.cast(tf.minimum(shortest, longest), tf.int32)
        return side, side
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


def resize(
    image: tf.Tensor, size: tuple[int, int] | tf.Tensor, kernel: str, window: tf.Tensor | None = None
) -> tf.Tensor:
    """Resizes images to a size, and returns the resized images or a window of them.

    Args:
        image: (H, W, C) or (B, H, W, C) uint8, or float in 0..255.
        size: New height and width in pixels, two ints or a (2,) tensor.
        kernel: "bilinear" equals `torch.nn.functional.interpolate` (half-pixel centres, no antialiasing). "pil" equals
            `PIL.Image.resize` with BILINEAR on uint8 in Pillow up to 12: antialiased, first horizontally, then
            vertically, and rounded to integers after each pass. "opencv" equals `cv2.resize` with INTER_LINEAR on uint8
            (`mmcv.imrescale`): not antialiased, in fixed-point arithmetic. "pil" and "opencv" first round floats to
            integers.
        window: (4,) int32 yxyx, a window inside the resized image, in pixels. Only its pixels are returned, with the
            values of a crop of the whole result. None: the whole image.

    Returns:
        The resized images or windows, (height, width, C) or (B, height, width, C) float32.

    Raises:
        ValueError: If `kernel` is unknown.
    """
    image = tf.convert_to_tensor(image)
    if kernel == "bilinear":
        return _crop(tf.image.resize(tf.cast(image, tf.float32), size, "bilinear", antialias=False), window)
    image = image if image.dtype.is_integer else tf.clip_by_value(tf.round(image), 0, 255)
    return tf.cast(resize_uint8(tf.cast(image, tf.uint8), size, kernel, window), tf.float32)


def resize_uint8(
    image: tf.Tensor, size: tuple[int, int] | tf.Tensor, kernel: str, window: tf.Tensor | None = None
) -> tf.Tensor:
    """Resizes uint8 images by a kernel with uint8 results; see `resize`.

    Args:
        image: (..., H, W, C) uint8.
        size: New height and width in pixels, two ints or a (2,) tensor.
        kernel: "pil" or "opencv".
        window: (4,) int32 yxyx, a window inside the resized image, in pixels. None: the whole image.

    Returns:
        The resized images or windows, (..., height, width, C) uint8.

    Raises:
        ValueError: If `kernel` is neither "pil" nor "opencv".
    """
    if kernel not in UINT8_KERNELS:
        raise ValueError(f"kernel is {kernel!r}: expected one of {', '.join(UINT8_KERNELS)}. Change kernel.")
    library = compiled_ops(for_gpus=False) if image.shape.rank == 3 and image.shape[-1] == 3 else None
    if library is not None:
        size = tf.cast(size, tf.int32)
        window = tf.concat([[0, 0], size], 0) if window is None else tf.cast(window, tf.int32)
        resized = library.kerasdet_resize(image=image, size=size, window=window, opencv=kernel == "opencv")
        return tf.ensure_shape(resized, (None, None, 3))
    function = _opencv_resize if kernel == "opencv" else _pil_resize
    return tf.cast(function(tf.cast(image, tf.int32), size, window), tf.uint8)


def _crop(image, window):
    return image if window is None else image[..., window[0] : window[2], window[1] : window[3], :]


def _ranges(size, window):
    """Returns the first and last row, and the first and last column to compute."""
    if window is None:
        return 0, size[0], 0, size[1]
    y1, x1, y2, x2 = tf.unstack(window)
    return y1, y2, x1, x2


def _pil_resize(image, size, window):
    """Resizes an int32 image (..., H, W, C) as Pillow does, in the fixed-point arithmetic of its `Resample.c`."""
    y1, y2, x1, x2 = _ranges(size, window)
    y_index, y_weight = _pil_taps(size[0], tf.shape(image)[-3], y1, y2)
    x_index, x_weight = _pil_taps(size[1], tf.shape(image)[-2], x1, x2)
    if window is not None:  # other rows do not touch the window
        first, last = tf.reduce_min(y_index), tf.reduce_max(y_index)
        image, y_index = image[..., first : last + 1, :, :], y_index - first
    image = _pil_pass(image, x_index, x_weight, axis=-2)  # (..., H, width, C)
    return _pil_pass(image, y_index, y_weight, axis=-3)  # (..., height, width, C)


def _pil_taps(size, length, start, stop):
    """Returns source positions and weights of output positions `start` to `stop`: (taps, stop - start) int32 each."""
    scale = tf.cast(length, tf.float64) / tf.cast(size, tf.float64)
    support = tf.maximum(scale, 1.0)
    center = (tf.range(tf.cast(start, tf.float64), tf.cast(stop, tf.float64), dtype=tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(center - support + 0.5, tf.int32), 0)
    last = tf.minimum(tf.cast(center + support + 0.5, tf.int32), length)
    taps = tf.range(tf.reduce_max(last - first))
    index = first + tf.expand_dims(taps, -1)  # (taps, size)
    distance = (tf.cast(index, tf.float64) - center + 0.5) * (1 / support)
    weight = tf.where(index < last, tf.maximum(1 - tf.abs(distance), 0.0), 0.0)
    weight = weight / tf.reduce_sum(weight, 0)
    weight = tf.cast(weight * 2**_PIL_PRECISION + 0.5, tf.int32)  # (taps, size)
    return tf.minimum(index, length - 1), weight


def _pil_pass(image, index, weight, axis):
    """Sums the weighted taps along one axis and drops the fractional bits."""

    def tap(i):
        along_axis = tf.reshape(weight[i], [-1] + [1] * (-axis - 1))
        return tf.gather(image, index[i], axis=axis) * along_axis

    total = tap(0) + 2 ** (_PIL_PRECISION - 1)
    shape = total.shape
    _, total = tf.while_loop(
        lambda i, _: i < tf.shape(index)[0],
        lambda i, total: (i + 1, tf.ensure_shape(total + tap(i), shape)),
        (1, total),
    )
    return tf.bitwise.right_shift(total, _PIL_PRECISION)


def _opencv_resize(image, size, window):
    """Resizes an int32 image (..., H, W, C) as OpenCV's INTER_LINEAR does for uint8, in its fixed-point arithmetic.

    OpenCV blends columns with 11-bit weights, then rows, and drops bits in between. If the new size is exactly half the
    old one, it computes means of 2x2 pixels instead.
    """
    shape = tf.shape(image)
    is_half = (shape[-3] == 2 * size[0]) & (shape[-2] == 2 * size[1])
    resized = tf.cond(is_half, lambda: _crop(_mean_of_2x2(image), window), lambda: _opencv_blend(image, size, window))
    return tf.ensure_shape(resized, [*image.shape[:-3], None, None, image.shape[-1]])


def _mean_of_2x2(image):
    """Averages blocks of 2x2 pixels. It is also traced for odd sizes, and then leaves out the last row or column."""
    upper, lower = image[..., :-1:2, :, :], image[..., 1::2, :, :]
    rows = upper + lower
    return tf.bitwise.right_shift(rows[..., :-1:2, :] + rows[..., 1::2, :] + 2, 2)


def _opencv_blend(image, size, window):
    """Blends two columns, then two rows, for each output pixel; values need at most 27 bits."""
    y1, y2, x1, x2 = _ranges(size, window)
    left, right, weights = _opencv_taps(size[1], tf.shape(image)[-2], x1, x2, clamp=True)
    upper, lower, y_weights = _opencv_taps(size[0], tf.shape(image)[-3], y1, y2, clamp=False)
    if window is not None:  # other rows do not touch the window
        first, last = tf.reduce_min(upper), tf.reduce_max(lower)
        image, upper, lower = image[..., first : last + 1, :, :], upper - first, lower - first
    rows = tf.gather(image, left, axis=-2) * weights[:, :1] + tf.gather(image, right, axis=-2) * weights[:, 1:]
    y_weights = y_weights[:, :, None, None]

    def part(index, weight):
        taken = tf.bitwise.right_shift(tf.gather(rows, index, axis=-3), 4)
        return tf.bitwise.right_shift(taken * weight, 16)

    total = part(upper, y_weights[:, 0]) + part(lower, y_weights[:, 1])
    return tf.clip_by_value(tf.bitwise.right_shift(total + 2, 2), 0, 255)


def _opencv_taps(size, length, start, stop, clamp):
    """Returns the two source positions of each output position and their weights (stop - start, 2), in 1/2048."""
    scale = 1 / (tf.cast(size, tf.float64) / tf.cast(length, tf.float64))  # OpenCV divides twice, too
    places = tf.range(tf.cast(start, tf.float64), tf.cast(stop, tf.float64), dtype=tf.float64)
    center = tf.cast((places + 0.5) * scale - 0.5, tf.float32)
    first = tf.cast(tf.floor(center), tf.int32)
    fraction = center - tf.cast(first, tf.float32)
    if clamp:
        fraction = tf.where((first < 0) | (first >= length - 1), 0.0, fraction)
        first = tf.clip_by_value(first, 0, length - 1)
    weights = tf.cast(tf.round(tf.stack([1 - fraction, fraction], 1) * 2048), tf.int32)
    return tf.clip_by_value(first, 0, length - 1), tf.clip_by_value(first + 1, 0, length - 1), weights


def pad_to(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Pads images with zeros at the bottom and the right.

    Args:
        image: (..., H, W, C).
        height: Height after padding in pixels, at least H.
        width: Width after padding in pixels, at least W.

    Returns:
        The padded images, (..., height, width, C) of the dtype of `image`.
    """
    shape = tf.shape(image)
    batch = [[0, 0]] * (len(image.shape) - 3)
    return tf.pad(image, [*batch, [0, height - shape[-3]], [0, width - shape[-2]], [0, 0]])
