"""Finds out which sources have a parity test, from the lists of models at the top of the test files."""

import ast
import dataclasses
import functools
from pathlib import Path

from kerasdet.checkpoints import SOURCES
from kerasdet.checkpoints.sources import Source

TESTS = Path(__file__).resolve().parents[2] / "tests" / "checkpoints"
FILES = ("test_*parity.py", "make_torchvision_data.py")  # the second lists the models of test_mobile_parity.py
_SIZES = ("depth", "deepen_factor", "widen_factor", "channels", "num_blocks")


@functools.cache
def tested() -> tuple[str, ...]:
    """Returns the sources whose outputs a parity test compares with those of the source framework."""
    texts = [text for pattern in FILES for path in sorted(TESTS.glob(pattern)) for text in _constants(path)]
    names = (name for text in texts for name in (text.replace("_", "/", 1), f"torchvision/{text}"))
    return tuple(dict.fromkeys(name for name in names if name in SOURCES))


def parity(source: str) -> str:
    """Says whether a source has a parity test.

    Args:
        source: A key of `SOURCES`.

    Returns:
        "yes"; "as NAME" if NAME is a tested source that differs in its size only, or "as NAME without its masks";
        "features" for a backbone whose features the test of a detector compares, and "as NAME" if that holds for the
        backbone NAME; or "no".
    """
    names = tested()
    if source in names:
        return "yes"
    if SOURCES[source].kind != "backbone":
        return _as(source, names)
    parts = [_network(SOURCES[name]) for name in names]
    backbones = [name for name in SOURCES if SOURCES[name].kind == "backbone" and _network(SOURCES[name]) in parts]
    return "features" if source in backbones else _as(source, backbones)


def _constants(path):
    """Yields the strings in assignments at the top level of a file."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign):
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def _as(source, names):
    for ending, removed in (("", {}), (" without its masks", {"mask": None})):
        own = dataclasses.replace(_any_size(SOURCES[source]), **removed)
        for name in names:
            if dataclasses.replace(_any_size(SOURCES[name]), **removed) == own:
                return f"as `{name.partition('/')[2]}`{ending}"
    return "no"


def _any_size(source: Source) -> Source:
    parts = {part: {k: v for k, v in getattr(source, part).items() if k not in _SIZES} for part in ("backbone", "neck")}
    return dataclasses.replace(source, **parts)


def _network(source: Source) -> tuple:
    """Returns what decides the numbers of a backbone. Norms of all kinds compute the same in inference."""
    kept = ("depth", "deepen_factor", "widen_factor", "stride_in_1x1", "deform_stages", "reduced_tail")
    return source.framework, source.backbone_class, *(source.backbone.get(name) or None for name in kept)
