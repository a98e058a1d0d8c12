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
from kerasdet.inference.predictor import Predictor
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


def describe(predictor: Predictor, metadata: Mapping[str, Any]) -> None:
    """Sets the attributes of `Predictor` that do not depend on the format: all but `preprocessing`.

    Args:
        predictor: The predictor of the export, which is changed.
        metadata: Result of `model_metadata`.
    """
    predictor.num_classes = metadata["num_classes"]
    predictor.class_names = tuple(metadata["class_names"]) if metadata["class_names"] else None
    predictor.mask_convention = metadata["mask_convention"]
    predictor.skeleton = tuple(tuple(pair) for pair in metadata["skeleton"])
    predictor.branch_outputs = {name: BranchOutput(**output) for name, output in metadata["branch_outputs"].items()}
