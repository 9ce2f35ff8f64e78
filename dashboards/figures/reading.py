"""Plotly figures of what is in z_voco: words, likeness to other representations, dimensions, directions. Knows arrays
and plotly; not Streamlit, files or runs.

Letters in names: L layers, K words, T tasks, R representations, S and D semantic and detail tasks, k directions,
Q questions, G roles of tokens; a last axis of 3 is an estimate with the ends of its 95% interval.
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
    cells,
    colour_bar,
    curve,
    dots,
    named,
    side_by_side,
    step,
    whiskers,
    written,
    zero_centred,
)
from htc_probe.probes.show.style import (
    COLOURS,
    NEUTRAL,
    SERIES,
    across,
    cut,
    escape,
    panels,
    ribbon,
    titled,
    transparent,
)

_ENDS = "95% intervals"
_SHARE: dict[str, Any] = {"range": [0, 1.02], "tickformat": ".0%"}
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
    ends = 0, float(probability_LK.max()) or 1.0
    text = [[escape(cut(words_LK[layer][word], 12)) for layer in range(L)] for word in range(K)]
    heat = cells(
        probability_LK.T,
        ends,
        HEAT,
        "layer %{customdata[1]}, rank %{y}: %{customdata[0]}<br>probability %{z:.2%}, mean over images",
        text=text,
        customdata=custom,
        meta={"word": 0},
        colorbar=colour_bar("probability", tickformat=".2~%"),
    )
    title, subtitle = (
        "Which words does each layer say?",
        f"logit lens on z_voco, the {K} likeliest · mean of {n:,} images",
    )
    y = {"title": "rank", "autorange": "reversed", "dtick": 1, "showgrid": False, "zeroline": False}
    words = [written(text, probability_LK.T, ends, HEAT)] if L <= _MOST_WRITTEN else []
    return titled([heat, *words], title, subtitle, 150 + 30 * K, xaxis=_layers(layers), yaxis=y)


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
        ("bits from the last layer's words", surprise_L3, SERIES[0], "", "%{y:.2f} bits"),
        ("entropy of its words", entropy_L3, NEUTRAL, "", "%{y:.2f} bits"),
        ("the same likeliest word", same_L3, SERIES[2], "2", "%{y:.1%} of images"),
    ):
        traces += _curve(x, values_L3, name, colour, unit, layers, xaxis=f"x{panel}", yaxis=f"y{panel}")
    ys = [{"title": "bits", "rangemode": "tozero"}, _SHARE | {"title": "share of images"}]
    title, subtitle = (
        "When do the last layer's words appear?",
        f"each layer against the last one · {n:,} images, {_ENDS}",
    )
    return titled(traces, title, subtitle, 420, **side_by_side(panels(1, 2, 0.2), _layers(layers), ys))


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
        hover = f"{escape(task)}, most frequent class: {floor:.1%}<extra></extra>"
        look: dict[str, Any] = {"line": {"color": colour, "width": 1.5, "dash": "dot"}, "showlegend": False}
        traces.append(go.Scatter(x=ends, y=[floor, floor], mode="lines", hovertemplate=hover, **look, **group))
    title, how = "Does a layer say the true class?", "likeliest of the class words, without training"
    subtitle, y = f"{how} · dotted: most frequent class · {n:,} images, {_ENDS}", _SHARE | {"title": "share right"}
    return titled(traces, title, subtitle, 440, xaxis=_layers(layers), yaxis=y, margin={"t": 110})


def likeness(cka_RR3: np.ndarray, names: Sequence[str], *, n: int) -> go.Figure:
    """How alike representations of the same n images are: linear CKA, 0 for independent ones, 1 for the same up to a
    rotation and a scale.
    """
    R = len(names)
    heat = cells(
        cka_RR3[..., 0],
        (0, 1),
        HEAT,
        "%{text}<br>%{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
        text=[[f"{escape(column)} and {escape(row)}" for column in names] for row in names],
        customdata=cka_RR3[..., 1:],
        meta={"lower": 0, "upper": 1},
        colorbar=colour_bar("CKA"),
    )
    title, subtitle = "How similar are the representations?", f"linear CKA, without bias · {n:,} images, {_ENDS}"
    x, y = named(names) | {"tickangle": -30}, named(names) | {"range": [R + 0.5, 0.5]}
    numbers = [f"{value:.2f}" for value in cka_RR3[..., 0].flat]
    inside = [written(numbers, cka_RR3[..., 0], (0, 1), HEAT)] if R <= _MOST_WRITTEN else []
    return titled([heat, *inside], title, subtitle, 230 + 34 * R, xaxis=x, yaxis=y)


def dimensions(
    two_nn_R3: np.ndarray, participation_R3: np.ndarray, names: Sequence[str], of: Sequence[str], *, n: int
) -> go.Figure:
    """How many dimensions the images fill, by nearest neighbours (of the curved surface that they lie on) and by
    variance (of the flat space that holds it). of: (R,) such as z_voco, for the colours.
    """
    y = np.arange(1, len(names) + 1)
    colours = [COLOURS.get(name, NEUTRAL) for name in of]
    traces, told = [], "%{x:.1f} [%{customdata[0]:.1f}, %{customdata[1]:.1f}]"
    for method, values_R3, symbol, off in (
        ("TwoNN", two_nn_R3, "circle", -0.12),
        ("participation ratio", participation_R3, "diamond-open", 0.12),
    ):
        marker = {"size": 10, "symbol": symbol, "color": colours, "line": {"width": 2, "color": colours}}
        traces.append(_dots(values_R3, y + off, names, method, told, NEUTRAL, marker))
    title, subtitle = "How many dimensions are used?", f"of standardised features · {n:,} images, {_ENDS}"
    x, down = {"title": "dimensions", "rangemode": "tozero", "zeroline": False}, _down(names)
    return titled(traces, title, subtitle, 190 + 38 * len(names), xaxis=x, yaxis=down)


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
    do. A dot: more than 97.5% of random ones.

    overlap_SD: mean squared cosine of the principal angles, 0 (orthogonal) to 1. chance_SD, upper_SD: mean and 97.5%
    quantile of random spans of these dimensions. what: is compared, in words.
    """
    more_SD = overlap_SD - chance_SD
    row, column = np.nonzero(overlap_SD > upper_SD)
    heat = cells(
        more_SD,
        zero_centred(more_SD),
        BELOW_ABOVE,
        "%{text}<br>overlap %{customdata[0]:.3f}<br>random directions: %{customdata[1]:.3f}, "
        "97.5% below %{customdata[2]:.3f}",
        text=[[f"{escape(one)} and {escape(other)}" for other in detail] for one in semantic],
        customdata=np.stack([overlap_SD, chance_SD, upper_SD], -1),
        meta={"overlap": 0, "by chance": 1, "97.5% of random ones are below": 2},
        colorbar=colour_bar("overlap minus chance", tickformat="+.2~f"),
    )
    title, how = "Which tasks share directions?", "squared cosines minus those of random directions"
    subtitle = f"{what} · {how}<br>dots: above 97.5% of random ones, not corrected"
    x = named([cut(name) for name in detail]) | {"title": "detail", "tickangle": -30}
    y = _down([cut(name) for name in semantic])
    traces, height = [heat, dots(column + 1, row + 1, 7, 1.5)], 230 + 34 * len(semantic)
    return titled(traces, title, subtitle, height, xaxis=x, yaxis=y, margin={"t": 110})


def probe_cosines(
    cosines_k: np.ndarray, lower_k: np.ndarray, upper_k: np.ndarray, overlap: tuple[float, float], *, what: str
) -> go.Figure:
    """Principal angles between all semantic and all detail directions, the nearest pair first, with the band of random
    directions. overlap: mean squared cosine, and that of random directions.
    """
    x = np.arange(1, len(cosines_k) + 1)
    hover = "pair %{x}: cosine %{y:.3f}<br>random: %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>"
    ends = np.stack([lower_k, upper_k], -1)
    traces = [
        ribbon(x, lower_k, upper_k, transparent(NEUTRAL, 0.22), name="95% of random directions", showlegend=True),
        curve(x, cosines_k, "probes", COLOURS["z_voco"], hover, customdata=ends),
    ]
    title = "Do the two suites share directions?"
    subtitle = f"{what} · mean squared cosine {overlap[0]:.2f}, random {overlap[1]:.2f}"
    axis = {"title": "pair of directions, the nearest first", "dtick": step(len(x)), "showgrid": False}
    return titled(traces, title, subtitle, 400, xaxis=axis, yaxis={"title": "cosine", "range": [0, 1.02]})


def answer_parts(
    part_QG3: np.ndarray, questions: Sequence[str], roles: Sequence[str], *, title: str, n: int
) -> go.Figure:
    """What `<voco>`'s attention to each role of tokens adds to the logit of the true answer's first word, above the
    vocabulary's mean; summed over layers and heads, mean over n images.
    """
    y = np.arange(1, len(questions) + 1)
    traces, told = [], "%{x:+.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
    for number, role in enumerate(roles):
        places = y + (number - (len(roles) - 1) / 2) * min(0.22, 0.7 / len(roles))
        name, colour = ROLE_NAMES[role], ROLE_COLOURS[role]
        traces.append(_dots(part_QG3[:, number], places, questions, name, told, colour, {"size": 9, "color": colour}))
    subtitle = f"summed over layers and heads · {n:,} images, {_ENDS}"
    x, height = {"title": "added to the answer's logit", "zeroline": False}, 200 + 30 * len(questions)
    down, middle = _down([cut(question, 24) for question in questions]), {"color": NEUTRAL, "width": 1.5}
    return titled(traces, title, subtitle, height, xaxis=x, yaxis=down, shapes=[across(x=0, line=middle)])


def _dots(
    values_3: np.ndarray, y: np.ndarray, names: Sequence[str], series: str, told: str, colour: str, marker: Any
) -> go.Scatter:
    """Estimates (n, 3) along x, with their ends in a colour. told: the hover text, after what it is of."""
    return go.Scatter(
        x=values_3[:, 0],
        y=y,
        mode="markers",
        name=series,
        marker=marker,
        error_x=whiskers(*values_3.T, color=colour, thickness=1.5, width=3),
        customdata=values_3[:, 1:],
        text=[escape(name) for name in names],
        hovertemplate=f"%{{text}}, {series}<br>{told}<extra></extra>",
    )


def _down(names: Sequence[str]) -> dict[str, Any]:
    """An axis of names, the first on top."""
    return named(names) | {"range": [len(names) + 0.5, 0.5]}


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
    hover = f"layer %{{customdata[2]}}, {escape(name)}<br>{told} [%{{customdata[0]:.3~f}}, %{{customdata[1]:.3~f}}]"
    custom = np.column_stack([values_L3[:, 1:], layers])
    line = curve(x, values_L3[:, 0], escape(name), colour, hover + "<extra></extra>", customdata=custom, **more)
    return [ribbon(x, values_L3[:, 1], values_L3[:, 2], transparent(colour, 0.22), name="", **more), line]
