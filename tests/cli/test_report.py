import errno
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kerasdet import visualize
from kerasdet.cli.report import report_error
from kerasdet.errors import UserError, VerificationError
from kerasdet.geometry.anchors import AnchorGenerator

_DATA_ERROR = (
    "Graph execution error:\n\nDetected at node ReadFile defined at (most recent call last):\nError in user-defined "
    "function passed to ParallelMapDatasetV2:72 transformation with iterator: Iterator::Root::Prefetch::ParallelMapV2: "
    "{} [[{{{{node ReadFile}}}}]] [Op:__inf]"
)


def raised(function, *arguments, **keywords):
    """The exception of a call, with its traceback."""
    with pytest.raises(Exception) as error:
        function(*arguments, **keywords)
    return error.value


def throw(error):
    raise error


MISTAKES = {
    "user error": (lambda: throw(UserError("x.json is not\n  JSON")), "x.json is not JSON"),
    "verification": (lambda: throw(VerificationError("the boxes differ")), "the boxes differ"),
    "check of kerasdet": (lambda: visualize.grid([], 1), "grid got 0 images"),
    "file": (lambda: Path("/absent/x").read_text(), "/absent/x: No such file or directory"),
    "full disk": (lambda: throw(OSError(errno.ENOSPC, "No space left on device")), "No space left on device"),
    "loss": (lambda: throw(FloatingPointError("The loss is not finite")), "The loss is not finite"),
    "memory": (lambda: throw(MemoryError()), "The memory is full. Choose smaller batches"),
    "device memory": (
        lambda: throw(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating [Op:Conv2D]")),
        "OOM when allocating The memory or the disk is full: choose smaller batches",
    ),
    "missing image": (
        lambda: throw(tf.errors.NotFoundError(None, None, _DATA_ERROR.format("a/1.jpg; No such file"))),
        "a/1.jpg; No such file",
    ),
    "damaged image": (
        lambda: throw(tf.errors.InvalidArgumentError(None, None, _DATA_ERROR.format("a/1.jpg is damaged"))),
        "a/1.jpg is damaged",
    ),
    "name in other bytes than UTF-8": (
        lambda: '{"file": "a/caf\udce9.png"}'.encode(),
        "a/caf\\udce9.png is not valid UTF-8: expected a path whose bytes are text. Rename the file or the folder.",
    ),
    "argument of a part": (
        lambda: throw(TypeError("must be int\n  In call to configurable 'ResNet' (<class>)")),
        "in an argument of ResNet: must be int",
    ),
    "value of a part": (
        lambda: throw(ValueError("one\n  two\n  In call to configurable 'x' (<class>)")),
        "one two",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_of_the_user_is_one_line(capsys, mistake):
    function, message = MISTAKES[mistake]
    assert report_error(raised(function), "eval", debug=False) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"kerasdet eval: {message}")
    assert "{{" not in line and "[Op:" not in line
    assert captured.out == ""


BUGS = {
    "type": lambda: throw(TypeError("a slip")),
    "key": lambda: {}["scores"],
    "assertion": lambda: throw(AssertionError("impossible")),
    "runtime": lambda: throw(RuntimeError("inside of TensorFlow")),
    "library's value error": lambda: np.zeros(-1),
    "slip inside kerasdet": lambda: AnchorGenerator(sizes=3),
    "graph": lambda: throw(tf.errors.InvalidArgumentError(None, None, "shapes differ [[{{node MatMul}}]]")),
    "slip inside a long call of gin": lambda: throw(
        TypeError("a slip\n  In call to configurable 'train' (<function>)")
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_not_disguised_as_a_mistake(capsys, bug):
    error = raised(BUGS[bug])
    assert report_error(error, "train", debug=False) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"kerasdet train: {type(error).__name__}: ")
    assert last.startswith("This is a bug in kerasdet")
    assert "kerasdet --debug" in last


@pytest.mark.parametrize("error", [UserError("a mistake"), TypeError("a slip")], ids=["mistake", "bug"])
def test_debug_shows_the_stack(capsys, error):
    report_error(raised(throw, error), "train", debug=True)
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):")
    assert "in throw" in text
    assert f"\nkerasdet train: {'' if isinstance(error, UserError) else 'TypeError: '}{error}\n" in text
