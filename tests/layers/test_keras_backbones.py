"""Backbones of `keras.applications`, and of models with `pyramid_outputs` as KerasHub has."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications import convnext, efficientnet_v2

import kerasdet
from kerasdet import export
from kerasdet.errors import UserError
from kerasdet.layers import FPN, Backbone, ConvTop, KerasApplication, PyramidBackbone, RetinaNetHead
from kerasdet.models import Preprocessing, RetinaNet
from kerasdet.models.postprocess import Postprocessing

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@keras.saving.register_keras_serializable(package="tests")
class HubBackbone(keras.Model):
    """Stands in for KerasHub's feature pyramid backbones: a functional model with `pyramid_outputs`."""

    def __init__(self, width=8, **kwargs):
        image = x = keras.Input((None, None, 3))
        outputs = {}
        for level in range(1, 6):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
            outputs[f"P{level}"] = x
        super().__init__(inputs=image, outputs=x, **kwargs)
        self.width = width
        self.pyramid_outputs = outputs

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, "width": self.width}


def detector(backbone):
    return RetinaNet(
        2,
        class_names=("cat", "dog"),
        backbone=backbone,
        neck=FPN(channels=16, top=ConvTop("c5", 16)),
        head=RetinaNetHead(num_convs=1),
        preprocessing=Preprocessing(shortest=64, longest=64),
        postprocessing=Postprocessing(score_threshold=0.0, max_detections=20),
    )


def keras_hub_backbone():
    """Makes a tiny ResNet of KerasHub, where it is installed."""
    models = pytest.importorskip("keras_hub").models
    stages = {"stackwise_num_filters": [64, 16, 16, 16], "stackwise_num_strides": [1, 2, 2, 2]}
    stem = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7]}
    hub = models.ResNetBackbone(
        **stem, **stages, stackwise_num_blocks=[1] * 4, block_type="basic_block", image_shape=(None, None, 3)
    )
    return PyramidBackbone(hub)


@pytest.fixture
def shallow(monkeypatch):
    """Leaves one narrow block per stage of EfficientNetV2 and ConvNeXtTiny: all of their layers at a tenth."""
    for size in ("efficientnetv2-b0", "efficientnetv2-s"):
        quarter = [
            {**block, "num_repeat": 1, **{name: block[name] // 4 for name in ("input_filters", "output_filters")}}
            for block in efficientnet_v2.DEFAULT_BLOCKS_ARGS[size]
        ]
        monkeypatch.setitem(efficientnet_v2.DEFAULT_BLOCKS_ARGS, size, quarter)
    small = {"depths": [1, 1, 1, 1], "projection_dims": [8, 16, 24, 32]}
    monkeypatch.setitem(convnext.MODEL_CONFIGS, "tiny", {**convnext.MODEL_CONFIGS["tiny"], **small})


BACKBONES = {
    "hub": lambda: PyramidBackbone(HubBackbone()),
    "keras_hub": pytest.param(keras_hub_backbone, marks=pytest.mark.slow),
    **{
        name: pytest.param(lambda name=name: KerasApplication(name), marks=pytest.mark.slow)
        for name in ("EfficientNetV2B0", "ConvNeXtTiny", "MobileNetV3Small")
    },
}


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
def test_backbone_trains_and_its_files_detect_the_same(make, shallow, tmp_path):
    model = detector(make())
    assert isinstance(model.backbone, Backbone)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    batch = {
        "image": IMAGE[None],
        "image_size": np.int32([[64, 64]]),
        "boxes": np.float32([[[10, 10, 60, 60]]]),
        "class_ids": np.int32([[0]]),
        "is_crowd": np.zeros((1, 1), bool),
    }
    history = model.fit(tf.data.Dataset.from_tensors(batch).repeat(4), epochs=2, verbose=0).history["loss"]
    assert history[1] < history[0]
    found = model.detect(IMAGE)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(kerasdet.load(tmp_path / "model.keras").detect(IMAGE).scores, found.scores, atol=1e-4)
    export.export_saved_model(model, tmp_path / "saved_model")
    np.testing.assert_allclose(kerasdet.load(tmp_path / "saved_model").detect(IMAGE).scores, found.scores, atol=1e-4)
    path = export.export_tflite(
        model, tmp_path / "int8.tflite", precision="int8", size=(64, 64), calibration_images=[IMAGE]
    )
    np.testing.assert_allclose(kerasdet.load(path).detect(IMAGE).scores[:5], found.scores[:5], atol=0.05)


def test_features_of_a_whole_application_have_their_strides():
    backbone = KerasApplication("MobileNetV3Small", out_features=("c2", "c3", "c4", "c5"))
    features = backbone(np.zeros([1, 64, 64, 3], np.float32))
    channels = {"c2": 72, "c3": 96, "c4": 288, "c5": 576}  # the next block widens its input before it strides
    assert {name: x.shape.as_list() for name, x in features.items()} == {
        name: [1, 64 >> level, 64 >> level, channels[name]] for level, name in enumerate(channels, 2)
    }


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "EfficientNetV2S", "ConvNeXtTiny"])
def test_features_equal_those_of_the_application_from_raw_pixels(shallow, name):
    """The application's own preprocessing is the truth; the last feature is its output."""
    backbone = KerasApplication(name, out_features=("c5",))
    application = getattr(keras.applications, name)(include_top=False, weights=None)
    application.set_weights(backbone.backbone.get_weights())
    expected = application(IMAGE[None].astype(np.float32))
    found = backbone(Preprocessing().normalize(IMAGE[None], None))["c5"]
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.ptp(expected))


def test_features_of_odd_images_cover_the_image():
    backbone = PyramidBackbone(HubBackbone(), out_features=("c2", "c5"))
    assert backbone.strides == {"c2": 4, "c5": 32} and backbone.channels == {"c2": 8, "c5": 8}
    features = backbone(np.zeros([1, 65, 33, 3], np.float32))
    assert {name: tuple(x.shape[1:3]) for name, x in features.items()} == {"c2": (17, 9), "c5": (3, 2)}


def test_pixels_are_those_that_the_network_expects():
    """A network that expects -1..1 gets what it would get by dividing pixels by 127.5."""
    hub = HubBackbone()
    backbone = PyramidBackbone(hub, input_mean=(127.5,) * 3, input_std=(127.5,) * 3)
    normalized = Preprocessing().normalize(IMAGE[None], None)
    expected = keras.Model(hub.inputs, hub.pyramid_outputs)(IMAGE[None] / np.float32(127.5) - 1)
    np.testing.assert_allclose(backbone(normalized)["c3"], expected["P3"], atol=1e-4)


def test_frozen_norms_use_their_statistics():
    def statistics_move(**options):
        backbone = PyramidBackbone(HubBackbone(), **options)
        before = [v.numpy() for v in backbone.non_trainable_variables if "moving" in v.path]
        backbone(np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32), training=True)
        after = [v.numpy() for v in backbone.non_trainable_variables if "moving" in v.path]
        return any(np.any(x != y) for x, y in zip(before, after, strict=True))

    assert statistics_move() and not statistics_move(freeze_norms=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PyramidBackbone(keras.Sequential()),
            "got a Sequential: expected a Keras model with",
        ),
        (lambda: PyramidBackbone(HubBackbone(), out_features=("c6",)), "has no feature c6: expected some of c1, c2"),
        (lambda: KerasApplication("EfficientNetV3"), "architecture is 'EfficientNetV3': expected one of ConvNeXtBase,"),
        (lambda: KerasApplication("MobileNetV3Small", out_features=("c1",)), "MobileNetV3Small has no feature c1"),
        (
            lambda: KerasApplication("MobileNetV3Small", pretrained="no.weights.h5"),
            "pretrained is 'no.weights.h5', but these weights of MobileNetV3Small cannot be loaded: The `weights`",
        ),
    ],
)
def test_wrong_arguments_raise(make, message):
    with pytest.raises(UserError, match=message):
        make()
