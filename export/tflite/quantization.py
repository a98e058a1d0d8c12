"""Stores the weights of convolutions and matrix products of a TFLite file in fewer bits.

Box decoding and NMS stay in float32.

| precision | weights | activations |
|---|---|---|
| ``float16`` | float16, half the size | float32 |
| ``dynamic`` | int8, one scale per channel | float32; each convolution quantises its input to int8 at run time |
| ``int8`` | int8, one scale per channel | int8, scaled by the ranges measured on calibration images |

With "int8" the heads' last convolutions stay "dynamic": 8-bit logits with one range for all classes would cost two
points of AP50 (BCCD, RetinaNet ResNet-18: 0.897 instead of 0.919).
"""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from kerasdet.errors import UserError
from kerasdet.export.tflite.native_log import without_delegate_line
from kerasdet.keras_compat import tflite_schema

_THREADS = 4
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")
_LAST = r"/(class_logits|box_deltas|box_distances|centerness|objectness)(_\d+)?/"
# Ops between the convolutions of backbone and neck.
_BETWEEN = ("ADD", "MAX_POOL_2D", "PAD", "RESHAPE", "STRIDED_SLICE", "RELU")


def lower_precision(
    flatbuffer: bytes, precision: str, images: Sequence[np.ndarray] = (), scopes: Sequence[str] = ()
) -> bytes:
    """Converts a float32 TFLite file to another precision.

    Args:
        flatbuffer: A TFLite file in float32 whose input is ``image``.
        precision: One of `kerasdet.export.tflite.spec.PRECISIONS`.
        images: Calibration images for "int8": (H, W, 3) arrays with the size and dtype of the file's input.
        scopes: Names of layers in which "int8" also quantises additions, pooling and similar ops, except inside norms.

    Returns:
        The converted file; for "float32" the same file.

    Raises:
        UserError: If ai-edge-quantizer is not installed.
    """
    if precision == "float32":
        return flatbuffer
    quantizer, types = _quantizer()
    work = quantizer.Quantizer(bytearray(flatbuffer))
    if precision == "float16":
        _to_float16(work, quantizer, types)
    elif precision == "dynamic":
        for operation in _WEIGHTED:
            work.add_dynamic_config(_scope(operation), operation, num_bits=8)
    else:
        _to_int8(work, scopes)
    # The quantizer writes progress bars and advice for its own developers to stderr.
    with without_delegate_line(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = {"serving_default": [{"image": image[None]} for image in images]}
        ranges = work.calibrate(inputs, num_threads=_THREADS) if precision == "int8" else None
        if ranges:
            _widen(ranges, flatbuffer)
        result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def check_installed(precision: str) -> None:
    """Checks that the package which converts to a precision is installed.

    Args:
        precision: One of `kerasdet.export.tflite.spec.PRECISIONS`.

    Raises:
        UserError: If ai-edge-quantizer is needed and not installed.
    """
    if precision != "float32":
        _quantizer()


def _scope(operation):
    """Returns a pattern for the names of ops to convert, without the matrix products by which norms compute means."""
    return "^(?!.*norm)" if operation == "FULLY_CONNECTED" else ".*"


def _to_float16(work, quantizer, types):
    recipe = types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(16, dtype=types.TensorDataType.FLOAT),
        compute_precision=types.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for operation in _WEIGHTED:
        work.update_quantization_recipe(_scope(operation), operation, recipe, quantizer.AlgorithmName.FLOAT_CASTING)


def _to_int8(work, scopes):
    eight = {"activation_num_bits": 8, "weight_num_bits": 8}
    for operation in _WEIGHTED:
        work.add_static_config(_scope(operation), operation, **eight)
    work.add_dynamic_config(_LAST, "CONV_2D", num_bits=8)
    within = rf"^(?!.*norm).*/({'|'.join(map(re.escape, scopes))})(_\d+)?/"
    for operation in _BETWEEN if scopes else ():
        work.add_static_config(within, operation, **eight)


def _widen(ranges, flatbuffer):
    """Widens the ranges of outputs that are nearly constant, such as those of a ReLU that no calibration image reaches.

    With its own range, such an output would have a scale that XNNPACK cannot run (input scale * weight scale / output
    scale must be below 256), and LiteRT 2.3.0 then refuses the file or crashes. An output scale that equals the
    largest input scale * weight scale is as fine as the integers that the op sums.

    Args:
        ranges: Dict of the arrays ``min`` and ``max`` by tensor name, with one element each; changed in place.
        flatbuffer: The float32 TFLite file that was calibrated.
    """
    schema = tflite_schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))
    graph = model.subgraphs[0]
    kinds = schema.BuiltinOperator
    weighted = {kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D, kinds.FULLY_CONNECTED, kinds.TRANSPOSE_CONV}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code not in weighted:
            continue
        data = operator.inputs[2 if code == kinds.TRANSPOSE_CONV else 0]
        source, output = (ranges.get(graph.tensors[i].name.decode()) for i in (data, operator.outputs[0]))
        weights = model.buffers[graph.tensors[operator.inputs[1]].buffer].data
        if source is None or output is None or weights is None:
            continue
        step = (source["max"] - source["min"]) * np.abs(weights.view(np.float32)).max() / 127
        output["max"] = np.maximum(output["max"], output["min"] + step.max())


def _quantizer() -> tuple[ModuleType, ModuleType]:
    """Imports the modules ``quantizer`` and ``qtyping``."""
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise UserError(
            "ai-edge-quantizer is not installed, but precisions other than float32 need it: pip install "
            "'kerasdet[tflite]', or export in float32."
        ) from None
    return quantizer, qtyping
