"""Reads gin files, and builds the objects that they describe. No other package imports gin.

A gin file sets arguments of the classes and functions in `SURFACE` by ``Name.argument = value``. Objects that Python
code constructs ignore gin.
"""

from kerasdet.config.files import GIN_CONFIGS
from kerasdet.config.macros import macro
from kerasdet.config.reading import load
from kerasdet.config.run import eval_data, import_modules, model_and_transforms, train
from kerasdet.config.surface import ARGUMENTS, INHERITED, SURFACE

__all__ = [
    "ARGUMENTS",
    "GIN_CONFIGS",
    "INHERITED",
    "SURFACE",
    "eval_data",
    "import_modules",
    "load",
    "macro",
    "model_and_transforms",
    "train",
]
