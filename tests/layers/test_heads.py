import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdet.errors import UserError
from kerasdet.layers import FCOSHead, RetinaNetHead, Tower

LEVELS = ("p3", "p4", "p5")


def pyramid(rng, channels=32, batch=2):
    sizes = {"p3": (5, 7), "p4": (3, 4), "p5": (1, 2)}
    return {
        level: rng.normal(i, 1 + i, (batch, *sizes[level], channels)).astype(np.float32)
        for i, level in enumerate(LEVELS)
    }


def built(layer, channels=32):
    layer.build((None, None, None, channels))
    return layer


def attached(layer, num_classes=3, num_anchors=2, levels=LEVELS, channels=32):
    """Does for a head what a model does."""
    layer.attach(num_classes=num_classes, num_anchors=num_anchors, levels=levels, channels=channels)
    return layer


def head(num_convs=1, channels=32, **kwargs):
    return attached(RetinaNetHead(num_convs, **kwargs), channels=channels)


# -- attaching


@pytest.mark.parametrize("make", [RetinaNetHead, FCOSHead])
def test_head_has_no_layers_before_a_model_attaches_it(make, rng):
    layer = make(num_convs=1)
    assert not layer.weights and not layer.built
    for use in (lambda: layer.build((None, None, None, 32)), lambda: layer(pyramid(rng))):
        with pytest.raises(RuntimeError, match=f"{make.__name__} has no layers yet: pass the head to a model"):
            use()


@pytest.mark.parametrize("make", [RetinaNetHead, FCOSHead])
def test_attached_head_has_weights_of_stable_names(make):
    paths = {weight.path for weight in attached(make(num_convs=1), num_anchors=1).weights}
    assert {"head/class_tower/conv0/conv/kernel", "head/class_logits/conv/bias"} <= paths


def test_models_of_equal_sizes_may_share_a_head():
    layer = head()
    weights = layer.weights
    attached(layer)
    assert all(one is other for one, other in zip(layer.weights, weights, strict=True))


def test_head_refuses_a_second_model_of_other_sizes():
    with pytest.raises(UserError, match=r"belongs to .* \(3, 2, .* the new model has \(4, 2, .*new head"):
        attached(head(), num_classes=4)


def test_loaded_head_is_not_built_before_a_model_attaches_it():
    layer = head(num_convs=2, norm="gn")
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert not clone.weights
    assert [w.shape for w in attached(clone).weights] == [w.shape for w in layer.weights]


def test_frozen_head_stays_frozen_when_attached():
    layer = attached(RetinaNetHead(1, trainable=False))
    assert not layer.trainable_weights
    assert not layer.class_tower.trainable and not layer.class_tower.convs[0].trainable


def test_head_keeps_its_own_precision_policy():
    layer = attached(RetinaNetHead(1, dtype="mixed_bfloat16"))
    assert layer.class_tower.convs[0].compute_dtype == "bfloat16"
    assert head().class_tower.convs[0].compute_dtype == "float32"


# -- RetinaNet


def test_output_rows_run_over_cells_and_then_anchors(rng):
    layer, features = head(num_convs=0, channels=8), pyramid(rng, 8)
    outputs = layer(features)
    for level, x in features.items():
        for name, conv, size in (("class_logits", layer.class_logits, 3), ("box_deltas", layer.box_deltas, 4)):
            y = conv(x).numpy()  # (B, h, w, A * size)
            batch, height, width, _ = y.shape
            assert outputs[name][level].shape == (batch, height * width * 2, size)
            rows = iter(outputs[name][level].numpy()[1])
            for row in range(height):
                for column in range(width):
                    for anchor in range(2):
                        expected = y[1, row, column, anchor * size : (anchor + 1) * size]
                        np.testing.assert_array_equal(next(rows), expected)


def test_only_classes_have_the_prior_probability(rng):
    outputs = head(prior_probability=0.02)(pyramid(rng))
    for level in LEVELS:
        assert tf.sigmoid(outputs["class_logits"][level]).numpy().mean() == pytest.approx(0.02, rel=0.1)
        assert abs(outputs["box_deltas"][level].numpy().mean()) < 0.1


def test_initial_values_equal_those_of_the_paper():
    layer = attached(RetinaNetHead(), 80, 9, channels=256)
    parameters = sum(int(np.prod(w.shape)) for w in layer.weights)
    assert parameters == 8 * (9 * 256 * 256 + 256) + (9 * 256 + 1) * (9 * 80 + 9 * 4)
    for weight in layer.weights:
        if weight.name == "kernel":
            assert weight.numpy().std() == pytest.approx(0.01, rel=0.02)
        else:
            expected = -np.log(99) if "class_logits" in weight.path else 0
            np.testing.assert_allclose(weight, np.full(weight.shape, expected), rtol=1e-6)


def test_levels_share_towers_and_towers_share_nothing(rng):
    layer, features = head(num_convs=2), pyramid(rng)
    same = dict.fromkeys(LEVELS, features["p3"])
    outputs = layer(same)
    for name in outputs:
        for level in LEVELS:
            np.testing.assert_array_equal(outputs[name][level], outputs[name]["p3"])
    before = outputs["box_deltas"]["p3"].numpy()
    for conv in layer.class_tower.convs:
        conv.conv.kernel.assign(conv.conv.kernel * 2)
    np.testing.assert_array_equal(layer(same)["box_deltas"]["p3"], before)


def test_tower_equals_convolutions_with_relu(rng):
    tower, x = built(Tower(3, 8, LEVELS), 8), pyramid(rng, 8)["p3"]
    y = x
    for conv in tower.convs:
        conv.conv.bias.assign(rng.normal(size=8))
        y = np.maximum(conv(y), 0)
    np.testing.assert_allclose(tower(x, level="p4"), y, rtol=1e-5)


@pytest.mark.parametrize("norm", [None, "frozen_bn", "bn_inference", "bn", "sync_bn", "gn"])
def test_norm_replaces_the_bias(norm):
    assert any(w.name == "bias" for w in built(Tower(2, 32, LEVELS, norm)).weights) == (norm is None)


def test_batch_statistics_of_levels_are_separate(rng):
    tower, features = built(Tower(2, 32, LEVELS, "bn")), pyramid(rng)
    assert len({w.path for w in tower.weights}) == len(tower.weights) == 2 + 4 * 2 * len(LEVELS)
    for conv in tower.convs:
        conv.conv.kernel.assign(rng.normal(0, 0.1, conv.conv.kernel.shape))
    means = {}
    for level in LEVELS[:2]:
        y = tower.convs[0](features[level]).numpy().reshape(-1, 32)
        tower(features[level], level=level, training=True)
        means[level] = 0.1 * y.mean(0)
    first = dict(zip(tower.norm_keys, tower.norms, strict=False))
    for level in LEVELS[:2]:
        np.testing.assert_allclose(first[level].moving_mean, means[level], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(first["p5"].moving_mean, np.zeros(32))


def test_each_level_uses_its_own_batch_norm(rng):
    tower, x = built(Tower(2, 32, LEVELS, "frozen_bn")), pyramid(rng)["p3"]
    before = {level: tower(x, level=level).numpy() for level in LEVELS}
    for norm in tower.norms:
        if norm.name.endswith("p4"):
            norm.beta.assign(norm.beta + 1)
    for level in LEVELS:
        assert np.array_equal(tower(x, level=level), before[level]) == (level != "p4")


def test_levels_share_group_norm(rng):
    tower = built(Tower(2, 32, LEVELS, "gn"))
    assert len(tower.weights) == 2 * (1 + 2)
    x = pyramid(rng)["p3"]
    np.testing.assert_array_equal(tower(x, level="p3"), tower(x, level="p5"))


@pytest.mark.parametrize("norm", [None, "frozen_bn", "bn_inference", "bn", "sync_bn", "gn"])
def test_gradients_reach_every_weight(rng, norm):
    layer = head(num_convs=2, norm=norm)
    with tf.GradientTape() as tape:
        outputs = layer(pyramid(rng), training=True)
        loss = tf.add_n([tf.reduce_sum(tf.square(x)) for x in tf.nest.flatten(outputs)])
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert all(g is not None and np.any(g) for g in gradients)


def test_norms_have_the_epsilon():
    layer = head(norm="gn", norm_epsilon=1e-3)
    assert {norm.epsilon for tower in (layer.class_tower, layer.box_tower) for norm in tower.norms} == {1e-3}


# -- FCOS


def fcos_head(num_convs=1, channels=32, **kwargs):
    return attached(FCOSHead(num_convs, **kwargs), num_anchors=1, channels=channels)


def raw(conv, tower, x, level, size):
    """Returns what a predictor says of a level, (B, h * w, size)."""
    return conv(tower(x, level=level)).numpy().reshape(len(x), -1, size)


@pytest.mark.parametrize("centerness_on_boxes", [True, False])
@pytest.mark.parametrize("level_scales", [True, False])
def test_fcos_predictions_equal_those_of_the_layers(rng, centerness_on_boxes, level_scales):
    layer = fcos_head(centerness_on_boxes=centerness_on_boxes, level_scales=level_scales)
    layer.box_distances.conv.kernel.assign(rng.normal(0, 0.1, layer.box_distances.conv.kernel.shape))
    scales = {level: 1.0 + i for i, level in enumerate(LEVELS)} if level_scales else dict.fromkeys(LEVELS, 1.0)
    for level, scale in layer.scales.items():
        assert float(scale.scale) == 1
        scale.scale.assign(scales[level])
    features = pyramid(rng)
    outputs = layer(features)
    assert list(outputs) == ["class_logits", "box_distances", "centerness"]
    tower = layer.box_tower if centerness_on_boxes else layer.class_tower
    for level, x in features.items():
        cells = x.shape[1] * x.shape[2]
        assert outputs["class_logits"][level].shape == (2, cells, 3)
        assert outputs["centerness"][level].shape == (2, cells)
        np.testing.assert_allclose(
            outputs["class_logits"][level], raw(layer.class_logits, layer.class_tower, x, level, 3), rtol=1e-5
        )
        distances = raw(layer.box_distances, layer.box_tower, x, level, 4) * scales[level]
        np.testing.assert_allclose(outputs["box_distances"][level], distances, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            outputs["centerness"][level], raw(layer.centerness, tower, x, level, 1)[..., 0], rtol=1e-4, atol=1e-6
        )


def test_only_classes_of_fcos_have_the_prior_probability():
    for weight in fcos_head(prior_probability=0.02).weights:
        if weight.name == "bias":
            expected = -np.log(49) if "class_logits" in weight.path else 0
            np.testing.assert_allclose(weight, np.full(weight.shape, expected), rtol=1e-6)


@pytest.mark.parametrize("use_bias,norm,expected", [(True, "gn", True), (False, "gn", False), (False, None, True)])
def test_towers_have_biases_if_asked_for_or_without_norm(use_bias, norm, expected):
    layer = fcos_head(2, norm=norm, use_bias=use_bias)
    assert all(conv.conv.use_bias == expected for tower in (layer.class_tower, layer.box_tower) for conv in tower.convs)


def test_last_convolutions_of_towers_can_be_deformable(rng):
    """Compares a new deformable convolution, with offsets of 0 and masks of 0.5, with half an ordinary one."""
    layer = fcos_head(2, norm=None, deform_last=True)
    offsets = sorted("/".join(w.path.split("/")[-4:]) for w in layer.weights if "offset" in w.path)
    assert offsets == [
        f"{tower}_tower/conv1/offset/{name}" for tower in ("box", "class") for name in ("bias", "kernel")
    ]
    x = pyramid(rng)["p3"]
    tower = layer.box_tower
    y = tf.nn.relu(tower.convs[0](x))
    expected = tf.nn.relu(tf.nn.conv2d(y, tower.convs[1].conv.kernel, 1, "SAME") / 2)
    np.testing.assert_allclose(tower(x, level="p3"), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "bn", "gn"])
def test_gradients_reach_every_weight_of_fcos(rng, norm):
    layer = fcos_head(2, norm=norm, level_scales=True, deform_last=True, use_bias=False)
    with tf.GradientTape() as tape:
        outputs = layer(pyramid(rng), training=True)
        loss = tf.add_n([tf.reduce_sum(tf.square(x)) for x in tf.nest.flatten(outputs)])
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        assert gradient is not None and np.any(gradient), variable.path
