import json
import shutil

import pytest
import tiny

from kerasdet.data import CocoDataset
from kerasdet.training.fingerprint import fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fingerprint") / "data"
    tiny.shapes_data(folder, num_images=3)
    return folder


def test_moved_dataset_keeps_its_fingerprint(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    name = fingerprint(CocoDataset(folder / "annotations.json"))
    assert name.startswith("3 images of 5 classes (checksum ")
    assert fingerprint(CocoDataset(moved / "annotations.json")) == name


@pytest.mark.parametrize("change", ["box", "class", "name", "order"])
def test_changed_dataset_has_another_fingerprint(folder, tmp_path, change):
    data = json.loads((folder / "annotations.json").read_text())
    if change == "box":
        data["annotations"][0]["bbox"][2] -= 1
    elif change == "class":
        first = data["annotations"][0]
        first["category_id"] = next(c["id"] for c in data["categories"] if c["id"] != first["category_id"])
    elif change == "name":
        data["categories"][0]["name"] = "another"
    else:
        data["images"].reverse()
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    changed = CocoDataset(tmp_path / "annotations.json", folder / "images")
    assert fingerprint(changed) != fingerprint(CocoDataset(folder / "annotations.json"))
