"""Runs the code of README and docs, follows their links, and looks up the gin names that they mention."""

import re

import code_blocks
import doc_blocks
import pytest

from kerasdet import config

pytestmark = pytest.mark.usefixtures("unoptimized_graphs", "warm_workers")
PAGES = [pytest.param(page, id=str(page.relative_to(doc_blocks.ROOT))) for page in doc_blocks.PAGES]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_WITHOUT_CODE = re.compile(r"```.*?^ *```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def anchors(page):
    """Returns the anchors of a page's headings, as Markdown processors make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def broken_links(page, text):
    """Returns the links of a text in the place of `page` that lead to no file or no heading."""
    broken = []
    for link in _LINK.findall(_WITHOUT_CODE.sub("", text)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def unknown_gin_names(text):
    """Returns the names like `Validation.every` in the code of a text whose argument does not exist."""
    code = " ".join(re.findall(r"```.*?^ *```|`[^`\n]+`", text, re.DOTALL | re.MULTILINE))
    found = re.findall(r"(?<![\w.@/])([A-Z]\w+|train)\.([a-z]\w*)\s?=", code)
    known = {name: {*keys, *config.INHERITED[name]} for name, keys in config.ARGUMENTS.items()}
    return [f"{name}.{key}" for name, key in found if name in known and key not in known[name]]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, trained):
    trained.run_page(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES)
def test_gin_names_exist(page):
    assert unknown_gin_names(page.read_text()) == []


def test_wrong_links_and_names_are_found():
    page = doc_blocks.ROOT / "README.md"
    text = "[a](docs/missing.md) [b](docs/design.md#layers-of-packages) [c](#no-such-heading) `[d](code.md)`"
    assert broken_links(page, text) == ["docs/missing.md", "#no-such-heading"]
    assert unknown_gin_names("`Validation.evry=2` `Validation.every=2` `train.stepz = 1`") == [
        "Validation.evry",
        "train.stepz",
    ]


def test_wrong_commands_are_found():
    def check(code):
        doc_blocks.check(code_blocks.Block(doc_blocks.ROOT / "README.md", 1, "bash", code))

    check("kerasdet train finetune --set Validation.every=2 --set NUM_CLASSES=...\n")
    with pytest.raises(AssertionError, match="wrong option"):
        check("kerasdet eval runs/mine --nothing\n")
    with pytest.raises(AssertionError, match="evry"):
        check("kerasdet train finetune --set Validation.evry=2\n")
    block = code_blocks.Block(
        doc_blocks.ROOT / "README.md", 1, "python", "steps = 9\n", "tiny", "steps = 8 -> steps = 2"
    )
    with pytest.raises(AssertionError, match="does not contain"):
        doc_blocks.tiny_code(block)


def test_readme_is_short():
    assert len((doc_blocks.ROOT / "README.md").read_text().splitlines()) <= 100
