"""Opening what was trained or converted, and starting from it."""

import zipfile
from pathlib import Path

import keras

from kerasdet.export.formats import format_of
from kerasdet.inference.predictor import Predictor
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
    """A detector to fine-tune: all weights are taken over, and new layers for what there is one of a class.

    It computes in the global precision policy, whatever the file's model did.

    Args:
        path: As of `load`.
        num_classes: Of the new task. Where the file's model has as many, its classification layer stays.

    Raises:
        ValueError: If the file holds no detector, or one without classes.
    """
    model = load_detector(path)
    if model.num_classes is None:
        raise ValueError(f"{path} holds a {type(model).__name__}, which knows no classes to fine-tune.")
    policy = keras.config.dtype_policy()
    if model.num_classes == num_classes and model.dtype_policy.name == policy.name:
        return model
    config = _with_policy(keras.saving.serialize_keras_object(model)["config"], policy)
    if model.num_classes != num_classes:
        config["class_names"] = None
    for part in (config, *(branch["config"] for branch in config.get("branches", ()))):
        if "num_classes" in part:
            part["num_classes"] = num_classes
    tuned = type(model).from_config(config)
    for new, old in zip(tuned.variables, model.variables, strict=True):
        if new.shape == old.shape and (model.num_classes == num_classes or "/class_logits/" not in f"/{new.path}"):
            new.assign(old)
    return tuned


def _with_policy(config, policy):
    """A serialised configuration, with another precision policy wherever it names one."""
    if isinstance(config, list):
        return [_with_policy(item, policy) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return keras.saving.serialize_keras_object(policy)
    return {name: _with_policy(value, policy) for name, value in config.items()}


def backbone_weights(model: Detector, path: str | Path) -> Detector:
    """Gives a detector the backbone of a file, which holds a backbone or a detector.

    Deformable convolutions take the kernels of ordinary ones, and begin without offsets.

    Args:
        model: Its backbone is overwritten.
        path: As of `load`.

    Returns:
        `model`.

    Raises:
        ValueError: If the backbones are not of one shape, by name.
    """
    source = load(path)
    theirs = {_inner_path(v): v for v in getattr(source, "backbone", source).variables}
    ours = {_inner_path(v): v for v in model.backbone.variables}
    ours = {name: v for name, v in ours.items() if name in theirs or "/offset/" not in name}
    wrong = [name for name, v in ours.items() if name not in theirs or theirs[name].shape != v.shape]
    wrong += [name for name in theirs if name not in ours]  # a ResNet-101 would else pass for a ResNet-50
    if wrong:
        raise ValueError(
            f"The backbone in {path} does not fit: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''} "
            "are missing in one of the two or of another shape. Configure ResNet as it was trained."
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
