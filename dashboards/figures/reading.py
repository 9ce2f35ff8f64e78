"""Plotly figures of what is in z_voco: words, likeness to other representations, dimensions, directions. Knows arrays
and plotly; not Streamlit, files or runs.

Letters in names: L layers, K words, T tasks, R representations, S and D semantic and detail tasks, k directions,
Q questions, G roles of tokens; a last axis of 3 is an estimate with the ends of its 95 % interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards.figures.base import (
    BELOW_ABOVE,
    HEAT,
    ROLE_COLOURS,
    ROLE_NAMES,
    colour_bar,
    named,
    side_by_side,
    step,
    whiskers,
)
from htc_probe.probes.show.style import COLOURS, NEUTRAL, SERIES, across, cut, escape, panels, titled, transparent

_MOST_WRITTEN = 12
"""Columns of a heat map that leave room for what is in its cells."""


def lens_words(
    words_LK: Sequence[Sequence[str]], probability_LK: np.ndarray, layers: Sequence[int], *, n: int
) -> go.Figure:
    """The words that the unembedding reads at each layer (x), the likeliest on top.

    words_LK: K words a layer. probability_LK: (L, K) mean over n images. layers: as they are stored, 0 the embedding.
    """
    L, K = probability_LK.shape
    custom = np.empty((K, L, 2), dtype=object)
    custom[..., 0] = np.array([[escape(word) for word in words] for words in words_LK], dtype=object).T
    custom[..., 1] = np.asarray(layers)
    heat = go.Heatmap(
        z=probability_LK.T,
        x=np.arange(1, L + 1),
        y=np.arange(1, K + 1),
        zmin=0,
        zmax=float(probability_LK.max()) or 1.0,
        colorscale=HEAT,
        xgap=1,
        ygap=1,
        text=[[escape(cut(words_LK[layer][word], 12)) for layer in range(L)] for word in range(K)],
        texttemplate="%{text}" if L <= _MOST_WRITTEN else None,
        textfont={"size": 12},
        customdata=custom,
        hovertemplate="layer %{customdata[1]}, rank %{y}: %{customdata[0]}<br>"
        "probability %{z:.2%}, mean over images<extra></extra>",
        colorbar=colour_bar("probability", tickformat=".2~%"),
    )
    return titled(
        [heat],
        "Words that each layer says",
        f"logit lens on z_voco, the {K} likeliest · mean of {n:,} images",
        150 + 30 * K,
        xaxis=_layers(layers),
        yaxis={"title": "rank", "autorange": "reversed", "dtick": 1, "showgrid": False, "zeroline": False},
    )


def lens_agreement(
    surprise_L3: np.ndarray, entropy_L3: np.ndarray, same_L3: np.ndarray, layers: Sequence[int], *, n: int
) -> go.Figure:
    """How near each layer's words are to the last layer's: bits apart, and how often the likeliest word is the same.

    surprise_L3: bits, KL of the last layer's words from this layer's. entropy_L3: bits of this layer's words. same_L3:
    share of n images.
    """
    x = np.arange(1, len(layers) + 1)
    traces = []
    for name, values_L3, colour, panel, unit in (
        ("bits short of the last layer's words", surprise_L3, SERIES[0], "", "%{y:.2f} bits"),
        ("entropy of its words", entropy_L3, NEUTRAL, "", "%{y:.2f} bits"),
        ("the same likeliest word", same_L3, SERIES[2], "2", "%{y:.1%} of images"),
    ):
        traces += _curve(x, values_L3, name, colour, unit, layers, xaxis=f"x{panel}", yaxis=f"y{panel}")
    axes: list[dict[str, Any]] = [
        {"title": "bits", "rangemode": "tozero"},
        {"title": "share of images", "range": [0, 1.02], "tickformat": ".0%"},
    ]
    return titled(
        traces,
        "When the last layer's words appear",
        f"each layer against the last one · {n:,} images, 95 % intervals",
        420,
        **side_by_side(panels(1, 2, 0.2), _layers(layers), axes),
    )


def lens_accuracy(
    accuracy_TL3: np.ndarray, floor_T: np.ndarray, tasks: Sequence[str], layers: Sequence[int], *, n: int
) -> go.Figure:
    """How often the word of the true class is the likeliest among the words of all classes, by layer; dotted: always
    the most frequent class.
    """
    x = np.arange(1, len(layers) + 1)
    traces = []
    for number, task in enumerate(tasks):
        colour, group = SERIES[number % len(SERIES)], {"legendgroup": task}
        traces += _curve(x, accuracy_TL3[number], task, colour, "%{y:.1%} right", layers, **group)
        ends, floor = [x[0] - 0.4, x[-1] + 0.4], float(floor_T[number])
        traces.append(
            go.Scatter(
                x=ends,
                y=[floor, floor],
                mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dot"},
                showlegend=False,
                hovertemplate=f"{escape(task)}, most frequent class: {floor:.1%}<extra></extra>",
                **group,
            )
        )
    return titled(
        traces,
        "Does a layer say the true class?",
        f"likeliest of the words of the classes, without training · dotted: most frequent class · {n:,} images, "
        "95 % intervals",
        440,
        xaxis=_layers(layers),
        yaxis={"title": "share right", "range": [0, 1.02], "tickformat": ".0%"},
        margin={"t": 110},
    )


def likeness(cka_RR3: np.ndarray, names: Sequence[str], *, n: int) -> go.Figure:
    """How alike representations of the same n images are: linear CKA, 0 for independent ones, 1 for the same up to a
    rotation and a scale.
    """
    R = len(names)
    heat = go.Heatmap(
        z=cka_RR3[..., 0],
        x=np.arange(1, R + 1),
        y=np.arange(1, R + 1),
        zmin=0,
        zmax=1,
        colorscale=HEAT,
        xgap=1,
        ygap=1,
        texttemplate="%{z:.2f}" if R <= _MOST_WRITTEN else None,
        text=[[f"{escape(column)} and {escape(row)}" for column in names] for row in names],
        customdata=cka_RR3[..., 1:],
        hovertemplate="%{text}<br>%{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        colorbar=colour_bar("CKA"),
    )
    return titled(
        [heat],
        "How alike representations are",
        f"linear CKA, without bias · {n:,} images, 95 % intervals",
        230 + 34 * R,
        xaxis=named(names) | {"tickangle": -30},
        yaxis=named(names) | {"range": [R + 0.5, 0.5]},
    )


def dimensions(two_nn_R3: np.ndarray, participation_R3: np.ndarray, names: Sequence[str], *, n: int) -> go.Figure:
    """How many dimensions the images fill, by nearest neighbours (of the curved surface that they lie on) and by
    variance (of the flat space that holds it).
    """
    y = np.arange(1, len(names) + 1)
    colours = [COLOURS.get(name.split()[0], NEUTRAL) for name in names]
    traces = [
        go.Scatter(
            x=values_R3[:, 0],
            y=y + off,
            mode="markers",
            name=method,
            marker={"size": 10, "symbol": symbol, "color": colours, "line": {"width": 2, "color": colours}},
            error_x=whiskers(*values_R3.T, color=NEUTRAL, thickness=1.5, width=3),
            customdata=values_R3[:, 1:],
            text=[escape(name) for name in names],
            hovertemplate=f"%{{text}}, {method}<br>%{{x:.1f}} [%{{customdata[0]:.1f}}, %{{customdata[1]:.1f}}]"
            "<extra></extra>",
        )
        for method, values_R3, symbol, off in (
            ("TwoNN", two_nn_R3, "circle", -0.12),
            ("participation ratio", participation_R3, "diamond-open", 0.12),
        )
    ]
    return titled(
        traces,
        "How many dimensions are used",
        f"of standardised features · {n:,} images, 95 % intervals",
        190 + 38 * len(names),
        xaxis={"title": "dimensions", "rangemode": "tozero", "zeroline": False},
        yaxis=named(names) | {"range": [len(names) + 0.5, 0.5]},
    )


def probe_overlap(
    overlap_SD: np.ndarray,
    chance_SD: np.ndarray,
    upper_SD: np.ndarray,
    semantic: Sequence[str],
    detail: Sequence[str],
    *,
    what: str,
) -> go.Figure:
    """How far a semantic task's probe looks along the same directions as a detail task's, less what random directions
    do. A dot: more than 97.5 % of random ones.

    overlap_SD: mean squared cosine of the principal angles, 0 (orthogonal) to 1. chance_SD, upper_SD: mean and 97.5 %
    quantile of random spans of these dimensions. what: is compared, in words.
    """
    more_SD = overlap_SD - chance_SD
    most = float(np.abs(more_SD).max(initial=0)) or 1.0
    row, column = np.nonzero(overlap_SD > upper_SD)
    traces: list[Any] = [
        go.Heatmap(
            z=more_SD,
            x=np.arange(1, len(detail) + 1),
            y=np.arange(1, len(semantic) + 1),
            zmin=-most,
            zmax=most,
            colorscale=BELOW_ABOVE,
            xgap=1,
            ygap=1,
            text=[[f"{escape(one)} and {escape(other)}" for other in detail] for one in semantic],
            customdata=np.stack([overlap_SD, chance_SD, upper_SD], -1),
            hovertemplate="%{text}<br>overlap %{customdata[0]:.3f}<br>random directions: %{customdata[1]:.3f}, "
            "97.5 % below %{customdata[2]:.3f}<extra></extra>",
            colorbar=colour_bar("overlap minus chance", tickformat="+.2~f"),
        ),
        go.Scatter(
            x=column + 1,
            y=row + 1,
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker={"size": 7, "color": "#ffffff", "line": {"color": "#333333", "width": 1.5}},
        ),
    ]
    return titled(
        traces,
        "Semantic and detail probes, task by task",
        f"{what} · squared cosines less those of random directions<br>dots: above 97.5 % of random ones, not corrected",
        230 + 34 * len(semantic),
        xaxis=named([cut(name) for name in detail]) | {"title": "detail", "tickangle": -30},
        yaxis=named([cut(name) for name in semantic]) | {"range": [len(semantic) + 0.5, 0.5]},
        margin={"t": 110},
    )


def probe_cosines(
    cosines_k: np.ndarray, lower_k: np.ndarray, upper_k: np.ndarray, overlap: tuple[float, float], *, what: str
) -> go.Figure:
    """Principal angles between all semantic and all detail directions, the nearest pair first, with the band of random
    directions. overlap: mean squared cosine, and that of random directions.
    """
    x = np.arange(1, len(cosines_k) + 1)
    traces = [
        *_band(x, lower_k, upper_k, NEUTRAL, "95 % of random directions"),
        go.Scatter(
            x=x,
            y=cosines_k,
            mode="lines+markers",
            name="probes",
            line={"color": COLOURS["z_voco"], "width": 2.5},
            customdata=np.stack([lower_k, upper_k], -1),
            hovertemplate="pair %{x}: cosine %{y:.3f}<br>random: %{customdata[0]:.3f} to %{customdata[1]:.3f}"
            "<extra></extra>",
        ),
    ]
    return titled(
        traces,
        "All semantic and all detail directions",
        f"{what} · mean squared cosine {overlap[0]:.2f}, random {overlap[1]:.2f}",
        400,
        xaxis={"title": "pair of directions, the nearest first", "dtick": step(len(x)), "showgrid": False},
        yaxis={"title": "cosine", "range": [0, 1.02]},
    )


def answer_parts(
    part_QG3: np.ndarray, questions: Sequence[str], roles: Sequence[str], *, title: str, n: int
) -> go.Figure:
    """What `<voco>`'s attention to each role of tokens adds to the logit of the true answer's first word, above the
    vocabulary's mean; summed over layers and heads, mean over n images.
    """
    y = np.arange(1, len(questions) + 1)
    traces = [
        go.Scatter(
            x=part_QG3[:, number, 0],
            y=y + (number - (len(roles) - 1) / 2) * min(0.22, 0.7 / len(roles)),
            mode="markers",
            name=ROLE_NAMES[role],
            marker={"size": 9, "color": ROLE_COLOURS[role]},
            error_x=whiskers(*part_QG3[:, number].T, color=ROLE_COLOURS[role], thickness=1.5, width=3),
            customdata=part_QG3[:, number, 1:],
            text=[escape(question) for question in questions],
            hovertemplate=f"%{{text}}, {ROLE_NAMES[role]}<br>"
            "%{x:+.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        )
        for number, role in enumerate(roles)
    ]
    return titled(
        traces,
        title,
        f"summed over layers and heads · {n:,} images, 95 % intervals",
        200 + 30 * len(questions),
        xaxis={"title": "added to the answer's logit", "zeroline": False},
        yaxis=named([cut(question, 24) for question in questions]) | {"range": [len(questions) + 0.5, 0.5]},
        shapes=[across(x=0, line={"color": NEUTRAL, "width": 1.5})],
    )


def _layers(layers: Sequence[int]) -> dict[str, Any]:
    """An axis of stored layers at 1, 2, ..."""
    apart = step(len(layers))
    places = list(range(1, len(layers) + 1))[::apart]
    ticks = {"tickvals": places, "ticktext": [str(layers[place - 1]) for place in places]}
    return {"title": "layer of z_voco (0: embedding)", **ticks, "showgrid": False, "zeroline": False}


def _curve(
    x: np.ndarray, values_L3: np.ndarray, name: str, colour: str, told: str, layers: Sequence[int], **more: Any
) -> list[go.Scatter]:
    """A line over the layers, and its interval."""
    line = go.Scatter(
        x=x,
        y=values_L3[:, 0],
        mode="lines+markers",
        name=escape(name),
        line={"color": colour, "width": 2.5},
        customdata=np.column_stack([values_L3[:, 1:], layers]),
        hovertemplate=f"layer %{{customdata[2]}}, {escape(name)}<br>{told} "
        "[%{customdata[0]:.3~f}, %{customdata[1]:.3~f}]<extra></extra>",
        **more,
    )
    return [*_band(x, values_L3[:, 1], values_L3[:, 2], colour, "", **more), line]


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str, **more: Any) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            mode="lines",
            fill="toself",
            fillcolor=transparent(colour, 0.22),
            line={"width": 0},
            hoverinfo="skip",
            name=name,
            showlegend=bool(name),
            **more,
        )
    ]
