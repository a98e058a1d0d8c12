"""Images as TensorFlow graph functions: decoding with EXIF rotation, resize rules and kernels, padding.

The data pipeline, `model.detect` and exported SavedModels share these, so an image is prepared in one way
everywhere. Only stock TensorFlow ops; every static shape may be unknown.
"""

from pathlib import Path

import tensorflow as tf

EXIF_SEARCH = 1 << 16
_EXIF_ORIENTATION = 0x0112
_PIL_PRECISION = 22


def decode(encoded, exif=True):
    """Decodes a JPEG, PNG, BMP or GIF (first frame) as PIL would and turns it upright.

    Gray, palette and CMYK become RGB, alpha is dropped, of 16 bits the upper 8 are kept.

    Args:
        encoded: () string, the bytes of the file.
        exif: whether to apply the EXIF orientation of a JPEG; a bool or a () bool tensor.

    Returns:
        (H, W, 3) uint8.
    """
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return apply_orientation(image, tf.where(exif, exif_orientation(encoded), 1))


def exif_orientation(encoded):
    """Reads the EXIF orientation of a JPEG.

    Args:
        encoded: () string, the bytes of the file.

    Returns:
        () int32 in 1..8; 1 (upright) for other formats, without EXIF, and where anything is malformed.
    """
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, EXIF_SEARCH), tf.uint8), tf.int32)
    size = tf.shape(head)[0]
    head = tf.concat([head, [0]], 0)

    def byte(position):
        return tf.gather(head, tf.where((position >= 0) & (position < size), position, size))

    def number(position, count, little):
        digits = [byte(position + i) for i in range(count)]
        big_endian = sum(digit * 256**i for i, digit in enumerate(reversed(digits)))
        little_endian = sum(digit * 256**i for i, digit in enumerate(digits))
        return tf.where(little, little_endian, big_endian)

    def starts_with(position, text):
        return tf.reduce_all(byte(position + tf.range(len(text))) == tf.constant(list(text)))

    def is_exif(position):
        return (byte(position + 1) == 0xE1) & starts_with(position + 4, b"Exif\0\0")

    def to_skip(position):
        marker, length = byte(position + 1), number(position + 2, 2, False)
        segment = (byte(position) == 0xFF) & (marker != 0xDA) & (length >= 2) & ~is_exif(position)
        return segment & (position < size)

    is_jpeg = starts_with(0, b"\xff\xd8")
    start = tf.where(is_jpeg, 2, size)
    [segment] = tf.while_loop(to_skip, lambda position: [position + 2 + number(position + 2, 2, False)], [start])

    tiff = segment + 10
    little = starts_with(tiff, b"II*\0")
    offset = number(tiff + 4, 4, little)
    valid = is_exif(segment) & (little | starts_with(tiff, b"MM\0*")) & (offset >= 8) & (offset < size)
    directory = tiff + tf.where(valid, offset, 0)
    entries = directory + 2 + 12 * tf.range(tf.where(valid, number(directory, 2, little), 0))
    short = number(entries + 2, 2, little) == 3
    value = tf.where(short, number(entries + 8, 2, little), number(entries + 8, 4, little))
    found = (number(entries, 2, little) == _EXIF_ORIENTATION) & (number(entries + 4, 4, little) == 1)
    orientation = tf.reduce_max(tf.concat([tf.where(found, value, 1), [1]], 0))
    return tf.where(orientation <= 8, orientation, 1)


def apply_orientation(image, orientation):
    """Turns a stored image upright.

    Args:
        image: (H, W, C).
        orientation: () int32, the EXIF value in 1..8.

    Returns:
        (H, W, C), or (W, H, C) for the orientations 5 to 8.
    """

    def among(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    shape = (None, None, image.shape[-1])
    image = tf.cond(among(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image))
    image = tf.ensure_shape(image, shape)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: tf.identity(image))
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: tf.identity(image))


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


def read(path):
    """Reads an image file.

    Args:
        path: of a JPEG, PNG, BMP or GIF.

    Returns:
        (H, W, 3) uint8 NumPy array, RGB, upright.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no image {path}.")
    try:
        return decode(path.read_bytes()).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{path} cannot be read as an image: {error.message.splitlines()[0]}") from None
