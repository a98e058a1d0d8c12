"""Tests the table of published weights, and `kerasdet zoo`."""

import json
import re

import pytest

from kerasdet import cli
from kerasdet.checkpoints import SOURCES
from kerasdet.checkpoints.zoo import (
    COCO_CLASSES,
    COCO_CLASSES_BY_ID,
    LICENSES,
    UNPUBLISHED,
    ZOO,
    find,
    is_name,
    similar,
)

HOSTS = {
    "torchvision": "https://download.pytorch.org/models/",
    "detectron2": "https://dl.fbaipublicfiles.com/detectron2/",
    "mmdet": "https://download.openmmlab.com/",
}


def test_every_source_with_a_published_file_has_a_plain_name():
    assert {name for name in ZOO if name in SOURCES} == set(SOURCES) - set(UNPUBLISHED)


@pytest.mark.parametrize("weights", ZOO.values(), ids=ZOO)
def test_facts_are_consistent(weights):
    framework = weights.name.partition("/")[0]
    spec = SOURCES[weights.source]
    assert weights.url.startswith(HOSTS[framework]) and weights.license == LICENSES[framework]
    assert (weights.box_ap is None) == (spec.kind in ("backbone", "rpn"))
    assert (weights.branch_ap is None) == (spec.mask is None and spec.keypoint is None)
    assert 10 < weights.megabytes < 600 and 20 < (weights.box_ap or 40) < 60
    file = weights.url.rpartition("/")[2]
    if "MSRA" not in weights.name:
        algorithm, digits = weights.digest
        assert (algorithm, len(digits)) == (("md5", 6) if framework == "detectron2" else ("sha256", 8))
        assert re.search(rf"[-_]{digits}\.(pth|pkl)$", file)


def test_files_are_named_once():
    assert len({weights.url for weights in ZOO.values()}) == len(ZOO)


def test_plain_names_are_the_most_accurate():
    for weights in ZOO.values():
        if weights.box_ap is not None:
            assert weights.box_ap <= ZOO[weights.source].box_ap


def test_classes_of_coco():
    assert (len(COCO_CLASSES), COCO_CLASSES[0], COCO_CLASSES[79]) == (80, "person", "toothbrush")
    assert (len(COCO_CLASSES_BY_ID), COCO_CLASSES_BY_ID[12], COCO_CLASSES_BY_ID[89]) == (90, "stop sign", "toothbrush")
    assert [number for number, name in enumerate(COCO_CLASSES_BY_ID, 1) if name == "N/A"] == [
        *(12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    ]
    assert tuple(name for name in COCO_CLASSES_BY_ID if name != "N/A") == COCO_CLASSES
    assert ZOO["torchvision/keypointrcnn_resnet50_fpn"].class_names == ("person",)


def test_unknown_names_raise_with_a_suggestion():
    with pytest.raises(FileNotFoundError, match=r"no such name in the zoo\. Did you mean mmdet/retinanet_r50_fpn_1x\?"):
        find("mmdet/retinanet_r50_fpn_1")
    with pytest.raises(FileNotFoundError, match=r"detectron2 publishes no weights of .* `kerasdet convert --source"):
        find("detectron2/fcos_R_50_FPN")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("maskrcnn_resnet50_fpn_v2", "torchvision/maskrcnn_resnet50_fpn_v2"),
        ("Torchvision/RetinaNet_ResNet50_FPN", "torchvision/retinanet_resnet50_fpn"),
        ("mmdetection/rtmdet-tiny", "mmdet/rtmdet_tiny"),
        ("COCO-Detection/retinanet_R_101_FPN_3x", "detectron2/retinanet_R_101_FPN"),
        ("runs/mine", ""),
    ],
)
def test_names_without_their_framework_are_found(text, name):
    assert similar(text) == name


def test_paths_are_no_names():
    assert is_name("mmdet/anything")
    assert not any(map(is_name, ("runs/first", "mmdet", "mmdet/", "mmdet/a/b", "./mmdet/a", "/mmdet/a", "")))


# The command


def test_command_lists_the_facts(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDET_HOME", str(tmp_path))
    assert cli.main(["zoo", "MaskRCNN"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert re.split("  +", header)[:4] == ["name", "task", "classes", "box AP"]
    assert [re.split("  +", row) for row in rows[:2]] == [
        f"torchvision/maskrcnn_resnet50_fpn{rest}  BSD-3-Clause  800, at most 1333, RGB, bilinear  no".split("  ")
        for rest in ("  masks  80  37.9  34.6  178", "_v2  masks  80  47.4  41.8  186")
    ]
    assert rows[2] == "" and str(tmp_path) in rows[3]


def test_command_prints_json_with_addresses_of_the_mirror(capsys, monkeypatch):
    monkeypatch.setenv("KERASDET_MIRROR", "https://ann:secret@models.example/all/")
    assert cli.main(["zoo", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == list(ZOO)
    entry = entries["detectron2/retinanet_R_50_FPN_1x"]
    assert entry["url"] == (
        "https://models.example/all/dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50_FPN_1x/190397773/"
        "model_final_bfca0b.pkl"
    )
    assert entry["hash"] == {"algorithm": "md5", "digits": "bfca0b"}
    assert (entry["source"], entry["input"]["channel_order"]) == ("detectron2/retinanet_R_50_FPN", "bgr")


def test_command_without_a_match_raises(capsys):
    assert cli.main(["zoo", "yolo"]) == 2
    assert (
        capsys.readouterr().err
        == f"kerasdet zoo: No name in the zoo contains 'yolo': run `kerasdet zoo` to list all {len(ZOO)} names.\n"
    )


def test_part_of_a_name_proposes_the_names_that_contain_it():
    with pytest.raises(FileNotFoundError, match=r"Did you mean torchvision/retinanet_resnet50_fpn"):
        find("torchvision/retinanet")
