import pytest

from kerasdet.checkpoints.zoo import COCO_CLASSES, COCO_CLASSES_BY_ID
from kerasdet.data.categories import match_classes
from kerasdet.errors import UserError


def test_unused_classes_of_torchvisions_models_match_nothing():
    """A COCO file has 80 categories, torchvision's detectors 90 classes, ten of them called N/A."""
    index = match_classes(COCO_CLASSES, COCO_CLASSES_BY_ID, COCO_CLASSES, "val.json")
    assert [None if i is None else COCO_CLASSES[i] for i in index] == [
        None if name == "N/A" else name for name in COCO_CLASSES_BY_ID
    ]


def test_used_class_names_must_differ():
    with pytest.raises(UserError, match=r"the model has a class name twice"):
        match_classes(["cat", "dog"], ["cat", "cat", "N/A"], ["cat"], "val.json")
