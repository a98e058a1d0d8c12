"""A backbone that is not a ResNet works with every neck through the protocol."""

import textwrap

import keras
import numpy as np
import pytest
from tiny import PlainBackbone

from kerasdet.layers import FPN, Backbone, ConvTop, MaxPoolTop, ResNet

BACKBONES = {
    "plain": PlainBackbone,
    "resnet": lambda: ResNet(18, width=4),
    "dilated resnet": lambda: ResNet(18, width=4, dilate_last=True),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_states_the_channels_and_strides_of_its_features(name):
    backbone = BACKBONES[name]()
    assert isinstance(backbone, Backbone)
    features = backbone(np.zeros([1, 65, 96, 3], np.float32))
    assert tuple(features) == backbone.features == tuple(backbone.channels) == tuple(backbone.strides)
    for feature, x in features.items():
        stride = backbone.strides[feature]
        assert x.shape == (1, -(-65 // stride), -(-96 // stride), backbone.channels[feature])


@pytest.mark.parametrize("top", [None, MaxPoolTop(), ConvTop("c5", 8)], ids=["none", "pool", "conv"])
def test_fpn_merges_the_features_of_any_backbone(top):
    backbone = PlainBackbone()
    neck = FPN(channels=8, top=top)
    neck.build({name: (None, None, None, channels) for name, channels in backbone.channels.items()})
    pyramid = neck(backbone(np.ones([1, 64, 96, 3], np.float32)))
    assert tuple(pyramid) == neck.levels
    assert pyramid["p3"].shape == (1, 8, 12, 8) and pyramid["p5"].shape == (1, 2, 3, 8)


def test_plain_backbone_survives_a_keras_file(tmp_path):
    backbone, x = PlainBackbone(width=2), np.ones([1, 64, 64, 3], np.float32)
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    assert loaded.strides == backbone.strides
    np.testing.assert_array_equal(loaded(x)["c5"], backbone(x)["c5"])


def test_example_of_the_protocol_runs_as_written():
    example = textwrap.dedent(Backbone.__doc__.split("plain convolutions::")[1].split("Attributes:")[0])
    names = {}
    exec(example.replace("width=32", "width=2"), names)
    assert names["model"].backbone.features == ("c3", "c4", "c5")
