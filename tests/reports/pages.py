"""Reads pages as HTML, and opens them in a browser."""

import contextlib
import html.parser

VOID = {"meta", "link", "img", "br", "input", "hr", "path", "line", "rect", "circle", "use"}


class Reader(html.parser.HTMLParser):
    """Collects texts, tables, images and ids, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.ids, self.tables, self.targets = [], [], [], [], {}, []
        self.table = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img":
            self.images.append(attributes)
        self.targets += [value for key, value in attributes.items() if key in ("src", "href", "xlink:href")]
        if tag == "tr" and self.table is not None:
            self.table.append([])
        if tag in ("td", "th") and self.table:
            self.table[-1].append("")
        if tag == "table":
            self.table = []

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "table":
            self.table = None

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] in ("style", "script"):
            return
        self.texts.append(data)
        if self.open[-1] == "caption":
            self.tables[data] = self.table
        elif self.table and self.table[-1]:
            self.table[-1][-1] += data


@contextlib.contextmanager
def watched_tab(browser, path, width, scheme):
    """Opens a tab with a page; every request and every message on its console is an error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    tab = context.new_page()
    wrong, requests = [], []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri(), timeout=0)
    yield tab
    context.close()
    assert wrong == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}
