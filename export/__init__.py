"""Exports detectors as files that run without kerasdet.

`export_and_verify` writes a model in one of the formats of `kerasdet.export.formats`, runs the result in a process
without kerasdet and compares it with the model. `kerasdet.load` opens every export as a `Predictor`.

To add a format, create a folder ``export/<name>/``. Its ``spec.py`` defines `SPEC`, a
`kerasdet.export.spec.FormatSpec`, without importing TensorFlow: name, suffix, precisions and options of the command
line. Its ``format.py`` defines `FORMAT`, a `kerasdet.export.protocol.Format`, which lists the functions of the format.
By convention these are in ``write.py``, in ``load.py``, which defines a `kerasdet.inference.Predictor`, and in
``verify_worker.py``, a script that does not import kerasdet.

``kerasdet export --format <name>``, verification, measuring AP, `kerasdet.load`, evaluation and `detect` then work. The
exported function is `Detector.detect_batch`, or `Detector.decode_all` for runtimes that apply NMS themselves;
`kerasdet.export.graph` optimises it as one graph. ``write.py`` stores the result of
`kerasdet.export.metadata.model_metadata` in the file; ``load.py`` reads classes and preprocessing from it.

Importing this package imports no TensorFlow; its functions are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerasdet.export.onnx.write import export_onnx
    from kerasdet.export.openvino.write import export_openvino
    from kerasdet.export.saved_model.write import export_saved_model
    from kerasdet.export.tflite.write import export_tflite
    from kerasdet.export.workflow import export_and_verify, verify_export

__all__ = [
    "export_and_verify",
    "export_onnx",
    "export_openvino",
    "export_saved_model",
    "export_tflite",
    "verify_export",
]

_HOMES = {
    "export_and_verify": "workflow",
    "export_onnx": "onnx.write",
    "export_openvino": "openvino.write",
    "export_saved_model": "saved_model.write",
    "export_tflite": "tflite.write",
    "verify_export": "workflow",
}


def __getattr__(name: str):
    """Imports a function of the package when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasdet.export' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kerasdet.export.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
