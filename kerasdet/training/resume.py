"""Saves and restores the state of a training run."""

import contextlib
import dataclasses
import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import keras

from kerasdet.errors import UserError
from kerasdet.files import replacing
from kerasdet.keras_compat import inner_optimizer, seed_generators
from kerasdet.training.ema import use_averages
from kerasdet.training.freezing import freeze_layers

_STATE = "training.json"  # name of the extra file in the .keras archive
_NOT_ARGUMENTS = ("name", "class_names", "seed", "trainable")  # keys that differ between equal models
_MAX_DIFFERENCES = 5
_KERAS_FILES = ("metadata.json", "config.json", "model.weights.h5")


def checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints in a folder, oldest first.

    Args:
        folder: Folder of checkpoints, which need not exist.

    Returns:
        Paths of the files ``step_*.keras``, in the order of the steps.
    """
    return sorted(path for path in Path(folder).glob("step_*.keras") if re.fullmatch(r"step_\d+\.keras", path.name))


def save(
    model: keras.Model, folder: Path, max_to_keep: int, *, step: int, images: int, settings: Mapping | None = None
) -> None:
    """Writes a checkpoint such as ``step_00000500.keras``, then deletes all but the latest `max_to_keep` checkpoints.

    The file holds model, optimizer, averaged weights, step, number of images seen and the states of random generators.
    All other randomness depends only on the run's seed, the step and the number of images seen.

    Args:
        model: Compiled model.
        folder: Folder of checkpoints, created if necessary.
        max_to_keep: Number of the latest checkpoints to keep.
        step: Number of completed steps.
        images: Number of images that the run has trained on.
        settings: Settings of the run by name, with values that can be stored as JSON. `open_model` needs the setting
            ``freeze``, the argument `patterns` of `freeze_layers`.

    Raises:
        OSError: If the file cannot be written. Older checkpoints stay intact.
    """
    random = [generator.state.numpy().tolist() for generator in seed_generators(model)]
    state = {"step": step, "images": images, "freeze": [], "random": random, **(settings or {})}
    state |= {**_kind(model.optimizer), "iterations": _iterations(model.optimizer)}
    state["optimizer settings"] = _optimizer_settings(model.optimizer)
    save_model(model, folder / f"step_{step:08d}.keras", state)
    for old in checkpoints(folder)[:-max_to_keep]:
        old.unlink()


def save_model(model: keras.Model, path: Path, state: dict | None = None) -> None:
    """Writes a ``.keras`` file atomically.

    Args:
        model: Model to save.
        path: Path of the file to write or replace.
        state: Contents of an additional JSON file in the archive. None: no additional file.

    Raises:
        OSError: If the file cannot be written. An old file at `path` is kept.
    """
    with replacing(path) as partial:
        for abandoned in path.parent.glob(".partial_*.keras"):
            abandoned.unlink()
        # Keras 3.15.1 creates variables while it saves, which a strategy's scope would replicate. A new thread is
        # outside the scope.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(model.save, partial).result()
        if state is not None:
            with zipfile.ZipFile(partial, "a") as archive:
                archive.writestr(_STATE, json.dumps(state))


class Progress(NamedTuple):
    """Holds the progress of a run, read from the last checkpoint.

    Args:
        steps: Number of completed steps.
        images: Number of images that the run has trained on.
        changes: Names and values of the settings that differ from those of the checkpoint, as a string for a message.
        model_has_changed: Whether arguments of the model differ from those of the checkpoint.
        settings: Settings of the run that the checkpoint stores, by name.
    """

    steps: int
    images: int
    changes: str = ""
    model_has_changed: bool = False
    settings: Mapping = MappingProxyType({})


def restore(model: keras.Model, folder: Path, settings: Mapping | None = None) -> Progress:
    """Loads the latest checkpoint in a folder, if any, into a model.

    The new optimizer keeps its settings, including the learning rate. Only its number of iterations and its variables
    for each weight, such as momenta, are loaded from the checkpoint.

    Args:
        model: Compiled model with a built optimizer. The function loads its weights and optimizer variables.
        folder: Folder of checkpoints.
        settings: Settings of this run by name, with values that can be stored as JSON; they are compared with those of
            the checkpoint.

    Returns:
        The progress of the run: 0 steps if the folder has no checkpoint.

    Raises:
        UserError: If the file is damaged, or was saved from another model or optimizer, or with other classes.
    """
    saved = checkpoints(folder)
    if not saved:
        return Progress(0, 0)
    path = saved[-1]
    elsewhere = "use another OUT_DIR (Python: out_dir=)."
    state = _read_undamaged(path)
    if differences := _differences(state, _kind(model.optimizer)):
        raise UserError(
            f"The checkpoint {path} was saved with other optimizer settings: {differences}. Restore the "
            f"old settings to resume, or {elsewhere}"
        )
    _check_class_names(path, model, elsewhere)
    try:
        with _keeping_learning_rate(model.optimizer):
            model.load_weights(path)
    except (ValueError, KeyError) as error:
        reason = str(error).split(". ")[0]
        raise UserError(f"The checkpoint {path} does not fit this model ({reason}): {elsewhere}") from None
    settings = {**(settings or {}), **_optimizer_settings(model.optimizer)}
    differences = _differences({**state, **state.get("optimizer settings", {})}, settings)
    model_differences = _model_differences(path, model)
    differences = ", ".join(filter(None, (differences, model_differences)))
    if state["iterations"] != _iterations(model.optimizer):  # Keras 3.15.1 only warns, and skips the optimizer
        found = f" ({differences})" if differences else ""
        raise UserError(
            f"The checkpoint {path} was saved with another optimizer or other trainable weights{found}: {elsewhere}"
        )
    for generator, value in zip(seed_generators(model), state["random"], strict=True):
        generator.state.assign(value)
    return Progress(state["step"], state["images"], differences, bool(model_differences), state)


def settings_of_parts(transforms: Sequence, sampler: Any) -> dict[str, Any]:
    """Returns the settings of transforms and a sampler, which `save` stores and `restore` compares.

    Args:
        transforms: The transforms of the run.
        sampler: The sampler of the run, or None.

    Returns:
        The names of the parts under "transforms" and "sampler", and the arguments of each part as text under names such
        as "RandomFlip.vertical". If several parts have one class, the texts are in a list.
    """
    parts = [*transforms, *([] if sampler is None else [sampler])]
    names = [getattr(part, "__name__", type(part).__name__) for part in parts]
    arguments: dict[str, list[str]] = {}
    for name, part in zip(names, parts, strict=True):
        for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
            text = re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(part, field.name)))  # addresses differ between processes
            arguments.setdefault(f"{name}.{field.name}", []).append(text)
    settings = {name: texts[0] if len(texts) == 1 else texts for name, texts in arguments.items()}
    return {"transforms": names[: len(transforms)], "sampler": None if sampler is None else names[-1], **settings}


def _check_class_names(path, model, elsewhere):
    """Raises an error if model and checkpoint have different classes: the weights would predict the wrong classes."""
    with zipfile.ZipFile(path) as archive:
        old = json.loads(archive.read("config.json"))["config"].get("class_names") or []
    new = list(getattr(model, "class_names", None) or [])
    if not old or not new or old == new:
        return
    is_reordered = sorted(old) == sorted(new)
    remedy = f"Set CLASSES (Python: classes=) to {tuple(old)}" if is_reordered else "Resume with the data of the run"
    raise UserError(
        f"{path} was trained on the classes {', '.join(old)}{' in this order' if is_reordered else ''}, and the data "
        f"now have {', '.join(new)}: expected the same {'order' if is_reordered else 'classes'}. {remedy}, or "
        f"{elsewhere}"
    )


def _model_differences(path, model):
    """Lists up to five arguments of a detector's parts that differ from the checkpoint, for a message."""
    if not hasattr(model, "preprocessing"):
        return ""
    with zipfile.ZipFile(path) as archive:
        old = dict(_leaves(json.loads(archive.read("config.json"))["config"]))
    new = json.loads(json.dumps(keras.saving.serialize_keras_object(model)["config"], default=str))
    changed = {name: value for name, value in _leaves(new) if name in old and old[name] != value}
    listed = _differences(old, dict(list(changed.items())[:_MAX_DIFFERENCES]))
    return f"{listed}{', ...' if len(changed) > _MAX_DIFFERENCES else ''}"


def _leaves(config, name=""):
    """Yields the arguments in a serialised model with their paths, such as "preprocessing.shortest"."""
    if isinstance(config, dict):
        inner = config.get("config") if "class_name" in config else config
        for key, value in inner.items() if isinstance(inner, dict) else ():
            if key not in _NOT_ARGUMENTS:
                yield from _leaves(value, f"{name}.{key}" if name else key)
    elif isinstance(config, list) and any(isinstance(item, dict | list) for item in config):
        for index, item in enumerate(config):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, config


@contextlib.contextmanager
def _keeping_learning_rate(optimizer):
    """Prevents Keras from loading the learning rate with an optimizer's other variables inside the block.

    Keras 3.15.1 saves a constant rate as a variable after `iterations`, and a schedule not at all. Loading it would
    replace the new rate with the old one. If only one of the two rates is constant, it would also shift all other
    variables.
    """
    inner = inner_optimizer(optimizer)
    others = [variable for variable in inner.variables if variable is not inner.learning_rate]

    def load(store):
        names = [str(index) for index in range(len(store.keys()))]
        if len(names) == len(others) + 1 and store["1"].shape == ():
            names.remove("1")
        if [store[name].shape for name in names] == [tuple(variable.shape) for variable in others]:
            for name, variable in zip(names, others, strict=True):
                variable.assign(store[name])

    def load_around(store):
        for index, variable in enumerate(optimizer.variables[: -len(inner.variables)]):
            variable.assign(store[str(index)])

    inner.load_own_variables = load
    if inner is not optimizer:  # a `LossScaleOptimizer` saves its own variables, then those of the inner one
        optimizer.load_own_variables = load_around
    try:
        yield
    finally:
        for each in {id(each): each for each in (inner, optimizer)}.values():
            del each.load_own_variables


def open_model(path: Path) -> keras.Model:
    """Loads the model of a ``.keras`` file, with averaged weights if the optimizer kept averages.

    Args:
        path: Path of a checkpoint, or of another ``.keras`` file.

    Returns:
        The Keras model.
    """
    patterns = []
    with contextlib.suppress(KeyError):  # a file without a state is not a checkpoint
        patterns = _read_state(path)["freeze"]
    # Keras restores an optimizer only if the model has the same trained weights as when it was saved.
    with warnings.catch_warnings():
        if patterns:
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model = keras.models.load_model(path)
    if patterns:
        freeze_layers(model, patterns)
        inner = inner_optimizer(model.optimizer)
        model.compile(optimizer=type(inner).from_config(inner.get_config()))
        model.build_optimizer()
        model.load_weights(path)
    use_averages(model)
    return model


def _read_state(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(_STATE))


def _read_undamaged(path):
    """Reads the state in a checkpoint, after checking every byte of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {_STATE, *_KERAS_FILES} - {*archive.namelist()}
            if damaged := min(missing, default=None) or archive.testzip():
                raise zipfile.BadZipFile(f"its entry {damaged} is {'missing' if missing else 'corrupt'}")
            return json.loads(archive.read(_STATE))
    except PermissionError:
        raise
    except Exception as error:  # a damaged archive raises errors of many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"The checkpoint {path} is damaged ({reason}): delete this file to resume from the previous checkpoint."
        ) from None


def _differences(state, values):
    """Lists values that differ from a saved state, for a message; states of earlier versions may lack some values."""
    return ", ".join(
        f"{name} was {_shown(state[name])} and is now {_shown(value)}"
        for name, value in values.items()
        if name in state and state[name] != value
    )


def _shown(value):
    return f"{value:g}" if isinstance(value, float) else value  # a float32 of 0.001 would have seventeen digits


def _optimizer_settings(optimizer):
    """Returns the settings of an optimizer and of its schedule, by name, as values that JSON can hold."""
    settings = dict(inner_optimizer(optimizer).get_config())
    del settings["name"]
    schedule = settings["learning_rate"]
    if isinstance(schedule, Mapping):
        settings["learning_rate"] = schedule["class_name"]
        settings |= {f"{schedule['class_name']}.{name}": value for name, value in schedule["config"].items()}
    return json.loads(json.dumps(settings, default=str))


def _kind(optimizer):
    """Returns the properties of an optimizer that, with the trained weights, determine its variables."""
    inner = inner_optimizer(optimizer)
    scales = "dynamic (PRECISION mixed_float16)" if inner is not optimizer else "none"
    return {"optimizer": type(inner).__name__, "loss scaling": scales, "use_ema": bool(inner.use_ema)}


def _iterations(optimizer):
    return int(inner_optimizer(optimizer).iterations.numpy())
