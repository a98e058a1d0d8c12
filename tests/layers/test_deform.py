import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shared

from kerasdet.layers import FPN, ConvNorm, DeformConvNorm, MaxPoolTop, ResNet, Tower
from kerasdet.layers.norm import make_norm
from kerasdet.ops import deform_conv2d


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"dilation": 2}, {"groups": 2}])
@pytest.mark.parametrize(("version", "factor"), [(1, 1.0), (2, 0.5)])
def test_new_layer_equals_an_ordinary_convolution(rng, options, version, factor):
    x = tf.constant(rng.normal(size=(2, 9, 8, 4)), tf.float32)
    plain, deformable = ConvNorm(6, 3, **options), DeformConvNorm(6, 3, deform_version=version, **options)
    expected, _ = plain(x), deformable(x)
    deformable.conv.set_weights(plain.conv.get_weights())
    np.testing.assert_allclose(deformable(x), factor * expected, atol=1e-5)


def test_offset_channels_precede_mask_channels(rng):
    x = tf.constant(rng.normal(size=(1, 6, 6, 4)), tf.float32)
    layer = DeformConvNorm(3, 3, deform_version=2, deform_groups=2, norm=make_norm("frozen_bn"), activation="relu")
    layer.build(x.shape)
    layer.offset.set_weights([rng.normal(0, 0.3, weight.shape) for weight in layer.offset.weights])
    prediction = tf.nn.conv2d(x, layer.offset.kernel, 1, "SAME") + layer.offset.bias
    assert prediction.shape[-1] == 2 * 27
    offsets, mask = prediction[..., :36], tf.sigmoid(prediction[..., 36:])
    expected = deform_conv2d(x, layer.conv.kernel, offsets, mask, padding=1, deformable_groups=2)
    np.testing.assert_allclose(layer(x), tf.nn.relu(layer.norm(expected)), atol=1e-5)


def test_every_variable_gets_a_gradient(rng):
    layer = DeformConvNorm(3, 3, deform_version=2)
    x = tf.constant(rng.normal(size=(1, 6, 6, 4)), tf.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    assert all(np.any(gradient) for gradient in gradients)


def test_mixed_precision_returns_half_precision_features(rng):
    layer = DeformConvNorm(3, 3, dtype="mixed_bfloat16")
    assert layer(tf.constant(rng.normal(size=(1, 6, 6, 4)), tf.float32)).dtype == tf.bfloat16


def test_unknown_version_raises():
    with pytest.raises(ValueError, match="deform_version is 3"):
        DeformConvNorm(3, 3, deform_version=3)


def small_resnet(**options):
    return ResNet(50, stages=(1, 1, 1), width=8, out_features=("c2", "c3", "c4"), **options)


def test_resnet_has_deformable_stages_under_stable_names():
    model = small_resnet(deform_stages=("c3",), deform_version=2)
    names = [variable.path.split("/", 1)[1] for variable in model.variables]
    assert [name for name in names if "conv2" in name and name.startswith("c3_0") and "moving" not in name] == [
        "c3_0/conv2/offset/kernel",
        "c3_0/conv2/offset/bias",
        "c3_0/conv2/conv/kernel",
        "c3_0/conv2/norm/gamma",
        "c3_0/conv2/norm/beta",
    ]
    assert [name for name in names if "offset/kernel" in name] == ["c3_0/conv2/offset/kernel"]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_new_resnet_with_version_1_equals_an_ordinary_resnet(rng, block):
    options = {"block": block, "groups": 2} if block == "bottleneck" else {"block": block}
    plain, deformable = small_resnet(**options), small_resnet(**options, deform_stages=("c3", "c4"))
    by_name = {variable.path.split("/", 1)[1]: variable for variable in plain.variables}
    for variable in deformable.variables:
        if "offset" not in variable.path:
            variable.assign(by_name[variable.path.split("/", 1)[1]])
    x = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    for name, expected in plain(x).items():
        np.testing.assert_allclose(deformable(x)[name], expected, rtol=1e-4, atol=1e-4)


def test_saved_resnet_loads_with_equal_features(rng, tmp_path):
    model = small_resnet(deform_stages=("c4",), deform_version=2, deform_groups=2, groups=2)
    for variable in model.variables:
        if "offset" in variable.path:
            variable.assign(rng.normal(0, 0.1, variable.shape))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    for name, expected in model(x).items():
        np.testing.assert_allclose(again(x)[name], expected, atol=1e-5)


def test_resnet_rejects_unknown_stages_and_groups_in_basic_blocks():
    with pytest.raises(ValueError, match="deform_stages has c7: expected some of c2"):
        small_resnet(deform_stages=("c7",))
    with pytest.raises(ValueError, match="basic blocks allow only 1"):
        small_resnet(block="basic", groups=2)


@pytest.mark.parametrize("norm", [None, "gn"])
def test_last_convolution_of_a_tower_can_be_deformable(rng, norm):
    tower = Tower(2, 32, ("p3", "p4"), norm, deform_last=True)
    assert tower(tf.constant(rng.normal(size=(1, 8, 8, 32)), tf.float32), level="p3").shape == (1, 8, 8, 32)
    assert [type(conv) for conv in tower.convs] == [ConvNorm, DeformConvNorm]
    assert tower.convs[-1].deform_version == 2
    assert tower.convs[-1].conv.use_bias == (norm is None)


def test_features_equal_detectron2s_deformable_model():
    name = "models/detectron2_mask_rcnn_R_50_FPN_dconv_c3-c5"
    layout = json.loads(shared(f"reference/{name}.layout.json").read_text())
    sys.path.insert(0, str(shared("reference")))
    import reference_weights

    state = reference_weights.state_dict(layout)
    stages = ("c3", "c4", "c5")
    model = ResNet(50, out_features=("c2", *stages), deform_stages=stages, stride_in_1x1=True, norm="frozen_bn")
    neck = FPN(("c2", "c3", "c4", "c5"), top=MaxPoolTop())
    image = reference_weights.image(256, 320, seed=0)[..., ::-1].astype(np.float32)
    x = tf.constant(image - [103.53, 116.28, 123.675], tf.float32)[None]
    neck(model(x))
    for variable in model.variables:
        variable.assign(_from_state(state, "backbone.bottom_up." + _detectron2_name(variable.path.split("/")[1:])))
    for variable in neck.variables:
        part = variable.path.split("/")[-3]
        key = f"backbone.fpn_{part.replace('_c', '')}.{'weight' if variable.path.endswith('kernel') else 'bias'}"
        variable.assign(_from_state(state, key))
    pyramid = neck(model(x))
    for key, expected in np.load(shared(f"reference/{name}.npz")).items():
        if key.startswith("feature_"):
            found = np.transpose(pyramid[key.removeprefix("feature_")][0, ::2, ::2, ::16], (2, 0, 1))
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def _detectron2_name(path):
    parameters = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    parameter = parameters.get(path[-1], path[-1].replace("moving_variance", "running_var"))
    parameter = parameter.replace("moving_mean", "running_mean")
    suffix = {"conv": "", "norm": ".norm", "offset": "_offset"}[path[-2]]
    if path[0] == "stem":
        return f"stem.conv1{suffix}.{parameter}"
    stage, block = path[0][1:].split("_")
    return f"res{stage}.{block}.{path[1]}{suffix}.{parameter}"


def _from_state(state, key):
    value = state[key]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
