import json

import pytest

from kerasdet.checkpoints.zoo import COCO_CLASSES, COCO_CLASSES_BY_ID
from kerasdet.data import CocoDataset, shapes
from kerasdet.data.categories import match_classes, read_categories
from kerasdet.data.values import Changes
from kerasdet.errors import UserError


def test_unused_classes_of_torchvisions_models_match_nothing():
    """A COCO file has 80 categories, torchvision's detectors 90 classes, ten of them called N/A."""
    index = match_classes(COCO_CLASSES, COCO_CLASSES_BY_ID, COCO_CLASSES, "val.json")
    assert [None if i is None else COCO_CLASSES[i] for i in index] == [
        None if name == "N/A" else name for name in COCO_CLASSES_BY_ID
    ]


def test_used_class_names_must_differ():
    with pytest.raises(UserError, match=r"the model has two classes of the same name"):
        match_classes(["cat", "dog"], ["cat", "cat", "N/A"], ["cat"], "val.json")


def test_dataset_takes_the_class_ids_of_torchvisions_models(tmp_path):
    annotations = shapes.write(tmp_path, num_images=3, image_size=(64, 64))
    contents = json.loads(annotations.read_text())
    names = ["stop sign", "person", "zebra", "toothbrush", "bear"]
    contents["categories"] = [{**old, "name": name} for old, name in zip(contents["categories"], names, strict=True)]
    annotations.write_text(json.dumps(contents))
    dataset = CocoDataset(annotations)
    matched = dataset.with_classes(COCO_CLASSES_BY_ID)
    assert matched.num_classes == 90 and len(set(matched.category_ids)) == 90
    for before, after in zip(dataset.records, matched.records, strict=True):
        found = [COCO_CLASSES_BY_ID[class_id] for class_id in after.class_ids]
        assert found == [names[class_id] for class_id in before.class_ids]


def test_names_in_another_case_match_by_name(caplog):
    assert match_classes(["Dog", "CAT"], ["cat", "dog"], ["Dog"], "val.json") == [1, 0]
    assert "Dog is read as dog, CAT is read as cat" in caplog.text
    assert match_classes(["Dog", "dog"], ["dog", "Dog"], ["Dog"], "val.json") == [1, 0]


def test_line_breaks_control_characters_and_accents_of_names_are_normalised():
    changes = Changes("a.json")
    given = ["big\ncat", "\x07dog\ud83d", "two  words", "cafe\u0301"]
    items = [{"id": number, "name": name} for number, name in enumerate(given)]
    names = [each["name"] for each in read_categories(items, changes, keypoints=False).values()]
    assert names == ["big cat", "dog", "two  words", "caf\u00e9"]
    assert changes.counts["converted_values"] == 3
