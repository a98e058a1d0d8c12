"""Test-time augmentation of every model."""

import numpy as np
import pytest
import tensorflow as tf
from models.models import MODELS, batch, randomized

from kerasdet.geometry.keypoints import flip_order
from kerasdet.inference.tta import FACTORS
from kerasdet.models import AugmentedDetector, KeypointBranch

QUICK = ("retinanet", "proposal_network", "mask_keypoint_rcnn")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS]
)
def model(request):
    model = randomized(MODELS[request.param]())
    for branch in keypoint_branches(model):
        branch.keypoint_names = ("left_end", "right_end")
    for weight in model.weights:  # scores of 1 would tie, and views then differ by their order
        if "box_predictor/class_logits/kernel" in weight.path:
            weight.assign(0.05 * weight)
    return model


def keypoint_branches(model):
    return [branch for branch in model.branches if isinstance(branch, KeypointBranch)]


@pytest.fixture(scope="module")
def image():
    return batch()["image"][0, :96, :100]


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["valid"], theirs["valid"])
    assert ours["valid"].min() > 0
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=2e-3, err_msg=name)


def test_one_view_is_the_model_itself(model, image):
    one = AugmentedDetector(model, [model.preprocessing.shortest], mirror=False)
    assert_close(one.detect(image), model.detect(image))


def test_a_mirror_image_has_mirrored_detections(model, image):
    """Each of the two is seen as it is and in the mirror, so the same views are merged."""
    augmented = AugmentedDetector(model, [80, 96])
    found, mirrored = augmented.detect(image), augmented.detect(image[:, ::-1])
    live = found["class_ids"] >= 0
    y1, x1, y2, x2 = np.moveaxis(mirrored["boxes"], -1, 0)
    mirrored["boxes"] = np.where(live[..., None], np.stack([y1, 100 - x2, y2, 100 - x1], -1), 0)
    if "mask_probs" in mirrored:
        mirrored["mask_probs"] = mirrored["mask_probs"][..., ::-1]
    if "keypoints" in mirrored:  # the highest pixel of a heatmap may have an equal in the mirror image
        (order,) = [flip_order(branch.keypoint_names) for branch in keypoint_branches(model)]
        (y, x, _), (my, mx, _) = (np.moveaxis(d.pop("keypoints"), -1, 0) for d in (found, mirrored))
        same = np.abs(x + mx[..., order] - 100) + np.abs(y - my[..., order]) < 1
        assert same[live].mean() > 0.9
    assert_close(found, mirrored)


def test_the_best_of_all_views_comes_first(model, image):
    sizes = [72, 120]
    views = [AugmentedDetector(model, [size], mirror=False).detect(image)["scores"][0, 0] for size in sizes]
    merged = AugmentedDetector(model, sizes, mirror=False).detect(image)
    assert merged["scores"][0, 0] == pytest.approx(max(views), rel=1e-5)


def test_views_are_suppressed_together(model, image):
    """The same view twice says nothing new; boxes without area, which nothing suppresses, may cost places."""
    once, twice = (AugmentedDetector(model, [96] * n, mirror=False).detect(image) for n in (1, 2))
    count = twice["valid"][0]
    assert 0 < count <= once["valid"][0]
    for name in set(once) - {"valid"}:
        np.testing.assert_allclose(twice[name][0, :count], once[name][0, :count], rtol=1e-4, atol=2e-3, err_msg=name)


def test_masks_are_averaged_over_the_views(model, image):
    if not any("mask" in branch.name for branch in model.branches):
        pytest.skip("no masks")
    (branch,) = [branch for branch in model.branches if "mask" in branch.name]
    merged = AugmentedDetector(model, [72, 96], mirror=False).detect(image)
    expected = []
    for shortest in (72, 96):
        resized = model.preprocessing.resize(image, shortest, 1000)[None]
        height, width = resized.shape[1:3]
        padded = tf.pad(resized, [[0, 0], [0, -height % 32], [0, -width % 32], [0, 0]])
        outputs = model({"image": padded, "image_size": np.int32([[height, width]])})
        factor = np.tile(np.float32(resized.shape[1:3]) / image.shape[:2], 2)
        maps = model.branch_maps(branch, outputs["pyramid"], merged["boxes"] * factor, merged["class_ids"])
        expected.append(maps)
    valid = merged["valid"][0]
    np.testing.assert_allclose(merged["mask_probs"][0, :valid], np.mean(expected, 0)[0, :valid], atol=2e-3)


def test_pictures_of_several_sizes(model, image):
    augmented = AugmentedDetector(model, [64])
    found = augmented.detect([image, image[:70]])
    for index, picture in enumerate((image, image[:70])):
        alone = augmented.detect(picture)
        for name, value in found.items():
            np.testing.assert_array_equal(value[index], alone[name][0])


def test_a_padded_batch_as_evaluation_has_it(model):
    data, augmented = batch(), AugmentedDetector(model, [64])
    found = augmented.predict_on_batch(data)
    for index, (height, width) in enumerate(data["image_size"]):
        alone = augmented.detect(data["image"][index, :height, :width])
        np.testing.assert_array_equal(found["boxes"][index], alone["boxes"][0])


def test_by_default_three_sizes_around_the_models_own(model):
    augmented = AugmentedDetector(model)
    assert augmented.shortest == tuple(round(96 * factor) for factor in FACTORS)


def test_keypoints_without_names_have_no_mirror_image(image):
    model = MODELS["keypoint_rcnn"]()
    with pytest.raises(ValueError, match=r"2 keypoints have no names, .* give KeypointBranch keypoint_names"):
        AugmentedDetector(model, [64]).detect(image)
    assert AugmentedDetector(model, [64], mirror=False).detect(image)["keypoints"].shape[2:] == (2, 3)


@pytest.mark.parametrize("length", [0, -3, 1.5, "800"])
def test_a_side_is_in_whole_pixels(model, length):
    with pytest.raises(ValueError, match="give whole pixels"):
        AugmentedDetector(model, [length])
