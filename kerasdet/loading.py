"""Loads trained, converted, exported and published models, and starts new models from them."""

import zipfile
from pathlib import Path

import keras
import numpy as np

from kerasdet.checkpoints.cache import is_published, local_path
from kerasdet.checkpoints.read import looks_like_checkpoint
from kerasdet.checkpoints.zoo import find, similar
from kerasdet.data import images
from kerasdet.errors import UserError
from kerasdet.export.formats import format_of
from kerasdet.inference import Predictor
from kerasdet.paths import expand
from kerasdet.training.class_weights import class_weights
from kerasdet.training.resume import checkpoints, open_model

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors", ".npz", ".ckpt")
_MODEL = "the folder of a run, a .keras file or an export"
# Suffixes of files that users pass by mistake instead of a model -> the part of the message after "FILE is "
_OTHER_FILES = {
    (".h5", ".hdf5"): "an HDF5 file, which kerasdet does not load: expected " + _MODEL + ". Save the model as a .keras "
    "file; if the file holds only weights, first build the model and use `load_weights`.",
    (".pb",): "a single file of a SavedModel: expected " + _MODEL + ". Pass the folder that contains it.",
    (".onnx", ".engine", ".trt", ".mlmodel", ".torchscript"): "a model of another runtime: expected " + _MODEL + ". "
    "Pass the kerasdet model from which it was exported.",
    images.SUFFIXES: "an image: expected " + _MODEL + ". Pass the model first, then the images.",
    (".index", ".meta"): "a part of a TensorFlow checkpoint: expected " + _MODEL + ". Save the model as a .keras file.",
    (".gin",): "a configuration: expected " + _MODEL + ". Train a model with `kerasdet train`, and pass its OUT_DIR.",
    (".xml", ".bin"): "not a model: expected " + _MODEL + ". If it belongs to an OpenVINO export, give its two files "
    "the names model.xml and model.bin again, and pass their folder.",
    (".json", ".txt", ".csv"): "not a model: expected " + _MODEL + ". Pass one of these.",
}


def load(path: str | Path) -> keras.Model | Predictor:
    """Loads published weights by name, or a model that kerasdet trained, converted or exported.

    All detectors and exports have the methods `detect` and `detect_batch`. Exports cannot be trained: they are not
    Keras models and lack methods such as `fit`.

    Args:
        path: The folder of a training run (its last checkpoint is loaded) or of `kerasdet convert`, a ``.keras`` file,
            an output of `kerasdet export`, such as a SavedModel folder or a ``.tflite`` file, or a name that `kerasdet
            zoo` lists, such as ``torchvision/maskrcnn_resnet50_fpn_v2``. The file of such a name is downloaded and
            converted on first use, then read from the cache. ``~`` in a path is expanded.

    Returns:
        The Keras model, a detector or a backbone; or a `Predictor` that runs the export.

    Raises:
        FileNotFoundError: If the file or folder does not exist, or the folder contains no model.
        UserError: If the file is not a model, is damaged, or needs a class that is not imported; or if published
            weights are not in the cache and cannot be downloaded.

    Example:
        >>> model = kerasdet.load("torchvision/retinanet_resnet50_fpn_v2")
        >>> detections = model.detect("photo.jpg")
        >>> trained = kerasdet.load("runs/mine")
    """
    path = expand(local_path(path), "The path of a model")
    if exported := format_of(path):
        return exported.load(path)
    file = _model_file(path)
    _check_keras_file(file)
    try:
        model = open_model(file)
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, TypeError) as error:
        innermost = str(error).rpartition("Exception encountered: ")[2]  # before it, Keras prints whole configurations
        reason = " ".join(innermost.partition(" Full object config")[0].split())
        if "Could not locate class" in reason:
            reason = (
                f"{reason.partition(' Make sure')[0]} Import the module of the class first. The command line imports "
                "the modules that a config.gin beside the file imports."
            )
        else:
            reason = f"{reason.rstrip('. ')}. If the file is damaged, copy it again or pass an earlier checkpoint"
            if not isinstance(error, zipfile.BadZipFile):
                reason += "; if another version of Keras or kerasdet saved it, install that version"
            reason += "."
        raise UserError(f"{file} cannot be loaded: {reason}") from None
    _check_finite(model, file)
    return model


def _check_finite(model, file):
    for weight in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
            raise UserError(
                f"{file}: the weight {weight.path} has values that are NaN or infinite; expected finite weights. Pass "
                "a checkpoint from before the training diverged."
            )


def require_model(path: str | Path) -> None:
    """Checks that a path is a file, a folder with a model or an export, or a name of the zoo, without loading it.

    The contents of a file are not checked.

    Args:
        path: A path or a name of `kerasdet zoo`, as `load` accepts them.

    Raises:
        FileNotFoundError: If the path is neither a file, a folder nor a name of `kerasdet zoo`, or if the folder
            contains no model.
        UserError: If the path is not a local path, for example empty or a URL.
    """
    if is_published(path):
        return
    path = expand(path, "The path of a model")
    if format_of(path) is None or not path.exists():
        _model_file(path)


def load_predictor(path: str | Path) -> Predictor:
    """Loads a Keras detector or an export.

    Args:
        path: The folder of a training run (its last checkpoint is loaded) or of `kerasdet convert`, a ``.keras`` file,
            an export, or a name of `kerasdet zoo`.

    Returns:
        The Keras detector, or a `Predictor` that runs the export.

    Raises:
        FileNotFoundError: If the path contains no model.
        UserError: If the model is not a detector but, for example, a backbone, or if it cannot be loaded.
    """
    if is_published(path) and find(Path(path).as_posix()).task == "backbone":  # checked before 100 MB are downloaded
        raise UserError(
            f"{path} is a backbone, not a detector: choose a detector that `kerasdet zoo` lists, or train a detector "
            f"from the backbone with `kerasdet train RECIPE --set CHECKPOINT={path}`."
        )
    model = load(path)
    if not isinstance(model, Predictor):
        raise UserError(
            f"{path} contains a {type(model).__name__}, not a detector: pass the folder of a run, a .keras file or "
            "an export of a detector."
        )
    return model


def load_detector(path: str | Path) -> keras.Model:
    """Loads a Keras detector, which can be trained and exported.

    Args:
        path: The folder of a training run (its last checkpoint is loaded) or of `kerasdet convert`, a ``.keras`` file,
            or a name of `kerasdet zoo`.

    Returns:
        The detector, a Keras model.

    Raises:
        FileNotFoundError: If the path contains no model.
        UserError: If the model is not a detector, is an export, or cannot be loaded.
    """
    model = load_predictor(path)
    if not isinstance(model, keras.Model):
        raise UserError(
            f"{path} is an export, which cannot be trained or exported again: pass the run or the .keras file from "
            "which it was exported."
        )
    return model


def pretrained(
    path: str | Path, num_classes: int, *, shortest: int | None = None, longest: int | None = None
) -> keras.Model:
    """Loads a detector for fine-tuning on other classes.

    If the number of classes differs, the layers whose size depends on the number of classes are re-initialised; all
    other weights are kept. `kerasdet.train` then copies the weights of those classes whose names the old model and the
    dataset share. The model uses the global precision policy, not the policy of the file.

    Args:
        path: The folder of a training run (its last checkpoint is loaded) or of `kerasdet convert`, a ``.keras`` file,
            or a name of `kerasdet zoo`.
        num_classes: Number of classes of the new task. A model with the same number of classes keeps its classification
            layer.
        shortest: Length of an image's shorter side after resizing for detection, in pixels. Pass the length that
            fine-tuning uses. None: the length in the file.
        longest: Limit of the longer side, in pixels. None: the limit in the file.

    Returns:
        The detector, a Keras model.

    Raises:
        FileNotFoundError: If the path contains no model.
        UserError: If the model is not a detector, cannot be loaded or has no classes, or `shortest` and `longest` are
            invalid.

    Example:
        >>> model = kerasdet.loading.pretrained("torchvision/retinanet_resnet50_fpn_v2", num_classes=3)
    """
    model = load_detector(path)
    if model.num_classes is None:
        raise UserError(
            f"{path} contains a {type(model).__name__}, which has no classes to fine-tune: pass a detector with "
            "classes."
        )
    policy = keras.config.dtype_policy()
    classes = class_weights(model, str(path))
    edges = {"shortest": shortest, "longest": longest}
    edges = {name: value for name, value in edges.items() if value not in (None, getattr(model.preprocessing, name))}
    if model.num_classes == num_classes and model.dtype_policy.name == policy.name and not edges:
        model.pretrained_path, model.pretrained_classes = str(path), classes
        return model
    config = _with_policy(keras.saving.serialize_keras_object(model)["config"], policy)
    if model.num_classes != num_classes:
        config.update(num_classes=num_classes, class_names=None)  # the parts get the number of classes from the model
    config["preprocessing"]["config"].update(edges)
    tuned = type(model).from_config(config)
    for new, old in zip(tuned.variables, model.variables, strict=True):
        if new.shape == old.shape and (model.num_classes == num_classes or "/class_logits/" not in f"/{new.path}"):
            new.assign(old)
    tuned.pretrained_path, tuned.pretrained_classes = str(path), classes
    return tuned


def _with_policy(config, policy):
    """Returns a serialised configuration in which each precision policy is replaced."""
    if isinstance(config, list):
        return [_with_policy(item, policy) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return keras.saving.serialize_keras_object(policy)
    return {name: _with_policy(value, policy) for name, value in config.items()}


def backbone_weights(model: keras.Model, path: str | Path) -> keras.Model:
    """Copies the weights of another model's backbone into a detector.

    Where the detector has a deformable convolution and the other backbone an ordinary one, the kernel is copied; the
    weights of the offsets are not changed, and are zero in a new detector.

    Args:
        model: The detector. The weights of its backbone are overwritten.
        path: A backbone or a detector: the folder of a training run or of `kerasdet convert`, a ``.keras`` file, or a
            name of `kerasdet zoo`.

    Returns:
        `model`.

    Raises:
        FileNotFoundError: If the path contains no model.
        UserError: If the model cannot be loaded or does not fit: variables of the backbones differ in name or shape,
            or `ResNet.stride_in_1x1` or, if `path` is a detector, `Preprocessing.channel_order` differs.
    """
    source = load(path)
    _check_kind(model, source, path)
    theirs = {_inner_path(v): v for v in getattr(source, "backbone", source).variables}
    ours = {_inner_path(v): v for v in model.backbone.variables}
    ours = {name: v for name, v in ours.items() if name in theirs or "/offset/" not in name}
    wrong = [name for name, v in ours.items() if name not in theirs or theirs[name].shape != v.shape]
    # Without this check, the weights of a ResNet-101 would fit into a ResNet-50.
    wrong += [name for name in theirs if name not in ours]
    if wrong:
        raise UserError(
            f"The backbone in {path} does not fit the backbone of the model: {_shape_in(theirs, wrong[0])} in the "
            f"file and {_shape_in(ours, wrong[0])} in the model"
            f"{f', and {len(wrong) - 1} more differ' if len(wrong) > 1 else ''}. Configure the model's backbone "
            "like the one in the file."
        )
    for name, variable in ours.items():
        variable.assign(theirs[name])
    model.pretrained_path = str(path)
    return model


def _check_kind(model, source, path):
    """Raises a UserError if the backbones give different results despite equal names and shapes of weights."""
    pairs = {}
    if getattr(model.backbone, "block", None) == "bottleneck":  # basic blocks have no 1x1 convolution with a stride
        pairs["ResNet.stride_in_1x1"] = (getattr(source, "backbone", source), model.backbone, "stride_in_1x1")
    if hasattr(source, "backbone"):
        pairs["Preprocessing.channel_order"] = (source.preprocessing, model.preprocessing, "channel_order")
    for name, (theirs, ours, attribute) in pairs.items():
        value, own = getattr(theirs, attribute, None), getattr(ours, attribute, None)
        if value != own:
            raise UserError(
                f"The backbone in {path} was trained with {name}={value!r}, but the model has {own!r}: expected the "
                "same value. Choose a recipe and a checkpoint of the same kind (MSRA and caffe, or torchvision)."
            )


def _shape_in(variables, name):
    """Describes the shape of a variable of a backbone, or its absence, for an error message."""
    return f"{name} has the shape {tuple(variables[name].shape)}" if name in variables else f"there is no {name}"


def _inner_path(variable):
    """Returns the path of a variable inside its backbone, whose own name may differ."""
    return variable.path.split("/", 1)[1]


def _check_keras_file(file):
    """Checks that a file looks like a model that Keras saved.

    Raises:
        UserError: If the file is of another kind, by its contents or suffix, or is damaged.
    """
    names = ()
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    if "config.json" in names:
        return
    is_torch = any(name.endswith("/data.pkl") or name == "data.pkl" for name in names)
    suffix = file.suffix.lower()
    if is_torch or (suffix in _CHECKPOINT_SUFFIXES and looks_like_checkpoint(file)):
        raise UserError(
            f"{file} is a checkpoint of another framework, not a .keras file: convert it with `kerasdet convert`, "
            "and pass the folder that this command writes."
        )
    if format_of(file.parent) is not None and suffix in (".xml", ".bin", ".pb"):
        raise UserError(f"{file} is a part of an export: pass its folder, {file.parent}.")
    if not file.stat().st_size:
        raise UserError(f"{file} is empty (0 bytes): expected {_MODEL}. Copy or save it again.")
    for suffixes, what in _OTHER_FILES.items():
        if suffix in suffixes:
            raise UserError(f"{file} is {what}")
    with file.open("rb") as opened:
        head = opened.read(8)
    if head[4:] == b"TFL3":
        raise UserError(f"{file} is a TFLite file without its suffix: expected {_MODEL}. Rename it to end in .tflite.")
    if suffix in _CHECKPOINT_SUFFIXES:
        raise UserError(
            f"{file} is neither a .keras file nor a checkpoint that `kerasdet convert` reads, despite its suffix: "
            f"expected {_MODEL}. Download or save it again."
        )
    raise UserError(f"{file} is not a valid .keras file, or it is truncated: copy or save it again.")


def _model_file(path):
    if not path.exists():
        name = similar(path.as_posix())
        hint = f" Did you mean {name}, which `kerasdet zoo` lists?" if name else ""
        raise FileNotFoundError(f"{path} does not exist: expected {_MODEL}.{hint or ' Check the path.'}")
    if path.is_file():
        return path
    found = [*path.glob("model.keras"), *checkpoints(path / "checkpoints"), *checkpoints(path)]
    if not found:
        suffixes = (".keras", *_CHECKPOINT_SUFFIXES)
        inside = [file for file in path.iterdir() if file.suffix.lower() in suffixes or format_of(file) is not None]
        hint = f" Did you mean {min(inside)}?" if inside else ""
        if renamed := [file for file in path.glob("*.xml") if file.with_suffix(".bin").exists()]:
            hint = f" If {min(renamed)} is an OpenVINO export, name its two files model.xml and model.bin again."
        raise FileNotFoundError(
            f"The folder {path} contains no model: pass the OUT_DIR of a training run, a .keras file or an "
            f"export.{hint}"
        )
    return found[-1]
