import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from kerasdet.errors import UserError
from kerasdet.reports import charts, page


def test_texts_are_escaped_and_backticks_become_code():
    assert page.text("a < b & `x <y>`") == "a &lt; b &amp; <code>x &lt;y&gt;</code>"
    assert page.text(page.Html("<b>x</b>")) == "<b>x</b>"


def test_page_with_the_name_of_another_kind_of_file_raises():
    for path in ("new", "new.html", "new.HTM"):
        page.check_suffix(path)
    with pytest.raises(
        UserError, match=r"^--out new\.pdf is not the name of an HTML page: expected a name that ends in \.html"
    ):
        page.check_suffix("new.pdf")


@pytest.mark.parametrize(
    "part,whole,words",
    [
        (0, 7, "0 %"),
        (1, 100_000, "< 0.1 %"),
        (1, 30, "3.3 %"),
        (1, 8, "12 %"),
        (2, 3, "67 %"),
        (999, 1000, "> 99.5 %"),
        (5, 5, "100 %"),
        (0, 0, "0 %"),
    ],
)
def test_shares_never_round_to_nothing_or_everything(part, whole, words):
    assert page.share(part, whole).replace("\xa0", " ") == words


def test_decimals_have_all_digits_and_no_exponent():
    assert [page.decimal(n) for n in (0.12345671, 1e-7, 0.0, -3.1)] == ["0.12345671", "0.0000001", "0", "-3.1"]


def test_charts_replace_characters_that_would_abort_the_process():
    pytest.importorskip("vl_convert")
    drawn = charts.bars([("a\0b\x1bc", 1, "d\ud800"), ("tab\t", 1, "x")], "n", "").svg("narrow")
    assert "a\ufffdb\ufffdc" in drawn and "d\ufffd" in drawn


def test_counts_agree_with_their_noun():
    assert [page.count(n, "class", "classes") for n in (0, 1, 1200)] == ["0 classes", "1 class", "1,200 classes"]


def test_long_tables_name_their_length():
    columns = [page.Column("Name"), page.Column("Count", "number")]
    table = page.table(columns, [(f"row {i}", "1") for i in range(page.MAX_ROWS + 5)], "Things")
    assert table.count("<tr>") == page.MAX_ROWS + 1
    assert f"The first {page.MAX_ROWS} of {page.MAX_ROWS + 5} rows" in table
    assert 'aria-label="Things"' in table and '<td class="number">1</td>' in table


def test_findings_begin_with_problems():
    found = page.findings([page.Finding("good", "fine"), page.Finding("problem", "broken", "Repair it.", "files")])
    assert found.index("broken") < found.index("fine")
    assert '<a href="#files">' in found


CHARTS = {
    "bars": charts.bars([("cat", 3, "cat: 3"), ("dog <1>", 1, "dog: 1")], "objects", "Cats lead."),
    "histogram": charts.histogram(
        [(3, 4, 5, "8 to 16: 5"), (4, 5, 2, "16 to 32: 2")],
        "px",
        "Most are small.",
        markers=[(4, "anchor")],
        exponents=True,
    ),
    "stacked": charts.stacked(
        [(3, 4, "yes", 2, "yes: 2"), (3, 4, "no", 1, "no: 1")], ["yes", "no"], "px", charts.SERIES, ""
    ),
    "heatmap": charts.heatmap([(3, 3, 2, "cell: 2")], 0.5, ("width", "height"), "One cell.", points=[(4, 4, "anchor")]),
}
LABELS = {"bars": "dog: 1", "histogram": "16 to 32: 2", "stacked": "no: 1", "heatmap": "cell: 2"}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_svg_whose_marks_have_labels_and_theme_colours(name):
    pytest.importorskip("vl_convert")
    for width in charts.WIDTHS:
        drawn = CHARTS[name].svg(width)
        root = ElementTree.fromstring(drawn)
        assert root.tag.endswith("svg") and float(root.get("width")) <= charts.WIDTHS[width] + 40
        labels = {element.get("aria-label") for element in root.iter()}
        assert LABELS[name] in labels
        assert "var(--series-1)" in drawn


def test_missing_library_of_charts_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(UserError, match=r"pip install 'kerasdet\[report\]'"):
        CHARTS["bars"].svg("wide")


def test_drawings_on_a_page_share_no_ids():
    pytest.importorskip("vl_convert")
    chart = CHARTS["bars"]
    first, second = (page.figure(chart, "Title") for _ in range(2))
    ids = [set(re.findall(r'\bid="([^"]+)"', figure)) for figure in (first, second)]
    assert not ids[0] & ids[1]
    assert 'aria-label="Title. Cats lead."' in first
