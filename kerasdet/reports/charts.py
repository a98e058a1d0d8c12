"""Draws charts as SVG with Vega-Lite; the charts need no script on the page.

Colours are CSS variables of the page, so that charts follow its theme. Each mark has an ARIA label, which the page also
shows as a tooltip.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kerasdet.errors import UserError

WIDTHS = {"wide": 788, "narrow": 328}  # widths of a chart with its axes, in pixels, that fit into a card of the page
SERIES = ("var(--series-1)", "var(--series-2)", "var(--series-3)")
_VERSION = "5.20"  # version of Vega-Lite; vl-convert contains several

_CONFIG = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelPadding": 6,
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
    },
    "axisX": {"grid": False, "domain": True, "domainColor": "var(--axis)"},
    "rule": {"color": "var(--marker)", "strokeDash": [4, 3], "strokeWidth": 1.5},
    "text": {"color": "var(--ink)", "fontSize": 12},
}
# Characters that XML does not allow. vl-convert 1.9 aborts the whole process when the text of a chart has one.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def check_library() -> None:
    """Checks that vl-convert, which draws the charts, is installed.

    Raises:
        UserError: If vl-convert is not installed.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError:
        raise UserError(
            "vl-convert-python, which draws the charts of the page, is not installed: run pip install "
            "'kerasdet[report]'."
        ) from None


@dataclasses.dataclass(frozen=True)
class Chart:
    """Holds a Vega-Lite chart.

    Args:
        spec: Vega-Lite specification, without schema, configuration and width.
        description: A sentence that says what the chart shows, for screen readers.
        height: Height of the chart with its axes, in pixels.
    """

    spec: Mapping[str, Any]
    description: str
    height: int = 240

    def svg(self, width: str) -> str:
        """Draws the chart.

        Args:
            width: "wide" or "narrow", see `WIDTHS`.

        Returns:
            The SVG element as a string.

        Raises:
            UserError: If vl-convert is not installed.
        """
        check_library()
        import vl_convert

        size = {"width": WIDTHS[width], "height": self.height, "autosize": {"type": "fit", "contains": "padding"}}
        spec = {**size, "padding": 0, "config": _CONFIG, **self.spec}
        return vl_convert.vegalite_to_svg(json.dumps(_drawable(spec)), vl_version=_VERSION)


def _drawable(value):
    """Replaces characters that a drawing cannot have, in all strings of a specification."""
    if isinstance(value, str):
        return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {key: _drawable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_drawable(each) for each in value]
    return value


def bars(rows: Sequence[tuple[str, float, str]], axis: str, description: str) -> Chart:
    """Draws horizontal bars, one for each name.

    Args:
        rows: (name, value, label) of each bar; the label is its tooltip.
        axis: Title of the axis of values.
        description: A sentence that says what the chart shows, for screen readers.

    Returns:
        The chart.
    """
    values = [{"name": name, "value": value, "label": label} for name, value, label in rows]
    spec = {
        "data": {"values": values},
        "mark": {"type": "bar", "color": SERIES[0], "cornerRadiusEnd": 3, "height": {"band": 0.72}},
        "encoding": {
            "y": {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": _names(130)},
            "x": {"field": "value", "type": "quantitative", "title": axis, "axis": _WHOLE | {"grid": True}},
            "description": {"field": "label"},
        },
    }
    return Chart(spec, description, height=26 * len(rows) + 48)


def histogram(
    rows: Sequence[tuple[float, float, float, str]],
    x_axis: str,
    description: str,
    *,
    markers: Sequence[tuple[float, str]] = (),
    exponents: bool = False,
) -> Chart:
    """Draws a histogram.

    Args:
        rows: (low, high, count, label) of each bin in ascending order; low and high are its edges, the label is its
            tooltip.
        x_axis: Title of the horizontal axis.
        description: A sentence that says what the chart shows, for screen readers.
        markers: Positions of vertical lines and their labels.
        exponents: Whether positions are exponents of 2, so that the axis shows powers of 2.

    Returns:
        The chart.
    """
    values = [{"low": low, "high": high, "count": n, "label": label} for low, high, n, label in rows]
    layers = [
        {
            "data": {"values": values},
            "mark": {"type": "bar", "color": SERIES[0], "binSpacing": 1},
            "encoding": {
                "x": _binned("low", x_axis, rows[0][0], rows[-1][1], exponents),
                "x2": {"field": "high"},
                "y": {"field": "count", "type": "quantitative", "title": None, "axis": _WHOLE},
                "description": {"field": "label"},
            },
        }
    ]
    inside = [(place, label) for place, label in markers if rows[0][0] <= place <= rows[-1][1]]
    if inside:
        layers.append(_marker_lines(inside))
    return Chart({"layer": layers}, description)


def stacked(
    rows: Sequence[tuple[float, float, str, float, str]],
    order: Sequence[str],
    x_axis: str,
    colours: Sequence[str],
    description: str,
) -> Chart:
    """Draws a stacked histogram, whose horizontal axis shows powers of 2.

    Args:
        rows: (low, high, part, count, label) of each part of each bin, bins in ascending order; low and high are the
            edges of the bin, exponents of 2; the label is the tooltip of the part.
        order: Names of the parts, from the bottom up.
        x_axis: Title of the horizontal axis.
        colours: CSS colour of each part.
        description: A sentence that says what the chart shows, for screen readers.

    Returns:
        The chart.
    """
    values = [
        {"low": low, "high": high, "part": part, "count": n, "rank": order.index(part), "label": label}
        for low, high, part, n, label in rows
    ]
    spec = {
        "data": {"values": values},
        "mark": {"type": "bar", "binSpacing": 1},
        "encoding": {
            "x": _binned("low", x_axis, rows[0][0], rows[-1][1], exponents=True),
            "x2": {"field": "high"},
            "y": {"field": "count", "type": "quantitative", "title": None, "axis": _WHOLE},
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": list(order), "range": list(colours)},
                "legend": None,  # the page has one that wraps on narrow screens
            },
            "order": {"field": "rank", "type": "quantitative"},
            "description": {"field": "label"},
        },
    }
    return Chart(spec, description)


def heatmap(
    cells: Sequence[tuple[float, float, float, str]],
    step: float,
    axes: tuple[str, str],
    description: str,
    *,
    points: Sequence[tuple[float, float, str]] = (),
) -> Chart:
    """Draws a heatmap of counts over two log2 axes.

    Args:
        cells: (log2 x, log2 y, count, label) of each non-empty cell; x and y are the lower bounds of the cell, the
            label is its tooltip and its text for screen readers.
        step: Width and height of a cell, in exponents of 2.
        axes: Titles of the horizontal and the vertical axis.
        description: A sentence that says what the chart shows, for screen readers.
        points: (log2 x, log2 y, label) of marks drawn over the cells.

    Returns:
        The chart.
    """
    most = max(count for *_, count, _ in cells)
    values = [
        {"x": x, "y": y, "x2": x + step, "y2": y + step, "weight": 0.12 + 0.88 * (n / most) ** 0.5, "label": label}
        for x, y, n, label in cells
    ]
    marks = [{"x": x, "y": y, "label": label} for x, y, label in points]
    low = min(min(v["x"], v["y"]) for v in [*values, *marks])
    high = max(max(v["x"], v["y"]) for v in [*marks, *({"x": v["x2"], "y": v["y2"]} for v in values)])
    ticks, scale = _power_ticks([low, high]), {"domain": [low - 0.1, high + 0.1], "nice": False, "zero": False}
    x, y = (
        {"field": name, "type": "quantitative", "title": title, "axis": ticks | {"grid": True}, "scale": scale}
        for name, title in zip("xy", axes, strict=True)
    )
    rect = {
        "data": {"values": values},
        "mark": {"type": "rect", "color": SERIES[0]},
        "encoding": {
            "x": x,
            "x2": {"field": "x2"},
            "y": y,
            "y2": {"field": "y2"},
            "opacity": {"field": "weight", "type": "quantitative", "scale": None},
            "description": {"field": "label"},
        },
    }
    dots = {
        "data": {"values": marks},
        "mark": {"type": "point", "color": "var(--marker)", "filled": False, "size": 70, "strokeWidth": 2},
        "encoding": {"x": x, "y": y, "description": {"field": "label"}},
    }
    return Chart({"layer": [rect, dots] if marks else [rect]}, description, height=380)


def lines(
    curves: Sequence[tuple[str, str, float, Sequence[tuple[float, float]]]],
    axes: tuple[str, str],
    description: str,
    *,
    diagonal: bool = False,
) -> Chart:
    """Draws lines over axes from 0 to 1.

    Args:
        curves: (name, colour, width, points) of each line; a point is (x, y). The name is its tooltip.
        axes: Titles of the horizontal and the vertical axis.
        description: A sentence that says what the chart shows, for screen readers.
        diagonal: Whether to draw a line from (0, 0) to (1, 1).

    Returns:
        The chart.
    """
    scale = {"domain": [0, 1], "nice": False}
    x, y = (
        {"field": name, "type": "quantitative", "title": title, "scale": scale, "axis": {"grid": True, "tickCount": 5}}
        for name, title in zip("xy", axes, strict=True)
    )
    layers = [
        {
            "data": {"values": [{"x": a, "y": b, "label": name, "order": i} for i, (a, b) in enumerate(points)]},
            "mark": {"type": "line", "color": colour, "strokeWidth": width, "point": len(points) == 1},
            "encoding": {
                "x": x,
                "y": y,
                "order": {"field": "order", "type": "quantitative"},
                "description": {"field": "label"},
            },
        }
        for name, colour, width, points in curves
    ]
    if diagonal:
        ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
        mark = {"type": "line", "color": "var(--marker)", "strokeDash": [4, 3], "strokeWidth": 1.5}
        layers.append({"data": {"values": ends}, "mark": mark, "encoding": {"x": x, "y": y}})
    return Chart({"layer": layers}, description, height=340)


def intervals(rows: Sequence[tuple[str, float, float, float, str]], axis: str, description: str) -> Chart:
    """Draws one point with its confidence interval per row.

    Args:
        rows: (name, value, low, high, label) of each point; the label is its tooltip.
        axis: Title of the axis of values.
        description: A sentence that says what the chart shows, for screen readers.

    Returns:
        The chart.
    """
    values = [
        {"name": name, "value": value, "low": low, "high": high, "label": label}
        for name, value, low, high, label in rows
    ]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": _names(130)}
    x = {"type": "quantitative", "title": axis, "axis": {"grid": True, "tickCount": 5}}
    bar = {"type": "rule", "color": SERIES[0], "strokeWidth": 3, "opacity": 0.4, "strokeDash": [1, 0]}
    dot = {"type": "point", "filled": True, "color": SERIES[0], "size": 70, "opacity": 1}
    layers = [
        {"mark": bar, "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}}},
        {"mark": dot, "encoding": {"y": y, "x": x | {"field": "value"}, "description": {"field": "label"}}},
    ]
    return Chart({"data": {"values": values}, "layer": layers}, description, height=26 * len(rows) + 48)


def matrix(
    cells: Sequence[tuple[str, str, float, str, str]],
    rows: Sequence[str],
    columns: Sequence[str],
    axes: tuple[str, str],
    description: str,
) -> Chart:
    """Draws a matrix of shaded cells with their numbers.

    Args:
        cells: (row, column, weight in 0..1, text, label) of each cell that is not empty; the label is its tooltip.
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns.
        axes: Titles of the rows and of the columns.
        description: A sentence that says what the chart shows, for screen readers.

    Returns:
        The chart.
    """
    values = [
        {"row": row, "column": column, "weight": weight, "text": words, "label": label}
        for row, column, weight, words, label in cells
    ]
    y = {"field": "row", "type": "nominal", "sort": None, "title": axes[0], "scale": {"domain": list(rows)}}
    x = {"field": "column", "type": "nominal", "sort": None, "title": axes[1], "scale": {"domain": list(columns)}}
    y, x = y | {"axis": _names(110)}, x | {"axis": _names(90) | {"labelAngle": -40, "orient": "top"}}
    shade = {
        "field": "weight",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0.08, 0.5]},
        "legend": None,
    }
    layers = [
        {
            "mark": {"type": "rect", "color": SERIES[0], "stroke": "var(--card)", "strokeWidth": 2},
            "encoding": {"y": y, "x": x, "opacity": shade, "description": {"field": "label"}},
        },
        {"mark": {"type": "text", "aria": False}, "encoding": {"y": y, "x": x, "text": {"field": "text"}}},
    ]
    padding = {"left": 0, "top": 0, "right": 32, "bottom": 0}  # the last slanted label reaches beyond its column
    spec = {"data": {"values": values}, "layer": layers, "padding": padding}
    return Chart(spec, description, height=34 * len(rows) + 110)


_WHOLE = {
    "tickCount": 5,
    "tickMinStep": 1,
    "labelExpr": "datum.value >= 1e6 ? format(datum.value / 1e6, '~r') + 'M' : datum.value >= 1e4 ? "
    "format(datum.value / 1e3, '~r') + 'k' : format(datum.value, ',')",
}


def _names(limit):
    """Returns an axis with names of up to `limit` pixels; vl-convert needs minutes to shorten 3000 letters."""
    return {"labelLimit": limit, "labelExpr": "truncate(datum.label, 60)"}


def _binned(field, title, low, high, exponents):
    """Returns the encoding of the horizontal axis of a histogram."""
    scale = {"zero": False, "nice": False, "domain": [low, high]}
    axis = (_power_ticks([low, high]) if exponents else _WHOLE) | {"labelFlush": False}
    return {"field": field, "bin": "binned", "type": "quantitative", "title": title, "axis": axis, "scale": scale}


def _power_ticks(exponents):
    first, last = min(exponents), max(exponents)
    values = list(range(int(first // 1), int(last // 1) + 1))
    return {"values": values, "labelExpr": "format(pow(2, datum.value), '~r')", "labelOverlap": True}


def _marker_lines(markers):
    values = [{"place": place, "name": name} for place, name in markers]
    return {
        "data": {"values": values},
        "mark": {"type": "rule"},
        "encoding": {"x": {"field": "place", "type": "quantitative"}, "description": {"field": "name"}},
    }
