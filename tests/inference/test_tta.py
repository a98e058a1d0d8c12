"""Test-time augmentation of every model."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from models.models import MODELS, batch, randomized

from kerasdet.errors import UserError
from kerasdet.geometry import masks
from kerasdet.geometry.keypoints import flip_order
from kerasdet.inference import AugmentedPredictor, TiledPredictor
from kerasdet.inference.tta import SCALES
from kerasdet.models import KeypointBranch

pytestmark = pytest.mark.usefixtures("unoptimized_graphs")
# These have the parts of all models: anchors and distances, regions, masks of both kinds, and keypoints.
COVERING = ("retinanet", "proposal_network", "mask_keypoint_rcnn", pytest.param("rtmdet_ins", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=COVERING)
def model(request):
    model = randomized(MODELS[request.param]())
    for branch in keypoint_branches(model):
        branch.keypoint_names = ("left_end", "right_end")
    for weight in model.weights:  # scores of 1 would tie, and views then differ by their order
        if "box_predictor/class_logits/kernel" in weight.path:
            weight.assign(0.05 * weight)
    return model


@pytest.fixture(scope="module")
def augmented(model):
    """Returns a function from sizes to the model's predictor for them, which tests share: each traces its views."""
    return functools.cache(lambda *sizes, hflip=True: AugmentedPredictor(model, list(sizes), hflip=hflip))


def keypoint_branches(model):
    return [branch for branch in model.branches if isinstance(branch, KeypointBranch)]


@pytest.fixture
def eager():
    """Runs views without their graphs: to trace one takes longer than the few images of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def image():
    return batch()["image"][0, :96, :100]


def padded(predictor, image):
    """What `detect` computes for an image before it takes the padding off."""
    detections = predictor.detect_batch(predictor.preprocessing.batch([image]))
    return {name: np.asarray(value) for name, value in detections.items()}


def pasted(detections):
    count, size = detections["valid"][0], (96, 100)
    return masks.paste_masks(
        detections["mask_probs"][0, :count], detections["mask_boxes"][0, :count], *size, "mmdet"
    ).numpy()


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["valid"], theirs["valid"])
    assert ours["valid"].min() > 0
    if "mask_boxes" in ours:
        # Masks of the network's input become masks of the image, in finer cells. Once pasted they differ at borders,
        # which random masks have many of; half of the pixels would differ between any two of them.
        ours, theirs = ({**each, "mask_boxes": 0, "mask_probs": pasted(each)} for each in (ours, theirs))
        assert (ours["mask_probs"] != theirs["mask_probs"]).mean() < 0.1
        theirs["mask_probs"] = ours["mask_probs"]
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=2e-3, err_msg=name)


def test_one_view_gives_the_models_detections(model, augmented, image):
    one = augmented(model.preprocessing.shortest, hflip=False)
    assert_close(padded(one, image), padded(model, image))


def test_a_mirror_image_has_mirrored_detections(model, augmented, image):
    """Each of the two is seen as it is and in the mirror, so the same views are merged."""
    found, mirrored = (padded(augmented(80, 96), each) for each in (image, image[:, ::-1]))
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


@pytest.mark.usefixtures("eager")
def test_the_best_of_all_views_comes_first(augmented, image):
    sizes = (72, 96)
    views = [augmented(size, hflip=False).detect(image).scores[0] for size in sizes]
    merged = augmented(*sizes, hflip=False).detect(image)
    assert merged.scores[0] == pytest.approx(max(views), rel=1e-5)


@pytest.mark.usefixtures("eager")
def test_nms_runs_on_all_views_at_once(augmented, image):
    """The same view twice says nothing new; boxes without area, which nothing suppresses, may cost places."""
    once, twice = (padded(augmented(*[96] * n, hflip=False), image) for n in (1, 2))
    count = twice["valid"][0]
    assert 0 < count <= once["valid"][0]
    for name in set(once) - {"valid"}:
        np.testing.assert_allclose(twice[name][0, :count], once[name][0, :count], rtol=1e-4, atol=2e-3, err_msg=name)


@pytest.mark.usefixtures("eager")
def test_masks_are_averaged_over_the_views(model, augmented, image):
    if not any("mask" in branch.name for branch in model.branches):
        pytest.skip("no masks")
    (branch,) = [branch for branch in model.branches if "mask" in branch.name]
    merged = padded(augmented(72, 96, hflip=False), image)
    expected = []
    for shortest in (72, 96):
        resized = model.preprocessing.resize(image, shortest, 1000)[None]
        height, width = resized.shape[1:3]
        inputs = tf.pad(resized, [[0, 0], [0, -height % 32], [0, -width % 32], [0, 0]])
        outputs = model({"image": inputs, "image_size": np.int32([[height, width]])})
        factor = np.tile(np.float32(resized.shape[1:3]) / image.shape[:2], 2)
        inputs = model.branch_inputs(outputs, np.int32([[height, width]]))
        boxes = np.float32(merged["boxes"] * factor)
        maps = model.branch_maps(branch, inputs, boxes, merged["class_ids"])
        expected.append(maps)
    valid = merged["valid"][0]
    np.testing.assert_allclose(merged["mask_probs"][0, :valid], np.mean(expected, 0)[0, :valid], atol=2e-3)


def test_images_of_several_sizes_are_detected_one_by_one(augmented, image):
    predictor, images = augmented(64), [image, image[:70]]
    for found, each in zip(predictor.detect(images), images, strict=True):
        alone = predictor.detect(each)
        assert found.image_size == each.shape[:2]
        for name in ("boxes", "scores", "class_ids", "mask_probs", "keypoints"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_padding_does_not_change_detections(augmented):
    data, predictor = batch(), augmented(64)
    found = predictor.detect_batch({name: data[name] for name in ("image", "image_size")})
    for index, (height, width) in enumerate(data["image_size"]):
        alone = padded(predictor, data["image"][index, :height, :width])
        np.testing.assert_array_equal(found["boxes"][index], alone["boxes"][0])


def test_it_describes_itself_like_its_model(model):
    augmented = AugmentedPredictor(model)
    for name in ("num_classes", "class_names", "mask_convention", "skeleton"):
        assert getattr(augmented, name) == getattr(model, name)


def test_resizing_by_another_rule_raises(model, image):
    with pytest.raises(UserError, match=r"resize is \(64, 96\), but this predictor .* by its own rule"):
        AugmentedPredictor(model).detect(image, resize=(64, 96))


def test_default_views_are_three_sizes_around_the_models_own(model):
    augmented = AugmentedPredictor(model)
    assert augmented.shortest == tuple(round(96 * factor) for factor in SCALES)


@pytest.mark.usefixtures("eager")
def test_hflip_of_keypoints_without_names_raises(image):
    model = MODELS["keypoint_rcnn"]()
    with pytest.raises(ValueError, match=r"2 keypoints have no names, .* give KeypointBranch keypoint_names"):
        AugmentedPredictor(model, [64]).detect(image)
    assert AugmentedPredictor(model, [64], hflip=False).detect(image).keypoints.shape[1:] == (2, 3)


@pytest.mark.parametrize("length", [0, -3, 1.5, "800"])
def test_invalid_length_raises(model, length):
    with pytest.raises(UserError, match="in whole pixels"):
        AugmentedPredictor(model, [length])


def test_export_raises(model):
    """An export has no outputs before NMS; tiles of a model have none either."""
    with pytest.raises(UserError, match=r"of type TiledPredictor, but test-time augmentation \(--tta\) needs a Keras"):
        AugmentedPredictor(TiledPredictor(model))
