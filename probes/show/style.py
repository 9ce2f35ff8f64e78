"""How all figures look: colours, names, titles, lines. Knows plotly; not what a figure shows.

Colours are colour-blind safe (Okabe and Ito's). Text, axes and background are left to the theme, so that the figures
read on light and dark pages; lines that must read on both are of a middle grey. Titles, names and hover texts are HTML
to plotly: what comes from a file goes through `escape`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

COLOURS = {"voco_read": "#56B4E9", "z_voco": "#009E73", "v_d": "#E69F00", "v_pooled": "#0072B2"}
"""A representation's colour."""
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8a8a8a")
"""For things without a colour of their own."""
NEUTRAL = "#8a8a8a"
SHARES = [[0.0, "#f7fbff"], [0.5, "#6baed6"], [1.0, "#08306b"]]
"""From 0 to 1."""


def titled(traces: Iterable[Any], title: str, subtitle: str, height: float, /, **layout: Any) -> go.Figure:
    """A figure of these traces with its title, what was measured on how many images under it, and its height in pixels;
    `layout` is joined to that. Plotly cuts lines that are too long for a chart: they are broken to fit one of 480
    pixels, and the chart is as much higher.
    """
    title, subtitle = _lines(title, " ", 60), _lines(subtitle, " · ", 95)
    more = 20 * title.count("<br>") + 14 * max(0, subtitle.count("<br>") - 1)
    common = {
        "title": {"text": title, "subtitle": {"text": subtitle}, "x": 0, "xanchor": "left", "yref": "container"},
        "height": height + more,
        "margin": {"l": 60, "r": 20, "t": 96 + more, "b": 50},
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
    }
    return go.Figure(list(traces), joined(common, layout))  # at once: plotly takes many times as long to update one


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a layout; of what both say, the new."""
    both = {name: part for name, part in new.items() if isinstance(part, dict) and isinstance(old.get(name), dict)}
    return {**old, **new, **{name: joined(old[name], part) for name, part in both.items()}}


class Panel(NamedTuple):
    """A place for axes of its own, numbered from the top left, row by row."""

    number: int
    x: list[float]
    """From where to where, of the whole width."""
    y: list[float]

    @property
    def name(self) -> str:
        """What is added to `x`, `y`, `xaxis` and `yaxis`."""
        return str(self.number + 1) if self.number else ""

    @property
    def trace(self) -> dict[str, str]:
        """What puts a trace there."""
        return {"xaxis": f"x{self.name}", "yaxis": f"y{self.name}"}

    def axes(self, x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"xaxis{self.name}": {"anchor": f"y{self.name}", "domain": self.x, **x},
            f"yaxis{self.name}": {"anchor": f"x{self.name}", "domain": self.y, **y},
        }

    def head(self, text: str, size: int = 16) -> dict[str, Any]:
        """What is written over it."""
        place = {"xref": "paper", "x": sum(self.x) / 2, "xanchor": "center", "yref": "paper", "y": self.y[1]}
        return {"text": text, "font": {"size": size}, **place, "yanchor": "bottom", "showarrow": False}


def panels(down: int, beside: int, gap_x: float, gap_y: float = 0.0) -> list[Panel]:
    """So many rows of so many panels, with shares of the width and of the height between them."""
    width, height = (1 - gap_x * (beside - 1)) / beside, (1 - gap_y * (down - 1)) / down
    lefts = [column * (width + gap_x) for column in range(beside)]
    feet = [row * (height + gap_y) for row in reversed(range(down))]
    places = [(left, foot) for foot in feet for left in lefts]
    return [Panel(n, [left, left + width], [foot, foot + height]) for n, (left, foot) in enumerate(places)]


def across(*, x: float | None = None, y: float | None = None, panel: str = "", **look: Any) -> dict[str, Any]:
    """A line over the whole panel, upright at x or level at y."""
    if x is not None:
        ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "xref": f"x{panel}", "yref": f"y{panel} domain"}
    else:
        ends = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": f"x{panel} domain", "yref": f"y{panel}"}
    return {"type": "line", **ends, **look}


def ribbon(
    x: np.ndarray | Sequence[Any],
    low: np.ndarray | Sequence[Any],
    high: np.ndarray | Sequence[Any],
    colour: str,
    **more: Any,
) -> go.Scatter:
    """What lies between two curves, filled; in the legend only where `more` says so."""
    edge = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([high, low[::-1]])}
    look = {"mode": "lines", "fill": "toself", "fillcolor": colour, "line": {"width": 0}, "hoverinfo": "skip"}
    return go.Scatter({**edge, **look, "showlegend": False, **more})


def escape(text: str) -> str:
    """A name from a file, to be shown as it is; a quote would be shown as its entity."""
    return html.escape(" ".join(text.split()), quote=False).replace("%{", "%&#123;")


def cut(text: str, most: int = 14) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def transparent(colour: str, alpha: float) -> str:
    """`#rrggbb` as rgba()."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _lines(text: str, separator: str, most: int) -> str:
    """Broken at separators into lines of at most so many characters, where that can be."""
    lines = [""]
    for given in text.split("<br>"):
        for part in given.split(separator):
            longer = f"{lines[-1]}{separator}{part}" if lines[-1] else part
            if len(html.unescape(longer)) <= most or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(part)
        lines.append("")
    return "<br>".join(lines[:-1])
