"""What every detector must do. A new model adds a line to `models.MODELS` and is held to all of this."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import MODELS, NUM_CLASSES, batch, randomized, without_objects

from kerasdet.models import Preprocessing

PIXELWISE = Preprocessing(shortest=64, longest=200, kernel="bilinear")


@pytest.fixture(scope="module", params=MODELS)
def make(request):
    """The model's factory."""
    return MODELS[request.param]


@pytest.fixture(scope="module")
def model(make):
    """One model for all tests that only look."""
    return randomized(make())


@pytest.fixture(scope="module")
def trained(make):
    """A model that has learnt one batch by heart, and the losses before and after."""
    keras.utils.set_random_seed(0)
    model = make(norm="bn")
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, 140)
    model.compile(optimizer=keras.optimizers.Adam(schedule, global_clipnorm=5.0))
    data = tf.data.Dataset.from_tensors(batch())
    first = model.evaluate(data, return_dict=True, verbose=0)
    model.fit(data.repeat(), steps_per_epoch=140, epochs=1, verbose=0, shuffle=False)
    return model, first, model.evaluate(data, return_dict=True, verbose=0)


def numpy(tree):
    return tf.nest.map_structure(np.asarray, tree)


def assert_same(actual, expected, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-4, **tolerance}
    tf.nest.assert_same_structure(actual, expected)
    for x, y in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def inputs(data):
    return {name: data[name] for name in ("image", "image_size")}


def losses(model, data):
    outputs = model(data, training=False)
    return numpy(model.compute_losses(outputs, model.compute_targets(outputs, data)))


def detections_of(model, data):
    return numpy(model.postprocess(model(inputs(data)), data["image_size"]))


# -- the network


def test_weights_exist_after_construction(model):
    assert model.built and model.weights
    count = len(model.weights)
    model(batch()["image"])
    assert len(model.weights) == count
    assert len({w.path for w in model.weights}) == count
    assert all(w.dtype == "float32" for w in model.weights)


def test_a_bare_image_is_one_without_padding(model):
    image = batch()["image"]
    sized = {"image": image, "image_size": np.int32([image.shape[1:3]] * 2)}
    expected = numpy(model(sized))
    assert_same(numpy(model(image)), expected)
    assert_same(numpy(model({"image": image})), expected)


def test_uint8_and_float_are_one(model):
    data = inputs(batch())
    assert_same(numpy(model({**data, "image": data["image"].astype(np.float32)})), numpy(model(data)))


def test_what_is_in_the_padding_does_not_matter(model, rng):
    data = inputs(batch())
    garbage = rng.integers(0, 256, data["image"].shape, dtype=np.uint8)
    for index, (height, width) in enumerate(data["image_size"]):
        garbage[index, :height, :width] = data["image"][index, :height, :width]
    assert not np.array_equal(garbage, data["image"])
    assert_same(numpy(model({**data, "image": garbage})), numpy(model(data)), rtol=0, atol=0)


def test_outputs_are_keyed_by_level(model):
    for name, levels in model(inputs(batch())).items():
        assert list(levels) == list(model.neck.levels), name
        assert all(value.dtype == tf.float32 for value in levels.values()), name


def test_images_of_a_batch_are_apart(model):
    data = inputs(batch())
    together = numpy(model.postprocess(model(data), data["image_size"]))
    for index in range(2):
        one = {name: value[index : index + 1] for name, value in data.items()}
        alone = numpy(model.postprocess(model(one), one["image_size"]))
        assert_same({k: v[0] for k, v in alone.items()}, {k: v[index] for k, v in together.items()}, atol=1e-2)


# -- detections


def assert_contract(detections, sizes, max_detections, num_classes=NUM_CLASSES):
    count = len(sizes)
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
        assert ((class_ids[image, :found] >= 0) & (class_ids[image, :found] < num_classes)).all()
        assert (class_ids[image, found:] == -1).all()
        assert not boxes[image, found:].any() and not scores[image, found:].any()
        y1, x1, y2, x2 = boxes[image, :found].T
        assert (y1 >= 0).all() and (x1 >= 0).all() and (y2 <= height).all() and (x2 <= width).all()
        assert (y2 > y1).all() and (x2 > x1).all()


def test_detections(model):
    data = batch()
    detections = detections_of(model, data)
    assert_contract(detections, data["image_size"], model.max_detections)
    assert (detections["valid"] > 2).all()
    assert len(np.unique(detections["class_ids"][detections["class_ids"] >= 0])) > 1


def test_finding_nothing(make):
    model = randomized(make(score_threshold=0.9999))
    detections = detections_of(model, batch())
    assert_contract(detections, batch()["image_size"], model.max_detections)
    assert not detections["valid"].any()


def test_score_threshold_and_max_detections(model, make):
    reference = detections_of(model, batch())
    few = randomized(make(max_detections=3))
    assert_contract(detections_of(few, batch()), batch()["image_size"], 3)
    threshold = float(np.median(reference["scores"][reference["class_ids"] >= 0]))
    strict = detections_of(randomized(make(score_threshold=threshold)), batch())
    np.testing.assert_array_equal(strict["valid"], (reference["scores"] > threshold).sum(1))


def test_predict_is_postprocess_of_call(model):
    data = batch()
    assert_same(model.predict(data, verbose=0), detections_of(model, data), atol=1e-2)
    assert_same(numpy(model.predict_on_batch(inputs(data))), detections_of(model, data), atol=1e-2)
    bare = detections_of(model, {**data, "image_size": np.int32([[96, 128]] * 2)})
    assert_same(numpy(model.predict_on_batch(data["image"])), bare, atol=1e-2)


def test_predict_over_batches_of_other_sizes(model):
    small = {name: value[:1] for name, value in batch(1, (64, 64), ((64, 64), (40, 60))).items()}
    data = [inputs(batch()), inputs(small)]
    signature = {
        "image": tf.TensorSpec([None, None, None, 3], tf.uint8),
        "image_size": tf.TensorSpec([None, 2], tf.int32),
    }
    dataset = tf.data.Dataset.from_generator(lambda: iter(data), output_signature=signature)
    predicted = model.predict(dataset, verbose=0)
    assert_contract(predicted, [*batch()["image_size"], *small["image_size"]], model.max_detections)


# -- detect


def test_detect_one_image_a_list_and_a_batch(model):
    images = batch()["image"]
    one = model.detect(images[0])
    assert all(isinstance(value, np.ndarray) for value in one.values())
    assert_contract(one, [(96, 128)], model.max_detections)
    assert one["valid"][0] > 0
    several = model.detect(images)
    assert_same(model.detect(list(images)), several)
    assert_same(model.detect(tf.constant(images)), several)
    assert_same(model.detect(images.astype(np.float64)), several)
    assert_same({name: value[:1] for name, value in several.items()}, one, atol=1e-2)


def test_detect_images_of_many_sizes(model, rng):
    sizes = [(40, 60), (200, 100), (33, 31), (96, 128)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for resize in (None, False, (48, 90)):
        assert_contract(model.detect(images, resize=resize), sizes, model.max_detections)


def test_detect_without_resizing_is_predict_on_padded_images(model, rng):
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((50, 70, 3), (64, 33, 3))]
    padded = np.zeros([2, 64, 96, 3], np.uint8)
    for index, image in enumerate(images):
        padded[index, : image.shape[0], : image.shape[1]] = image
    expected = model.predict_on_batch({"image": padded, "image_size": np.int32([[50, 70], [64, 33]])})
    assert_same(model.detect(images, resize=False), numpy(expected), atol=1e-2)


def test_the_models_own_rule_is_the_default(model):
    image = batch()["image"][0]
    rule = model.preprocessing
    assert_same(model.detect(image), model.detect(image, resize=(rule.shortest, rule.longest)))


def test_boxes_are_in_the_coordinates_of_the_image_that_came_in(make, rng):
    """An image with every pixel repeated, sampled back to its size, is the image; its boxes are larger."""
    model = randomized(make(preprocessing=PIXELWISE))
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    double = image.repeat(2, 0).repeat(2, 1)
    tall = image.repeat(2, 0)
    small, large = model.detect(image), model.detect(double)
    assert small["valid"][0] > 2
    assert_same(large, {**small, "boxes": small["boxes"] * 2}, atol=1e-2)
    stretched = model.detect([tall, image], resize=False)
    assert_contract(stretched, [(128, 96), (64, 96)], model.max_detections)


@pytest.mark.parametrize(
    "images,shape",
    [
        (np.zeros([32, 32]), "(32, 32)"),
        (np.zeros([32, 32, 4]), "(32, 32, 4)"),
        (np.zeros([32, 32, 1]), "(32, 32, 1)"),
        (np.zeros([2, 32, 32, 1]), "(32, 32, 1)"),
        (np.zeros([0, 32, 3]), "(0, 32, 3)"),
        ([np.zeros([8, 8, 3]), np.zeros([8, 8])], "Image 1 has shape (8, 8)"),
        ([], "got none"),
        (np.zeros([0, 32, 32, 3]), "got none"),
    ],
)
def test_what_is_no_image_is_refused(model, images, shape):
    with pytest.raises(ValueError) as error:
        model.detect(images)
    assert shape in str(error.value)


def test_detect_does_not_retrace(model, rng):
    for count, size in ((1, (40, 50)), (2, (64, 90)), (3, (33, 31))):
        model.detect(rng.integers(0, 256, (count, *size, 3), dtype=np.uint8), resize=False)
        model.detect(rng.random((count, *size, 3), dtype=np.float32) * 255)
    assert model._detect_resized.experimental_get_tracing_count() == 1


def test_detect_uses_the_weights_of_the_moment(model):
    image = batch()["image"][0]
    before = model.detect(image)
    randomized(model, seed=1)
    other = model.detect(image)
    randomized(model)
    assert not np.array_equal(other["boxes"], before["boxes"])
    assert_same(model.detect(image), before)


def test_nothing_is_computed_in_double_precision(model):
    graph = str(model._detect_resized.get_concrete_function().graph.as_graph_def())
    assert "DT_FLOAT" in graph and "DT_DOUBLE" not in graph


# -- losses


def test_losses_are_named_and_finite(model):
    values = losses(model, batch())
    assert set(values) < {metric.name for metric in model.metrics}
    assert all(value.shape == () and value.dtype == np.float32 and np.isfinite(value) for value in values.values())
    assert all(value > 0 for value in values.values())


def test_an_image_without_objects_teaches(model):
    """Its loss is finite and pulls the scores down, which is all that a background image can say."""
    data = without_objects(batch())
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = model(data, training=True)
        values = model.compute_losses(outputs, model.compute_targets(outputs, data))
        total = tf.add_n(list(values.values()))
    assert np.isfinite(total) and float(total) > 0
    gradients = {v.path: g for v, g in zip(model.trainable_variables, tape.gradient(total, variables), strict=True)}
    assert all(g is None or np.isfinite(g).all() for g in gradients.values())
    assert any("class_logits" in path and np.any(g) for path, g in gradients.items() if g is not None)


def test_half_of_a_batch_without_objects(model):
    data, empty = batch(), without_objects(batch())
    mixed = {name: np.concatenate([data[name][:1], empty[name][1:]]) for name in data}
    assert all(np.isfinite(value) for value in losses(model, mixed).values())


def test_no_ground_truth_rows_at_all(model):
    data = without_objects(batch())
    none = {name: data[name][:, :0] for name in ("boxes", "class_ids", "is_crowd")}
    assert_same(losses(model, {**data, **none}), losses(model, data))


def test_crowds_are_not_trained_on(model):
    data = batch()
    assert data["is_crowd"].any()
    gone = np.where(data["is_crowd"], -1, data["class_ids"])
    assert_same(losses(model, data), losses(model, {**data, "class_ids": np.int32(gone)}))
    as_object = losses(model, {**data, "is_crowd": np.zeros_like(data["is_crowd"])})
    assert any(abs(as_object[name] - value) > 1e-3 * value for name, value in losses(model, data).items())


def test_more_rows_of_padding_change_nothing(model):
    data = batch()
    padded = {
        **data,
        "boxes": np.pad(data["boxes"], [(0, 0), (0, 4), (0, 0)]),
        "class_ids": np.pad(data["class_ids"], [(0, 0), (0, 4)], constant_values=-1),
        "is_crowd": np.pad(data["is_crowd"], [(0, 0), (0, 4)]),
    }
    assert_same(losses(model, padded), losses(model, data))


def test_the_order_of_the_objects_does_not_matter(model):
    data = batch()
    turned = {name: data[name][:, ::-1] for name in ("boxes", "class_ids", "is_crowd")}
    assert_same(losses(model, {**data, **turned}), losses(model, data))


# -- training


def test_fit_reduces_the_loss(trained):
    _, first, last = trained
    assert last["loss"] < 0.2 * first["loss"]


def test_what_was_learnt_by_heart_is_found(trained):
    """AP 1.0: the objects come first, each with its class and an IoU above 0.9."""
    model, data = trained[0], batch()
    detections = detections_of(model, data)
    for image in range(2):
        objects = (data["class_ids"][image] >= 0) & ~data["is_crowd"][image]
        first = slice(objects.sum())
        best = dict(zip(detections["class_ids"][image, first], detections["boxes"][image, first], strict=True))
        expected = dict(zip(data["class_ids"][image][objects], data["boxes"][image][objects], strict=True))
        assert best.keys() == expected.keys()
        for class_id, box in expected.items():
            height, width = np.minimum(box[2:], best[class_id][2:]) - np.maximum(box[:2], best[class_id][:2])
            union = np.prod(box[2:] - box[:2]) + np.prod(best[class_id][2:] - best[class_id][:2]) - height * width
            assert height > 0 and height * width / union > 0.9


def test_evaluate_returns_the_losses(trained):
    model, _, last = trained
    expected = losses(model, batch())
    assert set(last) == {"loss", *expected}
    assert_same({name: np.float32(last[name]) for name in expected}, expected, rtol=1e-3)
    assert last["loss"] == pytest.approx(sum(expected.values()), rel=1e-3)


def test_evaluation_changes_nothing(trained):
    model, *_ = trained
    before = [w.numpy() for w in model.weights]
    model.evaluate(tf.data.Dataset.from_tensors(batch()), verbose=0)
    model.predict(batch(), verbose=0)
    model.detect(batch()["image"])
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_training_moves_every_trainable_weight(trained, make):
    keras.utils.set_random_seed(0)
    untrained = make(norm="bn")
    model = trained[0]
    for before, after in zip(untrained.trainable_variables, model.trainable_variables, strict=True):
        assert not np.array_equal(before, after), after.path


def test_xla_is_off(make):
    model = make()
    model.compile(optimizer="sgd")
    assert not model.jit_compile


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights(trained, value):
    model, *_ = trained
    bias = next(w for w in model.trainable_weights if "class_logits" in w.path and w.name == "bias")
    good = bias.numpy()
    bias.assign(np.full(bias.shape, value))
    before = {w.path: w.numpy() for w in model.trainable_weights}
    iteration = int(model.optimizer.iterations)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        model.fit(tf.data.Dataset.from_tensors(batch()), verbose=0, shuffle=False)
    for weight in model.trainable_weights:
        np.testing.assert_array_equal(weight, before[weight.path])
    assert int(model.optimizer.iterations) == iteration
    bias.assign(good)
    message = str(error.value)
    assert "is not finite at iteration" in message and f"[{iteration}]" in message
    assert all(f"[{name}]" in message for name in losses(model, batch()))
    assert "[17 4242]" in message


def test_one_step_without_objects_is_finite(make):
    model = make()
    model.compile(optimizer="adam", run_eagerly=True)
    result = model.train_on_batch(without_objects(batch()), return_dict=True)
    assert all(np.isfinite(value) for value in result.values())
    assert all(np.isfinite(w).all() for w in model.weights)


# -- files


def test_keras_file(trained, tmp_path):
    model, *_ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    data = batch()
    assert_same(numpy(loaded(inputs(data))), numpy(model(inputs(data))), rtol=0, atol=0)
    assert_same(losses(loaded, data), losses(model, data), rtol=0, atol=0)
    assert_same(loaded.detect(data["image"]), model.detect(data["image"]), rtol=0, atol=0)


def test_weights_file(trained, make, tmp_path):
    model, *_ = trained
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(norm="bn")
    other.load_weights(tmp_path / "model.weights.h5")
    for weight, expected in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert_same(numpy(other(inputs(batch()))), numpy(model(inputs(batch()))), rtol=0, atol=0)


def test_keras_export(model, tmp_path):
    image = np.random.default_rng(3).uniform(0, 255, (2, 50, 70, 3)).astype(np.float32)
    model.export(tmp_path / "export", verbose=False)
    exported = tf.saved_model.load(tmp_path / "export")
    found = exported.serve(image)
    expected = model.detect(image)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-3)
    np.testing.assert_array_equal(found["class_ids"], expected["class_ids"])
    with pytest.raises(ValueError, match="onnx"):
        model.export(tmp_path / "other", format="onnx")


# -- precision


def test_under_a_bfloat16_policy(make, model):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = make()
    finally:
        keras.config.set_dtype_policy(policy)
    for weight, value in zip(half.weights, model.weights, strict=True):
        weight.assign(value)
    data = batch()
    for outputs in (half(data, training=True), half(data, training=False)):
        assert all(value.dtype == tf.float32 for value in tf.nest.flatten(outputs))
    assert_contract(detections_of(half, data), data["image_size"], half.max_detections)
    expected = losses(model, data)
    for name, value in losses(half, data).items():
        assert value.dtype == np.float32 and value == pytest.approx(float(expected[name]), rel=0.1)
    half.compile(optimizer="sgd", run_eagerly=True)
    assert np.isfinite(half.train_on_batch(data, return_dict=True)["loss"])
    assert all(weight.dtype == "float32" for weight in half.weights)


def test_a_pixel_that_is_not_finite_spoils_no_running_average(make):
    model = make(norm="bn")
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    before = [np.array(weight) for weight in model.weights]
    data = batch()
    data["image"] = data["image"].astype(np.float32)
    data["image"][0, 3, 4] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="A pixel is not finite at iteration"):
        model.fit(tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_as_many_names_as_classes(make):
    with pytest.raises(ValueError, match="3 classes and 1 class names: cat"):
        make(class_names=["cat"])


def test_a_thin_image_is_detected_in(model):
    detections = model.detect(np.zeros((3, 900, 3), np.uint8))
    assert np.isfinite(detections["boxes"]).all()
