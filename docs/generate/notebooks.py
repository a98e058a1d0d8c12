"""Turns a tutorial into a Jupyter notebook, with the outputs that the page shows."""

from pathlib import Path

import code_blocks


def notebook(page: Path, source: str) -> dict:
    """Returns a notebook (nbformat 4.5) of a page.

    Blocks that the page does not run, and files that it shows, stay text. Bash blocks become cells of ``%%bash``.
    ``record.py`` ran the others in their order, which the cells' numbers tell.

    Args:
        page: The file, for messages.
        source: Its Markdown.
    """
    cells, position = [], 0
    blocks = [block for block in code_blocks.read_blocks(page, source) if block.kind not in ("check", "file")]
    for number, block in enumerate(blocks, 1):
        cells += [_text(source[position : block.start]), _code(block, number)]
        position = block.end
    cells = [cell for cell in [*cells, _text(source[position:])] if cell["source"]]
    return {
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _text(markdown):
    lines = [line for line in markdown.strip().splitlines() if not line.startswith("<!--")]
    return {"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)}


def _code(block, number):
    source = block.code.rstrip("\n")
    outputs = [{"output_type": "stream", "name": "stdout", "text": block.output}] if block.output else []
    return {
        "cell_type": "code",
        "execution_count": number,
        "metadata": {},
        "outputs": outputs,
        "source": f"%%bash\n{source}" if block.language == "bash" else source,
    }
