"""Checks rules of style that ruff cannot check, on the source text alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def sources():
    """Yields every Python file of kerasdet/ and export/; `kerasdet/export` can be a link to `export`."""
    for folder in ("kerasdet", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(ROOT / "kerasdet" / "export"):
                yield pytest.param(path, id=str(path.relative_to(ROOT)))


def public_functions(node, owner=None):
    """Yields (function, class or None) for public functions, and for methods of public classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name in ("__init__", "__call__"):
                yield child, owner
        elif isinstance(child, ast.If | ast.Try):
            yield from public_functions(child, owner)


def missing_annotations(code):
    """Returns "line 3, function: argument" for each missing annotation; *args and **kwargs need none."""
    missing = []
    for function, owner in public_functions(ast.parse(code)):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        decorators = {decorator.id for decorator in function.decorator_list if isinstance(decorator, ast.Name)}
        if owner is not None and "staticmethod" not in decorators:
            arguments = arguments[1:]  # self or cls
        names = [argument.arg for argument in arguments if argument.annotation is None]
        names += ["return value"] * (function.returns is None and function.name != "__init__")
        missing += [f"line {function.lineno}, {function.name}: {name}" for name in names]
    return missing


@pytest.mark.parametrize("path", sources())
def test_public_functions_are_annotated(path):
    assert missing_annotations(path.read_text()) == []


def test_missing_annotations_are_found():
    code = """
def public(a, b: int, *args, c=1, **kwargs): pass
def _private(a): pass
class Public:
    def __init__(self, a): pass
    def method(self, a: int) -> int:
        def inner(a): pass
    @staticmethod
    def static(a) -> None: pass
    @classmethod
    def of_class(cls): pass
class _Private:
    def method(self, a): pass
"""
    assert missing_annotations(code) == [
        "line 2, public: a",
        "line 2, public: c",
        "line 2, public: return value",
        "line 5, __init__: a",
        "line 9, static: a",
        "line 11, of_class: return value",
    ]
