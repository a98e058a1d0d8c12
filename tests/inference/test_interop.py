"""Detections as classes of supervision, and back, with the real package."""

import functools
import sys

import numpy as np
import pytest
from inference import sample
from inference.sample import NAMES, SIZE

from kerasdet.errors import UserError
from kerasdet.inference import Detections

EXTRAS = {"track_id": np.array([4, -1, 7]), "angle": np.array([0.5, 1, 2])}
detections = functools.partial(sample.detections, mask_convention="torchvision", extras=EXTRAS)


@pytest.fixture(scope="module")
def sv():
    return pytest.importorskip("supervision")


def test_to_supervision(sv):
    found = detections()
    theirs = found.to_supervision()
    assert isinstance(theirs, sv.Detections) and len(theirs) == 3
    np.testing.assert_array_equal(theirs.xyxy, found.xyxy)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    np.testing.assert_array_equal(theirs.class_id, found.class_ids)
    np.testing.assert_array_equal(theirs.mask, found.masks)
    assert theirs.data["class_name"].tolist() == ["cat", "dog", "cat"]
    assert theirs.tracker_id.tolist() == [4, -1, 7] and theirs.data["angle"].tolist() == [0.5, 1, 2]
    assert len(theirs[theirs.confidence > 0.3]) == 2
    assert detections(extras={}).to_supervision().tracker_id is None


def test_supervisions_annotators_draw_detections(sv):
    image = np.full((*SIZE, 3), 255, np.uint8)
    theirs = detections().to_supervision()
    boxes = sv.BoxAnnotator(thickness=1).annotate(image.copy(), theirs)
    masks = sv.MaskAnnotator(opacity=1).annotate(image.copy(), theirs[:1])
    assert (boxes[10, 25:55] != 255).any(-1).all() and (boxes[20, 30:50] == 255).all()
    np.testing.assert_array_equal((masks != 255).any(-1), theirs.mask[0])
    labels = sv.LabelAnnotator().annotate(image.copy(), theirs)
    points = sv.VertexAnnotator(radius=1).annotate(image.copy(), detections().to_supervision_keypoints())
    assert (labels != 255).any() and (points != 255).any()


def test_keypoints_to_supervision(sv):
    found = detections()
    theirs = found.to_supervision_keypoints()
    assert isinstance(theirs, sv.KeyPoints)
    np.testing.assert_array_equal(theirs.xy, found.keypoints[..., 1::-1])
    np.testing.assert_array_equal(theirs.keypoint_confidence, found.keypoints[..., 2])
    np.testing.assert_array_equal(theirs.detection_confidence, found.scores)
    with pytest.raises(ValueError, match="no keypoints: use a model with a KeypointBranch"):
        detections(keypoints=None).to_supervision_keypoints()


def test_from_supervision_gives_back_the_same_objects(sv):
    found = detections()
    back = Detections.from_supervision(found.to_supervision(), SIZE, key_points=found.to_supervision_keypoints())
    for name in ("boxes", "scores", "class_ids", "keypoints", "masks"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name), err_msg=name)
        assert getattr(back, name).dtype == getattr(found, name).dtype
    assert back.image_size == SIZE and back.class_names == NAMES and back.labels == found.labels
    assert back.extras["track_id"].tolist() == [4, -1, 7] and back.extras["angle"].tolist() == [0.5, 1, 2]
    assert back.encode_masks() == found.encode_masks()


def test_from_supervision_keeps_any_mask(sv, rng):
    masks = rng.random((4, *SIZE)) < 0.3
    masks[1] = False
    masks[2] = True
    masks[3, :, 40:] = False
    theirs = sv.Detections(xyxy=np.float32([[0, 0, 80, 60]] * 4), mask=masks)
    back = Detections.from_supervision(theirs, SIZE)
    np.testing.assert_array_equal(back.masks, masks)
    np.testing.assert_array_equal(back[[3, 1]].masks, masks[[3, 1]])
    assert back.scores.tolist() == [1] * 4 and back.class_ids.tolist() == [0] * 4 and back.class_names is None


def test_from_supervision_sorts_by_score_and_names_classes(sv):
    theirs = sv.Detections(
        xyxy=np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]),
        confidence=np.float32([0.2, 0.7]),
        class_id=np.array([2, 0]),
        data={"class_name": np.array(["bird", "cat"])},
    )
    found = Detections.from_supervision(theirs, SIZE)
    assert found.boxes.tolist() == [[6, 5, 8, 7], [2, 1, 4, 3]] and found.labels == ["cat", "bird"]
    assert found.class_names == ("cat", "1", "bird")
    named = Detections.from_supervision(theirs, SIZE, class_names=["a", "b", "c"])
    assert named.labels == ["a", "c"]
    assert len(Detections.from_supervision(sv.Detections.empty(), SIZE)) == 0


def test_supervisions_slicer_takes_detect(sv):
    """Each slice finds its bright square; the slicer moves it to the place that it has in the image."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[10:20, 70:84] = 255

    def detect(part):
        y, x = np.nonzero(part[..., 0])
        boxes = [[y.min(), x.min(), y.max() + 1, x.max() + 1]] if len(y) else []
        return Detections(boxes, [0.9] * len(boxes), [0] * len(boxes), part.shape[:2], NAMES).to_supervision()

    sliced = sv.InferenceSlicer(detect, slice_wh=64, overlap_wh=16, thread_workers=1)(image)
    found = Detections.from_supervision(sliced, image.shape[:2], class_names=NAMES)
    assert found.boxes[0].tolist() == [10, 70, 20, 84] and found.labels[0] == "cat"


def test_arguments_that_do_not_fit_raise(sv):
    theirs, points = detections().to_supervision(), detections().to_supervision_keypoints()
    with pytest.raises(UserError, match=r"masks have height and width \(60, 80\), but image_size is \(80, 60\)"):
        Detections.from_supervision(theirs, (80, 60))
    with pytest.raises(UserError, match="class id 1, but there are 1 class_names"):
        Detections.from_supervision(theirs, SIZE, class_names=["cat"])
    with pytest.raises(UserError, match="2 objects with keypoints, but 3 detections"):
        Detections.from_supervision(theirs, SIZE, key_points=points[:2])


@pytest.mark.parametrize("method", ["to_supervision", "to_supervision_keypoints"])
def test_missing_package_raises(monkeypatch, method):
    monkeypatch.setitem(sys.modules, "supervision", None)  # importing it fails, as if it were not installed
    with pytest.raises(UserError, match=rf"supervision is not installed, but {method} .*'kerasdet\[supervision\]'"):
        getattr(detections(), method)()
