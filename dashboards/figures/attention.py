"""Plotly figures of what <voco> attends to. Knows arrays and plotly; not Streamlit, files or runs.

Conventions: layers and heads arrive as array indices and are drawn from 1, so that layer l is the decoder
layer that produces z_voco[l] (layer 0 is the embedding and attends to nothing). "Uniform" is the attention
that a softmax over equal scores would give.

Letters in names: N images, L layers, H heads, A anchors, F first tokens, R rows and C columns of the patch grid.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis.attention.rows import PERCENTILES, Band, Quantity, below
from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    HEAT,
    ROLE_COLOURS,
    ROLE_NAMES,
    VEIL,
    cells,
    colour_bar,
    counted,
    curve,
    dashed,
    images,
    laid,
    layer_axis,
    outlined,
    png,
    square,
)
from htc_probe.probes.show.style import NEUTRAL, across, escape, ribbon, titled, transparent

_MARK = "#009E73"
"""What is selected."""
# Over a picture: what is near 0 leaves it visible.
_SIGNED_VEIL = [
    [at, f"rgba{(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 0.15 + 0.75 * abs(2 * at - 1))}"]
    for at, colour in ((float(str(at)), str(colour)) for at, colour in BELOW_ABOVE)
]
BAND = f"{PERCENTILES[0]} to {PERCENTILES[1]}% of images"


def times(ratio: float) -> str:
    """A ratio to uniform in words, such as `3.2x` or `1/8x`."""
    if ratio >= 1 or ratio <= 0:
        return f"{ratio:.3g}×"
    inverse = 1 / ratio
    return f"1/{inverse:.0f}×" if abs(inverse - round(inverse)) < 1e-6 else f"{ratio:.2g}×"


def head_heatmap(
    value_LH: np.ndarray,
    quantity: Quantity,
    *,
    n: int = 1,
    spread: tuple[str, Band] | None = None,
    mark: tuple[int | None, int | None] = (None, None),
) -> go.Figure:
    """One number of each layer (x) and head (y).

    value_LH: (L, H), in the unit of `quantity`. Colours run over all that the quantity can be, so that those of two
    images compare: of the entropy from 0 to its largest value; of the others in powers of two of their value under
    uniform attention, which is in the middle. n: images averaged. spread: what the ends of a band are, in words, and
    the band, each (L, H), for the hover text. mark: layer and head (from 0) to outline, None for all.
    """
    layers, heads = value_LH.shape
    number = {"bits": ".2f", "times uniform": ".3g"}.get(quantity.unit, ".2%")
    hover = f"layer %{{x}}, head %{{y}}<br>%{{customdata[0]:{number}}} {quantity.unit}"
    custom = [value_LH.T]
    meta = {"× uniform" if quantity.unit == "times uniform" else quantity.unit: 0}
    if quantity.unit == "bits":
        z, ends, colours, bar = value_LH.T, (0.0, quantity.most), HEAT, colour_bar("bits")
    else:
        limit = math.log2(quantity.most / quantity.uniform)
        with np.errstate(divide="ignore"):
            z = np.clip(np.log2(value_LH / quantity.uniform), -limit, limit).T
        apart = max(1, math.ceil(math.floor(limit) / 3))
        ticks = [apart * at for at in range(-int(limit // apart), int(limit // apart) + 1)]
        ends, colours = (-limit, limit), BELOW_ABOVE
        bar = colour_bar("× uniform", tickvals=ticks, ticktext=[times(2.0**at) for at in ticks])
    if quantity.unit.startswith("share"):
        custom.append(value_LH.T / quantity.uniform)
        meta["× uniform"] = 1
        hover += "<br>%{customdata[1]:.3g}× uniform"
    if spread is not None:
        at = len(custom)
        meta |= {"lower": at, "upper": at + 1}
        custom += [spread[1].low.T, spread[1].high.T]
        hover += f"<br>{spread[0]}: %{{customdata[{at}]:{number}}} to %{{customdata[{at + 1}]:{number}}}"
    numbers = np.stack(custom, axis=-1).astype(np.float32)
    heat = cells(z, ends, colours, hover, customdata=numbers, meta=meta, colorbar=bar)
    uniform = {"bits": f"{quantity.uniform:.2f}", "times uniform": "1"}.get(quantity.unit, f"{quantity.uniform:.2%}")
    return titled(
        [heat],
        quantity.title,
        f"{quantity.unit}, {uniform} if uniform · by layer and head · {images(n)}",
        min(640, max(400, 190 + 17 * heads)),
        xaxis=layer_axis(layers),
        yaxis=counted("head", heads) | {"range": [0.5, heads + 0.5], "zeroline": False},
        shapes=outlined(*mark, layers, heads, _MARK),
    )


class Curve(NamedTuple):
    """What one role gets, over the layers."""

    share_L: np.ndarray
    """(L,), of all attention."""
    uniform: float
    """The same under uniform attention."""
    n: int = 1
    """Images averaged."""
    band: Band | None = None
    """(L,) each: how images differ."""
    of: int = 0
    """Images that the band is of."""


def share_curve(curves: Mapping[str, Curve], *, selection: str, log: bool = False) -> go.Figure:
    """What anchors and patches get over the layers, each as a share of all attention.

    curves: by role. selection: which heads, in words. log: a logarithmic share axis.
    """
    traces: list[Any] = []
    counts = []
    for role, (share_L, uniform, n, band, of) in curves.items():
        colour, name = ROLE_COLOURS[role], ROLE_NAMES[role]
        layers = np.arange(1, len(share_L) + 1)
        ends = np.full((len(share_L), 0), np.nan)
        hover = f"layer %{{x}}, {name}: %{{y:.2%}}<br>%{{customdata[0]:.3g}}× uniform"
        counts.append(f"{name}: {images(n)}")
        if band is not None:
            counts[-1] += f", shaded {BAND[: -len(' of images')]} of {of:,}"
            ends = np.stack([band.low, band.high], axis=-1)
            hover += f"<br>{BAND}: %{{customdata[1]:.2%}} to %{{customdata[2]:.2%}}"
            shade = transparent(colour, 0.22)
            traces.append(ribbon(layers, band.low, band.high, shade, name=f"{name}, {BAND}"))
        custom = np.concatenate([share_L[:, None] / uniform, ends], axis=1)
        traces.append(curve(layers, share_L, name, colour, hover + "<extra></extra>", customdata=custom))
        told, look = f"{name} if uniform: {uniform:.2%}", {"color": colour, "width": 1.5, "dash": "dash"}
        hover, x = f"uniform share of the {name}: {uniform:.3%}<extra></extra>", [0.5, len(share_L) + 0.5]
        traces.append(go.Scatter(x=x, y=[uniform, uniform], mode="lines", name=told, line=look, hovertemplate=hover))
    axis = {"type": "log", "dtick": 1} if log else {"range": [-0.02, 1.02]}

    title = "How much do anchors and patches get?" if "anchor" in curves else "How much do the patches get?"
    alike = {count.partition(": ")[2] for count in counts}
    said = alike.pop() if len(alike) == 1 else "<br>".join(counts)
    y = {"title": "share of all attention", "tickformat": ".3~%", "zeroline": False, **axis}
    return titled(traces, title, f"{selection} · {said}", 400, xaxis=layer_axis(len(share_L)), yaxis=y)


def role_bars(mass: Mapping[str, np.ndarray], *, selection: str, n: int = 1) -> go.Figure:
    """Where all of the attention goes, by layer: stacked bars that sum to 1.

    mass: role -> (L,), each the share of all attention (the roles of `ROLE_NAMES`). selection: which heads,
    in words. n: images averaged.
    """
    traces: list[Any] = []
    for role, share_L in mass.items():
        look = {"name": ROLE_NAMES[role], "marker": {"color": ROLE_COLOURS[role]}}
        hover = f"layer %{{x}}, {ROLE_NAMES[role]}: %{{y:.2%}}<extra></extra>"
        traces.append(go.Bar(x=np.arange(1, len(share_L) + 1), y=share_L, hovertemplate=hover, **look))
    title, subtitle = ("What does the token attend to?", f"{selection} · all keys together: 100% · {images(n)}")
    x = layer_axis(len(next(iter(mass.values()))))
    y = {"title": "share of all attention", "tickformat": ".0%", "range": [0, 1]}
    return titled(traces, title, subtitle, 400, xaxis=x, yaxis=y, barmode="stack", bargap=0.15)


def anchor_bars(
    value_A: np.ndarray, uniform: float, *, selection: str, n: int = 1, of: str = "share of all attention"
) -> go.Figure:
    """What each anchor gets or gives.

    value_A: (A,), shares of what `of` says; signed where they are of an update. uniform: 1 / keys, drawn dashed.
    selection: which layer and head, in words. n: images averaged.
    """
    anchors = np.arange(1, len(value_A) + 1)
    look = {"name": "anchors", "marker": {"color": ROLE_COLOURS["anchor"]}, "customdata": value_A / uniform}
    hover = "anchor %{x}: %{y:.2%}<br>%{customdata:.3g}× uniform<extra></extra>"
    line = dashed([0.5, len(anchors) + 0.5], [uniform, uniform], "uniform", f"uniform: {uniform:.3%}")
    traces = [go.Bar(x=anchors, y=value_A, hovertemplate=hover, **look), line]
    subtitle = f"{selection}<br>dashed: uniform = {uniform:.2%} · {images(n)}"
    x, y = counted("anchor", len(anchors)), {"title": of, "tickformat": ".3~%", "rangemode": "tozero"}
    return titled(traces, "How much does each anchor get?", subtitle, 430, xaxis=x, yaxis=y, showlegend=False)


def patch_overlay(
    patch_RC: np.ndarray,
    uniform: float,
    *,
    selection: str,
    image: np.ndarray | None = None,
    n: int = 1,
    title: str = "Attention on the patches",
    of: str = "of all attention",
    signed: bool = False,
) -> go.Figure:
    """What the patches get or give, drawn cell by cell and, where an image is given, over it in grey.

    patch_RC: (R, C), shares of what `of` says, NaN where there is no patch. uniform: 1 / keys; colours are multiples of
    it, from 0 to the largest of this map or, where they are `signed`, as far on either side of 0. selection: which
    layer and head, in words. image: (h, w, 3) uint8, the same square that the patches cover. n: images averaged.
    """
    rows, cols = patch_RC.shape
    height, width = (rows, cols) if image is None else image.shape[:2]
    x, y = ((np.arange(count) + 0.5) * size / count for count, size in ((cols, width), (rows, height)))
    row_of, col_of = np.meshgrid(np.arange(1, rows + 1), np.arange(1, cols + 1), indexing="ij")
    most = float(np.nanmax(np.abs(patch_RC))) / uniform or 1.0
    colours = {(False, False): HEAT, (False, True): VEIL, (True, False): BELOW_ABOVE, (True, True): _SIGNED_VEIL}
    unit = f"%{{customdata[2]:.3%}} {of}<br>%{{z:.3g}}× uniform"
    heat = cells(
        patch_RC / uniform,
        (-most if signed else 0, most),
        colours[signed, image is not None],
        f"patch row %{{customdata[0]}}, column %{{customdata[1]}}<br>{unit}",
        gap=None,
        x=x,
        y=y,
        customdata=np.stack([row_of, col_of, patch_RC], axis=-1).astype(np.float32),
        meta={f"share {of}": 2},
        colorbar=colour_bar("× uniform"),
    )
    subtitle = f"{selection}<br>{rows} × {cols} patches, uniform = {uniform:.2%} each · {images(n)}"
    layout = square((0, width), (height, 0)) | {"margin": {"l": 10, "r": 10, "b": 10}}
    pictures = [] if image is None else [laid(png(image, grey=True), 0, 0, width, height)]
    return titled([heat], title, subtitle, 430, images=pictures, **layout)


def first_tokens(
    share_NF: np.ndarray,
    names: Sequence[str],
    numbers: Sequence[int],
    ids: Sequence[str],
    uniform: float,
    *,
    selection: str,
    anchors: int,
    shown: int | None = None,
) -> go.Figure:
    """The paper's Figure 3: attention of some images (y) on the first hybrid tokens (x), anchors before patches.

    share_NF: (N, F), shares of all attention. names: of the F tokens. numbers, ids: of the N images. uniform: 1 / keys;
    colours are multiples of it, from 0 to the largest. anchors: how many of the tokens are anchors; a line parts them
    from the patches. shown: the number of the image to outline. The first of the images is at y = 1.
    """
    N, F = share_NF.shape
    hover = "image %{customdata[2]} (%{customdata[3]})<br>%{customdata[4]}: %{customdata[0]:.2%} of all attention<br>"
    custom, meta = np.empty((N, F, 5), dtype=object), {"share of all attention": 0, "id": 3}
    custom[..., 0], custom[..., 1] = share_NF, share_NF / uniform
    custom[..., 2] = np.asarray(numbers)[:, None]
    custom[..., 3] = np.array([escape(name) for name in ids], dtype=object)[:, None]
    custom[..., 4] = np.array([escape(name) for name in names], dtype=object)
    shapes: list[dict[str, Any]] = []
    z, bar = share_NF / uniform, colour_bar("× uniform")
    most = float(share_NF.max()) / uniform or 1.0
    heat = cells(
        z, (0, most), HEAT, hover + "%{customdata[1]:.3g}× uniform", customdata=custom, meta=meta, colorbar=bar
    )
    if 0 < anchors < F:
        shapes.append(across(x=anchors + 0.5, line={"color": NEUTRAL, "width": 3}))
    if shown is not None and shown in numbers:
        shapes += outlined(None, list(numbers).index(shown), F, N, _MARK)
    short = [escape(name.replace("anchor ", "A").replace("patch ", "")) for name in names]
    bare = {"showgrid": False, "zeroline": False}
    x = {"tickvals": np.arange(1, F + 1), "ticktext": short, "range": [0.5, F + 0.5], "tickangle": -45, **bare}
    y = {"tickvals": np.arange(1, N + 1), "ticktext": [f"{number:,}" for number in numbers], "range": [N + 0.5, 0.5]}
    return titled(
        [heat],
        f"Attention on the first {F} tokens (the paper's Figure 3)",
        f"{selection} · uniform = {uniform:.2%} each · {N} images, one a row",
        max(300, 170 + 22 * N),
        xaxis=x | {"title": "anchors, then patches (row,column)" if anchors else "patches (row,column)"},
        yaxis=y | {"title": "image", **bare},
        shapes=shapes,
    )


def _ordinal(number: int) -> str:
    """1st, 2nd, 11th."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if 10 < number % 100 < 14 else ends.get(number % 10, 'th')}"


def distribution(value_N: np.ndarray, value: float, uniform: float, *, selection: str, image: int) -> go.Figure:
    """How often images give the anchors how much, and where one image is.

    value_N: (N,), shares of all attention. value: that of the image with this number. uniform: anchors / keys, drawn
    dashed. selection: which layer and head, in words. The `customdata` of each bar are the ends of its bin.
    """
    counts, edges = np.histogram(np.asarray(value_N, dtype=np.float64), bins=min(40, max(5, len(value_N) // 4)))
    ends = np.stack([edges[:-1], edges[1:]], axis=-1)
    look = {"name": "images", "marker": {"color": ROLE_COLOURS["anchor"]}, "showlegend": False, "customdata": ends}
    hover = "%{customdata[0]:.2%} to %{customdata[1]:.2%}: %{y:,} images<extra></extra>"
    bars = go.Bar(x=ends.mean(axis=-1), y=counts, width=np.diff(edges), hovertemplate=hover, **look)
    traces: list[Any] = [bars]
    top = counts.max()
    for name, x, line in (
        (f"uniform: {uniform:.2%}", uniform, {"color": NEUTRAL, "dash": "dash", "width": 1.5}),
        (f"image {image:,}: {value:.2%}", value, {"color": _MARK, "width": 3}),
    ):
        traces.append(go.Scatter(x=[x, x], y=[0, top], mode="lines", name=name, line=line, hoverinfo="name"))
    share = f"{_ordinal(round(100 * below(value_N, value)))} percentile of {len(value_N):,} images"
    subtitle = f"{selection} · image {image:,}: {value:.2%} ({share})"
    axis = {"title": "share of all attention that falls on the anchors", "tickformat": ".3~%", "showgrid": False}
    y = {"title": "images", "rangemode": "tozero"}
    return titled(traces, "Do the anchors get much in this image?", subtitle, 400, xaxis=axis, yaxis=y)
