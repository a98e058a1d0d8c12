"""Checks the options that several export formats share."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerasdet.errors import UserError
from kerasdet.export.formats import choose_spec
from kerasdet.models import Detector
from kerasdet.models.detector import is_detector
from kerasdet.paths import expand

log = logging.getLogger(__name__)

_FEW_IMAGES = 8  # fewer calibration images cause a warning


def new_file(path: str | os.PathLike, name: str) -> Path:
    """Checks the path of a new export: it must have the suffix of the format, and the file must not exist.

    Args:
        path: Path of the file; ``~`` is expanded.
        name: Name of the format.

    Returns:
        The expanded path.

    Raises:
        UserError: If the path is not a local path, or does not have the suffix of the format.
        FileExistsError: If a file or folder exists at the path.
    """
    path = expand(path)
    choose_spec(path, name)
    if path.exists():
        raise FileExistsError(f"{path} exists: export to another file, or delete this file.")
    return path


def check_model(model: Detector) -> None:
    """Checks that a model is a detector.

    Args:
        model: Model to check.

    Raises:
        TypeError: If the model is another object, such as a backbone.
    """
    if not is_detector(model):
        raise TypeError(f"model is of type {type(model).__name__}: expected a kerasdet detector, such as a RetinaNet.")


def check_choice(name: str, option: str, value: str, choices: Sequence[str]) -> None:
    """Checks an option of a format.

    Args:
        name: Name of the format, for the error message.
        option: Name of the option, for the error message.
        value: Value of the option.
        choices: Permitted values.

    Raises:
        UserError: If the value is not permitted.
    """
    if value not in choices:
        raise UserError(f"{name} has no {option} {value!r}: choose one of {', '.join(choices)}.")


def check_size(size: tuple[int, int] | None) -> None:
    """Checks the height and width of an input.

    Args:
        size: (height, width) in pixels. None: the size is not fixed.

    Raises:
        UserError: If `size` is neither two positive integers nor None.
    """
    if size is not None and not (
        np.shape(size) == (2,) and all(isinstance(length, int | np.integer) and length > 0 for length in size)
    ):
        raise UserError(f"size is {size!r}: expected (height, width) in whole pixels, 1 or more, such as (320, 320).")


def check_calibration(precision: str, calibration_images: Sequence) -> None:
    """Checks that calibration images are given if, and only if, the precision needs them; warns if they are few.

    Args:
        precision: Precision of the export; "int8" needs calibration images.
        calibration_images: Arrays (H, W, 3), PIL images or paths. The list may be empty.

    Raises:
        UserError: If images are missing, or are given for a precision that does not use them.
        FileNotFoundError: If a path is not that of an existing file.
    """
    for image in calibration_images:
        if isinstance(image, str | os.PathLike) and not expand(image, "--calibration-images").is_file():
            raise FileNotFoundError(
                f"The calibration image {image} does not exist or is a folder: expected an image file. Check "
                "--calibration-images (Python: calibration_images=)."
            )
    if precision == "int8" and 0 < len(calibration_images) < _FEW_IMAGES:
        log.warning(
            "int8 measures the ranges of activations on only %d images: pass a few dozen, or detections in other "
            "images may be lost.",
            len(calibration_images),
        )
    if precision == "int8" and not len(calibration_images):
        raise UserError(
            "int8 needs calibration images: pass a few dozen images that are typical for the model with "
            "--calibration-images (Python: calibration_images=)."
        )
    if precision != "int8" and len(calibration_images):
        raise UserError(
            f"Calibration images are for precision int8, but the precision is {precision}: remove "
            "--calibration-images (Python: calibration_images=), or choose precision int8."
        )
