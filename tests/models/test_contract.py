"""Tests the contract of all detectors. A new model adds a line to `models.MODELS` and must pass all of these."""

import functools
import re
from collections.abc import Mapping

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import (
    MODELS,
    NUM_KEYPOINTS,
    OBJECT_KEYS,
    SLOW,
    batch,
    on_plain_features,
    randomized,
    without_objects,
)

from kerasdet import ops
from kerasdet.geometry import rle
from kerasdet.inference import Detections
from kerasdet.layers import ResNet
from kerasdet.models import Preprocessing
from kerasdet.models.common import with_score_threshold

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
# rtmdet_ins and mask_keypoint_rcnn have their parts.
PARTS_OF_ANOTHER = ("rtmdet", "faster_rcnn", "mask_rcnn", "keypoint_rcnn")
PIXELWISE = Preprocessing(shortest=64, longest=200, kernel="bilinear")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in MODELS
        if name not in PARTS_OF_ANOTHER
    ],
)
def make(request):
    """Returns the factory of the model."""
    if request.param in ("retinanet", "mask_keypoint_rcnn"):  # a model of each kind keeps a ResNet
        return MODELS[request.param]
    return functools.partial(on_plain_features, request.param)


@pytest.fixture(scope="module")
def model(make):
    """Returns a model that tests must not change."""
    return randomized(make())


@pytest.fixture
def with_classes(model):
    """Skips tests that need classes and a score threshold, which proposal networks lack."""
    if model.num_classes is None:
        pytest.skip("the model has no classes")


@pytest.fixture(scope="module")
def trained(make):
    """Returns a model that has overfitted one batch, and its losses before and after."""
    keras.utils.set_random_seed(0)
    model = make(norm="bn")
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, 140)
    model.compile(optimizer=keras.optimizers.Adam(schedule, global_clipnorm=5.0))
    data = tf.data.Dataset.from_tensors(floating(batch()))
    first = model.evaluate(data, return_dict=True, verbose=0)
    model.fit(data.repeat(), steps_per_epoch=140, epochs=1, verbose=0, shuffle=False)
    return model, first, model.evaluate(data, return_dict=True, verbose=0)


def floating(data):
    """Returns the batch with pixels in floating point."""
    return {**data, "image": data["image"].astype(np.float32)}


def numpy(tree):
    return tf.nest.map_structure(np.asarray, tree)


def assert_same(actual, expected, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-4, **tolerance}
    tf.nest.assert_same_structure(actual, expected)
    if isinstance(actual, Mapping) and "keypoints" in actual and tolerance["atol"] > 0:
        # Heatmaps are resized to the box size in whole pixels, which rounding can change by one.
        actual, expected = dict(actual), dict(expected)
        np.testing.assert_allclose(actual.pop("keypoints"), expected.pop("keypoints"), atol=1.0)
    for x, y in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def inputs(data):
    return {name: data[name] for name in ("image", "image_size")}


def losses(model, data):
    outputs = model.forward(data, training=False)
    return numpy(model.compute_losses(outputs, model.compute_targets(outputs, data)))


def detections_of(model, data):
    return numpy(model.postprocess(model(inputs(data)), data["image_size"]))


def scaled(detections, factor):
    """Returns the detections in an image `factor` times as large."""
    result = {**detections, "boxes": detections["boxes"] * np.float32(factor)}
    if "keypoints" in detections:
        result["keypoints"] = detections["keypoints"] * np.float32([factor, factor, 1])
    if "mask_boxes" in detections:
        result["mask_boxes"] = detections["mask_boxes"] * np.float32(factor)
    return result


def by_level(outputs, name=""):
    """Yields the names and dicts of those outputs that have an entry for each level."""
    for key, value in outputs.items():
        if isinstance(value, Mapping):
            inner = any(isinstance(part, Mapping) for part in value.values())
            yield from by_level(value, key) if inner else [(key, value)]


def scores_layer(model):
    """Returns a part of the path of the layer that scores objects."""
    return "/objectness/" if model.num_classes is None else "/class_logits/"


# -- the network


def test_weights_exist_after_construction(model):
    assert model.built and model.weights
    count = len(model.weights)
    model(batch()["image"])
    assert len(model.weights) == count
    assert len({w.path for w in model.weights}) == count
    assert all(w.dtype == ("int64" if w.name == "step" else "float32") for w in model.weights)


def test_layers_start_with_different_values(make):
    """An initializer shared by layers gives all of them the same values."""
    kernels = {w.path: w.numpy() for w in make().trainable_weights if w.name == "kernel" and np.any(w)}
    assert len(kernels) > 10
    first = {}
    for path, kernel in kernels.items():
        values = kernel.ravel()[:20].tobytes()  # draws from one seed start alike in any shape
        assert values not in first, f"{path} starts like {first.get(values)}"
        first[values] = path


def test_image_without_size_has_no_padding(model):
    image = batch()["image"]
    sized = {"image": image, "image_size": np.int32([image.shape[1:3]] * 2)}
    expected = numpy(model(sized))
    assert_same(numpy(model(image)), expected)
    assert_same(numpy(model({"image": image})), expected)


def test_uint8_and_float_pixels_give_equal_outputs(model):
    data = inputs(batch())
    assert_same(numpy(model(floating(data))), numpy(model(data)))


def test_padding_pixels_do_not_change_outputs(model, rng):
    data = inputs(batch())
    garbage = rng.integers(0, 256, data["image"].shape, dtype=np.uint8)
    for index, (height, width) in enumerate(data["image_size"]):
        garbage[index, :height, :width] = data["image"][index, :height, :width]
    assert not np.array_equal(garbage, data["image"])
    assert_same(numpy(model({**data, "image": garbage})), numpy(model(data)), rtol=0, atol=0)


def test_outputs_are_keyed_by_level(model):
    found = list(by_level(model(inputs(batch()))))
    assert len(found) >= 3
    for name, levels in found:
        assert list(levels) == list(model.neck.levels), name
        assert all(value.dtype == tf.float32 for value in levels.values()), name


def test_images_of_a_batch_are_independent(model):
    data = inputs(batch())
    together = numpy(model.postprocess(model(data), data["image_size"]))
    for index in range(2):
        one = {name: value[index : index + 1] for name, value in data.items()}
        alone = numpy(model.postprocess(model(one), one["image_size"]))
        assert_same({k: v[0] for k, v in alone.items()}, {k: v[index] for k, v in together.items()}, atol=1e-2)


# -- detections


def assert_contract(detections, sizes, model):
    count, max_detections = len(sizes), model.postprocessing.max_detections
    assert set(detections) - set(model.branch_outputs) == {"boxes", "scores", "class_ids", "valid"}
    boxes, scores, class_ids, valid = (detections[name] for name in ("boxes", "scores", "class_ids", "valid"))
    assert boxes.shape == (count, max_detections, 4) and boxes.dtype == np.float32
    assert scores.shape == class_ids.shape == (count, max_detections)
    assert scores.dtype == np.float32 and class_ids.dtype == np.int32
    assert valid.shape == (count,) and valid.dtype == np.int32
    for image, (height, width) in enumerate(sizes):
        found = valid[image]
        assert 0 <= found <= max_detections
        assert (np.diff(scores[image]) <= 0).all()
        assert (scores[image, :found] > 0).all() and (scores[image, :found] <= 1).all()
        assert ((class_ids[image, :found] >= 0) & (class_ids[image, :found] < (model.num_classes or 1))).all()
        assert (class_ids[image, found:] == -1).all()
        assert not boxes[image, found:].any() and not scores[image, found:].any()
        y1, x1, y2, x2 = boxes[image, :found].T
        assert (y1 >= 0).all() and (x1 >= 0).all() and (y2 <= height).all() and (x2 <= width).all()
        assert (y2 > y1).all() and (x2 > x1).all()
    names = {branch.name for branch in getattr(model, "branches", ())}
    assert ("mask_probs" in detections, "keypoints" in detections) == (
        "mask_branch" in names,
        "keypoint_branch" in names,
    )
    padding = np.arange(max_detections) >= valid[:, None]
    if "mask_probs" in detections:
        probs = detections["mask_probs"]
        assert probs.shape[:2] == (count, max_detections) and probs.ndim == 4 and probs.dtype == np.float32
        assert (probs >= 0).all() and (probs <= 1).all() and not probs[padding].any()
    if "keypoints" in detections:
        keypoints = detections["keypoints"]
        assert keypoints.shape == (count, max_detections, NUM_KEYPOINTS, 3) and keypoints.dtype == np.float32
        assert np.isfinite(keypoints).all() and not keypoints[padding].any()
        places, boxes = keypoints[~padding][..., :2], boxes[~padding][:, None]
        assert (places >= boxes[..., :2] - 1).all() and (places <= boxes[..., 2:] + 1).all()


def test_detections_satisfy_the_contract(model):
    data = batch()
    detections = detections_of(model, data)
    assert_contract(detections, data["image_size"], model)
    assert (detections["valid"] > 2).all()
    classes = np.unique(detections["class_ids"][detections["class_ids"] >= 0])
    assert len(classes) > 1 or model.num_classes is None


def test_high_threshold_leaves_no_detections(with_classes, model):
    model = with_score_threshold(model, 0.9999)
    detections = detections_of(model, batch())
    assert_contract(detections, batch()["image_size"], model)
    assert not detections["valid"].any()


def test_score_threshold_and_max_detections_limit_detections(with_classes, model):
    reference = detections_of(model, batch())
    few = with_score_threshold(model, model.postprocessing.score_threshold)
    few.postprocessing.max_detections = 3
    assert_contract(detections_of(few, batch()), batch()["image_size"], few)
    threshold = float(np.median(reference["scores"][reference["class_ids"] >= 0]))
    strict = detections_of(with_score_threshold(model, threshold), batch())
    np.testing.assert_array_equal(strict["valid"], (reference["scores"] > threshold).sum(1))


def test_predict_equals_call_then_postprocess(model):
    data = batch()
    assert_same(model.predict(data, verbose=0), detections_of(model, data), atol=1e-2)
    bare = detections_of(model, {**data, "image_size": np.int32([[96, 128]] * 2)})
    assert_same(numpy(model.predict_on_batch(data["image"])), bare, atol=1e-2)


def test_predict_accepts_batches_of_different_sizes(model):
    if not model.branch_outputs:
        pytest.skip("masks and keypoints are what sizes may change; `detect` below takes boxes of all sizes")
    # Masks of the network's whole input are as large as it is, so that those of several sizes make no array.
    size = (96, 128) if "mask_boxes" in model.branch_outputs else (64, 64)
    small = {name: value[:1] for name, value in batch(1, size, ((64, 64), (40, 60))).items()}
    data = [inputs(batch()), inputs(small)]
    signature = {
        "image": tf.TensorSpec([None, None, None, 3], tf.uint8),
        "image_size": tf.TensorSpec([None, 2], tf.int32),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(data), output_signature=signature)
    predicted = model.predict(dataset, verbose=0)
    assert_contract(predicted, [*batch()["image_size"], *small["image_size"]], model)


# -- detect


def padded_detections(model, images, resize=None):
    """Returns the detections of `detect` with padding."""
    return numpy(model.detect_batch(model.preprocessing.batch(list(images), resize)))


def fields(detections):
    """Returns the arrays of `Detections` that are not None, by name."""
    names = ("boxes", "scores", "class_ids", "mask_probs", "mask_boxes", "keypoints")
    return {name: getattr(detections, name) for name in names if getattr(detections, name) is not None}


def test_detect_returns_detections_of_one_image_or_a_list_for_a_batch_or_list(model):
    images = batch()["image"]
    one = model.detect(images[0])
    assert isinstance(one, Detections) and len(one) > 0 and one.image_size == (96, 128)
    padded = padded_detections(model, images[:1])
    assert_same(fields(one), {name: padded[name][0, : len(one)] for name in fields(one)}, rtol=0, atol=0)
    assert set(fields(one)) | {"valid"} == set(padded)
    several = model.detect(images)
    assert isinstance(several, list) and len(several) == 2
    for other in (list(images), tf.constant(images), images.astype(np.float64)):
        for actual, expected in zip(model.detect(other), several, strict=True):
            assert_same(fields(actual), fields(expected))
    assert_same(fields(several[0]), fields(one), atol=1e-2)


def test_detections_of_mask_models_paste_and_encode_masks(model):
    one = model.detect(batch()["image"][0])
    assert one.mask_convention == model.mask_convention
    assert (one.mask_probs is not None) == (model.mask_convention is not None)
    if one.mask_probs is not None:
        assert one[:2].masks.shape == (2, 96, 128) and one[:2].masks.dtype == bool
        decoded = rle.decode(one[:2].encode_masks())
        np.testing.assert_array_equal(decoded, one[:2].masks)


def test_detect_accepts_images_of_different_sizes(model, rng):
    sizes = [(40, 60), (200, 100), (33, 31), (96, 128)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for resize in (None, False, (48, 90)):
        assert_contract(padded_detections(model, images, resize), sizes, model)
        assert [found.image_size for found in model.detect(images, resize=resize, batch_size=3)] == sizes


def test_detect_without_resizing_equals_call_on_padded_images(model, rng):
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((50, 70, 3), (64, 33, 3))]
    padded = np.zeros([2, 64, 96, 3], np.uint8)
    for index, image in enumerate(images):
        padded[index, : image.shape[0], : image.shape[1]] = image
    expected = detections_of(model, {"image": padded, "image_size": np.int32([[50, 70], [64, 33]])})
    assert_same(padded_detections(model, images, resize=False), expected, atol=1e-2)


def test_detect_batch_without_sizes_uses_whole_images(model):
    image = batch()["image"]
    bare = model.detect_batch({"image": image})
    assert_same(numpy(bare), padded_detections(model, image, resize=False), rtol=0, atol=0)


def test_detect_resizes_by_the_model_preprocessing_by_default(model):
    image = batch()["image"][0]
    rule = model.preprocessing
    expected = model.detect(image, resize=(rule.shortest, rule.longest))
    assert_same(fields(model.detect(image)), fields(expected))


def test_boxes_are_in_coordinates_of_the_input_image(make, rng, monkeypatch):
    """Repeating every pixel doubles the boxes, because resizing returns the original image. One trace serves all."""
    model = randomized(make(preprocessing=PIXELWISE))
    traced = []
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda *args: traced.append(1) or decode(*args))
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    double = image.repeat(2, 0).repeat(2, 1)
    tall = image.repeat(2, 0)
    small, large = (padded_detections(model, [each]) for each in (image, double))
    assert small["valid"][0] > 2
    assert_same(large, scaled(small, 2), atol=1e-2)
    assert_contract(padded_detections(model, [tall, image], resize=False), [(128, 96), (64, 96)], model)
    model.detect(rng.random((3, 33, 31, 3), dtype=np.float32) * 255)
    assert len(traced) == 1


def test_detect_uses_the_current_weights(model):
    image = batch()["image"][0]
    before = fields(model.detect(image))
    randomized(model, seed=1)
    other = fields(model.detect(image))
    randomized(model)
    assert not np.array_equal(other["boxes"], before["boxes"])
    assert_same(fields(model.detect(image)), before)


def test_graph_has_no_float64(model):
    """Allows one exception: the logarithm that assigns a region to a level."""
    sizes = tf.TensorSpec([None, 2], tf.int32)
    spec = {"image": tf.TensorSpec([None, None, None, 3]), "image_size": sizes, "original_size": sizes}
    graph = tf.function(model.detect_batch).get_concrete_function(spec).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert "DT_FLOAT" in str(graph)
    double = {node.op for node in nodes if any(a.type == tf.float64.as_datatype_enum for a in node.attr.values())}
    assert double <= ({"Const", "Cast", "Log", "RealDiv"} if hasattr(model, "rpn") and model.num_classes else set())


# -- losses


def test_losses_are_named_and_finite(model):
    values = losses(model, batch())
    assert set(values) < {metric.name for metric in model.metrics}
    assert all(value.shape == () and value.dtype == np.float32 and np.isfinite(value) for value in values.values())
    assert all(value > 0 for value in values.values())


def test_image_without_objects_has_finite_loss_and_trains_scores(model):
    """A background image has only negatives, so its loss must lower the scores."""
    data = without_objects(batch())
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = model.forward(data, training=True)
        values = model.compute_losses(outputs, model.compute_targets(outputs, data))
        total = tf.add_n(list(values.values()))
    assert np.isfinite(total) and float(total) > 0
    gradients = {v.path: g for v, g in zip(model.trainable_variables, tape.gradient(total, variables), strict=True)}
    assert all(g is None or np.isfinite(g).all() for g in gradients.values())
    assert any(scores_layer(model) in path and np.any(g) for path, g in gradients.items() if g is not None)


def test_losses_are_finite_if_half_of_a_batch_has_no_objects(model):
    data, empty = batch(), without_objects(batch())
    mixed = {name: np.concatenate([data[name][:1], empty[name][1:]]) for name in data}
    assert all(np.isfinite(value) for value in losses(model, mixed).values())


def test_zero_ground_truth_rows_equal_padding(model):
    data = without_objects(batch())
    none = {name: data[name][:, :0] for name in OBJECT_KEYS}
    assert_same(losses(model, {**data, **none}), losses(model, data))


def test_crowds_do_not_change_losses(model):
    data = batch()
    assert data["is_crowd"].any()
    gone = np.where(data["is_crowd"], -1, data["class_ids"])
    assert_same(losses(model, data), losses(model, {**data, "class_ids": np.int32(gone)}))
    as_object = losses(model, {**data, "is_crowd": np.zeros_like(data["is_crowd"])})
    assert any(abs(as_object[name] - value) > 1e-3 * value for name, value in losses(model, data).items())


def test_more_padding_rows_do_not_change_losses(model):
    data, empty = batch(), without_objects(batch())
    padded = {name: np.concatenate([data[name], empty[name]], 1) for name in OBJECT_KEYS}
    assert_same(losses(model, {**data, **padded}), losses(model, data))


def test_order_of_objects_does_not_change_losses(model):
    data = batch()
    turned = {name: data[name][:, ::-1] for name in OBJECT_KEYS}
    assert_same(losses(model, {**data, **turned}), losses(model, data))


# -- training


def test_fit_reduces_the_loss(trained):
    _, first, last = trained
    assert last["loss"] < 0.2 * first["loss"]


def test_overfitted_model_detects_its_batch(trained):
    """The best detections are the objects, with class, box, mask and keypoints.

    For proposal networks, NMS at an IoU of 0.7 also keeps neighbouring boxes, so objects may rank lower.
    """
    model, data = trained[0], batch()
    detections = detections_of(model, data)
    for image in range(2):
        objects = (data["class_ids"][image] >= 0) & ~data["is_crowd"][image]
        first = range(objects.sum())
        expected = {data["class_ids"][image, i]: i for i in np.flatnonzero(objects)}
        if model.num_classes is None:
            found = {
                class_id: max(range(20), key=lambda d: iou(detections["boxes"][image, d], data["boxes"][image, i]))
                for class_id, i in expected.items()
            }
        else:
            found = {detections["class_ids"][image, d]: d for d in first}
        assert found.keys() == expected.keys() and len({*found.values()}) == len(found)
        for class_id, i in expected.items():
            d = found[class_id]
            assert iou(detections["boxes"][image, d], data["boxes"][image, i]) > 0.9
            if "mask_probs" in detections:
                limit = 0.75 if "mask_boxes" in detections else 0.85  # cells of 8 pixels for objects of 40
                assert mask_iou(model, detections, data, image, d, i) > limit
            if "keypoints" in detections:
                labelled = data["keypoints"][image, i, :, 2] > 0
                error = detections["keypoints"][image, d, :, :2] - data["keypoints"][image, i, :, :2]
                assert np.abs(error[labelled]).max() < 2


def iou(box, other):
    height, width = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0)
    return height * width / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - height * width)


def mask_iou(model, detections, data, image, d, i):
    """Returns the IoU of a pasted mask with the object's mask, which is sampled at pixel centres."""
    height, width = data["image_size"][image]
    pasted = ops.paste_masks(
        detections["mask_probs"][image, d : d + 1],
        detections["mask_boxes" if "mask_boxes" in detections else "boxes"][image, d : d + 1],
        height,
        width,
        model.mask_convention,
    )
    assert pasted.shape == (1, height, width) and pasted.dtype == bool
    y1, x1, y2, x2 = data["boxes"][image, i]
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    inside = (y > y1) & (y < y2) & (x > x1) & (x < x2)
    crop, size = data["masks"][image, i], data["masks"].shape[-1]
    rows, columns = (
        (np.clip((a - low) / (high - low), 0, 0.999) * size).astype(int) for a, low, high in ((y, y1, y2), (x, x1, x2))
    )
    truth = inside & (crop[rows, columns] > 127)
    return (pasted[0] & truth).numpy().sum() / (pasted[0] | truth).numpy().sum()


def test_evaluate_returns_the_losses(trained):
    model, _, last = trained
    expected = losses(model, batch())
    assert set(last) == {"loss", *expected}
    assert_same({name: np.float32(last[name]) for name in expected}, expected, rtol=1e-3)
    assert last["loss"] == pytest.approx(sum(expected.values()), rel=1e-3)


def test_missing_is_crowd_means_no_crowds(make):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    data = batch()
    silent = {name: value for name, value in data.items() if name != "is_crowd"}
    none = {**data, "is_crowd": np.zeros_like(data["is_crowd"])}
    results = [model.test_on_batch(each, return_dict=True) for each in (silent, none, data)]
    assert results[0] == pytest.approx(results[1]) and results[0] != pytest.approx(results[2])
    assert np.isfinite(model.train_on_batch(silent, return_dict=True)["loss"])


def test_evaluation_does_not_change_weights(trained):
    model, *_ = trained
    before = [w.numpy() for w in model.weights]
    model.evaluate(tf.data.Dataset.from_tensors(floating(batch())), verbose=0)
    detections_of(model, batch())
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_training_changes_every_trainable_weight(trained, make):
    keras.utils.set_random_seed(0)
    untrained = make(norm="bn")
    model = trained[0]
    pairs = zip(untrained.trainable_variables, model.trainable_variables, strict=True)
    unchanged = [after.path for before, after in pairs if np.array_equal(before, after)]
    # Layers that one level has for itself learn boxes and masks only if objects are matched on that level.
    assert not [path for path in unchanged if not re.search(r"(box|kernel).*[/_]p\d/", path)], unchanged


def test_compile_does_not_enable_xla(make):
    model = make()
    model.compile(optimizer="sgd")
    assert not model.jit_compile


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_loss_raises_before_weights_change(trained, value):
    model, *_ = trained
    bias = next(w for w in model.trainable_weights if scores_layer(model) in w.path and w.name == "bias")
    good = bias.numpy()
    bias.assign(np.full(bias.shape, value))
    before = {w.path: w.numpy() for w in model.trainable_weights}
    iteration = int(model.optimizer.iterations)
    with pytest.raises(FloatingPointError) as error:
        model.fit(tf.data.Dataset.from_tensors(floating(batch())), verbose=0, shuffle=False)
    for weight in model.trainable_weights:
        np.testing.assert_array_equal(weight, before[weight.path])
    assert int(model.optimizer.iterations) == iteration
    bias.assign(good)
    message = str(error.value)
    assert f"is not finite at iteration {iteration} " in message and "\n" not in message
    assert all(f" {name} " in message for name in losses(model, batch()))
    assert "image ids 17 4242" in message


# -- files


def test_keras_file_restores_model_and_optimizer(trained, tmp_path):
    model, *_ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    data = batch()
    assert_same(numpy(loaded(inputs(data))), numpy(model(inputs(data))), rtol=0, atol=0)
    assert_same(losses(loaded, data), losses(model, data), rtol=0, atol=0)
    assert_same(detections_of(loaded, data), detections_of(model, data), rtol=0, atol=0)
    resized, expected = (each.preprocessing.batch(list(data["image"])) for each in (loaded, model))
    assert_same(numpy(resized), numpy(expected), rtol=0, atol=0)


def test_weights_file_restores_outputs(trained, make, tmp_path):
    model, *_ = trained
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(norm="bn")
    other.load_weights(tmp_path / "model.weights.h5")
    for weight, expected in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert_same(numpy(other(inputs(batch()))), numpy(model(inputs(batch()))), rtol=0, atol=0)


def test_keras_export_gives_equal_detections(model, tmp_path):
    if type(model).__name__ not in ("RetinaNet", "MaskRCNN"):
        pytest.skip("a one-stage and a two-stage model show how Keras exports; tests/export has files of all models")
    image = np.random.default_rng(3).uniform(0, 255, (2, 50, 70, 3)).astype(np.float32)
    model.export(tmp_path / "export", verbose=False)
    exported = tf.saved_model.load(tmp_path / "export")
    found = exported.serve(image)
    expected = padded_detections(model, image)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
    assert_same({name: np.asarray(value) for name, value in found.items()}, expected, atol=1e-3)
    with pytest.raises(ValueError, match="onnx"):
        model.export(tmp_path / "other", format="onnx")


# -- precision


def test_bfloat16_policy_gives_float32_outputs_and_close_losses(make, model):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = make()
    finally:
        keras.config.set_dtype_policy(policy)
    for weight, value in zip(half.weights, model.weights, strict=True):
        weight.assign(value)
    data = batch()
    for outputs in (half.forward(data, training=True), half(data, training=False)):
        predictions = {name: value for name, value in outputs.items() if name != "pyramid"}
        assert not any(value.dtype == tf.bfloat16 for value in tf.nest.flatten(predictions))
    assert_contract(detections_of(half, data), data["image_size"], half)
    expected = losses(model, data)
    for name, value in losses(half, data).items():
        assert value.dtype == np.float32 and value == pytest.approx(float(expected[name]), rel=0.1)
    half.compile(optimizer="sgd", run_eagerly=True)
    assert np.isfinite(half.train_on_batch(data, return_dict=True)["loss"])
    assert [weight.dtype for weight in half.weights] == [weight.dtype for weight in model.weights]


def test_non_finite_pixel_raises_before_weights_change(trained):
    model, *_ = trained
    before = [np.array(weight) for weight in model.weights]
    data = floating(batch())
    data["image"][0, 3, 4] = np.nan
    with pytest.raises(FloatingPointError, match=r"^A pixel is not finite at iteration"):
        model.fit(tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_wrong_number_of_class_names_raises(with_classes, make):
    with pytest.raises(ValueError, match=r"class_names has length 1 \(cat\): expected a list of 3 names"):
        make(class_names=["cat"])
    with pytest.raises(ValueError, match="class_names is the string 'cat'; expected a list of names"):
        make(class_names="cat")
    model = make()
    with pytest.raises(ValueError, match=r"class_names has length 2 \(cat, dog\): expected a list of 3"):
        model.class_names = ["cat", "dog"]


@pytest.mark.parametrize(
    "backbone,message",
    [
        ("resnet50", "backbone is 'resnet50': give a kerasdet.ResNet"),
        (keras.Sequential([keras.layers.Conv2D(4, 3)]), "backbone is a Sequential without `channels`: give"),
    ],
)
def test_invalid_backbone_raises(make, backbone, message):
    with pytest.raises(TypeError, match=message):
        make(backbone=backbone)


def test_backbone_without_the_necks_features_raises(make):
    with pytest.raises(
        ValueError, match=r"The neck merges .*, but the backbone ResNet lacks c3, c4: give ResNet out_features="
    ):
        make(backbone=ResNet(18, stages=(1, 1, 1, 1), width=8, out_features=("c2", "c5")))


def test_detect_accepts_a_thin_image(model):
    detections = model.detect(np.zeros((3, 900, 3), np.uint8))
    assert detections.image_size == (3, 900) and np.isfinite(detections.boxes).all()
