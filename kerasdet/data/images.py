"""Opens image files: checks them, decodes them to RGB and turns them upright by their EXIF orientation.

Training, `detect` and exported SavedModels share these functions, and thus see the same pixels. `decode` uses only
stock TensorFlow ops and runs in graphs; every static shape may be unknown. Pillow decodes files that TensorFlow cannot
decode or would decode to different pixels.
"""

import dataclasses
import io
import os
import re

import numpy as np
import tensorflow as tf
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from kerasdet.data import jpeg
from kerasdet.errors import UserError
from kerasdet.paths import expand, why_no_file

FORMATS = "JPEG, PNG, BMP, GIF, WebP or TIFF"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit for untrusted files

# `Image.open` refuses large images; the classes of the formats do not.
_OPENERS = (
    (re.compile(rb"\xff\xd8"), JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG"), PngImagePlugin.PngImageFile),
    (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    (re.compile(rb"GIF8"), GifImagePlugin.GifImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
)
_BY_PIL = (GifImagePlugin.GifImageFile, WebPImagePlugin.WebPImageFile, TiffImagePlugin.TiffImageFile)
_HARMLESS_BYTES = 8  # some cameras and editors leave a few bytes before the end marker of an intact JPEG


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """Describes an image file that can be decoded.

    Args:
        stored: Height and width as stored, in pixels.
        upright: Height and width after rotation by EXIF, in pixels.
        is_turned: Whether EXIF states another orientation than upright.
        by_pil: Whether Pillow must decode the file, because TensorFlow cannot decode it or would decode it to different
            pixels.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    is_turned: bool
    by_pil: bool


def decode(encoded: tf.Tensor | bytes, exif: bool | tf.Tensor = True) -> tf.Tensor:
    """Decodes a JPEG, a PNG or an uncompressed BMP to the same pixels as PIL and applies its EXIF orientation.

    A BMP must have 8 bits with a palette, or 24 bits; for other files see `inspect` and `decode_by_pil`. Gray, palette
    and CMYK images become RGB; alpha is dropped; 16-bit samples keep their upper 8 bits.

    Args:
        encoded: Contents of the image file, bytes or a scalar string tensor.
        exif: Whether to apply the EXIF orientation of a JPEG or PNG, a bool or a scalar bool tensor.

    Returns:
        RGB image, (H, W, 3) uint8.

    Raises:
        tf.errors.InvalidArgumentError: If the file cannot be decoded.
    """
    image = tf.cond(tf.io.is_jpeg(encoded), lambda: jpeg.decode(encoded), lambda: _decode_other(encoded))
    image = tf.ensure_shape(image, (None, None, 3))
    if exif is False:
        return image
    # Only on demand: reading EXIF takes as long as decoding a small image
    orientation = (
        jpeg.exif_orientation(encoded)
        if exif is True
        else tf.cond(exif, lambda: jpeg.exif_orientation(encoded), lambda: 1)
    )
    return apply_orientation(image, orientation)


def decode_by_pil(encoded: bytes, exif: bool = True) -> np.ndarray:
    """Decodes an image file with Pillow, the first frame if it has several.

    Args:
        encoded: Bytes of the image file.
        exif: Whether to apply the EXIF orientation.

    Returns:
        RGB image, (H, W, 3) uint8.

    Raises:
        UserError: If the file is of another format than `FORMATS`. Pillow raises other errors for damaged files.
    """
    with _open(encoded) as image:
        upright = ImageOps.exif_transpose(image) if exif else image
        if upright.mode.startswith("I;16"):  # `convert` would clip it at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return np.asarray(upright.convert("RGB"))


def load(encoded: tf.Tensor, exif: tf.Tensor, by_pil: tf.Tensor | None = None) -> tf.Tensor:
    """Decodes an image file in a `tf.data` pipeline.

    Args:
        encoded: Contents of the file, a scalar string tensor.
        exif: Whether to apply the EXIF orientation, a bool or a scalar bool tensor. The Python value False saves time,
            because EXIF is not read at all.
        by_pil: Whether Pillow decodes the file, a scalar bool tensor. None never uses Pillow, so the graph does not
            call Python.

    Returns:
        RGB image, (H, W, 3) uint8.
    """
    if by_pil is None:
        return decode(encoded, exif)

    def call_pil():
        return tf.ensure_shape(tf.numpy_function(decode_by_pil, [encoded, exif], tf.uint8), (None, None, 3))

    return tf.cond(by_pil, call_pil, lambda: decode(encoded, exif))


def read(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as an upright RGB array.

    Args:
        path: Path of a JPEG, PNG, BMP, GIF, WebP or TIFF file.

    Returns:
        Image, (H, W, 3) uint8.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If the file is not an image, or is damaged.
    """
    path = expand(path, "The path of an image")
    if reason := why_no_file(path):
        raise FileNotFoundError(f"The image {path} {reason}: expected a {FORMATS} file. Check the path.")
    encoded = path.read_bytes()
    try:
        info = inspect(encoded)
        return decode_by_pil(encoded) if info.by_pil else decode(encoded).numpy()
    except UserError as error:
        raise UserError(f"{path} cannot be read as an image: it {error}.") from None
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"{path} cannot be read as an image: {_reason(error)}.") from None


def inspect(encoded: bytes, max_pixels: int | None = None) -> ImageInfo:
    """Checks that an image file is complete and can be decoded. Most files are checked without decoding them fully.

    Args:
        encoded: Bytes of the file.
        max_pixels: Largest number of pixels allowed. None allows any number.

    Returns:
        The sizes of the image, and how to decode it.

    Raises:
        UserError: If the file cannot be used. The message begins with a verb ("is", "has"), and callers put the name of
            the file before it.
    """
    try:
        with _open(encoded) as image:
            stored, kind = (image.height, image.width), type(image)
            pixels = image.height * image.width
            if max_pixels is not None and pixels > max_pixels:
                raise UserError(
                    f"has {pixels} pixels, more than max_pixels={max_pixels}; pass max_pixels={pixels} (gin: "
                    f"CocoDataset.max_pixels={pixels}, with --data open_dataset.max_pixels) if you trust the file"
                )
            if kind is TiffImagePlugin.TiffImageFile and image.mode in ("I", "F"):
                raise UserError("is a TIFF with 32 bits per channel; convert it to 8 or 16 bits")
            orientation = _orientation(encoded, image)
            if kind is PngImagePlugin.PngImageFile:
                image.verify()
            elif kind is not JpegImagePlugin.JpegImageFile:
                image.load()
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise UserError(f"cannot be decoded ({error}); save it again") from None
    if kind is JpegImagePlugin.JpegImageFile:
        _check_jpeg(encoded)
    by_pil = kind in _BY_PIL
    by_pil |= kind is BmpImagePlugin.BmpImageFile and not _is_stock_bmp(encoded)
    upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    return ImageInfo(stored, upright, orientation in range(2, 9), by_pil)


def apply_orientation(image: tf.Tensor, orientation: tf.Tensor | int) -> tf.Tensor:
    """Applies an EXIF orientation to an image as stored.

    Args:
        image: Image as stored, (H, W, C).
        orientation: EXIF orientation, a scalar int32 in 1..8.

    Returns:
        Upright image: (H, W, C), or (W, H, C) for orientations 5 to 8.
    """

    def is_one_of(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(values))

    shape = (None, None, image.shape[-1])
    image = tf.cond(is_one_of(5, 6, 7, 8), lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image))
    image = tf.ensure_shape(image, shape)
    image = tf.cond(is_one_of(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: tf.identity(image))
    return tf.cond(is_one_of(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: tf.identity(image))


def _decode_other(encoded):
    """Decodes a file other than a JPEG. For a BMP with a palette TensorFlow returns indices, which are looked up."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 1 << 11), tf.uint8), tf.int32)
    head = tf.concat([head, tf.zeros([1 << 11], tf.int32)], 0)
    has_palette = (head[0] == ord("B")) & (head[1] == ord("M")) & (head[28] == 8)

    def coloured():
        start = 14 + head[14] + 256 * head[15]
        palette = tf.reshape(head[start : start + 1024], (256, 4))[:, 2::-1]  # stored as blue, green, red, 0
        return tf.cast(tf.gather(palette, tf.cast(image[..., 0], tf.int32)), tf.uint8)

    return tf.cond(has_palette, coloured, lambda: image)


def _open(encoded):
    """Opens an image file with Pillow, which reads its header."""
    for magic, opener in _OPENERS:
        if magic.match(encoded):
            return opener(io.BytesIO(encoded))
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            reason = f"is {image.format}; convert it to JPEG or PNG"
    except Exception:
        reason = f"is not a {FORMATS} file; convert it to JPEG or PNG if it has another format, or download it again"
    raise UserError(reason)


def _orientation(encoded, image):
    if isinstance(image, JpegImagePlugin.JpegImageFile | PngImagePlugin.PngImageFile):
        return int(_graph_orientation(tf.constant(encoded[: jpeg.EXIF_SEARCH]))) if "exif" in image.info else 1
    # Pillow turns a TIFF upright while it decodes, and already gives its upright size
    return image.getexif().get(0x0112, 1) if isinstance(image, WebPImagePlugin.WebPImageFile) else 1


_graph_orientation = tf.function(jpeg.exif_orientation, input_signature=[tf.TensorSpec((), tf.string)])


def _check_jpeg(encoded):
    """Decodes a JPEG at 1/8 of its size with libjpeg-turbo, to get the warnings that TensorFlow and Pillow hide."""
    import simplejpeg

    try:
        *_, colorspace, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
        colorspace = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colorspace, "RGB")
        simplejpeg.decode_jpeg(
            encoded, colorspace, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8
        )
    except ValueError as error:
        reason = str(error)
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", reason)
        if extra and int(extra[1]) <= _HARMLESS_BYTES:
            return
        if "Premature end of JPEG file" in reason:
            raise UserError("is truncated (no end-of-image marker); copy or download it again") from None
        if reason.startswith("Corrupt JPEG data"):
            reason = reason.removeprefix("Corrupt JPEG data: ")
            raise UserError(f"is damaged ({reason}); copy or download it again") from None
        _check_decodes(encoded, reason)


def _check_decodes(encoded, reason):
    """Checks whether TensorFlow can decode a JPEG that simplejpeg cannot decode."""
    try:
        jpeg.decode(encoded)
    except tf.errors.InvalidArgumentError:
        raise UserError(f"cannot be decoded ({reason}); save it again") from None


def _is_stock_bmp(encoded):
    """Returns whether TensorFlow reads a BMP: 8 bits with a palette or 24 bits, not compressed."""
    header, bits, compression = (int.from_bytes(encoded[i:j], "little") for i, j in ((14, 18), (28, 30), (30, 34)))
    return header >= 40 and bits in (8, 24) and compression == 0


def _reason(error):
    """Returns why TensorFlow cannot decode a file, without the names of its ops, and what to do."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", error.message.splitlines()[0])
    return f"{' '.join(text.split()).rstrip('. ')}; save it again as {FORMATS}"
