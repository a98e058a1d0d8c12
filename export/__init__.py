"""Exports detectors as files that run without kerasdet.

`export_and_verify` writes a model in one of the formats of `kerasdet.export.formats`, runs the result in a process
without kerasdet and compares it with the model. `kerasdet.load` opens every export as a `Predictor`.

To add a format:

1. Make a folder ``export/<name>/``. By convention it has ``write.py``, ``load.py`` with a
   `kerasdet.inference.Predictor`, ``verify_worker.py``, a script that imports nothing from kerasdet or this repository,
   and ``format.py``, which describes the folder's functions in a `kerasdet.export.protocol.Format`.
2. Add its ``FORMAT`` to `kerasdet.export.formats.FORMATS`, and the folder to ``packages`` in ``setup.py``.

Export, verification, AP on data, `kerasdet.load`, evaluation and `detect` then work. The exported function is
`Detector.detect_batch`, or `Detector.decode_all` for runtimes that apply NMS themselves; `kerasdet.export.graph`
folds it into one fast graph. ``write.py`` puts `kerasdet.export.metadata.model_metadata` into the file, from which
``load.py`` learns classes and preprocessing.
"""

from kerasdet.export.saved_model.write import export_saved_model
from kerasdet.export.tflite.write import export_tflite
from kerasdet.export.workflow import export_and_verify, verify_export

__all__ = ["export_and_verify", "export_saved_model", "export_tflite", "verify_export"]
