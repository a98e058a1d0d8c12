import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import NUM_CLASSES, batch, randomized, retinanet, without_objects

from kerasdet import FCOS, FPN, RetinaNet
from kerasdet.geometry.anchors import AnchorGenerator, octave_sizes
from kerasdet.geometry.coders import DeltaCoder
from kerasdet.geometry.matching import IGNORE, NEGATIVE, IoUMatcher
from kerasdet.layers import ConvTop, MaxPoolTop, RetinaNetHead
from kerasdet.losses import FocalLoss, GIoULoss, SmoothL1Loss
from kerasdet.models.common import LossNormalizer
from kerasdet.models.postprocess import Postprocessing


@pytest.fixture(scope="module")
def model():
    return randomized(retinanet())


@pytest.fixture(scope="module")
def outputs(model):
    return model(batch())


def sibling(model, **kwargs):
    """Makes a model that shares the network of `model` and differs in the given parts."""
    names = ("backbone", "neck", "anchors", "head", "postprocessing", "preprocessing")
    return RetinaNet(NUM_CLASSES, **{**{name: getattr(model, name) for name in names}, **kwargs})


def flat(outputs, name, axis):
    return np.concatenate([np.asarray(x) for x in outputs[name].values()], axis)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_focal(logits, targets, alpha, gamma):
    """Computes the focal loss element by element in float64."""
    p = sigmoid(logits.astype(float))
    positive = -alpha * (1 - p) ** gamma * np.log(np.maximum(p, 1e-300))
    negative = -(1 - alpha) * p**gamma * np.log(np.maximum(1 - p, 1e-300))
    return np.where(targets == 1, positive, negative)


def numpy_decode(deltas, anchors):
    deltas, anchors = deltas.astype(float), anchors.astype(float)
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + size / 2 + deltas[..., :2] * size
    half = size * np.exp(np.minimum(deltas[..., 2:], np.log(1000 / 16))) / 2
    return np.concatenate([center - half, center + half], -1)


def numpy_deltas(boxes, anchors):
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_size
    return np.concatenate([shift, np.log(size / anchor_size)], -1)


def numpy_giou(a, b):
    inner = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    outer = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union - (outer - union) / outer


# -- targets


def test_targets_follow_matched_objects(model, outputs):
    data = batch()
    targets = {name: value.numpy() for name, value in model.compute_targets(outputs, data).items()}
    anchors = flat(outputs, "anchors", 0)
    matched = targets["matched_gt"]
    assert matched.shape == targets["class_ids"].shape == (2, len(anchors))
    assert targets["boxes"].shape == (2, len(anchors), 4)
    assert {NEGATIVE, IGNORE, 0, 1, 2} == set(matched[0]) and 0 in matched[1] and matched[1].max() == 0
    for image in range(2):
        positive = matched[image] >= 0
        rows = matched[image][positive]
        np.testing.assert_array_equal(targets["class_ids"][image][positive], data["class_ids"][image][rows])
        np.testing.assert_array_equal(targets["boxes"][image][positive], data["boxes"][image][rows])
        np.testing.assert_array_equal(targets["boxes"][image][~positive], anchors[~positive])
        assert (targets["class_ids"][image][~positive] == -1).all()


def test_matcher_decides_positives_and_ignored_anchors(model, outputs):
    positives = {}
    for foreground, background in ((0.5, 0.4), (0.3, 0.2), (0.5, 0.5)):
        other = sibling(model, matcher=IoUMatcher(foreground, background))
        matched = other.compute_targets(outputs, batch())["matched_gt"].numpy()
        positives[foreground, background] = (matched >= 0).sum(), (matched == IGNORE).sum()
    assert positives[0.3, 0.2][0] > positives[0.5, 0.4][0] == positives[0.5, 0.5][0]
    assert positives[0.5, 0.5][1] == 0 < positives[0.5, 0.4][1]


def test_ignore_crowd_iof_ignores_anchors_in_crowds(model, outputs):
    """Ignores an anchor with more than half of its area in a crowd even if it overlaps an object."""
    data = batch()
    data["boxes"][1, 1] = 0, 20, 70, 128
    plain = model.compute_targets(outputs, data)["matched_gt"].numpy()
    matched = (
        sibling(model, matcher=IoUMatcher(ignore_crowd_iof=0.5)).compute_targets(outputs, data)["matched_gt"].numpy()
    )
    anchors = flat(outputs, "anchors", 0)
    crowd = data["boxes"][1, 1]
    inner = np.maximum(np.minimum(anchors[:, 2:], crowd[2:]) - np.maximum(anchors[:, :2], crowd[:2]), 0).prod(-1)
    inside = inner > 0.5 * (anchors[:, 2:] - anchors[:, :2]).prod(-1)
    assert (plain[1][inside] >= 0).any() and (plain[1][inside] == NEGATIVE).any()
    np.testing.assert_array_equal(matched[0], plain[0])
    assert (matched[1][inside] == IGNORE).all()
    moved = ~inside & (matched[1] != plain[1])  # anchors that are now the best of an object
    assert (matched[1][moved] >= 0).all()


# -- losses


@pytest.mark.parametrize("normalizer", ["ema", "batch", "image", "image_sum"])
@pytest.mark.parametrize("box_loss,beta", [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)])
def test_losses_equal_numpy(model, outputs, normalizer, box_loss, beta):
    rule = sibling(
        model,
        normalizer=LossNormalizer(normalizer, momentum=0.75, start=40.0),
        class_loss=FocalLoss(0.3, 1.5, weight=2.0),
        box_loss=GIoULoss(weight=0.5) if box_loss == "giou" else SmoothL1Loss(beta, weight=0.5),
    )
    targets = rule.compute_targets(outputs, batch())
    losses = {name: float(value) for name, value in rule.compute_losses(outputs, targets).items()}

    matched = targets["matched_gt"].numpy()
    per_image = (matched >= 0).sum(1, keepdims=True)
    assert (per_image > 0).all() and per_image[0] != per_image[1]
    divisor = {
        "ema": 0.75 * 40 + 0.25 * per_image.sum(),
        "batch": per_image.sum(),
        "image_sum": per_image.sum(),
        "image": per_image * 2,
    }[normalizer]
    one_hot = targets["class_ids"].numpy()[..., None] == np.arange(NUM_CLASSES)
    focal = numpy_focal(flat(outputs, "class_logits", 1), one_hot, 0.3, 1.5).sum(-1)
    class_loss = np.sum(np.where(matched == IGNORE, 0, focal) / divisor)
    assert losses["class_loss"] == pytest.approx(2 * class_loss, rel=1e-4)

    anchors, deltas = flat(outputs, "anchors", 0), flat(outputs, "box_deltas", 1)
    boxes = targets["boxes"].numpy()
    if box_loss == "giou":
        each = 1 - numpy_giou(numpy_decode(deltas, anchors), boxes)
    else:
        error = np.abs(deltas - numpy_deltas(boxes, anchors))
        each = np.where(error < beta, 0.5 * error**2 / max(beta, 1e-9), error - beta / 2).sum(-1)
    assert losses["box_loss"] == pytest.approx(0.5 * np.sum(np.where(matched >= 0, each, 0) / divisor), rel=1e-4)


@pytest.mark.parametrize("normalizer,divisor", [("ema", 0.9 * 100 + 0.1), ("batch", 1), ("image", 2), ("image_sum", 2)])
def test_box_losses_are_zero_without_objects(model, outputs, normalizer, divisor):
    rule = sibling(model, normalizer=LossNormalizer(normalizer))
    losses = rule.compute_losses(outputs, rule.compute_targets(outputs, without_objects(batch())))
    focal = numpy_focal(flat(outputs, "class_logits", 1), np.zeros(1), 0.25, 2)
    assert float(losses["class_loss"]) == pytest.approx(focal.sum() / divisor, rel=1e-4)
    assert float(losses["box_loss"]) == 0


@pytest.mark.parametrize("prior", [0.01, 0.05])
def test_initial_loss_equals_the_prior(prior):
    keras.utils.set_random_seed(0)
    model = retinanet(head=RetinaNetHead(1, prior_probability=prior), normalizer=LossNormalizer("batch"))
    outputs = model(batch())
    targets = model.compute_targets(outputs, batch())
    valid = int(np.sum(targets["matched_gt"] != IGNORE)) * NUM_CLASSES
    positives = int(np.sum(targets["matched_gt"] >= 0))
    of_negatives = -0.75 * prior**2 * np.log(1 - prior) * (valid - positives)
    of_positives = -0.25 * (1 - prior) ** 2 * np.log(prior) * positives
    class_loss = float(model.compute_losses(outputs, targets)["class_loss"])
    assert class_loss == pytest.approx((of_negatives + of_positives) / positives, rel=0.05)


def test_ignored_anchors_have_no_loss_or_gradient(model, outputs):
    targets = model.compute_targets(outputs, batch())
    ignored = tf.concat(list(outputs["class_logits"].values()), 1)
    with tf.GradientTape() as tape:
        tape.watch(ignored)
        losses = model.compute_losses({**outputs, "class_logits": {"all": ignored}}, targets)
    gradient = tape.gradient(losses["class_loss"], ignored).numpy().any(-1)
    np.testing.assert_array_equal(gradient, targets["matched_gt"].numpy() != IGNORE)


@pytest.mark.parametrize("box_loss", [SmoothL1Loss(), GIoULoss()], ids=["smooth_l1", "giou"])
def test_only_positives_have_gradients_of_the_box_loss(model, outputs, box_loss):
    rule = sibling(model, box_loss=box_loss)
    targets = rule.compute_targets(outputs, batch())
    deltas = tf.concat(list(outputs["box_deltas"].values()), 1)
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        losses = rule.compute_losses({**outputs, "box_deltas": {"all": deltas}}, targets)
    gradient = tape.gradient(losses["box_loss"], deltas).numpy()
    assert np.isfinite(gradient).all()
    moderate = np.abs(deltas).max(-1) < 4  # the coder clamps larger deltas, so their gradient is zero
    positive = targets["matched_gt"].numpy() >= 0
    np.testing.assert_array_equal(gradient.any(-1)[moderate], positive[moderate])
    assert positive[moderate].any() and not gradient[~positive].any()


def test_exact_box_has_zero_loss(model, outputs):
    for box_loss in (SmoothL1Loss(), GIoULoss()):
        rule = sibling(model, box_loss=box_loss)
        targets = rule.compute_targets(outputs, batch())
        deltas = DeltaCoder().encode(targets["boxes"], tf.concat(list(outputs["anchors"].values()), 0))
        losses = rule.compute_losses({**outputs, "box_deltas": {"all": deltas}}, targets)
        assert float(losses["box_loss"]) == pytest.approx(0, abs=1e-5)


def test_only_training_updates_the_running_mean():
    model = retinanet(normalizer=LossNormalizer(momentum=0.8, start=50.0))
    model.compile(optimizer="sgd", run_eagerly=True)
    data = batch()
    model.evaluate(tf.data.Dataset.from_tensors(data), verbose=0)
    assert float(model.mean_positives) == 50
    positives = int(np.sum(model.compute_targets(model(data), data)["matched_gt"] >= 0))
    model.train_on_batch(data)
    assert float(model.mean_positives) == pytest.approx(0.8 * 50 + 0.2 * positives)
    model.train_on_batch(without_objects(data))
    assert float(model.mean_positives) == pytest.approx(0.8 * (0.8 * 50 + 0.2 * positives) + 0.2)


def test_batch_normalizer_has_no_running_mean():
    model = retinanet(normalizer=LossNormalizer("batch"))
    model.compile(optimizer="sgd", run_eagerly=True)
    model.train_on_batch(batch())
    assert float(model.mean_positives) == 100


# -- detections


def scalar_postprocess(model, outputs, image, size):
    """Computes one image's detections as (box, score, class id) by loops and full sorts."""
    rule = model.postprocessing
    found = []
    for level, anchors in outputs["anchors"].items():
        logits = np.asarray(outputs["class_logits"][level])[image]
        boxes = numpy_decode(np.asarray(outputs["box_deltas"][level])[image], np.asarray(anchors))
        pairs = [
            (sigmoid(float(logits[anchor, class_id])), boxes[anchor], class_id)
            for anchor, class_id in np.ndindex(*logits.shape)
        ]
        found += sorted(pairs, key=lambda pair: -pair[0])[: rule.pre_nms_top_k]
    limit = np.array([*size, *size])
    if rule.clip_before_nms:
        found = [(score, np.clip(box, 0, limit), class_id) for score, box, class_id in found]
    kept = []
    for score, box, class_id in sorted(found, key=lambda pair: -pair[0]):
        if score > rule.score_threshold and all(
            other != class_id or scalar_iou(box, rival) <= rule.nms_threshold for _, rival, other in kept
        ):
            kept.append((score, box, class_id))
    kept = [(np.clip(box, 0, limit), score, class_id) for score, box, class_id in kept[: rule.max_detections]]
    return [d for d in kept if rule.empty_boxes == "keep" or (d[0][2:] > d[0][:2]).all()]


def scalar_iou(a, b):
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union > 0 else 0.0


@pytest.mark.parametrize("clip_before_nms", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"pre_nms_top_k": 15, "score_threshold": 0.3, "max_detections": 100},
        {"pre_nms_top_k": 1000, "score_threshold": 0.05, "max_detections": 12, "nms_threshold": 0.2},
        {"pre_nms_top_k": 40, "score_threshold": 0.9999, "max_detections": 5},
    ],
    ids=str,
)
def test_postprocess_equals_scalar_loops(model, outputs, rng, options, clip_before_nms):
    empty_boxes = "keep" if clip_before_nms else "drop_after_nms"
    postprocessing = Postprocessing(clip_before_nms=clip_before_nms, empty_boxes=empty_boxes, **options)
    rule = sibling(model, postprocessing=postprocessing)
    shapes = {level: x.shape for level, x in outputs["class_logits"].items()}
    outputs = {
        **outputs,
        "class_logits": {k: rng.normal(-3, 2, shape).astype(np.float32) for k, shape in shapes.items()},
        "box_deltas": {k: rng.normal(0, 0.7, (*shape[:2], 4)).astype(np.float32) for k, shape in shapes.items()},
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


def test_anchors_cover_the_pyramid(model, outputs):
    assert list(outputs["anchors"]) == list(outputs["class_logits"]) == ["p3", "p4", "p5", "p6", "p7"]
    for level, anchors in outputs["anchors"].items():
        stride = 2 ** int(level[1])
        cells = -(-96 // stride) * -(-128 // stride)
        assert anchors.shape == (cells * 6, 4)
        assert outputs["class_logits"][level].shape == (2, cells * 6, NUM_CLASSES)
        assert outputs["box_deltas"][level].shape == (2, cells * 6, 4)


def test_model_with_other_levels_detects(rng):
    backbone = retinanet().backbone
    image = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    for neck, levels in (
        (FPN(("c4", "c5"), 16, top=MaxPoolTop()), ("p4", "p5", "p6")),
        (FPN(channels=16, top=ConvTop("p5", 16, num_levels=1)), ("p3", "p4", "p5", "p6")),
        (FPN(channels=16), ("p3", "p4", "p5")),
    ):
        anchors = AnchorGenerator(octave_sizes(16, 1, len(levels)), levels=levels)
        model = RetinaNet(2, backbone=backbone, neck=neck, anchors=anchors, head=RetinaNetHead(1))
        outputs = model(image)
        assert tuple(outputs["class_logits"]) == levels
        assert model.postprocess(outputs, tf.constant([[64, 96]]))["boxes"].shape == (1, 100, 4)


def test_image_size_need_not_be_a_multiple_of_the_stride(model, rng):
    """Lays out one anchor for each prediction even if all levels have odd sizes."""
    outputs = model(rng.integers(0, 256, (1, 75, 101, 3), dtype=np.uint8))
    for level, anchors in outputs["anchors"].items():
        assert outputs["class_logits"][level].shape[1] == len(anchors)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn_inference", "bn", "sync_bn", "gn"])
def test_only_group_norm_of_the_head_is_shared_by_levels(norm):
    model = retinanet(head=RetinaNetHead(1, norm))
    layers = {w.path.split("/")[2] for w in model.head.weights if "norm" in w.path}
    of_levels = {"norm0_shared"} if norm == "gn" else {f"norm0_p{i}" for i in range(3, 8)}
    assert layers == of_levels
    before = {w.path: w.numpy() for w in model.head.weights}
    with tf.GradientTape() as tape:
        losses = model.compute_losses(outputs := model(batch(), training=True), model.compute_targets(outputs, batch()))
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, [v.value for v in model.head.trainable_variables])
    assert all(g is not None and np.isfinite(g).all() for g in gradients)
    moved = {w.path.split("/")[2] for w in model.head.weights if np.any(w.numpy() != before[w.path])}
    assert moved == (of_levels if norm in ("bn", "sync_bn") else set())


def test_defaults_equal_the_paper():
    model = RetinaNet(80, backbone=retinanet().backbone)
    assert model.anchors.num_anchors == 9
    assert model.neck.levels == ("p3", "p4", "p5", "p6", "p7") and model.neck.channels == 256
    assert (model.class_loss.alpha, model.class_loss.gamma, model.head.prior_probability) == (0.25, 2.0, 0.01)
    assert (model.matcher.foreground_iou, model.matcher.background_iou) == (0.5, 0.4)
    rule = model.postprocessing
    assert (rule.score_threshold, rule.pre_nms_top_k, rule.nms_threshold, rule.max_detections) == (0.05, 1000, 0.5, 100)
    assert len(model.head.class_tower.convs) == len(model.head.box_tower.convs) == 4


@pytest.mark.parametrize("model_class", [RetinaNet, FCOS])
def test_default_model_has_no_frozen_weights(model_class):
    statistics = ("moving_mean", "moving_variance", "mean_positives")
    assert {variable.name for variable in model_class(2).non_trainable_variables} == set(statistics)


def test_invalid_arguments_raise_user_error():
    with pytest.raises(ValueError, match="method is 'sum': choose one of 'ema', 'batch', 'image', 'image_sum'"):
        LossNormalizer("sum")
    with pytest.raises(ValueError, match="num_classes of RetinaNet is 0: give 1 or more"):
        RetinaNet(0)
    with pytest.raises(
        ValueError, match=r"anchors are for the levels \('p3', .*'p7'\), but the neck makes \('p3', 'p4', 'p5'\)"
    ):
        retinanet(neck=FPN(channels=16))
    with pytest.raises(ValueError, match="Unknown norm 'batch'"):
        retinanet(head=RetinaNetHead(norm="batch"))
