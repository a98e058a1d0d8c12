"""Runs the examples in docstrings."""

import doctest
import importlib
import inspect
import itertools
import pkgutil

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import kerasdet
from kerasdet import config, data, export, layers, ops, training

SMALL = {
    "(480, 640, 3)": "(48, 64, 3)",
    "size=(320, 320)": "size=(64, 96)",
}  # and the published model is a tiny one
NAMES = {"kerasdet": kerasdet, "keras": keras, "np": np, "tf": tf, "PIL": PIL, "nms": ops.nms, "config": config}
for room in (data, data.transforms, export, layers, training):
    NAMES |= {name: getattr(room, name) for name in room.__all__}
NEED_FILES = ("VocDataset", "read", "verify")  # downloads that the tests do not have
# Examples that show no output and run all the same. Those of `train` and `training_batches` train as pages do.
WITHOUT_OUTPUT = [
    "kerasdet.config.reading.load",
    "kerasdet.data.recognise.dataset_from_examples",
    "kerasdet.data.transforms.compose.RandomApply",
    "kerasdet.data.transforms.compose.UntilStep",
    "kerasdet.data.transforms.copy_paste.CopyPaste",
    "kerasdet.export.workflow.export_and_verify",
    "kerasdet.inference.detections.Detections",
    "kerasdet.inference.detections.Detections.filter",
    "kerasdet.layers.retinanet_head.RetinaNetHead",
    "kerasdet.loading.load",
    "kerasdet.loading.pretrained",
    "kerasdet.visualize.draw_curve",
]


def examples():
    """Yields the examples of all docstrings that show an output, and those of `WITHOUT_OUTPUT`."""
    finder, seen = doctest.DocTestFinder(), set()
    rooms = pkgutil.walk_packages(kerasdet.__path__, "kerasdet.")
    formats = pkgutil.walk_packages(export.__path__, "kerasdet.export.")  # lies in another folder of a clone
    for found in itertools.chain(rooms, formats):
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # of an optional package
            continue
        for test in finder.find(module, found.name):
            shown = any(each.want for each in test.examples) and test.name.rpartition(".")[2] not in NEED_FILES
            if test.name not in seen and (shown or test.name in WITHOUT_OUTPUT):
                seen.add(test.name)
                yield test
    assert seen >= set(WITHOUT_OUTPUT), set(WITHOUT_OUTPUT) - seen


class WhatIsShown(doctest.OutputChecker):
    """Compares the output of statements that show one; progress bars are no part of an example."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("found", examples(), ids=lambda found: found.name.removeprefix("kerasdet."))
def test_examples_run(found, trained):
    text = inspect.cleandoc(found.docstring)
    for old, new in SMALL.items():
        text = text.replace(old, new)
    test = doctest.DocTestParser().get_doctest(text, {**found.globs, **NAMES}, found.name, None, 0)
    lines = []
    doctest.DocTestRunner(WhatIsShown(), verbose=False).run(test, out=lines.append)
    assert not lines, "".join(lines)
