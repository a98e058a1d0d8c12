"""Tests what `train` checks of its data before the first step."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kerasdet.data import Dataset, RandomFlip, ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.models import Preprocessing, RetinaNet
from kerasdet.training import SGD, Checkpointing, Validation, WarmupCosine, WarmupMultiStep, checks

MODEL = SimpleNamespace(num_classes=2, branches=(), loss_names=())


@pytest.fixture
def dataset(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")

    def make(*annotations, categories=("cat", "dog"), **options):
        data = {
            "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [2, 3, 8, 9], **each} for each in annotations],
        }
        return Dataset(data, tmp_path, source="held.json", **options)

    return make


@pytest.mark.parametrize(
    "annotations, message",
    [
        ([], "held.json has nothing to train on: its images have no objects. Use"),
        ([{"iscrowd": 1}, {"iscrowd": "true"}], r"its 2 objects are all crowds \(iscrowd 1\)"),
        ([{"bbox": [2, 3, 0, 9]}], r"its images have no objects \(dropped: 1 zero area boxes\)"),
        ([{"bbox": [90, 3, 5, 9]}], r"its images have no objects \(dropped: 1 outside boxes\)"),
    ],
)
def test_data_without_objects_raise_and_say_why(dataset, annotations, message):
    with pytest.raises(UserError, match=message):
        checks.check_objects(dataset(*annotations))


def test_one_object_is_enough(dataset):
    checks.check_objects(dataset({"iscrowd": "0"}, {"iscrowd": 1}))
    checks.check_objects(dataset({"difficult": 1}))


@pytest.mark.parametrize("shortest, warns", [((80,), True), ((64, 80), True), ((96,), False), ((64, 128), False)])
def test_training_at_other_sizes_than_detection_warns(caplog, shortest, warns):
    model = SimpleNamespace(preprocessing=Preprocessing(shortest=96, longest=128))
    checks.warn_of_other_sizes(model, [ResizeShortestEdge(shortest, 128), RandomFlip()])
    assert ("but detection resizes it to 96: set ResizeShortestEdge.shortest (training) and " in caplog.text) == warns


@pytest.mark.parametrize("rounding, warns", [("square", False), ("detectron2", True)])
def test_training_at_another_shape_than_detection_warns(caplog, rounding, warns):
    model = SimpleNamespace(preprocessing=Preprocessing(shortest=96, longest=96, rounding="square"))
    checks.warn_of_other_sizes(model, [ResizeShortestEdge(96, 96, rounding=rounding)])
    message = "Training keeps the aspect ratio of images, but detection stretches images to a square"
    assert (message in caplog.text) == warns


def test_validation_data_take_the_classes_of_the_training_data(dataset):
    data = dataset({}, {"category_id": 2})
    swapped = Validation(dataset({}, {"category_id": 2}, categories=("dog", "cat")))
    matched = checks.match_validation(MODEL, data, swapped).data
    assert matched.class_names == ("cat", "dog") and matched.records[0].class_ids.tolist() == [1, 0]
    fewer = checks.match_validation(MODEL, data, Validation(dataset({}, categories=("dog",)))).data
    assert fewer.class_names == ("cat", "dog") and fewer.records[0].class_ids.tolist() == [1]
    assert checks.match_validation(MODEL, data, None) is None
    with pytest.raises(UserError, match=r"held\.json has objects of fox; expected the classes of the model, cat, dog"):
        checks.match_validation(MODEL, data, Validation(dataset({}, categories=("fox", "cat"))))


def test_ground_truth_that_an_evaluation_cannot_read_raises(dataset):
    model = SimpleNamespace(
        **{**vars(MODEL), "branches": (SimpleNamespace(metric="segm", check_dataset=lambda _: None),)}
    )
    rle = {"size": [5, 5], "counts": [25]}
    validation = Validation(dataset({"segmentation": rle}))  # read without masks, and yet evaluated with them
    message = r"held\.json: an annotation .* has an RLE mask of size \[5, 5\], but the image .* \[20, 30\]"
    with pytest.raises(UserError, match=message):
        checks.check_evaluation(model, validation)
    checks.check_evaluation(MODEL, validation)
    checks.check_evaluation(model, Validation(dataset({"segmentation": []}, {"segmentation": [[2, 3, 8, 3, 8, 9]]})))


WRONG_PARTS = {
    "model": ("runs/good", "train.model is 'runs/good': expected a detector. Pass kerasdet.load"),
    "data": ("d/mine", "train.data is 'd/mine': expected a dataset. Pass open_dataset"),
    "optimizer": ("adam", "train.optimizer is 'adam': expected a Keras optimizer. Pass kerasdet.training.SGD"),
    "transforms": (
        [RandomFlip],
        r"train.transforms\[0\] is the class RandomFlip, not an object: .* Write RandomFlip\(...\) \(gin: @",
    ),
    "sampler": (3, r"train.sampler is 3: expected an ImageSampler. Pass ImageSampler\(\)"),
    "validation": ("val.json", r"train.validation is 'val.json': expected a Validation. Pass Validation\(data\)"),
    "checkpointing": (
        Checkpointing,
        "train.checkpointing is the class Checkpointing, not an object: expected a Checkpointing",
    ),
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_part_of_another_kind_raises(dataset, name):
    value, message = WRONG_PARTS[name]
    parts = {"model": object.__new__(RetinaNet), "data": dataset({}), "optimizer": SGD(0.1), "transforms": []}
    parts |= dict.fromkeys(("sampler", "validation", "checkpointing", "step_options"))
    checks.check_parts(**parts)
    with pytest.raises(UserError, match=f"^{message}"):
        checks.check_parts(**{**parts, name: value})
    with pytest.raises(
        UserError, match=r"^train.optimizer is the class SGD, not an object: expected a Keras optimizer"
    ):
        checks.check_parts(**{**parts, "optimizer": SGD})
    with pytest.raises(UserError, match=r"^Validation.data is 'd/mine': expected a dataset"):
        checks.check_parts(**{**parts, "validation": Validation("d/mine")})


def test_single_object_in_the_place_of_a_list_raises():
    with pytest.raises(UserError, match=r"^transforms is .*RandomFlip.*: expected a list, also for a single object"):
        checks.check_lists(transforms=RandomFlip())
    with pytest.raises(UserError, match=r"^freeze is 'backbone': expected a list"):
        checks.check_lists(transforms=[], freeze="backbone")


def test_high_score_threshold_warns(caplog):
    for threshold in (0.2, 0.9):
        model = SimpleNamespace(postprocessing=SimpleNamespace(score_threshold=threshold))
        checks.warn_of_threshold(model, Validation(SimpleNamespace()))
        checks.warn_of_threshold(model, None)
    assert [record.args[0] for record in caplog.records] == [0.9]


def test_deviations_of_pixels_in_0_to_1_warn(caplog):
    checks.warn_of_units(SimpleNamespace(preprocessing=Preprocessing()))
    checks.warn_of_units(SimpleNamespace(preprocessing=Preprocessing((0.0,) * 3, (1.0,) * 3)))
    assert not caplog.records
    checks.warn_of_units(SimpleNamespace(preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))))
    assert "multiply mean and std by 255" in caplog.text


@pytest.mark.parametrize(
    "schedule, steps, message",
    [
        (WarmupCosine(0.1, 500, warmup_steps=100), 500, None),
        (
            WarmupMultiStep(0.1, (60, 80), warmup_steps=100),
            100,
            "WarmupMultiStep.warmup_steps=100 .* does not reach its peak",
        ),
        (
            WarmupCosine(0.1, 200, warmup_steps=10),
            300,
            "ends after WarmupCosine.total_steps=200 steps, but STEPS .* is 300",
        ),
        (0.1, 10, None),
    ],
)
def test_schedule_that_does_not_fit_the_run_warns(caplog, schedule, steps, message):
    checks.warn_of_schedule(SGD(schedule), steps)
    assert re.search(message, caplog.text) if message else not caplog.records


def test_evaluation_on_training_images_warns(dataset, caplog):
    data, other = dataset({}), dataset({})
    checks.warn_of_same_data(data, Validation(data))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    checks.warn_of_same_data(data, Validation(other))
    assert "1 of 1 images of held.json are also training images" in caplog.text
