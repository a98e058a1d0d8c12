import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdet.layers import FPN, ConvTop, MaxPoolTop

CHANNELS = {"c2": 3, "c3": 4, "c4": 5, "c5": 6}
SIZES = {"even": {"c2": (24, 32), "c3": (12, 16), "c4": (6, 8), "c5": (3, 4)}}
SIZES["odd"] = {"c2": (25, 38), "c3": (13, 19), "c4": (7, 10), "c5": (4, 5)}


def backbone_features(rng, names, sizes):
    return {name: rng.normal(size=(2, *SIZES[sizes][name], CHANNELS[name])).astype(np.float32) for name in names}


def built(neck, rng, names=("c3", "c4", "c5")):
    neck.build({name: (None, None, None, CHANNELS[name]) for name in names})
    neck.set_weights([rng.normal(0, 0.5, w.shape) for w in neck.weights])
    return neck


def conv(x, layer, strides=1):
    """Convolves like `layer`, with PyTorch's padding."""
    kernel, bias = layer.conv.kernel.numpy().astype(float), layer.conv.bias.numpy()
    taps = kernel.shape[0]
    x = np.pad(x, [(0, 0), *[(taps // 2, taps // 2)] * 2, (0, 0)])
    height, width = ((size - taps) // strides + 1 for size in x.shape[1:3])
    y = bias
    for r in range(taps):
        for c in range(taps):
            y = (
                y
                + x[:, r : r + (height - 1) * strides + 1 : strides, c : c + (width - 1) * strides + 1 : strides]
                @ kernel[r, c]
            )
    return y


def nearest(x, size):
    """Resizes like `torch.nn.functional.interpolate(size=size, mode="nearest")`."""
    rows, columns = (np.arange(out) * n // out for out, n in zip(size, x.shape[1:3], strict=True))
    return x[:, rows][:, :, columns]


def bilinear(x, size):
    """Resizes like `torch.nn.functional.interpolate(size=size, mode="bilinear", align_corners=False)`."""
    for axis, out in zip((1, 2), size, strict=True):
        n = x.shape[axis]
        place = np.clip((np.arange(out) + 0.5) * n / out - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, n - 1), axis) * share
    return x


def reference(neck, features):
    upsample = {"nearest": nearest, "bilinear": bilinear}[neck.upsampling]
    merged, pyramid = None, {}
    for name, lateral, output in list(zip(neck.in_features, neck.laterals, neck.outputs, strict=True))[::-1]:
        x = conv(features[name].astype(float), lateral)
        if merged is not None:
            x = (x + upsample(merged, x.shape[1:3])) / (2 if neck.fusion == "average" else 1)
        merged = x
        pyramid[f"p{name[1]}"] = conv(x, output)
    return pyramid


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("fusion", ["sum", "average"])
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("names", [("c3", "c4", "c5"), ("c2", "c3", "c4", "c5"), ("c4", "c5"), ("c5",)], ids="-".join)
def test_fpn_equals_a_numpy_reference(rng, sizes, fusion, upsampling, names):
    neck = built(FPN(names, 7, fusion=fusion, upsampling=upsampling), rng, names)
    features = backbone_features(rng, names, sizes)
    expected = reference(neck, features)
    pyramid = neck(features)
    assert tuple(pyramid) == neck.levels == tuple(sorted(expected))
    for level, value in expected.items():
        np.testing.assert_allclose(pyramid[level], value, rtol=1e-4, atol=1e-3)


def test_unmerged_features_do_not_change_the_pyramid(rng):
    neck = built(FPN(("c4", "c5"), 7), rng, ("c4", "c5"))
    features = backbone_features(rng, CHANNELS, "odd")
    assert tuple(neck(features)) == ("p4", "p5")


@pytest.mark.parametrize("sizes", SIZES)
def test_max_pool_top_takes_every_second_cell(rng, sizes):
    neck = built(FPN(channels=7, top=MaxPoolTop()), rng)
    pyramid = neck(backbone_features(rng, ("c3", "c4", "c5"), sizes))
    assert tuple(pyramid) == neck.levels == ("p3", "p4", "p5", "p6")
    np.testing.assert_array_equal(pyramid["p6"], pyramid["p5"][:, ::2, ::2])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("in_feature", ["c5", "p5"])
@pytest.mark.parametrize("activation", ["relu", None])
def test_conv_top_equals_a_numpy_reference(rng, sizes, in_feature, activation):
    neck = built(FPN(channels=7, top=ConvTop(in_feature, 7, activation=activation)), rng)
    features = backbone_features(rng, ("c3", "c4", "c5"), sizes)
    pyramid = neck(features)
    assert tuple(pyramid) == neck.levels == ("p3", "p4", "p5", "p6", "p7")
    source = {**features, **pyramid}[in_feature]
    p6 = conv(np.float64(source), neck.top.convs[0], 2)
    p7 = conv(np.maximum(p6, 0) if activation else p6, neck.top.convs[1], 2)
    np.testing.assert_allclose(pyramid["p6"], p6, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(pyramid["p7"], p7, rtol=1e-4, atol=1e-3)
    assert p6.min() < 0  # levels are returned before the activation


@pytest.mark.parametrize("num_levels", [1, 3])
def test_conv_top_adds_the_requested_levels(rng, num_levels):
    neck = built(FPN(channels=7, top=ConvTop("p5", 7, num_levels=num_levels)), rng)
    pyramid = neck(backbone_features(rng, ("c3", "c4", "c5"), "even"))
    assert tuple(pyramid) == neck.levels == tuple(f"p{i}" for i in range(3, 6 + num_levels))
    assert len(neck.top.convs) == num_levels


@pytest.mark.parametrize("norm", ["bn", "gn", "frozen_bn"])
def test_norm_replaces_the_bias_and_normalizes(rng, norm):
    neck = FPN(channels=64, norm=norm, norm_epsilon=1e-2)
    features = backbone_features(rng, ("c3", "c4", "c5"), "even")
    pyramid = neck(features, training=True)
    assert not any("bias" in w.path for w in neck.weights)
    if norm == "bn":
        for level in pyramid.values():
            np.testing.assert_allclose(np.mean(level, (0, 1, 2)), np.zeros(64), atol=1e-3)
            variance = np.var(level, (0, 1, 2))
            assert (variance < 1).all() and (variance > 0.8).all()
    assert all(layer.norm.epsilon == 1e-2 for layer in [*neck.laterals, *neck.outputs])


def test_fpn_runs_in_a_graph_with_unknown_sizes(rng):
    neck = FPN(channels=7, top=ConvTop("c5", 7), upsampling="bilinear")
    signature = {name: tf.TensorSpec([None, None, None, CHANNELS[name]]) for name in ("c3", "c4", "c5")}
    function = tf.function(lambda features: neck(features), input_signature=[signature])
    for sizes in SIZES:
        features = backbone_features(rng, ("c3", "c4", "c5"), sizes)
        for level, value in neck(features).items():
            np.testing.assert_allclose(function(features)[level], value, atol=1e-4)


def test_kernels_are_initialized_by_lecun_uniform(rng):
    """LeCun's uniform initializer equals Caffe2's XavierFill, which both source frameworks use."""
    neck = FPN(channels=64)
    neck.build(dict.fromkeys(neck.in_features, (None, None, None, 64)))
    kernel = neck.outputs[0].conv.kernel.numpy()
    assert np.abs(kernel).max() <= (3 / (9 * 64)) ** 0.5
    assert kernel.std() == pytest.approx((9 * 64) ** -0.5, rel=0.02)


def test_gradients_reach_every_weight(rng):
    neck = built(FPN(channels=7, top=ConvTop("c5", 7)), rng)
    with tf.GradientTape() as tape:
        pyramid = neck(backbone_features(rng, ("c3", "c4", "c5"), "odd"), training=True)
        loss = tf.add_n([tf.reduce_sum(tf.square(x)) for x in pyramid.values()])
    assert all(np.any(g) for g in tape.gradient(loss, [v.value for v in neck.trainable_variables]))


def test_bfloat16_policy_keeps_the_pyramid_near_float32(rng):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        neck = built(FPN(channels=7, upsampling="bilinear", fusion="average", top=MaxPoolTop()), rng)
    finally:
        keras.config.set_dtype_policy(policy)
    features = backbone_features(rng, ("c3", "c4", "c5"), "odd")
    pyramid = neck({name: tf.cast(x, tf.bfloat16) for name, x in features.items()})
    assert all(x.dtype == tf.bfloat16 for x in pyramid.values())
    for level, value in reference(neck, features).items():
        np.testing.assert_allclose(tf.cast(pyramid[level], tf.float32), value, atol=0.05 * np.abs(value).max())


def test_unknown_arguments_raise():
    with pytest.raises(ValueError, match="fusion is 'max': choose 'sum' or 'average'"):
        FPN(fusion="max")
    with pytest.raises(ValueError, match="upsampling is 'cubic': choose 'nearest' or 'bilinear'"):
        FPN(upsampling="cubic")


@pytest.mark.parametrize(
    "top", [None, MaxPoolTop("p5"), ConvTop("p5", 8, num_levels=1, activation=None)], ids=["none", "pool", "conv"]
)
def test_config_rebuilds_an_equal_neck(rng, top):
    neck = built(
        FPN(("c3", "c5"), 8, norm="bn", norm_epsilon=1e-2, fusion="average", upsampling="bilinear", top=top, name="n"),
        rng,
        ("c3", "c5"),
    )
    config = keras.saving.serialize_keras_object(neck)
    clone = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(clone) == config
    clone.set_weights(neck.get_weights())
    features = backbone_features(rng, ("c3", "c5"), "odd")
    features["c5"] = rng.normal(size=(2, 7, 10, 6)).astype(np.float32)
    expected = neck(features)
    assert tuple(clone(features)) == tuple(expected)
    for level, value in expected.items():
        np.testing.assert_array_equal(clone(features)[level], value)
