"""Compares converted RTMDets with mmdetection 3.3.0: features to detections and masks, matches, losses, gradients."""

import numpy as np
import pytest
import tensorflow as tf
from checkpoints import golden
from checkpoints.golden import XYXY
from checkpoints.test_mmdet_parity import Case, loss_batch
from pycocotools.mask import encode

from kerasdet import losses, ops, training
from kerasdet.checkpoints import SOURCES, to_model
from kerasdet.checkpoints.build import named_variables
from kerasdet.checkpoints.convert import name_in_source
from kerasdet.checkpoints.names import untied_name
from kerasdet.geometry import masks, rle
from kerasdet.geometry.boxes import centers
from kerasdet.geometry.matching import IGNORE
from kerasdet.inference.padded import rescale
from kerasdet.models import dense
from kerasdet.training.ema import use_averages

HEIGHT, WIDTH = 256, 320
FAST, SLOW = ("mmdet_rtmdet_tiny", "mmdet_rtmdet-ins_tiny"), ("mmdet_rtmdet_s", "mmdet_rtmdet_m", "mmdet_rtmdet-ins_s")
pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
INS = ["mmdet_rtmdet-ins_tiny"]
LOSSES = {"class_loss": "cls", "box_loss": "bbox", "mask_loss": "mask"}
TOLERANCE = 1e-4
MASK_LOSS_TOLERANCE = 0.02  # fixed-size instance crops stand for full-size bitmaps
CASES = ("hard", "overlap", "twins", "tiny", "outside", "none")


def make_case(name):
    model = to_model(golden.state(name), name.replace("_", "/", 1))
    image = golden.weights().image(HEIGHT, WIDTH, seed=0)
    outputs = model({"image": tf.constant(image[None]), "image_size": tf.constant([[HEIGHT, WIDTH]])})
    return Case(name, model, image, outputs, golden.outputs(name), golden.border_cases(name))


@pytest.fixture(scope="module", params=[*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def case(request):
    """Building the model takes most of the time of a test, so all tests of a model share one."""
    return make_case(request.param)


def only(names):
    """Runs a test for some of the models."""
    return pytest.mark.parametrize("case", names, indirect=True)


def assert_same_features(x, expected):
    """Compares features (1, h, w, C) with a sample of mmdetection's."""
    x = np.asarray(x[0]).transpose(2, 0, 1)[::8]
    step = -(-x.shape[1] // expected.shape[1])
    assert golden.relative(x[:, ::step, ::step], expected) < TOLERANCE


# -- inference


def test_features(case):
    backbone = case.model.backbone
    x = case.model.preprocessing.normalize(case.image[None], None)
    for layer in backbone.stem:
        x = layer(x)
    assert_same_features(x, case.golden["backbone_stem"])
    for index, stage in enumerate(backbone.stages.values(), 1):
        for layer in stage:
            x = layer(x)
        assert_same_features(x, case.golden[f"backbone_stage{index}"])
    for index, x in enumerate(case.features()):
        assert_same_features(x[None], case.golden[f"feature_{index}"])


def test_raw_heads_and_points(case):
    for index, logits in enumerate(case.levels("class_logits")):
        assert golden.relative(logits[::37], case.golden[f"head_logits_{index}"]) < TOLERANCE
    for index, distances in enumerate(case.levels("box_distances")):
        assert golden.relative(distances[::37] * 2 ** (3 + index), case.golden[f"head_deltas_{index}"]) < TOLERANCE
    squares = np.concatenate(list(case.levels("anchors")))[::37]
    np.testing.assert_array_equal(centers(squares), case.golden["points"])
    np.testing.assert_array_equal(squares[:, 2] - squares[:, 0], case.golden["point_strides"])
    for branch in case.model.branches:
        outputs = case.outputs[branch.name]
        for index, kernels in enumerate(outputs["kernels"].values()):
            assert golden.relative(kernels[0, ::37], case.golden[f"head_kernels_{index}"]) < TOLERANCE
        features = tf.transpose(outputs["features"][0], [2, 0, 1])
        assert golden.relative(features, case.golden["mask_feat"]) < TOLERANCE


def test_detections_match_one_to_one(case):
    result = case.model.postprocess(case.outputs, tf.constant([[HEIGHT, WIDTH]]))
    found = assert_same_detections(golden.detections(result, 0), case.golden, "detections")
    if case.model.branches:
        order = golden.partners(found, golden.expected_detections(case.golden, "detections"))
        assert_same_masks(pasted(case.model, result, (HEIGHT, WIDTH))[order], case.golden, "detections")


def assert_same_detections(found, answers, prefix):
    expected = golden.expected_detections(answers, prefix)
    assert len(found["scores"]) == len(expected["scores"])
    assert golden.matched(found, expected, pixels=0.05, score=1e-4) == len(expected["scores"])
    return found


def pasted(model, detections, size):
    """Pastes the masks of one image of `size`."""
    arguments = detections["mask_probs"][0], detections["mask_boxes"][0]
    return ops.paste_masks(*arguments, *size, model.mask_convention).numpy()


def assert_same_masks(found, answers, prefix):
    """Compares masks with mmdetection's; a pixel in 10^5 differs between two runs of mmdetection."""
    difference = np.abs(found.sum((1, 2)) - answers[f"{prefix}_mask_area"])
    assert difference.max() < 1e-3 * found[0].size and difference.sum() < 1e-4 * found.size
    assert (found[:5] != answers[f"{prefix}_masks_first5"]).mean() < 1e-4


@only(INS)
def test_mask_logits_belong_to_the_points_of_detections(case):
    decoded = case.model.decode(case.outputs, tf.constant([[HEIGHT, WIDTH]]))
    found = case.model.postprocessing.apply_nms(decoded, tf.constant([[HEIGHT, WIDTH]]))
    order = golden.partners(golden.detections(found, 0), golden.expected_detections(case.golden, "detections"))
    squares = dense.all_levels(case.outputs, "anchors")
    own = tf.gather(squares, found["points"][0]).numpy()[order]
    expected = case.golden["detections_points"]
    np.testing.assert_array_equal(np.concatenate([centers(own)[:, ::-1], own[:, 2:3] - own[:, :1]], 1), expected)
    logits = case.model.branches[0].mask_logits(case.outputs["mask_branch"], found["points"], squares)
    assert golden.relative(logits.numpy()[0, order[:5]], case.golden["detections_mask_logits_first5"]) < TOLERANCE


def images():
    return [golden.weights().image(250, 333, 11), golden.weights().image(720, 500, 12)]


def test_end_to_end(case):
    for index, result in enumerate(case.model.detect(images())):
        found = assert_same_detections(golden.unpadded(result), case.golden, f"e2e_{index}")
        if result.mask_probs is not None:
            expected = golden.expected_detections(case.golden, f"e2e_{index}")
            found = result[golden.partners(found, expected)].masks
            difference = np.abs(found.sum((1, 2)) - case.golden[f"e2e_{index}_mask_area"])
            assert difference.max() < 1e-3 * found[0].size and difference.sum() < 1e-4 * found.size
            shape = case.golden[f"e2e_{index}_masks_shape"]
            bits = np.unpackbits(case.golden[f"e2e_{index}_masks_first3"])[: shape.prod()]
            assert (found[:3] != bits.reshape(shape)).mean() < 1e-4


@only(["mmdet_rtmdet_tiny"])
def test_images_are_letterboxed_bit_for_bit(case):
    for index, image in enumerate(images()):
        batch = case.model.preprocessing.batch([image])
        inputs = case.model.preprocessing.network_input(batch["image"], batch["image_size"])
        np.testing.assert_array_equal(inputs["image"][0], case.golden[f"e2e_{index}_padded"])
        np.testing.assert_array_equal(inputs["image_size"], [[640, 640]])
        np.testing.assert_array_equal(image.shape[:2], case.golden[f"e2e_{index}_size"])
        factor = case.golden[f"e2e_{index}_scale_factor"][::-1]  # (y, x)
        np.testing.assert_allclose(batch["image_size"][0] / batch["original_size"][0], factor)
        whole, size = case.model.preprocessing.letterbox(image, 640, 640)  # of exports
        np.testing.assert_array_equal(whole, case.golden[f"e2e_{index}_padded"])
        assert size == tuple(batch["image_size"][0].numpy())


@only(FAST)
def test_postprocessing_at_every_threshold(case):
    outputs = stored_outputs(case, case.border["post_logits"], case.border["post_deltas"])
    canvas, original_size = (tf.constant([case.border[f"post_{name}size"]], tf.int32) for name in ("", "original_"))
    factor = case.border["post_scale_factor"][::-1]  # (y, x)
    resized = tf.cast(tf.round(tf.cast(original_size, tf.float64) * factor), tf.int32)
    found = case.model.postprocess(outputs, canvas)
    found = rescale(
        found, resized, original_size, case.model.branch_outputs, clip=not case.model.preprocessing.letterboxes
    )
    assert_same_detections(golden.detections(found, 0), case.border, "post")
    if case.model.branches:
        order = golden.partners(golden.detections(found, 0), golden.expected_detections(case.border, "post"))
        assert_same_masks(pasted(case.model, found, original_size[0].numpy())[order], case.border, "post")


def stored_outputs(case, logits, distances, height=96, width=128):
    """Makes the outputs of a network from stored logits (R, K) and distances in pixels (R, 4) xyxy."""
    anchors = case.model.anchors({f"p{i}": (height // 2**i, width // 2**i) for i in (3, 4, 5)}, (height, width))
    counts = [len(level) for level in anchors.values()]
    strides = np.repeat(np.float32([8, 16, 32]), counts)[:, None]

    def by_level(values):
        return dict(zip(anchors, tf.split(tf.constant(values[None], tf.float32), counts, 1), strict=True))

    outputs = {
        "anchors": anchors,
        "class_logits": by_level(logits),
        "box_distances": by_level(distances[:, XYXY] / strides),
    }
    if case.model.branches:
        features = tf.constant(case.border["post_mask_feat"].transpose(1, 2, 0)[None])
        outputs["mask_branch"] = {"kernels": by_level(case.border["post_kernels_x32"] / 32), "features": features}
    return outputs


@only(INS)
def test_sizes_of_resized_masks(case):
    """mmdetection confuses the factors of the axes, so some masks are smaller than their image."""
    sizes = (case.border[f"sizes_{name}"] for name in ("original", "resized", "canvas", "masks"))
    for original, resized, canvas, expected in zip(*sizes, strict=True):
        found = {"boxes": tf.zeros([1, 1, 4]), "mask_boxes": tf.constant([[[0.0, 0, 640, 640]]])}
        found = rescale(found, resized[None], original[None], case.model.branch_outputs)
        extents = found["mask_boxes"][0, 0, 2:]
        others = tf.cast(original[::-1], tf.float64)
        lengths = masks.mmdet_pixels(tf.constant(640.0, tf.float64), extents, others)
        np.testing.assert_array_equal(lengths, canvas)
        np.testing.assert_array_equal(np.minimum(lengths, original), expected)


# -- training


def ground_truth_batch(case, prefixes, size=(HEIGHT, WIDTH)):
    """Makes a batch of the image and, for two prefixes, its mirror image; None is an image without objects."""
    pictures = [case.image, case.image[:, ::-1]][: len(prefixes)]
    return loss_batch(case, pictures, [case.ground_truth(prefix) for prefix in prefixes])


def forward(model, batch, training=False):
    outputs = model.forward(batch, training=training)
    targets = model.compute_targets(outputs, batch)
    return outputs, targets, model.compute_losses(outputs, targets)


def assert_losses(found, answers, prefix):
    assert {key.removeprefix(prefix) for key in answers if key.startswith(prefix)} == {LOSSES[name] for name in found}
    for name, value in found.items():
        tolerance = MASK_LOSS_TOLERANCE if name == "mask_loss" else TOLERANCE
        expected = float(answers[prefix + LOSSES[name]])
        assert float(value) == pytest.approx(expected, rel=tolerance, abs=1e-6), name


def assert_same_matches(targets, answers, suffix, index=0):
    matched = targets["matched_gt"][index].numpy()
    np.testing.assert_array_equal(matched, answers[f"matched_gt{suffix}"])
    np.testing.assert_allclose(targets["soft_labels"][index], answers[f"matched_soft{suffix}"], atol=1e-4)


def assert_same_parts(case, outputs, targets, found, suffix):
    """Compares the sums of each level before weights and division; that of masks is of all levels."""
    answers, weights = case.border, targets["soft_labels"]
    first = 0
    for index, (level, squares) in enumerate(outputs["anchors"].items()):
        rows = slice(first, first + len(squares))
        first += len(squares)
        one_hot = tf.one_hot(targets["class_ids"][:, rows], case.model.num_classes)
        class_sum = losses.quality_focal(outputs["class_logits"][level], one_hot * weights[:, rows, None])
        boxes = case.model.coder.decode(outputs["box_distances"][level], squares)
        box_sum = 2 * losses.giou(boxes, targets["boxes"][:, rows], weights[:, rows])
        for name, value in (
            ("qfl", class_sum),
            ("giou", box_sum),
            ("soft", tf.reduce_sum(weights[:, rows])),
        ):
            expected = answers[f"parts{suffix}_{name}_sum"][index]
            assert float(value) == pytest.approx(expected, rel=TOLERANCE, abs=1e-5), (name, level)
    normalizer = max(float(tf.reduce_sum(weights)), 1.0)
    assert normalizer == pytest.approx(answers[f"parts{suffix}_normalizer"], rel=TOLERANCE)
    if f"parts{suffix}_dice_sum" in answers:
        count = max(int(tf.reduce_sum(tf.cast(targets["matched_gt"] >= 0, tf.int32))), 1)
        assert count == answers[f"parts{suffix}_dice_normalizer"]
        dice_sum = float(found["mask_loss"]) * count
        assert dice_sum == pytest.approx(float(answers[f"parts{suffix}_dice_sum"]), rel=MASK_LOSS_TOLERANCE, abs=1e-6)


def test_losses_and_matches_of_one_image(case):
    outputs, targets, found = forward(case.model, ground_truth_batch(case, ["gt"]))
    assert_losses(found, case.golden, "loss_")
    assert_same_matches(targets, case.border, "")
    assert_same_parts(case, outputs, targets, found, "")


def test_losses_and_matches_of_a_batch(case):
    outputs, targets, found = forward(case.model, ground_truth_batch(case, ["gt", "gt2"]))
    assert_losses(found, case.golden, "loss2_")
    assert_same_matches(targets, case.border, "2", index=1)
    assert_same_parts(case, outputs, targets, found, "2")


@pytest.mark.parametrize("objects", CASES)
def test_losses_and_matches_of_hard_objects(case, objects):
    outputs, targets, found = forward(case.model, ground_truth_batch(case, [objects]))
    assert_losses(found, case.border, f"loss_{objects}_")
    assert_same_matches(targets, case.border, f"_{objects}")
    assert_same_parts(case, outputs, targets, found, f"_{objects}")


def test_losses_of_a_batch_with_an_image_without_objects(case):
    _, _, found = forward(case.model, ground_truth_batch(case, ["gt", None]))
    assert_losses(found, case.border, "loss_empty_")


def padded_batch(case):
    height, width = case.border["padded_size"]
    small = np.zeros_like(case.image)
    small[:height, :width] = case.image[:height, :width]
    ground_truth = [case.ground_truth("gt"), case.ground_truth("padded")]
    return loss_batch(case, [case.image, small], ground_truth, sizes=[[HEIGHT, WIDTH], [height, width]])


def test_losses_of_a_batch_with_a_smaller_image(case):
    outputs, targets, found = forward(case.model, padded_batch(case))
    for branch in case.model.branches:
        # In mmdetection, a point of the smaller image takes the kernel of another: its index among the points inside
        # the image is looked up among all points. kerasdet takes its own; with the mistake it gets the same loss.
        arguments = targets[branch.name], targets["matched_gt"], dense.all_levels(outputs, "anchors")
        mistaken = with_mistaken_kernels(outputs[branch.name], targets["matched_gt"])
        found |= branch.compute_losses(mistaken, *arguments)
    assert_losses(found, case.border, "loss_padded_")


def with_mistaken_kernels(outputs, matched_gt):
    """Gives each point the kernel whose index among all points is the point's among those that are not ignored."""
    valid = tf.cast(matched_gt != IGNORE, tf.int32)
    mistaken = tf.maximum(tf.cumsum(valid, 1) - 1, 0)  # (B, R)
    return {**outputs, "kernels": {"all": tf.gather(dense.all_levels(outputs, "kernels"), mistaken, batch_dims=1)}}


@only(FAST)
@pytest.mark.parametrize("suffix", ["", "_masks"])
def test_assignment_of_stored_predictions(case, suffix):
    if suffix and not case.model.branches:
        pytest.skip("only RTMDet-Ins looks at masks")
    boxes, classes = case.border["assign_gt_boxes"], case.border["assign_gt_classes"]
    outputs = stored_outputs(case, case.border["post_logits"] + 5, case.border["post_deltas"])
    batch = {
        "boxes": tf.constant(boxes[None][..., XYXY]),
        "class_ids": tf.constant(classes[None]),
        "is_crowd": tf.zeros([1, len(boxes)], tf.bool),
        "image_size": tf.constant([[96, 128]]),
    }
    anchors = dense.all_levels(outputs, "anchors")
    decoded = case.model.coder.decode(dense.all_levels(outputs, "box_distances"), anchors)
    places = None
    if suffix:
        batch["masks"] = crops_of(case.border["assign_masks"], boxes)[None]
        places = case.model.branches[0].object_centers(batch)
    matched, soft = case.model.matcher(dense.all_levels(outputs, "class_logits"), decoded, anchors, batch, places)
    np.testing.assert_array_equal(matched[0], case.border[f"assign_gt{suffix}"])
    np.testing.assert_allclose(soft[0], case.border[f"assign_soft{suffix}"], atol=1e-4)


def crops_of(bitmaps, boxes):
    """Crops bitmaps (M, H, W) to boxes (M, 4) xyxy; a record has no run lengths of an empty one."""
    runs = [rle.runs_from_segmentation(encode(np.asfortranarray(mask)), *mask.shape) for mask in bitmaps]
    runs = [run if mask.any() else np.int32([mask.size]) for run, mask in zip(runs, bitmaps, strict=True)]
    return masks.crops_from_runs(
        tf.constant(np.concatenate(runs)),
        tf.constant([len(r) for r in runs]),
        tf.constant(boxes[:, XYXY]),
        tf.constant(bitmaps.shape[1:]),
    )


def gradients(case, prefixes, training):
    """Returns the losses and the gradient of their sum by mmdetection's name of the parameter."""
    batch = ground_truth_batch(case, prefixes)
    spec = SOURCES[case.name.replace("_", "/", 1)]
    trainable = {
        name_in_source(name, spec): variable
        for name, variable in named_variables(case.model, "rtmdet").items()
        if variable.trainable
    }
    with tf.GradientTape() as tape:
        _, _, found = forward(case.model, batch, training)
        total = tf.add_n(list(found.values()))
    values = tape.gradient(total, [variable.value for variable in trainable.values()])
    return found, dict(zip(trainable, values, strict=True))


def assert_same_gradients(found, answers, suffix=""):
    names = answers["gradient_names"].tolist()
    assert sorted(found) == sorted(names)
    norms = np.array([0.0 if found[name] is None else tf.norm(found[name]) for name in names])
    expected = answers[f"gradient_norms{suffix}"]
    np.testing.assert_allclose(norms, expected, rtol=2e-3, atol=2e-4 * expected.max())


def test_gradients(case):
    _, found = gradients(case, ["gt"], training=False)
    assert_same_gradients(found, case.border)


def test_gradients_and_moving_statistics_with_statistics_of_the_batch(case):
    before = [np.array(variable) for variable in case.model.variables]
    losses_found, found = gradients(case, ["gt", "gt2"], training=True)
    statistics = {name: np.array(value) for name, value in moving_statistics(case).items()}
    for variable, value in zip(case.model.variables, before, strict=True):
        variable.assign(value)
    assert_losses(losses_found, case.border, "loss2_batchnorm_")
    assert_same_gradients(found, case.border, "_batchnorm")
    norms = [name.removesuffix(".running_mean") for name in golden.layout(case.name) if name.endswith("running_mean")]
    for answer, entry in (("means", "running_mean"), ("variances", "running_var")):
        values = np.concatenate([statistics[f"{untied(name, case)}.{entry}"][::8] for name in norms])
        np.testing.assert_allclose(values, case.border[f"batchnorm_{answer}"], rtol=1e-4, atol=1e-4)


def untied(name, case):
    """Returns the name of the norm that another name of RTMDet-Ins stands for."""
    return untied_name(name, SOURCES[case.name.replace("_", "/", 1)].tied)


def moving_statistics(case):
    spec = SOURCES[case.name.replace("_", "/", 1)]
    variables = named_variables(case.model, "rtmdet").items()
    return {name_in_source(name, spec): variable for name, variable in variables if "/moving_" in name}


@pytest.mark.slow
@only(FAST)
def test_training_steps_and_their_moving_average(case):
    """Four steps of AdamW with statistics of the batch; weights and moving statistics are averaged."""
    model, batch = case.model, ground_truth_batch(case, ["gt", "gt2"])
    spec = SOURCES[case.name.replace("_", "/", 1)]
    named = {name_in_source(name, spec): variable for name, variable in named_variables(model, "rtmdet").items()}
    names = [name.removeprefix("steps_ema_") for name in case.border if name.startswith("steps_ema_")]
    before = [np.array(variable) for variable in model.variables]
    options = {"weight_decay": 0.05, "epsilon": 1e-8, "decay_norms_and_biases": False}
    averages = {"use_ema": True, "ema_momentum": 1 - 0.0002, "ema_warmup": 2000}
    model.compile(optimizer=training.AdamW(float(case.border["steps_lr"]), **options, **averages))
    model.build_optimizer()
    step = tf.function(lambda: train_step(model, model.optimizer, batch))
    found = [[float(value) for value in step().values()] for _ in range(4)]
    use_averages(model)
    averaged = {name: torch_layout(named[name]) for name in names}
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    expected = case.border["steps_losses"]
    np.testing.assert_allclose(np.array(found)[:, :2], expected[:, :2], rtol=2e-3)
    np.testing.assert_allclose(np.array(found), expected, rtol=MASK_LOSS_TOLERANCE)
    for name, value in averaged.items():
        expected = case.border[f"steps_ema_{name}"]
        np.testing.assert_allclose(value.ravel()[: expected.size], expected, atol=5e-5, err_msg=name)


def train_step(model, optimizer, batch):
    with tf.GradientTape() as tape:
        _, _, found = forward(model, batch, training=True)
        total = tf.add_n(list(found.values()))
    variables = model.trainable_variables
    optimizer.apply(tape.gradient(total, [variable.value for variable in variables]), variables)
    return found


def torch_layout(variable):
    value = np.array(variable)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
