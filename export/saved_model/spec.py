"""Describes the SavedModel export format for the command line, without importing TensorFlow."""

import os
from pathlib import Path

from kerasdet.export.spec import GRAPH_PRECISIONS, FormatSpec, Option

MAX_PIXELS = 50_000_000


def _recognizes(path: Path) -> bool:
    return (path / "saved_model.pb").is_file()


SPEC = FormatSpec(
    name="saved_model",
    suffix="",
    precisions=GRAPH_PRECISIONS,
    recognizes=_recognizes,
    unreadable="[\\".replace(os.sep, ""),  # TensorFlow 2.21 takes paths of variables for patterns
    options=(
        Option(
            "ops",
            "tensorflow",
            "tensorflow: stock operations; compiled: kerasdet's compiled operations, which the server must load "
            "(default tensorflow)",
            choices=("tensorflow", "compiled"),
        ),
        Option(
            "class_offset",
            1,
            "id of the first class in the outputs (default 1, as in the TF Object Detection API)",
            kind="int",
            metavar="N",
        ),
        Option(
            "max_pixels",
            MAX_PIXELS,
            f"reject encoded images of more than N pixels (default {MAX_PIXELS})",
            kind="count",
            metavar="N",
        ),
    ),
)
