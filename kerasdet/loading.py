"""Loads trained, converted and exported models, and starts training from them."""

import zipfile
from pathlib import Path

import keras

from kerasdet.errors import UserError
from kerasdet.export.saved_model.load import SavedDetector
from kerasdet.export.tflite.load import TFLiteDetector
from kerasdet.models import Detector
from kerasdet.training.resume import checkpoints, open_model


def load(path: str | Path) -> keras.Model | SavedDetector | TFLiteDetector:
    """The model in a ``.keras`` file, in a folder of `kerasdet convert`, in a training run's last checkpoint, or in a
    SavedModel or ``.tflite`` file of `kerasdet export`. All detectors answer `detect` alike; exported ones can do no
    more than that.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If the file is damaged, or needs a class that is not imported.
    """
    if (Path(path) / "saved_model.pb").is_file():
        return SavedDetector(path)
    if Path(path).suffix.lower() == ".tflite":
        return TFLiteDetector(path)
    file = _model_file(Path(path))
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no Keras model file, or only the beginning of one.")
    try:
        return open_model(file)
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, TypeError) as error:
        innermost = str(error).rpartition("Exception encountered: ")[2]  # Keras puts whole configurations around it
        reason = " ".join(innermost.partition(" Full object config")[0].split())
        raise ValueError(f"{file} cannot be loaded: {reason}") from None


def load_detector(path: str | Path) -> Detector:
    """`load`, for what must be a detector.

    Raises:
        ValueError: If it is something else, such as a backbone or a SavedModel.
    """
    model = load(path)
    if isinstance(model, SavedDetector | TFLiteDetector):
        raise ValueError(f"{path} is an export, for `detect` alone: name the run or .keras file that it is of.")
    if not isinstance(model, Detector):
        raise ValueError(f"{path} holds a {type(model).__name__}, not a detector.")
    return model


def pretrained(path: str | Path, num_classes: int) -> Detector:
    """Loads a detector to fine-tune, and re-initialises the layers whose size depends on the number of classes.

    The result computes in the global precision policy, whatever policy the file's model had.

    Args:
        path: A file or folder that `load` opens.
        num_classes: Number of classes of the new task. If the file's model has as many, its classification layer and
            class names stay.

    Returns:
        The detector; its post-processing, anchors and other parts are those of the file.

    Raises:
        ValueError: If the file does not hold a detector with classes.
    """
    model = load_detector(path)
    if model.num_classes is None:
        raise UserError(
            f"{path} holds a {type(model).__name__}, which has no classes to fine-tune: give a detector with classes."
        )
    policy = keras.config.dtype_policy()
    if model.num_classes == num_classes and model.dtype_policy.name == policy.name:
        return model
    config = _with_policy(keras.saving.serialize_keras_object(model)["config"], policy)
    if model.num_classes != num_classes:
        config.update(num_classes=num_classes, class_names=None)  # parts learn the number from the model
    tuned = type(model).from_config(config)
    for new, old in zip(tuned.variables, model.variables, strict=True):
        if new.shape == old.shape and (model.num_classes == num_classes or "/class_logits/" not in f"/{new.path}"):
            new.assign(old)
    return tuned


def _with_policy(config, policy):
    """Returns a serialised configuration with another precision policy wherever it names one."""
    if isinstance(config, list):
        return [_with_policy(item, policy) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return keras.saving.serialize_keras_object(policy)
    return {name: _with_policy(value, policy) for name, value in config.items()}


def backbone_weights(model: Detector, path: str | Path) -> Detector:
    """Copies the backbone's weights from a file that holds a backbone or a detector.

    Deformable convolutions take the kernels of ordinary ones and start without offsets.

    Args:
        model: Detector whose backbone the function overwrites.
        path: A file or folder that `load` opens.

    Returns:
        `model`.

    Raises:
        UserError: If the backbones differ in the names or shapes of their weights.
    """
    source = load(path)
    theirs = {_inner_path(v): v for v in getattr(source, "backbone", source).variables}
    ours = {_inner_path(v): v for v in model.backbone.variables}
    ours = {name: v for name, v in ours.items() if name in theirs or "/offset/" not in name}
    wrong = [name for name, v in ours.items() if name not in theirs or theirs[name].shape != v.shape]
    wrong += [name for name in theirs if name not in ours]  # otherwise a ResNet-101 would pass for a ResNet-50
    if wrong:
        raise UserError(
            f"The backbone in {path} does not fit: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''} "
            "are missing in one of the two or have another shape. Configure the backbone as it was trained."
        )
    for name, variable in ours.items():
        variable.assign(theirs[name])
    return model


def _inner_path(variable):
    return variable.path.split("/", 1)[1]


def _model_file(path):
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: give a run directory or a .keras file.")
    if path.is_file():
        return path
    found = [*path.glob("model.keras"), *checkpoints(path / "checkpoints")]
    if not found:
        raise FileNotFoundError(f"{path} holds no model: give the OUT_DIR of a training run or a .keras file.")
    return found[-1]
