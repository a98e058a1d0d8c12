"""Builds the run, the dataset or the model that the current configuration describes."""

import importlib
import re
from pathlib import Path

import gin
import keras
import tensorflow as tf

from kerasdet import data, training
from kerasdet.config.files import read_text
from kerasdet.config.macros import macro
from kerasdet.config.reading import import_failure
from kerasdet.config.surface import CONFIGURABLES
from kerasdet.errors import UserError
from kerasdet.paths import expand

_REQUIRED = ("model", "data", "optimizer", "steps", "batch_size", "out_dir")  # arguments of `train`


def train() -> keras.Model:
    """Trains the configured model, and saves the configuration as ``config.gin`` in OUT_DIR.

    Returns:
        The trained model.

    Raises:
        UserError: If the configuration lacks the model, the data or another part of a run.
    """
    unset = [name for name in _REQUIRED if not _is_bound(f"train.{name}")]
    if unset:
        raise UserError(
            f"The configuration sets no train.{', train.'.join(unset)}: expected the configuration of a training run. "
            "Include a recipe, such as include 'finetune.gin'."
        )
    strategy = training.make_strategy(macro("STRATEGY"))
    keras.utils.set_random_seed(macro("SEED"))
    if macro("DETERMINISTIC"):
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(macro("PRECISION"))
    with strategy.scope():
        return CONFIGURABLES["train"](config=gin.config_str(max_line_length=110))


def _is_bound(name):
    try:
        return gin.query_parameter(name) is not None
    except ValueError:
        return False


def import_modules(config: str | Path) -> None:
    """Imports the modules that a gin file imports, without configuring anything.

    Afterwards Keras can load models whose classes are defined in these modules.

    Args:
        config: Path of the gin file.

    Raises:
        UserError: If a module cannot be imported.
    """
    statements = r"^(?:from ([\w.]+) )?import ([\w.]+)"  # gin's `from a import b` imports the module a.b
    for found in re.finditer(statements, read_text(expand(config)), re.MULTILINE):
        try:
            importlib.import_module(".".join(filter(None, found.groups())))
        except ImportError as error:
            raise UserError(f"{config}: {import_failure(found[0], error)}") from None


def eval_data() -> data.CocoDataset:
    """Builds the evaluation dataset of the current configuration.

    Returns:
        The evaluation dataset.

    Raises:
        UserError: If the configuration has no evaluation dataset.
    """
    try:
        reference = gin.query_parameter("Validation.data")
    except ValueError:
        reference = None
    if reference is None:
        raise UserError(
            "The configuration has no Validation.data, the dataset to evaluate on: pass a dataset with --data."
        )
    return reference.scoped_configurable_fn()


def model_and_transforms() -> tuple[keras.Model, list]:
    """Builds the configured model and the transforms of its training.

    No checkpoint is needed: the model has random weights even if the recipe starts from a pretrained backbone.

    Returns:
        The model, and the list of training transforms.

    Raises:
        UserError: If the configuration has no model.
    """
    try:
        model = gin.query_parameter("train.model")
        if model.configurable.name == "backbone_weights":
            model = gin.query_parameter("backbone_weights.model")
    except ValueError:
        raise UserError("The configuration has no train.model: use a recipe that trains a model.") from None
    try:
        transforms = gin.query_parameter("train.transforms")
    except ValueError:
        transforms = []
    return model.scoped_configurable_fn(), [transform.scoped_configurable_fn() for transform in transforms]
