"""Probe results as plotly figures: functions from `Results`, for the report, the dashboard and notebooks; `CAPTIONS`
say how to read them. Knows `Results` and plotly; not runs, solvers or pages.

Colours are from Okabe and Ito's palette, which most colour-blind people can tell apart. Text, axes and background are
left to the theme, and lines are of a middle grey, so that the figures read on light and dark pages. Names of classes,
tasks and files are shown as they are, never read as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from htc_probe.probes.files.results import (
    NOT_DEFINED,
    Ceiling,
    ClassScore,
    Comparison,
    Interval,
    Kept,
    Results,
    Row,
    SuiteGap,
    SuiteMean,
    is_defined,
    label,
)
from htc_probe.probes.show import table
from htc_probe.probes.show.table import Key

CAPTIONS = {
    "scores": "Bars: held-out scores, larger is better, 1 is perfect. Whiskers: 95 % intervals over groups of images; "
    "two that overlap may still differ, as representations are compared on the same images (see the differences). "
    "Line across the bars: the floor, which sees no features. Diamond: the best guess from the image's category alone. "
    "Cross: the same probe on random labels of categories, which shows how well it tells these apart; that explains a "
    "score only where the category alone does too.",
    "bits": "Bits an image that the probe saves, held out, over knowing how often labels occur (V-information). "
    "One unit for all kinds of tasks, though classes cannot save more bits than their labels have. Below 0, the probe "
    "is surer than it should be. Diamond: what the image's category alone saves.",
    "layers": "Line: z_voco at each layer, with its 95 % interval; layer 0 is the embedding, the same for every image. "
    "Dotted: other representations. Dashed, grey: the floor. The highest of many layers is high partly by chance: "
    "choose a layer on other images than those that score it.",
    "learning": "Scores of probes that are trained on a part of the training images, with 95 % intervals; the number "
    "of images is on a logarithmic axis. A curve that still rises would score higher with more data.",
    "retention": "(score - floor) / (v_pooled's score - floor): 1 keeps all that v_pooled shows over the floor, 0 "
    "nothing. Whiskers: Fieller's 95 % intervals. Where v_pooled is at its floor, no ratio to it is defined.",
    "differences": "Differences on the same images, with 95 % intervals (of one test, not corrected), in the colour of "
    "the other representation. Right of 0, the first is better. Filled: p < 0.05 after Holm's correction.",
    "added": "I(a; Y | b): bits an image that a probe of both saves over a probe of b alone. Left of 0, the wider "
    "probe learned worse from as many images. Filled: p < 0.05 after Holm's correction.",
    "kept": "Score minus v_pooled's on the same images, with 95 % intervals (of one test, not corrected); the band is "
    "the margin. Filled: decided, after Holm's correction, to be within the margin (kept) or further from v_pooled "
    "than that (lost, gained). Open: not decided by so many images, or nothing to keep, where v_pooled itself is not "
    "clearly further than the margin above its floor.",
    "gaps": "The share that is kept of what v_pooled's mean over semantic tasks has over its floor, minus the same of "
    "details, with 95 % intervals (of one test, not corrected). Right of 0, details are lost more than semantics. "
    "Filled: p < 0.05 after Holm's correction.",
    "ceilings": "What a hidden layer on top of the linear probe adds to its score, on the same images, with 95 % "
    "intervals (of one test, not corrected): how much there is to be read that is not linear. Filled: p < 0.05 after "
    "Holm's correction. Both readers are the same where the layer did no better on the images trained on.",
    "classes": "Recall of each class (the share of its images that are right), or average precision of each label, "
    "with 95 % intervals over groups of images: wide for few images, none where a single group has the class. Line: "
    "the same without features, which is 1 for the most frequent class and 0 for the others.",
    "confusions": "Rows: the true class. Columns: the class that the probe chose. Colour: the share of the row's "
    "images, so every row adds up to 1; the number of images is in the hover text.",
}

_COLOURS = {"voco_read": "#56B4E9", "z_voco": "#009E73", "v_d": "#E69F00", "v_pooled": "#0072B2"}
_OTHERS = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_NEUTRAL = "#8a8a8a"
_SHARES = [[0.0, "#ffffff"], [0.5, "#6baed6"], [1.0, "#08306b"]]
_LISTED = 40  # classes of one figure
_NAMED = 30  # classes of a confusion matrix whose names still fit


def scores(results: Results, suite: str) -> go.Figure:
    """Every task's score, and the suite's mean, with floors, control labels and the category alone."""
    keys = table.columns(results, suite)
    groups = []
    for task, of in table.tasks(results, suite).items():
        first = of[0]
        base = {one.name: one.score.estimate for one in results.baselines if (one.suite, one.task) == (suite, task)}
        groups.append(
            _Group(
                _tick(task, f"{first.metric}{_classes(first)}, n {first.n:,}"),
                {_key(row): Interval(row.estimate, row.lower, row.upper) for row in of},
                first.floor,
                base.get("category alone"),
                {_key(row): row.control for row in of if row.control is not None},
            )
        )
    means = [mean for mean in results.suite_means if mean.suite == suite]
    if means:
        cells = {_key(mean): Interval(mean.estimate, mean.lower, mean.upper) for mean in means}
        groups.append(_Group(f"<b>mean of {means[0].tasks}</b>", cells, means[0].floor))
    figure = _bars(results, keys, groups, "score")
    low = min([0.0, *(cell.lower or 0 for group in groups for key, cell in group.cells.items() if key in keys)])
    figure.update_xaxes(range=[max(low * 1.05, -0.5), 1.02])
    return _titled(figure, f"{_plain(suite)}: held-out scores", _sample(results, suite))


def bits(results: Results, suite: str) -> go.Figure:
    """V-information by task and representation, and its mean over the suite."""
    keys = table.columns(results, suite)
    groups = []
    for task, of in table.tasks(results, suite).items():
        base = {one.name: one.bits.estimate for one in results.baselines if (one.suite, one.task) == (suite, task)}
        cells = {_key(row): row.metrics["V-information"] for row in of if "V-information" in row.metrics}
        groups.append(_Group(_tick(task, f"n {of[0].n:,}{_classes(of[0])}"), cells, 0.0, base.get("category alone")))
    means = [mean for mean in results.suite_means if mean.suite == suite]
    if means:
        groups.append(_Group(f"<b>mean of {means[0].tasks}</b>", {_key(mean): mean.bits for mean in means}, 0.0))
    figure = _bars(results, keys, groups, "bits an image")
    return _titled(figure, f"{_plain(suite)}: V-information", _sample(results, suite))


def layer_curves(results: Results, suite: str) -> go.Figure | None:
    """z_voco by layer, a panel a task, beside other representations; None where one layer was probed."""
    if len(table.layers(results, suite)) < 2:
        return None
    by_task = table.tasks(results, suite)
    others = [key for key in table.columns(results, suite) if key[1] is None]
    colours = _palette(results)
    figure, places = _panels([f"{_plain(task)} ({of[0].metric}, n {of[0].n:,})" for task, of in by_task.items()])
    for at, of in zip(places, by_task.values(), strict=True):
        curve = sorted((row for row in of if row.layer is not None), key=lambda row: row.layer or 0)
        x = [row.layer for row in curve]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*(row.upper for row in curve), *(row.lower for row in reversed(curve))],
            mode="lines",
            fill="toself",
            fillcolor=_clear(_COLOURS["z_voco"]),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            **at.trace,
        )
        figure.add_scatter(
            x=x,
            y=[row.estimate for row in curve],
            mode="lines+markers",
            name="z_voco",
            legendgroup="z_voco",
            line={"color": _COLOURS["z_voco"], "width": 2},
            marker={"size": 5},
            showlegend=at.first,
            customdata=[[row.lower, row.upper] for row in curve],
            hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
            **at.trace,
        )
        ends = [x[0], x[-1]]
        lines = {_plain(label(*key)): (row.estimate, colours[key], "dot") for key in others if (row := _of(of, key))}
        for name, (value, colour, dash) in (lines | {"floor": (of[0].floor, _NEUTRAL, "dash")}).items():
            figure.add_scatter(
                x=ends,
                y=[value, value],
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=at.first,
                line={"color": colour, "width": 1.5, "dash": dash},
                hovertemplate="%{y:.3f}<extra></extra>",
                **at.trace,
            )
        figure.update_xaxes(title="layer", title_standoff=4, **at.axes)
    return _titled(figure, f"{_plain(suite)}: layers of z_voco", _sample(results, suite))


def learning_curves(results: Results, suite: str) -> go.Figure | None:
    """Scores against the number of training images, a panel a task; None where they were not measured."""
    keys = table.columns(results, suite)
    points = [one for one in results.curves if one.suite == suite and _key(one) in keys]
    if not points:
        return None
    by_task = table.tasks(results, suite)
    colours = _palette(results)
    figure, places = _panels([f"{_plain(task)} ({of[0].metric}, n {of[0].n:,})" for task, of in by_task.items()])
    for at, (task, of) in zip(places, by_task.items(), strict=True):
        here = [one for one in points if one.task == task]
        for key in keys:
            curve = sorted((one for one in here if _key(one) == key), key=lambda one: one.images)
            name = _plain(label(*key))
            figure.add_scatter(
                x=[one.images for one in curve],
                y=[one.score.estimate for one in curve],
                mode="lines+markers",
                error_y=_whiskers([one.score for one in curve], colours[key]),
                name=name,
                legendgroup=name,
                showlegend=at.first,
                line={"color": colours[key], "width": 2},
                marker={"size": 5},
                hovertemplate="%{x:,} images: %{y:.3f}<extra></extra>",
                **at.trace,
            )
        images = [one.images for one in here]
        if images:
            figure.add_scatter(
                x=[min(images), max(images)],
                y=[of[0].floor] * 2,
                mode="lines",
                name="floor",
                legendgroup="floor",
                line={"color": _NEUTRAL, "width": 1.5, "dash": "dash"},
                showlegend=at.first,
                hovertemplate="floor: %{y:.3f}<extra></extra>",
                **at.trace,
            )
        ticks = sorted(set(images))
        figure.update_xaxes(type="log", title="training images", title_standoff=4, tickvals=ticks, **at.axes)
        figure.update_xaxes(ticktext=[f"{one:,}" for one in ticks], minor={"ticks": ""}, **at.axes)
    return _titled(figure, f"{_plain(suite)}: learning curves", f"scored on {_sample(results, suite)}")


def retention(results: Results, suite: str) -> go.Figure | None:
    """What share of v_pooled's score over the floor each representation keeps; None without v_pooled."""
    keys = [key for key in table.columns(results, suite) if key != ("v_pooled", None)]
    means = [mean for mean in results.suite_means if mean.suite == suite]
    lines: list[tuple[str, str, Sequence[Row | SuiteMean]]] = [
        (_cut(task, 24), f"n {of[0].n:,}", of) for task, of in table.tasks(results, suite).items()
    ]
    if means:
        lines.append((f"<b>mean of {means[0].tasks}</b>", "", means))
    lines = [(name, about, [one for one in of if _key(one) in keys]) for name, about, of in lines]
    if all(one.retention is None for _, _, of in lines for one in of):
        return None
    groups = [
        _Group(
            name + _below(NOT_DEFINED if table.not_defined(of) else about),
            {_key(one): one.retention for one in of if is_defined(one.retention)},
        )
        for name, about, of in lines
    ]
    figure = _bars(results, keys, groups, "share of v_pooled's score over the floor", dots=True)
    ends = [end for group in groups for cell in group.cells.values() for end in cell if end is not None]
    # A ratio to hardly anything would squeeze all others.
    figure.update_xaxes(range=[max(min([0.0, *ends]), -1) - 0.05, min(max([1.0, *ends]), 2) + 0.05])
    for value in (0, 1):
        figure.add_vline(x=value, line={"color": _NEUTRAL, "width": 1})
    return _titled(figure, f"{_plain(suite)}: retention", _sample(results, suite))


def differences(results: Results, suite: str) -> go.Figure | None:
    """z_voco's score minus that of every other representation."""
    found = table.against(results, suite)
    names = [f"{_cut(one.task or 'mean', 24)}: {_plain(one.a)} - {_plain(one.b)}" for one in found.values()]
    colours = [_palette(results)[key] for _, key in found]
    return _forest(results, suite, list(found.values()), names, colours, "differences", "difference of scores")


def compared(results: Results, suite: str, a: Key, b: Key) -> go.Figure | None:
    """a's score minus b's, by task and in the mean; None where they were not compared."""
    found = table.between(results, suite, a, b)
    names = [_cut(one.task or "mean of the suite", 24) for one in found]
    colours = [_palette(results)[a]] * len(found)
    title = f"{_plain(label(*a))} minus {_plain(label(*b))}"
    return _forest(results, suite, found, names, colours, title, "difference of scores")


def kept(results: Results, suite: str) -> go.Figure | None:
    """What is kept of v_pooled's scores, with the margin as a band; None without v_pooled."""
    found = table.kept(results, suite)
    names = [
        f"{_cut(one.task or 'mean', 24)}: {_plain(label(*key))}{_below(one.verdict)}" for (_, key), one in found.items()
    ]
    colours = [_palette(results)[key] for _, key in found]
    title = "what is kept of v_pooled"
    figure = _forest(results, suite, list(found.values()), names, colours, title, "score minus v_pooled's")
    if figure is not None:
        margin = next(iter(found.values())).margin
        figure.add_vrect(x0=-margin, x1=margin, fillcolor=_NEUTRAL, opacity=0.25, line_width=0, layer="below")
        figure.update_layout(height=140 + 36 * len(found))
    return figure


def gaps(results: Results) -> go.Figure | None:
    """Whether semantics are kept better than details, by representation; None where that is not defined."""
    found = {key: one for key, one in table.gaps(results).items() if one.p is not None}
    if not found:
        return None
    first = next(iter(found.values()))
    colours = [_palette(results)[key] for key in found]
    names = [_plain(label(*key)) for key in found]
    title = f"retention minus that of {first.second}"
    return _forest(results, first.first, list(found.values()), names, colours, title, "difference of retentions")


def ceilings(results: Results, suite: str) -> go.Figure | None:
    """What a hidden layer adds to the linear probe; None where none was asked for."""
    found = table.ceilings(results, suite)
    names = [
        f"{_cut(task, 24)}: {_plain(label(*key))}{_below(f'{one.metric} {one.score.estimate or 0:.2f}')}"
        for (task, key), one in found.items()
    ]
    colours = [_palette(results)[key] for _, key in found]
    figure = _forest(results, suite, list(found.values()), names, colours, "ceiling", "ceiling minus linear probe")
    return figure if figure is None else figure.update_layout(height=140 + 36 * len(found))


def by_class(results: Results, task: str) -> go.Figure | None:
    """The score of every class or label, the most frequent first; None where the task has none."""
    of: dict[str, list[ClassScore]] = {}
    for one in results.by_class:
        if one.task == task:
            of.setdefault(one.name, []).append(one)
    if not of:
        return None
    first = next(iter(of.values()))[0]
    keys = [key for key in table.columns(results, first.suite) if any(_key(one) == key for one in of[first.name])]
    groups = [
        _Group(_tick(name, f"n {here[0].n:,}"), {_key(one): one.score for one in here}, here[0].floor)
        for name, here in list(of.items())[:_LISTED]
    ]
    figure = _bars(results, keys, groups, first.metric, dots=True)
    figure.update_xaxes(range=[-0.02, 1.02])
    more = f", the {_LISTED} most frequent of {len(of)}" if len(of) > _LISTED else ""
    return _titled(figure, f"{_plain(task)}: {first.metric} by class{more}", _sample(results, first.suite))


def bits_added(results: Results, suite: str) -> go.Figure | None:
    """What one representation says of the labels beyond another; None without joins."""
    shown = [one for one in results.comparisons if one.suite == suite and one.metric == "bits"]
    names = [f"{_cut(one.task or 'mean', 24)}: {' given '.join(map(_plain, table.added(one)))}" for one in shown]
    return _forest(results, suite, shown, names, [_NEUTRAL] * len(shown), "bits added", "bits an image")


def confusions(results: Results, task: str) -> go.Figure:
    """The confusion matrices of one task, one a representation."""
    (suite,) = {row.suite for row in results.rows if row.task == task} or {""}
    keys = table.columns(results, suite)
    of = [one for one in results.confusions if one.task == task]
    of = [one for one in of if _key(one) in keys] or of
    figure, places = _panels([_plain(label(one.representation, one.layer)) for one in of], 380)
    n = 0
    for at, one in zip(places, of, strict=True):
        totals = [sum(line) for line in one.counts]
        n = sum(totals)
        names = [_plain(name) for name in one.classes]
        numbers = list(range(len(names)))
        figure.add_heatmap(
            z=[[count / max(total, 1) for count in line] for line, total in zip(one.counts, totals, strict=True)],
            x=numbers,
            y=numbers,
            zmin=0,
            zmax=1,
            colorscale=_SHARES,
            showscale=at.first,
            colorbar={"title": {"text": "share of row", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
            customdata=[
                [[a, b, count] for b, count in zip(names, line, strict=True)]
                for a, line in zip(names, one.counts, strict=True)
            ],
            hovertemplate="%{customdata[0]} called %{customdata[1]}: %{customdata[2]} images, %{z:.1%}<extra></extra>",
            xgap=1 if len(names) <= _NAMED else 0,
            ygap=1 if len(names) <= _NAMED else 0,
            **at.trace,
        )
        ticks = {"tickvals": numbers, "ticktext": [_cut(name) for name in one.classes]}
        if len(names) > _NAMED:
            ticks = {"showticklabels": False, "tickvals": [], "ticktext": []}
        figure.update_xaxes(title="chosen", title_standoff=4, showgrid=False, zeroline=False, **ticks, **at.axes)
        figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, **ticks, **at.axes)
        if at.axes["col"] == 1:
            figure.update_yaxes(title="true", **at.axes)
        else:  # the same classes
            figure.update_yaxes(showticklabels=False, **at.axes)
    subtitle = f"n = {n:,} images, {len(of[0].classes)} classes"
    return _titled(figure, f"{_plain(task)}: confusions", subtitle, legend=False)


# ---- what figures are made of


class _Group(NamedTuple):
    """Bars that stand together."""

    name: str
    """Of HTML."""
    cells: Mapping[Key, Interval]
    floor: float | None = None
    alone: float | None = None
    """What the category alone gives."""
    control: Mapping[Key, float] = {}


class _Place(NamedTuple):
    """A panel: arguments for its traces and for its axes."""

    trace: dict[str, int]
    axes: dict[str, int]
    first: bool


def _bars(
    results: Results, keys: Sequence[Key], groups: Sequence[_Group], axis: str, *, dots: bool = False
) -> go.Figure:
    """Horizontal, so that names and whiskers have room on a narrow page too."""
    figure = go.Figure()
    height = 0.8 / max(len(keys), 1)
    colours, seen = _palette(results), set()
    for number, key in enumerate(keys):
        offset = (number - (len(keys) - 1) / 2) * height
        here = [(at + offset, cell) for at, group in enumerate(groups) if (cell := group.cells.get(key)) is not None]
        y, cells = [at for at, _ in here], [cell for _, cell in here]
        x = [cell.estimate for cell in cells]
        look: dict[str, Any] = {
            "name": _plain(label(*key)),
            "error_x": _whiskers(cells, colours[key]),
            "customdata": [_words(cell) for cell in cells],
            "hovertemplate": "%{x:.3f} %{customdata}<extra>%{fullData.name}</extra>",
        }
        if dots:
            figure.add_scatter(x=x, y=y, mode="markers", marker={"color": colours[key], "size": 9}, **look)
        else:
            # A colour that is used twice gets a pattern.
            again = colours[key] in seen
            seen.add(colours[key])
            # Pale, so that whiskers in the colour itself and grey lines are seen on it.
            marker = {"color": colours[key], "opacity": 0.5, "pattern": {"shape": "/" if again else ""}}
            figure.add_bar(x=x, y=y, width=height * 0.92, orientation="h", marker=marker, **look)
        control = [(group.control[key], at + offset) for at, group in enumerate(groups) if key in group.control]
        if control:
            figure.add_scatter(
                x=[value for value, _ in control],
                y=[at for _, at in control],
                mode="markers",
                name="control labels",
                legendgroup="control",
                showlegend=number == 0,
                marker={"symbol": "x-thin", "size": 7, "line": {"color": _NEUTRAL, "width": 1.5}},
                hovertemplate="control labels: %{x:.3f}<extra></extra>",
            )
    if any(group.floor for group in groups):
        # One line, broken between the groups.
        figure.add_scatter(
            x=[x for group in groups for x in (group.floor, group.floor, None)],
            y=[y for at in range(len(groups)) for y in (at - 0.45, at + 0.45, None)],
            mode="lines",
            name="floor",
            line={"color": _NEUTRAL, "width": 2.5},
            hovertemplate="floor: %{x:.3f}<extra></extra>",
        )
    alone = [(group.alone, at) for at, group in enumerate(groups) if group.alone is not None]
    if alone:
        figure.add_scatter(
            x=[value for value, _ in alone],
            y=[at for _, at in alone],
            mode="markers",
            name="category alone",
            marker={"symbol": "diamond-open", "size": 9, "color": _NEUTRAL, "line": {"width": 2}},
            hovertemplate="category alone: %{x:.3f}<extra></extra>",
        )
    figure.update_layout(barmode="overlay", height=200 + round(len(groups) * (26 + 15 * len(keys))))
    figure.update_xaxes(title=axis, zeroline=True, zerolinecolor=_NEUTRAL)
    names = {"tickvals": list(range(len(groups))), "ticktext": [group.name for group in groups]}
    figure.update_yaxes(range=[len(groups) - 0.45, -0.55], showgrid=False, zeroline=False, automargin=True, **names)
    return figure


def _forest(
    results: Results,
    suite: str,
    shown: Sequence[Comparison | Kept | SuiteGap | Ceiling],
    names: Sequence[str],
    colours: Sequence[str],
    title: str,
    axis: str,
) -> go.Figure | None:
    """One line a comparison, on an axis with 0 in its middle; filled where it holds."""
    if not shown:
        return None
    cells = [one.difference for one in shown]
    symbols = ["circle" if table.holds(one) else "circle-open" for one in shown]
    figure = go.Figure(
        go.Scatter(
            x=[cell.estimate for cell in cells],
            y=list(range(len(shown))),
            mode="markers",
            error_x=_whiskers(cells),
            marker={"size": 9, "color": colours, "symbol": symbols},
            customdata=[[_words(cell), _p(one)] for cell, one in zip(cells, shown, strict=True)],
            hovertemplate="%{x:+.3f} %{customdata[0]}, %{customdata[1]}<extra></extra>",
            showlegend=False,
        )
    )
    reach = max([1e-6, *(abs(value) for cell in cells for value in cell if value is not None)]) * 1.05
    figure.add_vline(x=0, line={"color": _NEUTRAL, "width": 1})
    figure.update_xaxes(title=axis, range=[-reach, reach], zeroline=False)
    ticks = {"tickvals": list(range(len(shown))), "ticktext": list(names)}
    figure.update_yaxes(range=[len(shown) - 0.5, -0.5], zeroline=False, automargin=True, **ticks)
    figure.update_layout(height=140 + 24 * len(shown))
    return _titled(figure, f"{_plain(suite)}: {title}", _sample(results, suite), legend=False)


def _p(one: Comparison | Kept | SuiteGap | Ceiling) -> str:
    if isinstance(one, Kept):
        return one.verdict
    return "not tested" if one.p_holm is None else f"p {one.p_holm:.2g} after Holm"


def _panels(titles: Sequence[str], height: int = 240) -> tuple[go.Figure, list[_Place]]:
    """Panels two by two."""
    across = min(2, len(titles))
    down = math.ceil(len(titles) / across)
    gap = {"horizontal_spacing": 0.14, "vertical_spacing": min(0.35, 95 / (height * down)) if down > 1 else 0}
    figure = make_subplots(down, across, subplot_titles=list(titles), **gap)
    figure.update_annotations(font_size=13)
    figure.update_layout(height=190 + height * down)
    places = []
    for number in range(len(titles)):
        at = {"row": number // across + 1, "col": number % across + 1}
        places.append(_Place(at, at, number == 0))
    return figure, places


def _titled(figure: go.Figure, title: str, subtitle: str, *, legend: bool = True) -> go.Figure:
    """With room for a legend of some lines below the axes."""
    return figure.update_layout(
        title={
            "text": title,
            "font": {"size": 16},
            "subtitle": {"text": subtitle, "font": {"size": 13}},
            "x": 0,
            "xanchor": "left",
            "y": 0.98,
            "yref": "container",
            "yanchor": "top",
        },
        margin={"l": 60, "r": 20, "t": 95, "b": 120 if legend else 50},
        legend={"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container", "yanchor": "bottom"},
        hoverlabel={"namelength": -1},
    )


def _palette(results: Results) -> dict[Key, str]:
    """Each representation's colour, the same in every figure; floors are grey."""
    keys = dict.fromkeys(_key(row) for row in results.rows)
    others = [key for key in keys if key[0] not in _COLOURS and not table.is_floor(key)]
    given = {key: _OTHERS[number % len(_OTHERS)] for number, key in enumerate(others)}
    return {key: _NEUTRAL if table.is_floor(key) else given.get(key) or _COLOURS[key[0]] for key in keys}


def _whiskers(cells: Sequence[Interval], colour: str = _NEUTRAL) -> dict[str, Any]:
    def reach(cell: Interval, end: float | None) -> float:
        return 0.0 if end is None or cell.estimate is None else abs(end - cell.estimate)

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(cell, cell.upper) for cell in cells],
        "arrayminus": [reach(cell, cell.lower) for cell in cells],
        "color": colour,
        "thickness": 1.5,
        "width": 3,
    }


def _words(cell: Interval) -> str:
    return "no interval" if cell.lower is None or cell.upper is None else f"[{cell.lower:.3f}, {cell.upper:.3f}]"


def _key(item: Any) -> Key:
    return item.representation, item.layer


def _of(rows: Sequence[Row], key: Key) -> Row | None:
    return next((row for row in rows if _key(row) == key), None)


def _classes(row: Row) -> str:
    return f", K {len(row.classes)}" if row.classes else ""


def _sample(results: Results, suite: str) -> str:
    return f"n = {table.sample(results, suite)}"


def _plain(text: str) -> str:
    """`text` so that plotly, which reads some HTML, shows it as it is. A quote would be shown as its entity."""
    return html.escape(" ".join(text.split()), quote=False)


def _tick(task: str, about: str) -> str:
    return _cut(task, 24) + _below(about)


def _below(about: str) -> str:
    """A second line of a tick; none for no text."""
    return f'<br><span style="font-size:11px;color:#8a8a8a">{about}</span>' if about else ""


def _cut(name: str, most: int = 14) -> str:
    return _plain(name if len(name) <= most else name[: most - 1] + "…")


def _clear(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
