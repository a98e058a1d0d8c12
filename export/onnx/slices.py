"""Converts TensorFlow's slices, which have bounds, steps and masks for each axis.

Each function takes the converter `c` and an operation `op`, and adds ONNX nodes with the same results to the graph.
"""

import tensorflow as tf

from kerasdet.export.onnx.convert import AXES_CHANNELS_FIRST, Converter

_INT_MAX, _INT_MIN = 2**62, -(2**62)


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


def reverse(c: Converter, op: tf.Operation) -> None:
    """Converts TensorFlow's ReverseV2 to ONNX."""
    x, first = op.inputs[0], c.is_channels_first(op.inputs[0])
    axes = [int(axis) % x.shape.rank for axis in c.static(op.inputs[1]).ravel()]
    axes = [AXES_CHANNELS_FIRST[axis] for axis in axes] if first else axes
    bounds = [c.builder.integers(*[value] * len(axes)) for value in (-1, _INT_MIN)]
    steps = c.builder.integers(*[-1] * len(axes))
    name = c.builder.add("Slice", c.get(x, first), *bounds, c.builder.integers(*axes), steps)
    c.set(op.outputs[0], name, first)


def _element(c, vector, index):
    """Returns the name of a vector (1,) int64 with an element of `vector`."""
    known = c.static(vector)
    if known is not None:
        return c.builder.integers(int(known[index]))
    return c.builder.add("Gather", c.get(vector), c.builder.integers(index))


def _after(c, start):
    """Returns the end of a slice of one element that begins at `start`."""
    known = c.builder.constants.get(start)
    if known is not None:
        return c.builder.integers(_INT_MAX if known[0] == -1 else int(known[0]) + 1)
    return c.builder.add("Add", start, c.builder.integers(1))


def _is_whole(c, start, end, step):
    known = [c.builder.constants.get(name) for name in (start, end)]
    return step == 1 and all(k is not None for k in known) and known[0][0] == 0 and known[1][0] == _INT_MAX


def _join(c, names):
    return names[0] if len(names) == 1 else c.builder.add("Concat", *names, axis=0)


CONVERTERS = {
    "ReverseV2": reverse,
    "StridedSlice": strided_slice,
}
