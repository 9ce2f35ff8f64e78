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
    circled,
    colour_bar,
    counted,
    dashed,
    layer_axis,
    outlined,
    side_by_side,
    step,
)
from htc_probe.probes.show.style import NEUTRAL, SERIES, across, escape, panels, titled, transparent

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
    most = limit(found.estimate)
    labels = [
        np.broadcast_to(np.array([escape(name) for name in of] if of else np.arange(1, n + 1), dtype=object), (m, n))
        for of, n, m in ((columns, columns_, rows_), (rows, rows_, columns_))
    ]
    custom = np.stack([*np.moveaxis(_custom(found), -1, 0).swapaxes(1, 2), labels[0], labels[1].T], axis=-1)
    known = bool(np.isfinite(found.lower).any())
    hover = f"{axes[1]} %{{customdata[5]}}, {axes[0]} %{{customdata[6]}}<br>{_hover(names, unit, known)}<extra></extra>"
    x, y = np.nonzero(found.marked)
    traces = [
        go.Heatmap(
            z=found.estimate.T,
            x=np.arange(1, columns_ + 1),
            y=np.arange(1, rows_ + 1),
            zmin=-most,
            zmax=most,
            colorscale=BELOW_ABOVE,
            xgap=1,
            ygap=1,
            colorbar=colour_bar(f"difference, {unit}"),
            customdata=custom,
            hovertemplate=hover,
        ),
        dots(x + 1, y + 1, 7, 1.5, name="no chance finding"),
    ]
    # Names are read from the top down.
    ends = (rows_ + 0.5, 0.5) if rows else (0.5, rows_ + 0.5)
    return titled(
        traces,
        title,
        f"{subtitle}<br>{minus(names)}",
        min(680, max(400, 210 + 17 * rows_)),
        xaxis=_cells(axes[1], columns, columns_, (0.5, columns_ + 0.5)),
        yaxis=_cells(axes[0], rows, rows_, ends),
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
    """Two panels over x (L): both runs' values, and their difference with its 95 % interval. found: (L,). band: how the
    difference of one image lies, (L,).
    """
    x_L = np.asarray(x)
    second = {"xaxis": "x2", "yaxis": "y2"}
    traces = [
        go.Scatter(
            x=x_L,
            y=values,
            mode="lines+markers",
            name=escape(name),
            line={"color": colour, "width": 2.5, "dash": dash},
            hovertemplate=f"{axis} %{{x}}: %{{y:.4g}} {unit}",
        )
        for name, values, (colour, dash) in zip(names, (found.this, found.other), _LINES, strict=True)
    ]
    if band is not None:
        traces.append(_ribbon(x_L, band.low, band.high, transparent(NEUTRAL, 0.2), BAND, **second))
    interval = "95 % interval of the mean"
    traces.append(_ribbon(x_L, found.lower, found.upper, transparent(_APART, 0.35), interval, **second))
    traces.append(
        go.Scatter(
            x=x_L,
            y=found.estimate,
            mode="lines+markers",
            name="difference",
            line={"color": _APART, "width": 2.5},
            customdata=_custom(found),
            hovertemplate=f"{axis} %{{x}}<br>{_hover(names, unit)}<extra></extra>",
            **second,
        )
    )
    room = (x_L.max() - x_L.min()) * 0.04 or 0.5
    ends = {"title": axis, "range": [x_L.min() - room, x_L.max() + room], "showgrid": False, "zeroline": False}
    if np.all(np.diff(x_L) == 1):
        ends |= {"tickmode": "linear", "tick0": x_L[0], "dtick": step(len(x_L))}
    return titled(
        traces,
        title,
        f"{subtitle}<br>{minus(names)}",
        420,
        **side_by_side(
            panels(1, 2, 0.16), ends, [{"title": unit, "zeroline": False}, {"title": "difference", "zeroline": False}]
        ),
        shapes=[across(y=0, panel="2", line=_ZERO)],
        margin={"t": 110},
    )


def two_curves(
    this: Sequence[np.ndarray], other: Sequence[np.ndarray], *, title: str, subtitle: str, names: Names, unit: str
) -> go.Figure:
    """Runs with other numbers of layers, over relative depth: nothing is subtracted. this, other: estimate, lower and
    upper, each (L,) with the run's own L.
    """
    traces: list[Any] = []
    for (estimate, lower, upper), name, (colour, dash) in zip((this, other), names, _LINES, strict=True):
        depth = np.arange(1, len(estimate) + 1) / len(estimate)
        traces.append(_ribbon(depth, lower, upper, transparent(colour, 0.25), ""))
        traces.append(
            go.Scatter(
                x=depth,
                y=estimate,
                mode="lines+markers",
                name=f"{escape(name)} ({len(estimate)} layers)",
                line={"color": colour, "width": 2.5, "dash": dash},
                customdata=np.arange(1, len(estimate) + 1),
                hovertemplate=f"layer %{{customdata}}: %{{y:.4g}} {unit}",
            )
        )
    return titled(
        traces,
        title,
        subtitle,
        400,
        xaxis={"title": "relative depth (layer / layers)", "tickformat": ".0%", "showgrid": False, "zeroline": False},
        yaxis={"title": unit, "zeroline": False},
    )


def role_differences(found: Mapping[str, Differences], *, subtitle: str, names: Names) -> go.Figure:
    """Differences of the share of all attention by role, over layers: role -> (L,), in % points. They sum to 0."""
    traces: list[Any] = []
    for number, (role, one) in enumerate(found.items()):
        layers = np.arange(1, len(one.estimate) + 1)
        traces.append(
            go.Scatter(
                x=layers + (number - (len(found) - 1) / 2) * 0.08,
                y=one.estimate,
                mode="lines+markers",
                name=ROLE_NAMES[role],
                line={"color": ROLE_COLOURS[role], "width": 2.5},
                error_y=_reach(one),
                customdata=_custom(one),
                hovertemplate=f"{ROLE_NAMES[role]}<br>{_hover(names, '% of all attention')}<extra></extra>",
            )
        )
    count = len(next(iter(found.values())).estimate)
    return titled(
        traces,
        "Where the attention goes instead",
        f"{subtitle}<br>{minus(names)}",
        430,
        xaxis=layer_axis(count),
        yaxis={"title": "difference, % points", "zeroline": False},
        shapes=[across(y=0, line=_ZERO)],
        margin={"t": 110},
    )


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
    height = np.arange(len(labels), 0, -1)
    p = np.concatenate([np.ravel(one.p) for one in found.values()])
    first = next(iter(found.values()))
    marked = first._replace(p=p).marked.reshape(len(found), -1)
    for number, (series, one) in enumerate(found.items()):
        colour = (colours or {}).get(series, SERIES[number % len(SERIES)])
        traces.append(
            go.Scatter(
                x=one.estimate,
                y=height - (number - (len(found) - 1) / 2) * min(0.24, 0.7 / len(found)),
                mode="markers",
                name=escape(series),
                error_x=_reach(one, colour),
                customdata=_custom(one),
                text=[escape(label) for label in labels],
                marker={
                    "size": 9,
                    "color": [colour if sure else "rgba(0,0,0,0)" for sure in marked[number]],
                    "line": {"color": colour, "width": 2},
                },
                hovertemplate=f"%{{text}}, {escape(series)}<br>{_hover(names, unit)}<extra></extra>",
            )
        )
    tall = max(330, 200 + len(labels) * max(26, 12 * len(found)))
    return titled(
        traces,
        title,
        f"{subtitle}<br>{minus(names)}",
        tall,
        xaxis={"title": f"difference, {unit}", "zeroline": False},
        yaxis={
            "tickvals": height,
            "ticktext": [escape(label) for label in labels],
            "range": [0.4, len(labels) + 0.6],
            "showgrid": False,
            "zeroline": False,
        },
        shapes=[across(x=0, line=_ZERO)],
        margin={"l": 110, "t": 110},
        legend={"y": -70 / (tall - 160), "yanchor": "top"},
    )


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
    return titled(
        traces,
        "Image by image",
        subtitle,
        430,
        xaxis={"title": f"{escape(names[1])}, {unit}", "range": ends, "zeroline": False},
        yaxis={"title": f"{escape(names[0])}, {unit}", "range": ends, "zeroline": False},
    )


def difference_histogram(
    values_N: np.ndarray, shown: float | None, *, title: str, subtitle: str, unit: str
) -> go.Figure:
    """Differences of all images as a histogram, and where one of them lies."""
    counts, edges = np.histogram(values_N[np.isfinite(values_N)], bins=40)
    traces: list[Any] = [
        go.Bar(
            x=(edges[1:] + edges[:-1]) / 2,
            y=counts,
            width=np.diff(edges),
            marker={"color": _APART},
            name="images",
            hovertemplate="%{x:.3g} " + unit + ": %{y} images<extra></extra>",
        )
    ]
    if shown is not None:
        traces.append(
            go.Scatter(
                x=[shown, shown],
                y=[0, counts.max()],
                mode="lines",
                name="this image",
                hoverinfo="name",
                line={"color": OTHER, "width": 3},
            )
        )
    return titled(
        traces,
        title,
        subtitle,
        430,
        xaxis={"title": f"difference, {unit}", "zeroline": False},
        yaxis={"title": "images", "rangemode": "tozero"},
        shapes=[across(x=0, line=_ZERO)],
    )


def limit(values: np.ndarray) -> float:
    """Of a scale with 0 in its middle."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


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


def dots(x: np.ndarray, y: np.ndarray, size: int, width: float, **more: Any) -> go.Scatter:
    """On cells that are no chance finding."""
    marker = {"size": size, "color": "#ffffff", "line": {"color": "#333333", "width": width}}
    return go.Scatter(x=x, y=y, mode="markers", hoverinfo="skip", showlegend=False, marker=marker, **more)


def _reach(found: Differences, colour: str | None = None) -> dict[str, object]:
    return {
        "type": "data",
        "array": found.upper - found.estimate,
        "arrayminus": found.estimate - found.lower,
        "thickness": 1.5,
        "width": 4,
        **({"color": colour} if colour else {}),
    }


def _ribbon(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str, **more: Any) -> go.Scatter:
    """A filled band."""
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        name=name,
        showlegend=bool(name),
        **more,
    )
