"""Runs the examples in the docstrings of the functions that users copy most."""

import doctest
import inspect

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import kerasdet
from kerasdet import data, export, loading, ops, training

SMALL = {"steps=2000": "steps=1", "epochs=12": "epochs=1", "(640, 800), 1333": "(64,), 96", "(640,), 1067": "(64,), 96"}
SMALL |= {"(480, 640, 3)": "(48, 64, 3)", "size=(320, 320)": "size=(64, 96)"}  # and the published model is a tiny one
NAMES = {"kerasdet": kerasdet, "keras": keras, "np": np, "tf": tf, "PIL": PIL, "nms": ops.nms}
for room in (data, export, training):
    NAMES |= {name: getattr(room, name) for name in room.__all__}
EXAMPLES = [
    kerasdet.load,
    loading.pretrained,
    kerasdet.train,
    kerasdet.evaluate,
    kerasdet.RetinaNet.detect,
    kerasdet.Detections,
    kerasdet.Detections.filter,
    data.CocoDataset,
    data.open_dataset,
    data.dataset_from_examples,
    data.training_batches,
    export.export_and_verify,
    ops.nms,
]


class WhatIsShown(doctest.OutputChecker):
    """Compares the output of statements that show one; progress bars are no part of an example."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("item", EXAMPLES, ids=lambda item: item.__qualname__)
def test_examples_run(item, trained):
    text = inspect.getdoc(item)
    for old, new in SMALL.items():
        text = text.replace(old, new)
    test = doctest.DocTestParser().get_doctest(text, dict(NAMES), item.__qualname__, None, 0)
    assert test.examples
    lines = []
    doctest.DocTestRunner(WhatIsShown(), verbose=False).run(test, out=lines.append)
    assert not lines, "".join(lines)
