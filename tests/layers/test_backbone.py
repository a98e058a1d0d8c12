"""A backbone that is not a ResNet works with every neck through the protocol."""

import textwrap

import keras
import numpy as np
import pytest

from kerasdet.layers import FPN, Backbone, ConvNorm, ConvTop, MaxPoolTop, ResNet


@keras.saving.register_keras_serializable(package="tests_backbone")
class PlainBackbone(keras.Model):
    """Computes c3, c4 and c5 with one strided convolution per level."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.features = ("c3", "c4", "c5")
        self.channels = {"c3": width * 8, "c4": width * 16, "c5": width * 32}
        self.strides = {"c3": 8, "c4": 16, "c5": 32}
        self.convs = [ConvNorm(width * 2**level, 3, strides=2, activation="relu") for level in range(1, 6)]
        self.build((None, None, None, 3))

    def build(self, input_shape):
        channels = input_shape[-1]
        for conv in self.convs:
            conv.build((None, None, None, channels))
            channels = conv.conv.filters
        self.built = True

    def call(self, images, training=False):
        x, features = images, {}
        for level, conv in enumerate(self.convs, start=1):
            x = conv(x, training=training)
            features[f"c{level}"] = x
        return {name: features[name] for name in self.features}

    def get_config(self):
        return {**super().get_config(), "width": self.width}


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
