"""Converts TensorFlow's elementwise operations.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import tensorflow as tf

from kerasdet.export.onnx.convert import Converter, numpy_type

_ELEMENTWISE = {  # one or two inputs of any shape -> ONNX's operator
    **{name: name for name in ("Relu", "Sigmoid", "Exp", "Sqrt", "Neg", "Ceil", "Floor", "Log", "Abs", "Tanh", "Erf")},
    **{name: name for name in ("Sub", "Mul", "Pow", "Greater", "Less", "Equal", "Round", "Sign", "Softplus")},
    **{"AddV2": "Add", "Add": "Add", "BiasAdd": "Add", "RealDiv": "Div", "Minimum": "Min", "Maximum": "Max"},
    **{"GreaterEqual": "GreaterOrEqual", "LessEqual": "LessOrEqual", "LogicalAnd": "And", "LogicalOr": "Or"},
    **{"LogicalNot": "Not", "SelectV2": "Where", "IsNan": "IsNaN"},
}
_COPIES = ("Identity", "StopGradient", "EnsureShape", "PreventGradient", "IdentityN")


def copy(c: Converter, op: tf.Operation) -> None:
    """Converts an op that returns its inputs unchanged, such as Identity."""
    for source, target in zip(op.inputs, op.outputs, strict=True):
        c.set(target, c.get(source, first := c.is_channels_first(source)), first)


def elementwise(c: Converter, op: tf.Operation) -> None:
    """Converts an op that works element by element, such as Relu, AddV2 or SelectV2."""
    names, first = _same_layout(c, op)
    c.set(op.outputs[0], c.builder.add(_ELEMENTWISE[op.type], *names), first)


def bias_add(c: Converter, op: tf.Operation) -> None:
    """Converts BiasAdd; after a convolution it becomes the convolution's own bias."""
    x, bias = op.inputs
    node = next(
        (n for n in reversed(c.builder.nodes) if c.is_channels_first(x) and n.output[0] == c.get(x, True)), None
    )
    if node is None or node.op_type not in ("Conv", "ConvTranspose") or len(node.input) > 2 or len(x.consumers()) > 1:
        elementwise(c, op)
        return
    node.input.append(c.get(bias))
    c.set(op.outputs[0], node.output[0], True)


def square(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Square to ONNX."""
    (name,), first = _same_layout(c, op)
    c.set(op.outputs[0], c.builder.add("Mul", name, name), first)


def rsqrt(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Rsqrt to ONNX."""
    c.set(op.outputs[0], c.builder.add("Reciprocal", c.builder.add("Sqrt", c.get(op.inputs[0]))))


def relu6(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Relu6 to ONNX."""
    (name,), first = _same_layout(c, op)
    bounds = (c.builder.constant(bound, numpy_type(op.inputs[0].dtype)) for bound in (0, 6))
    c.set(op.outputs[0], c.builder.add("Clip", name, *bounds), first)


def is_finite(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's IsFinite to ONNX."""
    x = c.get(op.inputs[0])
    c.set(
        op.outputs[0], c.builder.add("Not", c.builder.add("Or", c.builder.add("IsInf", x), c.builder.add("IsNaN", x)))
    )


def not_equal(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's NotEqual to ONNX."""
    c.set(op.outputs[0], c.builder.add("Not", c.builder.add("Equal", *(c.get(x) for x in op.inputs))))


def floor_div(c: Converter, op: tf.Operation) -> None:
    """Converts FloorDiv, which rounds down; ONNX's Div of integers rounds towards 0."""
    a, b = (c.get(x) for x in op.inputs)
    if op.inputs[0].dtype.is_floating:
        c.set(op.outputs[0], c.builder.add("Floor", c.builder.add("Div", a, b)))
    else:
        c.set(op.outputs[0], c.builder.add("Div", c.builder.add("Sub", a, c.builder.add("Mod", a, b)), b))


def floor_mod(c: Converter, op: tf.Operation) -> None:
    """Converts FloorMod of integers. In TensorFlow and ONNX, the result has the sign of the divisor."""
    c.set(op.outputs[0], c.builder.add("Mod", *(c.get(x) for x in op.inputs)))


def cast(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Cast to ONNX."""
    names, first = _same_layout(c, op)
    source, target = (numpy_type(x.dtype) for x in (op.inputs[0], op.outputs[0]))
    name = names[0] if source == target else c.builder.add("Cast", names[0], to=c.type_of(op.outputs[0].dtype))
    c.set(op.outputs[0], name, first)


def _same_layout(c, op):
    """Returns the names of the inputs in a common layout, and whether that is (B, C, H, W).

    The layout is (B, C, H, W) if one input already has it and the others need no new node: they have this layout, too,
    or are constants or scalars.
    """
    inputs = list(op.inputs)
    first = any(c.is_channels_first(x) for x in inputs) and all(
        c.is_channels_first(x) or c.static(x) is not None or x.shape.rank == 0 for x in inputs
    )
    if not first:
        return [c.get(x) for x in inputs], False
    return [c.get(x, True) if c.is_channels_first(x) else _constant_channels_first(c, x) for x in inputs], True


def _constant_channels_first(c, x):
    """Returns a constant or a scalar in a form that broadcasts with (B, C, H, W)."""
    value = c.static(x)
    if value is None or value.ndim == 0:
        return c.get(x)
    value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(0, 3, 1, 2)
    return c.builder.constant(value[0]) if value.shape[0] == 1 else c.builder.constant(value)


CONVERTERS = {
    **dict.fromkeys(_COPIES, copy),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    "BiasAdd": bias_add,
    "Square": square,
    "Rsqrt": rsqrt,
    "Relu6": relu6,
    "IsFinite": is_finite,
    "NotEqual": not_equal,
    "FloorDiv": floor_div,
    "FloorMod": floor_mod,
    "Cast": cast,
}
