"""Reads the code blocks of README and docs, and runs them as a reader would.

A comment in the line above a block says how it runs:

| comment | effect |
|---|---|
| (none) | runs as it stands |
| ``<!-- tiny: A -> B; C -> D -->`` | runs after the replacements, which make it small |
| ``<!-- check: REASON -->`` | is not run: Python is compiled; options and gin keys of commands are checked |
| ``<!-- file: PATH -->`` | is written to PATH, for the blocks after it |
"""

import contextlib
import glob
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from code_blocks import read_blocks

from kerasdet import cli, config
from kerasdet.cli.parser import make_parser
from kerasdet.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def tiny_code(block):
    """Returns the code of a block after the replacements of its comment. A replacement without effect is an error."""
    code = block.code
    for replacement in block.text.split("; ") if block.kind == "tiny" else ():
        old, arrow, new = replacement.partition(" -> ")
        assert arrow and old in code, f"{block}: the comment replaces {old!r}, which the block does not contain"
        code = code.replace(old, new)
    return code


def commands(code):
    """Returns the commands of a bash block: one a line, with continued lines joined."""
    lines = re.sub(r" *\\\n *", " ", code).splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def check(block):
    """Checks a block without running it."""
    if block.language == "python":
        compile(block.code, str(block), "exec")
        return
    command = r"""(?:^|exec |\| |&& )(kerasdet (?:"[^"\n]*"|'[^'\n]*'|[^;\n"'])+)"""
    for line in re.findall(command, block.code.replace("\\\n", " "), re.MULTILINE):
        check_command(shlex.split(line, comments=True)[1:], block)


def check_command(words, place):
    """Checks the options of a ``kerasdet`` command, and the recipe and the gin keys of ``kerasdet train``."""
    try:
        options = make_parser().parse_args(words)
    except SystemExit:
        raise AssertionError(f"{place}: `kerasdet {shlex.join(words)}` has a wrong option") from None
    if options.command != "train":
        return
    overrides = [each for each in options.overrides if not each.startswith("DATA=") and not each.endswith("=...")]
    try:
        config.load(options.config, overrides)
    except UserError as error:
        assert "must be set" in str(error), f"{place}: {error}"


def form(line):
    """Returns a line of output without its numbers and the widths of its columns."""
    return re.sub(r"-?\d[\d.,]*", "#", " ".join(line.split()))


class Session:
    """Runs the blocks of pages in the working folder. A command that ran before is not repeated."""

    def __init__(self, patch):
        self._patch = patch  # a MonkeyPatch, for what blocks export
        self._done = {}  # the output of each command and Python block

    def run_page(self, page):
        """Runs all blocks of a page; its Python blocks share their names."""
        names = {"__name__": "__page__"}
        for block in read_blocks(page):
            self._run(block, names)

    def _run(self, block, names):
        if block.kind == "check":
            check(block)
        elif block.kind == "file":
            Path(block.text).parent.mkdir(parents=True, exist_ok=True)
            Path(block.text).write_text(block.code)
        elif block.language == "python":
            code = tiny_code(block)
            if code not in self._done:
                self._done[code] = ""
                exec(compile("\n" * block.line + code, str(block.page), "exec"), names)
        elif block.language == "bash":
            lines = commands(tiny_code(block))
            printed = "".join(self.command(line, block) for line in lines)
            if block.output and printed:  # a run prints to the log only
                shown, now = (set(map(form, text.split("\n"))) - {""} for text in (block.output, printed))
                assert shown & now, f"{block}: record its output again, none of its lines is printed now:\n{printed}"
        else:
            raise AssertionError(f"{block}: a gin block needs a comment file or check")

    def command(self, line, place="README.md"):
        """Runs a command, unless it ran before, and returns what it printed if that can be seen."""
        words = shlex.split(line, comments=True)
        if (key := tuple(words)) in self._done:
            return self._done[key]
        printed = io.StringIO()
        if words[0] == "kerasdet":
            words = [name for word in words[1:] for name in (sorted(glob.glob(word)) or [word])]
            with contextlib.redirect_stdout(printed):
                assert cli.main(words) == 0, f"{place}: `kerasdet {shlex.join(words)}` failed"
        elif words == ["export", "PYTHONPATH=."]:
            self._patch.syspath_prepend(os.getcwd())
        else:
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            subprocess.run(["bash", "-c", line], check=True, env=environment)
        self._done[key] = printed.getvalue()
        return self._done[key]
