"""Reads gin files and overrides."""

import ast
import logging
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from kerasdet import data
from kerasdet.config.checks import (
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
from kerasdet.config.files import GIN_CONFIGS, find_file, find_included, read_text
from kerasdet.config.macros import (
    READ_BY_KERASDET,
    check_macros,
    check_own_macros,
    find_references,
    has_value,
    is_set,
    macro,
    require_macro,
    used_macros,
)
from kerasdet.config.surface import (
    ARGUMENTS,
    CONFIGURABLES,
    ITEMS,
    SURFACE,
    arguments_of,
    inherited_arguments,
)
from kerasdet.data.dataset import OPTIONAL_GROUND_TRUTH
from kerasdet.errors import UserError
from kerasdet.keras_utils import ConfigFromInit
from kerasdet.paths import expand
from kerasdet.training.metrics_log import RUN_LOG

log = logging.getLogger(__name__)


def load(config: str | Path, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
    """Reads a gin file and applies overrides. The result replaces the previous configuration.

    Args:
        config: Path of a gin file or of a run's folder, or the name of a recipe of kerasdet, with or without ``.gin``.
        overrides: Strings such as ``MACRO=value`` or ``Name.argument=value``. String values need no quotes.
            ``DATA=path`` replaces the data of the file with a dataset of any format, and sets NUM_CLASSES to its number
            of classes, unless another override sets NUM_CLASSES; see ``gin_configs/dataset/folder.gin``.
        defaults: Values by macro name. They are used for macros that neither the file nor the overrides set.

    Raises:
        FileNotFoundError: If the file does not exist.
        UserError: If a name does not exist, the syntax is wrong, or a required macro has no value or an invalid one.

    Example:
        >>> config.load("retinanet_r50_fpn_1x", ["CHECKPOINT=R-50", "BATCH_SIZE=8"])
    """
    path = find_file(config).absolute()
    text = read_text(path)
    check_text(text, path)
    gin.clear_config()
    # gin 0.5.0 can only append to its search path, in which the working folder would be first: a folder `base` of the
    # user would hide that of kerasdet
    gin.config._LOCATION_PREFIXES[:] = [str(path.parent), str(GIN_CONFIGS), ""]
    check_includes(path, find_included, read_text)
    override = None
    try:
        parsed = gin.parse_config_file(str(path))
        names = [override.partition("=")[0].strip() for override in overrides]
        used = used_macros()
        if "DATA" in names and "DATA" not in used_macros():
            _replace_data(targets(text))
        if parsed.includes:
            check_own_macros(text, [*used, *used_macros()])
            check_order(text, lambda name: read_text(find_included(name)), path)
        for override in overrides:
            gin.parse_config(_as_binding(override))
    except tokenize.TokenError as error:
        raise UserError(f"{path}: {error.args[0]}: expected a closing bracket. Close all brackets.") from None
    except (ValueError, KeyError, SyntaxError, AttributeError, TypeError, ImportError, OSError) as error:
        source = path if override is None else f"--set {override}"
        raise UserError(f"{source}: {_reason(error)}") from None
    if "DATA" in used_macros() and is_set("DATA"):
        _follow_data(is_new="DATA" in names and "NUM_CLASSES" not in names)
    for name, value in (defaults or {}).items():
        if name in used_macros() and not is_set(name):
            gin.bind_parameter(f"%{name}", value)
    if path.name == "config.gin" and (path.parent / RUN_LOG).is_file():
        _follow_run(find_file(config).parent, names)
    check_macros(path)
    _check_own_arguments(path, overrides)
    _check_types(path, overrides)
    check_circles(find_references(), path)
    is_own = parsed.includes and GIN_CONFIGS not in path.parents
    _warn_of_unused(overrides, targets(text) if is_own else [], path)


def _replace_data(own):
    """Lets `dataset/folder.gin` replace the data of a recipe, whose own data then need not be set.

    Args:
        own: Names that the user's file or a recipe of kerasdet binds itself; its settings of bad images, classes,
            splits and of no validation stay.
    """
    file = GIN_CONFIGS / "dataset" / "folder.gin"
    names = {*own} & {*targets(read_text(file))} - {"DATA", "train.data", "Validation.data", "open_dataset.path"}
    names = {name if "." in name else f"%{name}" for name in names}
    kept = {name: gin.query_parameter(name) for name in names}
    if kept.get("train.validation") is not None:
        del kept["train.validation"]
    gin.parse_config_file(str(file))
    for name, value in kept.items():
        gin.bind_parameter(name, value)
    for name in ("TRAIN_ANNOTATIONS", "EVAL_ANNOTATIONS"):
        if name in used_macros():
            gin.bind_parameter(f"%{name}", None)


def _follow_data(is_new):
    """Sets the values that follow from the macro DATA: the number of classes, and whether to read masks or keypoints.

    Args:
        is_new: Whether the data differ from those of the recipe, so that the recipe's number of classes is wrong.
    """
    if is_new or not is_set("NUM_CLASSES"):
        classes = gin.query_parameter("open_dataset.classes")
        classes = macro(repr(classes)[1:]) if repr(classes).startswith("%") else classes
        gin.bind_parameter("%NUM_CLASSES", len(data.read_class_names(macro("DATA"), classes=classes)))
    for name in OPTIONAL_GROUND_TRUTH:
        try:
            gin.bind_parameter(f"open_dataset.{name}", gin.query_parameter(f"CocoDataset.{name}"))
        except ValueError:  # the recipe does not read them
            continue


def _follow_run(folder, overridden):
    """Lets a run go on in its own folder, which may have moved since, unless an override names another one.

    Args:
        folder: Folder of the run whose configuration was read.
        overridden: Names of the macros and arguments that overrides set.
    """
    try:
        value = gin.query_parameter("train.out_dir")
    except ValueError:  # the configuration does not train
        return
    name = repr(value) if repr(value).startswith("%") else "train.out_dir"
    if name.removeprefix("%") not in overridden:
        gin.bind_parameter(name, str(folder))
        return
    chosen = gin.query_parameter(name)
    if isinstance(chosen, str) and chosen and not (expand(chosen, "OUT_DIR") / RUN_LOG).is_file():
        log.info("%s is a new run with the settings of %s. To resume %s, leave out OUT_DIR.", chosen, folder, folder)


def _reason(error):
    """Describes an error of gin in a sentence."""
    if isinstance(error, ImportError):
        reason, _, place = str(error).partition("\n  In file ")
        return import_failure(place.rpartition("\n")[2].strip(), reason)
    if isinstance(error, SyntaxError) and error.text and error.lineno:
        what = f"line {error.lineno}, {error.text.strip()!r}, cannot be read ({error.msg})"
        return f"{' '.join(what.split())}: expected NAME = value. Correct the line."
    return _unknown_argument(error) or " ".join(str(error).split())


def import_failure(statement: str, reason: str | Exception) -> str:
    """Returns the message about a module that a configuration imports and that cannot be imported.

    Args:
        statement: Line of the gin file, such as "import my_package.backbones".
        reason: Python's error, or its message.

    Returns:
        The message, without the name of the gin file.
    """
    return (
        f"{statement!r} fails ({reason}): expected a module that Python can import. Correct its name, or put the "
        "folder that contains it on PYTHONPATH."
    )


def _unknown_argument(error):
    """Returns a sentence if gin's error is about an argument that does not exist, or None for other errors."""
    pattern = r"Configurable '(?:\w+\.)*(\w+)' doesn't (?:include kwarg|have a parameter named) '(\w+)'"
    found = re.search(pattern, str(error))
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


def _as_binding(override):
    """Converts ``NAME=value`` to a line of gin. A value that is neither a literal nor a reference becomes a string."""
    name, equals, value = override.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise UserError(f"the override {override!r} cannot be read: expected NAME=value.")
    if "." not in name:
        require_macro(name)
    if value.endswith(",") and not value.startswith("("):
        raise UserError(f"the override {override!r} ends in a comma. Write {name}={value.rstrip(',')}.")
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if value.removesuffix("()") in CONFIGURABLES:
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


def _warn_of_unused(overrides, own, path):
    """Warns of overrides and bindings of a user's file that have no effect, because the run does not use the part."""
    references = find_references()
    if ("", "train") not in references:
        return
    used = used_parts(references, ["train", *(f"%{name}" for name in READ_BY_KERASDET)])
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


def _check_own_arguments(path, overrides):
    """Checks that the arguments exist that are bound of classes of the user, which take the others as ``**kwargs``."""
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for (scope, selector), values in gin.config._CONFIG.items():
        item = gin.config._REGISTRY.get_match(selector).wrapped
        if item in SURFACE or not (isinstance(item, type) and issubclass(item, ConfigFromInit)):
            continue
        own = arguments_of(item)
        for argument in values:
            if argument not in (*own, *inherited_arguments(item)):
                target = f"{scope}/{item.__name__}.{argument}".lstrip("/")
                where = f"--set {target}" if target in overridden else path
                raise UserError(f"{where}: {item.__name__} has no argument {argument}: choose one of {', '.join(own)}.")


def _check_types(path, overrides):
    """Checks the types of all values that are bound to arguments."""
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for (scope, selector), values in gin.config._CONFIG.items():
        name = selector.rpartition(".")[2]
        if not selector.startswith("kerasdet.") or name not in ITEMS:
            continue
        for argument, value in values.items():
            target = f"{scope}/{name}.{argument}" if scope else f"{name}.{argument}"
            names = {target}
            if repr(value).startswith("%") and has_value(repr(value)[1:]):
                names.add(repr(value)[1:])
                target, value = f"{target} ({repr(value)[1:]})", macro(repr(value)[1:])
            where = "--set" if names & overridden else path
            references = [*gin.config.iterate_references({argument: value})]
            check_type(f"{where}: {target}", value, ITEMS[name], argument, ITEMS)
            check_called(f"{where}: {target}", value, references, ITEMS[name], argument)
