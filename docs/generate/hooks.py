"""Hooks of MkDocs: find the package, put generated text into pages, and make notebooks of tutorials.

A line ``<!-- generated: NAME -->`` of a page is replaced by what the function NAME in `_HOMES` returns, and a line
``<!-- results: NAME -->`` by the table of ``benchmarks/results/NAME.json``. Lines of text directly below a mark tell
readers of the Markdown file where the contents are; the site drops them.
"""

import importlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

_HOMES = {
    "benchmarks": "measurements",
    "changelog": "repository",
    "contributing": "repository",
    "latency": "measurements",
    "recipes": "settings",
    "runtimes": "measurements",
    "surface": "settings",
    "zoo": "weights",
}

_MARK = re.compile(r"^<!-- (?P<kind>generated|results): (?P<name>\w+) -->$(?:\n\S.*)*", re.MULTILINE)

_PACKAGES = tempfile.TemporaryDirectory()  # of links to kerasdet as it is installed

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


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> None:
    """Shows mkdocstrings the package as it is installed: `kerasdet.export` lies in another folder of the repository."""
    package = Path(_PACKAGES.name, "kerasdet")
    if not package.exists():
        package.mkdir()
        for path in [*(ROOT / "kerasdet").iterdir(), ROOT / "export"]:
            if not (package / path.name).exists():
                (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_PACKAGES.name]


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
    return _MARK.sub(lambda match: _contents(match["kind"], match["name"]), markdown)


def _contents(kind, name):
    return generate(name) if kind == "generated" else _module("measurements").results(name)


def _is_tutorial(file):
    return file.src_uri.startswith("tutorials/")


def _module(name):
    sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]  # MkDocs restores the path after loading this file
    return importlib.import_module(name)
