"""gin: what can be configured, and how a configuration is loaded. The only module that knows of gin.

Every class and function of `SURFACE` can be bound in a gin file as ``Name.argument = value``. Constructing one in
Python ignores gin.
"""

import ast
import inspect
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import gin
import keras

from kerasdet import anchors, coders, data, evaluation, layers, loading, models, training
from kerasdet.data import shapes

GIN_CONFIGS = Path(inspect.getfile(__import__("kerasdet.gin_configs", fromlist=["x"]))).parent

SURFACE = (
    models.RetinaNet,
    models.Preprocessing,
    layers.ResNet,
    layers.FPN,
    layers.ConvTop,
    layers.MaxPoolTop,
    anchors.AnchorGenerator,
    anchors.octave_sizes,
    coders.DeltaCoder,
    data.CocoDataset,
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
)


def _register(item):
    """Makes `item` configurable; a misspelt argument is an error even where there are ``**kwargs``."""
    parameters = inspect.signature(item).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    inherited = ["name", "dtype", "clipnorm", "clipvalue", "global_clipnorm"] if takes_any else []
    return gin.external_configurable(item, module="kerasdet", allowlist=[*names, *inherited])


_CONFIGURABLES = {item.__name__: _register(item) for item in SURFACE}
# gin says so of every include that it finds only in the second folder it looks in
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Path not found"))
gin.add_config_file_search_path(str(GIN_CONFIGS))


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
    try:
        gin.parse_config_files_and_bindings([str(path)], [], finalize_config=False)
        for override in overrides:
            gin.parse_config(_binding(override))
    except (ValueError, SyntaxError, AttributeError, TypeError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path}: {' '.join(line.strip() for line in reason)}") from None
    _check_macros(path)


def train() -> keras.Model:
    """Trains what is configured, and writes the operative configuration to ``config.gin`` of its OUT_DIR."""
    keras.utils.set_random_seed(macro("SEED"))
    keras.mixed_precision.set_global_policy(macro("PRECISION"))
    out_dir = Path(macro("OUT_DIR"))
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "config.gin").write_text(gin.config_str(max_line_length=110))
    return _CONFIGURABLES["train"]()


def eval_data() -> data.CocoDataset:
    """The data set that the configured training would be evaluated on."""
    reference = gin.query_parameter("train.eval_data")
    if reference is None:
        raise ValueError("The configuration has no train.eval_data: name a data set with --annotations.")
    return reference.scoped_configurable_fn()


def macro(name: str):
    """The value of a macro.

    Raises:
        ValueError: If the configuration has no such macro.
    """
    return gin.query_parameter(f"%{name}")


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
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        _require_macro(name)
    if not value.startswith(("@", "%")):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if not value.startswith(("[", "(", "{")):
                value = repr(value)
    return f"{name} = {value}"


def _require_macro(name):
    try:
        gin.query_parameter(f"%{name}")
    except ValueError:
        raise ValueError(f"the configuration has no macro {name}.") from None


def _check_macros(path):
    text = gin.config_str(max_line_length=10**6)
    for name in sorted(set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))):
        try:
            value = gin.query_parameter(f"%{name}")
        except ValueError:
            raise ValueError(f"{path}: the macro {name} is used and never set.") from None
        if "gin.REQUIRED" in repr(value) or value is gin.REQUIRED:
            raise ValueError(f"{path}: {name} must be set: add --set {name}=... or a line in the file.")
