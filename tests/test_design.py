"""Tests that the tables of docs/design.md and CONTRIBUTING.md name files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_STEPS = 12  # of one way through the code


def find(name):
    """Returns the path that a table means: inside kerasdet/, or inside the repository."""
    return next((path for path in (ROOT / "kerasdet" / name, ROOT / name) if path.exists()), None)


def names(path):
    """Returns the names of functions, classes, constants, methods ("Class.method") in a file or folder."""
    found = set()
    for file in [path] if path.suffix == ".py" else path.rglob("*.py"):
        module = ast.parse(file.read_text())
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        for owner, body in (("", module.body), *((f"{each.name}.", each.body) for each in classes)):
            found |= {owner + node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            targets = [
                node.targets if isinstance(node, ast.Assign) else [node.target]
                for node in body
                if isinstance(node, ast.Assign | ast.AnnAssign)
            ]
            found |= {owner + target.id for each in targets for target in each if isinstance(target, ast.Name)}
    return found


def steps(text):
    """Yields (number, files, functions) for the rows of the tables that list steps."""
    for number, files, functions in re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE):
        yield int(number), re.findall(r"`([\w/.]+)`", files), re.findall(r"`([\w.]+)`", functions)


def wrong_steps(text):
    """Returns what the tables of steps name wrongly."""
    wrong = []
    for _, files, functions in steps(text):
        paths = [find(name) or find(f"{Path(files[0]).parent}/{name}") for name in files]
        wrong += [name for name, path in zip(files, paths, strict=True) if path is None]
        known = set().union(*(names(path) for path in paths if path is not None))
        wrong += [name for name in functions if files and name not in known]
    return wrong


def test_steps_name_existing_files_and_functions():
    text = (ROOT / "docs" / "design.md").read_text()
    assert wrong_steps(text) == []
    assert len([*steps(text)]) > 30 and max(number for number, *_ in steps(text)) <= MAX_STEPS


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_tables_name_existing_paths(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("|")]
    written = re.findall(r"`((?:kerasdet|export|docs|custom_ops|gin_configs)/[\w/.{},]*)`", "\n".join(rows))
    paths = []
    for path in written:
        before, choices, after = re.fullmatch(r"([^{]*)(?:\{(.*)\})?(.*)", path).groups()
        paths += [before + choice + after for choice in (choices or "").split(",")]
    assert len(paths) > (40 if page == "CONTRIBUTING.md" else 5)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_wrong_steps_are_found():
    text = "| 1 | `models/fcos.py` | `FCOS.call`, `FCOS.cal` | x |\n| 2 | `models/fcoss.py` | `FCOS` | y |\n"
    assert wrong_steps(text) == ["FCOS.cal", "models/fcoss.py", "FCOS"]
