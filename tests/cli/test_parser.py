import os
import subprocess
import sys
from pathlib import Path

import pytest

from kerasdet.cli import parser
from kerasdet.cli.parser import make_parser
from kerasdet.export import formats
from kerasdet.export.spec import FormatSpec, Option

COMMANDS = ("train", "eval", "predict", "export", "convert", "inspect")


def parse(*words):
    return make_parser().parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        parse(command, "--help")
    assert stop.value.code == 0
    assert f"  kerasdet {command} " in capsys.readouterr().out.partition("Example")[2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "required: CONFIG"),
        (["predict", "x"], "required: IMAGE"),
        (["eval", "x", "--batch-size", "0"], "'0' is not a positive integer"),
        (["eval", "x", "--tta", "1.5"], "'1.5' is not a positive integer"),
        (["predict", "x", "y", "--score-threshold", "2"], "'2' is not a number from 0 to 1"),
        (["predict", "x", "y", "--score-threshold", "nan"], "'nan' is not a number from 0 to 1"),
        (["export", "x", "--verify-images", "a.png", "y"], "export MODEL OUT [OPTION ...]\n"),
        (["export", "x", "y", "--fast"], "unrecognized arguments: --fast"),
        (["export", "x", "y", "--precision", "int4"], "invalid choice: 'int4'"),
        (["convert", "x", "--out", "y"], "required: --source"),
        (["convert", "x", "--source", "s", "--out", "y", "--norm-epsilon", "-1"], "'-1' is not a number from 0 to 1"),
        (["predict", "x", ""], "argument IMAGE: the path is empty"),
        (["eval", "x", "--data", " "], "argument --data: the path is empty"),
    ],
)
def test_wrong_usage_exits_with_usage_and_reason(capsys, words, reason):
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: kerasdet")
    assert reason in error


def test_debug_is_accepted_before_and_after_the_command():
    assert not parse("eval", "x").debug
    assert parse("--debug", "eval", "x").debug
    assert parse("eval", "x", "--debug").debug


def test_home_folder_is_expanded_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = parse("predict", "~/run", "~/a.jpg", "@~/list.txt", "~/*.png", "--draw", "~/drawn")
    assert (options.model, options.draw) == ("/home/me/run", "/home/me/drawn")
    assert options.images == ["/home/me/a.jpg", "@/home/me/list.txt", "/home/me/*.png"]
    options = parse("export", "~/run", "~/out", "--verify-images", "~/a.jpg", "--calibration-images", "~/b.jpg")
    assert (options.out, options.verify_images, options.calibration_images) == (
        "/home/me/out",
        ["/home/me/a.jpg"],
        ["/home/me/b.jpg"],
    )


def test_every_format_and_option_is_on_the_command_line():
    options = vars(parse("export", "run", "out"))
    for spec in formats.specs():
        assert parse("export", "run", "out", "--format", spec.name).format == spec.name
        assert {option.name for option in spec.options} <= set(options)
        for precision in spec.precisions:
            assert parse("export", "run", "out", "--precision", precision).precision == precision


def test_option_that_formats_share_has_the_choices_of_all(monkeypatch):
    size = Option("size", None, "height and width", kind="count", nargs=2)
    speed = Option("speed", 1, "a speed", kind="int")
    own = Option("postprocessing", "top", "the best box", choices=("top",))
    ours = FormatSpec("toy", ".toy", ("float32",), lambda path: False, [size, speed, own])
    monkeypatch.setattr(parser, "specs", lambda: [*formats.specs(), ours])
    options = parse("export", "run", "out.toy", "--format", "toy", "--size", "8", "9", "--speed", "3")
    assert (options.format, options.size, options.speed) == ("toy", [8, 9], 3)
    for choice in ("raw", "postprocess", "top"):
        assert parse("export", "run", "out", "--postprocessing", choice).postprocessing == choice


def test_help_imports_no_tensorflow():
    code = "import sys\nfrom kerasdet.cli import parser\nparser.make_parser()\nassert 'tensorflow' not in sys.modules"
    root = Path(parser.__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)})
