"""Plotly figures of two runs on one image, or of two grids. Knows arrays and plotly; not Streamlit, files or runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    HEAT,
    VEIL,
    counted,
    dashed,
    dots,
    laid,
    png,
    side_by_side,
    zero_centred,
)
from htc_probe.dashboards.figures.compare import OTHER, THIS, Names, minus
from htc_probe.probes.show.style import escape, panels, titled

# Over a picture: none at the middle, so that it stays visible where nothing differs.
_SHIFT = [[0.0, "rgba(84,39,143,0.9)"], [0.5, "rgba(242,240,240,0.05)"], [1.0, "rgba(140,63,4,0.9)"]]
_PANELS = panels(1, 3, 0.05)


def two_maps(
    this_RC: np.ndarray,
    other_RC: np.ndarray,
    *,
    title: str,
    subtitle: str,
    names: Names,
    unit: str,
    image: np.ndarray | None = None,
    marked: np.ndarray | None = None,
    labels: tuple[Sequence[str], Sequence[str]] | None = None,
    axes: tuple[str, str] = ("row", "column"),
    limit: float | None = None,
    signed: bool = False,
) -> go.Figure:
    """Both runs' grids (R, C) on one scale from 0, and their difference; NaN where a cell is empty. image: (h, w, 3)
    uint8, the square that the cells cover, drawn under all three in grey. marked: (R, C), cells whose difference is no
    chance finding. labels: of rows and columns. limit: the end of the first scale, when not the largest value. signed:
    values may be below 0, and 0 is the middle of both scales.
    """
    rows, columns = this_RC.shape
    names_R, names_C = labels or ([str(row + 1) for row in range(rows)], [str(column + 1) for column in range(columns)])
    heads = [*map(escape, names), "difference"]
    where_RC = np.empty((rows, columns), dtype=object)
    where_RC[:] = [[f"{axes[0]} {escape(row)}, {axes[1]} {escape(column)}" for column in names_C] for row in names_R]
    traces: list[Any] = [
        go.Heatmap(
            z=values_RC,
            x=np.arange(columns) + 0.5,
            y=np.arange(rows) + 0.5,
            text=where_RC,
            name=head,
            coloraxis="coloraxis2" if panel.number == 2 else "coloraxis",
            xgap=0 if image is not None else 1,
            ygap=0 if image is not None else 1,
            hovertemplate=f"%{{text}}<br>%{{z:{'+' if panel.number == 2 else ''}.3g}} {unit}<extra></extra>",
            **panel.trace,
        )
        for panel, head, values_RC in zip(_PANELS, heads, (this_RC, other_RC, this_RC - other_RC), strict=True)
    ]
    if marked is not None and marked.any():
        row_of, column_of = np.nonzero(marked)
        traces.append(dots(column_of + 0.5, row_of + 0.5, 5, 1, **_PANELS[2].trace))
    grey = [] if image is None else [png(image, grey=True)]
    named = labels is not None
    return titled(
        traces,
        title,
        f"{subtitle}<br>difference: {minus(names)}",
        480 + 6 * rows if named else 480,
        **_map_axes(rows, columns, labels, axes),
        **_map_colours(this_RC, other_RC, unit, limit, signed=signed, over=image is not None, named=named),
        images=[laid(source, 0, 0, columns, rows, panel.name) for source in grey for panel in _PANELS],
        annotations=[panel.head(head) for panel, head in zip(_PANELS, heads, strict=True)],
        margin={"l": 110 if named else 10, "t": 132, "b": 190 if named else 80},
    )


def _map_axes(
    rows: int, columns: int, labels: tuple[Sequence[str], Sequence[str]] | None, axes: tuple[str, str]
) -> dict[str, Any]:
    """Of three panels: square cells without numbers, or cells with names."""
    bare = {"showgrid": False, "zeroline": False, "constrain": "domain"}
    x: dict[str, Any] = {"range": [0, columns], **bare}
    y: dict[str, Any] = {"range": [rows, 0], **bare}
    if labels is None:
        squares = [y | {"visible": False, "scaleanchor": f"x{panel.name}"} for panel in _PANELS]
        return side_by_side(_PANELS, x | {"visible": False}, squares)
    short_R, short_C = ([escape(name if len(name) < 15 else name[:13] + "…") for name in names] for names in labels)
    x |= {"tickvals": np.arange(columns) + 0.5, "ticktext": short_C, "tickangle": -60}
    y |= {"tickvals": np.arange(rows) + 0.5, "ticktext": short_R}
    alike = y | {"matches": "y", "showticklabels": False}
    made = side_by_side(_PANELS, x, [y | {"title": axes[0]}, alike, alike])
    return made | {"xaxis2": made["xaxis2"] | {"title": axes[1]}}


def _map_colours(
    this_RC: np.ndarray, other_RC: np.ndarray, unit: str, end: float | None, *, signed: bool, over: bool, named: bool
) -> dict[str, Any]:
    """One scale for both runs and one for their difference, each with its bar under the panels; `over` a picture."""
    most = end or zero_centred(np.array([this_RC, other_RC]))[1]
    apart = zero_centred(this_RC - other_RC)[1]
    differing = _SHIFT if over else BELOW_ABOVE
    above = differing if signed else VEIL if over else HEAT
    bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "yanchor": "top", "y": -0.42 if named else -0.04}

    def scale(colours: Any, low: float, high: float, text: str, x: float, length: float) -> dict[str, Any]:
        told = {**bar, "x": x, "len": length, "title": {"text": text, "side": "bottom"}}
        return {"colorscale": colours, "cmin": low, "cmax": high, "colorbar": told}

    return {
        "coloraxis": scale(above, -most if signed else 0, most, unit, 0.31, 0.5),
        "coloraxis2": scale(differing, -apart, apart, "difference", 0.84, 0.3),
    }


def anchors_of_both(
    this_A: np.ndarray, other_A: np.ndarray, uniform: float, *, subtitle: str, names: Names
) -> go.Figure:
    """Attention of both runs on each anchor of one image. this_A, other_A: (A,) in % of all attention. uniform: that
    of each key, in %, drawn dashed.
    """
    anchors = np.arange(1, len(this_A) + 1)
    traces: list[Any] = []
    for name, values, colour in zip(names, (this_A, other_A), (THIS, OTHER), strict=True):
        look, hover = {"marker": {"color": colour}}, "anchor %{x}: %{y:.3g}%"
        traces.append(go.Bar(x=anchors, y=values, name=escape(name), hovertemplate=hover, **look))
    traces.append(dashed([0.5, len(anchors) + 0.5], [uniform, uniform], f"uniform: {uniform:.3g}%"))
    x, y = counted("anchor", len(anchors)), {"title": "% of all attention", "rangemode": "tozero"}
    return titled(traces, "How much does each anchor get?", subtitle, 430, xaxis=x, yaxis=y, barmode="group")
