"""Runs the code blocks of pages and writes their outputs into the pages.

    python docs/generate/record.py FOLDER docs/tutorials/finetune.md ...

The blocks run as they stand, in FOLDER: it holds what a reader has, `mine/` and `photo.jpg`. An output that exists is
replaced; a block without one gets none, so write an empty one where a page shall show it:

    <!-- output -->
    ```text
    ```
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import code_blocks

HEAD, TAIL = 4, 12  # lines of a long output that the page shows
_LIBRARIES = re.compile(r"WARNING: All log messages|[IWE]0000 |\d{4}-\d\d-\d\d |INFO: Created TensorFlow")


def run(block: code_blocks.Block, names: dict) -> str:
    """Runs a block and returns what it prints.

    Args:
        block: A block of Python or Bash.
        names: Names of the page's earlier Python blocks; the block adds its own.
    """
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, str(block), "exec"), names)
        return printed.getvalue()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["bash", "-ec", block.code], env=environment, text=True, **streams)
    if done.returncode:
        raise SystemExit(f"{block} failed:\n{done.stdout}")
    return done.stdout


def shorten(text: str) -> str:
    """Returns the first and last lines of an output, without progress bars, logs of libraries and absolute paths."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.replace(f"{Path.cwd()}/", "").strip().split("\n")]
    lines = [line for line in lines if not _LIBRARIES.match(line)]
    if len(lines) > HEAD + TAIL + 1:
        lines = [*lines[:HEAD], "...", *lines[-TAIL:]]
    return "".join(f"{line}\n" for line in lines)


def record(page: Path) -> None:
    """Runs the blocks of a page in the working folder and writes their outputs into it."""
    source = page.read_text()
    names, parts, position = {"__name__": "__page__"}, [], 0
    for block in code_blocks.read_blocks(page, source):
        if block.kind == "file":
            Path(block.text).parent.mkdir(parents=True, exist_ok=True)
            Path(block.text).write_text(block.code)
        if block.kind in ("check", "file"):
            continue
        output = run(block, names)
        if block.output is not None:
            before = source[position : block.end].removesuffix(f"```text\n{block.output}```\n")
            parts.append(f"{before}```text\n{shorten(output)}```\n")
            position = block.end
    page.write_text("".join([*parts, source[position:]]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="+", type=lambda path: Path(path).resolve())
    options = parser.parse_args()
    os.chdir(options.folder)
    for page in options.pages:
        record(page)
