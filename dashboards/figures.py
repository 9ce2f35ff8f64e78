"""Plotly figures of what <voco> attends to. Knows arrays and plotly; not Streamlit, files or runs.

Conventions: layers and heads arrive as array indices and are drawn from 1, so that layer l is the decoder
layer that produces z_voco[l] (layer 0 is the embedding and attends to nothing). "Uniform" always means the
attention that a softmax over equal scores would give. Colours are colour-blind safe (Okabe-Ito; purple-orange
for above and below); text, axes and background are left to the theme, so that the figures read on light and
dark pages.

Letters in names: L layers, H heads, A anchors, R rows and C columns of the patch grid.
"""

import base64
import io
import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from dashboards.attention import PERCENTILES, Band

ROLE_COLOURS = {
    "anchor": "#E69F00", "patch": "#0072B2", "voco": "#009E73", "prefix": "#CC79A7", "text": "#56B4E9"
}  # fmt: skip
ROLE_NAMES = {
    "anchor": "anchors", "patch": "patches", "voco": "&lt;voco&gt; itself", "prefix": "text before the image",
    "text": "text after the image",
}  # fmt: skip
NEUTRAL = "#8a8a8a"
_BAND = f"{PERCENTILES[0]} to {PERCENTILES[1]} % of images"
# Purple below uniform, light grey at it, orange above it.
BELOW_ABOVE = [[0.0, "#54278f"], [0.25, "#9e9ac8"], [0.5, "#f2f0f0"], [0.75, "#f1a340"], [1.0, "#8c3f04"]]
# Inferno, written as rgb(): Streamlit takes hex colours near #000001 for its own and replaces them.
INFERNO = {0.0: (0, 0, 4), 0.25: (87, 16, 110), 0.5: (188, 55, 84), 0.75: (249, 142, 9), 1.0: (252, 255, 164)}
HEAT = [[at, f"rgb{colour}"] for at, colour in INFERNO.items()]
# Over a picture, its opacity grows with the value: little attention leaves the picture visible.
VEIL = [[at, f"rgba{(*colour, 0.35 + 0.5 * at)}"] for at, colour in INFERNO.items()]


def times(ratio: float) -> str:
    """A ratio to uniform in words, such as `3.2x` or `1/8x`."""
    if ratio >= 1 or ratio <= 0:
        return f"{ratio:.3g}×"
    inverse = 1 / ratio
    return f"1/{inverse:.0f}×" if abs(inverse - round(inverse)) < 1e-6 else f"{ratio:.2g}×"


def _layout(figure: go.Figure, title: str, subtitle: str, height: int) -> go.Figure:
    figure.update_layout(
        title={"text": title, "subtitle": {"text": subtitle}, "x": 0, "xanchor": "left", "yref": "container"},
        height=height,
        margin={"l": 60, "r": 20, "t": 96, "b": 50},
        legend={"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top"},
    )
    return figure


def _layer_axis(figure: go.Figure, layers: int) -> None:
    figure.update_xaxes(
        title="decoder layer",
        range=[0.5, layers + 0.5],
        tickmode="linear",
        tick0=1,
        dtick=_step(layers),
        showgrid=False,
        zeroline=False,
    )


def _step(count: int) -> int:
    """Distance between axis ticks that leaves about a dozen of them."""
    return max(1, math.ceil(count / 12))


def anchor_heatmap(
    mass_LH: np.ndarray,
    uniform: float,
    *,
    n: int = 1,
    band: Band | None = None,
    mark: tuple[int | None, int | None] = (None, None),
) -> go.Figure:
    """Share of all attention of <voco> that falls on the anchors, by layer (x) and head (y).

    mass_LH: (L, H), 0 to 1. uniform: anchors / keys (4/581 in the paper), the middle of the colour scale,
    which is logarithmic and runs to 1 on one side and as far on the other whatever the data, so that the
    colours of two images compare. n: images averaged. band: how (L, H) differs over images, for the hover
    text. mark: layer and head (from 0) to outline, None for all.
    """
    layers, heads = mass_LH.shape
    limit = math.log2(1 / uniform)
    with np.errstate(divide="ignore"):
        ratio_LH = np.clip(np.log2(mass_LH / uniform), -limit, limit)
    hover = "layer %{x}, head %{y}<br>on anchors: %{customdata[0]:.2%}<br>%{customdata[1]:.3g}× uniform"
    custom = [mass_LH.T, mass_LH.T / uniform]
    if band is not None:
        custom += [band.low.T, band.high.T]
        hover += f"<br>{_BAND}: " + "%{customdata[2]:.2%} to %{customdata[3]:.2%}"
    step = max(1, math.ceil(math.floor(limit) / 3))
    ticks = [step * at for at in range(-int(limit // step), int(limit // step) + 1)]
    figure = go.Figure(
        go.Heatmap(
            z=ratio_LH.T,
            x=np.arange(1, layers + 1),
            y=np.arange(1, heads + 1),
            customdata=np.stack(custom, axis=-1),
            zmin=-limit,
            zmax=limit,
            colorscale=BELOW_ABOVE,
            xgap=1,
            ygap=1,
            hovertemplate=hover + "<extra></extra>",
            colorbar={
                "title": {"text": "× uniform", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": ticks,
                "ticktext": [times(2.0**t) for t in ticks],
            },
        )
    )
    layer, head = mark
    if layer is not None or head is not None:
        x = (0.5, layers + 0.5) if layer is None else (layer + 0.5, layer + 1.5)
        y = (0.5, heads + 0.5) if head is None else (head + 0.5, head + 1.5)
        figure.add_shape(
            type="rect", x0=x[0], x1=x[1], y0=y[0], y1=y[1], line={"color": "#009E73", "width": 3}
        )
    _layer_axis(figure, layers)
    figure.update_yaxes(
        title="head",
        range=[0.5, heads + 0.5],
        tickmode="linear",
        tick0=1,
        dtick=_step(heads),
        showgrid=False,
        zeroline=False,
    )
    return _layout(
        figure,
        "Attention on the anchors, by layer and head",
        f"share of all attention, against uniform = {uniform:.2%} · {_images(n)}",
        height=min(640, max(380, 190 + 17 * heads)),
    )


def share_curve(
    share_L: np.ndarray,
    uniform: float,
    *,
    selection: str,
    n: int = 1,
    band: Band | None = None,
    log: bool = False,
) -> go.Figure:
    """Anchors against patches over the layers, each as a share of the attention on hybrid tokens.

    share_L: (L,), anchors / (anchors + patches), 0 to 1; the patches' line is 1 minus it. uniform: the same
    share under uniform attention (4/580 in the paper), drawn dashed. selection: which
    heads, in words. n: images averaged. band: how share_L differs over them. log: a logarithmic share axis.
    """
    layers = np.arange(1, len(share_L) + 1)
    figure = go.Figure()
    for role, share, reference in (("anchor", share_L, uniform), ("patch", 1 - share_L, 1 - uniform)):
        colour, name = ROLE_COLOURS[role], ROLE_NAMES[role]
        if band is not None:
            low, high = band if role == "anchor" else (1 - band.high, 1 - band.low)
            figure.add_scatter(
                x=np.concatenate([layers, layers[::-1]]),
                y=np.concatenate([high, low[::-1]]),
                mode="lines",
                fill="toself",
                fillcolor=_transparent(colour, 0.22),
                line={"width": 0},
                hoverinfo="skip",
                name=f"{name}, {_BAND}",
                showlegend=False,
            )
        figure.add_scatter(
            x=layers,
            y=share,
            mode="lines+markers",
            name=name,
            line={"color": colour, "width": 2.5},
            customdata=share / reference,
            hovertemplate=f"layer %{{x}}, {name}: %{{y:.2%}}<br>%{{customdata:.3g}}× uniform<extra></extra>",
        )
        figure.add_scatter(
            x=[0.5, len(share_L) + 0.5],
            y=[reference, reference],
            mode="lines",
            name=f"{name} if uniform: {reference:.2%}",
            line={"color": colour, "width": 1.5, "dash": "dash"},
            hovertemplate=f"uniform share of the {name}: {reference:.3%}<extra></extra>",
        )
    _layer_axis(figure, len(share_L))
    figure.update_yaxes(title="share of attention on hybrid tokens", tickformat=".3~%", zeroline=False)
    if log:
        figure.update_yaxes(type="log", dtick=1)
    else:
        figure.update_yaxes(range=[-0.02, 1.02])
    shaded = "" if band is None else f" · shaded: {_BAND}"
    return _layout(
        figure,
        "Anchors against patches, over the layers",
        f"{selection} · anchors + patches = 100 %{shaded} · {_images(n)}",
        height=400,
    )


def role_bars(mass: Mapping[str, np.ndarray], *, selection: str, n: int = 1) -> go.Figure:
    """Where all of the attention goes, by layer: stacked bars that sum to 1.

    mass: role -> (L,), each the share of all attention (the roles of `ROLE_NAMES`). selection: which heads,
    in words. n: images averaged.
    """
    figure = go.Figure()
    for role, share_L in mass.items():
        figure.add_bar(
            x=np.arange(1, len(share_L) + 1),
            y=share_L,
            name=ROLE_NAMES[role],
            marker={"color": ROLE_COLOURS[role]},
            hovertemplate=f"layer %{{x}}, {ROLE_NAMES[role]}: %{{y:.2%}}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.15)
    _layer_axis(figure, len(next(iter(mass.values()))))
    figure.update_yaxes(title="share of all attention", tickformat=".0%", range=[0, 1])
    subtitle = f"{selection} · all keys = 100 % · {_images(n)}"
    return _layout(figure, "Where all of the attention goes, over the layers", subtitle, height=400)


def anchor_bars(attention_A: np.ndarray, uniform: float, *, selection: str, n: int = 1) -> go.Figure:
    """Attention on each anchor.

    attention_A: (A,), shares of all attention. uniform: 1 / keys, drawn dashed. selection: which
    layer and head, in words. n: images averaged.
    """
    anchors = np.arange(1, len(attention_A) + 1)
    figure = go.Figure(
        go.Bar(
            x=anchors,
            y=attention_A,
            marker={"color": ROLE_COLOURS["anchor"]},
            customdata=attention_A / uniform,
            name="anchors",
            hovertemplate="anchor %{x}: %{y:.2%}<br>%{customdata:.3g}× uniform<extra></extra>",
        )
    )
    figure.add_scatter(
        x=[0.5, len(anchors) + 0.5],
        y=[uniform, uniform],
        mode="lines",
        name="uniform",
        line={"color": NEUTRAL, "dash": "dash", "width": 1.5},
        hovertemplate=f"uniform: {uniform:.3%}<extra></extra>",
    )
    figure.update_xaxes(title="anchor", tickmode="linear", tick0=1, dtick=_step(len(anchors)), showgrid=False)
    figure.update_yaxes(title="share of all attention", tickformat=".3~%", rangemode="tozero")
    figure.update_layout(showlegend=False)
    subtitle = f"{selection}<br>dashed: uniform = {uniform:.2%} · {_images(n)}"
    return _layout(figure, "Attention on each anchor", subtitle, height=430)


def patch_overlay(
    patch_RC: np.ndarray, uniform: float, *, selection: str, image: np.ndarray | None = None, n: int = 1
) -> go.Figure:
    """Attention over the patches, drawn cell by cell and, where an image is given, over it in grey.

    patch_RC: (R, C), shares of all attention, NaN where there is no patch. uniform: 1 / keys; colours are
    multiples of it, from 0 to the largest of this map. selection: which layer and head, in words.
    image: (h, w, 3) uint8, the same square that the patches cover. n: images averaged.
    """
    rows, cols = patch_RC.shape
    height, width = (rows, cols) if image is None else image.shape[:2]
    x, y = ((np.arange(count) + 0.5) * size / count for count, size in ((cols, width), (rows, height)))
    row_of, col_of = np.meshgrid(np.arange(1, rows + 1), np.arange(1, cols + 1), indexing="ij")
    figure = go.Figure(
        go.Heatmap(
            z=patch_RC / uniform,
            x=x,
            y=y,
            zmin=0,
            zmax=float(np.nanmax(patch_RC)) / uniform or 1.0,
            colorscale=HEAT if image is None else VEIL,
            customdata=np.stack([row_of, col_of, patch_RC], axis=-1),
            hovertemplate="patch row %{customdata[0]}, column %{customdata[1]}<br>"
            "%{customdata[2]:.3%} of all attention<br>%{z:.3g}× uniform<extra></extra>",
            colorbar={"title": {"text": "× uniform", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        )
    )
    if image is not None:
        figure.add_layout_image(
            source=_grey_png(image),
            xref="x",
            yref="y",
            x=0,
            y=0,
            sizex=width,
            sizey=height,
            sizing="stretch",
            layer="below",
        )
    figure.update_xaxes(visible=False, range=[0, width], constrain="domain")
    figure.update_yaxes(visible=False, range=[height, 0], scaleanchor="x", constrain="domain")
    subtitle = f"{selection}<br>{rows} × {cols} patches, uniform = {uniform:.2%} each · {_images(n)}"
    _layout(figure, "Attention on the patches", subtitle, height=430)
    return figure.update_layout(margin={"l": 10, "r": 10, "b": 10})


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"mean of {n:,} images"


def _transparent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _grey_png(image: np.ndarray) -> str:
    """(h, w, 3) uint8 -> data URI of the picture in grey, so that colour means attention alone."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert("L").save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
