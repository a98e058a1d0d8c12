import io
import os
import signal

import gin
import pytest
import tiny
from foreign_data import coco, picture, write_json, write_text

from kerasdet import cli, config
from kerasdet.cli.parser import make_parser
from kerasdet.data import open_dataset
from kerasdet.errors import UserError


def kerasdet(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def yolo(tmp_path):
    """A YOLO dataset with the splits train and valid."""
    for split in ("train", "valid"):
        for number in range(3):
            picture(tmp_path / f"yolo/{split}/images/{number}.png", number)
            write_text(tmp_path / f"yolo/{split}/labels/{number}.txt", "0 0.5 0.5 0.5 0.5\n2 0.3 0.3 0.2 0.2\n")
    write_text(tmp_path / "yolo/data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat, dog, fox]\n")
    return tmp_path / "yolo"


def test_check_exits_with_2_if_there_are_errors(yolo, capsys):
    assert kerasdet("data", "check", yolo) == 0
    assert "3 images, 6 objects" in capsys.readouterr().out
    assert kerasdet("data", "check", yolo, "--strict") == 2  # ../train/images is repaired
    (yolo / "train/images/1.png").write_bytes(b"")
    assert kerasdet("data", "check", yolo) == 2
    captured = capsys.readouterr()
    assert "images/1.png" in captured.out
    assert "has 1 error" in captured.err


def test_check_prints_the_format_once(yolo, capsys, caplog):
    assert kerasdet("data", "check", yolo) == 0
    assert (capsys.readouterr().out + caplog.text).count("YOLO with the splits") == 1


def test_evaluation_on_the_only_split_says_that_it_is_train(tmp_path, caplog):
    picture(tmp_path / "data/images/a.png", 0)
    write_json(tmp_path / "data/train.json", coco(["a.png", "b.png"]) | {"images": coco(["a.png"])["images"]})
    detection = {"image_id": 1, "category_id": 1, "bbox": [3, 3, 11, 12.5], "score": 0.5}
    results = write_json(tmp_path / "results.json", [detection])
    assert kerasdet("analyze", results, "--data", tmp_path / "data", "--out", tmp_path / "page.html") == 0
    assert "has only the split train" in caplog.text


def test_convert_and_split(yolo, tmp_path, capsys):
    assert kerasdet("data", "convert", yolo, tmp_path / "coco", "--to", "coco", "--classes", "fox,cat") == 0
    assert "train: 3 images, 6 boxes" in capsys.readouterr().out
    assert open_dataset(tmp_path / "coco", "val").class_names == ("fox", "cat")
    merged = ("--classes", "cat=pet,fox=pet,dog=")
    assert kerasdet("data", "convert", yolo, tmp_path / "merged", "--to", "tfrecord", *merged) == 0
    assert open_dataset(tmp_path / "merged", "val").class_names == ("pet",)
    assert kerasdet("data", "convert", yolo, tmp_path / "coco", "--to", "voc") == 2
    assert "already holds files" in capsys.readouterr().err
    assert make_parser().parse_args(["data", "convert", "a", "b", "--to", "coco", "--classes", '"x, y",z']).classes == [
        "x, y",
        "z",
    ]


@pytest.mark.parametrize("command", [("convert",), ("split", "--parts", "a=0.5,b=0.5")])
def test_convert_and_split_say_what_the_reader_left_out(yolo, tmp_path, caplog, command):
    write_text(yolo / "train/labels/0.txt", "0 0.5 0.5 0.5 0.5 0.9\n")
    name, *options = command
    assert kerasdet("data", name, yolo, tmp_path / "new", "--to", "coco", *options) == 0
    assert "yolo (train): 1 scores in label files ignored" in caplog.text


@pytest.mark.parametrize("parts", ["train", "train=x,val=y", "train=0.5,train=0.5", "../x=1"])
def test_wrong_parts_are_usage_errors(parts, capsys):
    with pytest.raises(SystemExit):
        kerasdet("data", "split", "a", "b", "--parts", parts)
    assert "argument --parts" in capsys.readouterr().err


def test_data_replaces_the_data_of_any_recipe(yolo):
    for recipe in ("finetune", "retinanet_r18_fpn_bccd", "faster_rcnn_r50_fpn_voc", "retinanet_r18_fpn_shapes"):
        config.load(recipe, ["CHECKPOINT=x"] * (recipe in ("finetune", "faster_rcnn_r50_fpn_voc")) + [f"DATA={yolo}"])
        assert config.macro("NUM_CLASSES") == 3
        data = config.eval_data()
        assert len(data) == 3 and data.class_names == ("cat", "dog", "fox")


def test_settings_that_data_replaces_have_no_effect(yolo, caplog, capsys):
    config.load("retinanet_r18_fpn_shapes", [f"DATA={yolo}", "TRAIN_DIR=elsewhere"])
    assert "--set TRAIN_DIR=elsewhere has no effect, because this configuration does not use %TRAIN_DIR" in caplog.text
    assert kerasdet("train", "finetune", "--data", yolo, "--set", "DATA=other") == 2
    assert "are both given: pass only one" in capsys.readouterr().err


def test_data_keeps_what_the_user_sets(yolo):
    config.load("retinanet_r18_fpn_bccd", [f"DATA={yolo}", "NUM_CLASSES=1", "CLASSES=('fox',)", "EVAL_SPLIT='train'"])
    assert config.macro("NUM_CLASSES") == 1
    data = config.eval_data()
    assert data.class_names == ("fox",) and "/train/" in data.records[0].path
    config.load("retinanet_r18_fpn_bccd", [f"DATA={yolo}", "CLASSES=('fox', 'cat')"])
    assert config.macro("NUM_CLASSES") == 2


def test_data_keeps_validation_and_bad_images_of_the_users_file(yolo, tmp_path):
    recipe = tmp_path / "mine.gin"
    write_text(recipe, "include 'retinanet_r18_fpn_bccd.gin'\ntrain.validation = None\nON_BAD_IMAGE = 'skip'\n")
    with recipe.open("a") as file:
        file.write("TRAIN_ANNOTATIONS = 'a.json'\nCLASSES = ('fox',)\n")
    config.load(recipe, [f"DATA={yolo}"])
    assert config.macro("ON_BAD_IMAGE") == "skip" and config.macro("NUM_CLASSES") == 1
    assert gin.query_parameter("train.validation") is None
    own = (
        "open_dataset.classes = ('fox', 'cat')\nopen_dataset.on_bad_image = 'skip'\ntrain/open_dataset.split = 'val'\n"
    )
    write_text(recipe, f"include 'retinanet_r18_fpn_bccd.gin'\n{own}train.validation = @Validation()\n")
    config.load(recipe, [f"DATA={yolo}"])
    assert config.macro("NUM_CLASSES") == 2 and gin.query_parameter("open_dataset.on_bad_image") == "skip"
    assert gin.query_parameter("train/open_dataset.split") == "val"


def test_masks_of_a_recipe_are_read(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}.png", 0)
        picture(tmp_path / f"images/{split}2.png", 0)
        write_json(tmp_path / f"{split}.json", coco([f"{split}.png", f"{split}2.png"]))
    config.load("mask_rcnn_r18_fpn_dsb", [f"DATA={tmp_path}"])
    assert config.eval_data().records[0].num_runs.tolist() != []


def test_recipe_of_a_user_includes_folder_gin(yolo, tmp_path):
    recipe = tmp_path / "mine.gin"
    data = f"include 'dataset/folder.gin'\nNUM_CLASSES = %gin.REQUIRED\nDATA = '{yolo}'\nEVAL_SPLIT = 'train'\n"
    write_text(recipe, f"include 'base/finetune.gin'\n{data}CHECKPOINT = 'x'\nOUT_DIR = 'x'\nSTEPS = 1\n")
    sizes = ["BATCH_SIZE=1", "SHORTEST_EDGE=64", "LONGEST_EDGE=64"]
    with pytest.raises(UserError, match=r"BATCH_SIZE, .* must be set"):
        config.load(recipe)
    recipe.write_text(recipe.read_text() + "".join(f"{size}\n".replace("=", " = ") for size in sizes))
    config.load(recipe)
    assert config.macro("NUM_CLASSES") == 3
    assert "/train/" in config.eval_data().records[0].path


def test_missing_split_names_the_remedy(yolo):
    write_text(yolo / "data.yaml", "train: train/images\nnames: [cat, dog, fox]\n")
    config.load("retinanet_r18_fpn_bccd", [f"DATA={yolo}"])
    with pytest.raises(UserError, match="kerasdet data split"):
        config.eval_data()


def test_eval_reads_any_format(yolo, tmp_path, capsys):
    tiny.detector(num_classes=3).save(tmp_path / "model.keras")
    assert kerasdet("eval", tmp_path / "model.keras", "--data", yolo) == 0
    assert "AP" in capsys.readouterr().out
    assert kerasdet("eval", tmp_path / "model.keras", "--data", yolo, "--split", "test") == 2
    assert "no split test" in capsys.readouterr().err
    assert kerasdet("eval", tmp_path / "model.keras", "--split", "val") == 2
    assert "--split was given without --data" in capsys.readouterr().err


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    data = coco(["a.jpg"])
    data["categories"][0]["name"] = "猫"
    picture(tmp_path / "images/a.jpg", 0)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert kerasdet("data", "check", write_json(tmp_path / "train.json", data)) == 2  # it has no objects
    terminal.flush()
    assert b"\\u732b" in terminal.buffer.getvalue()


def test_sigterm_removes_an_incomplete_dataset(yolo, tmp_path, monkeypatch):
    """The signal arrives while the first image is written."""
    monkeypatch.setattr("kerasdet.data.portable.Item.save", lambda item, path: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as exit_code:
        kerasdet("data", "convert", yolo, tmp_path / "coco", "--to", "coco")
    assert exit_code.value.code == 143
    assert not (tmp_path / "coco").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_backend_of_keras_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert kerasdet("zoo") == 2
    assert capsys.readouterr().err == (
        "kerasdet zoo: KERAS_BACKEND is 'torch': expected tensorflow, which kerasdet needs. Unset KERAS_BACKEND.\n"
    )
