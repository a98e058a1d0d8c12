import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tiny

import kerasdet

LIGHT = """
import sys
import kerasdet
import kerasdet.cli.parser
heavy = {"tensorflow", "keras", "numpy", "PIL", "gin"} & set(sys.modules)
assert not heavy, heavy
"""
KERASDET_FIRST = """
import sys
import kerasdet
assert "keras" not in sys.modules
from kerasdet.data import CocoDataset  # which imports TensorFlow, and so Keras, in the middle of kerasdet
import keras
"""
KERAS_FIRST = """
import keras
import kerasdet
"""
LOAD = """
model = keras.models.load_model(sys.argv[1])
assert type(model) is kerasdet.RetinaNet
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "model.keras"
    tiny.detector().save(path)
    return path


def python(code, *arguments):
    root = Path(kerasdet.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert process.returncode == 0, process.stderr


def test_package_and_parser_import_only_the_standard_library():
    python(LIGHT)


@pytest.mark.parametrize("imports", [KERASDET_FIRST, KERAS_FIRST], ids=["kerasdet_first", "keras_first"])
def test_keras_loads_a_saved_model_after_importing_kerasdet(file, imports):
    python(imports + LOAD, file)


def test_all_classes_are_registered_with_keras():
    names = {name.removeprefix("kerasdet>") for name in keras.saving.get_custom_objects()}
    assert {"RetinaNet", "FCOS", "MaskRCNN", "ResNet", "FPN", "SGD", "WarmupCosine"} <= names


def test_every_public_name_can_be_used():
    for name in kerasdet.__all__:
        assert getattr(kerasdet, name).__name__ == name
    assert set(kerasdet.__all__) <= set(dir(kerasdet))
    assert kerasdet.ops.nms
    with pytest.raises(AttributeError, match="module 'kerasdet' has no attribute 'RetinaNett'"):
        kerasdet.RetinaNett  # noqa: B018


def test_classes_are_the_same_in_package_and_module():
    from kerasdet.models.retinanet import RetinaNet

    assert kerasdet.RetinaNet is RetinaNet
