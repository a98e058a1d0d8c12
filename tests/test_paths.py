import json
import os
from pathlib import Path

import pytest
import tiny

import kerasdet
from kerasdet import checkpoints, cli, config
from kerasdet.data import CocoDataset
from kerasdet.errors import UserError
from kerasdet.export.saved_model.write import export_saved_model
from kerasdet.export.tflite.load import TFLitePredictor
from kerasdet.export.tflite.write import export_tflite
from kerasdet.inference import VideoReader
from kerasdet.inference.images import open_image
from kerasdet.paths import expand, is_device, make_folder, prepare_file, prepare_files


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_tilde_is_the_home_folder(home):
    assert expand("~/runs/first") == home / "runs/first"
    assert expand(Path("~/runs")) == home / "runs"
    assert expand("~") == home
    assert expand("data/~/a") == Path("data/~/a")
    assert str(expand("~root/a")) == os.path.expanduser("~root/a")


def test_variables_are_expanded_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "/data")
    assert expand("$DATA/a") == expand("${DATA}/a") == Path("/data/a")
    for name in ("price_$5.png", "a$", "$(date)"):
        assert expand(name) == Path(name)
    with pytest.raises(UserError, match=r"^OUT_DIR is \$NOPE/x, and the environment variable NOPE is not set"):
        expand("$NOPE/x", "OUT_DIR")
    (tmp_path / "$NOPE").mkdir()
    (tmp_path / "$DATA.png").touch()
    for name in ("$NOPE/x", "$DATA.png"):
        assert expand(name) == Path(name)


def test_commands_and_gin_files_expand_variables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path / "mine"))
    tiny.shapes_data(tmp_path / "mine", num_images=1)
    assert cli.main(["data", "convert", "$DATA", "$DATA-yolo", "--to", "yolo"]) == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mine", "mine-yolo"]
    with pytest.raises(SystemExit):
        cli.main(["predict", "model.keras", "$NOPE/*.jpg"])
    assert "argument IMAGE: The path is $NOPE/*.jpg, and the environment variable NOPE is" in capsys.readouterr().err
    monkeypatch.setenv("GIN", str(config.GIN_CONFIGS))
    Path("own.gin").write_text("include '$GIN/retinanet_r18_fpn_shapes.gin'\nOUT_DIR = '$DATA/run'\n")
    config.load("own.gin")
    assert expand(config.macro("OUT_DIR")) == tmp_path / "mine" / "run"
    Path("own.gin").write_text("include '$NOPE/retinanet_r18_fpn_shapes.gin'\n")
    with pytest.raises(UserError, match=r"The path in `include` is \$NOPE/retinanet_r18_fpn_shapes\.gin, and the"):
        config.load("own.gin")


# Each fails for a file that is missing, or in the way, and its message has the path that it looked for.
TAKES_A_PATH = {
    "load": kerasdet.load,
    "checkpoints.read": checkpoints.read,
    "CocoDataset": CocoDataset,
    "CocoDataset.images": lambda path: CocoDataset(tiny_annotations(), path),
    "detect": open_image,
    "VideoReader": VideoReader,
    "TFLitePredictor": TFLitePredictor,
    "export_saved_model": lambda path: export_saved_model(tiny.detector(), "~/full"),
    "export_tflite": lambda path: export_tflite(None, "~/full/there.tflite"),
}


def tiny_annotations():
    return Path(os.environ["HOME"]) / "data" / "annotations.json"


@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_every_function_that_takes_a_path_expands_it(home, name):
    tiny.shapes_data(home / "data", num_images=1)
    (home / "full").mkdir()
    (home / "full" / "there.tflite").write_text("mine")
    with pytest.raises((OSError, ValueError)) as raised:
        TAKES_A_PATH[name]("~/nothing")
    assert str(home) in str(raised.value)
    assert "~" not in str(raised.value)


def test_configuration_in_the_home_folder_is_found(home):
    (home / "own.gin").write_text("include 'finetune.gin'\n")
    settings = ["CHECKPOINT=~/model", "NUM_CLASSES=2", "TRAIN_ANNOTATIONS='~/a.json'", 'EVAL_ANNOTATIONS="~/b.json"']
    config.load("~/own.gin", [*settings, "OUT_DIR=~/runs/x"])
    names = ("CHECKPOINT", "TRAIN_ANNOTATIONS", "EVAL_ANNOTATIONS", "OUT_DIR")
    assert [expand(config.macro(name)) for name in names] == [home / n for n in ("model", "a.json", "b.json", "runs/x")]


@pytest.mark.parametrize(
    "value,message",
    [
        (7, r"^OUT_DIR is 7: expected the path .* such as \./7 if that is its name\.$"),
        (None, r"^OUT_DIR is None: expected the path of a file or folder\. Pass a path such as runs/first\.$"),
        (True, r"^OUT_DIR is True: .* runs/first"),
        (["a"], r"^OUT_DIR is \['a'\]: "),
        (b"runs", r"^OUT_DIR is b'runs': "),
        ("a\0b", r"^OUT_DIR is 'a\\x00b': expected a path without a null byte"),
        ("runs\table", r"^OUT_DIR is 'runs\\table': expected a path without control characters"),
        (" ", r"^OUT_DIR is empty: expected the path"),
        (Path("gs://bucket/run"), r"^OUT_DIR is gs:/bucket/run, a URL"),
        ("gs://bucket/run", r"^OUT_DIR is gs://bucket/run, a URL: expected the path of a local file or folder\. Mount"),
    ],
)
def test_value_that_is_no_path_raises(value, message):
    with pytest.raises(UserError, match=message):
        expand(value, "OUT_DIR")


def test_file_to_write_gets_its_folders(tmp_path):
    file = tmp_path / "new" / "folder" / "numbers.json"
    assert prepare_file(str(file), "--json") == file
    assert file.parent.is_dir() and not file.exists()
    file.write_text('[{"score": 1}]')
    assert prepare_file(file, "--json") == file
    assert file.read_text() == '[{"score": 1}]'
    assert [path.name for path in file.parent.iterdir()] == ["numbers.json"]


def test_only_outputs_of_commands_are_overwritten(tmp_path):
    file = tmp_path / "val.json"
    empty = {"images": [], "categories": [], "annotations": []}
    for content in ("", "[]", '{"summary": {}}', '{"segm": {"summary": {}}}', '{"findings": []}'):
        file.write_text(content)
        assert prepare_file(file, "--json") == file
    file.write_text(json.dumps(empty))
    assert prepare_file(file, "--coco", may_be_coco=True) == file
    annotations, results = {**empty, "annotations": [{"id": 1}]}, [{"score": 1}, {"id": 1}]
    for content in (empty, {**empty, "info": {}}, annotations, results, {"shapes": []}, {"a.png": {"regions": []}}):
        file.write_text(json.dumps(content))
        with pytest.raises(
            UserError, match=r"^--json would overwrite .*/val\.json, which is not an output of kerasdet: "
        ):
            prepare_file(file, "--json")
    for name in ("a.png", "best.keras", "data.yaml"):
        (tmp_path / name).write_text("content")
        with pytest.raises(UserError, match=f"^--json would overwrite .*/{name}, which is not an output"):
            prepare_file(tmp_path / name, "--json")


def test_device_may_be_written(tmp_path):
    assert prepare_file("/dev/null", "--json") == Path("/dev/null")
    assert is_device(Path("/dev/stdout")) and is_device(Path("/proc/self/fd/1"))
    assert not is_device(tmp_path) and not is_device(tmp_path / "new.json") and not is_device(Path("/dev/shm/new.json"))


def test_link_to_itself_raises(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^--json is .*loop/a\.json, a symbolic link that points to itself"):
        prepare_files({"--json": tmp_path / "loop" / "a.json"}, {"--data": tmp_path / "loop"})
    with pytest.raises(OSError, match="it is a file or a broken link"):
        make_folder(tmp_path / "loop", "OUT_DIR")


def test_file_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=rf"^--json: {tmp_path}/file/new cannot be written: Not a directory\. Choose"):
        prepare_file(tmp_path / "file" / "new" / "a.json", "--json")
    with pytest.raises(
        OSError, match=rf"^--json: {tmp_path} is a folder: expected a file\. Add the name of a file in it\.$"
    ):
        prepare_file(tmp_path, "--json")
    with pytest.raises(
        OSError,
        match=rf"^--out: {tmp_path}/file cannot be written: it is a file or a broken link\. Choose a writable folder",
    ):
        make_folder(tmp_path / "file", "--out")


@pytest.mark.parametrize("name", ["base", "dataset", "schedule"])
def test_folders_of_the_user_do_not_hide_those_of_recipes(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    for file in (config.GIN_CONFIGS / name).iterdir():
        (tmp_path / name / file.name).write_text("STEPS = 'not this one'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config.load("retinanet_r18_fpn_bccd")
    assert config.macro("STEPS") == 730
