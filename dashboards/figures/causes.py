"""Plotly figures of what causes what: knock-outs of single tokens and of groups, and the interchange. Knows arrays and
plotly; not Streamlit, files or runs.

Tasks, groups and predictors are names from files, and escaped here.

Letters in names: T hybrid tokens, A anchors, R rows and C columns of the patch grid, L layers, G groups, M ways of
taking away, P players, K rows of a chart; a last axis of 3 is estimate, lower and upper end of an interval.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from htc_probe.dashboards.figures.base import BELOW_ABOVE, ROLE_COLOURS, ROLE_NAMES, VEIL, png
from htc_probe.dashboards.figures.old import Figure, layer_axis, titled
from htc_probe.probes.show.style import NEUTRAL, SERIES, escape

OWN = "#D55E00"
"""The image that is looked at, among the means."""
_MODES = ("#CC79A7", "#56B4E9", "#999933")
"""Of ways of taking away, colours that no role has here."""
_BELOW, _ABOVE = (125, 80, 215), (230, 97, 1)
# As VEIL, for signs: nothing lies over the picture where the value is 0.
_SIGNED_VEIL = [[at / 8, f"rgba{(*(_BELOW if at < 4 else _ABOVE), 0.9 * abs(at / 4 - 1))}"] for at in range(9)]
_OWN_MARK = {"symbol": "diamond-open", "size": 10, "color": OWN, "line": {"width": 2}}
_BARS = {"thickness": 1.5, "width": 4}


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
    more = f"%{{customdata[2]:.3~g}} {escape(unit)}<extra></extra>" if unit else "<extra></extra>"
    figure = Figure(
        go.Heatmap(
            z=patch_RC,
            x=np.linspace(0, width, cols + 1),
            y=np.linspace(0, height, rows + 1),
            customdata=np.stack([row_of, col_of, raw[0]], axis=-1),
            hovertemplate="patch row %{customdata[0]}, column %{customdata[1]}<br>%{z:.3g}× uniform<br>" + more,
            colorbar={"title": {"text": "× uniform", "side": "right"}, "thickness": 12, "outlinewidth": 0},
            **scale,
        )
    )
    bottom = height
    if len(anchors_A):
        top, bottom = height * 1.05, height * 1.19
        places = np.arange(1, len(anchors_A) + 1)
        figure.add_heatmap(
            z=anchors_A[None],
            x=np.linspace(0, width, len(anchors_A) + 1),
            y=[top, bottom],
            xgap=2,
            customdata=np.stack([places, places, raw[1]], axis=-1)[None],
            hovertemplate="anchor %{customdata[0]}<br>%{z:.3g}× uniform<br>" + more,
            showscale=False,
            **scale,
        )
        # Grey under it as under the patches, or one value would have two colours.
        figure.add_shape(
            type="rect", x0=0, x1=width, y0=top, y1=bottom, line={"width": 0}, fillcolor=NEUTRAL, layer="below"
        )
        figure.add_annotation(
            text="anchors", x=0, y=bottom, xanchor="left", yanchor="top", showarrow=False, font={"size": 12}
        )
        bottom = height * 1.28
    figure.add_layout_image(
        source=png(image, grey=True),
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
    figure.update_yaxes(visible=False, range=[bottom, 0], scaleanchor="x", constrain="domain")
    titled(figure, escape(title), "<br>".join(map(escape, lines)), height=480)
    return figure.update_layout(margin={"l": 10, "r": 10, "b": 10, "t": 120})


def rank_dots(
    predictors: Sequence[str], rank_K3: np.ndarray, *, own_K: np.ndarray | None, effect: str, n: int
) -> go.Figure:
    """How well each predictor ranks an image's tokens by what knocking them out does: Spearman's correlation.

    rank_K3: (K, 3) of the K predictors, the mean over n images with its interval. own_K: (K,) of the image that is
    looked at. effect: on what, in words.
    """
    names = [escape(name) for name in predictors]
    figure = Figure()
    figure.add_scatter(
        x=rank_K3[:, 0],
        y=names,
        mode="markers",
        name=f"mean of {n:,} images, 95 % interval",
        marker={"color": SERIES[0], "size": 10},
        error_x=_error(rank_K3) | {"color": SERIES[0]},
        customdata=rank_K3[:, 1:],
        hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
    )
    if own_K is not None:
        figure.add_scatter(
            x=own_K,
            y=names,
            mode="markers",
            name="this image",
            marker=_OWN_MARK,
            hovertemplate="this image, %{y}: %{x:.3f}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dash"})
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="rank correlation with the effect", range=[-1.05, 1.05], zeroline=False)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    subtitle = f"over the tokens of an image, with the size of the effect on {escape(effect)} · {n:,} images"
    return titled(figure, "What tells the effect of a knock-out", subtitle, height=210 + 44 * len(names))


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
    widths = [max(1, len(names) - 1), 1.0]
    figure = make_subplots(1, 2, figure=Figure(), column_widths=widths, horizontal_spacing=0.1)
    for panel, (first, last) in enumerate(((0, len(names) - 1), (len(names) - 1, len(names))), 1):
        for at, (mode, colour) in enumerate(zip(modes, _MODES, strict=False)):
            values = effect_MG3[at, first:last]
            if not np.isfinite(values[:, 0]).any():
                continue
            figure.add_bar(
                x=names[first:last],
                y=values[:, 0],
                name=escape(mode),
                legendgroup=mode,
                showlegend=panel == 1,
                marker={"color": colour},
                error_y=_error(values) | {"color": NEUTRAL},
                offsetgroup=mode,
                customdata=values[:, 1:],
                row=1,
                col=panel,
                hovertemplate=f"%{{x}}, {escape(mode)}: %{{y:.4~g}} "
                "[%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]<extra></extra>",
            )
            if own_MG is not None:
                figure.add_scatter(
                    x=names[first:last],
                    y=own_MG[at, first:last],
                    mode="markers",
                    name="this image",
                    legendgroup="own",
                    showlegend=panel == 1 and at == 0,
                    legendrank=2000,
                    offsetgroup=mode,
                    marker=_OWN_MARK,
                    row=1,
                    col=panel,
                    hovertemplate=f"this image, %{{x}}, {escape(mode)}: %{{y:.4~g}}<extra></extra>",
                )
    figure.update_layout(barmode="group", scattermode="group", bargap=0.25)
    figure.update_yaxes(title=escape(unit), zeroline=True, zerolinecolor=NEUTRAL, col=1)
    figure.update_yaxes(zeroline=True, zerolinecolor=NEUTRAL, col=2)
    figure.update_xaxes(showgrid=False, tickangle=0)
    subtitle = f"effect on {escape(what)} · mean of {n:,} images, 95 % intervals"
    return titled(figure, "Groups of tokens, taken away together", subtitle, height=430)


def window_lines(
    effect_by: Mapping[str, np.ndarray], *, own_by: Mapping[str, np.ndarray] | None, unit: str, what: str, n: int
) -> go.Figure:
    """What closing all tokens of a role to one decoder layer only does.

    effect_by: role, `anchor` or `patch` -> (L, 3); each has an axis of its own. own_by: role -> (L,) of the image that
    is looked at.
    """
    layers = np.arange(1, len(next(iter(effect_by.values()))) + 1)
    figure = make_subplots(len(effect_by), 1, figure=Figure(), shared_xaxes=True, vertical_spacing=0.08)
    for at, (role, values) in enumerate(effect_by.items()):
        name = f"all {ROLE_NAMES[role]}"
        figure.add_scatter(
            x=layers,
            y=values[:, 0],
            mode="lines+markers",
            name=name,
            line={"color": ROLE_COLOURS[role], "width": 2.5},
            error_y=_error(values) | {"color": ROLE_COLOURS[role]},
            customdata=values[:, 1:],
            row=at + 1,
            col=1,
            hovertemplate=f"layer %{{x}}, {name}: %{{y:.4~g}} "
            "[%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]<extra></extra>",
        )
        if own_by is not None:
            figure.add_scatter(
                x=layers,
                y=own_by[role],
                mode="markers",
                name="this image",
                showlegend=at == 0,
                legendgroup="own",
                legendrank=2000,
                marker=_OWN_MARK,
                row=at + 1,
                col=1,
                hovertemplate="this image, layer %{x}: %{y:.4~g}<extra></extra>",
            )
    layer_axis(figure, len(layers))
    if len(effect_by) > 1:
        figure.update_xaxes(title="", row=1)
    figure.update_yaxes(zeroline=True, zerolinecolor=NEUTRAL, rangemode="tozero")
    subtitle = f"effect on {escape(what)}, {escape(unit)} · an axis each<br>mean of {n:,} images, 95 % intervals"
    return titled(figure, "Taken away in one layer only", subtitle, height=430)


def shapley_bars(
    players: Sequence[str], value_P3: np.ndarray, *, own_P: np.ndarray | None, unit: str, what: str, n: int
) -> go.Figure:
    """What each anchor and each quarter of the patches adds, on average over all orders in which they may join.

    value_P3: (P, 3), means with their intervals. own_P: (P,) of the image that is looked at. Players whose name begins
    with `anchor` have the anchors' colour.
    """
    names = [escape(name) for name in players]
    colours = [ROLE_COLOURS["anchor" if name.startswith("anchor") else "patch"] for name in players]
    figure = Figure(
        go.Bar(
            x=value_P3[:, 0],
            y=names,
            orientation="h",
            marker={"color": colours},
            name="mean",
            showlegend=False,
            error_x=_error(value_P3) | {"color": NEUTRAL},
            customdata=value_P3[:, 1:],
            hovertemplate="%{y}: %{x:.4~g} [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]<extra></extra>",
        )
    )
    if own_P is not None:
        figure.add_scatter(
            x=own_P,
            y=names,
            mode="markers",
            name="this image",
            marker=_OWN_MARK,
            hovertemplate="this image, %{y}: %{x:.4~g}<extra></extra>",
        )
    figure.update_xaxes(title=escape(unit), zeroline=True, zerolinecolor=NEUTRAL)
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    subtitle = f"Shapley values: part in {escape(what)} · mean of {n:,} images, 95 % intervals"
    return titled(figure, "Who adds what", subtitle, height=210 + 30 * len(names))


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
    figure = Figure(
        go.Heatmap(
            z=z,
            x=["patches of A", "patches of B"],
            y=["anchors of A", "anchors of B"],
            zmin=-1,
            zmax=1,
            xgap=3,
            ygap=3,
            colorscale=BELOW_ABOVE,
            hoverinfo="skip",
            colorbar={
                "title": {"text": "A less B", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": [-1, 0, 1],
                "ticktext": ["B", "0", "A"],
            },
        )
    )
    for row in range(2):
        for col in range(2):
            dark = z[row, col] < -0.4 or z[row, col] > 0.65
            figure.add_annotation(
                x=col,
                y=row,
                text=text[row][col],
                showarrow=False,
                font={"size": 13, "color": "#f5f5f5" if dark else "#202020"},
            )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    whose = "label that is read" if measure == "reads" else "weight of each donor's value in what is read"
    subtitle = (
        f"{whose} · {escape(what)}<br>{cases:,} cases of {couples:,} couples, 95 % intervals · chance {chance:.2f}"
    )
    titled(figure, escape(readout), subtitle, height=390)
    return figure.update_layout(margin={"t": 115, "b": 40})


def follow_dots(
    tasks: Sequence[str], share_by: Mapping[str, np.ndarray], chance_by: Mapping[str, np.ndarray], *, n: int
) -> go.Figure:
    """Whom readouts follow where the anchors are of one image and the patches of another, task by task.

    share_by: readout -> (K, 2, 3) of the K tasks, the shares of the anchors' and of the patches' image; NaN where it is
    not read. chance_by: readout -> (K,), the anchors' share were what is read dealt at random. The `customdata` of
    every point is the number of its task. n: mixed images.
    """
    names = [escape(name) for name in tasks]
    number = np.arange(len(names))
    figure = make_subplots(
        1,
        len(share_by),
        figure=Figure(),
        shared_yaxes=True,
        subplot_titles=[escape(name) for name in share_by],
        horizontal_spacing=0.04,
    )
    for col, (readout, share_K23) in enumerate(share_by.items(), 1):
        figure.add_scatter(
            x=chance_by[readout],
            y=number,
            mode="markers",
            name="chance",
            legendgroup="chance",
            showlegend=col == 1,
            marker={"symbol": "line-ns-open", "size": 14, "color": NEUTRAL, "line": {"width": 2}},
            customdata=number,
            hovertemplate="chance: %{x:.2f}<extra></extra>",
            row=1,
            col=col,
        )
        for at, role in enumerate(("anchor", "patch")):
            values, whose = share_K23[:, at], ("anchors' image", "patches' image")[at]
            figure.add_scatter(
                x=values[:, 0],
                y=number,
                mode="markers",
                name=f"follows the {whose}",
                legendgroup=role,
                showlegend=col == 1,
                customdata=number,
                error_x=_error(values) | {"color": ROLE_COLOURS[role]},
                marker={"color": ROLE_COLOURS[role], "size": 9, "symbol": ("diamond", "circle")[at]},
                text=[f"{name}: {v[0]:.2f} [{v[1]:.2f}, {v[2]:.2f}]" for name, v in zip(names, values, strict=True)],
                hovertemplate=f"%{{text}}<br>{whose}<extra></extra>",
                row=1,
                col=col,
                selected={"marker": {"opacity": 1}},
                unselected={"marker": {"opacity": 1}},
            )
    figure.update_xaxes(title="share (numbers: weight)", range=[-0.08, 1.08], zeroline=False)
    figure.update_yaxes(
        tickvals=number, ticktext=names, range=[len(names) - 0.4, -0.6], automargin=True, zeroline=False
    )
    subtitle = f"anchors of one image, patches of another · {n:,} mixed images, 95 % intervals over couples"
    titled(figure, "Whose image is read", subtitle, height=230 + 24 * len(names))
    return figure.update_layout(margin={"t": 120}, legend={"y": -90 / (60 + 24 * len(names))})


def _error(values_K3: np.ndarray) -> dict[str, object]:
    """Bars from the lower to the upper end of intervals (K, 3)."""
    estimate, lower, upper = np.moveaxis(values_K3, -1, 0)
    return {"type": "data", "symmetric": False, "array": upper - estimate, "arrayminus": estimate - lower} | _BARS
