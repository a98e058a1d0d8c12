"""A folder that TF Serving serves: versions of a SavedModel with warm-up requests, configuration and clients.

| | |
|---|---|
| ``models/detector/1/`` | the SavedModel; the next export to the same folder becomes version 2 |
| ``models.config`` | what the server serves |
| ``batching.config`` | parameters of batching on the server, off unless asked for; the README says when to |
| ``docker-compose.yml`` | a server with gRPC on port 8500 and REST on 8501 |
| ``grpc_client.py``, ``rest_client.py`` | example clients |
"""

import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

NAME = "detector"

_WARMUP_SIZES = ((480, 640), (640, 480))


def next_version(folder: str | Path) -> Path:
    """The path of the version to be written in a serving folder."""
    versions = Path(folder) / "models" / NAME
    numbers = [int(path.name) for path in versions.glob("*") if path.name.isdigit()]
    return versions / str(max(numbers, default=0) + 1)


def write_kit(folder: str | Path) -> None:
    """Writes configuration and clients into a serving folder; files that are there stay as they are."""
    for source in sorted((Path(__file__).parent / "templates").iterdir()):
        target = Path(folder) / source.name
        if source.is_file() and not target.exists():
            shutil.copyfile(source, target)


def write_warmup(path: str | Path) -> Path:
    """Writes the requests that TF Serving sends itself before it serves a version, so that no user waits for tracing.

    Args:
        path: A SavedModel of `export_saved_model`.

    Returns:
        The path of the ``PredictionLog`` records.

    Raises:
        RuntimeError: As `warmup_protos`.
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
    """The modules of model, predict and prediction_log protos.

    Raises:
        RuntimeError: If the package tensorflow-serving-api is missing.
    """
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError:
        raise RuntimeError("Warm-up requests need tensorflow-serving-api: pip install 'kerasdet[serving]'.") from None
    return model_pb2, predict_pb2, prediction_log_pb2


def _warmup_inputs():
    """Triples of signature, input and value: a smooth picture of each size, as bytes and as pixels."""
    for height, width in _WARMUP_SIZES:
        y, x = np.mgrid[:height, :width]
        picture = np.stack([255 * y / height, 255 * x / width, 127 + 127 * np.sin(x * y / 5000)], -1).astype(np.uint8)
        yield "encoded", "image_bytes", [tf.io.encode_jpeg(picture).numpy()]
        yield "serving_default", "image", picture[None]
