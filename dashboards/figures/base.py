"""What all figures share: colours, titles, axes. Knows plotly; not what a figure shows.

Colours are colour-blind safe (Okabe-Ito; purple-orange for above and below; inferno for amounts). Text, axes and
background are left to the theme, so that the figures read on light and dark pages; lines that must read on both are of
a middle grey. Titles, names and hover texts are HTML to plotly: what comes from a file goes through `escape`.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

ROLE_COLOURS = {"anchor": "#E69F00", "patch": "#0072B2", "voco": "#009E73", "prefix": "#CC79A7", "text": "#56B4E9"}
ROLE_NAMES = {
    "anchor": "anchors",
    "patch": "patches",
    "voco": "&lt;voco&gt; itself",
    "prefix": "text before the image",
    "text": "text after the image",
}
OF = {"voco_read": "#56B4E9", "z_voco": "#009E73", "v_d": "#E69F00", "v_pooled": "#0072B2", "codes": "#CC79A7"}
"""A representation's colour."""
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8a8a8a")
"""For things without a colour of their own."""
NEUTRAL = "#8a8a8a"
# Purple below the middle, light grey at it, orange above it.
BELOW_ABOVE = [[0.0, "#54278f"], [0.25, "#9e9ac8"], [0.5, "#f2f0f0"], [0.75, "#f1a340"], [1.0, "#8c3f04"]]
# Inferno, written as rgb(): Streamlit takes hex colours near #000001 for its own and replaces them.
INFERNO = {0.0: (0, 0, 4), 0.25: (87, 16, 110), 0.5: (188, 55, 84), 0.75: (249, 142, 9), 1.0: (252, 255, 164)}
HEAT = [[at, f"rgb{colour}"] for at, colour in INFERNO.items()]
# Over a picture, its opacity grows with the value: little leaves the picture visible.
VEIL = [[at, f"rgba{(*colour, 0.35 + 0.5 * at)}"] for at, colour in INFERNO.items()]


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


def escape(text: str) -> str:
    """A name from a file, to be shown as it is."""
    return html.escape(text).replace("%{", "%&#123;")


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


def step(count: int) -> int:
    """Distance between axis ticks that leaves about a dozen of them."""
    return max(1, math.ceil(count / 12))


def images(n: int) -> str:
    return "1 image" if n == 1 else f"mean of {n:,} images"


def transparent(colour: str, alpha: float) -> str:
    """`#rrggbb` as rgba()."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def png(image: np.ndarray, *, grey: bool = False) -> str:
    """(h, w, 3) uint8 -> data URI; in grey, so that colour means what is laid over it."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert("L") if grey else picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
