"""Turns Python objects, such as the examples of a `tf.data.Dataset`, into a dict in the form of a COCO file."""

import functools
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kerasdet.arguments import check_names
from kerasdet.data.files import image_entry, upright_size
from kerasdet.data.values import are_fractions, as_int, show
from kerasdet.errors import UserError
from kerasdet.geometry import rle

_KEYS = ("image", "boxes", "class_ids", "is_crowd", "masks", "keypoints", "image_id")


def read_examples(
    examples: Iterable[Mapping[str, Any]], class_names: Sequence[str], keypoint_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads examples, each a dict with an image and its objects, into the form of a COCO file.

    Args:
        examples: An iterable of dicts, or an unbatched `tf.data.Dataset` of such dicts. Keys: `image`, a path or an
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8; `boxes` (N, 4) yxyx in pixels; `class_ids` (N,) in
            0..K-1; optional `is_crowd` (N,), `masks` (N, H, W), above 0 inside the object, `keypoints`
            (N, J, 3) as (y, x, visibility) and `image_id`, by default 1, 2, ... Rows with class id -1 are padding.
            Arrays of images stay in memory.
        class_names: Names of the K classes, in the order of the class ids.
        keypoint_names: Names of the J keypoints; () if the examples have no keypoints.

    Returns:
        Dict of the lists `images`, `annotations` and `categories`, in the form of a COCO file; category ids are 1..K.

    Raises:
        UserError: If an example does not have this form. The message names the index of the example, from 0.
    """
    if hasattr(examples, "as_numpy_iterator"):
        examples = examples.as_numpy_iterator()
    check_names("class_names", class_names)
    check_names("keypoint_names", keypoint_names)
    if not class_names:
        raise UserError("class_names is empty; expected the name of at least one class. Pass a list of names.")
    images, annotations = [], []
    number_of: dict[int, int] = {}
    for number, example in enumerate(examples):
        where = f"Example {number}"
        if not isinstance(example, Mapping) or not {"image", "boxes", "class_ids"} <= example.keys():
            keys = list(example) if isinstance(example, Mapping) else type(example).__name__
            raise UserError(
                f"{where} is {f'a dict with the keys {keys}' if isinstance(example, Mapping) else f'of type {keys}'}; "
                "expected a dict with image, boxes and class_ids. Pass such dicts."
            )
        if unknown := sorted(set(example) - set(_KEYS)):
            raise UserError(f"{where} has the key {unknown[0]!r}; expected one of {', '.join(_KEYS)}. Remove the key.")
        image_id = _image_id(example.get("image_id", number + 1), where)
        if (first := number_of.setdefault(image_id, number)) != number:
            raise UserError(
                f"Examples {first} and {number} have the same image_id {image_id}; expected a unique id for each "
                "example. Change one, or leave image_id out: the examples are then numbered."
            )
        entry = _image(image_id, example["image"], where)
        images.append(entry)
        for annotation in _objects(example, entry, len(class_names), len(keypoint_names), where):
            annotations.append({"id": len(annotations) + 1, "image_id": entry["id"], **annotation})
    if not images:
        raise UserError(
            "There are no examples; expected at least one. An iterator can be read only once: pass a new "
            "iterator, or a list."
        )
    _check_units(annotations)
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
    if keypoint_names:
        categories = [{**category, "keypoints": list(keypoint_names)} for category in categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def _check_units(annotations):
    """Raises an error if the boxes are fractions of the image instead of pixels."""
    boxes = [[y, x, y + h, x + w] for x, y, w, h in (annotation["bbox"] for annotation in annotations)]
    if boxes and are_fractions(boxes):
        raise UserError(
            f"The boxes of the examples have no number above 1 (first: {show(boxes[0])}); expected (y1, x1, y2, x2) in "
            "pixels. Multiply the fractions by the height and width of the images."
        )


def _image_id(value, where):
    scalar = np.asarray(value)
    image_id = as_int(scalar.item()) if scalar.size == 1 else None
    if image_id is None:
        raise UserError(f"{where} has the image_id {show(value)}; expected an integer. Change it, or leave it out.")
    return image_id


def _array(value, name, where):
    """Converts a value to an array of numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        array = np.asarray(None)
    if array.size and array.dtype.kind not in "biuf":
        raise UserError(
            f"{where} has {name} {show(value)}; expected an array of numbers, with rows of the same length. Change it."
        )
    return array


def _image(image_id, image, where):
    if isinstance(image, bytes):
        image = image.decode("utf-8", errors="surrogateescape")
    if isinstance(image, str | os.PathLike):
        return image_entry(image_id, image, upright_size(image))
    pixels = _array(image, "the image", where)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{where} has an image of type {pixels.dtype}; expected uint8 in 0..255. Multiply floats in 0..1 by 255 "
            "and convert them."
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise UserError(f"{where} has an image of shape {pixels.shape}; expected (H, W, 3). Pass one RGB image.")
    rgb = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    entry = image_entry(image_id, f"example {image_id}", pixels.shape[:2])
    return {**entry, "content": functools.partial(_encode, rgb)}


def _encode(pixels):
    """Returns an image as the bytes of a BMP file, which are fast to write and read."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def _objects(example, entry, num_classes, num_keypoints, where):
    """Yields the annotations of an example."""
    columns = {"boxes": (-1, 4), "class_ids": (-1,)}
    size = entry.get("height"), entry.get("width")
    if example.get("masks") is not None and None in size:
        raise UserError(
            f"{where} has masks, but its image {entry['file_name']} does not exist or cannot be read; expected an "
            "image of the size of the masks. Correct the path, or save the image again."
        )
    optional = {"is_crowd": (-1,), "keypoints": (-1, num_keypoints, 3), "masks": (-1, *size)}
    columns |= {name: shape for name, shape in optional.items() if example.get(name) is not None}
    if "keypoints" in columns and not num_keypoints:
        raise UserError(
            f"{where} has keypoints, but keypoint_names is empty; expected one name per keypoint. Pass keypoint_names."
        )
    arrays = {}
    for name, shape in columns.items():
        values = _array(example[name], name, where)
        try:
            arrays[name] = values.reshape(shape) if values.size or shape[1:] else np.zeros((0, *shape[1:]))
            if values.size and values.shape[1:] != arrays[name].shape[1:]:
                raise ValueError
        except (TypeError, ValueError):
            expected = ", ".join(["N", *map(str, shape[1:])])
            raise UserError(f"{where} has {name} of shape {values.shape}; expected ({expected}). Reshape it.") from None
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise UserError(
            f"{where} has {listed}; expected arrays of the same length, one row per object. Change the arrays of "
            "this example."
        )
    for row, class_id in enumerate(arrays["class_ids"].tolist()):
        if class_id == -1:
            continue
        if class_id not in range(num_classes):
            raise UserError(
                f"{where} has the class id {class_id}; expected 0 to {num_classes - 1}. Change the class id, or add "
                "its name to class_names."
            )
        y1, x1, y2, x2 = map(float, arrays["boxes"][row])
        annotation = {"category_id": int(class_id) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        annotation["iscrowd"] = int(arrays["is_crowd"][row]) if "is_crowd" in arrays else 0
        if "masks" in arrays:
            annotation["segmentation"] = rle.encode(arrays["masks"][row][None] > 0)[0]
        if "keypoints" in arrays:
            annotation["keypoints"] = _keypoints(arrays["keypoints"][row])
        yield annotation


def _keypoints(points):
    """Converts keypoints (J, 3) to COCO's flat list of x, y, visibility, where x and y are indices of pixels."""
    points = np.asarray(points, np.float64)
    labelled = points[:, 2:] > 0
    return np.where(labelled, points[:, [1, 0, 2]] - [0.5, 0.5, 0], 0).ravel().tolist()
