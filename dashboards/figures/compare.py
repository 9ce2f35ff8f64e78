"""Plotly figures of two runs and their difference. Knows arrays and plotly; not Streamlit, files or runs.

A difference is this run minus the other: orange where this run has more, purple where it has less, on a scale with 0 in
its middle. Names of runs and labels are escaped here. Letters in names: L layers, H heads, R rows and C columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from htc_probe.analysis.compare import Differences
from htc_probe.dashboards.attention import Band
from htc_probe.dashboards.figures.attention import BAND
from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    HEAT,
    NEUTRAL,
    ROLE_COLOURS,
    ROLE_NAMES,
    SERIES,
    VEIL,
    Figure,
    escape,
    png,
    step,
    titled,
    transparent,
)

THIS, OTHER, APART = "#0072B2", "#D55E00", "#009E73"
"""Of this run, of the other, and of what lies between them."""
_LINES = (THIS, "solid"), (OTHER, "dash")
# Over a picture: none at the middle, so that it stays visible where nothing differs.
_SHIFT = [[0.0, "rgba(84,39,143,0.9)"], [0.5, "rgba(242,240,240,0.05)"], [1.0, "rgba(140,63,4,0.9)"]]

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
    limit = _limit(found.estimate)
    labels = [
        np.broadcast_to(np.array([escape(name) for name in of] if of else np.arange(1, n + 1), dtype=object), (m, n))
        for of, n, m in ((columns, columns_, rows_), (rows, rows_, columns_))
    ]
    custom = np.stack([*np.moveaxis(_custom(found), -1, 0).swapaxes(1, 2), labels[0], labels[1].T], axis=-1)
    known = bool(np.isfinite(found.lower).any())
    hover = f"{axes[1]} %{{customdata[5]}}, {axes[0]} %{{customdata[6]}}<br>{_hover(names, unit, known)}<extra></extra>"
    figure = Figure(
        go.Heatmap(
            z=found.estimate.T,
            x=np.arange(1, columns_ + 1),
            y=np.arange(1, rows_ + 1),
            zmin=-limit,
            zmax=limit,
            colorscale=BELOW_ABOVE,
            xgap=1,
            ygap=1,
            colorbar=_bar(unit),
            customdata=custom,
            hovertemplate=hover,
        )
    )
    x, y = np.nonzero(found.marked)
    figure.add_scatter(
        x=x + 1,
        y=y + 1,
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        name="no chance finding",
        marker={"size": 7, "color": "#ffffff", "line": {"color": "#333333", "width": 1.5}},
    )
    column, row = mark
    if column is not None or row is not None:
        left, right = (0.5, columns_ + 0.5) if column is None else (column + 0.5, column + 1.5)
        low, high = (0.5, rows_ + 0.5) if row is None else (row + 0.5, row + 1.5)
        figure.add_shape(type="rect", x0=left, x1=right, y0=low, y1=high, line={"color": APART, "width": 3})
    for update, of, count, name, ends in (
        (figure.update_xaxes, columns, columns_, axes[1], (0.5, columns_ + 0.5)),
        # Names are read from the top down.
        (figure.update_yaxes, rows, rows_, axes[0], (rows_ + 0.5, 0.5) if rows else (0.5, rows_ + 0.5)),
    ):
        ticks: dict[str, Any] = (
            {"tickvals": np.arange(1, count + 1), "ticktext": [escape(text) for text in of]}
            if of
            else {"tickmode": "linear", "tick0": 1, "dtick": step(count)}
        )
        update(title=name, range=ends, showgrid=False, zeroline=False, **ticks)
    titled(figure, title, f"{subtitle}<br>{_minus(names)}", height=min(680, max(400, 210 + 17 * rows_)))
    return figure.update_layout(margin={"l": 60 if rows is None else 110, "t": 110})


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
    at = np.asarray(x)
    figure = make_subplots(figure=Figure(), rows=1, cols=2, horizontal_spacing=0.16)
    for name, values, (colour, dash) in zip(names, (found.this, found.other), _LINES, strict=True):
        figure.add_scatter(
            x=at,
            y=values,
            mode="lines+markers",
            name=escape(name),
            line={"color": colour, "width": 2.5, "dash": dash},
            hovertemplate=f"{axis} %{{x}}: %{{y:.4g}} {unit}",
            row=1,
            col=1,
        )
    if band is not None:
        _ribbon(figure, at, band.low, band.high, transparent(NEUTRAL, 0.2), BAND)
    _ribbon(figure, at, found.lower, found.upper, transparent(APART, 0.35), "95 % interval of the mean")
    figure.add_scatter(
        x=at,
        y=found.estimate,
        mode="lines+markers",
        name="difference",
        line={"color": APART, "width": 2.5},
        customdata=_custom(found),
        hovertemplate=f"{axis} %{{x}}<br>{_hover(names, unit)}<extra></extra>",
        row=1,
        col=2,
    )
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1.5}, row=1, col=2)
    room = (at.max() - at.min()) * 0.04 or 0.5
    whole = {"tickmode": "linear", "tick0": at[0], "dtick": step(len(at))} if np.all(np.diff(at) == 1) else {}
    figure.update_xaxes(title=axis, range=[at.min() - room, at.max() + room], showgrid=False, zeroline=False, **whole)
    figure.update_yaxes(title=unit, zeroline=False, row=1, col=1)
    figure.update_yaxes(title="difference", zeroline=False, row=1, col=2)
    titled(figure, title, f"{subtitle}<br>{_minus(names)}", height=420)
    return figure.update_layout(margin={"t": 110})


def two_curves(
    this: Sequence[np.ndarray], other: Sequence[np.ndarray], *, title: str, subtitle: str, names: Names, unit: str
) -> go.Figure:
    """Runs with other numbers of layers, over relative depth: nothing is subtracted. this, other: estimate, lower and
    upper, each (L,) with the run's own L.
    """
    figure = Figure()
    for (estimate, lower, upper), name, (colour, dash) in zip((this, other), names, _LINES, strict=True):
        depth = np.arange(1, len(estimate) + 1) / len(estimate)
        _ribbon(figure, depth, lower, upper, transparent(colour, 0.25), "", panel=False)
        figure.add_scatter(
            x=depth,
            y=estimate,
            mode="lines+markers",
            name=f"{escape(name)} ({len(estimate)} layers)",
            line={"color": colour, "width": 2.5, "dash": dash},
            customdata=np.arange(1, len(estimate) + 1),
            hovertemplate=f"layer %{{customdata}}: %{{y:.4g}} {unit}",
        )
    figure.update_xaxes(title="relative depth (layer / layers)", tickformat=".0%", showgrid=False, zeroline=False)
    figure.update_yaxes(title=unit, zeroline=False)
    return titled(figure, title, subtitle, height=400)


def role_differences(found: Mapping[str, Differences], *, subtitle: str, names: Names) -> go.Figure:
    """Differences of the share of all attention by role, over layers: role -> (L,), in % points. They sum to 0."""
    figure = Figure()
    for number, (role, one) in enumerate(found.items()):
        layers = np.arange(1, len(one.estimate) + 1)
        figure.add_scatter(
            x=layers + (number - (len(found) - 1) / 2) * 0.08,
            y=one.estimate,
            mode="lines+markers",
            name=ROLE_NAMES[role],
            line={"color": ROLE_COLOURS[role], "width": 2.5},
            error_y=_reach(one),
            customdata=_custom(one),
            hovertemplate=f"{ROLE_NAMES[role]}<br>{_hover(names, '% of all attention')}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1.5})
    count = len(next(iter(found.values())).estimate)
    figure.update_xaxes(
        title="decoder layer",
        range=[0.5, count + 0.5],
        tickmode="linear",
        tick0=1,
        dtick=step(count),
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(title="difference, % points", zeroline=False)
    titled(figure, "Where the attention goes instead", f"{subtitle}<br>{_minus(names)}", height=430)
    return figure.update_layout(margin={"t": 110})


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
    figure = Figure()
    height = np.arange(len(labels), 0, -1)
    p = np.concatenate([np.ravel(one.p) for one in found.values()])
    first = next(iter(found.values()))
    marked = first._replace(p=p).marked.reshape(len(found), -1)
    for number, (series, one) in enumerate(found.items()):
        colour = (colours or {}).get(series, SERIES[number % len(SERIES)])
        figure.add_scatter(
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
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1.5})
    figure.update_yaxes(
        tickvals=height,
        ticktext=[escape(label) for label in labels],
        range=[0.4, len(labels) + 0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(title=f"difference, {unit}", zeroline=False)
    tall = max(330, 200 + len(labels) * max(26, 12 * len(found)))
    titled(figure, title, f"{subtitle}<br>{_minus(names)}", height=tall)
    return figure.update_layout(margin={"l": 110, "t": 110}, legend={"y": -70 / (tall - 160), "yanchor": "top"})


def pairs_scatter(
    this_N: np.ndarray, other_N: np.ndarray, rows_N: np.ndarray, *, names: Names, subtitle: str, unit: str, shown: int
) -> go.Figure:
    """One point an image, this run (y) against the other (x). rows_N: the image's row in this run, as customdata.
    shown: the row that is outlined.
    """
    ends = [float(min(this_N.min(), other_N.min())), float(max(this_N.max(), other_N.max()))]
    room = (ends[1] - ends[0]) * 0.03 or 0.5
    ends = [ends[0] - room, ends[1] + room]
    figure = Figure()
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": NEUTRAL, "width": 1.5, "dash": "dash"},
        name="no difference",
        hoverinfo="skip",
    )
    figure.add_scattergl(
        x=other_N,
        y=this_N,
        mode="markers",
        customdata=np.asarray(rows_N)[:, None],
        name="an image",
        marker={"size": 5 if len(this_N) > 1000 else 7, "color": APART, "opacity": 0.45},
        hovertemplate="image %{customdata[0]:d}<br>%{y:.4g} against %{x:.4g} " + unit + "<extra></extra>",
    )
    here = np.flatnonzero(np.asarray(rows_N) == shown)
    if len(here):
        figure.add_scatter(
            x=other_N[here],
            y=this_N[here],
            mode="markers",
            name="the image shown",
            hoverinfo="skip",
            marker={"size": 15, "symbol": "circle-open", "color": OTHER, "line": {"width": 3}},
        )
    figure.update_xaxes(title=f"{escape(names[1])}, {unit}", range=ends, zeroline=False)
    figure.update_yaxes(title=f"{escape(names[0])}, {unit}", range=ends, zeroline=False)
    return titled(figure, "Image by image", subtitle, height=430)


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
    difference = this_RC - other_RC
    most = limit or _limit(np.array([this_RC, other_RC]))
    above, apart_colours = (BELOW_ABOVE, BELOW_ABOVE) if image is None else (_SHIFT, _SHIFT)
    if not signed:
        above = HEAT if image is None else VEIL
    apart = _limit(difference)
    titles = [escape(name) for name in names] + ["difference"]
    named = labels is not None
    figure = make_subplots(
        figure=Figure(), rows=1, cols=3, horizontal_spacing=0.05, subplot_titles=titles, shared_yaxes=named
    )
    names_R, names_C = labels or ([str(at + 1) for at in range(rows)], [str(at + 1) for at in range(columns)])
    where = np.empty((rows, columns), dtype=object)
    where[:] = [[f"{axes[0]} {escape(row)}, {axes[1]} {escape(column)}" for column in names_C] for row in names_R]
    for panel, values in enumerate((this_RC, other_RC, difference), 1):
        figure.add_heatmap(
            z=values,
            x=np.arange(columns) + 0.5,
            y=np.arange(rows) + 0.5,
            row=1,
            col=panel,
            text=where,
            coloraxis="coloraxis2" if panel == 3 else "coloraxis",
            xgap=0 if image is not None else 1,
            ygap=0 if image is not None else 1,
            hovertemplate=f"%{{text}}<br>%{{z:{'+' if panel == 3 else ''}.3g}} {unit}<extra></extra>",
        )
        if image is not None:
            figure.add_layout_image(
                source=png(image, grey=True),
                x=0,
                y=0,
                sizex=columns,
                sizey=rows,
                sizing="stretch",
                layer="below",
                xref=f"x{panel}" if panel > 1 else "x",
                yref=f"y{panel}" if panel > 1 else "y",
            )
    if marked is not None and marked.any():
        row_of, col_of = np.nonzero(marked)
        figure.add_scatter(
            x=col_of + 0.5,
            y=row_of + 0.5,
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=3,
            marker={"size": 5, "color": "#ffffff", "line": {"color": "#333333", "width": 1}},
        )
    figure.update_xaxes(range=[0, columns], constrain="domain", showgrid=False, zeroline=False)
    figure.update_yaxes(range=[rows, 0], showgrid=False, zeroline=False, constrain="domain")
    if labels is None:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        for axis in ("", "2", "3"):
            figure.update_layout({f"yaxis{axis}": {"scaleanchor": f"x{axis}"}})
    else:
        short = [escape(name if len(name) < 15 else name[:13] + "…") for name in names_C]
        tall = [escape(name if len(name) < 15 else name[:13] + "…") for name in names_R]
        figure.update_xaxes(tickvals=np.arange(columns) + 0.5, ticktext=short, tickangle=-60)
        figure.update_yaxes(tickvals=np.arange(rows) + 0.5, ticktext=tall)
        figure.update_xaxes(title=axes[1], col=2)
        figure.update_yaxes(title=axes[0], col=1)
    under = -0.42 if named else -0.04
    bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "yanchor": "top", "y": under}
    figure.update_layout(
        coloraxis={
            "colorscale": above,
            "cmin": -most if signed else 0,
            "cmax": most,
            "colorbar": {**bar, "x": 0.31, "len": 0.5, "title": {"text": unit, "side": "bottom"}},
        },
        coloraxis2={
            "colorscale": apart_colours,
            "cmin": -apart,
            "cmax": apart,
            "colorbar": {**bar, "x": 0.84, "len": 0.3, "title": {"text": f"difference, {unit}", "side": "bottom"}},
        },
    )
    titled(figure, title, f"{subtitle}<br>difference: {_minus(names)}", height=480 + 6 * rows if named else 480)
    return figure.update_layout(margin={"l": 110 if named else 10, "t": 132, "b": 190 if named else 80})


def anchors_of_both(
    this_A: np.ndarray, other_A: np.ndarray, uniform: float, *, subtitle: str, names: Names
) -> go.Figure:
    """Attention of both runs on each anchor of one image. this_A, other_A: (A,) in % of all attention. uniform: that
    of each key, in %, drawn dashed.
    """
    anchors = np.arange(1, len(this_A) + 1)
    figure = Figure()
    for name, values, colour in zip(names, (this_A, other_A), (THIS, OTHER), strict=True):
        figure.add_bar(
            x=anchors, y=values, name=escape(name), marker={"color": colour}, hovertemplate="anchor %{x}: %{y:.3g} %"
        )
    figure.add_scatter(
        x=[0.5, len(anchors) + 0.5],
        y=[uniform, uniform],
        mode="lines",
        name=f"uniform: {uniform:.3g} %",
        line={"color": NEUTRAL, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title="anchor", tickmode="linear", tick0=1, dtick=step(len(anchors)), showgrid=False)
    figure.update_yaxes(title="% of all attention", rangemode="tozero")
    return titled(figure, "Attention on each anchor", subtitle, height=430)


def difference_histogram(
    values_N: np.ndarray, shown: float | None, *, title: str, subtitle: str, unit: str
) -> go.Figure:
    """Differences of all images as a histogram, and where one of them lies."""
    counts, edges = np.histogram(values_N[np.isfinite(values_N)], bins=40)
    figure = Figure(
        go.Bar(
            x=(edges[1:] + edges[:-1]) / 2,
            y=counts,
            width=np.diff(edges),
            marker={"color": APART},
            name="images",
            hovertemplate="%{x:.3g} " + unit + ": %{y} images<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1.5})
    if shown is not None:
        figure.add_scatter(
            x=[shown, shown],
            y=[0, counts.max()],
            mode="lines",
            name="this image",
            hoverinfo="name",
            line={"color": OTHER, "width": 3},
        )
    figure.update_xaxes(title=f"difference, {unit}", zeroline=False)
    figure.update_yaxes(title="images", rangemode="tozero")
    return titled(figure, title, subtitle, height=430)


def _limit(values: np.ndarray) -> float:
    """Of a scale with 0 in its middle."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _minus(names: Names) -> str:
    return f"{escape(names[0])} minus {escape(names[1])}"


def _custom(found: Differences) -> np.ndarray:
    return np.stack([found.this, found.other, found.lower, found.upper, found.estimate], axis=-1)


def _hover(names: Names, unit: str, interval: bool = True) -> str:
    """Reads `_custom`."""
    return (
        f"{escape(names[0])}: %{{customdata[0]:.4g}}<br>{escape(names[1])}: %{{customdata[1]:.4g}} {unit}<br>"
        "difference %{customdata[4]:+.3g}" + (" [%{customdata[2]:.3g}, %{customdata[3]:.3g}]" if interval else "")
    )


def _bar(unit: str) -> dict[str, object]:
    return {"title": {"text": f"difference, {unit}", "side": "right"}, "thickness": 12, "outlinewidth": 0}


def _reach(found: Differences, colour: str | None = None) -> dict[str, object]:
    return {
        "type": "data",
        "array": found.upper - found.estimate,
        "arrayminus": found.estimate - found.lower,
        "thickness": 1.5,
        "width": 4,
        **({"color": colour} if colour else {}),
    }


def _ribbon(
    figure: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str, *, panel: bool = True
) -> None:
    """A filled band, in the second panel where there are panels."""
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        hoverinfo="skip",
        name=name,
        showlegend=bool(name),
        **({"row": 1, "col": 2} if panel else {}),
    )
