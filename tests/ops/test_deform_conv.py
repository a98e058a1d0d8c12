import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.ops import deform_conv2d

pytestmark = pytest.mark.usefixtures("implementation")


def bilinear(image, y, x):
    """Interpolates `image` (H, W) between cells; outside it is 0."""
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                value += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def reference(x, kernel, offsets, mask, strides, padding, dilations, groups, deformable_groups):
    """Computes a deformable convolution tap by tap."""
    taps, (_, _, depth, filters) = kernel.shape[1], kernel.shape
    result = np.zeros((*offsets.shape[:3], filters))
    offsets = offsets.reshape(*offsets.shape[:3], deformable_groups, taps, taps, 2)
    mask = mask.reshape(offsets.shape[:-1])
    for b, i, j, o in np.ndindex(*result.shape):
        group = o // (filters // groups)
        for row, column, d in np.ndindex(taps, taps, depth):
            channel = group * depth + d
            place = (b, i, j, channel // (x.shape[3] // deformable_groups), row, column)
            y = i * strides - padding + row * dilations + offsets[(*place, 0)]
            z = j * strides - padding + column * dilations + offsets[(*place, 1)]
            result[b, i, j, o] += kernel[row, column, d, o] * mask[place] * bilinear(x[b, ..., channel], y, z)
    return result


@pytest.mark.parametrize(
    ("strides", "padding", "dilations", "groups", "deformable_groups"),
    [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2), (2, 0, 1, 2, 4)],
)
def test_values_equal_a_loop_over_taps(rng, strides, padding, dilations, groups, deformable_groups):
    x = rng.normal(size=(2, 5, 6, 4))
    kernel = rng.normal(size=(3, 3, 4 // groups, 2))
    size = [(length + 2 * padding - dilations * 2 - 1) // strides + 1 for length in (5, 6)]
    offsets = rng.normal(0, 3, (2, *size, deformable_groups * 18))
    mask = rng.uniform(size=(2, *size, deformable_groups * 9))
    options = (strides, padding, dilations, groups, deformable_groups)
    names = ("strides", "padding", "dilations", "groups", "deformable_groups")
    run = tf.function(
        lambda *arguments: deform_conv2d(*arguments, **dict(zip(names, options, strict=True))),
        input_signature=[tf.TensorSpec([None, None, None, 4]), tf.TensorSpec(kernel.shape)]
        + [tf.TensorSpec([None, None, None, value.shape[-1]]) for value in (offsets, mask)],
    )
    result = run(*(tf.cast(value, tf.float32) for value in (x, kernel, offsets, mask)))
    np.testing.assert_allclose(result, reference(x, kernel, offsets, mask, *options), atol=2e-5)


def test_zero_offsets_give_an_ordinary_convolution(rng):
    x = tf.constant(rng.normal(size=(2, 7, 8, 4)), tf.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 4, 5)), tf.float32)
    result = deform_conv2d(x, kernel, tf.zeros([2, 7, 8, 18]), padding=1)
    np.testing.assert_allclose(result, tf.nn.conv2d(x, kernel, 1, "SAME"), atol=1e-5)


@pytest.mark.parametrize("case", range(4))
def test_values_and_gradients_equal_torchvision(case):
    data = np.load(shared("reference/ops.npz"))
    prefix = f"deform_conv_{case}_"
    values = {name.removeprefix(prefix): data[name] for name in data if name.startswith(prefix)}
    layouts = {"input_nchw": (0, 2, 3, 1), "weight_oihw": (2, 3, 1, 0), "offset_nchw": (0, 2, 3, 1)}
    layouts |= {"mask_nchw": (0, 2, 3, 1)} if "mask_nchw" in values else {}
    arguments = [tf.constant(values[name].transpose(layout)) for name, layout in layouts.items()]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        result = deform_conv2d(
            *arguments,
            strides=values["stride"].item(),
            padding=values["padding"].item(),
            dilations=values["dilation"].item(),
            groups=values["groups"].item(),
            deformable_groups=values["deformable_groups"].item(),
        )
    np.testing.assert_allclose(result, values["output_nchw"].transpose(0, 2, 3, 1), atol=1e-5)
    gradients = tape.gradient(result, arguments, values["grad_output_nchw"].transpose(0, 2, 3, 1))
    for (name, layout), gradient in zip(layouts.items(), gradients, strict=True):
        np.testing.assert_allclose(gradient, values[f"grad_{name}"].transpose(layout), atol=5e-5, err_msg=name)


def test_gradients_equal_finite_differences(rng):
    x, kernel = rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(3, 3, 2, 1))
    offsets = rng.integers(-2, 2, (1, 4, 4, 18)) + rng.uniform(0.2, 0.8, (1, 4, 4, 18))  # away from the cells' edges
    mask = rng.uniform(size=(1, 4, 4, 9))
    arguments = [tf.constant(value, tf.float32) for value in (x, kernel, offsets, mask)]
    weights = tf.constant(rng.normal(size=(1, 4, 4, 1)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        loss = tf.reduce_sum(weights * deform_conv2d(*arguments, padding=1))
    for index, gradient in enumerate(tape.gradient(loss, arguments)):
        direction = tf.constant(rng.uniform(-1, 1, gradient.shape), tf.float32)
        ends = []
        for step in (-0.05, 0.05):
            moved = [value + step * direction if i == index else value for i, value in enumerate(arguments)]
            ends.append(tf.reduce_sum(weights * deform_conv2d(*moved, padding=1)))
        np.testing.assert_allclose(tf.reduce_sum(gradient * direction), (ends[1] - ends[0]) / 0.1, rtol=2e-3, atol=5e-3)


def test_zero_offsets_get_a_gradient(rng):
    x = tf.constant(rng.normal(size=(1, 5, 5, 2)), tf.float32)
    offsets = tf.zeros([1, 5, 5, 18])
    with tf.GradientTape() as tape:
        tape.watch(offsets)
        result = deform_conv2d(x, tf.ones([3, 3, 2, 1]), offsets, padding=1)
    gradient = tape.gradient(result, offsets)[0, 2, 2, 8:10]  # the middle tap of the middle pixel
    right = tf.reduce_sum([x[0, 3, 2] - x[0, 2, 2], x[0, 2, 3] - x[0, 2, 2]], 1)
    np.testing.assert_allclose(gradient, right, atol=1e-5)


def test_half_precision_is_computed_in_float32(rng):
    x = tf.cast(rng.normal(size=(1, 5, 5, 2)), tf.bfloat16)
    offsets = tf.cast(rng.normal(size=(1, 5, 5, 18)), tf.bfloat16)
    result = deform_conv2d(x, tf.ones([3, 3, 2, 1]), offsets, padding=1)
    exact = deform_conv2d(tf.cast(x, tf.float32), tf.ones([3, 3, 2, 1]), tf.cast(offsets, tf.float32), padding=1)
    np.testing.assert_array_equal(result, tf.cast(exact, tf.bfloat16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": tf.zeros([1, 4, 4, 9])}, "`offsets` of deform_conv2d has 9 channels: expected 18"),
        ({"mask": tf.zeros([1, 4, 4, 18])}, "`mask` of deform_conv2d has 18 channels: expected 9"),
        ({"groups": 2}, "expected 2, the 4 channels of x divided by 2 groups"),
        ({"deformable_groups": 3}, "deformable_groups=3: .* must divide the channels"),
    ],
)
def test_mismatched_shapes_raise(options, message):
    arguments = {"x": tf.zeros([1, 4, 4, 4]), "kernel": tf.zeros([3, 3, 4, 2]), "offsets": tf.zeros([1, 4, 4, 18])}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**{**arguments, **options}, padding=1)
