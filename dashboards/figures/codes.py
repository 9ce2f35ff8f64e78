"""Plotly figures of the discrete channel: pictures from codes, the code grid, usage, and what goes with a label. Knows
arrays and plotly; not Streamlit, files or runs.

Letters in names: R rows and C columns of the code grid, G groups of codes, K codes of a group, T tasks.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.contents.associations import Associations
from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    HEAT,
    OF,
    UNFADED,
    VEIL,
    cells,
    circled,
    colour_bar,
    counted,
    dashed,
    laid,
    named,
    png,
    square,
    whiskers,
    written,
    zero_centred,
)
from htc_probe.probes.show.style import NEUTRAL, across, cut, escape, titled

_CHOSEN = "#009E73"
_MOST_NAMED = 64  # cells whose codes are written into them
_MOST_WRITTEN = 12  # columns that leave room for a number
_GAP = 0.06  # between pictures, in widths of one
_EDGE = {"l": 10, "r": 10, "b": 10}


def code_pictures(image: np.ndarray, picture: np.ndarray, *, psnr: float) -> go.Figure:
    """An image, what MGVQ's decoder makes of its codes, and how much lighter or darker that is.

    image, picture: (h, w, 3) uint8 of one shape. psnr: dB between them. The difference is of the mean of the three
    channels, in shares of the whole range, on a scale from -0.5 to 0.5 whatever the images.
    """
    height, width = image.shape[:2]
    apart = width * (1 + _GAP)
    off = (picture.astype(np.float32).mean(-1) - image.astype(np.float32).mean(-1)) / 255
    x, y = 2 * apart + np.arange(width) + 0.5, np.arange(height) + 0.5
    bar = colour_bar("lighter or darker", tickformat="+.1f")
    heat = cells(off, (-0.5, 0.5), BELOW_ABOVE, "%{z:+.2f} of the range", gap=None, x=x, y=y, colorbar=bar)
    head = {"y": 0, "yanchor": "bottom", "showarrow": False, "yshift": 2, "font": {"size": 13}}
    heads = ("image", "reconstruction", "reconstruction minus image")
    return titled(
        [heat],
        "What do the codes keep of the image?",
        f"decoded by the model's own MGVQ · {width} × {height} pixels · PSNR {psnr:.1f} dB · 1 image",
        330,
        **square((0, 2 * apart + width), (height, -0.12 * height)),
        images=[laid(png(part), place * apart, 0, width, height) for place, part in enumerate((image, picture))],
        annotations=[{"text": text, "x": place * apart + width / 2, **head} for place, text in enumerate(heads)],
        margin=_EDGE | {"t": 84},
    )


def code_grid(
    codes_RC: np.ndarray, shares_K: np.ndarray, *, group: int, groups: int, image: np.ndarray, chosen: int | None = None
) -> go.Figure:
    """The codes of one group over an image, coloured by how rare each is in the run. Cells can be clicked.

    codes_RC: (R, C) ints. shares_K: (K,), how often each code occurs among all cells of the run; colours are -log2 of
    it, from the most frequent code up to what the rarest 1% of all cells reach, so that those of two images compare.
    group: from 0. image: (h, w, 3) uint8, the square that the grid covers, drawn in grey. chosen: the code whose cells
    are outlined.
    """
    rows, columns = codes_RC.shape
    with np.errstate(divide="ignore"):
        bits_K = -np.log2(shares_K)
    bits_RC = bits_K[codes_RC]
    order = np.argsort(bits_K)
    most = bits_K[order][np.searchsorted(shares_K[order].cumsum(), 0.99 * shares_K.sum())]
    custom = np.stack([codes_RC, shares_K[codes_RC], bits_RC], -1)
    shares = "%{customdata[1]:.2%} of all cells, %{customdata[2]:.1f} bits"
    hover = f"row %{{y}}, column %{{x}}<br>code %{{customdata[0]}}<br>{shares}"
    few = codes_RC.size <= _MOST_NAMED
    traces: list[Any] = [
        cells(
            bits_RC,
            (float(bits_K.min()), float(most)),
            VEIL,
            hover,
            gap=None,
            colorbar=colour_bar("bits"),
            text=codes_RC if few else None,
            customdata=custom,
            meta={"code": 0, "share of all cells": 1},
            texttemplate="%{text}" if few else None,
            textfont={"color": "#ffffff", "size": 13, "shadow": "0px 0px 4px rgb(0,0,0), 0px 0px 2px rgb(0,0,0)"},
        )
    ]
    if chosen is not None:
        row, column = np.nonzero(codes_RC == chosen)
        traces.append(_outline(column + 0.5, row + 0.5, 1, 1))
    title = f"The codes of group {group + 1}, on the image"
    subtitle = f"{rows} × {columns} cells, a code each · group {group + 1} of {groups} · 1 image"
    subtitle += "<br>bits: -log2 of its share of the run"
    under = laid(png(image, grey=True), 0.5, 0.5, columns, rows)
    return titled(traces, title, subtitle, 440, images=[under], margin=_EDGE, **_grid(rows, columns))


def code_entropy(
    entropy_G: np.ndarray,
    used_G: np.ndarray,
    size: int,
    *,
    n: int,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    chosen: int | None = None,
) -> go.Figure:
    """Bits of a code of each group, against those of a codebook used evenly. Bars can be clicked: `customdata` is the
    group, from 0.

    entropy_G: (G,) bits. used_G: (G,) codes that occur. size: codes that there are. n: images. interval: ends of the
    95% intervals, each (G,). chosen: the group that is outlined.
    """
    groups = np.arange(1, len(entropy_G) + 1)
    edges = {"color": _CHOSEN, "width": [3 * (group == chosen) for group in groups - 1]}
    traces: list[Any] = [
        go.Bar(
            x=groups,
            y=entropy_G,
            error_y=None if interval is None else whiskers(entropy_G, *interval, color=NEUTRAL),
            name="entropy",
            marker={"color": OF["codes"], "line": edges},
            customdata=np.stack([groups - 1, used_G, 2.0**entropy_G], -1),
            hovertemplate="group %{x}: %{y:.2f} bits<br>as many as %{customdata[2]:.0f} codes used evenly<br>"
            f"%{{customdata[1]}} of {size:,} codes occur<extra></extra>",
            **UNFADED,
        )
    ]
    most = math.log2(size) if size > 1 else 0.0
    traces.append(dashed([0.5, len(groups) + 0.5], [most, most], "used evenly", f"log2({size}) = {most:.2f} bits"))
    ends = "" if interval is None else " · 95% intervals"
    subtitle = f"dashed: all {size:,} codes used evenly, {most:.1f} bits · {n:,} images{ends}"
    x, y = counted("group", len(groups)), {"title": "entropy of a code, bits", "range": [0, 1.06 * max(most, 1)]}
    return titled(traces, "How much of each codebook is used?", subtitle, 400, xaxis=x, yaxis=y, showlegend=False)


def code_usage(shares_K: np.ndarray, *, group: int, n: int, chosen: int | None = None) -> go.Figure:
    """How often each code of a group occurs, the most frequent first. Points can be clicked: `customdata` is the code.

    shares_K: (K,) of all cells of n images, sums to 1. group: from 0. chosen: the code that is marked.
    """
    order = np.argsort(-shares_K, kind="stable")[: int((shares_K > 0).sum())]
    even = 1 / len(shares_K)
    look = {"mode": "markers", "name": "codes", "marker": {"color": OF["codes"], "size": 6}, **UNFADED}
    look |= {"customdata": order[:, None], "meta": {"code": 0}}
    hover = "code %{customdata[0]}: %{y:.3%} of all cells<br>%{x}. most frequent<extra></extra>"
    traces: list[Any] = [
        go.Scattergl(x=np.arange(1, len(order) + 1), y=shares_K[order], hovertemplate=hover, **look),
        dashed([1, max(len(order), 2)], [even, even], "used evenly", f"used evenly: {even:.3%}"),
    ]
    if chosen is not None and chosen in order:
        place = int(np.flatnonzero(order == chosen)[0]) + 1
        traces.append(circled([place], [shares_K[chosen]], f"code {chosen}", _CHOSEN, 16))
    title = f"How often does each code of group {group + 1} occur?"
    subtitle = f"{len(order):,} of {len(shares_K):,} codes occur · dashed: used evenly, {even:.2%} · {n:,} images"
    x = {"title": "codes, the most frequent first", "showgrid": False}
    y = {"title": "share of all cells", "type": "log", "tickformat": ".2~%", "dtick": 1}
    return titled(traces, title, subtitle, 400, xaxis=x, yaxis=y, showlegend=False)


def code_label_bits(
    bits_TG: np.ndarray,
    lower_TG: np.ndarray,
    upper_TG: np.ndarray,
    entropy_T: np.ndarray,
    tasks: Sequence[str],
    *,
    n: int,
    mark: tuple[int, int] | None = None,
) -> go.Figure:
    """What one code says of each label, by group of codes. Cells can be clicked.

    bits_TG: (T, G) mean mutual information of one code with the label, less what shuffled labels give; below 0 is
    noise. lower_TG, upper_TG: ends of its 95% interval. entropy_T: (T,) bits of the label, the most that can be said.
    tasks: names. n: images. mark: task and group that are outlined.
    """
    T, G = bits_TG.shape
    custom = np.stack([bits_TG, lower_TG, upper_TG, np.broadcast_to(entropy_T[:, None], bits_TG.shape)], -1)
    bits = "%{customdata[0]:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}] bits of a label's %{customdata[3]:.2f}"
    traces: list[Any] = [_signed(bits_TG, f"group %{{x}}<br>{bits}", customdata=custom, meta={"lower": 1, "upper": 2})]
    if G <= _MOST_WRITTEN:
        numbers = [f"{value:.2f}" for value in bits_TG.flat]
        traces.append(written(numbers, bits_TG, zero_centred(bits_TG), BELOW_ABOVE, 11))
    if mark is not None:
        traces.append(_outline(mark[1] + 0.5, mark[0] + 0.5, 1, 1))
    subtitle = f"mutual information of one code with the label, minus chance · {n:,} images"
    x = counted("group of codes", G) | {"zeroline": False}
    y = named([cut(name, 24) for name in tasks]) | {"range": [T + 0.5, 0.5]}
    height = min(900, 210 + 26 * T)
    return titled(traces, "What does one code tell of each task?", subtitle, height, xaxis=x, yaxis=y)


def code_label_map(
    bits_P: np.ndarray, rows: Sequence[int], columns: Sequence[int], shape: tuple[int, int], *, task: str, n: int
) -> go.Figure:
    """Where on the grid codes tell of a label, mean over groups.

    bits_P: (places,) as in `code_label_bits`. rows, columns: their cells, from 0; cells without a value stay empty.
    shape: R, C. task: its name. n: images.
    """
    grid = np.full(shape, np.nan, dtype=np.float32)
    grid[np.asarray(rows), np.asarray(columns)] = bits_P
    traces = [_signed(grid, "row %{y}, column %{x}<br>%{z:.3f} bits", hoverongaps=False)]
    of = f"{len(bits_P):,} of {grid.size:,} cells" if len(bits_P) < grid.size else f"{grid.size:,} cells"
    subtitle = f"mean over groups, minus chance · {of} · {n:,} images"
    return titled(traces, f"Where do codes tell of {escape(task)}?", subtitle, 400, margin=_EDGE, **_grid(*shape))


def code_lifts(found: Associations, *, group: int, answer: str, chosen: int | None = None, most: int = 16) -> go.Figure:
    """Codes that go with an answer: how many times as often its images hold them as others. Points can be clicked:
    `customdata` starts with the code.

    found: as `dashboards.codes.associations` gives them; the first `most` are drawn. group: from 0. answer: the label,
    in words.
    """
    count = min(most, len(found.code))
    at = np.arange(1, count + 1)
    lift, lower, upper = (values[:count] for values in (found.lift, found.lower, found.upper))
    ends = [values[:count] for values in (found.code, found.inside, found.outside, found.lower, found.upper, found.p)]
    edges = {"color": _CHOSEN, "width": [4 * int(code == chosen) for code in found.code[:count]]}
    traces: list[Any] = [
        go.Scatter(
            x=lift,
            y=at,
            mode="markers",
            name="codes",
            customdata=np.stack(ends, -1),
            marker={"color": OF["codes"], "size": 11, "line": edges},
            error_x=whiskers(lift, lower, upper, color=NEUTRAL),
            hovertemplate="code %{customdata[0]}: %{x:.3g}× [%{customdata[3]:.3g}, %{customdata[4]:.3g}]<br>"
            f"in %{{customdata[1]}} of {found.n_inside:,} such images<br>"
            f"and %{{customdata[2]}} of {found.n_outside:,} others<br>"
            "p %{customdata[5]:.2g}, corrected<extra></extra>",
            **UNFADED,
        )
    ]
    subtitle = (
        f"{found.n_inside:,} images against {found.n_outside:,}, one of each group of images<br>"
        f"95% intervals, corrected for {found.tests:,} pairs of code and label"
    )
    ticks = [digit * 10**power for power in range(-1, 5) for digit in (1, 2, 5)]
    x = {"tickvals": ticks, "ticktext": [f"{tick:,.3g}" for tick in ticks], "type": "log", "zeroline": False}
    title = f"Codes of group {group + 1} that go with {escape(cut(answer, 40))}"
    layout: dict[str, Any] = {"xaxis": x | {"title": "times as often as in other images"}, "showlegend": False}
    layout["yaxis"] = named([f"code {code}" for code in found.code[:count]]) | {"range": [count + 0.6, 0.4]}
    layout["shapes"] = [across(x=1, line={"color": NEUTRAL, "dash": "dash", "width": 1.5})]
    return titled(traces, title, subtitle, 200 + 24 * count, **layout)


def code_places(share_RC: np.ndarray, *, group: int, code: int, n: int) -> go.Figure:
    """Where on the grid a code lies. share_RC: (R, C), the share of n images that have it in this cell."""
    rows, columns = share_RC.shape
    bar = colour_bar("share of images", tickformat=".2~%")
    hover = "row %{y}, column %{x}<br>%{z:.2%} of the images"
    traces = [cells(share_RC, (0, float(share_RC.max()) or 1.0), HEAT, hover, gap=None, colorbar=bar)]
    title = f"Where is code {code} of group {group + 1}?"
    subtitle = f"share of images with this code in the cell · {n:,} images"
    return titled(traces, title, subtitle, 400, margin=_EDGE, **_grid(rows, columns))


def code_examples(
    pictures: Sequence[str], cells_XRC: np.ndarray, names: Sequence[str], *, title: str, subtitle: str, columns: int = 6
) -> go.Figure:
    """Images that hold a code, with its cells outlined. They can be clicked: `customdata` is the number among them.

    pictures: X data URIs of square images. cells_XRC: (X, R, C) bool, where the code is. names: of the images. title,
    subtitle: ready for plotly.
    """
    rows = math.ceil(len(pictures) / columns)
    apart = 1 + _GAP
    R, C = cells_XRC.shape[1:]
    y, x = (apart * at for at in np.divmod(np.arange(len(pictures)), columns))
    image, row, column = np.nonzero(cells_XRC)
    unseen = {"opacity": 0}
    look = {"mode": "markers", "marker": {"size": 60, "symbol": "square", **unseen}, "showlegend": False}
    look |= {"selected": {"marker": unseen}, "unselected": {"marker": unseen}}
    look["customdata"] = np.arange(len(pictures))[:, None]
    traces = [
        _outline(x[image] + column / C, y[image] + row / R, 1 / C, 1 / R, thick=2),
        go.Scatter(x=x + 0.5, y=y + 0.5, text=list(map(escape, names)), hovertemplate="%{text}<extra></extra>", **look),
    ]
    below = [laid(*place, 1, 1) for place in zip(pictures, x, y, strict=True)]
    axes = square((0, columns * apart), (rows * apart, 0))
    return titled(traces, title, subtitle, 110 + 130 * rows, images=below, margin=_EDGE, **axes)


def _signed(values: np.ndarray, hover: str, **more: Any) -> go.Heatmap:
    """Of bits, which may be below 0 by chance."""
    return cells(values, zero_centred(values), BELOW_ABOVE, hover, colorbar=colour_bar("bits a code"), **more)


def _grid(rows: int, columns: int) -> dict[str, Any]:
    """Axes of a grid with rows and columns from 1, from the top left, without numbers."""
    return square((0.5, columns + 0.5), (rows + 0.5, 0.5))


def _outline(
    x: np.ndarray | float, y: np.ndarray | float, width: float, height: float, *, thick: int = 3
) -> go.Scatter:
    """Frames from these corners on, as one line with gaps: as many shapes would take plotly seconds."""
    left, top = np.atleast_1d(x), np.atleast_1d(y)
    right, bottom, gap = left + width, top + height, np.full(len(left), np.nan)
    return go.Scatter(
        x=np.stack([left, right, right, left, left, gap], 1).ravel(),
        y=np.stack([top, top, bottom, bottom, top, gap], 1).ravel(),
        mode="lines",
        name="",
        showlegend=False,
        line={"color": _CHOSEN, "width": thick},
        hoverinfo="skip",
    )
