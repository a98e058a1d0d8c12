"""gin: what can be configured, and how a configuration is loaded. The only module that knows of gin.

Every class and function of `SURFACE` can be bound in a gin file as ``Name.argument = value``. Constructing one in
Python ignores gin.
"""

import ast
import functools
import importlib
import inspect
import logging
import math
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path

import gin
import keras
import tensorflow as tf

from kerasdet import data, evaluation, layers, loading, losses, models, training
from kerasdet.data import shapes
from kerasdet.geometry import anchors, coders, matching, sampling
from kerasdet.keras_utils import ConfigFromInit, constructor_arguments
from kerasdet.models import common, postprocess

GIN_CONFIGS = Path(inspect.getfile(__import__("kerasdet.gin_configs", fromlist=["x"]))).parent

SURFACE = (
    models.RetinaNet,
    models.FCOS,
    models.FasterRCNN,
    models.MaskRCNN,
    models.KeypointRCNN,
    models.ProposalNetwork,
    models.RPN,
    models.MaskBranch,
    models.KeypointBranch,
    models.Preprocessing,
    layers.ResNet,
    layers.FPN,
    layers.BoxHead,
    layers.ConvTop,
    layers.MaxPoolTop,
    layers.RetinaNetHead,
    layers.FCOSHead,
    anchors.AnchorGenerator,
    anchors.octave_sizes,
    anchors.point_squares,
    coders.DeltaCoder,
    coders.DistanceCoder,
    matching.IoUMatcher,
    matching.FCOSMatcher,
    sampling.BalancedSampler,
    losses.FocalLoss,
    losses.SmoothL1Loss,
    losses.IoULoss,
    losses.GIoULoss,
    postprocess.Postprocessing,
    common.LossNormalizer,
    data.CocoDataset,
    data.VocDataset,
    data.ResizeShortestEdge,
    data.RandomFlip,
    shapes.shapes_dataset,
    loading.pretrained,
    loading.backbone_weights,
    training.SGD,
    training.WarmupMultiStep,
    training.WarmupCosine,
    training.train,
    evaluation.evaluate,
    keras.optimizers.AdamW,
    keras.optimizers.Lamb,
)
OPTIONAL = {"DETERMINISTIC": False, "STRATEGY": "one_device"}  # macros that a file may leave out
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
WHOLE_NUMBERS = ("BATCH_SIZE", "IMAGE_SIZE", "IMAGE_SIZE_MAX", "NUM_CLASSES", "STEPS")


def _register(item):
    """Makes `item` configurable; a misspelt argument is an error even where there are ``**kwargs``."""
    parameters = inspect.signature(item).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    if isinstance(item, type) and issubclass(item, ConfigFromInit):
        names = constructor_arguments(item)
    inherited = ["name", "dtype", "clipnorm", "clipvalue", "global_clipnorm"] if takes_any else []
    inherited += ["use_ema", "ema_momentum"] if item is training.SGD else []
    return gin.external_configurable(item, module="kerasdet", allowlist=[*names, *inherited])


_CONFIGURABLES = {item.__name__: _register(item) for item in SURFACE}
# gin says so of every include that it finds only in the second folder it looks in
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Path not found"))
_search = functools.cache(gin.add_config_file_search_path)
_search(str(GIN_CONFIGS))


def load(config: str | Path, overrides: Sequence[str] = ()) -> None:
    """Reads a gin file and applies overrides, replacing whatever was configured before.

    Args:
        config: A path, or the name of a file that ships with kerasdet, with or without ``.gin``.
        overrides: ``MACRO=value`` or ``Name.argument=value``; text needs no quotes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a name that does not exist, a syntax error or a required macro without a value.
    """
    path = _find(config)
    gin.clear_config()
    _search(str(path.parent))
    try:
        parsed = gin.parse_config_file(str(path))
        if parsed.includes:
            _check_own_macros(path)
        for override in overrides:
            gin.parse_config(_binding(override))
    except tokenize.TokenError as error:
        raise ValueError(f"{path}: {error.args[0]}: is a bracket not closed?") from None
    except (ValueError, SyntaxError, AttributeError, TypeError, ImportError, OSError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    _check_macros(path)


def train() -> keras.Model:
    """Trains what is configured, and writes the operative configuration to ``config.gin`` of its OUT_DIR."""
    strategy = training.make_strategy(macro("STRATEGY"))
    keras.utils.set_random_seed(macro("SEED"))
    if macro("DETERMINISTIC"):
        tf.config.experimental.enable_op_determinism()
    keras.mixed_precision.set_global_policy(macro("PRECISION"))
    with strategy.scope():
        return _CONFIGURABLES["train"](config=gin.config_str(max_line_length=110))


def import_modules(config: str | Path) -> None:
    """Imports the modules that a gin file names, and configures nothing: what a user's own model needs to be loaded."""
    for name in re.findall(r"^import ([\w.]+)", Path(config).read_text(), re.MULTILINE):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{config} imports {name}: {error}. Put its folder on PYTHONPATH.") from None


def eval_data() -> data.CocoDataset:
    """The data set that the configured training would be evaluated on."""
    try:
        reference = gin.query_parameter("train.eval_data")
    except ValueError:
        reference = None
    if reference is None:
        raise ValueError("The configuration has no train.eval_data: name a data set with --annotations.")
    return reference.scoped_configurable_fn()


def macro(name: str):
    """The value of a macro.

    Raises:
        ValueError: If the configuration has no such macro.
    """
    try:
        return gin.query_parameter(f"%{name}")
    except ValueError:
        if name in OPTIONAL:
            return OPTIONAL[name]
        raise


def _find(config):
    candidates = [Path(config), *(GIN_CONFIGS / f"{config}{suffix}" for suffix in ("", ".gin"))]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.stem for path in GIN_CONFIGS.glob("*.gin"))
    raise FileNotFoundError(f"There is no configuration {config}: give a path or one of {', '.join(known)}.")


def _binding(override):
    """A line of gin for ``NAME=value``; what is no Python literal and no reference is text."""
    name, equals, value = override.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise ValueError(f"cannot read the override {override!r}: write NAME=value.")
    if "." not in name:
        _require_macro(name)
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if value.removesuffix("()") in _CONFIGURABLES:
                raise ValueError(f"{override!r} would be a text: write {name}=@{value}.") from None
            if not value.startswith(("[", "(", "{")):
                value = repr(value)
    return f"{name} = {value}"


def _require_macro(name):
    try:
        macro(name)
    except ValueError:
        raise ValueError(f"the configuration has no macro {name}.") from None


def _used_macros():
    text = gin.config_str(max_line_length=10**6)
    text = re.sub("^#.*", "", text, flags=re.MULTILINE)  # gin draws rules as long as a line may be, megabytes of them
    text = re.sub(r"'([^'\\\n]|\\.)*'|\"([^\"\\\n]|\\.)*\"", "", text)  # a % in a text is no macro
    return sorted(set(re.findall(r"%([A-Z][A-Z0-9_]*)", text)) | {"PRECISION", "SEED", *OPTIONAL})


def _check_own_macros(path):
    """What a file sets beside its includes must be used: another name would have no effect."""
    used = _used_macros()
    for name in re.findall(r"^(\w+)\s*=", path.read_text(), re.MULTILINE):
        if name not in used:
            raise ValueError(f"the macro {name} is set and used nowhere.")


def _check_macros(path):
    missing = []
    for name in _used_macros():
        try:
            value = macro(name)
        except ValueError:
            raise ValueError(f"{path}: the macro {name} is used and never set.") from None
        if "gin.REQUIRED" in repr(value) or value is gin.REQUIRED:
            missing.append(name)
        elif isinstance(value, gin.config.ConfigurableReference):
            continue
        elif requirement := _unmet(name, value):
            raise ValueError(f"{path}: {name} is {value!r}: it must be {requirement}.")
    if missing:
        settings = " ".join(f"--set {name}=..." for name in missing)
        raise ValueError(f"{path}: {', '.join(missing)} must be set: add {settings} or lines in the file.")


def _unmet(name, value):
    """What the value of a macro must be, if it is something else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in WHOLE_NUMBERS and not (is_number and isinstance(value, int) and value >= 1):
        return "a whole number from 1"
    if name == "LR" and not (is_number and 0 < value < math.inf):
        return "a number above 0"
    if name == "DETERMINISTIC" and not isinstance(value, bool):
        return "True or False"
    if name == "PRECISION" and value not in PRECISIONS:
        return f"one of {', '.join(PRECISIONS)}"
    return None
