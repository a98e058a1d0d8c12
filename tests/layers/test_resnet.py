import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdet.layers import ConvNorm, ResNet

# Trainable parameters of torchvision's models without their `fc` layer.
PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


def torch_conv(x, kernel, strides=1, dilation=1):
    """Convolves like `torch.nn.Conv2d(padding=dilation * (k - 1) // 2)`: x (B, H, W, C), kernel (k, k, C, O)."""
    taps = kernel.shape[0]
    padding, reach = dilation * (taps - 1) // 2, dilation * (taps - 1)
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    height, width = ((size - reach - 1) // strides + 1 for size in x.shape[1:3])
    y = 0
    for row in range(taps):
        for column in range(taps):
            top, left = row * dilation, column * dilation
            part = x[:, top : top + (height - 1) * strides + 1 : strides]
            y = y + part[:, :, left : left + (width - 1) * strides + 1 : strides] @ kernel[row, column]
    return y


def torch_max_pool(x):
    """Pools like `torch.nn.MaxPool2d(3, 2, padding=1)`."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    taps = [x[:, r : r + 2 * height - 1 : 2, c : c + 2 * width - 1 : 2] for r in range(3) for c in range(3)]
    return np.max(taps, 0)


def reference_features(model, x):
    """Computes the network in NumPy, like torchvision's `resnet.py`."""

    def unit(x, layer, strides=1, dilation=1):
        y = torch_conv(x, layer.conv.kernel.numpy().astype(float), strides, dilation)
        norm = layer.norm
        scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + model.norm_epsilon)
        return (y - norm.moving_mean.numpy()) * scale + norm.beta.numpy()

    x = torch_max_pool(np.maximum(unit(x.astype(float), model.stem, 2), 0))
    features, blocks = {}, iter(model.blocks)
    names = [f"c{i + 2}" for i in range(len(model.stages))]
    last = max(names.index(name) for name in model.out_features)
    for stage, count in enumerate(model.stages[: last + 1]):
        dilation = 2 if model.dilate_last and stage == last else 1
        for number in range(count):
            block = next(blocks)
            strides = 2 if stage and number == 0 and dilation == 1 else 1
            if model.block == "bottleneck":
                first, second = (strides, 1) if model.stride_in_1x1 else (1, strides)
                y = np.maximum(unit(x, block.convs[0], first), 0)
                y = np.maximum(unit(y, block.convs[1], second, dilation), 0)
                y = unit(y, block.convs[2])
            else:
                y = np.maximum(unit(x, block.convs[0], strides, dilation), 0)
                y = unit(y, block.convs[1], dilation=dilation)
            x = np.maximum(y + (x if block.shortcut is None else unit(x, block.shortcut, strides)), 0)
        features[names[stage]] = x
    assert next(blocks, None) is None
    return {name: features[name] for name in model.out_features}


def randomize(model, rng):
    for weight in model.weights:
        if weight.name == "kernel":
            fan_in = np.prod(weight.shape[:-1])
            weight.assign(rng.normal(0, 1.3 / fan_in**0.5, weight.shape))
        else:
            weight.assign(rng.uniform(0.6, 1.4, weight.shape))


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 18, "out_features": ("c2", "c3", "c4", "c5")},
        {"depth": 50},
        {"depth": 50, "stride_in_1x1": True, "norm_epsilon": 0.1},
        {"depth": 50, "dilate_last": True},
        {"depth": 18, "dilate_last": True, "out_features": ("c4", "c2")},
        {"depth": 18, "stages": (1, 1, 1, 1, 2), "block": "bottleneck", "out_features": ("c3", "c6")},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(65, 97), (64, 90)], ids=str)
def test_resnet_equals_a_numpy_reference(rng, options, size):
    model = ResNet(width=4, **options)
    randomize(model, rng)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    expected = reference_features(model, x)
    features = model(x)
    assert list(features) == list(expected) == list(model.out_features)
    for name, value in expected.items():
        assert features[name].shape == value.shape == (*value.shape[:3], model.channels[name])
        np.testing.assert_allclose(features[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max())
        assert 0.05 < np.mean(value > 0) < 0.999


@pytest.mark.parametrize("depth", PARAMETERS)
def test_number_of_parameters_equals_torchvision(depth):
    model = ResNet(depth, norm="bn")
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == PARAMETERS[depth]


@pytest.mark.parametrize("depth,channels", [(18, 512), (50, 2048)])
def test_channels_follow_width_and_block(depth, channels):
    model = ResNet(depth, width=8, out_features=("c2", "c5"))
    assert {name: c * 8 for name, c in model.channels.items()}["c5"] == channels
    features = model(np.zeros([1, 32, 64, 3], np.float32))
    assert features["c2"].shape == (1, 8, 16, channels // 64)
    assert features["c5"].shape == (1, 1, 2, channels // 8)


def test_strides_equal_the_sizes_of_the_features():
    model = ResNet(18, width=4, stages=(1, 1, 1, 1, 1), out_features=("c2", "c3", "c4", "c5", "c6"))
    features = model(np.zeros([1, 128, 192, 3], np.float32))
    assert {name: (128 // f.shape[1], 192 // f.shape[2]) for name, f in features.items()} == {
        f"c{i}": (2**i, 2**i) for i in range(2, 7)
    }
    assert model.strides == {f"c{i}": 2**i for i in range(2, 7)}
    assert list(model.channels.values()) == [4, 8, 16, 32, 64]


def test_dilated_last_stage_keeps_the_stride_of_the_one_before():
    model = ResNet(18, width=4, dilate_last=True)
    features = model(np.zeros([1, 64, 64, 3], np.float32))
    assert model.strides == {"c3": 8, "c4": 16, "c5": 16}
    assert features["c4"].shape[1:3] == features["c5"].shape[1:3] == (4, 4)


def test_stages_after_the_last_feature_are_not_built():
    small, full = (ResNet(18, width=4, out_features=names) for names in (("c2", "c3"), ("c2", "c3", "c5")))
    assert len(small.weights) < len(full.weights)
    assert list(small.channels) == ["c2", "c3"]


def test_stride_in_1x1_skips_odd_pixels():
    """A 1x1 convolution of stride 2 never sees odd pixels; the 3x3 does."""

    def sees(stride_in_1x1):
        block = ResNet(50, stages=(1, 1), width=2, out_features=("c3",), norm=None, stride_in_1x1=stride_in_1x1).blocks[
            1
        ]
        impulse = tf.Variable(np.ones([1, 8, 8, 8], np.float32))
        for conv in [*block.convs, block.shortcut]:
            conv.conv.kernel.assign(tf.ones_like(conv.conv.kernel))
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(block(impulse))
        return tf.reduce_sum(tape.gradient(total, impulse), -1)[0].numpy() > 0

    even = np.zeros([8, 8], bool)
    even[::2, ::2] = True
    np.testing.assert_array_equal(sees(True), even)
    assert sees(False).all()


@pytest.mark.parametrize(
    "freeze_at,stages", [(0, "stem c2 c3 c4 c5"), (1, "c2 c3 c4 c5"), (2, "c3 c4 c5"), (3, "c4 c5"), (4, "c5"), (5, "")]
)
def test_freeze_at_freezes_parts_from_the_input(freeze_at, stages):
    model = ResNet(18, width=4, norm="bn", freeze_at=freeze_at)
    trained = {
        variable.path.split("/")[-3].split("_")[0] for variable in model.trainable_variables if "stem" in variable.path
    }
    trained |= {part for part in ("c2", "c3", "c4", "c5") for v in model.trainable_variables if f"/{part}_" in v.path}
    assert trained == set(stages.split())
    assert len(model.weights) == len(ResNet(18, width=4, norm="bn").weights)
    model.trainable = False
    assert not model.trainable_variables


def test_frozen_stages_keep_their_statistics(rng):
    model = ResNet(18, width=4, norm="bn", freeze_at=2)
    before = {w.path: w.numpy() for w in model.weights}
    model(rng.normal(size=(2, 64, 64, 3)).astype(np.float32), training=True)
    changed = {w.path.split("/")[1].split("_")[0] for w in model.weights if np.any(w.numpy() != before[w.path])}
    assert changed == {"c3", "c4", "c5"}


@pytest.mark.parametrize("norm", [None, "frozen_bn", "bn_inference", "bn", "sync_bn", "gn"])
def test_every_norm_trains(rng, norm):
    model = ResNet(18, width=32, stages=(1, 1), out_features=("c3",), norm=norm)
    trainable = {v.path.rsplit("/")[-1] for v in model.trainable_variables}
    assert trainable == {"kernel"} | (set() if norm in (None, "frozen_bn") else {"gamma", "beta"})
    with tf.GradientTape() as tape:
        y = model(rng.normal(size=(2, 32, 32, 3)).astype(np.float32), training=True)["c3"]
        loss = tf.reduce_mean(tf.square(y))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(g is not None and np.isfinite(g).all() for g in gradients)


def test_kernels_are_initialized_by_he_normal_over_the_outputs():
    kernel = ResNet(18, out_features=("c5",)).blocks[-1].convs[0].conv.kernel.numpy()
    assert kernel.std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.02)


def test_bfloat16_policy_keeps_float32_weights(rng):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = ResNet(18, width=8)
    finally:
        keras.config.set_dtype_policy(policy)
    x = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    features = model(x)
    assert all(f.dtype == tf.bfloat16 for f in features.values())
    assert all(w.dtype == "float32" for w in model.weights)
    reference = ResNet(18, width=8)
    reference.set_weights(model.get_weights())
    expected = reference(x)["c5"].numpy()
    np.testing.assert_allclose(tf.cast(features["c5"], tf.float32), expected, atol=0.1 * np.abs(expected).max())


def test_unknown_arguments_raise():
    with pytest.raises(ValueError, match="depth is 42: choose one of 18, 34, 50, 101, 152"):
        ResNet(42)
    with pytest.raises(ValueError, match="block is 'next'"):
        ResNet(50, block="next")
    with pytest.raises(ValueError, match="no feature c6: expected some of c2, c3, c4, c5"):
        ResNet(50, out_features=("c5", "c6"))
    with pytest.raises(ValueError, match="Unknown norm"):
        ResNet(18, norm="batch")


def test_saved_model_loads_with_equal_config_and_features(rng, tmp_path):
    model = ResNet(
        18,
        stages=(1, 1, 1),
        block="bottleneck",
        width=8,
        out_features=("c2", "c4"),
        stride_in_1x1=True,
        dilate_last=True,
        norm="bn",
        norm_epsilon=1e-3,
        freeze_at=1,
    )
    randomize(model, rng)
    model.save(tmp_path / "resnet.keras")
    loaded = keras.models.load_model(tmp_path / "resnet.keras")
    assert loaded.get_config() == model.get_config()
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]
    x = rng.normal(size=(1, 40, 40, 3)).astype(np.float32)
    for name, value in model(x).items():
        np.testing.assert_array_equal(loaded(x)[name], value)


@pytest.mark.parametrize(
    "kernel_size,strides,dilation", [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 2, 1), (7, 2, 1)]
)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
def test_conv_pads_like_pytorch(rng, kernel_size, strides, dilation, size):
    conv = ConvNorm(4, kernel_size, strides=strides, dilation=dilation, bias_initializer="ones")
    x = rng.normal(size=(1, *size, 2)).astype(np.float32)
    y = conv(x)
    np.testing.assert_allclose(y, torch_conv(x, conv.conv.kernel.numpy(), strides, dilation) + 1, atol=1e-5)


def test_strided_conv_equals_values_computed_by_hand():
    conv = ConvNorm(1, 3, strides=2, kernel_initializer="ones")
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    # PyTorch's windows start at row and column -1, so the first covers only pixels 0 and 1.
    np.testing.assert_array_equal(
        conv(x)[0, ..., 0], [[0 + 1 + 4 + 5, 1 + 2 + 3 + 5 + 6 + 7], [4 + 5 + 8 + 9 + 12 + 13, 90]]
    )
