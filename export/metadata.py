"""Builds the description of a model that every export contains and `kerasdet.load` reads.

SavedModels and TFLite files hold it as ``kerasdet.json``; ONNX files and OpenVINO IR hold it as the metadata entry
``kerasdet``.
"""

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

from kerasdet.inference.padded import BranchOutput
from kerasdet.models import Detector

METADATA_FILE = "kerasdet.json"


def model_metadata(model: Detector, options: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a model and its export as a dict of JSON values.

    Args:
        model: The detector.
        options: Options of the export that `kerasdet.load` needs, such as ``class_offset``, as JSON values. They become
            entries of the description.

    Returns:
        The description, a dict of JSON values by name.
    """
    return {
        "model": type(model).__name__,
        "num_classes": model.num_classes,
        "class_names": list(model.class_names) if model.class_names else None,
        "parameters": model.count_params(),
        "preprocessing": model.preprocessing.get_config(),
        "mask_convention": model.mask_convention,
        "skeleton": [list(pair) for pair in model.skeleton],
        "branch_outputs": {name: dataclasses.asdict(output) for name, output in model.branch_outputs.items()},
        **options,
        "kerasdet": version("kerasdet"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def branch_outputs(metadata: Mapping[str, Any]) -> dict[str, BranchOutput]:
    """Reads the outputs of a model's branches from its description.

    Args:
        metadata: Result of `model_metadata`.

    Returns:
        A dict from output name to `BranchOutput`, for the attribute `Predictor.branch_outputs`.
    """
    return {name: BranchOutput(**output) for name, output in metadata["branch_outputs"].items()}
