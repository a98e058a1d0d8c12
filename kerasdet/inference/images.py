"""Opens the images that users pass to `detect`: arrays, PIL images and paths."""

import os
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasdet.data import images as image_files
from kerasdet.errors import UserError
from kerasdet.paths import expand, why_no_file

ImageLike = np.ndarray | tf.Tensor | Image.Image | str | os.PathLike  # one image; an array can also be a batch

_EXPECTED = "an RGB array (height, width, 3) with values 0..255, a PIL image or the path of an image file"
# Modes of at most 8 bits per channel
_PIL_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def open_images(images: ImageLike | Sequence[ImageLike]) -> tuple[list[np.ndarray], bool]:
    """Opens images in every form that `detect` accepts, as RGB arrays.

    Args:
        images: An array (H, W, 3), a batch (B, H, W, 3), a PIL image, the path of an image file, or a list of arrays,
            PIL images and paths. Arrays are RGB, 0..255, uint8 or float. The EXIF orientation of a file is applied,
            that of a PIL image is not.

    Returns:
        The images as (H, W, 3) arrays, uint8 or float32, and whether `images` was a single image.

    Raises:
        UserError: If `images` is empty, or an item is not an image. The message names the index of the item.
        FileNotFoundError: If a file does not exist.
    """
    items, is_single = split_images(images)
    return [open_image(item, index) for index, item in enumerate(items)], is_single


def split_images(images: ImageLike | Sequence[ImageLike]) -> tuple[list[ImageLike], bool]:
    """Splits the argument `images` of `detect` into one item per image, without opening files.

    Args:
        images: An array (H, W, 3), a batch (B, H, W, 3), a PIL image, the path of an image file, or a list of arrays,
            PIL images and paths.

    Returns:
        A list with one array, PIL image or path per image, and whether `images` was a single image.

    Raises:
        UserError: If `images` is an empty list or batch.
    """
    is_single = not isinstance(images, list | tuple) and len(getattr(images, "shape", ())) != 4
    items = [images] if is_single else list(images)
    if not items:
        raise UserError(
            f"There is no image: expected at least one, got an empty {type(images).__name__}. Pass an image, a path "
            "or a list of these."
        )
    return items, is_single


def open_image(image: ImageLike, index: int = 0) -> np.ndarray:
    """Opens one image as an RGB array.

    Args:
        image: An array (H, W, 3) RGB, 0..255, uint8 or float; a PIL image; or the path of an image file.
        index: Position of the image in its list, for error messages.

    Returns:
        The image, (H, W, 3) uint8 or float32.

    Raises:
        UserError: If `image` is not an image, or the file cannot be decoded.
        FileNotFoundError: If the file does not exist.
    """
    if isinstance(image, str | os.PathLike):
        return _open_file(expand(image, f"Image {index}"), index)
    if isinstance(image, Image.Image):
        if image.mode not in _PIL_MODES:
            _refuse(index, f"a PIL image of mode {image.mode}", "convert it to 8 bits per channel")
        return np.asarray(image.convert("RGB"))
    if not hasattr(image, "shape"):
        what, remedy = _describe(image)
        _refuse(index, what, remedy)
    return _checked_array(np.asarray(image), index)


def _open_file(path, index):
    if reason := why_no_file(path):
        raise FileNotFoundError(
            f"Image {index}, {str(path)!r}, {reason}: expected the path of a {image_files.FORMATS} file. Check "
            "the path."
        )
    try:
        return image_files.read(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise UserError(f"Image {index}, {str(path)!r}, {reason}") from None


def _describe(image):
    """Returns a description of an invalid image for the error message, and the remedy."""
    if image is None:
        return "None", "check the function that read it; cv2.imread returns None for a file that it cannot read"
    if isinstance(image, bytes | bytearray):
        return f"{type(image).__name__}", "open encoded files with PIL.Image.open(io.BytesIO(...))"
    if isinstance(image, list | tuple):
        return f"a {type(image).__name__}", "turn it into an array with numpy.asarray"
    return f"of type {type(image).__name__}", "convert it with numpy.asarray, or pass a list of images"


def _checked_array(image, index):
    """Returns an array as uint8 or float32; raises a UserError if it is not an RGB image."""
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] != 3:
        _refuse(index, f"an array of shape {shape}", shape_remedy(shape))
    if 0 in shape:
        _refuse(index, f"an array of shape {shape}, which has no pixels", "remove it from the list")
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind not in "iuf":
        _refuse(index, f"an array of {image.dtype}", "convert it to uint8")
    low, high = image.min(), image.max()
    if not np.isfinite(low) or not np.isfinite(high):
        _refuse(index, f"a {image.dtype} array with values that are NaN or infinite", "replace these values")
    if low < 0 or high > 255:
        remedy = "undo the normalisation; a model normalises its images itself" if low < 0 else "scale it to 0..255"
        _refuse(index, f"a {image.dtype} array with values from {low:.6g} to {high:.6g}", remedy)
    if image.dtype.kind != "f":
        return image.astype(np.uint8)
    warn_of_fractions(f"Image {index}", high)
    return image.astype(np.float32)


def warn_of_fractions(owner: str, high: float) -> None:
    """Warns if the brightest pixel suggests that pixels are in 0..1 instead of 0..255.

    Args:
        owner: Image or batch at the beginning of the warning, such as "Image 0".
        high: Largest value of a pixel.
    """
    if 0 < high <= 1:
        warnings.warn(
            f"{owner} has no pixel above 1, although pixels are expected in 0..255: multiply the pixels by 255 if they "
            "are in 0..1.",
            stacklevel=3,
        )


def shape_remedy(shape: tuple[int, ...]) -> str:
    """Returns advice for an array that is not an RGB image.

    Args:
        shape: Shape of the array of one image.

    Returns:
        Advice for the end of an error message.
    """
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "repeat the grey channel: numpy.repeat(image.reshape(height, width, 1), 3, axis=2)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel: image[..., :3]"
    if len(shape) == 3 and shape[0] == 3:
        return "move the channels to the end: image.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "pass a batch (B, height, width, 3) by itself, not inside a list"
    return "pass three channels, red, green and blue"


def _refuse(index, what, remedy):
    raise UserError(f"Image {index} is {what}: expected {_EXPECTED}; {remedy}.")
