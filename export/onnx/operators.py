"""Converts TensorFlow operations to ONNX nodes, by one function or one row of a table for each operation.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import numpy as np
import tensorflow as tf

from kerasdet.export.onnx.convert import AXES_CHANNELS_FIRST, Converter, numpy_type

_INT_MAX, _INT_MIN = 2**62, -(2**62)

_ELEMENTWISE = {  # one or two inputs of any shape -> ONNX's operator
    **{name: name for name in ("Relu", "Sigmoid", "Exp", "Sqrt", "Neg", "Ceil", "Floor", "Log", "Abs", "Tanh", "Erf")},
    **{name: name for name in ("Sub", "Mul", "Pow", "Greater", "Less", "Equal", "Round", "Sign", "Softplus")},
    **{"AddV2": "Add", "Add": "Add", "BiasAdd": "Add", "RealDiv": "Div", "Minimum": "Min", "Maximum": "Max"},
    **{"GreaterEqual": "GreaterOrEqual", "LessEqual": "LessOrEqual", "LogicalAnd": "And", "LogicalOr": "Or"},
    **{"LogicalNot": "Not", "SelectV2": "Where"},
}
_COPIES = ("Identity", "StopGradient", "EnsureShape", "PreventGradient", "IdentityN")
_REDUCTIONS = {"Max": "ReduceMax", "Min": "ReduceMin", "Sum": "ReduceSum", "Mean": "ReduceMean", "Prod": "ReduceProd"}


def constant(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Const to ONNX."""
    value = tf.make_ndarray(op.get_attr("value"))
    c.set(op.outputs[0], c.builder.constant(value.astype(numpy_type(op.outputs[0].dtype)), name=_short(op)))


def copy(c: Converter, op: tf.Operation) -> None:
    """Converts ops that return their inputs."""
    for source, target in zip(op.inputs, op.outputs, strict=True):
        c.set(target, c.get(source, first := c.is_channels_first(source)), first)


def elementwise(c: Converter, op: tf.Operation) -> None:
    """Converts ops that compute each element from the elements at its place."""
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
    """Converts FloorMod of integers, whose sign is that of the divisor in ONNX, too."""
    c.set(op.outputs[0], c.builder.add("Mod", *(c.get(x) for x in op.inputs)))


def cast(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Cast to ONNX."""
    names, first = _same_layout(c, op)
    source, target = (numpy_type(x.dtype) for x in (op.inputs[0], op.outputs[0]))
    name = names[0] if source == target else c.builder.add("Cast", names[0], to=c.type_of(op.outputs[0].dtype))
    c.set(op.outputs[0], name, first)


def shape(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Shape to ONNX."""
    x = op.inputs[0]
    if x.shape.is_fully_defined():
        name = c.builder.integers(*x.shape.as_list())
    elif c.is_channels_first(x):
        name = c.builder.add("Gather", c.builder.add("Shape", c.get(x, True)), c.builder.integers(*AXES_CHANNELS_FIRST))
    else:
        name = c.builder.add("Shape", c.get(x))
    c.set(op.outputs[0], name)


def size(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Size to ONNX."""
    c.set(op.outputs[0], c.builder.add("Size", c.get(op.inputs[0])))


def pack(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Pack to ONNX."""
    axis = c.builder.integers(op.get_attr("axis"))
    parts = [c.builder.add("Unsqueeze", c.get(x), axis) for x in op.inputs]
    c.set(op.outputs[0], c.builder.add("Concat", *parts, axis=op.get_attr("axis")))


def unpack(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Unpack to ONNX."""
    x, axis = c.get(op.inputs[0]), op.get_attr("axis")
    for index, output in enumerate(op.outputs):
        c.set(output, c.builder.add("Gather", x, c.builder.constant(index, np.int64), axis=axis))


def concat(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ConcatV2 to ONNX."""
    *values, axis = op.inputs
    axis, first = int(c.static(axis)), all(c.is_channels_first(x) for x in values)
    if first:
        axis = AXES_CHANNELS_FIRST[axis]
    c.set(op.outputs[0], c.builder.add("Concat", *(c.get(x, first) for x in values), axis=axis), first)


def expand_dims(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ExpandDims to ONNX."""
    axis = c.builder.integers(int(c.static(op.inputs[1])))
    c.set(op.outputs[0], c.builder.add("Unsqueeze", c.get(op.inputs[0]), axis))


def squeeze(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Squeeze to ONNX."""
    axes = op.get_attr("squeeze_dims") or [i for i, length in enumerate(op.inputs[0].shape) if length == 1]
    c.set(op.outputs[0], c.builder.add("Squeeze", c.get(op.inputs[0]), c.builder.integers(*axes)))


def reshape(c: Converter, op: tf.Operation) -> None:
    """Converts Reshape. In TensorFlow a 0 is an empty axis, in ONNX only with `allowzero`."""
    new_shape = c.static(op.inputs[1])
    allowzero = int(new_shape is None or 0 in new_shape)
    c.set(op.outputs[0], c.builder.add("Reshape", *(c.get(x) for x in op.inputs), allowzero=allowzero))


def transpose(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Transpose to ONNX."""
    c.set(op.outputs[0], c.builder.add("Transpose", c.get(op.inputs[0]), perm=c.static(op.inputs[1]).tolist()))


def tile(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Tile to ONNX."""
    c.set(op.outputs[0], c.builder.add("Tile", *(c.get(x) for x in op.inputs)))


def broadcast_to(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's BroadcastTo to ONNX."""
    c.set(op.outputs[0], c.builder.add("Expand", *(c.get(x) for x in op.inputs)))


def fill(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Fill to ONNX."""
    dims, value = op.inputs
    c.set(op.outputs[0], c.builder.add("Expand", c.get(value), c.get(dims)))


def filled_like(c: Converter, op: tf.Operation) -> None:
    """Converts ZerosLike and OnesLike; TensorFlow's bool has the zero False."""
    value = c.builder.constant(op.type == "OnesLike", numpy_type(op.inputs[0].dtype))
    c.set(op.outputs[0], c.builder.add("Expand", value, c.builder.add("Shape", c.get(op.inputs[0]))))


def range_(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Range to ONNX."""
    c.set(op.outputs[0], c.builder.add("Range", *(c.get(x) for x in op.inputs)))


def gather(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's GatherV2 to ONNX."""
    x, indices, axis = op.inputs
    batch_dims, axis = op.get_attr("batch_dims"), int(c.static(axis))
    if batch_dims:
        indices = c.builder.add("Unsqueeze", c.get(indices), c.builder.integers(-1))
        c.set(op.outputs[0], c.builder.add("GatherND", c.get(x), indices, batch_dims=batch_dims))
        return
    first = c.is_channels_first(x) and axis == 0 and indices.shape.rank == 1
    c.set(op.outputs[0], c.builder.add("Gather", c.get(x, first), c.get(indices), axis=axis), first)


def split(c: Converter, op: tf.Operation) -> None:
    """Converts Split and SplitV."""
    axis, x = op.inputs if op.type == "Split" else (op.inputs[2], op.inputs[0])
    sizes = [c.get(op.inputs[1])] if op.type == "SplitV" else []
    names = c.builder.add("Split", c.get(x), *sizes, num_outputs=len(op.outputs), axis=int(c.static(axis)))
    for output, name in zip(op.outputs, [names] if len(op.outputs) == 1 else names, strict=True):
        c.set(output, name)


def pad(c: Converter, op: tf.Operation) -> None:
    """Converts Pad and PadV2."""
    x, paddings, *value = op.inputs
    paddings_value, first = c.static(paddings), c.is_channels_first(x)
    if first and paddings_value is not None:
        ends = paddings_value[[0, 3, 1, 2]].T.ravel()
        pads = c.builder.integers(*ends.tolist())
    else:
        first = False
        pads = c.builder.add("Transpose", c.get(paddings), perm=[1, 0])
        pads = c.builder.add("Reshape", pads, c.builder.integers(-1))
    c.set(op.outputs[0], c.builder.add("Pad", c.get(x, first), pads, *(c.get(v) for v in value)), first)


def reduce(c: Converter, op: tf.Operation) -> None:
    """Converts reductions over constant axes."""
    x, axes = c.get(op.inputs[0]), np.atleast_1d(c.static(op.inputs[1])).tolist()
    keep = int(op.get_attr("keep_dims"))
    if op.type == "Sum":  # the only one whose axes are an input in opset 17
        c.set(op.outputs[0], c.builder.add("ReduceSum", x, c.builder.integers(*axes), keepdims=keep))
    else:
        c.set(op.outputs[0], c.builder.add(_REDUCTIONS[op.type], x, axes=axes, keepdims=keep))


def reduce_bool(c: Converter, op: tf.Operation) -> None:
    """Converts All and Any, by the minimum or maximum of integers."""
    x = c.builder.add("Cast", c.get(op.inputs[0]), to=c.type_of(tf.int32))
    axes = np.atleast_1d(c.static(op.inputs[1])).tolist()
    kind = "ReduceMin" if op.type == "All" else "ReduceMax"
    reduced = c.builder.add(kind, x, axes=axes, keepdims=int(op.get_attr("keep_dims")))
    c.set(op.outputs[0], c.builder.add("Cast", reduced, to=c.type_of(tf.bool)))


def top_k(c: Converter, op: tf.Operation) -> None:
    """Converts TopKV2. Of equal values the first comes first in TensorFlow, and by ONNX's specification.

    OpenVINO 2026.4 does not keep that order. It matters for integers, such as the 0 and 1 of `compact`: their positions
    are subtracted from them, so that no two are equal.
    """
    x, k = op.inputs
    values, k = c.get(x), c.builder.add("Reshape", c.get(k), c.builder.integers(1))
    keys = values
    if x.dtype.is_integer:
        length = c.builder.add("Gather", c.builder.add("Shape", values), c.builder.constant(-1, np.int64), axis=0)
        zero, one = (c.builder.constant(number, np.int64) for number in (0, 1))
        positions = c.builder.add("Range", zero, length, one)
        keys = c.builder.add("Sub", c.builder.add("Mul", values, length), positions)
    best, indices = c.builder.add("TopK", keys, k, num_outputs=2)
    if x.dtype.is_integer:
        best = c.builder.add("GatherElements", values, indices, axis=-1)
    c.set(op.outputs[0], best)
    c.set(op.outputs[1], indices)


def scatter(c: Converter, op: tf.Operation) -> None:
    """Converts ScatterNd with indices that differ from one another."""
    indices, updates, shape = (c.get(x) for x in op.inputs)
    zeros = c.builder.add("Expand", c.builder.constant(0, numpy_type(op.inputs[1].dtype)), shape)
    c.set(op.outputs[0], c.builder.add("ScatterND", zeros, indices, updates))


def reverse(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ReverseV2 to ONNX."""
    x, first = op.inputs[0], c.is_channels_first(op.inputs[0])
    axes = [int(axis) % x.shape.rank for axis in c.static(op.inputs[1]).ravel()]
    axes = [AXES_CHANNELS_FIRST[axis] for axis in axes] if first else axes
    bounds = [c.builder.integers(*[value] * len(axes)) for value in (-1, _INT_MIN)]
    steps = c.builder.integers(*[-1] * len(axes))
    name = c.builder.add("Slice", c.get(x, first), *bounds, c.builder.integers(*axes), steps)
    c.set(op.outputs[0], name, first)


def cumsum(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Cumsum to ONNX."""
    flags = {name: int(op.get_attr(name)) for name in ("exclusive", "reverse")}
    c.set(op.outputs[0], c.builder.add("CumSum", *(c.get(x) for x in op.inputs), **flags))


def arg_max(c: Converter, op: tf.Operation) -> None:
    """Converts ArgMax and ArgMin."""
    axis = int(c.static(op.inputs[1]))
    c.set(op.outputs[0], c.builder.add(op.type, c.get(op.inputs[0]), axis=axis, keepdims=0))


def matmul(c: Converter, op: tf.Operation) -> None:
    """Converts MatMul and BatchMatMulV2."""
    flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    names = []
    for x, flag in zip(op.inputs, flags, strict=True):
        name = c.get(x)
        if op.get_attr(flag):
            order = list(range(x.shape.rank))
            name = c.builder.add("Transpose", name, perm=[*order[:-2], order[-1], order[-2]])
        names.append(name)
    c.set(op.outputs[0], c.builder.add("MatMul", *names))


def einsum(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Einsum to ONNX."""
    equation = op.get_attr("equation").decode()
    c.set(op.outputs[0], c.builder.add("Einsum", *(c.get(x) for x in op.inputs), equation=equation))


def one_hot(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's OneHot to ONNX."""
    indices, depth, on, off = (c.get(x) for x in op.inputs)
    values = c.builder.add("Concat", *(c.builder.add("Unsqueeze", v, c.builder.integers(0)) for v in (off, on)), axis=0)
    c.set(op.outputs[0], c.builder.add("OneHot", indices, depth, values, axis=op.get_attr("axis")))


def softmax(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's Softmax to ONNX."""
    c.set(op.outputs[0], c.builder.add("Softmax", c.get(op.inputs[0]), axis=-1))


def where(c: Converter, op: tf.Operation) -> None:
    """Converts Where with a single input."""
    c.set(op.outputs[0], c.builder.add("Transpose", c.builder.add("NonZero", c.get(op.inputs[0])), perm=[1, 0]))


def strided_slice(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's StridedSlice to ONNX."""
    x, begin, end, strides = op.inputs
    masks = {name: op.get_attr(f"{name}_mask") for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")}
    steps = c.static(strides).tolist()
    axes, removed, added, starts, ends, kept_steps = [], [], [], [], [], []
    axis = new = 0
    for i, step in enumerate(steps):
        bit = 1 << i
        if masks["ellipsis"] & bit:
            others = len(steps) - 1 - bin(masks["new_axis"]).count("1")
            axis, new = axis + x.shape.rank - others, new + x.shape.rank - others
            continue
        if masks["new_axis"] & bit:
            added.append(new)
            new += 1
            continue
        if masks["shrink_axis"] & bit:
            start = _element(c, begin, i)
            removed.append(axis)
            starts.append(start)
            ends.append(_after(c, start))
        else:
            new += 1
            starts.append(None if masks["begin"] & bit else _element(c, begin, i))
            ends.append(None if masks["end"] & bit else _element(c, end, i))
            starts[-1] = starts[-1] if starts[-1] is not None else c.builder.integers(0 if step > 0 else _INT_MAX)
            ends[-1] = ends[-1] if ends[-1] is not None else c.builder.integers(_INT_MAX if step > 0 else _INT_MIN)
        axes.append(axis)
        kept_steps.append(step)
        axis += 1
    first = c.is_channels_first(x) and not removed and not added
    if first:
        axes = [AXES_CHANNELS_FIRST[axis] for axis in axes]
    wanted = [i for i in range(len(axes)) if not _is_whole(c, starts[i], ends[i], kept_steps[i])]
    name = c.get(x, first)
    if wanted:
        vectors = [_join(c, [values[i] for i in wanted]) for values in (starts, ends)]
        numbers = [c.builder.integers(*(values[i] for i in wanted)) for values in (axes, kept_steps)]
        name = c.builder.add("Slice", name, *vectors, *numbers)
    if removed:
        name = c.builder.add("Squeeze", name, c.builder.integers(*removed))
    if added:
        name = c.builder.add("Unsqueeze", name, c.builder.integers(*added))
    c.set(op.outputs[0], name, first)


def _element(c, vector, index):
    """Returns the name of a vector of one int64: an element of `vector`."""
    known = c.static(vector)
    if known is not None:
        return c.builder.integers(int(known[index]))
    return c.builder.add("Gather", c.get(vector), c.builder.integers(index))


def _after(c, start):
    """Returns the end of a slice of one element."""
    known = c.builder.constants.get(start)
    if known is not None:
        return c.builder.integers(_INT_MAX if known[0] == -1 else int(known[0]) + 1)
    return c.builder.add("Add", start, c.builder.integers(1))


def _is_whole(c, start, end, step):
    known = [c.builder.constants.get(name) for name in (start, end)]
    return step == 1 and all(k is not None for k in known) and known[0][0] == 0 and known[1][0] == _INT_MAX


def _join(c, names):
    return names[0] if len(names) == 1 else c.builder.add("Concat", *names, axis=0)


def _same_layout(c, op):
    """Returns the inputs' names in a common layout, and whether that is (B, C, H, W).

    It is if an input has that layout already and the others can follow without a node: they have it, too, or are
    constants, or scalars.
    """
    inputs = list(op.inputs)
    first = any(c.is_channels_first(x) for x in inputs) and all(
        c.is_channels_first(x) or c.static(x) is not None or x.shape.rank == 0 for x in inputs
    )
    if not first:
        return [c.get(x) for x in inputs], False
    return [c.get(x, True) if c.is_channels_first(x) else _constant_channels_first(c, x) for x in inputs], True


def _constant_channels_first(c, x):
    """Returns a constant, or scalar, in a form that broadcasts with (B, C, H, W)."""
    value = c.static(x)
    if value is None or value.ndim == 0:
        return c.get(x)
    value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(0, 3, 1, 2)
    return c.builder.constant(value[0]) if value.shape[0] == 1 else c.builder.constant(value)


def _short(op):
    """Returns a readable name for a constant."""
    return "/".join(op.name.split("/")[-3:])


CONVERTERS = {
    "Const": constant,
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
    "Shape": shape,
    "Size": size,
    "Pack": pack,
    "Unpack": unpack,
    "ConcatV2": concat,
    "ExpandDims": expand_dims,
    "Squeeze": squeeze,
    "Reshape": reshape,
    "Transpose": transpose,
    "Tile": tile,
    "BroadcastTo": broadcast_to,
    "Fill": fill,
    "ZerosLike": filled_like,
    "OnesLike": filled_like,
    "Range": range_,
    "GatherV2": gather,
    "Split": split,
    "SplitV": split,
    "Pad": pad,
    "PadV2": pad,
    **dict.fromkeys(_REDUCTIONS, reduce),
    "All": reduce_bool,
    "Any": reduce_bool,
    "TopKV2": top_k,
    "ScatterNd": scatter,
    "Cumsum": cumsum,
    "ReverseV2": reverse,
    "ArgMax": arg_max,
    "ArgMin": arg_max,
    "MatMul": matmul,
    "BatchMatMulV2": matmul,
    "Einsum": einsum,
    "OneHot": one_hot,
    "Softmax": softmax,
    "Where": where,
    "StridedSlice": strided_slice,
}
