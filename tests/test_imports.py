"""Imports point down only: who may import whom inside kerasdet.

A module or folder may import itself and what its line names. To add one, write its line; to need another arrow is to
reconsider the design.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GEOMETRY = {"boxes", "anchors", "coders", "matching", "sampling", "losses", "masks", "keypoints"}
GEOMETRY |= {"images", "serialization", "replicas", "precision"}
NETWORK = GEOMETRY | {"ops", "layers"}
PICTURES = {"boxes", "images", "masks", "keypoints"}
LIBRARY = NETWORK | {"models", "data", "visualize", "evaluation", "training", "checkpoints", "export", "loading"}
LIBRARY |= {"saved_detector", "tflite_detector", "shipping"}

MAY_IMPORT = {
    "boxes": set(),
    "anchors": GEOMETRY,
    "coders": GEOMETRY,
    "matching": GEOMETRY,
    "sampling": GEOMETRY,
    "losses": GEOMETRY,
    "masks": GEOMETRY,
    "keypoints": GEOMETRY,
    "images": GEOMETRY,
    "serialization": GEOMETRY,
    "replicas": set(),
    "precision": set(),
    "ops": NETWORK,
    "layers": NETWORK,
    "models": NETWORK,
    "data": PICTURES,
    "visualize": PICTURES | {"data"},
    "evaluation": PICTURES | {"data", "replicas"},
    "training": PICTURES | {"data", "evaluation", "replicas", "serialization", "visualize"},
    "checkpoints": NETWORK | {"models"},
    "saved_detector": NETWORK,
    "tflite_detector": NETWORK | {"models", "saved_detector"},
    "export": NETWORK | {"models", "saved_detector", "tflite_detector"},
    "loading": NETWORK | {"models", "training", "saved_detector", "tflite_detector"},
    "shipping": NETWORK | {"models", "data", "evaluation", "export", "loading", "saved_detector", "tflite_detector"},
    "config": LIBRARY,
    "cli": LIBRARY | {"config"},
    "__init__": LIBRARY,  # the face of the package
}
ONLY_IN_CONFIG = {"gin"}
NOWHERE = {"torch", "torchvision", "detectron2", "tensorflow_addons"}


def sources():
    """Every Python file, and the name it has in the table."""
    for folder, unit in ((ROOT / "kerasdet", None), (ROOT / "export", "export")):
        for path in sorted(folder.rglob("*.py")):
            name = unit or path.relative_to(folder).parts[0].removesuffix(".py")
            yield pytest.param(path, name, id=str(path.relative_to(ROOT)))


def imported(code):
    """Dotted names of all imports, those inside functions included."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def units(names):
    """The table's names among dotted ones; what only `kerasdet/__init__.py` offers counts as that file."""
    inside = [name.split(".")[1:2] for name in names if name.split(".")[0] == "kerasdet"]
    return {unit[0] if unit and unit[0] in MAY_IMPORT else "__init__" for unit in inside}


@pytest.mark.parametrize("path,unit", sources())
def test_imports_point_down(path, unit):
    assert unit in MAY_IMPORT, f"{path.name} has no line in the table of this test."
    names = list(imported(path.read_text()))
    assert units(names) - {unit} <= MAY_IMPORT[unit]
    packages = {name.split(".")[0] for name in names}
    assert not packages & NOWHERE
    assert unit == "config" or not packages & ONLY_IN_CONFIG


def test_no_pair_imports_one_another():
    for unit in MAY_IMPORT.keys() - NETWORK:
        assert not [other for other in MAY_IMPORT[unit] if unit in MAY_IMPORT.get(other, ())], unit


def test_the_reader_of_imports_sees_through_the_forms():
    code = "import kerasdet.models.fcos\ndef f():\n from kerasdet import boxes, RetinaNet\nfrom kerasdet.ops import nms"
    assert units(imported(code)) == {"models", "boxes", "__init__", "ops"}
