"""Hooks of MkDocs: put generated text and files of the repository into pages.

A line ``<!-- generated: NAME -->`` of a page is replaced by what the function NAME in `_HOMES` returns.
"""

import importlib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_HOMES = {
    "benchmarks": "measurements",
    "changelog": "repository",
    "contributing": "repository",
    "recipes": "settings",
    "runtimes": "measurements",
    "surface": "settings",
    "zoo": "weights",
}

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def generate(name: str) -> str:
    """Returns the text for a mark.

    Args:
        name: A key of `_HOMES`.

    Raises:
        KeyError: If there is no such text; MkDocs stops.
    """
    sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # MkDocs restores the path after loading this file
    return getattr(importlib.import_module(_HOMES[name]), name)()


def on_page_markdown(markdown: str, **_) -> str:
    """Replaces the marks of a page by generated text."""
    return re.sub(r"^<!-- generated: (\w+) -->$", lambda match: generate(match[1]), markdown, flags=re.MULTILINE)
