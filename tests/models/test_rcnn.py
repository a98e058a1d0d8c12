"""Tests the options of the R-CNNs."""

import json
import textwrap
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from models.models import (
    NUM_CLASSES,
    batch,
    faster_rcnn,
    keypoint_branch,
    mask_branch,
    mask_keypoint_rcnn,
    mask_rcnn,
    proposal_network,
    randomized,
    roi_heads,
    rpn,
)
from models.test_contract import assert_same, detections_of, inputs, losses, numpy
from PIL import Image

from kerasdet import ops
from kerasdet.data import CocoDataset, ResizeShortestEdge
from kerasdet.data.pipeline import training_batches
from kerasdet.errors import UserError
from kerasdet.geometry.matching import IGNORE, IoUMatcher
from kerasdet.geometry.sampling import BalancedSampler
from kerasdet.inference import AugmentedPredictor
from kerasdet.keras_utils import ConfigFromInit, float_dtype
from kerasdet.layers import BoxHead, RoIPooler
from kerasdet.layers.rpn_head import RPNHead
from kerasdet.models import RPN, Branch, RoIHeads
from kerasdet.ops import roi_pool

# -- branches


def test_branch_without_pool_size_shares_box_head_features(monkeypatch):
    """A shared branch predicts like one with its own features of that size, and training pools nothing twice."""
    calls = []
    align = ops.multilevel_roi_align
    monkeypatch.setattr(ops, "multilevel_roi_align", lambda *args, **kw: calls.append(kw) or align(*args, **kw))
    shared = randomized(mask_rcnn(roi_heads=roi_heads([mask_branch(pool_size=None)])))
    own = randomized(mask_rcnn(roi_heads=roi_heads([mask_branch(pool_size=7)])))
    assert_same(losses(shared, batch()), losses(own, batch()))
    assert len(calls) == 1 + 2
    assert_same(detections_of(shared, batch()), detections_of(own, batch()))


def test_masks_have_twice_the_size_of_shared_features():
    model = mask_rcnn(roi_heads=roi_heads([mask_branch(pool_size=None)], pooler=RoIPooler(5)))
    assert detections_of(model, batch())["mask_probs"].shape[2:] == (10, 10)
    assert all(np.isfinite(value) for value in losses(model, batch()).values())


def test_branches_train_on_max_positives_regions():
    model = randomized(mask_rcnn(roi_heads=roi_heads([mask_branch()], sampler=BalancedSampler(256, 0.5))))
    data = batch()
    outputs = model(data, ground_truth=data)
    positive = (outputs["matched_gt"].numpy() >= 0).sum(1)
    each = len(outputs["mask_branch"]) // len(positive)
    most = min(128, outputs["rois"].shape[1])
    assert positive.max() <= each < positive.max() + 8 < most
    few = losses(model, data)["mask_loss"]
    with ops.implementation("tflite"):  # which has static shapes
        assert len(model(data, ground_truth=data)["mask_branch"]) == most * len(positive)
        np.testing.assert_allclose(losses(model, data)["mask_loss"], few, rtol=1e-6)


def test_duplicate_branch_name_raises():
    with pytest.raises(
        ValueError, match="two branches with the name or loss mask_branch: give one branch of each kind"
    ):
        roi_heads([mask_branch(), mask_branch(pool_size=None)])


def test_missing_ground_truth_of_a_branch_raises():
    data = {name: value for name, value in batch().items() if name != "masks"}
    with pytest.raises(ValueError, match="batch lacks 'masks', the ground truth of the MaskBranch: it has image,"):
        mask_rcnn().forward(data, training=False)


def test_sharing_parts_between_models_raises():
    heads = roi_heads([mask_branch()])
    mask_rcnn(roi_heads=heads)
    with pytest.raises(ValueError, match="Make new RoIHeads for each model"):
        heads.attach(num_classes=NUM_CLASSES + 1, levels=("p2", "p3", "p4", "p5"), channels=32)


def test_frozen_heads_stay_frozen_in_a_model():
    model = mask_rcnn(roi_heads=roi_heads([mask_branch()], trainable=False))
    clone = type(model).from_config(model.get_config())
    for each in (model, clone):
        assert each.roi_heads.variables and not any(v.trainable for v in each.roi_heads.variables)


@keras.saving.register_keras_serializable(package="tests")
class SizeBranch(ConfigFromInit, Branch):
    """Predicts the sides of a region's object as fractions of the region's sides; an example of a custom branch."""

    target_key = "boxes"
    loss_names = ("size_loss",)
    output_names = ("sizes",)

    def __init__(self, **kwargs):
        super().__init__(**{"name": "size_branch", **kwargs})

    def build(self, input_shape):
        self.dense = keras.layers.Dense(2, name="dense")
        self.dense.build((None, input_shape[-1]))

    def call(self, pooled, training=False):
        return self.dense(tf.reduce_mean(pooled, [1, 2]))[:, None, None]  # (N, 1, 1, 2)

    def compute_targets(self, rois, matched_gt, batch):
        boxes = tf.gather(batch["boxes"], tf.maximum(matched_gt, 0), batch_dims=1)
        return {"sizes": (boxes[..., 2:] - boxes[..., :2]) / tf.maximum(rois[..., 2:] - rois[..., :2], 1.0)}

    def compute_losses(self, logits, targets, positive):
        error = tf.abs(tf.reshape(logits, tf.shape(targets["sizes"])) - targets["sizes"])
        return {"size_loss": tf.reduce_mean(error * tf.cast(positive, float_dtype())[..., None])}

    def select_class_maps(self, logits, class_ids):
        return tf.reshape(logits, tf.concat([tf.shape(class_ids), [1, 1, 2]], 0))

    def postprocess(self, maps, detections):
        return {"sizes": tf.where((detections["class_ids"] >= 0)[..., None], maps[:, :, 0, 0], 0.0)}


def test_custom_branch_trains_detects_and_saves(tmp_path):
    """A custom branch needs one class, and works next to the branches of kerasdet."""
    model = randomized(mask_rcnn(roi_heads=roi_heads([mask_branch(), SizeBranch()])))
    values = losses(model, batch())
    assert np.isfinite(values["size_loss"]) and values["size_loss"] > 0
    found = detections_of(model, batch())
    assert found["sizes"].shape == (2, 20, 2) and found["sizes"].any()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(detections_of(loaded, batch()), found, rtol=0, atol=0)


def branch_example():
    """Returns the class that the docstring of `Branch` shows; executing it checks the text."""
    names = {}
    code = textwrap.dedent(Branch.__doc__.split("(B, M)::")[1])
    exec(code.replace("my_package", "tests_rcnn").split("model =")[0], names)
    return names["DifficultyBranch"]


def test_example_of_a_branch_trains_and_survives_mirrored_views():
    model = randomized(faster_rcnn(roi_heads=roi_heads([branch_example()()], {"score_threshold": 0.0})))
    data = {**batch(), "difficulty": np.float32([[0.1, 0.9, 0.5], [0.2, 0.3, 0.0]])}
    assert losses(model, data)["difficulty_loss"] > 0
    found = model.detect_batch(inputs(data))
    assert found["difficulty"].shape == (2, 20) and np.any(found["difficulty"])
    augmented = AugmentedPredictor(model, [96]).detect_batch(inputs(data))
    assert augmented["difficulty"].shape == (2, 20) and np.isfinite(augmented["difficulty"]).all()


def test_branch_whose_names_differ_from_its_results_raises():
    class Renamed(SizeBranch):
        loss_names = ("sizes_loss",)
        output_names = ("side",)

    model = randomized(mask_rcnn(roi_heads=roi_heads([Renamed()])))
    with pytest.raises(UserError, match=r"Renamed\.compute_losses returns size_loss, but loss_names is"):
        losses(model, batch())
    with pytest.raises(UserError, match=r"Renamed\.postprocess returns sizes, but output_names is side"):
        detections_of(model, batch())


def test_branch_that_does_not_separate_images_raises():
    class Flat(SizeBranch):
        def select_class_maps(self, logits, class_ids):
            return tf.reshape(logits, [-1, 1])

    model = randomized(mask_rcnn(roi_heads=roi_heads([Flat()])))
    with pytest.raises(UserError, match=r"Flat.select_class_maps returns the shape \(.*: expected \(B, D, \.\.\.\)"):
        model.detect_batch(inputs(batch()))


@pytest.mark.parametrize(
    "branches,message",
    [
        (lambda: SizeBranch(), "RoIHeads.branches is a SizeBranch: give a list"),
        (lambda: [SizeBranch], r"contains the class SizeBranch: give an object, SizeBranch\(\)"),
        (lambda: ["masks"], "contains 'masks': give objects of subclasses of kerasdet.models.Branch"),
        (lambda: [Branch(name="bare")], "Branch.target_key is None: define it in the class as a string"),
        (lambda: [type("Text", (SizeBranch,), {"loss_names": "a"})()], "Text.loss_names is 'a': define it .* a tuple"),
    ],
    ids=["no list", "class", "name", "no attributes", "string"],
)
def test_invalid_branches_raise(branches, message):
    with pytest.raises(UserError, match=message):
        RoIHeads(branches=branches())


def test_dataset_without_the_targets_of_a_custom_branch_raises():
    dataset = SimpleNamespace(records=[SimpleNamespace()], annotations="train.json")
    message = (
        "The model's DifficultyBranch learns difficulty, but train.json was read without difficulty: add this key to"
    )
    with pytest.raises(UserError, match=message):
        branch_example()().check_dataset(dataset)


# -- pooling


def test_roi_pool_reads_each_region_from_its_level(rng):
    sides = [4, 100, 130, 250, 440, 460, 900]
    rois = np.float32([[[10, 20, 10 + side, 20 + side] for side in sides]] * 2)
    pyramid = {
        f"p{level}": rng.normal(size=(2, 512 >> level, 1024 >> level, 32)).astype(np.float32) for level in range(2, 6)
    }
    pooled = RoIPooler(7, "roi_pool")(pyramid, tf.constant(rois)).numpy().reshape(2, len(sides), 7, 7, 32)
    for i, side in enumerate(sides):
        level = min(max(int(np.floor(4 + np.log2(side / 224))), 2), 5)
        alone = roi_pool(pyramid[f"p{level}"], rois[:, i : i + 1], output_size=7, spatial_scale=2.0**-level)
        np.testing.assert_array_equal(pooled[:, i], alone[:, 0])


def test_model_with_roi_pool_trains_and_detects():
    branches = [mask_branch(), keypoint_branch(pool_size=None)]
    model = randomized(mask_keypoint_rcnn(roi_heads=roi_heads(branches, pooler=RoIPooler(method="roi_pool"))))
    assert type(model).from_config(model.get_config()).roi_heads.pooler.method == "roi_pool"
    with tf.GradientTape() as tape:
        outputs = model.forward(batch(), training=True)
        values = model.compute_losses(outputs, model.compute_targets(outputs, batch()))
        total = values["class_loss"] + values["mask_loss"] + values["keypoint_loss"]
    gradient = tape.gradient(total, model.neck.outputs[0].conv.kernel.value)
    assert np.isfinite(gradient).all() and np.any(gradient)
    found, aligned = detections_of(model, batch()), detections_of(randomized(mask_keypoint_rcnn()), batch())
    assert (found["valid"] > 0).all() and not np.array_equal(found["scores"], aligned["scores"])


def test_unknown_pooling_method_raises():
    with pytest.raises(ValueError, match="method is 'roi_crop': choose 'roi_align' or 'roi_pool'"):
        RoIPooler(method="roi_crop")


# -- heads


@pytest.mark.parametrize("norm", ["bn", "gn", None])
def test_convolutional_box_head_equals_plain_ops(norm, rng):
    """Four 3x3 convolutions with a norm and one fully connected layer, as in torchvision's v2 and in mmdetection."""
    head = BoxHead(4, 32, 1, 24, norm)
    head.build((None, 7, 7, 16))
    assert head.out_channels == 24
    assert sum(w.name == "bias" for w in head.weights) == 1 + 4 * (norm is None)
    for weight in head.weights:
        weight.assign(
            rng.uniform(0.1, 0.5, weight.shape) * (1 if weight.name != "kernel" else rng.normal(size=weight.shape))
        )
    x = rng.normal(size=(3, 7, 7, 16)).astype(np.float32)
    y = x
    for conv in head.convs:
        y = tf.nn.conv2d(y, conv.conv.kernel, 1, "SAME")
        y = y + conv.conv.bias if norm is None else conv.norm(y)
        y = tf.nn.relu(y)
    [fc] = head.fcs
    expected = np.maximum(y.numpy().reshape(3, -1) @ fc.kernel.numpy() + fc.bias.numpy(), 0)
    np.testing.assert_allclose(head(x), expected, rtol=1e-3, atol=1e-3)
    if norm == "bn":
        before = head.convs[0].norm.moving_mean.numpy()
        head(x, training=True)
        assert not np.array_equal(head.convs[0].norm.moving_mean, before)


def test_model_with_a_convolutional_box_head_is_restored_and_trains():
    model = randomized(faster_rcnn(roi_heads=roi_heads(box_head=BoxHead(2, 16, 1, 32, "bn"))))
    clone = type(model).from_config(model.get_config())
    clone.set_weights(model.get_weights())
    assert_same(numpy(clone(inputs(batch()))), numpy(model(inputs(batch()))), rtol=0, atol=0)
    weights = [v.value for v in model.roi_heads.box_head.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = model.forward(batch(), training=True)
        total = model.compute_losses(outputs, model.compute_targets(outputs, batch()))["class_loss"]
    assert all(np.any(gradient) for gradient in tape.gradient(total, weights))


@pytest.mark.parametrize("num_convs", [0, 1, 2])
def test_each_rpn_convolution_widens_the_receptive_field_by_one_cell(num_convs, rng):
    head = RPNHead(3, num_convs, 8)
    head.build((None, None, None, 8))
    assert len(head.weights) == 2 * (num_convs + 2)
    for weight in head.weights:
        weight.assign(np.abs(rng.normal(size=weight.shape)))  # positive, so that no ReLU hides a change
    x = rng.uniform(0.1, 1, (1, 9, 11, 8)).astype(np.float32)
    changed = x.copy()
    changed[0, 4, 5] += 1
    expected = np.zeros((9, 11, 3), bool)
    expected[4 - num_convs : 5 + num_convs, 5 - num_convs : 6 + num_convs] = True
    before, after = head({"p3": x}), head({"p3": changed})
    np.testing.assert_array_equal(
        (before["objectness"]["p3"] != after["objectness"]["p3"]).numpy(), expected.reshape(1, -1)
    )
    moved = (before["box_deltas"]["p3"] != after["box_deltas"]["p3"]).numpy()
    np.testing.assert_array_equal(moved, np.repeat(expected.reshape(1, -1, 1), 4, -1))


@pytest.mark.parametrize("num_convs", [0, 2])
def test_model_with_another_rpn_head_is_restored_and_detects(num_convs):
    model = randomized(proposal_network(rpn=rpn(num_convs=num_convs)))
    clone = type(model).from_config(model.get_config())
    assert len(clone.rpn.head.convs) == num_convs and isinstance(clone.rpn, RPN)
    clone.set_weights(model.get_weights())
    assert_same(detections_of(clone, batch()), detections_of(model, batch()))
    assert (detections_of(model, batch())["valid"] > 2).all()
    assert all(np.isfinite(value) and value > 0 for value in losses(model, batch()).values())


def test_class_agnostic_box_predictor_shares_boxes_between_classes():
    model = randomized(faster_rcnn(roi_heads=roi_heads(class_agnostic=True)))
    outputs = model(inputs(batch()))
    assert outputs["box_deltas"].shape[2:] == (1, 4) and outputs["class_logits"].shape[2:] == (4,)
    assert all(np.isfinite(value) and value > 0 for value in losses(model, batch()).values())
    found = detections_of(model, batch())
    boxes = {tuple(np.round(box, 3)) for box in found["boxes"][0, : found["valid"][0]]}
    assert (found["valid"] > 2).all() and len(boxes) < found["valid"][0]  # boxes occur in several classes


# -- memory of the mask targets


def test_mask_targets_take_112_by_112_bytes_per_object_for_any_image_size(tmp_path, rng):
    """100 objects take 1.25 MB; bitmaps of the larger image would take 107.5 MB."""
    memory = {}
    for height, width in ((200, 336), (800, 1344)):
        folder = tmp_path / f"{height}x{width}"
        (folder / "images").mkdir(parents=True)
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "images" / "1.png")
        annotations = []
        for number in range(1, 11):
            y, x = rng.uniform(0, 0.6, 2) * (height, width)
            h, w = rng.uniform(0.1, 0.4, 2) * (height, width)
            polygon = [x, y, x + w, y, x + w, y + h, x + w / 3, y + h / 2]
            annotations.append(
                {"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "segmentation": [polygon]}
            )
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": height, "width": width}],
            "categories": [{"id": 1, "name": "thing"}],
            "annotations": annotations,
        }
        (folder / "annotations.json").write_text(json.dumps(content))
        dataset = CocoDataset(folder / "annotations.json", masks=True)
        [made] = training_batches(dataset, 1, [ResizeShortestEdge((height,), width)]).take(1)
        assert made["image"].shape == (1, -(-height // 32) * 32, -(-width // 32) * 32, 3)
        assert made["masks"].dtype == tf.uint8 and made["masks"].numpy().any((0, 2, 3)).all()
        memory[height] = made["masks"].numpy().nbytes
    assert memory == {200: 10 * 112 * 112, 800: 10 * 112 * 112}


# -- mmdetection's training


def twins(data):
    """Gives the first two objects of each image the box of the first and the classes 0 and 2."""
    boxes, class_ids = data["boxes"].copy(), data["class_ids"].copy()
    boxes[:, 1], class_ids[:, :2] = boxes[:, 0], [0, 2]
    return {**data, "boxes": boxes, "class_ids": class_ids, "is_crowd": np.zeros_like(data["is_crowd"])}


def test_objects_among_the_regions_answer_for_themselves_if_added_after_matching():
    data = twins(batch())
    proposals = {"boxes": tf.zeros([2, 4, 4]), "valid": tf.constant([0, 0])}
    classes = {}
    for order in ("before_matching", "after_matching"):
        regions = roi_heads(add_gt_as_proposals=order).select_regions(proposals, data)
        matched = regions["matched_gt"].numpy()
        classes[order] = [sorted(data["class_ids"][i][row[row >= 0]]) for i, row in enumerate(matched)]
    assert classes == {"before_matching": [[0, 0, 1], [0, 0]], "after_matching": [[0, 1, 2], [0, 2]]}


def test_objects_added_after_matching_leave_low_quality_matches_to_proposals():
    data = {"boxes": np.float32([[[0, 0, 10, 10]]]), "class_ids": np.int32([[1]]), "is_crowd": np.zeros([1, 1], bool)}
    proposals = {"boxes": tf.constant([[[0.0, 0, 10, 3], [0, 0, 10, 2]]]), "valid": tf.constant([2])}
    counts = {}
    for order in ("before_matching", "after_matching"):
        heads = roi_heads(add_gt_as_proposals=order, matcher=IoUMatcher(0.5, 0.5))
        counts[order] = int(np.sum(heads.select_regions(proposals, data)["matched_gt"] >= 0))
    assert counts == {"before_matching": 1, "after_matching": 2}


def test_unknown_order_of_matching_raises():
    with pytest.raises(UserError, match="add_gt_as_proposals is 'never': choose 'before_matching' or 'after_matching'"):
        roi_heads(add_gt_as_proposals="never")


def test_rpn_normalizers_count_sampled_anchors():
    targets = {  # 2 and 0 positives, 3 and 0 negatives
        "positive": tf.constant([[True, True, False, False, False], [False] * 5]),
        "negative": tf.constant([[False, False, True, True, True], [False] * 5]),
        "boxes": tf.constant(np.float32([[[0, 0, 8, 8]] * 5] * 2)),
    }
    outputs = {
        "anchors": {"p2": targets["boxes"][0]},
        "objectness": {"p2": tf.zeros([2, 5])},
        "box_deltas": {"p2": tf.ones([2, 5, 4])},
    }
    divisors = {"fixed": 128, "sampled": 5, "image_sum": 2 + 3 + 1 + 1}
    for normalizer, divisor in divisors.items():
        found = rpn(normalizer=normalizer).compute_losses(outputs, targets)
        assert float(found["rpn_class_loss"]) == pytest.approx(5 * np.log(2) / divisor)
        assert float(found["rpn_box_loss"]) == pytest.approx(2 * 4 / divisor)


def test_image_alone_and_in_a_padded_batch_trains_the_same_anchors():
    data = batch(size=(96, 160), image_size=((96, 160), (60, 70)))
    matcher = IoUMatcher(0.7, 0.3, padded_size_divisor=32)
    anchors = rpn().anchors
    counts = []
    for height, width in ((96, 160), (64, 96)):  # padded for both, or for the second image alone
        grids = {f"p{i}": (-(-height // 2**i), -(-width // 2**i)) for i in range(2, 7)}
        found = matcher(tf.concat(list(anchors(grids, (height, width)).values()), 0), data)[1].numpy()
        counts.append(np.unique(found[found > IGNORE], return_counts=True))
    np.testing.assert_array_equal(counts[0], counts[1])
