"""Converts a frozen TensorFlow graph to ONNX.

TensorFlow's images are (B, H, W, C), ONNX's are (B, C, H, W). A tensor may therefore have two values in the ONNX graph,
one in each layout. Convolutions produce the ONNX layout, elementwise ops follow their inputs, and a transposition is
added only where an op needs the other layout.

All signed integers become int64, because shapes and indices are int64 in ONNX.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from onnx import helper
from tensorflow.core.framework.function_pb2 import FunctionDef

from kerasdet.errors import UserError
from kerasdet.export.onnx.builder import GraphBuilder
from kerasdet.keras_compat import function_graph

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
AXES_CHANNELS_FIRST = (0, 2, 3, 1)  # axis of (B, H, W, C) -> position of this axis in (B, C, H, W)


class Converter:
    """Converts the operations of a TensorFlow graph one after the other.

    Args:
        library: Maps names of functions to `FunctionDef`s: the bodies of loops, and functions that
            `kerasdet.ops.dispatch.composite` wrapped.
        converters: Maps the type of a TensorFlow operation, such as "Conv2D", to the function that converts it.

    Attributes:
        builder: The `GraphBuilder` that receives the nodes.
    """

    def __init__(self, library: dict[str, FunctionDef], converters: dict[str, Callable]):
        self.builder = GraphBuilder()
        self._library = library
        self._converters = converters
        self._values: dict[tuple[int, str], dict[str, str]] = {}

    def set(self, tensor: tf.Tensor, name: str, channels_first: bool = False) -> None:
        """Stores the name of the ONNX value that corresponds to a tensor.

        Args:
            tensor: The TensorFlow tensor.
            name: Name of the value.
            channels_first: Whether the value has the layout (B, C, H, W).
        """
        self._values[_key(tensor)] = {"first" if channels_first else "last": name}

    def get(self, tensor: tf.Tensor, channels_first: bool = False) -> str:
        """Returns the name of the ONNX value that corresponds to a tensor; adds a transposition if necessary.

        Args:
            tensor: The TensorFlow tensor.
            channels_first: Whether the value must have the layout (B, C, H, W).

        Returns:
            The name of the ONNX value.
        """
        values = self._values[_key(tensor)]
        wanted, other = ("first", "last") if channels_first else ("last", "first")
        if wanted not in values:
            permutation = _TO_CHANNELS_FIRST if channels_first else _TO_CHANNELS_LAST
            values[wanted] = self.builder.add("Transpose", values[other], perm=permutation)
        return values[wanted]

    def is_channels_first(self, tensor: tf.Tensor) -> bool:
        """Tells whether a tensor already has an ONNX value with the layout (B, C, H, W)."""
        return "first" in self._values[_key(tensor)]

    def static(self, tensor: tf.Tensor) -> np.ndarray | None:
        """Returns the value of a tensor that is a constant of the ONNX graph; None for other tensors."""
        name = self._values[_key(tensor)].get("last")
        return self.builder.constants.get(name)

    def type_of(self, dtype: tf.DType) -> int:
        """Returns the number by which ONNX identifies the element type that replaces a TensorFlow dtype."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type(dtype)))

    def convert(self, operations: Sequence[tf.Operation]) -> None:
        """Converts operations to ONNX nodes.

        Args:
            operations: The operations, each after its inputs.

        Raises:
            UserError: If an operation has no converter.
        """
        for operation in operations:
            if operation.type in ("Placeholder", "NoOp"):
                continue
            converter = self._converters.get(self.composite(operation)[0] or operation.type)
            if converter is None:
                raise UserError(
                    f"The model has the operation {operation.type} ({operation.name}), which the export to ONNX does "
                    "not support: replace the layer that uses it, or export a SavedModel."
                )
            self.builder.scope = operation.name.rpartition("/")[0] + "/" * ("/" in operation.name)
            converter(self, operation)

    def composite(self, operation: tf.Operation) -> tuple[str | None, dict]:
        """Recognises calls of functions that `kerasdet.ops.dispatch.composite` wrapped.

        Args:
            operation: Any operation.

        Returns:
            The name that was passed to `composite`, with the prefix ``kerasdet>``, and the attributes. (None, {}) for
            other functions and operations.
        """
        if operation.type not in ("PartitionedCall", "StatefulPartitionedCall"):
            return None, {}
        function = self._library[operation.get_attr("f").name]
        if "_implements" not in function.attr:
            return None, {}
        name, attributes = json.loads(function.attr["_implements"].s)
        return f"kerasdet>{name}", attributes

    def function(self, graph: tf.Graph, name: str) -> tf.Graph:
        """Returns the graph of a function of the library."""
        return function_graph(graph, self._library[name])


def numpy_type(dtype: tf.DType) -> type:
    """Returns the NumPy dtype of a tensor's values in ONNX: int64 for all signed integers."""
    return np.int64 if dtype in (tf.int32, tf.int64, tf.int16, tf.int8) else dtype.as_numpy_dtype


def _key(tensor):
    return id(tensor.graph), tensor.name
