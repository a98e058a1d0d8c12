"""Reads additional numbers in annotations: the ground truth of a user's own branches."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from kerasdet.arguments import check_names
from kerasdet.data.annotations import name_of
from kerasdet.data.values import as_float, as_floats, show
from kerasdet.errors import UserError

_RESERVED = ("image", "image_size", "image_id", "original_size", "step", "boxes", "class_ids", "is_crowd")
_RESERVED += ("masks", "keypoints", "keypoint_flip", "extra_values")

Shapes = dict[str, tuple[int, ...]]  # shape of the values of one object by key: () or (n,)


def read_extra_values(
    annotations: Sequence[Mapping], keys: Sequence[str], source: str | os.PathLike
) -> tuple[np.ndarray, Shapes]:
    """Reads numbers, or lists of numbers, that all annotations have under the same keys.

    Args:
        annotations: Entries of the list `annotations` of a COCO file.
        keys: Keys of the numbers, such as "age".
        source: Path or name of the dataset for error messages.

    Returns:
        The values of the N annotations, (N, V) float32, one or more columns for each key; and a dict from key to the
        shape of the value of one annotation, () or (n,).

    Raises:
        UserError: If batches already use a key for other contents, an annotation has no finite number under a key, or
            the lists under a key differ in length.
    """
    check_names("extra_annotation_keys", keys)
    for key in keys:
        if key in _RESERVED:
            raise UserError(
                f"extra_annotation_keys has {key!r}, which batches already use: expected other keys of the "
                "annotations. Rename the key in the annotations."
            )
    columns, shapes = [np.zeros((len(annotations), 0), np.float32)], {}
    for key in keys:
        rows = [_numbers(annotation, key, source) for annotation in annotations] or [0.0]
        shapes[key] = np.shape(rows[0])
        for annotation, row in zip(annotations, rows, strict=False):
            if np.shape(row) != shapes[key]:
                raise UserError(
                    f'{source}: {name_of(annotation)} has "{key}" {show(annotation[key])}; expected as many numbers as '
                    f"the first annotation has, {show(annotations[0][key])}. Correct the annotation."
                )
        columns.append(np.array(rows, np.float32).reshape(-1, math.prod(shapes[key]))[: len(annotations)])
    return np.concatenate(columns, 1), shapes


def _numbers(annotation, key, source):
    """Returns the number or the list of numbers under a key."""
    value = annotation.get(key)
    value = int(value) if isinstance(value, bool) else value
    numbers = as_floats(value)
    number = as_float(value) if numbers is None else None
    if not all(math.isfinite(each) for each in (numbers or [math.nan if number is None else number])):
        has = f'"{key}" {show(value)}' if key in annotation else f'no "{key}"'
        raise UserError(
            f"{source}: {name_of(annotation)} has {has}; expected a finite number or a list of finite numbers. Correct "
            f"the annotation, or leave {key} out of extra_annotation_keys."
        )
    return number if numbers is None else numbers
