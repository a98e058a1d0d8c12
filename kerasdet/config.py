"""Reads gin files, and defines the classes and functions that gin files can configure. No other module imports gin.

A gin file sets arguments of the classes and functions in `SURFACE` by ``Name.argument = value``. Objects that Python
code constructs ignore gin.
"""

import ast
import importlib
import inspect
import logging
import math
import os
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import keras
import tensorflow as tf

from kerasdet import data, evaluation, layers, loading, losses, models, training
from kerasdet.config_checks import (
    check_called,
    check_circles,
    check_includes,
    check_order,
    check_text,
    check_type,
    has_effect,
    part_of,
    targets,
    used_parts,
)
from kerasdet.data import shapes, transforms
from kerasdet.errors import UserError
from kerasdet.geometry import anchors, coders, default_boxes, dynamic_matching, matching, sampling
from kerasdet.keras_utils import ConfigFromInit, constructor_arguments
from kerasdet.models import common, postprocess
from kerasdet.paths import expand

log = logging.getLogger(__name__)

GIN_CONFIGS = Path(inspect.getfile(__import__("kerasdet.gin_configs", fromlist=["x"]))).parent

SURFACE = (
    models.RetinaNet,
    models.FCOS,
    models.SSD,
    models.RTMDet,
    models.RTMDetIns,
    models.DynamicMaskBranch,
    models.FasterRCNN,
    models.MaskRCNN,
    models.KeypointRCNN,
    models.ProposalNetwork,
    models.RPN,
    models.ProposalSelection,
    models.RoIHeads,
    models.MaskBranch,
    models.KeypointBranch,
    models.Preprocessing,
    layers.ResNet,
    layers.MobileNetV3,
    layers.VGG,
    layers.KerasApplication,
    layers.PyramidBackbone,
    layers.FPN,
    layers.SSDNeck,
    layers.SSDHead,
    layers.CSPNeXt,
    layers.CSPNeXtPAFPN,
    layers.BoxHead,
    layers.ConvTop,
    layers.MaxPoolTop,
    layers.RoIPooler,
    layers.RetinaNetHead,
    layers.FCOSHead,
    layers.RTMDetHead,
    anchors.AnchorGenerator,
    anchors.octave_sizes,
    anchors.point_squares,
    default_boxes.DefaultBoxes,
    default_boxes.SSDMatcher,
    coders.DeltaCoder,
    coders.DistanceCoder,
    matching.IoUMatcher,
    matching.FCOSMatcher,
    dynamic_matching.DynamicSoftLabelAssigner,
    sampling.BalancedSampler,
    losses.FocalLoss,
    losses.QualityFocalLoss,
    losses.SmoothL1Loss,
    losses.IoULoss,
    losses.GIoULoss,
    postprocess.Postprocessing,
    common.LossNormalizer,
    data.CocoDataset,
    data.VocDataset,
    data.open_dataset,
    data.ImageSampler,
    *(getattr(transforms, name) for name in transforms.__all__ if name not in ("MixTransform", "Transform")),
    shapes.shapes_dataset,
    loading.pretrained,
    loading.backbone_weights,
    training.SGD,
    training.WarmupMultiStep,
    training.WarmupCosine,
    training.WarmupFlatCosine,
    training.Validation,
    training.Checkpointing,
    training.StepOptions,
    training.MLflowLogger,
    training.WandbLogger,
    training.train,
    evaluation.evaluate,
    keras.callbacks.CSVLogger,
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
    training.AdamW,
    keras.optimizers.Lamb,
)
OPTIONAL = {"DETERMINISTIC": False, "STRATEGY": "one_device"}  # defaults of macros that a file may leave out
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_READ_HERE = ("DATA", "CLASSES", "NUM_CLASSES", "PRECISION", "SEED")  # macros that this module reads itself
_REQUIRED = ("model", "data", "optimizer", "steps", "batch_size", "out_dir")  # arguments of `train`
WHOLE_NUMBERS = ("BATCH_SIZE", "LONGEST_EDGE", "NUM_CLASSES", "SHORTEST_EDGE", "STEPS")


def _arguments(item):
    """Returns the names of the arguments that gin may bind, except those that every Keras layer has."""
    if isinstance(item, type) and issubclass(item, ConfigFromInit):
        return constructor_arguments(item)
    parameters = inspect.signature(item).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _register(item):
    """Makes `item` configurable. A misspelt argument is an error even if `item` takes ``**kwargs``."""
    return gin.external_configurable(item, module="kerasdet", allowlist=[*_arguments(item), *_inherited(item)])


def _inherited(item):
    """Returns the names of arguments of Keras' base classes that gin may bind."""
    takes_any = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(item).parameters.values())
    names = ["name", "dtype", "clipnorm", "clipvalue", "global_clipnorm"] if takes_any else []
    return names + (["use_ema", "ema_momentum"] if item in (training.SGD, training.AdamW) else [])


_CONFIGURABLES = {item.__name__: _register(item) for item in SURFACE}
_ITEMS = {item.__name__: item for item in SURFACE}
ARGUMENTS = {item.__name__: _arguments(item) for item in SURFACE}
INHERITED = {item.__name__: _inherited(item) for item in SURFACE}


def _included(path):
    """Returns the path of an included file with ``~`` expanded, and without the search folder that gin prepends."""
    _, tilde, rest = path.partition("/~/")
    return os.path.expanduser(f"~/{rest}") if tilde else path


def _open_included(path):
    return open(_included(path), encoding="utf-8-sig")  # Windows' editors begin a file with a byte order mark


def _read_text(path):
    """Reads a gin file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not a text file: expected a gin configuration. Pass a gin file or a recipe."
        ) from None


# gin 0.5.0 also takes the folder of an include for a Python package, and raises a TypeError if it is one without
# __init__.py, such as a folder `dataset` of the user in the working folder. It has no public way to drop a reader.
gin.config._FILE_READERS[:] = [(_open_included, lambda path: os.path.isfile(_included(path)))]


def load(config: str | Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
    """Reads a gin file and applies overrides. Replaces the previous configuration.

    Args:
        config: Path of a file or of a run's folder, or the name of a file inside kerasdet, with or without ``.gin``.
        overrides: Strings such as ``MACRO=value`` or ``Name.argument=value``. String values need no quotes.
            ``DATA=path`` replaces the data of the file by a dataset of any format, and sets the number of classes from
            it; see ``gin_configs/dataset/folder.gin``.
        defaults: Values for macros that the file requires and that neither the file nor the overrides set.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If a name does not exist, the syntax is wrong, or a required macro has no value or an invalid one.

    Example:
        >>> config.load("retinanet_r50_fpn_1x", ["CHECKPOINT=R-50", "BATCH_SIZE=8"])
    """
    path = _find(config).absolute()
    text = _read_text(path)
    check_text(text, path)
    gin.clear_config()
    # gin 0.5.0 can only append to its search path, in which the working folder would be first: a folder `base` of the
    # user would hide that of kerasdet
    gin.config._LOCATION_PREFIXES[:] = [str(path.parent), str(GIN_CONFIGS), ""]
    override = None
    check_includes(path, _find_included, _read_text)
    try:
        parsed = gin.parse_config_file(str(path))
        if parsed.includes:
            _check_own_macros(text)
            check_order(text, lambda name: _read_text(_find_included(name)), path)
        names = [override.partition("=")[0].strip() for override in overrides]
        if "DATA" in names and "DATA" not in _used_macros():
            _replace_data()
        for override in overrides:
            gin.parse_config(_as_binding(override))
    except tokenize.TokenError as error:
        raise UserError(f"{path}: {error.args[0]}: is a bracket not closed?") from None
    except (ValueError, KeyError, SyntaxError, AttributeError, TypeError, ImportError, OSError) as error:
        source = path if override is None else f"--set {override}"
        raise UserError(f"{source}: {_reason(error)}") from None
    if "DATA" in _used_macros() and _is_set("DATA"):
        _follow_data(is_new="DATA" in names and "NUM_CLASSES" not in names)
    for name, value in (defaults or {}).items():
        if name in _used_macros() and not _is_set(name):
            gin.bind_parameter(f"%{name}", value)
    _check_macros(path)
    _check_types(path, overrides)
    check_circles(_references(), path)
    is_own = parsed.includes and GIN_CONFIGS not in path.parents
    _warn_of_unused(overrides, targets(text) if is_own else [], path)


def _find_included(name):
    """Returns the path of an included file in the first folder of gin's search path that contains it, or None."""
    places = [_included(os.path.join(prefix, name)) for prefix in gin.config._LOCATION_PREFIXES]
    return next((place for place in places if os.path.isfile(place)), None)


def _reason(error):
    """Describes an error of gin in a sentence."""
    if isinstance(error, ImportError):
        reason, _, place = str(error).partition("\n  In file ")
        return _import_failure(place.rpartition("\n")[2].strip(), reason)
    if isinstance(error, SyntaxError) and error.text and error.lineno:
        what = f"line {error.lineno}, {error.text.strip()!r}, cannot be read ({error.msg})"
        return f"{' '.join(what.split())}: expected NAME = value. Correct the line."
    return _unknown_argument(error) or " ".join(str(error).split())


def _import_failure(statement, reason):
    return (
        f"{statement!r} fails ({reason}): expected a module that Python can import. Correct its name, or put the "
        "folder that contains it on PYTHONPATH."
    )


def _replace_data():
    """Lets `dataset/folder.gin` replace the data of a recipe, whose own data then need not be set."""
    gin.parse_config_file(str(GIN_CONFIGS / "dataset" / "folder.gin"))
    for name in ("TRAIN_ANNOTATIONS", "EVAL_ANNOTATIONS"):
        if name in _used_macros():
            gin.bind_parameter(f"%{name}", None)


def _follow_data(is_new):
    """Sets the values that follow from the macro DATA: the number of classes, and whether to read masks or keypoints.

    Args:
        is_new: Whether the data differ from those of the recipe, so that the recipe's number of classes is wrong.
    """
    if is_new or not _is_set("NUM_CLASSES"):
        gin.bind_parameter("%NUM_CLASSES", len(data.read_class_names(macro("DATA"), classes=macro("CLASSES"))))
    for name in ("masks", "keypoints"):
        try:
            gin.bind_parameter(f"open_dataset.{name}", gin.query_parameter(f"CocoDataset.{name}"))
        except ValueError:  # the recipe does not read them
            continue


def _is_set(name):
    """Returns whether a macro has a value other than %gin.REQUIRED."""
    return "gin.REQUIRED" not in repr(macro(name))


def train() -> keras.Model:
    """Trains the configured model and writes the operative configuration to ``config.gin`` in its OUT_DIR.

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
        return _CONFIGURABLES["train"](config=gin.config_str(max_line_length=110))


def _is_bound(name):
    try:
        return gin.query_parameter(name) is not None
    except ValueError:
        return False


def import_modules(config: str | Path) -> None:
    """Imports the modules that a gin file imports, without configuring anything.

    Afterwards a model can be loaded whose classes are in these modules.

    Args:
        config: Path of the gin file.

    Raises:
        UserError: If a module cannot be imported.
    """
    statements = r"^(?:from ([\w.]+) )?import ([\w.]+)"  # gin's `from a import b` imports the module a.b
    for found in re.finditer(statements, _read_text(expand(config)), re.MULTILINE):
        try:
            importlib.import_module(".".join(filter(None, found.groups())))
        except ImportError as error:
            raise UserError(f"{config}: {_import_failure(found[0], error)}") from None


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
            "The configuration has no Validation.data, the dataset to evaluate on: pass a dataset with --data or "
            "--annotations."
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


def macro(name: str) -> Any:
    """Returns the value of a macro of the current configuration.

    Args:
        name: Name of the macro, such as "BATCH_SIZE".

    Returns:
        The value of the macro, or its default if the file does not set it.

    Raises:
        ValueError: If the configuration has no such macro.
    """
    try:
        return gin.query_parameter(f"%{name}")
    except ValueError:
        if name in OPTIONAL:
            return OPTIONAL[name]
        raise


def _unknown_argument(error):
    """Returns a sentence if gin's error is about an argument that does not exist, or None for other errors."""
    found = re.search(
        r"Configurable '(?:\w+\.)*(\w+)' doesn't (?:include kwarg|have a parameter named) '(\w+)'", str(error)
    )
    if found is None or found[1] not in ARGUMENTS:
        return None
    name, argument = found.groups()
    own = ARGUMENTS[name]
    elsewhere = [
        f"{other}.{each}"
        for other, names in ARGUMENTS.items()
        for each in names
        if each == argument or (argument.endswith(f"_{each}") and other.startswith(name) and other != name)
    ]
    hint = f", or {' or '.join(elsewhere[:3])}" if elsewhere else ""
    return f"{name} has no argument {argument}: choose one of {', '.join(own)}{hint}."


def _find(config):
    packaged = [GIN_CONFIGS / f"{config}{suffix}" for suffix in ("", ".gin")]
    candidates = [expand(config), expand(config) / "config.gin", *packaged] if str(config) else packaged
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.stem for path in GIN_CONFIGS.glob("*.gin"))
    raise FileNotFoundError(
        f"There is no configuration {config}: expected the path of a gin file, or one of {', '.join(known)}."
    )


def _as_binding(override):
    """Converts ``NAME=value`` to a line of gin. A value that is neither a literal nor a reference becomes a string."""
    name, equals, value = override.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise UserError(f"the override {override!r} cannot be read: expected NAME=value.")
    if "." not in name:
        _require_macro(name)
    if value.endswith(",") and not value.startswith("("):
        raise UserError(f"the override {override!r} ends in a comma. Write {name}={value.rstrip(',')}.")
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if value.removesuffix("()") in _CONFIGURABLES:
                raise UserError(
                    f"the override {override!r} would set the string {value!r}, not the class or function of that "
                    f"name. Write {name}=@{value}."
                ) from None
            if not value.startswith(("[", "(", "{")):
                value = repr(value)
            elif value[-1] in "])}" and not set("@%'\"") & set(value):
                example = "{'a': 'b'}" if value.startswith("{") else "['a', 'b']"
                raise UserError(f"{override!r}: strings in brackets need quotes: write {name}={example}.") from None
    return f"{name} = {value}"


def _require_macro(name):
    try:
        macro(name)
    except ValueError:
        raise UserError(
            f"the configuration has no macro {name}: set a macro of the file, or an argument as Name.argument=value."
        ) from None


def _used_macros():
    found = {name[1:] for names in _references().values() for _, name in names if name.startswith("%")}
    return sorted(found | {"PRECISION", "SEED", *OPTIONAL})


def _references():
    """Returns what the bindings of each part refer to, see `used_parts`."""
    references = {}
    for (scope, selector), values in gin.config._CONFIG.items():
        part = ("", f"%{scope}") if selector == "gin.macro" else (scope, selector.rpartition(".")[2])
        references[part] = [
            ("", f"%{'/'.join(each.scopes)}")
            if each.configurable.selector == "gin.macro"
            else ("/".join(each.scopes), each.configurable.selector.rpartition(".")[2])
            for each in gin.config.iterate_references(values)
        ]
    return references


def _warn_of_unused(overrides, own, path):
    """Warns of overrides and bindings of a user's file that have no effect, because the run does not use the part."""
    references = _references()
    if ("", "train") not in references:
        return
    used = used_parts(references, ["train", *(f"%{name}" for name in (*OPTIONAL, *_READ_HERE))])
    named = {target: f"{path}: {target}" for target in own}
    named |= {override.partition("=")[0].strip(): f"--set {override}" for override in overrides}
    for target, text in named.items():
        if not has_effect(target, used):
            part = part_of(target)
            log.warning(
                "%s has no effect, because this configuration does not use %s. Set an argument of a part that the "
                "configuration uses, or add %s to the configuration.",
                text,
                part,
                part if part.startswith("%") else f"@{part}()",
            )


def _check_types(path, overrides):
    """Checks the types of all values that are bound to arguments."""
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for (scope, selector), values in gin.config._CONFIG.items():
        name = selector.rpartition(".")[2]
        if not selector.startswith("kerasdet.") or name not in _ITEMS:
            continue
        for argument, value in values.items():
            target = f"{scope}/{name}.{argument}" if scope else f"{name}.{argument}"
            names = {target}
            if repr(value).startswith("%") and _has(repr(value)[1:]):
                names.add(repr(value)[1:])
                target, value = f"{target} ({repr(value)[1:]})", macro(repr(value)[1:])
            where = "--set" if names & overridden else path
            references = [*gin.config.iterate_references({argument: value})]
            check_type(f"{where}: {target}", value, _ITEMS[name], argument, _ITEMS)
            check_called(f"{where}: {target}", value, references, _ITEMS[name], argument)


def _has(name):
    try:
        return macro(name) is not None
    except ValueError:
        return False


def _check_own_macros(text):
    """Rejects macros that a file sets but does not use, because a misspelt macro would have no effect."""
    used = _used_macros()
    for name in re.findall(r"^(\w+)\s*=", text, re.MULTILINE):
        if name not in used:
            raise UserError(f"the macro {name} is set but never used: correct its name, or delete the line.")


def _check_macros(path):
    missing = []
    for name in _used_macros():
        try:
            value = macro(name)
        except ValueError:
            raise UserError(
                f"{path}: the macro {name} is used but never set: add a line {name} = ..., or correct the name."
            ) from None
        if "gin.REQUIRED" in repr(value) or value is gin.REQUIRED:
            missing.append(name)
        elif isinstance(value, gin.config.ConfigurableReference):
            continue
        elif requirement := _violated_requirement(name, value):
            raise UserError(f"{path}: {name} is {value!r}: expected {requirement}.")
    if missing:
        settings = " ".join(f"--set {name}=..." for name in missing)
        raise UserError(f"{path}: {', '.join(missing)} must be set: add {settings} or lines in the file.")


def _violated_requirement(name, value):
    """Returns the requirement that the value of a macro violates, or None if it is valid."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in WHOLE_NUMBERS and not (is_number and isinstance(value, int) and value >= 1):
        return "a positive integer"
    if name == "SEED" and not (is_number and isinstance(value, int) and 0 <= value < 2**32):
        return "an integer from 0 to 2**32 - 1"
    if name == "LR" and not (is_number and 0 < value < math.inf):
        return "a number above 0"
    if name == "DETERMINISTIC" and not isinstance(value, bool):
        return "True or False"
    if name == "PRECISION" and value not in PRECISIONS:
        return f"one of {', '.join(PRECISIONS)}"
    return None
