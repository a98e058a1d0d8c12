"""Tests that modules import only lower layers.

A new module or folder needs a place in `LAYERS`. If a module must import a higher layer, reconsider the design.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. A unit may import itself and the units on the lines above its own.
LAYERS = (
    ("errors", "keras_compat"),
    ("paths", "arguments"),
    ("files",),
    ("keras_utils",),
    ("geometry",),
    ("losses", "ops"),
    ("layers", "data"),
    ("visualize",),
    ("inference",),
    ("models",),
    ("checkpoints", "evaluation"),
    ("training", "export", "analysis"),
    ("loading",),
    ("__init__",),  # the public names of the package
    ("reports",),
    ("config",),
    ("cli",),
    ("__main__",),
)
MAY_IMPORT = {
    room: {lower for line in LAYERS[:index] for lower in line} for index, line in enumerate(LAYERS) for room in line
}
ONLY_IN_CONFIG = {"gin"}
NOWHERE = {"torch", "torchvision", "detectron2", "tensorflow_addons"}


def sources():
    """Yields every Python file and its unit in the table."""
    for folder, unit in ((ROOT / "kerasdet", None), (ROOT / "export", "export")):
        for path in sorted(folder.rglob("*.py")):
            name = unit or path.relative_to(folder).parts[0].removesuffix(".py")
            yield pytest.param(path, name, id=str(path.relative_to(ROOT)))


def imported(code):
    """Yields the dotted names of all imports, including those inside functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def units(names):
    """Returns the units of dotted names; a name that only `kerasdet/__init__.py` defines belongs to that file."""
    inside = [name.split(".")[1:2] for name in names if name.split(".")[0] == "kerasdet"]
    return {unit[0] if unit and unit[0] in MAY_IMPORT else "__init__" for unit in inside}


@pytest.mark.parametrize("path,unit", sources())
def test_modules_import_only_lower_layers(path, unit):
    assert unit in MAY_IMPORT, f"{path.name} has no line in the table of this test."
    names = list(imported(path.read_text()))
    assert units(names) - {unit} <= MAY_IMPORT[unit]
    packages = {name.split(".")[0] for name in names}
    assert not packages & NOWHERE
    assert unit == "config" or not packages & ONLY_IN_CONFIG


@pytest.mark.parametrize("path", sorted((ROOT / "export").rglob("verify_worker.py")), ids=lambda path: path.parent.name)
def test_workers_of_export_formats_do_not_import_kerasdet(path):
    assert not [name for name in imported(path.read_text()) if name.split(".")[0] == "kerasdet"]


def test_all_forms_of_import_are_found():
    code = (
        "import kerasdet.models.fcos\ndef f():\n from kerasdet import losses, RetinaNet\nfrom kerasdet.ops import nms"
    )
    assert units(imported(code)) == {"models", "losses", "__init__", "ops"}
