"""Probe results as plotly figures: functions from `Results`, for the report, the dashboard and notebooks; `CAPTIONS`
say how to read them. Knows `Results` and plotly; not runs, solvers or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from htc_probe.probes.files.results import NOT_DEFINED, ClassScore, Interval, Results, Row, SuiteMean, is_defined
from htc_probe.probes.inputs.representations import WHOLE, Representation
from htc_probe.probes.show import parts, table
from htc_probe.probes.show.style import COLOURS, NEUTRAL, SHARES, Panel, across, escape, ribbon, transparent

CAPTIONS = {
    "scores": "Bars: scores on held-out images; 1 is perfect. Whiskers: 95% intervals over groups of images. Two that "
    "overlap may still differ, as all representations are scored on the same images (see the differences). Line across "
    "the bars: the floor, the score of a predictor that sees no features. Diamond: the best guess from the image's "
    "category alone. Cross: the same probe on random labels for categories; it shows how well the probe can memorise "
    "categories. Memory explains a score only where the diamond is high too.",
    "bits": "Bits an image that the probe tells of a label beyond how often labels occur, on held-out images "
    "(V-information). The unit is the same for all tasks; classes cannot give more bits than their labels have. Below "
    "0, the probe is more confident than it is right. Diamond: what the image's category alone tells.",
    "layers": "Line: z_voco at each layer, with its 95% interval; layer 0 is the embedding, the same for every image. "
    "Dotted: other representations. Dashed, grey: the floor. The best of many layers looks better than it is: choose a "
    "layer on other images than those that score it.",
    "learning": "Scores of probes trained on a part of the training images, with 95% intervals; the number of images "
    "is on a log scale. Where a curve still rises, more data would give a higher score.",
    "retention": "(score - floor) / (pooled V's score - floor). 1: everything that pooled V shows above its floor is "
    "kept; 0: nothing. Whiskers: Fieller's 95% intervals. Where pooled V is at its floor, there is no ratio.",
    "differences": "Differences on the same images, with 95% intervals (not corrected), in the colour of the other "
    "representation. Right of 0 the first is better. Filled dot: significant at 5% (Holm-corrected).",
    "added": "I(a; Y | b): bits an image that a probe of both tells beyond a probe of b alone. Left of 0, the wider "
    "probe learned less from the same images. Filled dot: significant at 5% (Holm-corrected).",
    "kept": "Score minus pooled V's score on the same images, with 95% intervals (not corrected). The band is the "
    "margin. Filled dot: decided (Holm-corrected): inside the margin (kept) or outside it (lost, gained). Open dot: "
    "undecided with this many images, or pooled V itself is not clearly above its floor by more than the margin.",
    "gaps": "Retention of the semantic suite minus retention of the detail suite, with 95% intervals (not corrected). "
    "Right of 0, more is lost of details than of semantics. Filled dot: significant at 5% (Holm-corrected).",
    "ceilings": "What a hidden layer on top of the linear probe adds to its score, on the same images, with 95% "
    "intervals (not corrected). It shows how much can be read, but not linearly. Filled dot: significant at 5% "
    "(Holm-corrected). At 0, the layer did not help on the training images, so the linear probe was taken.",
    "classes": "Recall of each class (the share of its images that are right), or average precision of each label, "
    "with 95% intervals over groups of images: wide for few images, missing where only one group has the class. Line: "
    "the floor, which is 1 for the most frequent class and 0 for the others.",
    "confusions": "Rows: the true class. Columns: the class that the probe predicts. Colour: the share of the row's "
    "images, so every row adds up to 1. The number of images is in the hover text.",
}

_LISTED = 40  # classes of one figure
_NAMED = 30  # classes of a confusion matrix whose names still fit


# ---- bars by task


def scores(results: Results, suite: str) -> go.Figure:
    """Every task's score, and the suite's mean, with floors, control labels and the category alone."""
    keys = table.columns(results, suite)
    groups = []
    for task, rows in table.tasks(results, suite).items():
        first = rows[0]
        cells = {table.key_of(row): Interval(row.estimate, row.lower, row.upper) for row in rows}
        control = {table.key_of(row): row.control for row in rows if row.control is not None}
        name = _tick(task, f"{first.metric}{_classes(first)}, n {first.n:,}")
        groups.append(parts.Group(name, cells, first.floor, _alone(results, first, "score"), control))
    if means := _means(results, suite):
        cells = {table.key_of(mean): Interval(mean.estimate, mean.lower, mean.upper) for mean in means}
        groups.append(parts.Group(f"<b>mean of {means[0].tasks}</b>", cells, means[0].floor))
    low = min([0.0, *(cell.lower or 0 for group in groups for key, cell in group.cells.items() if key in keys)])
    axis = {"title": "score", "range": [max(low * 1.05, -0.5), 1.02]}
    return parts.bars(results, keys, groups, f"{escape(suite)}: what can be read?", parts.sample(results, suite), axis)


def bits(results: Results, suite: str) -> go.Figure:
    """V-information by task and representation, and its mean over the suite."""
    groups = []
    for task, rows in table.tasks(results, suite).items():
        cells = {table.key_of(row): row.metrics["V-information"] for row in rows if "V-information" in row.metrics}
        name = _tick(task, f"n {rows[0].n:,}{_classes(rows[0])}")
        groups.append(parts.Group(name, cells, 0.0, _alone(results, rows[0], "bits")))
    if means := _means(results, suite):
        groups.append(
            parts.Group(f"<b>mean of {means[0].tasks}</b>", {table.key_of(mean): mean.bits for mean in means}, 0.0)
        )
    title, axis = f"{escape(suite)}: how many bits can be read?", {"title": "bits an image"}
    return parts.bars(results, table.columns(results, suite), groups, title, parts.sample(results, suite), axis)


def retention(results: Results, suite: str) -> go.Figure | None:
    """What share of pooled V's score over the floor each representation keeps; None without pooled V."""
    keys = [key for key in table.columns(results, suite) if key != WHOLE]
    lines: list[tuple[str, str, Sequence[Row | SuiteMean]]] = [
        (parts.short(task, 24), f"n {rows[0].n:,}", rows) for task, rows in table.tasks(results, suite).items()
    ]
    if means := _means(results, suite):
        lines.append((f"<b>mean of {means[0].tasks}</b>", "", means))
    lines = [(name, about, [row for row in rows if table.key_of(row) in keys]) for name, about, rows in lines]
    if all(row.retention is None for _, _, rows in lines for row in rows):
        return None
    groups = [
        parts.Group(
            name + parts.below(NOT_DEFINED if table.not_defined(rows) else about),
            {table.key_of(row): row.retention for row in rows if is_defined(row.retention)},
        )
        for name, about, rows in lines
    ]
    ends = [end for group in groups for cell in group.cells.values() for end in cell if end is not None]
    # A ratio to hardly anything would squeeze all others.
    span = [max(min([0.0, *ends]), -1) - 0.05, min(max([1.0, *ends]), 2) + 0.05]
    axis = {"title": "share of pooled V's score over the floor", "range": span}
    shapes = [across(x=value, line=parts.MIDDLE) for value in (0, 1)]
    title = f"{escape(suite)}: what share of pooled V is kept?"
    return parts.bars(results, keys, groups, title, parts.sample(results, suite), axis, dots=True, shapes=shapes)


def by_class(results: Results, task: str) -> go.Figure | None:
    """The score of every class or label, the most frequent first; None where the task has none."""
    classes: dict[str, list[ClassScore]] = {}
    for score in results.by_class:
        if score.task == task:
            classes.setdefault(score.name, []).append(score)
    if not classes:
        return None
    first = next(iter(classes.values()))[0]
    known = {table.key_of(score) for score in classes[first.name]}
    groups = [
        parts.Group(_tick(name, f"n {own[0].n:,}"), {table.key_of(score): score.score for score in own}, own[0].floor)
        for name, own in list(classes.items())[:_LISTED]
    ]
    more = f", the {_LISTED} most frequent of {len(classes)}" if len(classes) > _LISTED else ""
    return parts.bars(
        results,
        [key for key in table.columns(results, first.suite) if key in known],
        groups,
        f"{escape(task)}: {first.metric} by class{more}",
        parts.sample(results, first.suite),
        {"title": first.metric, "range": [-0.02, 1.02]},
        dots=True,
    )


# ---- curves, a panel a task


def layer_curves(results: Results, suite: str) -> go.Figure | None:
    """z_voco by layer, a panel a task, beside other representations; None where one layer was probed."""
    if len(table.layers(results, suite)) < 2:
        return None
    others = [key for key in table.columns(results, suite) if key[1] is None]
    colours = parts.palette(results)

    def drawn(panel: Panel, rows: Sequence[Row]) -> list[go.Scatter]:
        curve = sorted((row for row in rows if row.layer is not None), key=lambda row: row.layer or 0)
        x = [row.layer for row in curve]
        ends = [row.lower for row in curve], [row.upper for row in curve]
        band = ribbon(x, *ends, transparent(COLOURS["z_voco"], 0.2), **panel.trace)
        line = go.Scatter(
            x=x,
            y=[row.estimate for row in curve],
            mode="lines+markers",
            **parts.line("z_voco", panel, COLOURS["z_voco"]),
            marker={"size": 5},
            customdata=[[row.lower, row.upper] for row in curve],
            hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        )
        levels = {
            table.name_in(results, key): (row.estimate, colours[key], "dot")
            for key in others
            if (row := _row_of(rows, key))
        }
        levels["floor"] = (rows[0].floor, NEUTRAL, "dash")
        return [band, line, *(parts.level(name, [x[0], x[-1]], panel, *look) for name, look in levels.items())]

    title, axis = (
        f"{escape(suite)}: at which layers of z_voco can it be read?",
        {"title": {"text": "layer", "standoff": 4}},
    )
    by_task = table.tasks(results, suite)
    traces, layout = parts.panels(_heads(by_task), drawn, list(by_task.values()), lambda rows: (axis, {}))
    return parts.titled(traces, title, parts.sample(results, suite), **layout)


def learning_curves(results: Results, suite: str) -> go.Figure | None:
    """Scores against the number of training images, a panel a task; None where they were not measured."""
    keys = table.columns(results, suite)
    points = [point for point in results.curves if point.suite == suite and table.key_of(point) in keys]
    if not points:
        return None
    colours, by_task = parts.palette(results), table.tasks(results, suite)

    def drawn(panel: Panel, rows: Sequence[Row]) -> list[go.Scatter]:
        own = [point for point in points if point.task == rows[0].task]
        traces = []
        for key in keys:
            curve = sorted((point for point in own if table.key_of(point) == key), key=lambda point: point.images)
            x, y = [point.images for point in curve], [point.score.estimate for point in curve]
            look = {
                "mode": "lines+markers",
                "marker": {"size": 5},
                **parts.line(table.name_in(results, key), panel, colours[key]),
            }
            error = parts.whiskers([point.score for point in curve], colours[key])
            hover = "%{x:,} images: %{y:.3f}<extra></extra>"
            traces.append(go.Scatter(x=x, y=y, error_y=error, hovertemplate=hover, **look))
        images = [point.images for point in own]
        ends = [min(images), max(images)] if images else []
        if ends:
            traces.append(parts.level("floor", ends, panel, rows[0].floor, NEUTRAL, "dash", "floor: "))
        return traces

    def axes(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
        ticks = sorted({point.images for point in points if point.task == rows[0].task})
        names = {"tickvals": ticks, "ticktext": [f"{images:,}" for images in ticks], "minor": {"ticks": ""}}
        return {"type": "log", "title": {"text": "training images", "standoff": 4}, **names}, {}

    title = f"{escape(suite)}: how many images does a probe need?"
    traces, layout = parts.panels(_heads(by_task), drawn, list(by_task.values()), axes)
    return parts.titled(traces, title, f"scored on {parts.sample(results, suite)}", **layout)


def confusions(results: Results, task: str) -> go.Figure:
    """The confusion matrices of one task, one a representation."""
    (suite,) = {row.suite for row in results.rows if row.task == task} or {""}
    keys = table.columns(results, suite)
    matrices = [matrix for matrix in results.confusions if matrix.task == task]
    matrices = [matrix for matrix in matrices if table.key_of(matrix) in keys] or matrices
    names = [escape(name) for name in matrices[0].classes]
    numbers, few = list(range(len(names))), len(names) <= _NAMED
    bar = {"title": {"text": "share of row", "side": "right"}, "thickness": 12, "tickformat": ".0%"}
    look = {"zmin": 0, "zmax": 1, "colorscale": SHARES, "colorbar": bar, "xgap": int(few), "ygap": int(few)}
    look["hovertemplate"] = "%{customdata[0]} called %{customdata[1]}: %{customdata[2]} images, %{z:.1%}<extra></extra>"

    def drawn(panel: Panel, matrix: Any) -> list[go.Heatmap]:
        totals = [sum(line) for line in matrix.counts]
        return [
            go.Heatmap(
                z=[[count / max(all_, 1) for count in line] for line, all_ in zip(matrix.counts, totals, strict=True)],
                x=numbers,
                y=numbers,
                showscale=panel.number == 0,
                customdata=[
                    [[true, said, count] for said, count in zip(names, line, strict=True)]
                    for true, line in zip(names, matrix.counts, strict=True)
                ],
                **look,
                **panel.trace,
            )
        ]

    ticks: dict[str, Any] = {"tickvals": numbers, "ticktext": [parts.short(name) for name in matrices[0].classes]}
    if not few:
        ticks = {"showticklabels": False, "tickvals": [], "ticktext": []}
    x = {"title": {"text": "chosen", "standoff": 4}, "showgrid": False, "zeroline": False, **ticks}
    y = {"autorange": "reversed", "showgrid": False, "zeroline": False, **ticks}

    def axes(matrix: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        left = matrices.index(matrix) % 2 == 0  # the classes of the other are the same
        return x, y | ({"title": "true"} if left else {"showticklabels": False})

    heads = [escape(table.name_in(results, table.key_of(matrix))) for matrix in matrices]
    traces, layout = parts.panels(heads, drawn, matrices, axes, 380)
    n = sum(map(sum, matrices[-1].counts))
    subtitle = f"n = {n:,} images, {len(names)} classes"
    return parts.titled(traces, f"{escape(task)}: which classes are confused?", subtitle, legend=False, **layout)


# ---- differences, one a line


def differences(results: Results, suite: str) -> go.Figure | None:
    """z_voco's score minus that of every other representation."""
    found = table.against(results, suite)
    names = [
        f"{parts.short(one.task or 'mean', 24)}: {escape(table.name_of(results, one.a))} - "
        f"{escape(table.name_of(results, one.b))}"
        for one in found.values()
    ]
    colours = [parts.palette(results)[key] for _, key in found]
    title = "which representation holds more?"
    return parts.forest(results, suite, list(found.values()), names, colours, title, "difference of scores")


def compared(results: Results, suite: str, a: Representation, b: Representation) -> go.Figure | None:
    """a's score minus b's, by task and in the mean; None where they were not compared."""
    found = table.between(results, suite, a, b)
    names = [parts.short(one.task or "mean of the suite", 24) for one in found]
    colours = [parts.palette(results)[a]] * len(found)
    title = f"{escape(table.name_in(results, a))} minus {escape(table.name_in(results, b))}"
    return parts.forest(results, suite, found, names, colours, title, "difference of scores")


def kept(results: Results, suite: str) -> go.Figure | None:
    """What is kept of pooled V's scores, with the margin as a band; None without pooled V."""
    found = table.kept(results, suite)
    names = [
        f"{parts.short(one.task or 'mean', 24)}: {escape(table.name_in(results, key))}{parts.below(one.verdict)}"
        for (_, key), one in found.items()
    ]
    colours = [parts.palette(results)[key] for _, key in found]
    title, axis = "is the score of pooled V kept?", "score minus pooled V's"
    margin = next((one.margin for one in found.values()), 0.0)
    band = {"type": "rect", "x0": -margin, "x1": margin, "y0": 0, "y1": 1, "xref": "x", "yref": "y domain"}
    look = {"fillcolor": NEUTRAL, "opacity": 0.25, "line": {"width": 0}, "layer": "below"}
    return parts.forest(
        results, suite, list(found.values()), names, colours, title, axis, apart=36, shapes=[band | look]
    )


def gaps(results: Results) -> go.Figure | None:
    """Whether semantics are kept better than details, by representation; None where that is not defined."""
    found = {key: one for key, one in table.gaps(results).items() if one.p is not None}
    if not found:
        return None
    first = next(iter(found.values()))
    colours = [parts.palette(results)[key] for key in found]
    names = [escape(table.name_in(results, key)) for key in found]
    title = f"is more kept than of {first.second}?"
    return parts.forest(results, first.first, list(found.values()), names, colours, title, "difference of retentions")


def ceilings(results: Results, suite: str) -> go.Figure | None:
    """What a hidden layer adds to the linear probe; None where none was asked for."""
    found = table.ceilings(results, suite)
    names = [
        f"{parts.short(task, 24)}: {escape(table.name_in(results, key))}"
        f"{parts.below(f'{one.metric} {one.score.estimate or 0:.2f}')}"
        for (task, key), one in found.items()
    ]
    colours = [parts.palette(results)[key] for _, key in found]
    axis = "ceiling minus linear probe"
    title = "what does a hidden layer add?"
    return parts.forest(results, suite, list(found.values()), names, colours, title, axis, apart=36)


def bits_added(results: Results, suite: str) -> go.Figure | None:
    """What one representation says of the labels beyond another; None without joins."""
    shown = [one for one in results.comparisons if one.suite == suite and one.metric == "bits"]
    names = [
        f"{parts.short(one.task or 'mean', 24)}: {' given '.join(map(escape, table.added(results, one)))}"
        for one in shown
    ]
    title = "what does one representation add to another?"
    return parts.forest(results, suite, shown, names, [NEUTRAL] * len(shown), title, "bits an image")


def _row_of(rows: Sequence[Row], key: Representation) -> Row | None:
    return next((row for row in rows if table.key_of(row) == key), None)


def _means(results: Results, suite: str) -> list[SuiteMean]:
    return [mean for mean in results.suite_means if mean.suite == suite]


def _alone(results: Results, row: Row, measure: str) -> float | None:
    """What the category alone gives on a row's task."""
    own = (base for base in results.baselines if (base.suite, base.task) == (row.suite, row.task))
    return next((getattr(base, measure).estimate for base in own if base.name == "category alone"), None)


def _classes(row: Row) -> str:
    return f", K {len(row.classes)}" if row.classes else ""


def _heads(by_task: Mapping[str, Sequence[Row]]) -> list[str]:
    return [f"{escape(task)} ({rows[0].metric}, n {rows[0].n:,})" for task, rows in by_task.items()]


def _tick(task: str, about: str) -> str:
    return parts.short(task, 24) + parts.below(about)
