"""Until figures/causes.py is made at once too."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import step


class Figure(go.Figure):
    """A plotly figure whose layout is updated as plotly does it, only faster: figures take a third of the time."""

    def update_layout(self, *args: Any, **parts: Any) -> Figure:
        if "overwrite" in parts or len(args) > 1:
            return super().update_layout(*args, **parts)
        given = args[0] if args else {}
        if isinstance(given, go.Layout):  # of make_subplots
            given = given.to_plotly_json()
        return _merge(self, self.layout, {**(given or {}), **parts})

    def update_xaxes(self, *args: Any, **parts: Any) -> Figure:
        if args or _RARE & parts.keys():
            return super().update_xaxes(*args, **parts)
        for axis in self.select_xaxes(row=parts.pop("row", None), col=parts.pop("col", None)):
            _merge(self, axis, parts)
        return self

    def update_yaxes(self, *args: Any, **parts: Any) -> Figure:
        if args or _RARE & parts.keys():
            return super().update_yaxes(*args, **parts)
        for axis in self.select_yaxes(row=parts.pop("row", None), col=parts.pop("col", None)):
            _merge(self, axis, parts)
        return self


_RARE = {"patch", "selector", "overwrite", "secondary_y"}


def _merge(figure: Figure, into: Any, parts: Mapping[str, Any]) -> Figure:
    for name, part in parts.items():
        old = into[name] if isinstance(part, dict) and name in into else None
        into[name] = part if old is None else _joined(old.to_plotly_json(), part)
    return figure


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: part for name, part in new.items() if isinstance(part, dict) and isinstance(old.get(name), dict)}
    return {**old, **new, **{name: _joined(old[name], part) for name, part in both.items()}}


def titled(figure: go.Figure, title: str, subtitle: str, height: int) -> go.Figure:
    """With its title, what was measured on how many images under it, and its height in pixels. Plotly cuts lines that
    are too long for a chart: they are broken to fit one of 480 pixels, and the chart is as much higher.
    """
    title, subtitle = _lines(title, " ", 60), _lines(subtitle, " · ", 95)
    more = 20 * title.count("<br>") + 14 * max(0, subtitle.count("<br>") - 1)
    figure.update_layout(
        title={"text": title, "subtitle": {"text": subtitle}, "x": 0, "xanchor": "left", "yref": "container"},
        height=height + more,
        margin={"l": 60, "r": 20, "t": 96 + more, "b": 50},
        legend={"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
    )
    return figure


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


def layer_axis(figure: go.Figure, layers: int) -> None:
    """The x axis counts decoder layers from 1."""
    figure.update_xaxes(
        title="decoder layer",
        range=[0.5, layers + 0.5],
        tickmode="linear",
        tick0=1,
        dtick=step(layers),
        showgrid=False,
        zeroline=False,
    )
