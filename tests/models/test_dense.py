"""Behaviour that RetinaNet and FCOS share: parts, decoding of all anchors, other backbones."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import NUM_CLASSES, batch, fcos, randomized, retinanet
from tiny import PlainBackbone

from kerasdet import FCOS, FPN, RetinaNet
from kerasdet.errors import UserError
from kerasdet.layers import ConvTop, FCOSHead, RetinaNetHead
from kerasdet.models import Preprocessing
from kerasdet.models.common import with_score_threshold
from kerasdet.models.postprocess import Postprocessing

RULES = {
    "detectron2": {},
    "torchvision": {"clip_before_nms": True, "empty_boxes": "keep"},
    "mmdet": {"clip_before_nms": True, "empty_boxes": "drop_before_nms"},
    "best class": {"multi_label": False},
    "large boxes": {"min_size": 20.0},
}


@pytest.fixture(scope="module", params=[retinanet, fcos], ids=lambda make: make.__name__)
def model(request):
    return randomized(request.param())


@pytest.fixture(scope="module")
def outputs(model):
    """Outputs for the batch, with random logits so that scores lie far apart."""
    rng, found = np.random.default_rng(0), model(batch())
    logits = {level: tf.constant(rng.normal(0, 2, x.shape), tf.float32) for level, x in found["class_logits"].items()}
    return {**found, "class_logits": logits}


def sibling(model, **kwargs):
    """Makes a model that shares the network of `model` and differs in the given parts."""
    names = ("backbone", "neck", "anchors", "head", "preprocessing")
    return type(model)(NUM_CLASSES, **{**{name: getattr(model, name) for name in names}, **kwargs})


def numpy(detections):
    return {name: np.asarray(value) for name, value in detections.items()}


def detections_of(model):
    data = batch()
    return numpy(model.postprocess(model(data), data["image_size"]))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_decode_all_and_suppression_equal_postprocess(model, outputs, rule):
    postprocessing = Postprocessing(0.3, pre_nms_top_k=10**6, max_detections=30, **rule)
    variant, sizes = sibling(model, postprocessing=postprocessing), batch()["image_size"]
    everything = variant.decode_all(outputs, sizes)
    assert everything["scores"].shape[2] == NUM_CLASSES
    count = tf.shape(everything["scores"])[1] * NUM_CLASSES
    candidates = {
        "boxes": tf.repeat(everything["boxes"], NUM_CLASSES, axis=1),
        "scores": tf.reshape(everything["scores"], [2, -1]),
        "class_ids": tf.broadcast_to(tf.range(count) % NUM_CLASSES, [2, count]),
    }
    found = numpy(postprocessing.apply_nms(candidates, sizes, score_threshold=0.0))
    expected = numpy(variant.postprocess(outputs, sizes))
    assert (expected["valid"] > 2).all()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4)


def test_decode_all_scores_are_zero_for_pairs_that_the_model_drops(model, outputs):
    rule = Postprocessing(0.3, min_size=20.0, clip_before_nms=True)
    everything = numpy(sibling(model, postprocessing=rule).decode_all(outputs, batch()["image_size"]))
    sizes = everything["boxes"][..., 2:] - everything["boxes"][..., :2]
    small, scores = sizes.min(-1) < 20, everything["scores"]
    assert small.any() and not scores[small].any()
    assert scores[~small].any() and (scores[scores > 0] > 0.3).all()


def test_models_that_share_a_network_share_its_weights(model):
    twin = sibling(model)
    assert all(one is other for one, other in zip(twin.head.weights, model.head.weights, strict=True))


def test_model_refuses_a_head_of_a_model_with_other_classes(model):
    with pytest.raises(UserError, match="belongs to a model with"):
        type(model)(NUM_CLASSES + 1, backbone=model.backbone, neck=model.neck, anchors=model.anchors, head=model.head)


def test_with_score_threshold_copies_the_model(model):
    before = model.postprocessing.score_threshold
    reference = detections_of(model)
    threshold = float(np.median(reference["scores"][reference["class_ids"] >= 0]))
    copy = with_score_threshold(model, threshold)
    assert (copy.postprocessing.score_threshold, model.postprocessing.score_threshold) == (threshold, before)
    assert type(copy) is type(model)
    for one, other in zip(copy.weights, model.weights, strict=True):
        assert one is not other
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(detections_of(copy)["valid"], (reference["scores"] > threshold).sum(1))


def test_with_score_threshold_refuses_a_model_without_one():
    with pytest.raises(UserError, match="SimpleNamespace has no score threshold"):
        with_score_threshold(SimpleNamespace(postprocessing=None), 0.5)


# -- mistakes in batches


@pytest.mark.parametrize(
    "name,value,message",
    [
        (
            "class_ids",
            NUM_CLASSES,
            r"^A class id must be in 0\.\.2, or -1 .* 3 of object 1 in image 0 of the batch",
        ),
        ("class_ids", -5, r"A class id must be in 0\.\.2, or -1 for padding; found the class id -5 "),
        (
            "boxes",
            (60, 95, 30, 50),
            r"A box is inverted or not finite; .* the box 60 95 30 50 .* with the image id 17",
        ),
        ("boxes", np.nan, r"A box is inverted or not finite; .* the box nan nan nan nan "),
        ("is_crowd", 2, r"A value of is_crowd must be 0 or 1; found 2 of object 1 in image 0 of the batch with the"),
    ],
    ids=["class", "negative class", "inverted", "nan", "crowd"],
)
def test_invalid_object_raises_before_a_step(name, value, message):
    model = retinanet()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    data = {**batch(), "is_crowd": batch()["is_crowd"].astype(np.int32)}
    data[name][0, 1] = value
    for step in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(UserError, match=message) as error:
            step(data)
        assert "\n" not in str(error.value)


def test_boxes_as_fractions_raise_in_every_batch():
    model = retinanet()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    good = {name: batch()[name] for name in ("image", "boxes", "class_ids")}
    model.test_on_batch(good)
    with pytest.raises(
        UserError, match=r"^A box has no number above 1, .* in pixels, not fractions\. Found the box 0\."
    ):
        model.test_on_batch({**good, "boxes": good["boxes"] / 128})
    single = np.where(np.arange(3) == 0, 0, -1) + np.int32([[0], [-1]])  # may be an object that a crop has cut
    model.test_on_batch({**good, "boxes": good["boxes"] / 128, "class_ids": np.minimum(single, 0).clip(-1)})


def test_padding_and_no_rows_are_no_mistakes():
    model = retinanet()
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    data = {name: batch()[name] for name in ("image", "image_size", "boxes", "class_ids")}
    data["boxes"][1, 2] = np.nan  # a row of padding
    assert np.isfinite(model.test_on_batch(data, return_dict=True)["loss"])
    data |= {"boxes": np.zeros([2, 0, 4], np.float32), "class_ids": np.zeros([2, 0], np.int32)}
    assert np.isfinite(model.test_on_batch(data, return_dict=True)["loss"])


def test_fit_with_separate_labels_raises():
    model = retinanet()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    with pytest.raises(UserError, match=r"expected one dict with .* Call fit\(batch\) or .* instead of fit\(x, y\)"):
        model.fit(batch()["image"], batch()["class_ids"], verbose=0)


# -- backbones


@pytest.mark.parametrize("model_class,head", [(RetinaNet, RetinaNetHead), (FCOS, FCOSHead)])
def test_backbone_that_is_not_a_resnet_trains_saves_loads_and_detects(model_class, head, tmp_path):
    keras.utils.set_random_seed(0)
    model = model_class(
        NUM_CLASSES,
        backbone=PlainBackbone(),
        neck=FPN(channels=32, top=ConvTop("p5", 32)),
        head=head(1),
        preprocessing=Preprocessing(shortest=96, longest=128),
    )
    kernel = model.backbone.convs[0].conv.kernel
    before = kernel.numpy()
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    assert np.isfinite(model.train_on_batch(batch(), return_dict=True)["loss"])
    assert not np.array_equal(kernel, before)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.backbone, PlainBackbone)
    model, loaded = (with_score_threshold(each, 0.001) for each in (model, loaded))
    found, again = detections_of(model), detections_of(loaded)
    assert found["valid"].any()
    for name, value in found.items():
        np.testing.assert_array_equal(value, again[name])


class UnbuiltHead(RetinaNetHead):
    """Creates a layer that its `build` forgets."""

    def create_layers(self, *args):
        super().create_layers(*args)
        self.gate = keras.layers.Conv2D(32, 1, name="gate")

    def call(self, pyramid, training=False):
        return super().call({level: self.gate(x) for level, x in pyramid.items()}, training=training)


def test_layers_without_weights_are_named_before_training():
    model = RetinaNet(
        NUM_CLASSES, backbone=PlainBackbone(), neck=FPN(channels=32, top=ConvTop("c5", 32)), head=UnbuiltHead(1)
    )
    model.compile(optimizer="sgd", run_eagerly=True)
    with pytest.raises(UserError, match=r"layer gate \(Conv2D\) in head has no weights yet.*in UnbuiltHead\.build"):
        model.train_on_batch(batch())


def plain_retinanet(call=None, **attributes):
    """Makes a model on a `PlainBackbone` with other attributes, or whose `call` passes its features to `call`."""

    class Changed(PlainBackbone):
        def call(self, images, training=False):
            return call(super().call(images, training)) if call else super().call(images, training)

    backbone = Changed()
    for name, value in attributes.items():
        setattr(backbone, name, value)
    return RetinaNet(NUM_CLASSES, backbone=backbone, neck=FPN(channels=32, top=ConvTop("c5", 32)))


@pytest.mark.parametrize(
    "attributes,message",
    [
        (
            {"channels": {"c3": 16, "c4": 32, "c5": 65}},
            r"states 65 channels for c5, but `call` returns the shape \(1,",
        ),
        ({"strides": {"c3": 4, "c4": 8, "c5": 16}}, "states a stride of 4 pixels for c3, .* need 8: name each feature"),
        ({"strides": {"c4": 16, "c5": 32}}, "Changed.strides lacks c3: state a stride in pixels"),
        ({"channels": {"c4": 32, "c5": 64}}, r"lacks c3: let Changed return c3 .*; Changed has c4, c5\."),
        ({"call": lambda features: list(features.values())}, "Changed returns a list: expected a dict"),
        (
            {"call": lambda features: {"c3": features["c3"]}},
            "channels lists c4, c5, but `call` returns only c3: return",
        ),
        (
            {"call": lambda features: {name: x[:, 1:] for name, x in features.items()}},
            "makes c3 of 7 x 16 cells from an image of 64 x 128 pixels, but a stride of 8 needs 8 x 16: correct",
        ),
    ],
    ids=["channels", "strides", "missing stride", "missing feature", "list", "missing output", "valid padding"],
)
def test_backbone_that_breaks_its_protocol_raises(attributes, message):
    with pytest.raises(UserError, match=message):
        plain_retinanet(**attributes)


def test_backbone_without_strides_or_instance_raises():
    with pytest.raises(TypeError, match="a Changed without `strides`: give"):
        plain_retinanet(strides=None)
    with pytest.raises(TypeError, match="backbone is the class PlainBackbone: give an object"):
        RetinaNet(NUM_CLASSES, backbone=PlainBackbone)


def test_backbone_that_accepts_no_small_image_is_not_refused():
    def refuse(features):
        raise ValueError("needs 1024 pixels")

    assert plain_retinanet(refuse).built
