"""Builds an ONNX graph node by node, and immediately computes nodes whose inputs are constants."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 17
_IR_VERSION = 8  # IR version of the ONNX release that introduced opset 17
_FOLDED_SIZE = 2**16  # elements; larger results are left to the runtime
_NOT_FOLDED = ("Conv", "ConvTranspose", "Loop", "NonMaxSuppression", "RoiAlign", "Resize", "MaxPool", "ConstantOfShape")


class GraphBuilder:
    """Collects the nodes and constants of an ONNX graph. Values are identified by their names.

    Attributes:
        nodes: Nodes of the graph, or of the loop body that is being built, in the order of execution.
        constants: Arrays of all constant values, by name.
        scope: Prefix of the names of new nodes: the layer from which they come.
    """

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.scope = ""
        self._by_value: dict[tuple, str] = {}
        self._count = 0

    def new_name(self, hint: str) -> str:
        """Makes a name that no other value has, from a hint such as "conv"."""
        self._count += 1
        return f"{hint}_{self._count}"

    def constant(self, value: Any, dtype: Any = None, name: str = "constant") -> str:
        """Adds a constant, or finds an existing equal constant.

        Args:
            value: Number or array.
            dtype: NumPy dtype of the constant. None: the dtype of `value`.
            name: Beginning of the name of a new constant.

        Returns:
            The name of the constant.
        """
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._by_value:
            self._by_value[key] = self.new_name(name)
            self.constants[self._by_value[key]] = array
        return self._by_value[key]

    def integers(self, *values: int) -> str:
        """Adds a vector of int64 and returns its name."""
        return self.constant(values, np.int64)

    def add(self, op_type: str, *inputs: str, num_outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. If all inputs are constants, adds the results as constants instead, except large ones.

        Args:
            op_type: Name of an ONNX operator.
            *inputs: Names of the node's inputs; "" for an optional input that is not used.
            num_outputs: Number of outputs of the node.
            **attributes: Attributes of the operator.

        Returns:
            The name of the output, or a list of names if `num_outputs` is more than 1.
        """
        outputs = [self.new_name(f"{self.scope}{op_type}") for _ in range(num_outputs)]
        node = helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes)
        folded = self._fold(node)
        if folded is None:
            self.nodes.append(node)
        else:
            outputs = [self.constant(value) for value in folded]
        return outputs[0] if num_outputs == 1 else outputs

    def copy(self, name: str) -> str:
        """Adds an Identity node for the value called `name`, and returns the name of its output.

        Unlike `add`, it does not fold the node if the value is a constant.
        """
        copy = self.new_name("copy")
        self.nodes.append(helper.make_node("Identity", [name], [copy], name=copy))
        return copy

    def rename(self, name: str, new_name: str) -> None:
        """Renames an output of the node that was added last.

        Args:
            name: Current name.
            new_name: New name.
        """
        self.nodes[-1].output[list(self.nodes[-1].output).index(name)] = new_name

    @contextlib.contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collects the nodes that are added inside the ``with`` block in a separate list, for the body of a loop."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def _fold(self, node):
        """Computes the outputs of a node whose inputs are constants; returns None for other nodes."""
        names = [name for name in node.input if name]
        if node.op_type in _NOT_FOLDED or not names or any(name not in self.constants for name in names):
            return None
        values = {name: self.constants[name] for name in names}
        if sum(value.size for value in values.values()) > _FOLDED_SIZE:
            return None
        inputs = [helper.make_tensor_value_info(name, _onnx_type(value), None) for name, value in values.items()]
        outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output]
        model = helper.make_model(
            helper.make_graph([node], "folded", inputs, outputs), opset_imports=[helper.make_opsetid("", OPSET)]
        )
        results = ReferenceEvaluator(model).run(None, values)
        return results if all(np.size(result) <= _FOLDED_SIZE for result in results) else None

    def model(self, name: str, inputs: list, outputs: list) -> onnx.ModelProto:
        """Builds the ONNX model, without constants and nodes that no output depends on.

        Args:
            name: Name of the graph.
            inputs: `onnx.ValueInfoProto` of each input.
            outputs: `onnx.ValueInfoProto` of each output.

        Returns:
            The ONNX model.
        """
        nodes = _needed(self.nodes, {output.name for output in outputs})
        used = {each for node in nodes for each in _reads(node)} | {output.name for output in outputs}
        initializers = [numpy_helper.from_array(v, n) for n, v in self.constants.items() if n in used]
        graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="kerasdet")


def _onnx_type(array):
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _reads(node):
    """Returns the names that a node reads, including those in its loop body."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    inner = {name for body in bodies for each in body.node for name in _reads(each)}
    return {*node.input, *inner, *(output.name for body in bodies for output in body.output)}


def _needed(nodes, names):
    """Selects the nodes on which the values with the given names depend."""
    needed, kept = set(names), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= _reads(node)
            kept.append(node)
    return kept[::-1]
