"""Convolutions and matrix products of a TFLite file in fewer bits; what decodes and suppresses stays in float32.

| precision | weights | what lies between convolutions |
|---|---|---|
| ``float16`` | float16, half the size | float32 |
| ``dynamic`` | int8, one scale a channel | float32, rounded to int8 at each convolution by the range it has there |
| ``int8`` | int8, one scale a channel | int8, by the ranges seen in representative images |
"""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from types import ModuleType

import numpy as np

PRECISIONS = ("float32", "float16", "dynamic", "int8")

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")
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
    quantizer, recipes = _quantizer()
    work = quantizer.Quantizer(bytearray(flatbuffer))
    for operation in _WEIGHTED:
        if precision == "float16":
            recipe = recipes.OpQuantizationConfig(
                weight_tensor_config=recipes.TensorQuantizationConfig(16, dtype=recipes.TensorDataType.FLOAT),
                compute_precision=recipes.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            )
            work.update_quantization_recipe(".*", operation, recipe, quantizer.AlgorithmName.FLOAT_CASTING)
        elif precision == "dynamic":
            work.add_dynamic_config(".*", operation, num_bits=8)
        else:
            work.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
    if precision == "int8" and scopes:
        within = rf"^(?!.*norm).*/({'|'.join(map(re.escape, scopes))})(_\d+)?/"
        for operation in _BETWEEN:
            work.add_static_config(within, operation, activation_num_bits=8, weight_num_bits=8)
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):  # bars of progress
        inputs = {"serving_default": [{"image": image[None]} for image in images]}
        ranges = work.calibrate(inputs, num_threads=2) if precision == "int8" else None
        result = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _quantizer() -> tuple[ModuleType, ModuleType]:
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise RuntimeError(
            "Another precision than float32 needs ai-edge-quantizer: pip install 'kerasdet[tflite]'."
        ) from None
    return quantizer, qtyping
