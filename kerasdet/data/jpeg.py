"""Reads the structure of image files as TensorFlow graph functions: the EXIF orientation, and damage to JPEGs.

The functions use only stock TensorFlow ops, so that exported graphs can contain them.
"""

import tensorflow as tf

# Number of bytes that are searched: EXIF is in one of the first segments of a JPEG, and usually before a PNG's pixels.
EXIF_SEARCH = 1 << 16
_EXIF_ORIENTATION = 0x0112
_FILLER = 4096  # number of zero bytes that stand for missing pixel data in the second decoding
_ZEROS = 64  # length in bytes of a run of zeros that counts as damage
# Beginning of the usual Huffman table of AC coefficients for luminance
_USUAL_TABLE = bytes.fromhex("0102030004110512213141061351610722711432")


def exif_orientation(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """Reads the EXIF orientation of a JPEG or PNG.

    Args:
        encoded: Contents of the image file, bytes or a scalar string tensor.

    Returns:
        The orientation, a scalar int32 in 1..8. It is 1 (upright) if the file has another format, has no EXIF data in
        its first 64 KiB (in a PNG: none before the pixels) or is malformed.
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

    def is_other_segment(position):
        marker, length = byte(position + 1), number(position + 2, 2, False)
        segment = (byte(position) == 0xFF) & (marker != 0xDA) & (length >= 2) & ~is_exif(position)
        return segment & (position < size)

    def is_other_chunk(position):
        length = number(position, 4, False)
        ends = starts_with(position + 4, b"eXIf") | starts_with(position + 4, b"IDAT")
        return (length >= 0) & (position >= 0) & (position < size) & ~ends

    def next_position(position):
        chunk, segment = position + 12 + number(position, 4, False), position + 2 + number(position + 2, 2, False)
        return [tf.where(is_png, chunk, segment)]

    is_jpeg, is_png = starts_with(0, b"\xff\xd8"), starts_with(0, b"\x89PNG")
    [segment] = tf.while_loop(
        lambda position: tf.where(is_png, is_other_chunk(position), is_other_segment(position)),
        next_position,
        [tf.where(is_jpeg, 2, tf.where(is_png, 8, size))],
    )

    tiff = tf.where(is_png, segment + 8, segment + 10)
    is_found = tf.where(is_png, starts_with(segment + 4, b"eXIf"), is_exif(segment))
    little = starts_with(tiff, b"II*\0")
    offset = number(tiff + 4, 4, little)
    valid = is_found & (little | starts_with(tiff, b"MM\0*")) & (offset >= 8) & (offset < size)
    directory = tiff + tf.where(valid, offset, 0)
    entries = directory + 2 + 12 * tf.range(tf.where(valid, number(directory, 2, little), 0))
    short = number(entries + 2, 2, little) == 3
    value = tf.where(short, number(entries + 8, 2, little), number(entries + 8, 4, little))
    found = (number(entries, 2, little) == _EXIF_ORIENTATION) & (number(entries + 4, 4, little) == 1)
    orientation = tf.reduce_max(tf.concat([tf.where(found, value, 1), [1]], 0))
    return tf.where(orientation <= 8, orientation, 1)


def decode(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """Decodes a JPEG to the same pixels as PIL.

    Args:
        encoded: Contents of the file, bytes or a scalar string tensor.

    Returns:
        RGB image as stored, (H, W, 3) uint8.

    Raises:
        tf.errors.InvalidArgumentError: If the file cannot be decoded.
    """
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def is_damaged(encoded: tf.Tensor | bytes, image: tf.Tensor) -> tf.Tensor:
    """Finds damage that TensorFlow's decoder does not report.

    libjpeg fills areas that it cannot decode and only prints a warning, so `decode` succeeds. The function looks for
    three signs of damage in sequential (not progressive) files:

    - a marker inside the pixel data that does not belong there;
    - a long run of zero bytes, which JPEG's usual Huffman tables never produce for pictures;
    - truncated pixel data: they leave the bottom right corner gray, and an image that ends in this gray is decoded a
      second time to confirm the damage.

    The function does not find damage in progressive files, nor changed bytes that keep the number of pixel blocks.

    Args:
        encoded: Contents of the file, bytes or a scalar string tensor.
        image: Result of `decode`.

    Returns:
        Whether the file is damaged, a scalar bool.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    start, is_sequential = _scan(data)
    pixels = data[start:]
    marker_at = tf.cast(tf.where((pixels[:-1] == 0xFF) & (pixels[1:] != 0) & (pixels[1:] != 0xFF))[:, 0], tf.int32)
    markers = tf.cast(tf.gather(pixels, marker_at + 1), tf.int32)
    is_end = tf.concat([markers == 0xD9, [True]], 0)
    count = tf.argmax(is_end, output_type=tf.int32)  # number of markers before the end of the image
    in_order = tf.reduce_all(markers[:count] == 0xD0 + tf.range(count) % 8)
    length = tf.concat([marker_at, [tf.size(pixels)]], 0)[count]
    stop = start + length
    has_zeros = (_longest_zeros(pixels[:length]) >= _ZEROS) & _has_usual_table(data[:start])

    def ends_too_soon():
        filler = tf.constant(bytes(_FILLER) + b"\xff\xd9")
        longer = tf.strings.join([tf.strings.substr(encoded, tf.zeros_like(stop), stop), filler])
        return tf.reduce_any(decode(longer) != image)

    is_gray = tf.reduce_all(image[-1, -1] == 128)
    return is_sequential & (~in_order | has_zeros | tf.cond(is_gray & is_sequential, ends_too_soon, lambda: False))


def _longest_zeros(data):
    """Returns the length of the longest stretch of zeros."""
    others = tf.cast(tf.where(data != 0)[:, 0], tf.int32)
    borders = tf.concat([[-1], others, [tf.size(data)]], 0)
    return tf.reduce_max(borders[1:] - borders[:-1]) - 1


def _has_usual_table(header):
    """Returns whether a header has the Huffman table of JPEG's Annex K.3 for luminance, which most encoders write."""
    count = tf.maximum(tf.size(header) - len(_USUAL_TABLE), 0)
    same = [header[i : i + count] == value for i, value in enumerate(_USUAL_TABLE)]
    return tf.reduce_any(tf.reduce_all(same, 0))


def _scan(data):
    """Returns the position of the first byte of pixel data, and whether the file is sequential (not progressive)."""
    size = tf.size(data)

    def is_segment(position, marker, _):
        return (marker != 0xDA) & (position >= 0) & (position + 4 <= size)

    def next_segment(position, _, frame):
        head = tf.cast(data[position : position + 4], tf.int32)
        marker, length = head[1], head[2] * 256 + head[3]
        is_frame = (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        after = tf.where((head[0] == 0xFF) & (length >= 2), position + 2 + length, size)
        return after, marker, tf.where(is_frame, marker, frame)

    start, marker, frame = tf.while_loop(is_segment, next_segment, [2, 0, 0])
    found = (marker == 0xDA) & (start < size)
    return tf.where(found, start, size), found & ((frame == 0xC0) | (frame == 0xC1))
