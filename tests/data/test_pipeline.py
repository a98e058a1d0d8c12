import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as rle

from kerasdet.data import ImageSampler, RandomFlip, ResizeShortestEdge, evaluation_batches, training_batches
from kerasdet.data.records import Record
from kerasdet.data.shapes import shapes_dataset
from kerasdet.data.transforms import CopyPaste, Mosaic, RandomApply, UntilStep
from kerasdet.errors import UserError
from kerasdet.geometry import masks

TRANSFORMS = (ResizeShortestEdge((30, 40), 64, sampling="range"), RandomFlip(0.5, 0.5))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Makes seven images; image i has i % 3 boxes, and its pixels and classes encode i."""
    folder, records = tmp_path_factory.mktemp("images"), []
    for i in range(7):
        height, width, count = 40 + i, 60 - 3 * i, i % 3
        Image.fromarray(np.full((height, width, 3), 10 * i + 10, np.uint8)).save(folder / f"{i}.png")
        boxes = np.array([[1, 2, 11 + j, 13] for j in range(count)], np.float32).reshape(-1, 4)
        class_ids, crowd = np.full(count, i, np.int32), np.arange(count) == 1
        records.append(Record(100 + i, str(folder / f"{i}.png"), height, width, True, boxes, class_ids, crowd))
    return SimpleNamespace(records=tuple(records))


def take(batches, count):
    return list(batches.take(count).as_numpy_iterator())


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_batches_depend_only_on_the_seed(dataset):
    first = take(training_batches(dataset, 3, TRANSFORMS, seed=4), 5)
    assert_same(first, take(training_batches(dataset, 3, TRANSFORMS, seed=4), 5))
    other = take(training_batches(dataset, 3, TRANSFORMS, seed=5), 5)
    assert [b["image_id"].tolist() for b in first] != [b["image_id"].tolist() for b in other]


@pytest.mark.parametrize("batches", [training_batches, evaluation_batches])
def test_iterators_are_deleted_at_once(dataset, batches):
    """TensorFlow's autotuner lets the deletion wait, as long as the iterator lived."""
    assert batches(dataset, 2).options().autotune.enabled is False


def test_start_step_resumes_exactly(dataset):
    whole = take(training_batches(dataset, 3, TRANSFORMS, seed=4), 9)
    for step in (1, 2, 7):
        resumed = training_batches(dataset, 3, TRANSFORMS, seed=4, start_step=step)
        assert_same(whole[step:], take(resumed, 9 - step))


def test_every_epoch_is_a_permutation(dataset):
    batches = take(training_batches(dataset, 2), 35)
    epochs = np.concatenate([batch["image_id"] for batch in batches]).reshape(10, 7)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(100, 107), (10, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 8


def test_transforms_draw_again_in_each_epoch(dataset):
    one = SimpleNamespace(records=dataset.records[2:3])
    batches = take(training_batches(one, 1, (RandomFlip(0.5, 0.5),)), 40)
    assert len({tuple(batch["boxes"][0, 0]) for batch in batches}) == 4


def test_padding_is_at_the_bottom_right_and_at_the_end_of_rows(dataset):
    for batch in take(training_batches(dataset, 3, TRANSFORMS, size_divisor=16), 8):
        height, width = batch["image"].shape[1:3]
        largest = batch["image_size"].max(0)
        assert (height, width) == tuple(-(-largest // 16) * 16)
        objects = (batch["image_id"] - 100) % 3
        assert batch["boxes"].shape[1] == max(objects.max(), 1)
        for i, (valid_height, valid_width) in enumerate(batch["image_size"]):
            image = batch["image"][i].copy()
            assert (image[:valid_height, :valid_width] == 10 * (batch["image_id"][i] - 99)).all()
            image[:valid_height, :valid_width] = 0
            assert not image.any()
            assert (batch["class_ids"][i, : objects[i]] == batch["image_id"][i] - 100).all()
            assert (batch["class_ids"][i, objects[i] :] == -1).all()
            assert not batch["boxes"][i, objects[i] :].any() and not batch["is_crowd"][i, objects[i] :].any()


def test_batch_without_objects_has_one_padded_row(dataset):
    empty = SimpleNamespace(records=tuple(record for record in dataset.records if not len(record.boxes)))
    [batch] = take(training_batches(empty, 2), 1)
    assert batch["boxes"].shape == (2, 1, 4) and (batch["class_ids"] == -1).all()


def test_pad_to_and_max_boxes_fix_the_shapes(dataset):
    batches = training_batches(dataset, 2, pad_to=(64, 96), max_boxes=5)
    assert batches.cardinality() == tf.data.INFINITE_CARDINALITY
    assert batches.element_spec["image"].shape == (2, 64, 96, 3)
    assert batches.element_spec["boxes"].shape == (2, 5, 4)
    [batch] = take(batches, 1)
    assert batch["image"].shape == (2, 64, 96, 3) and batch["class_ids"].shape == (2, 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="larger than pad_to"):
        take(training_batches(dataset, 2, pad_to=(32, 96)), 1)
    with pytest.raises(ValueError, match="Increase max_boxes to 2"):
        training_batches(dataset, 2, max_boxes=1)


def test_evaluation_covers_every_image_once(dataset):
    batches = evaluation_batches(dataset, 3, resize=ResizeShortestEdge((20, 90), 64))
    assert batches.cardinality() == 3
    batches = list(batches.as_numpy_iterator())
    assert [len(batch["image"]) for batch in batches] == [3, 3, 1]
    assert np.concatenate([batch["image_id"] for batch in batches]).tolist() == list(range(100, 107))
    sizes = np.concatenate([batch["original_size"] for batch in batches])
    np.testing.assert_array_equal(sizes, [(r.height, r.width) for r in dataset.records])
    assert all(batch["image_size"].min(1).tolist() == [20] * len(batch["image"]) for batch in batches)
    assert batches[0]["image"].shape[1:3] == (32, 32)
    plain = next(evaluation_batches(dataset, 3).as_numpy_iterator())
    np.testing.assert_array_equal(plain["image_size"], plain["original_size"])
    np.testing.assert_array_equal(plain["boxes"][2, 1], dataset.records[2].boxes[1])
    assert plain["is_crowd"][2].tolist() == [False, True]


@pytest.mark.parametrize("name, value", [("batch_size", 0), ("size_divisor", 0), ("pad_to", 64), ("mask_size", 0.5)])
def test_number_of_another_kind_raises(dataset, name, value):
    for batches in (training_batches, evaluation_batches):
        with pytest.raises(UserError, match=rf"{batches.__name__}\.{name} is {value}"):
            batches(dataset, **{"batch_size": 2, name: value})


def test_empty_dataset_raises():
    empty = SimpleNamespace(records=())
    with pytest.raises(ValueError, match="no images"):
        training_batches(empty, 2)
    with pytest.raises(ValueError, match="no images"):
        evaluation_batches(empty, 2)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return shapes_dataset(tmp_path_factory.mktemp("data") / "shapes", num_images=4, seed=3, masks=True, keypoints=True)


def annotated(dataset):
    data = json.loads(dataset.annotations.read_text())
    return {i["id"]: [a for a in data["annotations"] if a["image_id"] == i["id"]] for i in data["images"]}


def test_masks_and_keypoints_match_the_annotations(shapes):
    batches = take(training_batches(shapes, 2, (ResizeShortestEdge((96, 160)), RandomFlip(0.5, 0.3)), mask_size=56), 6)
    flips = set()
    for batch in batches:
        assert batch.keys() == {
            *("image", "image_size", "image_id", "original_size"),
            *("boxes", "class_ids", "is_crowd", "masks", "keypoints"),
        }
        assert batch["masks"].shape == (*batch["boxes"].shape[:2], 56, 56) and batch["masks"].dtype == np.uint8
        assert batch["keypoints"].shape == (*batch["boxes"].shape[:2], 4, 3)
        for i, image_id in enumerate(batch["image_id"]):
            truth, size = annotated(shapes)[image_id], batch["image_size"][i]
            original = rle.decode([a["segmentation"] for a in truth]).transpose(2, 0, 1)
            boxes = batch["boxes"][i, : len(truth)] * np.tile(batch["original_size"][i] / size, 2).astype(np.float32)
            crops = batch["masks"][i, : len(truth)].astype(np.float32) / 255
            pasted = masks.paste_masks(crops, boxes, *batch["original_size"][i]).numpy()
            views = [original[:, ::v, ::h] for v in (1, -1) for h in (1, -1)]
            overlap = [(pasted & view).sum() / (pasted | view).sum() for view in views]
            assert max(overlap) > 0.99
            flips.add(int(np.argmax(overlap)))
            assert not batch["masks"][i, len(truth) :].any() and not batch["keypoints"][i, len(truth) :].any()
            points = batch["keypoints"][i, : len(truth)]
            labelled = points[..., 2] > 0
            assert labelled.sum() == sum(a.get("num_keypoints", 0) for a in truth)
            if int(np.argmax(overlap)) == 0:
                expected = [
                    [k[1] + 0.5, k[0] + 0.5] for a in truth for k in np.reshape(a.get("keypoints", []), (-1, 3)) if k[2]
                ]
                scale = size / batch["original_size"][i]
                np.testing.assert_allclose(points[labelled][:, :2], np.reshape(expected, (-1, 2)) * scale, rtol=1e-5)
    assert len(flips) > 1


def test_images_without_objects_have_empty_masks(dataset):
    records = tuple(
        dataclasses.replace(
            record,
            num_runs=np.full(len(record.boxes), 2, np.int32),
            runs=np.tile(np.int32([0, record.height * record.width]), len(record.boxes)),
        )
        for record in dataset.records
    )
    batches = list(evaluation_batches(SimpleNamespace(records=records), 1).as_numpy_iterator())
    assert [batch["masks"].shape for batch in batches[:3]] == [(1, 1, 112, 112)] * 2 + [(1, 2, 112, 112)]
    assert not batches[0]["masks"].any() and (batches[2]["masks"] == 255).all()
    fixed = training_batches(SimpleNamespace(records=records), 2, max_boxes=5, mask_size=14)
    assert fixed.element_spec["masks"].shape == (2, 5, 14, 14)


MIXES = (RandomApply([Mosaic((24, 24), center=(0.7, 1.3), transforms=[RandomFlip()])], 0.7),)


def test_mixed_images_are_reproducible_resumable_and_sharded(shapes):
    options = {"seed": 4, "mask_size": 14, "sampler": ImageSampler(group_by_aspect_ratio=True)}
    whole = take(training_batches(shapes, 4, MIXES, **options), 6)
    assert len({len(batch["boxes"][0]) for batch in whole}) > 1
    resumed = training_batches(shapes, 4, MIXES, start_step=3, **options)
    assert_same(whole[3:], take(resumed, 3))
    workers = []
    for i in range(2):
        context = tf.distribute.InputContext(2, i, 2)
        workers.append(take(training_batches(shapes, 4, MIXES, input_context=context, **options), 3))
    for batch, *parts in zip(whole[:3], *workers, strict=True):
        for key in ("image_id", "image_size"):
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts]))
        for part, rows in zip(parts, (slice(0, 2), slice(2, 4)), strict=True):
            count = part["boxes"].shape[1]
            np.testing.assert_array_equal(batch["boxes"][rows, :count], part["boxes"])
            assert not batch["boxes"][rows, count:].any()


def test_until_step_switches_at_the_same_step_after_resuming(dataset):
    """Images are 40 + i pixels high: transforms up to step 3 make them 20 pixels high, those afterwards 30."""
    transforms = [UntilStep(3, [ResizeShortestEdge((20,), 1000)], [ResizeShortestEdge((30,), 1000)])]
    expected = [20] * 3 + [30] * 3
    batches = take(training_batches(dataset, 2, transforms), 6)
    assert [batch["image_size"].min() for batch in batches] == expected
    assert all("step" not in batch for batch in batches)
    resumed = take(training_batches(dataset, 2, transforms, start_step=2), 4)
    assert [batch["image_size"].min() for batch in resumed] == expected[2:]


def test_max_boxes_counts_the_objects_of_mixed_images(shapes):
    most = max(len(record.boxes) for record in shapes.records)
    batches = training_batches(shapes, 2, [Mosaic((64, 64))], max_boxes=most)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Increase max_boxes"):
        take(batches, 4)
    fixed = training_batches(shapes, 2, [Mosaic((64, 64))], max_boxes=4 * most)
    assert take(fixed, 1)[0]["boxes"].shape == (2, 4 * most, 4)


def test_users_function_may_use_pythons_if(dataset):
    def tall(example, seed):
        image_id = example["image_id"]
        if example["image_size"][0] > 42:
            image_id = -image_id
        return {**example, "image_id": image_id}

    batches = take(training_batches(dataset, 1, [RandomApply([tall], 1.0)]), 7)
    assert sorted(int(batch["image_id"][0]) for batch in batches) == [-106, -105, -104, -103, 100, 101, 102]


def test_error_of_a_transform_is_a_single_sentence(dataset):
    with pytest.raises(ValueError, match=r"^CopyPaste got examples without masks"):
        training_batches(dataset, 2, [CopyPaste()])
