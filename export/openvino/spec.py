"""Describes the OpenVINO export format for the command line, without importing TensorFlow."""

from pathlib import Path

from kerasdet.export.onnx.spec import OPTIONS, PRECISIONS
from kerasdet.export.spec import FormatSpec

MODEL_FILE = "model.xml"


def _recognizes(path: Path) -> bool:
    return (path / MODEL_FILE).is_file()


SPEC = FormatSpec(name="openvino", suffix="", precisions=PRECISIONS, recognizes=_recognizes, options=OPTIONS)
