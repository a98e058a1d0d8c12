"""Tests the passes that turn a model into one inference graph: they simplify it and keep its outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import COVERING

from kerasdet.export.graph import InferenceGraph
from kerasdet.export.graph_folding import fold_batch_norm, fold_constants, fold_strides
from kerasdet.export.graph_precision import to_float32
from kerasdet.keras_compat import freeze_variables
from kerasdet.ops import implementation, nms
from kerasdet.ops.dispatch import raw_ops

IMAGE = [tf.TensorSpec([None, None, None, 3], tf.float32)]


def nodes(graph, op):
    return [node for node in graph.graph_def.node if node.op == op]


def features(layer):
    return lambda x: {"y": layer(x)["c3"]}


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "bn_inference"])
def test_norms_are_folded_into_convolutions(norm, rng):
    layer = tiny.backbone(norm=norm, norm_epsilon=1e-3)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) * (0.1 if variable.name == "kernel" else 1))
    graph = InferenceGraph(features(layer), IMAGE)
    assert not nodes(graph, "FusedBatchNormV3")
    assert len(nodes(graph, "BiasAdd")) == len(nodes(graph, "Conv2D")) > 5
    x = rng.normal(0, 1, (2, 40, 56, 3)).astype(np.float32)
    expected = layer(x)["c3"]
    np.testing.assert_allclose(graph.detect(x)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(40, 56), (41, 67)])
def test_strides_are_folded_into_1x1_convolutions(size, rng):
    layer = tiny.backbone()
    graph = InferenceGraph(features(layer), IMAGE)
    assert not nodes(graph, "StridedSlice")
    strides = [tuple(node.attr["strides"].list.i) for node in nodes(graph, "Conv2D")]
    assert strides.count((1, 2, 2, 1)) == 1 + 2  # the stem, and both paths of c3's first block
    x = rng.normal(0, 1, (2, *size, 3)).astype(np.float32)
    np.testing.assert_allclose(graph.detect(x)["y"], layer(x)["c3"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.s_[:, 1::2, 1::2],
        np.s_[:, :9:2, :9:2],
        np.s_[:, ::2, ::2, ::2],
        np.s_[:, ::2, ::2, 1:3],
        np.s_[:, :, ::-1],
        np.s_[:, ::-2, ::2],
    ],
)
def test_slices_other_than_strides_are_not_folded(pixels, rng):
    x = rng.normal(0, 1, (1, 12, 12, 4)).astype(np.float32)
    channels = x[pixels].shape[-1]
    kernel = tf.Variable(rng.normal(0, 1, (1, 1, channels, 5)).astype(np.float32))
    graph = InferenceGraph(
        lambda x: {"y": tf.nn.conv2d(x[pixels], kernel, 1, "SAME")}, [tf.TensorSpec([None, 12, 12, 4])]
    )
    np.testing.assert_allclose(graph.detect(x)["y"], tf.nn.conv2d(x[pixels], kernel, 1, "SAME"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 5), (1, 2, 5), (1, 16, 9), (1, 17, 9), (1, 34, 6), (1, 35, 6), (2, 35, 6)])
def test_split_wide_convolution_equals_the_whole(size, relu, rng):
    x = rng.normal(0, 1, (*size, 8)).astype(np.float32)
    kernel, bias = (tf.Variable(rng.normal(0, 1, shape).astype(np.float32)) for shape in ([3, 3, 8, 256], [256]))

    def convolve(x):
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)
        return {"y": tf.nn.relu(y) if relu else y}

    graph = InferenceGraph(convolve, [tf.TensorSpec([None, None, None, 8])])
    assert len(nodes(graph, "PartitionedCall")) == 1 and not nodes(graph, "Conv2D")
    np.testing.assert_allclose(graph.detect(x)["y"], convolve(x)["y"], rtol=1e-5, atol=1e-5)


def test_only_wide_convolutions_with_bias_are_split(rng):
    def convolutions(x):
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernels[0], 1, "SAME"), biases[0])
        without_bias = tf.nn.conv2d(x, kernels[0], 1, "SAME")
        narrow = tf.nn.bias_add(tf.nn.conv2d(x, kernels[1], 1, "SAME"), biases[1])
        dilated = tf.nn.bias_add(tf.nn.conv2d(x, kernels[0], 1, "SAME", dilations=2), biases[0])
        valid = tf.nn.bias_add(tf.nn.conv2d(x, kernels[0], 1, "VALID"), biases[0])
        return {"a": y, "b": tf.nn.relu(y), "c": without_bias, "d": narrow, "e": dilated, "f": valid}

    kernels = [tf.Variable(rng.normal(0, 1, (3, 3, 8, n)).astype(np.float32)) for n in (256, 128)]
    biases = [tf.Variable(rng.normal(0, 1, n).astype(np.float32)) for n in (256, 128)]
    x = rng.normal(0, 1, (1, 40, 12, 8)).astype(np.float32)
    graph = InferenceGraph(convolutions, [tf.TensorSpec([None, None, None, 8])])
    assert len(nodes(graph, "PartitionedCall")) == 1 and len(nodes(graph, "Relu")) == 1
    for name, value in graph.detect(x).items():
        np.testing.assert_allclose(value, convolutions(x)[name], rtol=1e-5, atol=1e-5)
    with implementation("tflite"):
        graph = InferenceGraph(convolutions, [tf.TensorSpec([1, 40, 12, 8])])
    assert not nodes(graph, "PartitionedCall")


def test_equal_constants_are_stored_once():
    concrete = tf.function(features(tiny.backbone()), input_signature=IMAGE).get_concrete_function()
    graph, _, _ = freeze_variables(concrete)
    used = {name for node in fold_constants(graph).node for name in node.input}
    values = [n.attr["value"].tensor.SerializeToString() for n in graph.node if n.op == "Const" and n.name in used]
    assert len(values) == len(set(values)) < sum(node.op == "Const" for node in graph.node)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [(160, 16), (33, 17), (200, 32), (64, 96)])
def test_single_column_of_features_is_correct_in_16_bits(precision, size, rng):
    """On AMX TensorFlow 2.21's oneDNN returns garbage for it, see `widen_strides`."""
    layer = tiny.backbone(width=16, out_features=("c3", "c4", "c5"))
    graph = InferenceGraph(layer, IMAGE, precision)
    for _ in range(3):
        x = rng.normal(0, 1, (1, *size, 3)).astype(np.float32)
        found = graph.detect(x)
        for name, expected in layer(x).items():
            np.testing.assert_allclose(found[name], expected, atol=0.03 * np.abs(expected).max())


def test_squeezed_constants_keep_other_axes(rng):
    weight = tf.Variable(rng.normal(0, 1, (1, 1, 1, 8)).astype(np.float32))
    graph = InferenceGraph(lambda x: {"y": x[:, 0, 0, :1, None] + tf.squeeze(weight, [0])}, IMAGE)
    x = rng.normal(0, 1, (1, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(graph.detect(x)["y"], x[:, 0, 0, :1, None] + weight[0], rtol=1e-6)


def test_group_norm_stays_in_float32(rng):
    layer = tiny.backbone(norm="gn", width=32)
    graph = InferenceGraph(features(layer), IMAGE, "bfloat16")
    x = rng.normal(0, 1, (1, 40, 56, 3)).astype(np.float32)
    expected = np.array(layer(x)["c3"])
    assert 0 < np.abs(graph.detect(x)["y"] - expected).mean() < 0.02 * np.abs(expected).mean()
    assert {node.attr["T"].type for node in nodes(graph, "Rsqrt")} == {tf.float32.as_datatype_enum}


@pytest.mark.parametrize("name", COVERING)
def test_convolutions_are_in_16_bits_and_boxes_in_float32(models, name):
    model = models(name)
    signature = [
        tf.TensorSpec([None, None, None, 3], tf.float32),
        tf.TensorSpec([None, 2], tf.int32),
        tf.TensorSpec([None, 2], tf.int32),
    ]

    def network(image, image_size, original_size):
        return model.detect_batch({"image": image, "image_size": image_size, "original_size": original_size})

    graph = InferenceGraph(network, signature, "bfloat16")
    low = tf.bfloat16.as_datatype_enum
    for op in ("Conv2D", "Conv2DBackpropInput", "BiasAdd"):
        assert {node.attr["T"].type for node in nodes(graph, op)} <= {low}, op
    for op in ("Exp", "Sigmoid", "Softmax", "Sub"):
        assert low not in {node.attr["T"].type for node in nodes(graph, op)}, op
    assert {weight.dtype for weight in graph.weights.values() if len(weight.shape) == 4} == {tf.bfloat16}


def test_model_with_mixed_policy_exports_in_float32(rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = tiny.backbone()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    graph = InferenceGraph(features(layer), IMAGE)
    low = tf.bfloat16.as_datatype_enum
    assert not [n for n in graph.graph_def.node for a in n.attr.values() if a.type == low]
    precise = tiny.backbone()
    for new, old in zip(precise.variables, layer.variables, strict=True):
        new.assign(old)
    x = rng.normal(0, 1, (1, 40, 56, 3)).astype(np.float32)
    expected = precise(x)["c3"]
    np.testing.assert_allclose(graph.detect(x)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_graph_with_a_loop_runs_and_has_stock_ops():
    def ranked(boxes):
        indices, counts = nms(boxes, boxes[..., 0], iou_threshold=0.5, max_detections=4)
        return {"indices": tf.cond(tf.size(boxes) > 0, lambda: indices, lambda: 0 * indices), "counts": counts}

    signature = [tf.TensorSpec([None, None, 4], tf.float32)]
    graph = InferenceGraph(ranked, signature)
    boxes = np.float32([[[0, 0, 8, 8], [1, 0, 9, 8], [20, 20, 30, 30]]])
    found = graph.detect(boxes)
    np.testing.assert_array_equal(found["indices"], [[2, 1, -1, -1]])
    assert graph.graph_def.library.function  # bodies of loops or branches
    assert b"Kerasdet>" not in graph.graph_def.SerializeToString()
    if raw_ops() is not None:
        with implementation("compiled"):
            assert b"Kerasdet>Nms" in InferenceGraph(ranked, signature).graph_def.SerializeToString()


def test_weights_are_stored_once():
    model = tiny.detector(3)
    graph = InferenceGraph(lambda x: model.head(model.neck(model.backbone(x)))["class_logits"], IMAGE)
    ours = sum(np.prod(v.shape) for v in model.variables if v.name == "kernel" and "box_" not in v.path)
    theirs = sum(np.prod(weight.shape) for weight in graph.weights.values() if len(weight.shape) == 4)
    assert 0.9 * ours < theirs <= ours  # the smallest weights are constants in the graph


def test_passes_do_not_change_their_argument():
    layer = tiny.backbone()
    concrete = tf.function(features(layer), input_signature=IMAGE).get_concrete_function()
    graph = concrete.graph.as_graph_def()
    before = graph.SerializeToString(deterministic=True)
    for step in (to_float32, fold_constants, fold_batch_norm, fold_strides):
        step(graph)
    assert graph.SerializeToString(deterministic=True) == before
