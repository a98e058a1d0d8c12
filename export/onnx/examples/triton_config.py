"""Prints Triton's config.pbtxt for a file of `kerasdet export --format onnx`: ``python triton_config.py MODEL.onnx``.

Only onnxruntime is needed. The model repository is then::

    models/detector/config.pbtxt
    models/detector/1/model.onnx
"""

import sys

import onnxruntime

_TYPES = {"float": "TYPE_FP32", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}


def triton_config(path: str, name: str = "detector") -> str:
    """Returns the text of a Triton ``config.pbtxt`` for an exported ONNX file.

    Args:
        path: Path of the ONNX file.
        name: Name of the model in the Triton model repository.

    Returns:
        The configuration as text.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # With max_batch_size 0 Triton passes requests on as they are. Its own batching would join images of one size only.
    parts = [f'name: "{name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            dims = ", ".join(str(length if isinstance(length, int) else -1) for length in value.shape)
            dtype = _TYPES[value.type.removeprefix("tensor(").removesuffix(")")]
            parts.append(f'{kind} [{{ name: "{value.name}" data_type: {dtype} dims: [{dims}] }}]')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(triton_config(sys.argv[1]), end="")
