"""Opening what was trained."""

from pathlib import Path

import keras

from kerasdet.models import Detector
from kerasdet.training.callbacks import checkpoints


def load(path: str | Path) -> Detector:
    """The detector in a ``.keras`` file, in a folder that `kerasdet convert` wrote, or in the last
    checkpoint of a run directory.

    Raises:
        FileNotFoundError: If there is nothing there.
        ValueError: If it is no detector.
    """
    file = _model_file(Path(path))
    try:
        model = keras.models.load_model(file)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"{file} is no complete Keras model file: {error}") from None
    if not isinstance(model, Detector):
        raise ValueError(f"{file} holds a {type(model).__name__}, not a detector of kerasdet.")
    return model


def _model_file(path):
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: give a run directory or a .keras file.")
    if path.is_file():
        return path
    found = [*path.glob("model.keras"), *checkpoints(path / "checkpoints")]
    if not found:
        raise FileNotFoundError(f"{path} holds no model: give the OUT_DIR of a training run or a .keras file.")
    return found[-1]
