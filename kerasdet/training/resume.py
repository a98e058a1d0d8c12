"""The state of a run on disk. A file appears under its name only when it is complete and on the disk."""

import contextlib
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras

from kerasdet.training.ema import use_averages
from kerasdet.training.files import replacing
from kerasdet.training.freezing import freeze_layers

log = logging.getLogger(__name__)

_STATE = "training.json"  # beside Keras' own files in the archive
_KERAS_FILES = ("metadata.json", "config.json", "model.weights.h5")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty where there is no such folder."""
    return sorted(path for path in Path(folder).glob("step_*.keras") if re.fullmatch(r"step_\d+\.keras", path.name))


def save(
    model: keras.Model, folder: Path, keep: int, *, step: int, images: int, settings: Mapping | None = None
) -> None:
    """Writes ``step_00000500.keras`` and deletes all but the last `keep`.

    It holds the model, its optimizer with the averages of weights, step, place in the data and the states of random
    generators. What is random outside of the model follows from its seed, step and place.

    Args:
        model: Compiled.
        folder: Made where it is not there.
        keep: How many stay.
        step: Steps made.
        images: Images seen.
        settings: Of the run, that JSON can hold; of these ``freeze``, what `freeze_layers` was given, opens the file.

    Raises:
        OSError: If the file cannot be written, in one sentence; what was there before stays.
    """
    random = [generator.state.numpy().tolist() for generator in _generators(model)]
    state = {"step": step, "images": images, "freeze": [], "random": random, **(settings or {})}
    state |= {**_kind(model.optimizer), "iterations": _iterations(model.optimizer)}
    save_model(model, folder / f"step_{step:08d}.keras", state)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()


def save_model(model: keras.Model, path: Path, state: dict | None = None) -> None:
    """Writes a ``.keras`` file in one piece; raises OSError as `save`."""
    with replacing(path) as partial:
        for abandoned in path.parent.glob(".partial_*.keras"):
            abandoned.unlink()
        with ThreadPoolExecutor(1) as thread:  # which is in no strategy's scope: Keras makes variables where it saves
            thread.submit(model.save, partial).result()
        if state is not None:
            with zipfile.ZipFile(partial, "a") as archive:
                archive.writestr(_STATE, json.dumps(state))


def restore(model: keras.Model, folder: Path, settings: Mapping | None = None) -> tuple[int, int]:
    """Loads the last checkpoint, if there is one; where it was made with other settings, a warning names them.

    Args:
        model: Compiled, its optimizer built.
        folder: Where `save` wrote.
        settings: As of `save`.

    Returns:
        Steps made and images seen; (0, 0) where there is no checkpoint.

    Raises:
        ValueError: If the file is damaged, or of another model or optimizer.
    """
    saved = checkpoints(folder)
    if not saved:
        return 0, 0
    path = saved[-1]
    elsewhere = "choose another OUT_DIR (out_dir) or delete that run."
    state = _read_undamaged(path)
    if differences := _differences(state, _kind(model.optimizer)):
        raise ValueError(f"{path} is of another optimizer, {differences}: {elsewhere}")
    try:
        model.load_weights(path)
    except (ValueError, KeyError) as error:
        reason = str(error).split(". ")[0]
        raise ValueError(f"{path} does not fit this model: {elsewhere} ({reason})") from None
    differences = _differences(state, settings or {})
    if state["iterations"] != _iterations(model.optimizer):  # Keras only warns, and leaves its optimizer as it was
        found = f" ({differences})" if differences else ""
        raise ValueError(f"{path} is of another optimizer, or of one of other trained weights{found}: {elsewhere}")
    if differences:
        log.warning("%s was made with other settings, %s: going on with those of now.", path, differences)
    for generator, value in zip(_generators(model), state["random"], strict=True):
        generator.state.assign(value)
    return state["step"], state["images"]


def open_model(path: Path) -> keras.Model:
    """The model in a ``.keras`` file, with the averages of its weights where it was trained with any."""
    model = keras.models.load_model(path)
    with contextlib.suppress(KeyError):  # of files that are no checkpoint
        if patterns := _read_state(path)["freeze"]:  # without which Keras does not restore the optimizer
            freeze_layers(model, patterns)
            inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            model.compile(optimizer=type(inner).from_config(inner.get_config()))
            model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
    use_averages(model)
    return model


def _read_state(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(_STATE))


def _read_undamaged(path):
    """The state in a checkpoint of which every byte is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {_STATE, *_KERAS_FILES} - {*archive.namelist()}
            if damaged := min(missing, default=None) or archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} in it is {'missing' if missing else 'not as it was written'}")
            return json.loads(archive.read(_STATE))
    except PermissionError:
        raise
    except Exception as error:  # what damage makes of an archive has no end of names
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): delete it to go on from the one before it.") from None


def _differences(state, values):
    """What of the values is another in a state; one that was written by an earlier kerasdet may lack some."""
    return ", ".join(
        f"{name} being {state[name]} there and {value} here"
        for name, value in values.items()
        if name in state and state[name] != value
    )


def _generators(model):
    """What layers such as dropout draw from, which Keras does not save."""
    return [generator for layer in model._flatten_layers() for generator in layer._seed_generators]


def _kind(optimizer):
    """What an optimizer's variables depend on beside the weights it trains."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scales = "dynamic (PRECISION mixed_float16)" if inner is not optimizer else "none"
    return {"optimizer": type(inner).__name__, "loss scaling": scales, "use_ema": bool(inner.use_ema)}


def _iterations(optimizer):
    return int(getattr(optimizer, "inner_optimizer", optimizer).iterations.numpy())
