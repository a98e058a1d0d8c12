"""Convolutions and matrix products of a TFLite file in fewer bits; what decodes and suppresses stays in float32.

| precision | weights | what lies between convolutions |
|---|---|---|
| ``float16`` | float16, half the size | float32 |
| ``dynamic`` | int8, one scale a channel | float32, rounded to int8 at each convolution by the range it has there |
| ``int8`` | int8, one scale a channel | int8, by the ranges seen in representative images |

With "int8" the heads' last convolutions are as with "dynamic": logits of one range for all classes in 8 bits would cost
2 points of AP50 (BCCD, RetinaNet ResNet-18: 0.897 in place of 0.919).
"""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np

PRECISIONS = ("float32", "float16", "dynamic", "int8")

_THREADS = 4
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")
_LAST = r"/(class_logits|box_deltas|box_distances|centerness|objectness)(_\d+)?/"
_BETWEEN = ("ADD", "MAX_POOL_2D", "PAD", "RESHAPE", "STRIDED_SLICE", "RELU")  # of backbone and neck


def lower_precision(
    flatbuffer: bytes, precision: str, images: Sequence[np.ndarray] = (), scopes: Sequence[str] = ()
) -> bytes:
    """The file in another precision.

    Args:
        flatbuffer: A TFLite file in float32 whose input is ``image``.
        precision: One of `PRECISIONS`.
        images: For "int8": inputs as the model will meet them, in the shape and type of its own input.
        scopes: For "int8": names of the layers within which additions, pooling and the like are quantised, too, unless
            they are part of a norm.

    Returns:
        The file, which is the same one for "float32".

    Raises:
        RuntimeError: If ai-edge-quantizer is not installed.
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
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # bars of progress, advice to debuggers
        warnings.simplefilter("ignore")
        inputs = {"serving_default": [{"image": image[None]} for image in images]}
        ranges = work.calibrate(inputs, num_threads=_THREADS) if precision == "int8" else None
        result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _scope(operation):
    """Where an operation is the network's; a norm takes its means by a matrix product, which has to be exact."""
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


def _quantizer() -> tuple[ModuleType, ModuleType]:
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise RuntimeError(
            "Another precision than float32 needs ai-edge-quantizer: pip install 'kerasdet[tflite]'."
        ) from None
    return quantizer, qtyping
