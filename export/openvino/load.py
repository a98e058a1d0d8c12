"""Loads exported OpenVINO IR as a `Predictor`."""

from pathlib import Path

import numpy as np

from kerasdet.errors import UserError
from kerasdet.export.onnx.load import GraphPredictor, parse_metadata
from kerasdet.export.openvino.spec import MODEL_FILE
from kerasdet.paths import expand

# By default OpenVINO computes in bfloat16 on processors that support it, even if the file is in float32.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
_ENTRIES = ("kerasdet", "model")


class OpenVinoPredictor(GraphPredictor):
    """Detects with OpenVINO IR that `kerasdet export --format openvino` wrote. OpenVINO alone runs the network.

    Args:
        path: Path of the folder that contains ``model.xml``.
        device: Name of the device in OpenVINO, such as "CPU" or "GPU".

    Raises:
        UserError: If kerasdet did not write the folder, or if OpenVINO is not installed, cannot load the model or does
            not have the device.

    Example:
        >>> detections = kerasdet.load("detector").detect("street.jpg")
    """

    def __init__(self, path: str | Path, device: str = "CPU"):
        path = expand(path)
        core, model = _read(path)
        super().__init__(path, _properties(model, path))
        try:
            self._compiled = core.compile_model(model, device, CONFIG)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot run {path} on the device {device!r}; available are "
                f"{', '.join(core.available_devices)}. Change device. ({_reason(error)})"
            ) from None
        self._names = [output.any_name for output in self._compiled.outputs]

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph on the input `pixels` (B, h, w, 3) and returns the outputs by name."""
        request = self._compiled.create_infer_request()  # one per call, because several threads may call `run`
        results = request.infer({"image": pixels})
        return {name: np.array(results[name]) for name in self._names}


def read_metadata(path: Path) -> dict:
    """Reads the description of the model from exported OpenVINO IR.

    Args:
        path: Path of the folder of the IR.

    Returns:
        The description, a dict; see `kerasdet.export.metadata.model_metadata`.

    Raises:
        UserError: If kerasdet did not write the folder, or if OpenVINO is not installed or cannot read the model.
    """
    return parse_metadata(read_properties(path)["kerasdet"], path)


def read_properties(path: Path) -> dict[str, str]:
    """Reads the entries under ``kerasdet`` in the ``rt_info`` of exported OpenVINO IR, without compiling the model.

    Args:
        path: Path of the folder of the IR.

    Returns:
        The entries, strings by name, see `kerasdet.export.onnx.write`.

    Raises:
        UserError: If kerasdet did not write the folder, or if OpenVINO is not installed or cannot read the model.
    """
    return _properties(_read(path)[1], path)


def _properties(model, path):
    properties = {name: model.get_rt_info(["kerasdet", name]).value for name in _ENTRIES if _has(model, name)}
    if "kerasdet" not in properties:
        raise UserError(
            f"{path / MODEL_FILE} has no entry kerasdet in its rt_info: expected a folder of `kerasdet export "
            "--format openvino`. Run other models with openvino."
        )
    return properties


def _has(model, name):
    return model.has_rt_info(["kerasdet", name])


def _read(path):
    try:
        import openvino
    except ImportError:
        raise UserError(f"openvino is not installed, but {path} needs it: pip install 'kerasdet[openvino]'.") from None
    core = openvino.Core()
    try:
        return core, core.read_model(path / MODEL_FILE)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be loaded by OpenVINO: {_reason(error)}. Export the model again.") from None


def _reason(error):
    return " ".join(str(error).split()).rstrip(".")
