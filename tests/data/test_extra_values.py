"""Tests that further numbers of annotations reach the batches in the rows of their objects."""

import json

import numpy as np
import pytest
from PIL import Image

from kerasdet import data
from kerasdet.data.transforms import Mosaic, RandomFlip, ResizeShortestEdge
from kerasdet.errors import UserError
from kerasdet.models import Branch

KEYS = ("depth", "angles", "hidden")


def annotation_file(folder, change=lambda annotations: None):
    """Writes two images whose boxes have a width of their depth, so that the numbers identify the objects."""
    images, annotations = [], []
    for image_id, widths in ((1, (8, 11)), (2, (14, 17, 20))):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 40, "width": 60})
        for x, width in enumerate(widths):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
            annotation |= {"bbox": [2 + 10 * x, 3, width, 9], "area": 9 * width}
            annotations.append(annotation | {"depth": width, "angles": [width, -width], "hidden": width > 10})
    change(annotations)
    path = folder / "coco.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]})
    )
    return path


def check(batch):
    real = batch["class_ids"].numpy() >= 0
    widths = (batch["boxes"][..., 3] - batch["boxes"][..., 1]).numpy()
    depth, angles, hidden = (batch[key].numpy() for key in KEYS)
    np.testing.assert_allclose(depth, np.where(real, widths, 0), rtol=1e-5)
    np.testing.assert_array_equal(angles, np.stack([depth, -depth], -1))
    np.testing.assert_array_equal(hidden, depth > 10)
    return real.sum()


@pytest.mark.parametrize("transforms", [(), (RandomFlip(),)], ids=["plain", "flip"])
def test_numbers_stay_with_their_objects(tmp_path, transforms):
    dataset = data.CocoDataset(annotation_file(tmp_path), tmp_path, extra_annotation_keys=KEYS)
    assert dataset.extra_shapes == {"depth": (), "angles": (2,), "hidden": ()}
    batches = data.training_batches(dataset, 2, transforms)
    assert [check(batch) for batch in batches.take(2)] == [5, 5]
    [batch] = data.evaluation_batches(data.open_dataset(tmp_path, extra_annotation_keys=KEYS), 2)
    assert check(batch) == 5
    assert "depth" not in next(iter(data.evaluation_batches(data.CocoDataset(tmp_path / "coco.json", tmp_path), 1)))


def test_mixed_images_join_and_drop_the_rows_of_numbers(tmp_path):
    dataset = data.CocoDataset(annotation_file(tmp_path), tmp_path, extra_annotation_keys=["depth"])
    mosaic = Mosaic((40, 60), min_visible=0.9, transforms=[ResizeShortestEdge((40,), 60)])
    for batch in data.training_batches(dataset, 2, [mosaic]).take(3):
        real = batch["class_ids"].numpy() >= 0
        assert batch["depth"].shape == real.shape
        assert set(batch["depth"].numpy()[real]) <= {8, 11, 14, 17, 20} and not batch["depth"].numpy()[~real].any()


class DepthBranch(Branch):
    """Predicts the depth of each region; only its ground truth matters here."""

    target_key = "depth"


def test_branch_learns_from_numbers_that_were_read(tmp_path):
    path = annotation_file(tmp_path)
    DepthBranch().check_dataset(data.CocoDataset(path, tmp_path, extra_annotation_keys=["depth"]))
    with pytest.raises(UserError, match="was read without depth: add this key to extra_annotation_keys"):
        DepthBranch().check_dataset(data.CocoDataset(path, tmp_path))


def drop(annotations):
    del annotations[3]["depth"]


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (drop, ["depth"], r'annotation 4 has no "depth"; expected a finite number'),
        (lambda a: a[1].update(depth="deep"), ["depth"], r'annotation 2 has "depth" .deep.; expected a finite number'),
        (lambda a: a[2].update(angles=[1]), ["angles"], r'annotation 3 has "angles" \[1\]; expected as many numbers'),
        (lambda a: None, ["boxes"], "extra_annotation_keys has 'boxes', which batches already use"),
        (lambda a: None, "depth", r"extra_annotation_keys is the string 'depth'"),
    ],
)
def test_wrong_numbers_raise_user_error(tmp_path, change, keys, message):
    path = annotation_file(tmp_path, change)
    with pytest.raises(UserError, match=message):
        data.CocoDataset(path, tmp_path, extra_annotation_keys=keys)
