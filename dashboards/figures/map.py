"""Plotly figures of latents in two dimensions. Knows arrays and plotly; not Streamlit, files or runs.

Letters in names: n images, M representations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import OF, colour_bar, whiskers
from htc_probe.probes.show.style import NEUTRAL, SERIES, across, escape, titled, transparent

# Inferno without its darkest and lightest parts, which are lost on dark and on light pages.
_POINTS = [[0.0, "#65156e"], [0.25, "#9f2a63"], [0.5, "#d44842"], [0.75, "#f57d15"], [1.0, "#fac127"]]
_RING = "#D55E00"
MOST_CLASSES = len(SERIES)


class Classes(NamedTuple):
    """A colour for each class."""

    names: Sequence[str]
    at_n: np.ndarray
    """(n,) int, the class of each image; -1 is unknown."""
    front: int | None = None
    """The class that is drawn over the others; None mixes them, so that none hides another."""

    def told_apart(self) -> "Classes":
        """The 7 most frequent classes and `other` where there are more than 8; of classes that are as frequent, the
        first ones.
        """
        if len(self.names) <= MOST_CLASSES:
            return self
        own = MOST_CLASSES - 1
        count = np.bincount(self.at_n[self.at_n >= 0], minlength=len(self.names))
        kept = np.sort(np.argsort(-count, kind="stable")[:own])
        place = np.full(len(self.names) + 1, own)
        place[kept], place[-1] = np.arange(own), -1
        others = f"other ({len(self.names) - own:,} classes)"
        return Classes([*(self.names[at] for at in kept), others], place[self.at_n])


class Amounts(NamedTuple):
    """A colour by an amount."""

    values_n: np.ndarray
    """(n,) float, NaN is unknown."""
    axis: str
    """What is written at the colour bar."""
    format: str = ".3g"
    """Of the values: d3's."""


def latent_map(
    at_n2: np.ndarray,
    rows_n: np.ndarray,
    colour: Classes | Amounts | None,
    *,
    title: str,
    subtitle: str,
    axes: tuple[str, str] = ("", ""),
    chosen: np.ndarray | None = None,
    current: int | None = None,
    current_name: str = "this image",
) -> go.Figure:
    """A point an image, by WebGL; its customdata is its row. One unit is as long on both axes.

    at_n2: (n, 2). rows_n: (n,) int. chosen: numbers (from 0, of the n) of images that stand out; None or none for all.
    current: number of the image with a ring. `title` and names are shown as they are, `subtitle` is HTML. Amounts are
    coloured from their 1st to their 99th percentile.
    """
    n = len(rows_n)
    chosen_n = np.isin(np.arange(n), chosen) if chosen is not None and len(chosen) else np.ones(n, bool)
    mixed = np.random.default_rng(0).permutation(n)  # points hide those drawn before them: in no order of the run
    look = _look(colour, mixed)
    size = {"size": 7 if n <= 2000 else 5, "opacity": 0.85}

    def points(places: np.ndarray, name: str, hover: str, **more: Any) -> list[Any]:
        if not len(places):
            return []
        return [
            go.Scattergl(
                x=at_n2[places, 0].astype(np.float32),
                y=at_n2[places, 1].astype(np.float32),
                mode="markers",
                name=name,
                customdata=rows_n[places].astype(np.int32),
                hovertemplate=hover + "<extra></extra>",
                selectedpoints=None if chosen_n.all() else np.flatnonzero(chosen_n[places]).tolist(),
                unselected={"marker": {"opacity": 0.12}},
                **more,
            )
        ]

    traces = [
        *look.legend,
        *points(look.unknown, "unknown", "unknown", marker=size | {"color": NEUTRAL, "symbol": "circle-open"}),
        *points(look.places, "images", look.hover, marker=size | look.marker, text=look.text, showlegend=False),
    ]
    if current is not None:
        selected = None if chosen_n.all() else [0]  # what is selected is drawn over what is not
        traces += _ring(at_n2[current : current + 1], escape(current_name), selected)
    ticks = bool(axes[0])
    axis = {"showgrid": False, "zeroline": False, "showticklabels": ticks}
    legend = {"y": -0.12 if ticks else -0.04, "traceorder": "normal", "itemclick": False, "itemdoubleclick": False}
    pointer = {"dragmode": "lasso", "hovermode": "closest", "newselection": {"line": {"color": NEUTRAL}}}
    x, y = {"title": axes[0], **axis}, {"title": axes[1], **axis, "scaleanchor": "x", "constrain": "domain"}
    layout = {"xaxis": x, "yaxis": y, "margin": {"t": 110}, "showlegend": True, "legend": legend, **pointer}
    return titled(traces, escape(title), subtitle, 680, **layout)


class _Look(NamedTuple):
    """How points are coloured."""

    places: np.ndarray
    """Of the points with a known colour, in the order in which they are drawn."""
    unknown: np.ndarray
    """Of the others."""
    marker: dict[str, Any]
    hover: str
    text: list[str] | None = None
    """What `hover` says of each."""
    legend: tuple[go.Scatter, ...] = ()


def _look(colour: Classes | Amounts | None, mixed: np.ndarray) -> _Look:
    """`mixed`: all points, in no order."""
    if isinstance(colour, Classes):
        colour = colour.told_apart()
        mixed = mixed[np.argsort(colour.at_n[mixed] == colour.front, kind="stable")]
        known = colour.at_n[mixed] >= 0
        legend = (
            go.Scatter(x=[None], y=[None], mode="markers", name=escape(name), marker={"color": own, "size": 9})
            for name, own in zip(colour.names, SERIES, strict=False)
        )
        steps = [[end / MOST_CLASSES, own] for number, own in enumerate(SERIES) for end in (number, number + 1)]
        classes = colour.at_n[mixed[known]]
        marker = {"color": classes.astype(np.uint8), "cmin": -0.5, "cmax": MOST_CLASSES - 0.5, "colorscale": steps}
        text = [escape(colour.names[number]) for number in classes]
        return _Look(mixed[known], mixed[~known], marker, "%{text}" if text else "", text, tuple(legend))
    if isinstance(colour, Amounts):
        known = np.isfinite(colour.values_n)[mixed]
        values = colour.values_n[mixed[known]]
        low, high = np.percentile(values, [1, 99]) if len(values) else (0, 1)
        marker = {"color": values.astype(np.float32), "cmin": low, "cmax": high if high > low else low + 1}
        bar = colour_bar(escape(colour.axis), tickformat=colour.format)
        marker |= {"colorscale": _POINTS, "colorbar": bar}
        return _Look(mixed[known], mixed[~known], marker, "%{marker.color:" + colour.format + "}")
    return _Look(mixed, mixed[:0], {"color": SERIES[0]}, "")


def _ring(at_12: np.ndarray, name: str, selected: list[int] | None) -> list[go.Scattergl]:
    """Around one point: two circles, one on the other, read on any colour and page."""
    return [
        go.Scattergl(
            x=at_12[:, 0],
            y=at_12[:, 1],
            mode="markers",
            hoverinfo="skip",
            name=name,
            showlegend=colour == _RING,
            selectedpoints=selected,
            marker={"size": 20, "symbol": "circle-open", "color": colour, "line": {"width": width}},
        )
        for width, colour in ((7, "#ffffff"), (3, _RING))
    ]


def kept_bars(
    kept: dict[str, np.ndarray], of: Sequence[str], names: Sequence[str], chance: float, *, n: int, k: int = 10
) -> go.Figure:
    """How many of an image's nearest a map keeps, by representation and method, with intervals.

    kept: method -> (3, M), estimate, lower and upper end, 0 to 1. of: (M,) such as z_voco, for the colours; names: as
    they are written. chance: that of points without order.
    """
    traces: list[Any] = []
    names = [escape(name) for name in names]
    ends = "95% interval %{customdata[0]:.1%} to %{customdata[1]:.1%}"
    for number, (method, (estimate, lower, upper)) in enumerate(kept.items()):
        colours = [transparent(OF.get(name, NEUTRAL), 1 - 0.55 * number) for name in of]
        look = {"name": method, "marker": {"color": colours}, "customdata": np.stack([lower, upper], 1)}
        error = whiskers(estimate, lower, upper, color=NEUTRAL, thickness=1.5, width=3)
        hover = f"{method} of %{{x}}: %{{y:.1%}}<br>{ends}<extra></extra>"
        traces.append(go.Bar(x=names, y=estimate, error_y=error, hovertemplate=hover, **look))
    subtitle = (
        f"share of an image's {k} nearest that are its {k} nearest on the map<br>mean of {n:,} images, 95% intervals; "
        f"dotted: chance, {chance:.2%}"
    )
    layout = {"barmode": "group", "bargap": 0.3, "margin": {"t": 120}}
    layout["shapes"] = [across(y=chance, line={"color": NEUTRAL, "dash": "dot", "width": 1.5})]
    y = {"title": f"share of the {k} nearest", "range": [0, 1], "tickformat": ".0%", "zeroline": False}
    return titled(traces, "How far can the maps be trusted?", subtitle, 400, yaxis=y, **layout)
