"""Quantises the convolutions of an ONNX model to 8 bits, by onnxruntime's static quantisation.

Weights are int8 with a scale for each output channel. Activations are uint8, with ranges that are measured on the
calibration images. Only backbone and neck are quantised, because rounding in the heads changes scores and boxes. In
models with a second stage only the neck is quantised: rounding in the backbone would change which proposals NMS
selects.

Processors without VNNI instructions add pairs of products in 16 bits, which overflow for large weights and activations.
Weights of 7 bits (`reduce_range`) would prevent the overflow, but have mixed effects on the tests' random models: in
one model, 8 instead of 33 of 100 detections have no partner; in another, 26 instead of 18, which fails verification.
"""

import contextlib
import logging
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kerasdet.errors import UserError

if TYPE_CHECKING:
    import onnx


def quantize(model: "onnx.ModelProto", inputs: Iterable[np.ndarray], layers: Collection[str]) -> "onnx.ModelProto":
    """Quantises the convolutions of a model.

    Args:
        model: The model in float32.
        inputs: Calibration inputs (1, h, w, 3), on which the ranges of activations are measured.
        layers: Names of the layers whose convolutions are quantised, such as the model's backbone and neck.

    Returns:
        The quantised model, in QDQ format.

    Raises:
        UserError: If onnxruntime is not installed.
    """
    import onnx

    try:
        from onnxruntime import quantization as ort
    except ImportError:
        raise UserError("onnxruntime is not installed, but int8 needs it: pip install 'kerasdet[onnx]'.") from None

    class Reader(ort.CalibrationDataReader):
        def __init__(self):
            self._inputs = iter(inputs)

        def get_next(self):
            pixels = next(self._inputs, None)
            return None if pixels is None else {"image": pixels}

    scope = re.compile(rf"(^|/)({'|'.join(map(re.escape, layers))})(_\d+)*/")  # TensorFlow numbers its name scopes
    kept = [node.name for node in model.graph.node if not scope.search(node.name)]
    with tempfile.TemporaryDirectory() as folder, _silent_root_logger():
        source, target = (Path(folder) / name for name in ("float32.onnx", "int8.onnx"))
        onnx.save(model, source)
        ort.quantize_static(
            source,
            target,
            Reader(),
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        )
        return onnx.load(target)


@contextlib.contextmanager
def _silent_root_logger() -> Iterator[None]:
    """Hides onnxruntime's advice about the model, and prevents a root log handler that would repeat later warnings."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
