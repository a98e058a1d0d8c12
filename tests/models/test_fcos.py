import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import NUM_CLASSES, batch, fcos, randomized, without_objects
from models.test_retinanet import flat, numpy_focal, numpy_giou, scalar_iou, sigmoid

from kerasdet import FCOS, FPN
from kerasdet.errors import UserError
from kerasdet.geometry.anchors import AnchorGenerator
from kerasdet.geometry.coders import DistanceCoder
from kerasdet.geometry.matching import IGNORE, NEGATIVE, FCOSMatcher
from kerasdet.layers import ConvTop, FCOSHead
from kerasdet.losses import FocalLoss, GIoULoss, IoULoss
from kerasdet.models import Centerness
from kerasdet.models.common import LossNormalizer
from kerasdet.models.postprocess import Postprocessing

BOX_LOSSES = {"giou": GIoULoss, "iou": IoULoss, "linear_iou": lambda **options: IoULoss(linear=True, **options)}


@pytest.fixture(scope="module")
def model():
    return randomized(fcos())


@pytest.fixture(scope="module")
def outputs(model):
    """Returns the outputs of a network that predicts boxes of a few strides around every point."""
    rng = np.random.default_rng(3)
    found = model(batch())
    distances = {
        level: tf.constant(rng.uniform(0.2, 4, x.shape).astype(np.float32))
        for level, x in found["box_distances"].items()
    }
    return {**found, "box_distances": distances}


def sibling(model, **kwargs):
    """Makes a model that shares the network of `model` and differs in the given parts."""
    names = ("backbone", "neck", "anchors", "head", "preprocessing")
    return FCOS(NUM_CLASSES, **{**{name: getattr(model, name) for name in names}, **kwargs})


def numpy_boxes(distances, squares, normalize=True):
    center = (squares[..., :2] + squares[..., 2:]) / 2
    if normalize:
        distances = distances * (squares[..., 2:3] - squares[..., :1])
    return np.concatenate([center - distances[..., :2], center + distances[..., 2:]], -1)


# -- targets


def test_targets_follow_matched_objects(model, outputs):
    data = batch()
    targets = {name: value.numpy() for name, value in model.compute_targets(outputs, data).items()}
    squares = flat(outputs, "anchors", 0)
    matched = targets["matched_gt"]
    assert matched.shape == targets["class_ids"].shape == targets["centerness"].shape == (2, len(squares))
    assert {NEGATIVE, 0, 1, 2} == set(matched[0]) and {NEGATIVE, 0} == set(matched[1])
    for image in range(2):
        positive = matched[image] >= 0
        rows = matched[image][positive]
        np.testing.assert_array_equal(targets["class_ids"][image][positive], data["class_ids"][image][rows])
        np.testing.assert_array_equal(targets["boxes"][image][positive], data["boxes"][image][rows])
        np.testing.assert_array_equal(targets["boxes"][image][~positive], squares[~positive])
        assert (targets["class_ids"][image][~positive] == -1).all()
        center = (squares[positive, :2] + squares[positive, 2:]) / 2
        before, after = center - data["boxes"][image][rows, :2], data["boxes"][image][rows, 2:] - center
        expected = np.sqrt((np.minimum(before, after) / np.maximum(before, after)).prod(-1))
        np.testing.assert_allclose(targets["centerness"][image][positive], expected, rtol=1e-5)


@pytest.mark.parametrize("ranges,level", [(((0, 1e8), *[(0, 0)] * 4), 0), (((0, 0), (0, 1e8), *[(0, 0)] * 3), 1)])
def test_each_level_matches_objects_of_its_range(model, outputs, ranges, level):
    rule = sibling(model, matcher=FCOSMatcher(ranges, center_radius=None))
    matched = rule.compute_targets(outputs, batch())["matched_gt"].numpy()
    counts = [len(anchors) for anchors in outputs["anchors"].values()]
    per_level = [(part >= 0).sum() for part in np.split(matched, np.cumsum(counts)[:-1], axis=1)]
    assert per_level[level] > 0 and sum(per_level) == per_level[level]


def test_center_sampling_reduces_positive_points(model, outputs):
    counts = [
        np.sum(
            sibling(model, matcher=FCOSMatcher(center_radius=radius)).compute_targets(outputs, batch())["matched_gt"]
            >= 0
        )
        for radius in (None, 1.5, 0.8)
    ]
    assert counts[0] > counts[1] > counts[2] > 0


# -- losses


@pytest.mark.parametrize("normalizer", ["ema", "batch", "image"])
@pytest.mark.parametrize("weights_boxes", [False, True])
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_losses_equal_numpy(model, outputs, normalizer, weights_boxes, box_loss):
    rule = sibling(
        model,
        normalizer=LossNormalizer(normalizer, momentum=0.75, start=40.0),
        class_loss=FocalLoss(0.3, 1.5, weight=2.0),
        box_loss=BOX_LOSSES[box_loss](weight=0.5),
        centerness=Centerness(loss_weight=3.0, weights_boxes=weights_boxes),
    )
    targets = rule.compute_targets(outputs, batch())
    losses = {name: float(value) for name, value in rule.compute_losses(outputs, targets).items()}
    assert list(losses) == ["class_loss", "box_loss", "centerness_loss"]

    positive = targets["matched_gt"].numpy() >= 0
    per_image = positive.sum(1, keepdims=True)
    assert (per_image > 0).all() and per_image[0] != per_image[1]
    divisor = {
        "ema": 0.75 * 40 + 0.25 * per_image.sum(),
        "batch": per_image.sum(),
        "image": per_image * 2,
    }[normalizer]
    one_hot = targets["class_ids"].numpy()[..., None] == np.arange(NUM_CLASSES)
    focal = numpy_focal(flat(outputs, "class_logits", 1), one_hot, 0.3, 1.5).sum(-1)
    assert losses["class_loss"] == pytest.approx(2 * np.sum(focal / divisor), rel=1e-4)

    boxes = numpy_boxes(flat(outputs, "box_distances", 1).astype(float), flat(outputs, "anchors", 0))
    wanted = targets["boxes"].numpy()
    overlap = np.array(
        [[scalar_iou(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(boxes, wanted, strict=True)]
    )
    each = {
        "giou": 1 - numpy_giou(boxes, wanted),
        "iou": -np.log(np.maximum(overlap, 1e-6)),
        "linear_iou": 1 - overlap,
    }[box_loss]
    centerness = targets["centerness"].numpy()
    weights = centerness / np.sum(centerness * positive) if weights_boxes else 1 / divisor
    assert losses["box_loss"] == pytest.approx(0.5 * np.sum(each * positive * weights), rel=1e-4)

    p = sigmoid(flat(outputs, "centerness", 1).astype(float))
    entropy = -centerness * np.log(p) - (1 - centerness) * np.log(1 - p)
    assert losses["centerness_loss"] == pytest.approx(3 * np.sum(entropy * positive / divisor), rel=1e-4)


@pytest.mark.parametrize("weights_boxes", [False, True])
@pytest.mark.parametrize("normalizer,divisor", [("ema", 0.9 * 300 + 0.1), ("batch", 1), ("image", 2)])
def test_box_losses_are_zero_without_objects(model, outputs, normalizer, divisor, weights_boxes):
    loss_normalizer = LossNormalizer(normalizer, start=300.0)
    rule = sibling(model, normalizer=loss_normalizer, centerness=Centerness(weights_boxes=weights_boxes))
    losses = rule.compute_losses(outputs, rule.compute_targets(outputs, without_objects(batch())))
    focal = numpy_focal(flat(outputs, "class_logits", 1), np.zeros(1), 0.25, 2)
    assert float(losses["class_loss"]) == pytest.approx(focal.sum() / divisor, rel=1e-4)
    assert float(losses["box_loss"]) == float(losses["centerness_loss"]) == 0


def test_only_positives_have_gradients_of_box_and_centerness_losses(model, outputs):
    targets = model.compute_targets(outputs, batch())
    distances, logits = (tf.concat(list(outputs[name].values()), 1) for name in ("box_distances", "centerness"))
    with tf.GradientTape() as tape:
        tape.watch([distances, logits])
        losses = model.compute_losses(
            {**outputs, "box_distances": {"all": distances}, "centerness": {"all": logits}}, targets
        )
        total = losses["box_loss"] + losses["centerness_loss"]
    positive = targets["matched_gt"].numpy() >= 0
    of_distances, of_logits = (gradient.numpy() for gradient in tape.gradient(total, [distances, logits]))
    np.testing.assert_array_equal(of_distances.any(-1), positive)
    np.testing.assert_array_equal(of_logits != 0, positive)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("normalize", [True, False])
def test_exact_box_has_zero_loss(model, outputs, box_loss, normalize):
    rule = sibling(model, box_loss=BOX_LOSSES[box_loss](), coder=DistanceCoder(normalize))
    targets = rule.compute_targets(outputs, batch())
    distances = rule.coder.encode(targets["boxes"], tf.concat(list(outputs["anchors"].values()), 0))
    losses = rule.compute_losses({**outputs, "box_distances": {"all": distances}}, targets)
    assert float(losses["box_loss"]) == pytest.approx(0, abs=1e-5)


def test_only_training_updates_the_running_mean():
    model = fcos(normalizer=LossNormalizer(momentum=0.8, start=300.0))
    model.compile(optimizer="sgd", run_eagerly=True)
    data = batch()
    positives = int(np.sum(model.compute_targets(model(data), data)["matched_gt"] >= 0))
    model.evaluate(tf.data.Dataset.from_tensors(data), verbose=0)
    assert float(model.mean_positives) == 300
    model.train_on_batch(data)
    assert float(model.mean_positives) == pytest.approx(0.8 * 300 + 0.2 * positives)


# -- detections


def scalar_postprocess(model, outputs, image, size):
    """Computes one image's detections as (box, score, class id) by loops and full sorts."""
    rule, convention = model.postprocessing, model.centerness.score_convention
    found = []
    limit = np.array([*size, *size])
    for level, squares in outputs["anchors"].items():
        logits = np.asarray(outputs["class_logits"][level])[image].astype(float)
        centered = sigmoid(np.asarray(outputs["centerness"][level])[image].astype(float))
        distances = np.asarray(outputs["box_distances"][level])[image].astype(float)
        boxes = numpy_boxes(distances, np.asarray(squares), model.coder.normalize)
        pairs = []
        for point, class_id in np.ndindex(*logits.shape):
            probability = sigmoid(logits[point, class_id])
            if not rule.multi_label and class_id != logits[point].argmax():
                continue
            rank = np.sqrt(probability * centered[point]) if convention == "sqrt" else probability
            score = rank if convention == "sqrt" else probability * centered[point]
            pairs.append((rank, score, boxes[point], class_id))
        for rank, score, box, class_id in sorted(pairs, key=lambda pair: -pair[0])[: rule.pre_nms_top_k]:
            clipped = np.clip(box, 0, limit)
            size_of_box = (clipped[2:] - clipped[:2]).min()
            if rule.empty_boxes == "drop_before_nms" and size_of_box <= 0:
                continue
            if rank > rule.score_threshold and (rule.min_size is None or size_of_box >= rule.min_size):
                found.append((score, clipped if rule.clip_before_nms else box, class_id))
    kept = []
    for score, box, class_id in sorted(found, key=lambda pair: -pair[0]):
        if all(other != class_id or scalar_iou(box, rival) <= rule.nms_threshold for _, rival, other in kept):
            kept.append((score, box, class_id))
    kept = [(np.clip(box, 0, limit), score, class_id) for score, box, class_id in kept[: rule.max_detections]]
    return [d for d in kept if rule.empty_boxes != "drop_after_nms" or (d[0][2:] > d[0][:2]).all()]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("score_convention", ["sqrt", "product"])
@pytest.mark.parametrize(
    "options",
    [
        {"pre_nms_top_k": 15, "score_threshold": 0.3, "max_detections": 100},
        {
            "score_threshold": 0.05,
            "max_detections": 12,
            "nms_threshold": 0.2,
            "clip_before_nms": True,
            "empty_boxes": "keep",
        },
        {"score_threshold": 0.1, "max_detections": 40, "multi_label": False, "min_size": 10.0},
        {"score_threshold": 0.1, "max_detections": 100, "clip_before_nms": True, "empty_boxes": "drop_before_nms"},
        {"pre_nms_top_k": 40, "score_threshold": 0.9999, "max_detections": 5},
    ],
    ids=str,
)
def test_postprocess_equals_scalar_loops(model, outputs, rng, options, score_convention, normalize):
    postprocessing = Postprocessing(**{"nms_threshold": 0.6, **options})
    rule = sibling(
        model,
        centerness=Centerness(score_convention=score_convention),
        coder=DistanceCoder(normalize),
        postprocessing=postprocessing,
    )
    shapes = {level: x.shape for level, x in outputs["class_logits"].items()}
    scale = 2 if normalize else 20
    outputs = {
        **outputs,
        "class_logits": {k: rng.normal(-2, 2, shape).astype(np.float32) for k, shape in shapes.items()},
        "centerness": {k: rng.normal(0, 2, shape[:2]).astype(np.float32) for k, shape in shapes.items()},
        "box_distances": {
            k: np.maximum(rng.normal(scale, scale, (*shape[:2], 4)), 0).astype(np.float32)
            for k, shape in shapes.items()
        },
    }
    sizes = batch()["image_size"]
    detections = {name: x.numpy() for name, x in rule.postprocess(outputs, sizes).items()}
    for image, size in enumerate(sizes):
        expected = scalar_postprocess(rule, outputs, image, size)
        count = len(expected)
        assert detections["valid"][image] == count
        for index, name in enumerate(("boxes", "scores", "class_ids")):
            values = np.array([d[index] for d in expected]).reshape(detections[name][image, :count].shape)
            np.testing.assert_allclose(detections[name][image, :count], values, atol=1e-3)
    assert (detections["valid"] > 0).all() == (options["score_threshold"] < 0.99)


# -- construction


@pytest.mark.parametrize("head_norm", [None, "bn", "gn", "frozen_bn"])
@pytest.mark.parametrize(
    "options",
    [
        {"level_scales": True, "centerness_on_boxes": False},
        {"deform_last": True, "use_bias": False, "level_scales": True},
    ],
    ids=["plain", "deformable"],
)
def test_every_head_weight_gets_a_gradient(head_norm, options):
    keras.utils.set_random_seed(0)
    head = FCOSHead(1, head_norm, **options)
    model = fcos(head=head, coder=DistanceCoder(normalize=head.deform_last))
    assert head.class_tower.convs[0].conv.use_bias == (head_norm is None or head.use_bias)
    with tf.GradientTape() as tape:
        outputs = model(batch(), training=True)
        losses = model.compute_losses(outputs, model.compute_targets(outputs, batch()))
        total = tf.add_n(list(losses.values()))
    of_other_levels = re.compile("_p[4-7]")  # without positives here
    variables = [v for v in model.head.trainable_variables if not of_other_levels.search(v.path)]
    for variable, gradient in zip(variables, tape.gradient(total, [v.value for v in variables]), strict=True):
        assert np.isfinite(gradient).all()
        assert np.any(gradient) or "norm" in variable.path or variable.name == "bias", variable.path


def test_points_cover_the_pyramid(model, outputs):
    assert list(outputs["anchors"]) == list(outputs["class_logits"]) == ["p3", "p4", "p5", "p6", "p7"]
    for level, squares in outputs["anchors"].items():
        stride = 2 ** int(level[1])
        np.testing.assert_array_equal(squares[0], [0, 0, stride, stride])
        assert outputs["class_logits"][level].shape == (2, len(squares), NUM_CLASSES)
        assert outputs["centerness"][level].shape == (2, len(squares))


def test_model_with_other_levels_detects(rng):
    backbone = fcos().backbone
    image = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    for neck, ranges in (
        (FPN(channels=32), ((0, 32), (32, 64), (64, 1e8))),
        (FPN(channels=32, top=ConvTop("p5", 32, num_levels=1)), ((0, 32), (32, 64), (64, 128), (128, 1e8))),
    ):
        model = FCOS(2, backbone=backbone, neck=neck, matcher=FCOSMatcher(ranges), head=FCOSHead(1))
        outputs = model(image)
        assert tuple(outputs["class_logits"]) == neck.levels
        assert model.postprocess(outputs, tf.constant([[64, 96]]))["boxes"].shape == (1, 100, 4)


def test_defaults_equal_detectron2():
    model = FCOS(80, backbone=fcos().backbone)
    assert model.neck.channels == 256 and model.neck.top.in_feature == "p5"
    assert (model.head.norm, model.head.use_bias, model.matcher.center_radius) == ("gn", True, 1.5)
    assert model.matcher.regress_ranges == ((0, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    rule = model.postprocessing
    assert (rule.score_threshold, rule.pre_nms_top_k, rule.nms_threshold, rule.max_detections) == (0.2, 1000, 0.6, 100)
    assert (model.normalizer.method, model.normalizer.start) == ("ema", 300)
    assert len(model.head.class_tower.convs) == len(model.head.box_tower.convs) == 4


def test_invalid_arguments_raise_user_error():
    with pytest.raises(UserError, match="score_convention is 'mean': choose 'sqrt' or 'product'"):
        Centerness(score_convention="mean")
    with pytest.raises(UserError, match="convention is 'paper': choose 'detectron2' or 'mmdet'"):
        FCOSMatcher(convention="paper")
    with pytest.raises(ValueError, match="num_classes of FCOS is 0: give 1 or more"):
        FCOS(0)
    with pytest.raises(ValueError, match="regress_ranges has 5 ranges, but the neck has 3 levels"):
        fcos(neck=FPN(channels=32))
    with pytest.raises(ValueError, match="1 point per cell, but the model has 9 anchors"):
        fcos(anchors=AnchorGenerator())
    with pytest.raises(ValueError, match="anchors are for the levels"):
        fcos(anchors=AnchorGenerator(((8,),), (1.0,), ("p3",)))


# -- crowds


def test_crowds_are_not_ignored_by_default(model, outputs):
    matched = model.compute_targets(outputs, batch())["matched_gt"].numpy()
    assert IGNORE not in matched


def test_ignore_crowd_iof_ignores_points_in_crowds(model, outputs):
    data = batch()
    plain = model.compute_targets(outputs, data)["matched_gt"].numpy()
    rule = sibling(model, matcher=FCOSMatcher(ignore_crowd_iof=0.5))
    targets = rule.compute_targets(outputs, data)
    matched = targets["matched_gt"].numpy()
    squares = flat(outputs, "anchors", 0)
    crowd = data["boxes"][1, 1]
    inner = np.maximum(np.minimum(squares[:, 2:], crowd[2:]) - np.maximum(squares[:, :2], crowd[:2]), 0).prod(-1)
    inside = inner > 0.5 * (squares[:, 2:] - squares[:, :2]).prod(-1)
    assert inside.any()
    np.testing.assert_array_equal(matched[0], plain[0])
    np.testing.assert_array_equal(matched[1], np.where(inside, IGNORE, plain[1]))

    logits = tf.concat(list(outputs["class_logits"].values()), 1)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = rule.compute_losses({**outputs, "class_logits": {"all": logits}}, targets)["class_loss"]
    np.testing.assert_array_equal(tape.gradient(loss, logits).numpy().any(-1), matched != IGNORE)
