"""Plotly figures of what causes what: knock-outs of single tokens and of groups, and the interchange. Knows arrays and
plotly; not Streamlit, files or runs.

Tasks, groups and predictors are names from files, and escaped here.

Letters in names: T hybrid tokens, A anchors, R rows and C columns of the patch grid, L layers, G groups, M ways of
taking away, P players, K rows of a chart; a last axis of 3 is estimate, lower and upper end of an interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    ROLE_COLOURS,
    ROLE_NAMES,
    UNFADED,
    VEIL,
    colour_bar,
    curve,
    ink,
    laid,
    layer_axis,
    png,
    side_by_side,
    square,
    whiskers,
)
from htc_probe.probes.show.style import NEUTRAL, SERIES, across, escape, panels, titled

_OWN = "#D55E00"  # the image that is looked at, among the means
_MODES = ("#CC79A7", "#56B4E9", "#999933")  # of ways of taking away, colours that no role has here
_BELOW, _ABOVE = (125, 80, 215), (230, 97, 1)
# As VEIL, for signs: nothing lies over the picture where the value is 0.
_SIGNED_VEIL = [[step / 8, f"rgba{(*(_BELOW if step < 4 else _ABOVE), 0.9 * abs(step / 4 - 1))}"] for step in range(9)]


def token_map(
    patch_RC: np.ndarray,
    anchors_A: np.ndarray,
    limit: float,
    *,
    title: str,
    lines: Sequence[str],
    image: np.ndarray,
    signed: bool = False,
    raw: tuple[np.ndarray, np.ndarray] | None = None,
    unit: str = "",
) -> go.Figure:
    """What each token has, its patch laid on the picture and the anchors as a row of cells under it.

    patch_RC: (R, C), multiples of a uniform part, NaN where there is no patch. anchors_A: (A,) the same, may be empty.
    limit: of the colours, from 0, or from -limit where `signed`: the same where maps are compared. lines: under the
    title. image: (h, w, 3) uint8, the square that the patches cover. raw: both before they were made multiples, in
    `unit`, for the hover text.
    """
    rows, cols = patch_RC.shape
    height, width = image.shape[:2]
    limit = limit if limit > 0 else 1.0
    scale = {"zmin": -limit if signed else 0.0, "zmax": limit, "colorscale": _SIGNED_VEIL if signed else VEIL}
    raw = (patch_RC, anchors_A) if raw is None else raw
    row_of, col_of = np.meshgrid(np.arange(1, rows + 1), np.arange(1, cols + 1), indexing="ij")
    hover = "%{z:.3g}× uniform<br>" + (f"%{{customdata[2]:.3~g}} {escape(unit)}" if unit else "") + "<extra></extra>"
    traces = [
        go.Heatmap(
            z=patch_RC,
            x=np.linspace(0, width, cols + 1),
            y=np.linspace(0, height, rows + 1),
            name="patches",
            customdata=np.stack([row_of, col_of, raw[0]], axis=-1),
            meta={unit: 2} if unit else {},
            hovertemplate="patch row %{customdata[0]}, column %{customdata[1]}<br>" + hover,
            colorbar=colour_bar("× uniform"),
            **scale,
        )
    ]
    layout: dict[str, Any] = {}
    bottom = height
    if len(anchors_A):
        top, bottom = height * 1.05, height * 1.19
        places = np.arange(1, len(anchors_A) + 1)
        custom = np.stack([places, places, raw[1]], axis=-1)[None]
        x, hover = np.linspace(0, width, len(anchors_A) + 1), "anchor %{customdata[0]}<br>" + hover
        look = {
            "name": "anchors",
            "xgap": 2,
            "customdata": custom,
            "meta": traces[0].meta,
            "hovertemplate": hover,
            "showscale": False,
            **scale,
        }
        traces.append(go.Heatmap(z=anchors_A[None], x=x, y=[top, bottom], **look))
        # Grey under it as under the patches, or one value would have two colours.
        edges = {"x0": 0, "x1": width, "y0": top, "y1": bottom, "line": {"width": 0}}
        layout["shapes"] = [{"type": "rect", "fillcolor": NEUTRAL, "layer": "below", **edges}]
        name = {"text": "anchors", "x": 0, "y": bottom, "xanchor": "left", "yanchor": "top", "showarrow": False}
        layout["annotations"] = [name | {"font": {"size": 12}}]
        bottom = height * 1.28
    layout |= square((0, width), (bottom, 0)) | {"margin": {"l": 10, "r": 10, "b": 10, "t": 120}}
    pictures = [laid(png(image, grey=True), 0, 0, width, height)]
    return titled(traces, escape(title), "<br>".join(map(escape, lines)), 480, images=pictures, **layout)


def rank_dots(
    predictors: Sequence[str], rank_K3: np.ndarray, *, own_K: np.ndarray | None, effect: str, n: int
) -> go.Figure:
    """How well each predictor ranks an image's tokens by what knocking them out does: Spearman's correlation.

    rank_K3: (K, 3) of the K predictors, the mean over n images with its interval. own_K: (K,) of the image that is
    looked at. effect: on what, in words.
    """
    names = [escape(name) for name in predictors]
    look = {"mode": "markers", "name": f"mean of {n:,} images, 95% interval", "customdata": rank_K3[:, 1:]}
    look |= {"marker": {"color": SERIES[0], "size": 10}, "error_x": _error(rank_K3, SERIES[0])}
    hover = "%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>"
    means = go.Scatter(x=rank_K3[:, 0], y=names, hovertemplate=hover, **look)
    subtitle = f"ranks of an image's tokens, against the size of the effect on {escape(effect)} · {n:,} images"
    x = {"title": "rank correlation with the effect", "range": [-1.05, 1.05], "zeroline": False}
    shapes = [across(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dash"})]
    traces, title = [means, *_own(own_K, names, "%{y}: %{x:.3f}")], "Which score predicts the effect of a knock-out?"
    layout = {"xaxis": x, "yaxis": _DOWN, "shapes": shapes, "showlegend": True}
    return titled(traces, title, subtitle, 210 + 44 * len(names), **layout)


def group_bars(
    groups: Sequence[str],
    modes: Sequence[str],
    effect_MG3: np.ndarray,
    *,
    own_MG: np.ndarray | None,
    unit: str,
    what: str,
    n: int,
) -> go.Figure:
    """What taking several tokens away at once does. The last group, all patches, has an axis of its own.

    effect_MG3: (M, G, 3), NaN where a mode does not exist; larger is a larger effect. own_MG: (M, G) of the image that
    is looked at. unit: of the effect. what: the effect in words. n: images.
    """
    names = ["<br>".join(escape(name).rsplit(" ", 1)) for name in groups]
    traces = []
    for panel, some in (("", slice(len(names) - 1)), ("2", slice(len(names) - 1, None))):
        axes = {"xaxis": f"x{panel}", "yaxis": f"y{panel}"}
        for number, (mode, colour) in enumerate(zip(modes, _MODES, strict=False)):
            values = effect_MG3[number, some]
            if not np.isfinite(values[:, 0]).any():
                continue
            look = {"legendgroup": mode, "showlegend": not panel, "offsetgroup": mode, **axes}
            look |= {"name": escape(mode), "marker": {"color": colour}, "customdata": values[:, 1:]}
            hover = f"%{{x}}, {escape(mode)}: {_Y_WITH_ENDS}"
            bars = go.Bar(x=names[some], y=values[:, 0], error_y=_error(values), hovertemplate=hover, **look)
            own_G = None if own_MG is None else own_MG[number, some]
            first = not panel and number == 0
            look = {"offsetgroup": mode, "legendgroup": "own", "legendrank": 2000, "showlegend": first, **axes}
            traces += [bars, *_own(names[some], own_G, f"%{{x}}, {escape(mode)}: %{{y:.4~g}}", **look)]
    own_share = 0.9 / max(2, len(names))  # of the width, of a group; between the panels is a tenth
    x, y = {"showgrid": False, "tickangle": 0}, {"zeroline": True, "zerolinecolor": NEUTRAL, "domain": [0.0, 1.0]}
    return titled(
        traces,
        "What is lost without a group of tokens?",
        f"effect on {escape(what)} · mean of {n:,} images, 95% intervals",
        430,
        barmode="group",
        scattermode="group",
        bargap=0.25,
        xaxis={**x, "anchor": "y", "domain": [0.0, 0.9 - own_share]},
        xaxis2={**x, "anchor": "y2", "domain": [1.0 - own_share, 1.0]},
        yaxis={**y, "anchor": "x", "title": escape(unit)},
        yaxis2={**y, "anchor": "x2"},
    )


def window_lines(
    effect_by: Mapping[str, np.ndarray], *, own_by: Mapping[str, np.ndarray] | None, unit: str, what: str, n: int
) -> go.Figure:
    """What closing all tokens of a role to one decoder layer only does.

    effect_by: role, `anchor` or `patch` -> (L, 3); each has an axis of its own. own_by: role -> (L,) of the image that
    is looked at.
    """
    layers = np.arange(1, len(next(iter(effect_by.values()))) + 1)
    traces: list[Any] = []
    axes: dict[str, Any] = {}
    places = panels(len(effect_by), 1, 0.0, 0.08)
    for panel, (role, values) in zip(places, effect_by.items(), strict=True):
        name = f"all {ROLE_NAMES[role]}"
        hover, colour = f"layer %{{x}}, {name}: {_Y_WITH_ENDS}", ROLE_COLOURS[role]
        look: dict[str, Any] = {"error_y": _error(values, colour), "customdata": values[:, 1:], **panel.trace}
        line = curve(layers, values[:, 0], name, colour, hover, **look)
        own_L = None if own_by is None else own_by[role]
        look = {"legendgroup": "own", "legendrank": 2000, "showlegend": panel.number == 0, **panel.trace}
        traces += [line, *_own(layers, own_L, "layer %{x}: %{y:.4~g}", **look)]
        lowest = {"matches": f"x{places[-1].name}", "showticklabels": False, "title": ""}
        x = layer_axis(len(layers)) | ({} if panel == places[-1] else lowest)
        axes |= panel.axes(x, {"zeroline": True, "zerolinecolor": NEUTRAL, "rangemode": "tozero"})
    subtitle = f"knock-out in this layer only: effect on {escape(what)}, {escape(unit)}"
    subtitle += f"<br>an axis each · mean of {n:,} images, 95% intervals"
    return titled(traces, "What is lost in which layer?", subtitle, 430, **axes)


def shapley_bars(
    players: Sequence[str], value_P3: np.ndarray, *, own_P: np.ndarray | None, unit: str, what: str, n: int
) -> go.Figure:
    """What each anchor and each quarter of the patches adds, on average over all orders in which they may join.

    value_P3: (P, 3), means with their intervals. own_P: (P,) of the image that is looked at. Players whose name begins
    with `anchor` have the anchors' colour.
    """
    names = [escape(name) for name in players]
    colours = [ROLE_COLOURS["anchor" if name.startswith("anchor") else "patch"] for name in players]
    look = {"orientation": "h", "marker": {"color": colours}, "name": "mean", "showlegend": False}
    hover = "%{y}: %{x:.4~g} [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]<extra></extra>"
    ends = {"error_x": _error(value_P3), "customdata": value_P3[:, 1:]}
    bars = go.Bar(x=value_P3[:, 0], y=names, hovertemplate=hover, **ends, **look)
    traces = [bars, *_own(own_P, names, "%{y}: %{x:.4~g}")]
    subtitle = f"Shapley values for {escape(what)} · mean of {n:,} images, 95% intervals"
    x = {"title": escape(unit), "zeroline": True, "zerolinecolor": NEUTRAL}
    return titled(traces, "What does each group of tokens add?", subtitle, 210 + 30 * len(names), xaxis=x, yaxis=_DOWN)


def two_by_two(
    own_3: np.ndarray,
    mixed_23: np.ndarray,
    *,
    readout: str,
    what: str,
    chance: float,
    cases: int,
    couples: int,
    measure: str = "reads",
) -> go.Figure:
    """The anchors of A or B with the patches of A or B: whose label is read.

    own_3: (3,) the share of unmixed images of which their own label is read, with its interval. mixed_23: (2, 3) the
    shares of mixed images that follow the anchors' and the patches' image. By symmetry these two measurements fill the
    four cells. Colours: A's share less B's, -1 to 1, whatever the data. readout, what: by whom and of what, in words.
    chance: the anchors' share were the readouts dealt at random. measure: `reads`, or of numbers `weight`.
    """
    anchors, patches = mixed_23
    difference = anchors[0] - patches[0]
    z = np.array([[own_3[0], difference], [-difference, -own_3[0]]])

    def line(letter: str, value: np.ndarray) -> str:
        return f"{letter}: <b>{value[0]:.2f}</b> [{value[1]:.2f}, {value[2]:.2f}]"

    def rest(*values: np.ndarray) -> str:
        left = max(0.0, 1 - sum(float(value[0]) for value in values))
        return f"<br>neither: {left:.2f}" if measure == "reads" else ""

    text = [
        [
            line("A", own_3) + rest(own_3).replace("neither", "not A"),
            line("A", anchors) + "<br>" + line("B", patches) + rest(anchors, patches),
        ],
        [
            line("A", patches) + "<br>" + line("B", anchors) + rest(anchors, patches),
            line("B", own_3) + rest(own_3).replace("neither", "not B"),
        ],
    ]
    look = {"xgap": 3, "ygap": 3, "hoverinfo": "skip", "zmin": -1, "zmax": 1, "colorscale": BELOW_ABOVE}
    bar = colour_bar("A minus B", tickvals=[-1, 0, 1], ticktext=["B", "0", "A"])
    x, y = ["patches of A", "patches of B"], ["anchors of A", "anchors of B"]
    labels, inks = [], ink(np.asarray(z), (-1, 1), BELOW_ABOVE)
    for row, col in np.ndindex(2, 2):
        font = {"size": 13, "color": inks[row, col]}
        labels.append({"x": col, "y": row, "text": text[row][col], "showarrow": False, "font": font})
    whose = "which label is read" if measure == "reads" else "weight of each source's value in the reading"
    subtitle = f"{cases:,} labels in {couples:,} pairs, 95% intervals · chance {chance:.2f}"
    heat = go.Heatmap(z=z, x=x, y=y, colorbar=bar, **look)
    layout = {"annotations": labels, "xaxis": {"showgrid": False}, "yaxis": _DOWN, "margin": {"t": 115, "b": 40}}
    return titled([heat], escape(readout), f"{whose} · {escape(what)}<br>{subtitle}", 390, **layout)


def follow_dots(
    tasks: Sequence[str], share_by: Mapping[str, np.ndarray], chance_by: Mapping[str, np.ndarray], *, n: int
) -> go.Figure:
    """Whom readouts follow where the anchors are of one image and the patches of another, task by task.

    share_by: readout -> (K, 2, 3) of the K tasks, the shares of the anchors' and of the patches' image; NaN where it is
    not read. chance_by: readout -> (K,), the anchors' share were what is read dealt at random. The `customdata` of
    every point is the number of its task. n: mixed images.
    """
    names = [escape(name) for name in tasks]
    traces: list[go.Scatter] = []
    for number, (readout, share_K23) in enumerate(share_by.items()):
        panel = str(number + 1) if number else ""
        common = {"y": np.arange(len(names)), "mode": "markers", "customdata": np.arange(len(names))}
        common |= {"showlegend": not panel, "xaxis": f"x{panel}", "yaxis": f"y{panel}"}
        marker = {"symbol": "line-ns-open", "size": 14, "color": NEUTRAL, "line": {"width": 2}}
        look = {"name": "chance", "legendgroup": "chance", "marker": marker, **common}
        traces.append(go.Scatter(x=chance_by[readout], hovertemplate="chance: %{x:.2f}<extra></extra>", **look))
        for side, (role, symbol) in enumerate((("anchor", "diamond"), ("patch", "circle"))):
            values, whose = share_K23[:, side], f"{('anchors', 'patches')[side]}' source"
            marker = {"color": ROLE_COLOURS[role], "size": 9, "symbol": symbol}
            look = {"name": f"follows the {whose}", "legendgroup": role, "marker": marker, **UNFADED, **common}
            text = [f"{name}: {v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" for name, v in zip(names, values, strict=True)]
            error, hover = _error(values, ROLE_COLOURS[role]), f"%{{text}}<br>{whose}<extra></extra>"
            traces.append(go.Scatter(x=values[:, 0], error_x=error, text=text, hovertemplate=hover, **look))
    places = panels(1, len(share_by), 0.04)
    x = {"title": "share (numbers: weight)", "range": [-0.08, 1.08], "zeroline": False}
    ticks = {"tickvals": np.arange(len(names)), "ticktext": names, "range": [len(names) - 0.4, -0.6]}
    y = {**ticks, "automargin": True, "zeroline": False}
    return titled(
        traces,
        "Which source image wins",
        f"anchors of one image, patches of another · {n:,} mixtures, 95% intervals over pairs",
        230 + 24 * len(names),
        annotations=[panel.head(escape(name)) for panel, name in zip(places, share_by, strict=True)],
        margin={"t": 120},
        legend={"y": -90 / (60 + 24 * len(names))},
        **side_by_side(places, x, [y, *[{**y, "matches": "y", "showticklabels": False}] * (len(places) - 1)]),
    )


_DOWN = {"autorange": "reversed", "automargin": True, "showgrid": False}
"""A y axis of names, the first on top."""
_Y_WITH_ENDS = "%{y:.4~g} [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]<extra></extra>"


def _own(x: Any, y: Any, hover: str, **look: Any) -> list[go.Scatter]:
    """Diamonds of the image that is looked at; none where it has no values."""
    if x is None or y is None:
        return []
    marker = {"symbol": "diamond-open", "size": 10, "color": _OWN, "line": {"width": 2}}
    hover = f"this image, {hover}<extra></extra>"
    return [go.Scatter(x=x, y=y, mode="markers", name="this image", marker=marker, hovertemplate=hover, **look)]


def _error(values_K3: np.ndarray, colour: str = NEUTRAL) -> dict[str, Any]:
    """Bars from the lower to the upper end of intervals (K, 3)."""
    return whiskers(*np.moveaxis(values_K3, -1, 0), thickness=1.5, width=4, color=colour)
