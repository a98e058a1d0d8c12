"""Builds HTML pages that work without a network, by keyboard, with a screen reader, in light and dark mode.

The functions take plain strings: special characters are escaped, and words between backticks become code. A cell of a
table may also be of the type `Html`, which is inserted unchanged.
"""

import dataclasses
import html
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

import kerasdet
from kerasdet.errors import UserError
from kerasdet.files import replacing
from kerasdet.reports.charts import Chart

MAX_ROWS = 500  # maximum number of rows of a table
ROWS_PER_PAGE = 12

LEVELS = {"problem": "Problem", "advice": "Advice", "good": "Good"}


class Html(str):
    """Marks a string as HTML, so that it is not escaped."""


def check_suffix(path: str | os.PathLike) -> None:
    """Checks that the path of a new page ends in .html or .htm, or has no suffix.

    Args:
        path: Path of the page.

    Raises:
        UserError: If the path has another suffix.
    """
    if Path(path).suffix.lower() not in ("", ".html", ".htm"):
        raise UserError(
            f"--out {path} is not the name of an HTML page: expected a name that ends in .html. Change --out."
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """Holds one conclusion for the reader of a page, and advice.

    Args:
        level: "problem" if the finding makes results wrong, "advice" if it makes results worse, "good" if nothing needs
            to be done.
        text: Sentence that states the finding, with numbers.
        action: Sentence that says what to do; "" for none.
        section: Id of the section that shows the details; "" for none.
    """

    level: str
    text: str
    action: str = ""
    section: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """Describes a column of a table.

    Args:
        title: Text of the column's header.
        kind: "text" or "number"; numbers are aligned on the right.
    """

    title: str
    kind: str = "text"


@dataclasses.dataclass(frozen=True)
class Section:
    """Holds a part of the page that the navigation lists.

    Args:
        id: HTML id of the section, unique on the page.
        title: Heading.
        parts: Contents, HTML from the functions of this module.
        intro: Sentence below the heading; "" for none.
    """

    id: str
    title: str
    parts: Sequence[str]
    intro: str = ""


def text(words: str) -> Html:
    """Escapes a string for HTML, and converts words between backticks to code.

    Args:
        words: Plain string.

    Returns:
        The HTML text.

    Example:
        >>> text("set `LR` < 1")
        'set <code>LR</code> &lt; 1'
    """
    return words if isinstance(words, Html) else Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(words))))


def paragraph(words: str) -> Html:
    """Makes a paragraph.

    Args:
        words: Plain string.

    Returns:
        The HTML text.
    """
    return Html(f"<p>{text(words)}</p>")


def heading(words: str) -> Html:
    """Makes a heading inside a section.

    Args:
        words: Plain string.

    Returns:
        The HTML text.
    """
    return Html(f"<h3>{text(words)}</h3>")


def number(value: float, digits: int = 0) -> str:
    """Formats a number with thousands separators and a fixed number of decimals.

    Args:
        value: Number to format.
        digits: Number of decimals.

    Returns:
        The formatted string.
    """
    return f"{value:,.{digits}f}"


def decimal(value: float) -> str:
    """Formats a number with all its digits and without an exponent, so that it can be pasted into a command.

    Args:
        value: Number to format.

    Returns:
        The formatted string.

    Example:
        >>> decimal(0.12345671), decimal(1e-07), decimal(0.0)
        ('0.12345671', '0.0000001', '0')
    """
    return np.format_float_positional(value, trim="-")


def share(part: float, whole: float) -> str:
    r"""Formats a share in percent, with one decimal below 10 %. Only a share of exactly 0 is written as 0.

    Args:
        part: Size of the part.
        whole: Size of the whole.

    Returns:
        The formatted string.

    Example:
        >>> share(1, 8), share(1, 30), share(1, 100_000), share(0, 5)
        ('12\xa0%', '3.3\xa0%', '< 0.1\xa0%', '0\xa0%')
    """
    sign = "\N{NO-BREAK SPACE}%"  # a number and its sign stay on one line
    percent = 100 * part / whole if whole else 0.0
    if percent == 0:
        return f"0{sign}"
    if percent < 0.1:
        return f"< 0.1{sign}"
    if percent > 99.5:
        return f"100{sign}" if part == whole else f"> 99.5{sign}"
    return f"{percent:.1f}{sign}" if percent < 9.95 else f"{percent:.0f}{sign}"


def count(value: int, singular: str, plural: str = "") -> str:
    """Formats a number with its noun, such as "1 image" and "1,200 images".

    Args:
        value: Number to format.
        singular: Singular of the noun.
        plural: Plural of the noun; "" for the singular with an s.

    Returns:
        The formatted string.
    """
    return f"{value:,} {singular if value == 1 else plural or singular + 's'}"


def tiles(values: Sequence[tuple[str, str]]) -> Html:
    """Makes a row of large numbers.

    Args:
        values: Pairs of (label, value).

    Returns:
        The HTML text.
    """
    items = "".join(f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for label, value in values)
    return Html(f'<dl class="tiles">{items}</dl>')


def findings(found: Sequence[Finding]) -> Html:
    """Makes a list of findings, problems first.

    Args:
        found: The findings.

    Returns:
        The HTML text.
    """
    order = sorted(found, key=lambda finding: list(LEVELS).index(finding.level))
    items = []
    for finding in order:
        link = f' <a href="#{finding.section}">Details</a>' if finding.section else ""
        action = f'<p class="action">{text(finding.action)}{link}</p>' if finding.action else ""
        link = "" if action else link
        items.append(
            f'<li class="{finding.level}"><span class="badge">{LEVELS[finding.level]}</span>'
            f"<div><p>{text(finding.text)}{link}</p>{action}</div></li>"
        )
    return Html(f'<ul class="findings">{"".join(items)}</ul>')


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence],
    caption: str,
    *,
    total: int | None = None,
    sortable: bool = True,
    titled: bool = True,
) -> Html:
    """Makes a table that scrolls horizontally on narrow screens, and has several pages if it is long.

    Args:
        columns: The columns.
        rows: Cells of each row, strings or HTML. Only the first `MAX_ROWS` rows are shown, with a note.
        caption: Caption that says what the table lists.
        total: Number of rows of the whole list, if `rows` is only its beginning. None: `rows` is complete.
        sortable: Whether a click on a header sorts the rows.
        titled: Whether the caption is visible. Screen readers always read it.

    Returns:
        The HTML text.
    """
    rows = list(rows)
    total, rows = total or len(rows), rows[:MAX_ROWS]
    classes = [' class="number"' if column.kind == "number" else "" for column in columns]
    head = "".join(
        f'<th scope="col"{style}>'
        + (f'<button type="button" class="sort">{text(column.title)}</button>' if sortable else text(column.title))
        + "</th>"
        for column, style in zip(columns, classes, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{text(cell)}</td>" for cell, style in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    hide = "" if titled else ' class="unseen"'
    note = f"<p class=quiet>The first {len(rows):,} of {total:,} rows.</p>" if total > len(rows) else ""
    return Html(
        f'<div class="paged" data-page-size="{ROWS_PER_PAGE}" data-noun="rows">'
        f'<div class="scroll" role="group" tabindex="0" aria-label="{html.escape(caption)}">'
        f"<table><caption{hide}>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f'<tbody class="items">{body}</tbody></table></div>{note}</div>'
    )


def figure(
    chart: Chart, title: str, words: str = "", data: Html | None = None, keys: Sequence[tuple[str, str]] = ()
) -> Html:
    """Makes a figure: a chart with a title and a table of its numbers, which the reader can unfold.

    Args:
        chart: The chart, which is drawn once for wide and once for narrow screens.
        title: Title that says what the chart shows.
        words: Sentence that says how to read the chart, or what it shows; "" for none.
        data: Table of the numbers, for screen readers and the keyboard. None: no table.
        keys: Legend of the chart, pairs of (CSS colour, name).

    Returns:
        The HTML text.
    """
    drawn = "".join(
        f'<div class="chart {width}">{_svg(chart.svg(width), f"{title}. {chart.description}")}</div>'
        for width in ("wide", "narrow")
    )
    folded = f"<details><summary>Show the numbers</summary>{data}</details>" if data else ""
    note = f"<p>{text(words)}</p>" if words else ""
    note += legend(keys) if keys else ""
    return Html(f"<figure><figcaption><h3>{text(title)}</h3>{note}</figcaption>{drawn}{folded}</figure>")


def code(lines: str, label: str) -> Html:
    """Makes a block of code with a button that copies it.

    Args:
        lines: Code to show.
        label: Name of the block for screen readers.

    Returns:
        The HTML text.
    """
    return Html(
        f'<div class="code"><pre tabindex="0" aria-label="{html.escape(label)}"><code>{html.escape(lines)}</code></pre>'
        '<button type="button" class="copy">Copy</button></div>'
    )


def image(uri: str, alternative: str) -> Html:
    """Makes an image from a data URI.

    Args:
        uri: The data URI.
        alternative: Alternative text that describes the image.

    Returns:
        The HTML text.
    """
    return Html(f'<img src="{uri}" alt="{html.escape(alternative)}">')


def gallery(
    pictures: Sequence[tuple[Html, str]],
    per_page: int,
    tags: Sequence[Sequence[str]] = (),
    *,
    order: Sequence[str] = (),
    wide: bool = False,
) -> Html:
    """Makes a gallery with several pages of pictures.

    Args:
        pictures: Pairs of (image, caption).
        per_page: Number of pictures on a page.
        tags: Tags of each picture, single words. A button for each tag shows only the pictures that have it.
        order: All tags, in the order of their buttons.
        wide: Whether a picture takes the whole width.

    Returns:
        The HTML text.
    """
    items = "".join(
        f"<li{_tagged(tags, i)}><figure>{picture}<figcaption>{text(words)}</figcaption></figure></li>"
        for i, (picture, words) in enumerate(pictures)
    )
    return Html(
        f'<div class="paged" data-page-size="{per_page}" data-noun="images">{_filters(tags, order)}'
        f'<ul class="gallery{" broad" if wide else ""} items">{items}</ul></div>'
    )


def _tagged(tags, index):
    return f' data-tags="{html.escape(" ".join(tags[index]))}"' if tags else ""


def _filters(tags, order):
    """Returns a button for all pictures and a button for each tag of a picture; a script makes the buttons visible."""
    numbers = Counter(tag for each in tags for tag in each)
    if not numbers:
        return ""
    buttons = [("", "all", len(tags)), *((tag, tag, numbers[tag]) for tag in order if numbers[tag])]
    inner = "".join(
        f'<button type="button" data-tag="{html.escape(tag)}" aria-pressed="{"false" if tag else "true"}">'
        f"{text(name)} ({n})</button>"
        for tag, name, n in buttons
    )
    return f'<div class="filter" role="group" aria-label="Show images with" hidden>{inner}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Makes a legend.

    Args:
        entries: Pairs of (CSS colour, name).

    Returns:
        The HTML text.
    """
    items = "".join(f'<li><span style="background:{colour}"></span>{text(name)}</li>' for colour, name in entries)
    return Html(f'<ul class="legend">{items}</ul>')


def write(out: str | os.PathLike, *, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes a self-contained HTML page.

    Args:
        out: Path of the HTML file.
        title: Title of the page.
        subtitle: Line below the title, such as the path of the data.
        sections: Sections of the page, in their order.

    Raises:
        OSError: If the page cannot be written.
    """
    links = "".join(f'<li><a href="#{section.id}">{text(section.title)}</a></li>' for section in sections)
    parts = "".join(
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
        f'<h2 id="{section.id}-title">{text(section.title)}</h2>'
        + (f'<p class="intro">{text(section.intro)}</p>' if section.intro else "")
        + "".join(section.parts)
        + "</section>"
        for section in sections
    )
    assets = resources.files("kerasdet.reports") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    content = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="kerasdet {kerasdet.__version__}">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<div><h1>{text(title)}</h1><p>{text(subtitle)}</p></div>
<button type="button" id="theme" aria-pressed="false">Dark theme</button>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{parts}
</main>
<footer><p>Made by kerasdet {kerasdet.__version__}. This file needs no network.</p></footer>
<script>
{script}</script>
</body>
</html>
"""
    with replacing(Path(out)) as partial:
        partial.write_text(content, encoding="utf-8", errors="replace")  # file names may not be valid UTF-8


_numbers = itertools.count()


def _svg(drawing: str, description: str) -> str:
    """Converts a drawing of Vega to an image with a description and unique ids, which scales with the page."""
    unique = f"chart{next(_numbers)}-"
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{unique}\1"', drawing)
    drawing = re.sub(r"url\(#([^)]+)\)", rf"url(#{unique}\1)", drawing)
    width, height = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawing).groups()
    return re.sub(
        r"^<svg [^>]*>",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="max-width:{width}px" '
        f'role="img" aria-label="{html.escape(description)}">',
        drawing,
    )
