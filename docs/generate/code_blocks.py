"""Reads the code blocks of Markdown pages, with the comments that say how they run."""

import re
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("python", "bash", "gin")

_BLOCK = re.compile(
    r"^(?:<!-- (?P<kind>\w+): (?P<text>[^\n]+?) -->\n)?\n?(?P<indent> *)```(?P<language>\w+)[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)```\n?"
    r"(?:\n<!-- output -->\n```text\n(?P<output>.*?)^```\n?)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Args:
        page: The file.
        line: Line of the first line of code, counted from 1.
        language: One of `LANGUAGES`.
        code: The code, without the indentation of the block.
        kind: First word of the comment above the block, such as "tiny"; None without a comment.
        text: The rest of that comment.
        output: The output that the page shows after the block; None if it shows none.
        start: Offset of the block in the page, with its comment.
        end: Offset after the block and its output.
    """

    page: Path
    line: int
    language: str
    code: str
    kind: str | None = None
    text: str = ""
    output: str | None = None
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_blocks(page: Path, source: str | None = None) -> list[Block]:
    """Returns the blocks of a page in `LANGUAGES`, in order.

    Args:
        page: The file.
        source: Its contents; None reads them.
    """
    source = page.read_text() if source is None else source
    blocks = []
    for match in _BLOCK.finditer(source):
        if match["language"] in LANGUAGES:
            code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            line = source.count("\n", 0, match.start("code")) + 1
            place = (match["output"], match.start(), match.end())
            blocks.append(Block(page, line, match["language"], code, match["kind"], match["text"] or "", *place))
    return blocks
