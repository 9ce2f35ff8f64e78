"""Plotly figures of two runs and their difference. Knows arrays and plotly; not Streamlit, files or runs.

A difference is this run minus the other: orange where this run has more, purple where it has less, on a scale with 0 in
its middle. Names of runs and labels are escaped here. Letters in names: L layers, H heads, R rows and C columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.attention.rows import Band
from htc_probe.analysis.compare import Differences
from htc_probe.dashboards.figures.attention import BAND
from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    ROLE_COLOURS,
    ROLE_NAMES,
    cells,
    circled,
    colour_bar,
    counted,
    curve,
    dashed,
    dots,
    layer_axis,
    outlined,
    side_by_side,
    step,
    whiskers,
    zero_centred,
)
from htc_probe.probes.show.style import NEUTRAL, SERIES, across, escape, panels, ribbon, titled, transparent

THIS, OTHER, _APART = "#0072B2", "#D55E00", "#009E73"
"""Of this run, of the other, and of what lies between them."""
_LINES = (THIS, "solid"), (OTHER, "dash")
_ZERO = {"color": NEUTRAL, "width": 1.5}

Names = tuple[str, str]
"""Of this run and of the other."""


def difference_heatmap(
    found: Differences,
    *,
    title: str,
    subtitle: str,
    names: Names,
    unit: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    axes: tuple[str, str] = ("head", "decoder layer"),
    mark: tuple[int | None, int | None] = (None, None),
) -> go.Figure:
    """Differences (C, R), first axis along x, such as layers and heads; numbered from 1 or named by `columns`, `rows`.
    Cells that are no chance finding (`Differences.marked`) have a dot. mark: column and row (from 0) to outline, None
    for all. axes: what rows and columns are.
    """
    columns_, rows_ = found.estimate.shape
    labels = [
        np.broadcast_to(np.array([escape(name) for name in of] if of else np.arange(1, n + 1), dtype=object), (m, n))
        for of, n, m in ((columns, columns_, rows_), (rows, rows_, columns_))
    ]
    custom = np.stack([*np.moveaxis(_custom(found), -1, 0).swapaxes(1, 2), labels[0], labels[1].T], axis=-1)
    known = bool(np.isfinite(found.lower).any())
    hover = f"{axes[1]} %{{customdata[5]}}, {axes[0]} %{{customdata[6]}}<br>{_hover(names, unit, known)}"
    ends, bar = zero_centred(found.estimate), colour_bar(f"difference, {unit}")
    meta = {escape(names[0]): 0, escape(names[1]): 1, "lower": 2, "upper": 3}
    heat = cells(found.estimate.T, ends, BELOW_ABOVE, hover, colorbar=bar, customdata=custom, meta=meta)
    x, y = np.nonzero(found.marked)
    down = (rows_ + 0.5, 0.5) if rows else (0.5, rows_ + 0.5)  # names are read from the top
    return titled(
        [heat, dots(x + 1, y + 1, 7, 1.5, name="significant")],
        title,
        f"{subtitle}<br>{minus(names)}",
        min(680, max(400, 210 + 17 * rows_)),
        xaxis=_cells(axes[1], columns, columns_, (0.5, columns_ + 0.5)),
        yaxis=_cells(axes[0], rows, rows_, down),
        shapes=outlined(*mark, columns_, rows_, _APART),
        margin={"l": 60 if rows is None else 110, "t": 110},
    )


def difference_curve(
    found: Differences,
    x: Sequence[float] | np.ndarray,
    *,
    title: str,
    subtitle: str,
    names: Names,
    unit: str,
    axis: str = "decoder layer",
    band: Band | None = None,
) -> go.Figure:
    """Two panels over x (L): both runs' values, and their difference with its 95% interval. found: (L,). band: how the
    difference of one image lies, (L,).
    """
    x_L, second = np.asarray(x), {"xaxis": "x2", "yaxis": "y2"}
    traces = [
        curve(x_L, values, escape(name), colour, f"{axis} %{{x}}: %{{y:.4g}} {unit}", dash=dash)
        for name, values, (colour, dash) in zip(names, (found.this, found.other), _LINES, strict=True)
    ]
    if band is not None:
        look = {"name": BAND, "showlegend": True, **second}
        traces.append(ribbon(x_L, band.low, band.high, transparent(NEUTRAL, 0.2), **look))
    look = {"name": "95% interval of the mean", "showlegend": True, **second}
    traces.append(ribbon(x_L, found.lower, found.upper, transparent(_APART, 0.35), **look))
    hover = f"{axis} %{{x}}<br>{_hover(names, unit)}<extra></extra>"
    traces.append(curve(x_L, found.estimate, "difference", _APART, hover, customdata=_custom(found), **second))
    room = (x_L.max() - x_L.min()) * 0.04 or 0.5
    ends = {"title": axis, "range": [x_L.min() - room, x_L.max() + room], "showgrid": False, "zeroline": False}
    if np.all(np.diff(x_L) == 1):
        ends |= {"tickmode": "linear", "tick0": x_L[0], "dtick": step(len(x_L))}
    ys = [{"title": unit, "zeroline": False}, {"title": "difference", "zeroline": False}]
    layout = side_by_side(panels(1, 2, 0.16), ends, ys) | {"shapes": [across(y=0, panel="2", line=_ZERO)]}
    return titled(traces, title, f"{subtitle}<br>{minus(names)}", 420, **layout, margin={"t": 110})


def two_curves(
    this: Sequence[np.ndarray], other: Sequence[np.ndarray], *, title: str, subtitle: str, names: Names, unit: str
) -> go.Figure:
    """Runs with other numbers of layers, over relative depth: nothing is subtracted. this, other: estimate, lower and
    upper, each (L,) with the run's own L.
    """
    traces: list[Any] = []
    for (estimate, lower, upper), name, (colour, dash) in zip((this, other), names, _LINES, strict=True):
        numbers = np.arange(1, len(estimate) + 1)
        depth, name = numbers / len(estimate), f"{escape(name)} ({len(estimate)} layers)"
        traces.append(ribbon(depth, lower, upper, transparent(colour, 0.25), name=""))
        hover = f"layer %{{customdata}}: %{{y:.4g}} {unit}"
        traces.append(curve(depth, estimate, name, colour, hover, dash=dash, customdata=numbers))
    x = {"title": "relative depth (layer / layers)", "tickformat": ".0%", "showgrid": False, "zeroline": False}
    return titled(traces, title, subtitle, 400, xaxis=x, yaxis={"title": unit, "zeroline": False})


def role_differences(found: Mapping[str, Differences], *, subtitle: str, names: Names) -> go.Figure:
    """Differences of the share of all attention by role, over layers: role -> (L,), in % points. They sum to 0."""
    traces: list[Any] = []
    for number, (role, one) in enumerate(found.items()):
        layers = np.arange(1, len(one.estimate) + 1)
        x = layers + (number - (len(found) - 1) / 2) * 0.08
        hover = f"{ROLE_NAMES[role]}<br>{_hover(names, '% of all attention')}<extra></extra>"
        look: dict[str, Any] = {"error_y": _reach(one), "customdata": _custom(one)}
        traces.append(curve(x, one.estimate, ROLE_NAMES[role], ROLE_COLOURS[role], hover, **look))
    layout: dict[str, Any] = {
        "xaxis": layer_axis(len(layers)),
        "yaxis": {"title": "difference, % points", "zeroline": False},
    }
    layout |= {"shapes": [across(y=0, line=_ZERO)], "margin": {"t": 110}}
    return titled(traces, "What gets more attention, and what less?", f"{subtitle}<br>{minus(names)}", 430, **layout)


def differences_by_name(
    found: Mapping[str, Differences],
    labels: Sequence[str],
    *,
    title: str,
    subtitle: str,
    names: Names,
    unit: str,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """Dots with intervals: series -> differences (n,) of n `labels`, from the top down; NaN where a series has none.
    Filled where no chance finding (`Differences.marked`, over all series), hollow otherwise.
    """
    traces: list[Any] = []
    height, words = np.arange(len(labels), 0, -1), [escape(label) for label in labels]
    p = np.concatenate([np.ravel(one.p) for one in found.values()])
    first = next(iter(found.values()))
    marked = first._replace(p=p).marked.reshape(len(found), -1)
    for number, (series, one) in enumerate(found.items()):
        colour = (colours or {}).get(series, SERIES[number % len(SERIES)])
        fill = [colour if sure else "rgba(0,0,0,0)" for sure in marked[number]]
        y = height - (number - (len(found) - 1) / 2) * min(0.24, 0.7 / len(found))
        marker = {"size": 9, "color": fill, "line": {"color": colour, "width": 2}}
        look = {"mode": "markers", "name": escape(series), "marker": marker, "text": words, "customdata": _custom(one)}
        hover = f"%{{text}}, {escape(series)}<br>{_hover(names, unit)}<extra></extra>"
        error = _reach(one, color=colour)
        traces.append(go.Scatter(x=one.estimate, y=y, error_x=error, hovertemplate=hover, **look))
    tall = max(330, 200 + len(labels) * max(26, 12 * len(found)))
    ticks = {"tickvals": height, "ticktext": words, "range": [0.4, len(labels) + 0.6]}
    axes = {
        "xaxis": {"title": f"difference, {unit}", "zeroline": False},
        "yaxis": {**ticks, "showgrid": False, "zeroline": False},
    }
    layout = {"margin": {"l": 110, "t": 110}, "legend": {"y": -70 / (tall - 160), "yanchor": "top"}, **axes}
    return titled(traces, title, f"{subtitle}<br>{minus(names)}", tall, shapes=[across(x=0, line=_ZERO)], **layout)


def pairs_scatter(
    this_N: np.ndarray, other_N: np.ndarray, rows_N: np.ndarray, *, names: Names, subtitle: str, unit: str, shown: int
) -> go.Figure:
    """One point an image, this run (y) against the other (x). rows_N: the image's row in this run, as customdata.
    shown: the row that is outlined.
    """
    ends = [float(min(this_N.min(), other_N.min())), float(max(this_N.max(), other_N.max()))]
    room = (ends[1] - ends[0]) * 0.03 or 0.5
    ends = [ends[0] - room, ends[1] + room]
    traces: list[Any] = [
        dashed(ends, ends, "no difference"),
        go.Scattergl(
            x=other_N,
            y=this_N,
            mode="markers",
            customdata=np.asarray(rows_N)[:, None],
            name="an image",
            marker={"size": 5 if len(this_N) > 1000 else 7, "color": _APART, "opacity": 0.45},
            hovertemplate="image %{customdata[0]:d}<br>%{y:.4g} against %{x:.4g} " + unit + "<extra></extra>",
        ),
    ]
    here = np.flatnonzero(np.asarray(rows_N) == shown)
    if len(here):
        traces.append(circled(other_N[here], this_N[here], "the image shown", OTHER, 15))
    y, x = ({"title": f"{escape(name)}, {unit}", "range": ends, "zeroline": False} for name in names)
    return titled(traces, "Do the runs differ image by image?", subtitle, 430, xaxis=x, yaxis=y)


def difference_histogram(
    values_N: np.ndarray, shown: float | None, *, title: str, subtitle: str, unit: str
) -> go.Figure:
    """Differences of all images as a histogram, and where one of them lies."""
    counts, edges = np.histogram(values_N[np.isfinite(values_N)], bins=40)
    look = {"width": np.diff(edges), "marker": {"color": _APART}, "name": "images"}
    hover = "%{x:.3g} " + unit + ": %{y} images<extra></extra>"
    traces: list[Any] = [go.Bar(x=(edges[1:] + edges[:-1]) / 2, y=counts, hovertemplate=hover, **look)]
    if shown is not None:
        look = {"mode": "lines", "name": "this image", "line": {"color": OTHER, "width": 3}}
        traces.append(go.Scatter(x=[shown, shown], y=[0, counts.max()], hoverinfo="name", **look))
    x, y = {"title": f"difference, {unit}", "zeroline": False}, {"title": "images", "rangemode": "tozero"}
    return titled(traces, title, subtitle, 430, xaxis=x, yaxis=y, shapes=[across(x=0, line=_ZERO)])


def minus(names: Names) -> str:
    return f"{escape(names[0])} minus {escape(names[1])}"


def _custom(found: Differences) -> np.ndarray:
    return np.stack([found.this, found.other, found.lower, found.upper, found.estimate], axis=-1)


def _hover(names: Names, unit: str, interval: bool = True) -> str:
    """Reads `_custom`."""
    return (
        f"{escape(names[0])}: %{{customdata[0]:.4g}}<br>{escape(names[1])}: %{{customdata[1]:.4g}} {unit}<br>"
        "difference %{customdata[4]:+.3g}" + (" [%{customdata[2]:.3g}, %{customdata[3]:.3g}]" if interval else "")
    )


def _cells(title: str, names: Sequence[str] | None, count: int, ends: tuple[float, float]) -> dict[str, Any]:
    """An axis of named or numbered cells."""
    if not names:
        return counted(title, count) | {"range": ends, "zeroline": False}
    ticks = {"tickvals": np.arange(1, count + 1), "ticktext": [escape(name) for name in names]}
    return {"title": title, "range": ends, "showgrid": False, "zeroline": False, **ticks}


def _reach(found: Differences, **look: Any) -> dict[str, Any]:
    return whiskers(found.estimate, found.lower, found.upper, thickness=1.5, width=4, **look)
