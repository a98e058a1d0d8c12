"""Writes a folder for TF Serving: versions of a SavedModel with warm-up requests, configuration and clients.

| path | contents |
|---|---|
| ``models/detector/1/`` | the SavedModel; the next export to the same folder becomes version 2 |
| ``models.config`` | the list of models that the server loads |
| ``batching.config`` | parameters of batching on the server (off by default); its comment says when to use it |
| ``docker-compose.yml`` | a server with gRPC on port 8500 and REST on 8501 |
| ``grpc_client.py``, ``rest_client.py`` | example clients |
| ``README.md`` | how to start the server and call it |
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasdet.errors import UserError

NAME = "detector"

_WARMUP_SIZES = ((480, 640), (640, 480))


@contextlib.contextmanager
def new_version(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Adds a version to a folder for TF Serving; the version appears there only when it is complete.

    A server that watches the folder therefore never loads an incomplete version, and a failed export leaves none.

    Args:
        folder: The folder to serve, a new folder or that of an earlier export. The version becomes
            `models/detector/NUMBER` in the folder.

    Yields:
        The path to which the ``with`` block must write the SavedModel, and its path after the block.

    Raises:
        UserError: If tensorflow-serving-api is not installed.
    """
    warmup_protos()  # raises an error for a missing package before the export starts
    version = next_version(folder)
    version.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial_", dir=version.parent) as partial:
        path = Path(partial) / "model"
        yield path, version
        write_warmup(path)
        path.rename(version)
    write_templates(folder)


def next_version(folder: str | Path) -> Path:
    """Returns the path of the next version in a folder for TF Serving.

    Args:
        folder: The folder that holds the versions in `models/detector/`; it need not exist.

    Returns:
        The path of the next version; it ends in a number, one more than that of the newest version.

    Raises:
        UserError: If the folder itself holds versions, beside which a server would not find the next one.
    """
    own = sorted(path.name for path in Path(folder).glob("*") if path.name.isdigit() and path.is_dir())
    if own:
        above = Path(folder).absolute().parent.parent
        remedy = f"Pass {above}." if Path(folder).absolute() == above / "models" / NAME else "Pass another folder."
        raise UserError(
            f"{folder} holds versions of a model itself ({', '.join(own[-3:])}): expected a folder that holds them in "
            f"models/{NAME}/, where the next version is written. {remedy}"
        )
    versions = Path(folder) / "models" / NAME
    numbers = [int(path.name) for path in versions.glob("*") if path.name.isdigit()]
    return versions / str(max(numbers, default=0) + 1)


def write_templates(folder: str | Path) -> None:
    """Writes TF Serving's configuration and example clients into a folder. Existing files are not changed.

    Args:
        folder: The folder that holds the versions in `models/detector/`.
    """
    for source in sorted((Path(__file__).parent / "templates").iterdir()):
        target = Path(folder) / source.name
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)


def write_warmup(path: str | Path) -> Path:
    """Writes warm-up requests, which TF Serving runs when it loads a version, so that the first request is fast.

    Args:
        path: Path of a SavedModel that `export_saved_model` wrote.

    Returns:
        The path of the file of ``PredictionLog`` records.

    Raises:
        UserError: If tensorflow-serving-api is not installed.
    """
    model_pb2, predict_pb2, prediction_log_pb2 = warmup_protos()
    file = Path(path) / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, name, value in _warmup_inputs():
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=NAME, signature_name=signature),
                inputs={name: tf.make_tensor_proto(value)},
            )
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return file


def warmup_protos() -> tuple:
    """Imports the protos that warm-up requests need.

    Returns:
        The modules of the protos model, predict and prediction_log.

    Raises:
        UserError: If tensorflow-serving-api is not installed.
    """
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError:
        raise UserError(
            "tensorflow-serving-api is not installed, but warm-up requests need it: pip install 'kerasdet[serving]'."
        ) from None
    return model_pb2, predict_pb2, prediction_log_pb2


def _warmup_inputs():
    """Yields signature, input name and value of each request: a smooth image of each size, encoded and as pixels."""
    for height, width in _WARMUP_SIZES:
        y, x = np.mgrid[:height, :width]
        picture = np.stack([255 * y / height, 255 * x / width, 127 + 127 * np.sin(x * y / 5000)], -1).astype(np.uint8)
        yield "encoded", "image_bytes", [tf.io.encode_jpeg(picture).numpy()]
        yield "serving_default", "image", picture[None]
