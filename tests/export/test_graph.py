import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from export_models import MODELS, make
from kerasdet.export.graph import InferenceGraph, fold_batch_norm, fold_constants, in_float32

import kerasdet

IMAGE = [tf.TensorSpec([None, None, None, 3], tf.float32)]


def nodes(graph, op):
    return [node for node in graph._graph.node if node.op == op]


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


def test_group_norm_stays_in_float32(rng):
    layer = tiny.backbone(norm="gn", width=32)
    graph = InferenceGraph(features(layer), IMAGE, "bfloat16")
    x = rng.normal(0, 1, (1, 40, 56, 3)).astype(np.float32)
    expected = np.array(layer(x)["c3"])
    assert 0 < np.abs(graph.detect(x)["y"] - expected).mean() < 0.02 * np.abs(expected).mean()
    assert {node.attr["T"].type for node in nodes(graph, "Rsqrt")} == {tf.float32.as_datatype_enum}


@pytest.mark.parametrize("name", MODELS)
def test_convolutions_are_in_16_bits_and_boxes_in_float32(name):
    model = make(name)
    signature = [
        tf.TensorSpec([None, None, None, 3], tf.float32),
        tf.TensorSpec([None, 2], tf.int32),
        tf.TensorSpec([None, 2], tf.int32),
    ]
    graph = InferenceGraph(model.detect_resized, signature, "bfloat16")
    low = tf.bfloat16.as_datatype_enum
    for op in ("Conv2D", "Conv2DBackpropInput", "BiasAdd"):
        assert {node.attr["T"].type for node in nodes(graph, op)} <= {low}, op
    for op in ("Exp", "Sigmoid", "Softmax", "Sub"):
        assert low not in {node.attr["T"].type for node in nodes(graph, op)}, op
    assert {weight.dtype for weight in graph.weights.values() if len(weight.shape) == 4} == {tf.bfloat16}


def test_a_model_of_a_mixed_policy_is_exported_in_float32(rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = tiny.backbone()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    graph = InferenceGraph(features(layer), IMAGE)
    low = tf.bfloat16.as_datatype_enum
    assert not [n for n in graph._graph.node for a in n.attr.values() if a.type == low]
    precise = tiny.backbone()
    for new, old in zip(precise.variables, layer.variables, strict=True):
        new.assign(old)
    x = rng.normal(0, 1, (1, 40, 56, 3)).astype(np.float32)
    expected = precise(x)["c3"]
    np.testing.assert_allclose(graph.detect(x)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_weights_are_stored_once():
    model = kerasdet.RetinaNet(3, **{"backbone": tiny.backbone(), "head_convs": 1, "preprocessing": None})
    graph = InferenceGraph(lambda x: model.head(model.neck(model.backbone(x)))["class_logits"], IMAGE)
    ours = sum(np.prod(v.shape) for v in model.variables if v.name == "kernel" and "box_" not in v.path)
    theirs = sum(np.prod(weight.shape) for weight in graph.weights.values() if len(weight.shape) == 4)
    assert 0.9 * ours < theirs <= ours  # the smallest are constants


def test_the_steps_leave_their_argument_alone():
    layer = tiny.backbone()
    concrete = tf.function(features(layer), input_signature=IMAGE).get_concrete_function()
    graph = concrete.graph.as_graph_def()
    before = graph.SerializeToString(deterministic=True)
    for step in (in_float32, fold_constants, fold_batch_norm):
        step(graph)
    assert graph.SerializeToString(deterministic=True) == before
