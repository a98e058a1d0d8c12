"""`Detections` of one image, and the functions on padded dicts that make them."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from inference.sample import SIZE, detections
from PIL import Image

from kerasdet import visualize
from kerasdet.errors import UserError
from kerasdet.geometry import masks, rle
from kerasdet.inference import Detections
from kerasdet.inference.detections import unpad
from kerasdet.inference.padded import from_tf_od, join, rescale, to_tf_od


def padded(rng):
    """Detections of two images, three and one, padded to four."""
    class_ids = np.int32([[2, 0, 1, -1], [1, -1, -1, -1]])
    live = class_ids >= 0
    corner, size = rng.uniform(0, 30, (2, 4, 2)), rng.uniform(5, 60, (2, 4, 2))
    return {
        "boxes": np.float32(np.where(live[..., None], np.concatenate([corner, corner + size], -1), 0)),
        "scores": np.float32([[0.9, 0.8, 0.1, 0], [0.5, 0, 0, 0]]),
        "class_ids": class_ids,
        "valid": np.int32([3, 1]),
        "mask_probs": np.float32(rng.random((2, 4, 5, 5)) * live[..., None, None]),
        "keypoints": np.float32(rng.uniform(0, 30, (2, 4, 3, 3)) * live[..., None, None]),
    }


# -- one image


def test_arrays_have_their_types():
    found = detections()
    assert len(found) == 3
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)
    np.testing.assert_array_equal(found.xyxy[0], [20, 10, 60.5, 30])
    assert found.labels == ["cat", "dog", "cat"]
    assert detections(class_names=None).labels == ["0", "1", "0"]


def test_no_objects():
    none = Detections(boxes=[], scores=[], class_ids=[], image_size=SIZE)
    assert len(none) == 0 and none.boxes.shape == (0, 4) and none.to_coco(1, [3]) == []
    assert repr(none) == "Detections: 0 objects in an image of 60x80 (height x width)"
    assert none.draw(np.zeros((*SIZE, 3), np.uint8)).shape == (*SIZE, 3)
    assert len(none.filter(score=0.5)) == 0 and list(none) == []


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        ([False, False, True], [2]),
    ],
)
def test_indexing_selects_objects_in_all_arrays(index, expected):
    found = detections()
    chosen = found[index]
    assert isinstance(chosen, Detections) and len(chosen) == len(expected)
    for name in ("boxes", "scores", "class_ids", "mask_probs", "keypoints"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(found, name)[expected])
    assert chosen.image_size == SIZE and chosen.class_names == ("cat", "dog") and chosen.skeleton == ((0, 1),)


def test_index_out_of_range_raises():
    with pytest.raises(IndexError, match="Index 3 is out of range: there are 3 detections"):
        detections()[3]
    with pytest.raises(IndexError):
        detections()[np.array([True, False])]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("boxes", r"is 'boxes': expected integers, .* such as detections\.boxes\."),
        ("score", r"is 'score': .* such as detections\.scores\."),
        (0.5, r"is 0\.5: expected integers, a slice or a mask\."),
    ],
)
def test_index_of_another_type_raises(index, expected):
    with pytest.raises(UserError, match=expected):
        detections()[index]


def test_iteration_yields_one_object_each():
    assert [(len(each), each.labels) for each in detections()] == [(1, ["cat"]), (1, ["dog"]), (1, ["cat"])]


def test_detections_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections().boxes = None


def test_arrays_of_different_lengths_raise():
    with pytest.raises(ValueError, match=r"arrays of different lengths, .*'scores': 2"):
        detections(scores=[0.5, 0.4])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"boxes": [[1, 1, 5]]}, r"boxes have the shape \(1, 3\): expected \(N, 4\)"),
        ({"image_size": 64}, r"image_size is 64: expected \(height, width\)"),
        ({"class_ids": [2]}, r"The class id 2 has no name: expected one of the 2 class_names"),
    ],
)
def test_values_of_another_form_raise(changes, message):
    values = {"boxes": [[1, 1, 5, 5]], "scores": [0.9], "class_ids": [0], "image_size": SIZE}
    with pytest.raises(UserError, match=message):
        Detections(**{**values, "class_names": ("cat", "dog"), **changes})


def test_masks_without_convention_raise():
    with pytest.raises(ValueError, match="mask_probs need a mask_convention"):
        detections(mask_convention=None)


def test_repr_is_a_table():
    title, header, first, *_, last = repr(detections()).splitlines()
    assert title == "Detections: 3 objects in an image of 60x80 (height x width)"
    assert header.split() == ["class", "score", "y1", "x1", "y2", "x2"]
    assert first.split() == ["cat", "0.900", "10.0", "20.0", "30.0", "60.5"]
    assert last == "  with mask_probs (3, 7, 7) and keypoints (3, 2, 3)"
    many = detections()[[0] * 50]
    assert "  ... and 30 more" in repr(many).splitlines()


def test_filter_by_score_keeps_higher_ones():
    assert len(detections().filter(score=0.5)) == 1  # as in post-processing, a score at the threshold is dropped
    assert len(detections().filter(score=0.49)) == 2
    assert len(detections().filter()) == 3


@pytest.mark.parametrize(
    ("classes", "expected"), [("cat", [0, 0]), (1, [1]), (["dog", 0], [0, 1, 0]), (np.array([1]), [1]), ([], [])]
)
def test_filter_by_class_takes_ids_and_names(classes, expected):
    assert detections().filter(classes=classes).class_ids.tolist() == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [("bird", "no class 'bird': choose from cat, dog"), (2, "no class id 2: .* from 0 to 1"), (-1, "no class id -1")],
)
def test_filter_by_unknown_class_raises(classes, message):
    with pytest.raises(UserError, match=message):
        detections().filter(classes=classes)


def test_filter_by_name_without_names_raises():
    with pytest.raises(UserError, match=r"no class 'cat': the model has no class names. Pass class ids"):
        detections(class_names=None).filter(classes="cat")


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_masks_are_pasted_by_the_models_convention(convention):
    found = detections(mask_convention=convention)
    expected = masks.paste_masks(found.mask_probs, found.boxes, *SIZE, convention)
    assert found.masks.shape == (3, *SIZE) and found.masks.dtype == bool
    np.testing.assert_array_equal(found.masks, expected)
    assert found.masks is found.masks  # pasted once
    np.testing.assert_array_equal(rle.decode(found.encode_masks()), expected)


def test_without_masks():
    found = detections(mask_probs=None, mask_convention=None)
    assert found.masks is None
    with pytest.raises(ValueError, match="no masks: use a model with a MaskBranch"):
        found.encode_masks()


def test_draw_draws_on_a_copy(rng, tmp_path):
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    before, found = image.copy(), detections()
    drawn = found.draw(image)
    np.testing.assert_array_equal(image, before)
    expected = visualize.draw_boxes(
        image,
        found.boxes,
        ["cat", "dog", "cat"],
        found.scores,
        found.class_ids,
        masks=found.masks,
        keypoints=found.keypoints,
        skeleton=[(0, 1)],
    )
    np.testing.assert_array_equal(drawn, expected)
    Image.fromarray(image).save(tmp_path / "image.png")
    for same in (Image.fromarray(image), tmp_path / "image.png", image.astype(np.float32)):
        np.testing.assert_array_equal(found.draw(same), drawn)
    assert found.draw(image, scale=2).shape == (120, 160, 3)


def test_draw_on_an_image_of_another_size_raises():
    with pytest.raises(
        UserError, match=r"height and width \(80, 60\), but the detections are for \(60, 80\): pass the image"
    ):
        detections().draw(np.zeros((80, 60, 3), np.uint8))


def test_to_coco():
    found = detections(mask_probs=None, mask_convention=None, keypoints=None)
    results = found.to_coco(8, np.array([4, 90]))
    assert results == [
        {"image_id": 8, "category_id": 4, "bbox": [20.0, 10.0, 40.5, 20.0], "score": float(np.float32(0.9))},
        {"image_id": 8, "category_id": 90, "bbox": [0.0, 0.0, 20.0, 20.0], "score": 0.5},
        {"image_id": 8, "category_id": 4, "bbox": [5.0, 40.25, 75.0, 19.75], "score": 0.25},
    ]
    json.dumps(results)
    with pytest.raises(ValueError, match="Image 8 has a detection of class 1, but the dataset has 1 categories"):
        found.to_coco(8, [4])


def test_to_coco_with_masks_and_keypoints():
    found = detections(keypoints=np.float32([[[3.5, 4.5, 0.75], [1.5, 2, 0.25]]] * 3))
    results = found.to_coco(8, [4, 90])
    assert [result["segmentation"] for result in results] == found.encode_masks()
    assert results[0]["keypoints"] == [4, 3, 0.75, 1.5, 1, 0.25]
    json.dumps(results)


# -- padded dicts


def test_unpad_takes_one_image_without_padding(rng):
    batch = padded(rng)
    for index, size in enumerate([(60, 80), (90, 90)]):
        found = unpad(batch, index, size, class_names=["a", "b", "c"], mask_convention="torchvision")
        count = batch["valid"][index]
        assert len(found) == count and found.image_size == size and found.mask_convention == "torchvision"
        for name in ("boxes", "scores", "class_ids", "mask_probs", "keypoints"):
            np.testing.assert_array_equal(getattr(found, name), batch[name][index, :count])
    assert unpad(batch, 0, (1, 1), mask_convention="detectron2").class_names is None


def test_rescale_moves_boxes_and_keypoints_and_clips_boxes(rng):
    batch = padded(rng)
    batch["boxes"][0, 0] = -3, -3, 90, 200
    found = rescale(batch, tf.constant([[50, 100], [50, 100]]), tf.constant([[100, 400], [25, 50]]))
    factor = np.float32([[2, 4], [0.5, 0.5]])[:, None]
    limit = np.float32([[100, 400], [25, 50]])[:, None]
    expected = np.clip(batch["boxes"] * np.tile(factor, 2), 0, np.tile(limit, 2))
    np.testing.assert_array_equal(found["boxes"], expected)
    np.testing.assert_array_equal(found["keypoints"][..., :2], batch["keypoints"][..., :2] * factor[:, None])
    for name in ("scores", "class_ids", "valid", "mask_probs"):
        np.testing.assert_array_equal(found[name], batch[name])
    np.testing.assert_array_equal(found["keypoints"][..., 2], batch["keypoints"][..., 2])


@pytest.mark.parametrize("class_offset", [0, 1])
def test_tf_od_names_and_back(rng, class_offset):
    batch, sizes = padded(rng), np.int32([[64, 128], [90, 100]])
    outputs = tf.function(to_tf_od)(batch, sizes, class_offset)
    assert set(outputs) == {
        "detection_boxes",
        "detection_scores",
        "detection_classes",
        "num_detections",
        "detection_masks",
        "detection_keypoints",
    }
    assert all(value.dtype == tf.float32 for value in outputs.values())
    np.testing.assert_allclose(outputs["detection_boxes"][0] * [64, 128, 64, 128], batch["boxes"][0], rtol=1e-6)
    np.testing.assert_array_equal(outputs["detection_classes"], batch["class_ids"] + class_offset)
    back = from_tf_od({name: value.numpy() for name, value in outputs.items()}, sizes, class_offset)
    assert back.keys() == batch.keys()
    for name, value in batch.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-6, err_msg=name)
        assert back[name].dtype == value.dtype


def test_tf_od_without_masks_and_keypoints(rng):
    batch = {name: value for name, value in padded(rng).items() if name not in ("mask_probs", "keypoints")}
    outputs = to_tf_od(batch, np.int32([[64, 64], [64, 64]]), 1)
    assert len(outputs) == 4 and from_tf_od(outputs, [(64, 64)], 1).keys() == batch.keys()


def test_joined_masks_of_two_sizes_stay_in_their_places(rng):
    """As RTMDet-Ins gives them for images of 64x40 and 40x72 pixels, one cell for 8."""
    parts = []
    for height, width in ((64, 40), (40, 72)):
        probs = rng.random((1, 2, height // 8, width // 8), np.float32)
        boxes = np.float32([[[0, 0, height, width], [0, 0, 0, 0]]])
        parts.append({"mask_probs": probs, "mask_boxes": boxes, "valid": np.int32([1])})
    joined = join(parts)
    assert joined["mask_probs"].shape == (2, 2, 8, 9)
    np.testing.assert_array_equal(joined["valid"], [1, 1])
    for index, part in enumerate(parts):
        height, width = part["mask_boxes"][0, 0, 2:].astype(int)
        ours, theirs = (
            masks.paste_masks(each["mask_probs"][at, :1], each["mask_boxes"][at, :1], height, width, "mmdet")
            for each, at in ((joined, index), (part, 0))
        )
        assert 0 < np.mean(theirs) < 1
        np.testing.assert_array_equal(ours, theirs)
