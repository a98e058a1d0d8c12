"""Hooks of MkDocs: put generated text and files of the repository into pages, and tutorials into notebooks.

A line ``<!-- generated: NAME -->`` of a page is replaced by what the function NAME in `_HOMES` returns, and a line
``<!-- results: NAME -->`` by the table of ``benchmarks/results/NAME.json``.
"""

import importlib
import json
import os
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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
    return getattr(_module(_HOMES[name]), name)()


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds a notebook for each tutorial."""
    for file in [file for file in files.documentation_pages() if _is_tutorial(file)]:
        contents = _module("notebooks").notebook(Path(file.abs_src_path), file.content_string)
        files.append(File.generated(config, f"tutorials/{file.name}.ipynb", content=json.dumps(contents)))


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Replaces the marks of a page by generated text, and links a tutorial to its notebook."""
    if _is_tutorial(page.file):
        title, _, rest = markdown.partition("\n")
        name = f"{page.file.name}.ipynb"
        markdown = f'{title}\n\n[This page as a notebook]({name}){{download="{name}"}}\n{rest}'
    markdown = re.sub(r"^<!-- generated: (\w+) -->$", lambda match: generate(match[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- results: (\w+) -->$", lambda match: _results(match[1]), markdown, flags=re.MULTILINE)


def _results(name):
    return _module("measurements").results(name)


def _is_tutorial(file):
    return file.src_uri.startswith("tutorials/")


def _module(name):
    sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # MkDocs restores the path after loading this file
    return importlib.import_module(name)
