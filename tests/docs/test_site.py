"""Builds the site as `make docs` does, serves it on loopback and opens it in Chromium."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request

import doc_blocks
import pytest

PAGES = ("", "tutorials/onnx/", "zoo/", "api/ops/", "design/")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the built site; a warning of MkDocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=doc_blocks.ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide_light", "phone_dark"])
def tab(request, browser, address):
    """A tab; a message on the console and a request to another server are errors."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(300_000)  # ends a test that hangs; no result depends on it
    tab = context.new_page()
    wrong = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else wrong.append(sent.url))
    yield tab
    context.close()
    assert wrong == []


def test_generated_contents_replace_the_sentence_below_a_mark(address):
    for page, heading in (
        ("zoo/", b'id="torchvision"'),
        ("configuration/", b'id="retinanet"'),
        ("rtmdet/", b"OpenVINO int8"),
    ):
        html = urllib.request.urlopen(address + page).read()
        assert heading in html and b"<code>make docs</code> builds" not in html


def test_no_markup_is_left_in_the_text(address):
    """A note such as "[1] [name](page.md)" is a link to Markdown's references, and the site draws no mermaid."""
    index = json.load(urllib.request.urlopen(f"{address}search/search_index.json"))
    pages = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert len(pages) > 40
    for page in pages:
        html = urllib.request.urlopen(f"{address}{page}").read().decode()
        assert "flowchart LR" not in html, page
        examples_as_text = re.findall(r"<blockquote>\s*<blockquote>", html)
        assert examples_as_text == [], page
        assert re.search(r"<code>[^<]*(\\\||&amp;lt;)", html) is None, page  # code in tables needs no escapes
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>|<[^>]+>", "", html, flags=re.DOTALL)
        assert re.findall(r"\w+\]\([\w./#-]+\)|\d\([\w./-]+\.md\S*\)", text) == [], page


def test_tutorials_are_notebooks_with_outputs(address):
    tutorials = sorted((doc_blocks.ROOT / "docs/tutorials").glob("*.md"))
    assert len(tutorials) == 5
    for page in tutorials:
        with urllib.request.urlopen(f"{address}tutorials/{page.stem}.ipynb") as file:
            cells = json.load(file)["cells"]
        shown = [cell for cell in cells if cell.get("outputs")]
        assert len(shown) == page.read_text().count("<!-- output -->")
        with urllib.request.urlopen(f"{address}tutorials/{page.stem}/") as file:
            assert f'href="../{page.stem}.ipynb"' in file.read().decode()


def test_search_finds_pages(tab, address):
    tab.goto(address)
    if tab.viewport_size["width"] < 900:
        tab.locator("label[for=__search]").first.click()
    # Material reads the input on keyup. `fill` sends no key: it works only if the index happens to be ready after it
    tab.locator("input.md-search__input").press_sequentially("calibration")
    first = tab.locator(".md-search-result__item a[href*=calibration]").first  # results of "cal" have other addresses
    first.wait_for()
    assert "int8" in tab.locator(".md-search-result__list").inner_text()
    first.click()
    tab.wait_for_url(re.compile("calibration"))


def test_theme_follows_the_system_and_the_button_overrides_it(tab, address):
    def brightness():
        colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    tab.goto(address)
    dark = tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (brightness() < 128) == dark
    tab.locator("form[data-md-component=palette] label:visible").click()
    assert (brightness() < 128) != dark


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_accessible_and_fit_the_screen(tab, address, page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    assert tab.goto(f"{address}{page}").status == 200
    width, screen = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= screen
    if page == "zoo/" and screen > 1000:  # recommended models; longer tables of the page scroll
        table, column = tab.evaluate("['table', 'h1'].map(name => document.querySelector(name).offsetWidth)")
        assert table <= column
    result = axe.Axe().run(tab)
    assert result.response["passes"]
    assert result.violations_count == 0, result.generate_report()
