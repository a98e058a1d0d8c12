"""Tests the pages that scripts write, against the code that they describe."""

import importlib.util
import inspect
import re

import doc_blocks
import pytest

from kerasdet import config
from kerasdet.checkpoints.zoo import ZOO


def generator(name):
    spec = importlib.util.spec_from_file_location(f"generate_{name}", doc_blocks.ROOT / "docs/generate" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("item", config.SURFACE, ids=lambda item: item.__name__)
def test_every_key_has_a_default_and_a_description(item):
    rows = list(generator("settings").describe_arguments(item))
    assert [row[0] for row in rows] == config.ARGUMENTS[item.__name__]
    assert [name for name, _, default, text in rows if not (default and text)] == []


def test_defaults_and_types_are_those_of_the_signature():
    rows = {row[0]: row for row in generator("settings").describe_arguments(config.training.Validation)}
    assert rows["data"][1:3] == ("Any", "required")
    assert rows["patience"][1:] == (
        r"int \| None",
        "`None`",
        "Number of evaluations in a row without a better `monitor` after which training stops. None never stops early.",
    )
    assert inspect.signature(config.training.Validation).parameters["every"].default == 1


def test_descriptions_end_where_the_next_section_begins():
    docstring = "Does.\n\nArgs:\n    a: One\n        and more.\n    b, c: Two.\n\nReturns:\n    d: no argument."
    assert generator("settings").argument_descriptions(docstring) == {"a": "One and more.", "b": "Two.", "c": "Two."}


def test_zoo_lists_every_name():
    table = generator("weights").zoo()
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == sorted(ZOO, key=lambda name: list(ZOO).index(name))


def test_measurements_become_tables(tmp_path, monkeypatch):
    measurements = generator("measurements")
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    assert "no measurements" in measurements.benchmarks()
    (tmp_path / "ops.json").write_text('{"cpu": "EPYC", "rows": [{"op": "nms", "ms": 1.23456}, {"op": "roi_align"}]}')
    assert measurements.benchmarks() == (
        "### ops\n\n- cpu: `EPYC`\n\n| op | ms |\n|---|---|\n| nms | 1.235 |\n| roi_align |  |"
    )
