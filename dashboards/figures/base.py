"""What the dashboard's figures share beyond the style of all: scales of colours, axes, pictures. Knows plotly; not what
a figure shows. Scales are purple-orange for below and above, inferno for amounts.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from htc_probe.probes.show.style import COLOURS, NEUTRAL, Panel, escape

ROLE_COLOURS = {"anchor": "#E69F00", "patch": "#0072B2", "voco": "#009E73", "prefix": "#CC79A7", "text": "#56B4E9"}
ROLE_NAMES = {
    "anchor": "anchors",
    "patch": "patches",
    "voco": "&lt;voco&gt; itself",
    "prefix": "text before the image",
    "text": "text after the image",
}
OF = COLOURS | {"codes": "#CC79A7"}
"""The colour of a representation, or of codes."""
# Purple below the middle, light grey at it, orange above it.
BELOW_ABOVE = [[0.0, "#54278f"], [0.25, "#9e9ac8"], [0.5, "#f2f0f0"], [0.75, "#f1a340"], [1.0, "#8c3f04"]]
# Inferno, written as rgb(): Streamlit takes hex colours near #000001 for its own and replaces them.
_INFERNO = {0.0: (0, 0, 4), 0.25: (87, 16, 110), 0.5: (188, 55, 84), 0.75: (249, 142, 9), 1.0: (252, 255, 164)}
HEAT = [[at, f"rgb{colour}"] for at, colour in _INFERNO.items()]
# Over a picture, its opacity grows with the value: little leaves the picture visible.
VEIL = [[at, f"rgba{(*colour, 0.35 + 0.5 * at)}"] for at, colour in _INFERNO.items()]

UNFADED = {"selected": {"marker": {"opacity": 1}}, "unselected": {"marker": {"opacity": 1}}}
"""Points that can be clicked, and stay as they are."""


def layer_axis(layers: int) -> dict[str, Any]:
    """An x axis that counts decoder layers from 1."""
    return counted("decoder layer", layers) | {"range": [0.5, layers + 0.5], "zeroline": False}


def counted(title: str, count: int) -> dict[str, Any]:
    """An axis that counts from 1."""
    return {"title": title, "tickmode": "linear", "tick0": 1, "dtick": step(count), "showgrid": False}


def named(names: Sequence[str]) -> dict[str, Any]:
    """An axis with names at 1, 2, ..."""
    ticks = {"tickvals": list(range(1, len(names) + 1)), "ticktext": [escape(name) for name in names]}
    return {**ticks, "showgrid": False, "zeroline": False, "automargin": True}


def side_by_side(panels: Sequence[Panel], x: dict[str, Any], ys: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Axes of panels: the same x axis, and a y axis each."""
    return {name: axis for panel, y in zip(panels, ys, strict=True) for name, axis in panel.axes(x, y).items()}


def step(count: int) -> int:
    """Distance between axis ticks that leaves about a dozen of them."""
    return max(1, math.ceil(count / 12))


def colour_bar(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0, **more}


def whiskers(estimate: np.ndarray, lower: np.ndarray, upper: np.ndarray, **look: Any) -> dict[str, Any]:
    """Error bars."""
    return {"type": "data", "symmetric": False, "array": upper - estimate, "arrayminus": estimate - lower, **look}


def cells(
    z: np.ndarray, ends: tuple[float, float], colours: Any, hover: str, *, gap: int | None = 1, **more: Any
) -> go.Heatmap:
    """A heat map whose rows and columns count from 1. ends: of the scale of colours. `meta` in `more` names columns of
    `customdata` that are saved with it (parts/saved.js).
    """
    places = {"x": np.arange(1, z.shape[1] + 1), "y": np.arange(1, z.shape[0] + 1), "xgap": gap, "ygap": gap}
    scale = {"zmin": ends[0], "zmax": ends[1], "colorscale": colours}
    return go.Heatmap({"z": z, **places, **scale, "hovertemplate": f"{hover}<extra></extra>", **more})


def ink(z: np.ndarray, ends: tuple[float, float], colours: Sequence[Any]) -> np.ndarray:
    """Black or white for text on each cell of a heat map, whichever stands out more: at least 4.5 to 1, where plotly's
    own choice of a grey has less.
    """
    at = np.clip((np.nan_to_num(z) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    stops = [stop for stop, _ in colours]
    linear = []
    for part in np.transpose([_parts(colour) for _, colour in colours]):
        value = np.interp(at, stops, part) / 255
        linear.append(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))
    luminance = np.tensordot((0.2126, 0.7152, 0.0722), linear, 1)  # as WCAG defines it; contrast is of those plus 0.05
    return np.where((luminance + 0.05) ** 2 < 1.05 * 0.05, "#ffffff", "#000000")


def _parts(colour: str) -> list[int]:
    """Red, green and blue of #rrggbb or rgb(r, g, b)."""
    if colour.startswith("#"):
        return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return [int(part) for part in colour[4:-1].split(",")]


def written(text: Any, z: np.ndarray, ends: tuple[float, float], colours: Sequence[Any], size: int = 12) -> go.Scatter:
    """Text on the cells of a heat map of these colours, see `cells`. text: like z, (rows, columns)."""
    y, x = np.indices(z.shape).reshape(2, -1) + 1
    font = {"size": size, "color": ink(z, ends, colours).ravel().tolist()}
    told = {"mode": "text", "text": np.asarray(text, dtype=object).ravel().tolist(), "textfont": font}
    return go.Scatter(x=x, y=y, hoverinfo="skip", showlegend=False, cliponaxis=False, **told)


def curve(
    x: np.ndarray, y: np.ndarray, name: str, colour: str, hover: str, *, dash: str | None = None, **more: Any
) -> go.Scatter:
    """A line with a point at each value. name: HTML."""
    line = {"color": colour, "width": 2.5, "dash": dash}
    return go.Scatter(x=x, y=y, mode="lines+markers", name=name, line=line, hovertemplate=hover, **more)


def zero_centred(values: np.ndarray) -> tuple[float, float]:
    """Ends of a scale with 0 in its middle."""
    known = np.abs(values[np.isfinite(values)])
    most = float(known.max(initial=0)) or 1.0
    return -most, most


def square(x: tuple[float, float], y: tuple[float, float]) -> dict[str, Any]:
    """Axes without numbers, one unit as long on both, from here to there."""
    bare = {"visible": False, "constrain": "domain"}
    return {"xaxis": {"range": x, **bare}, "yaxis": {"range": y, "scaleanchor": "x", **bare}}


def dashed(x: Sequence[float], y: Sequence[float], name: str, hover: str = "") -> go.Scatter:
    """A grey line."""
    told = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return go.Scatter(x=x, y=y, mode="lines", name=name, line={"color": NEUTRAL, "dash": "dash", "width": 1.5}, **told)


def dots(x: np.ndarray, y: np.ndarray, size: int, width: float, **more: Any) -> go.Scatter:
    """On cells that stand out."""
    marker = {"size": size, "color": "#ffffff", "line": {"color": "#333333", "width": width}}
    return go.Scatter(x=x, y=y, mode="markers", hoverinfo="skip", showlegend=False, marker=marker, **more)


def circled(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, name: str, colour: str, size: int) -> Any:
    """A circle around what is selected."""
    marker = {"size": size, "symbol": "circle-open", "color": colour, "line": {"width": 3}}
    return go.Scatter(x=x, y=y, mode="markers", name=name, hoverinfo="skip", marker=marker)


def outlined(column: int | None, row: int | None, columns: int, rows: int, colour: str) -> list[dict[str, Any]]:
    """The outline of one cell (from 0) of a grid that counts from 1, of a whole row or column, or none."""
    if column is None and row is None:
        return []
    x0, x1 = (0.5, columns + 0.5) if column is None else (column + 0.5, column + 1.5)
    y0, y1 = (0.5, rows + 0.5) if row is None else (row + 0.5, row + 1.5)
    return [{"type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "line": {"color": colour, "width": 3}}]


def laid(source: str, x: float, y: float, width: float, height: float, panel: str = "") -> dict[str, Any]:
    """A picture below what is drawn."""
    place = {"xref": f"x{panel}", "yref": f"y{panel}", "x": x, "y": y, "sizex": width, "sizey": height}
    return {"source": source, "sizing": "stretch", "layer": "below", **place}


def images(n: int) -> str:
    return "1 image" if n == 1 else f"mean of {n:,} images"


def png(image: np.ndarray, *, grey: bool = False) -> str:
    """(h, w, 3) uint8 -> data URI; in grey, so that colour means what is laid over it."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert("L") if grey else picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
