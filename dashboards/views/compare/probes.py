"""What can be read from two runs, by task and representation. Lays out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import streamlit as st

from htc_probe.analysis import compare
from htc_probe.analysis.compare import Differences
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.figures.base import OF, escape
from htc_probe.dashboards.parts import controls as ui
from htc_probe.dashboards.parts import gallery
from htc_probe.dashboards.parts.chart import draw, made
from htc_probe.dashboards.views.compare.two import Two, columns_of, number
from htc_probe.dashboards.views.view import scores
from htc_probe.probes.files.results import (
    NOT_DEFINED,
    Confusion,
    CurvePoint,
    Interval,
    Results,
    Row,
    SuiteMean,
    label,
    of_label,
)
from htc_probe.probes.inputs.representations import shown
from htc_probe.probes.show.table import not_defined

_SHOWN = 24
"""Images of a kind on the page."""
_Item = TypeVar("_Item", CurvePoint, Confusion)


class Probe(NamedTuple):
    """One question to both runs."""

    mine: Row
    theirs: Row
    source: str
    """Representation; with its layer, unless that is the last."""

    @property
    def key(self) -> compare.ProbeKey:
        return self.mine.task, self.mine.representation, self.mine.layer


class _Read(NamedTuple):
    """What the probes that both runs share read of each, in the measure that is looked at."""

    two: Two
    runs: tuple[Results, Results]
    probes: list[Probe]
    scored: Mapping[compare.ProbeKey, compare.Scored]
    """Of the images of both, where it was kept what the probes said of each."""
    measure: str

    @property
    def lines(self) -> list[tuple[Probe, Differences]]:
        """Those whose difference is known."""
        return [(probe, line) for probe in self.probes if (line := self.difference(probe)) is not None]

    def difference(self, probe: Probe) -> Differences | None:
        images, rows = self.scored.get(probe.key), (probe.mine, probe.theirs)
        if self.measure == "Retention":
            return _estimates(*(row.retention for row in rows))
        if images is not None:
            own, others = images.score if self.measure == "Score" else images.bits
            return compare.of_images(own, others, data.pairs(self.two.view.key, self.two.key).groups)
        if self.measure == "Score":
            return _estimates(*(Interval(row.estimate, row.lower, row.upper) for row in rows))
        return _estimates(*(row.metrics.get("V-information") for row in rows))

    def metric(self, probe: Probe) -> str:
        if self.measure != "Score":
            return {"Bits": "bits an image", "Retention": "part of pooled V"}[self.measure]
        of_labels = probe.mine.kind == "multilabel" and probe.key in self.scored
        return "accuracy of labels" if of_labels else probe.mine.metric

    def name(self, source: str) -> str:
        """By which a person reads of a source of this run."""
        return shown(*of_label(source), self.two.headers[0].shape.layers)

    def floors(self, probe: Probe) -> tuple[float, float]:
        if self.measure != "Score":
            return 0.0, 0.0
        images = self.scored.get(probe.key)
        return (probe.mine.floor, probe.theirs.floor) if images is None else (images.floor, images.floor)


def probes(two: Two) -> None:
    mine, theirs = (scores(path, header) for path, header in zip(two.paths, two.headers, strict=True))
    if mine is None or theirs is None:
        return
    probes, left_out = _matched(mine, theirs)
    if not probes:
        st.info("The two runs have no probe of the same task and representation.")
        return
    final = [source for source in dict.fromkeys(probe.source for probe in probes) if "@" not in source]
    left, right = ui.side_by_side(2, "compare_read")
    if set(st.session_state.get("compare_sources", [])) - set(final):
        st.session_state["compare_sources"] = final[:3]
    chosen = (
        left.multiselect("Read from", final, default=final[:3], key="compare_sources", format_func=shown) or final[:3]
    )
    measure = right.segmented_control(
        "Measure",
        ["Score", "Bits", "Retention"],
        key="versus",
        default="Score",
        required=True,
        bind="query-params",
        help="Score: top-1, accuracy of labels, R2. Bits: V-information, what the probe tells of a label beyond how "
        "often labels occur. Retention: the share of pooled V's score above the floor.",
    )
    read = _Read(two, (mine, theirs), probes, _scored(two, probes), measure)
    lines = read.lines
    for suite in dict.fromkeys(probe.mine.suite for probe in probes):
        _forest(read, suite, chosen, lines)
    _how_paired(read, left_out)
    _numbers(read, lines)
    _layers(read, lines)
    _one_probe(read, lines)


def _matched(own: Results, others: Results) -> tuple[list[Probe], dict[str, list[str]]]:
    """Probes of the same task, representation, metric and classes; and by representation the other tasks. The last
    layers of two runs correspond; other layers do where the runs have as many.
    """

    def sources(results: Results) -> dict[tuple[str, str, str], Row]:
        last = results.run.get("last_layer")
        return {
            (row.suite, row.task, label(row.representation, None if row.layer == last else row.layer)): row
            for row in results.rows
        }

    mine, theirs = sources(own), sources(others)
    deep = own.run.get("last_layer") == others.run.get("last_layer")
    probes = []
    left_out: dict[str, list[str]] = {}
    for (suite, task, source), row in mine.items():
        beside = theirs.get((suite, task, source))
        question = row.metric, row.classes
        if beside is None or ("@" in source and not deep) or question != (beside.metric, beside.classes):
            left_out.setdefault(source, []).append(task)
        else:
            probes.append(Probe(row, beside, source))
    return probes, left_out


def _scored(two: Two, probes: Sequence[Probe]) -> dict[compare.ProbeKey, compare.Scored]:
    """What both runs' probes said of each image they share, as far as it was kept."""
    paths = [data.said_beside(path) for path in two.paths]
    if paths[0] is None or paths[1] is None:
        return {}
    pairs = tuple((probe.key, (probe.theirs.task, probe.theirs.representation, probe.theirs.layer)) for probe in probes)
    return data.paired_probes(two.view.key, two.key, data.key_of(paths[0]), data.key_of(paths[1]), pairs)


def _estimates(mine: Interval | None, theirs: Interval | None) -> Differences | None:
    """Taken as independent; None where one has no interval."""
    if mine is None or theirs is None or None in mine or None in theirs:
        return None
    return compare.of_estimates(mine, theirs)


def _forest(read: _Read, suite: str, chosen: Sequence[str], lines: Sequence[tuple[Probe, Differences]]) -> None:
    """Differences of a suite's tasks and of their mean, by representation."""
    own = {(probe.mine.task, probe.source): (probe, line) for probe, line in lines if probe.mine.suite == suite}
    tasks = list(dict.fromkeys(task for task, _ in own))
    if not tasks:
        return
    series, labels = {}, []
    for source in chosen:
        parts = [own[task, source][1] if (task, source) in own else compare.NONE for task in tasks]
        known = [own[task, source][0] for task in tasks if (task, source) in own]
        mean = _suite_mean(read, suite, source, known)
        series[shown(source)] = compare.joined([*parts, compare.NONE if mean is None else mean])
    for task in tasks:
        probe = next(probe for (name, _), (probe, _) in own.items() if name == task)
        floors = [f"{value:.2f}" for value in read.floors(probe)]
        floor = floors[0] if floors[0] == floors[1] else " / ".join(floors)
        labels.append(f"{task} ({read.metric(probe)}, floor {floor})")
    scored, measure = read.scored, read.measure.lower()
    counts = {int(scored[line.key].asked.sum()) if line.key in scored else line.mine.n for line, _ in own.values()}
    images = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    paired = all(line.paired for _, line in own.values())
    subtitle = f"{measure} · {images} images, {'paired' if paired else 'taken as independent'}"
    words = read.two.words(f"What can be read: {suite}", subtitle, measure)
    colours = {shown(source): OF[source] for source in chosen if source in OF}
    labels.append(f"mean of {len(tasks)} tasks")
    draw(made(figures.differences_by_name, series, labels, colours=colours, **words), f"compare_{suite}")


def _suite_mean(read: _Read, suite: str, source: str, probes: Sequence[Probe]) -> Differences | None:
    """Each task counted once; paired where all of them are."""
    measure, scored, two = read.measure, read.scored, read.two
    if probes and measure != "Retention" and all(probe.key in scored for probe in probes):
        pairs = [scored[probe.key].score if measure == "Score" else scored[probe.key].bits for probe in probes]
        own, others = (compare.mean_of([pair[side] for pair in pairs]) for side in (0, 1))
        return compare.of_images(own, others, data.pairs(two.view.key, two.key).groups)
    mine, theirs = (_mean(results, suite, source) for results in read.runs)
    if mine is None or theirs is None or mine.tasks != theirs.tasks:
        return None
    if measure == "Score":
        return _estimates(*(Interval(mean.estimate, mean.lower, mean.upper) for mean in (mine, theirs)))
    return _estimates(*(mean.bits if measure == "Bits" else mean.retention for mean in (mine, theirs)))


def _mean(results: Results, suite: str, source: str) -> SuiteMean | None:
    layers = None, results.run.get("last_layer")
    own = (mean for mean in results.suite_means if (mean.suite, mean.representation) == (suite, source))
    return next((mean for mean in own if mean.layer in layers), None)


def _how_paired(read: _Read, left_out: Mapping[str, Sequence[str]]) -> None:
    two = read.two
    ui.how_to_read(
        "Right of 0, more can be read from this run. Filled dot: significant at 5 % (Holm-corrected over the dots of "
        "the figure). Bars: 95 % intervals over groups of images, given the probes. The floor is the score of a "
        "predictor that sees no features."
    )
    if read.measure == "Retention":
        ui.how_to_read("Retention is a ratio within a run. The two are taken as independent, so intervals are wide.")
        if tasks := not_defined([row for probe in read.probes for row in (probe.mine, probe.theirs)]):
            st.caption(
                f"Left out, as retention is {ui.plain(NOT_DEFINED)} in one of the runs: {ui.plain(', '.join(tasks))}."
            )
    elif read.scored:
        ui.how_to_read(
            "Predictions of both runs' probes are compared image by image, on the images that both have. For lists of "
            "labels the score is the share that is right (not mAP); R2 uses the variance of these images' labels."
        )
    else:
        for path in two.paths:
            if data.said_beside(path) is None and two.pairs.paired:
                ui.fill(
                    f"{ui.plain(path.stem)} has no predictions of the probes for single images, so the two scores are "
                    "taken as independent, with wider intervals.",
                    "htc-probe semantic detail",
                    path,
                )
    if two.view.selection.chosen:
        st.caption("Probe scores use all images, not only the selected ones.")
    if left_out:
        parts = [
            f"{read.name(source)} ({tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'})"
            for source, tasks in left_out.items()
        ]
        st.caption(f"Left out, as the probes of the two runs differ: {ui.plain(', '.join(parts))}.")


def _numbers(read: _Read, lines: Sequence[tuple[Probe, Differences]]) -> None:
    floors = [read.floors(probe) for probe, _ in lines]
    columns = {
        "suite": [probe.mine.suite for probe, _ in lines],
        "task": [probe.mine.task for probe, _ in lines],
        "read from": [read.name(probe.source) for probe, _ in lines],
        "measure": [read.metric(probe) for probe, _ in lines],
        **columns_of([line for _, line in lines], read.two.names),
    }
    for side, name in enumerate(read.two.names):
        columns[f"floor of {name}"] = [number(both[side]) for both in floors]
    columns["compared"] = ["paired" if line.paired else "as independent" for _, line in lines]
    with st.expander("All numbers"):
        ui.table(columns, "compare_numbers")


def _layers(read: _Read, lines: Sequence[tuple[Probe, Differences]]) -> None:
    """Tasks over the layers of z_voco, where more than one was probed."""
    layers = sorted({probe.mine.layer for probe, _ in lines if probe.mine.layer is not None})
    if len(layers) < 2:
        return
    cells = {(probe.mine.task, probe.mine.layer): line for probe, line in lines if probe.mine.layer is not None}
    tasks = list(dict.fromkeys(task for task, _ in cells))
    by_layer = [[cells.get((task, layer), compare.NONE) for task in tasks] for layer in layers]
    grid = compare.joined([compare.joined(line) for line in by_layer])
    measure, columns = read.measure.lower(), [str(layer) for layer in layers]
    words = read.two.words("At which layers do the runs differ?", f"{measure} · every task of both runs", measure)
    figure = made(figures.difference_heatmap, grid, columns=columns, rows=tasks, axes=("task", "layer"), **words)
    draw(figure, "compare_layers")
    ui.how_to_read(
        "Layer 0 is the embedding, the same for every image. Dot: significant at 5 % (Holm-corrected, "
        f"{grid.p.size:,} cells)."
    )


def _one_probe(read: _Read, lines: Sequence[tuple[Probe, Differences]]) -> None:
    """One task and representation: layers, training images, confusions, and images that tell the runs apart."""
    st.header("How do the runs differ in one probe?")
    left, right = st.columns(2)
    tasks = list(dict.fromkeys(probe.mine.task for probe in read.probes))
    task = ui.select("Task", tasks, "compare_task", place=left)
    sources = sorted(
        (probe.source for probe in read.probes if probe.mine.task == task), key=lambda source: "@" in source
    )
    source = ui.select("Read from", sources, "compare_source", place=right, format_func=read.name)
    probe = next(probe for probe in read.probes if (probe.mine.task, probe.source) == (task, source))
    same = (task, probe.mine.representation)
    own = [(line.mine.layer, value) for line, value in lines if (line.mine.task, line.mine.representation) == same]
    over = {layer: value for layer, value in own if layer is not None}
    layers = sorted(over)
    if len(layers) > 1:
        measure, axis = read.measure.lower(), f"layer of {probe.mine.representation}"
        words = read.two.words(f"{escape(task)}, over the layers", f"{measure} · {probe.mine.n:,} images", measure)
        values = compare.joined([over[layer] for layer in layers])
        draw(made(figures.difference_curve, values, layers, axis=axis, **words), "compare_task_layers")
        ui.how_to_read("Left: both runs. Right: their difference, with a 95 % interval for each layer by itself.")
    _learning(read, probe)
    _confusion(read, probe)
    _telling(read.two, probe, read.scored.get(probe.key))


def _like(found: Sequence[_Item], row: Row) -> list[_Item]:
    """Those of the same task, representation and layer."""
    key = row.task, row.representation, row.layer
    return [one for one in found if (one.task, one.representation, one.layer) == key]


def _learning(read: _Read, probe: Probe) -> None:
    mine, theirs = (
        {point.images: point for point in _like(results.curves, row)}
        for results, row in zip(read.runs, (probe.mine, probe.theirs), strict=True)
    )
    counts = sorted(mine.keys() & theirs.keys())
    bits = read.measure == "Bits"
    pairs = {
        n: _estimates(*((points[n].bits if bits else points[n].score) for points in (mine, theirs))) for n in counts
    }
    known = {n: value for n, value in pairs.items() if value is not None}
    if len(known) > 1:
        title, unit = f"{escape(probe.mine.task)}: the learning curve", "bits" if bits else "score"
        subtitle = f"read from {escape(read.name(probe.source))} · {probe.mine.metric} · taken as independent"
        words, values = read.two.words(title, subtitle, unit), compare.joined(list(known.values()))
        draw(made(figures.difference_curve, values, list(known), axis="training images", **words), "compare_learning")
        ui.how_to_read("How many images a probe needs to learn the task. Where the curves differ, one run needs fewer.")


def _confusion(read: _Read, probe: Probe) -> None:
    mine, theirs = (
        next(iter(_like(results.confusions, row)), None)
        for results, row in zip(read.runs, (probe.mine, probe.theirs), strict=True)
    )
    if mine is None or theirs is None or mine.classes != theirs.classes:
        return
    counts = [np.array(confusion.counts) for confusion in (mine, theirs)]
    marked = compare.of_shares(counts[0], counts[1]).marked
    shares = [compare.shares(table) * 100 for table in counts]
    title = f"{escape(probe.mine.task)}: which classes are confused?"
    images = f"{counts[0].sum():,} and {counts[1].sum():,} held-out images"
    figure = made(
        figures.two_maps,
        *shares,
        **read.two.words(title, f"% of the images of each true class · {images}", "%"),
        labels=(mine.classes, mine.classes),
        axes=("true class", "chosen class"),
        limit=100,
        marked=marked,
    )
    draw(figure, "compare_confusion")
    ui.how_to_read(
        "Each row sums to 100 %. Difference: orange on the diagonal is what this run gets right more often. Dot: "
        f"significant at 5 % (Holm-corrected, {marked.size:,} cells; the two runs are taken as independent)."
    )


def _telling(two: Two, probe: Probe, scored: compare.Scored | None) -> None:
    """Images by which of the runs gets them right, to look at."""
    if scored is None:
        return
    known = scored.asked
    mine, theirs = (known & ~wrong for wrong in scored.wrong)
    kinds = {
        f"only {two.names[0]}": mine & ~theirs,
        f"only {two.names[1]}": theirs & ~mine,
        "both": mine & theirs,
        "neither": known & ~mine & ~theirs,
    }
    by_kind = {"number": "within the standard deviation of the labels", "circular": "nearer than the floor"}
    words = by_kind.get(probe.mine.kind, "right")
    st.markdown(f"**In which images do the runs differ?** Which probe is {words}:")
    names = list(kinds)
    kind = st.segmented_control(
        "Which probe is right",
        range(4),
        default=0,
        required=True,
        key="compare_which",
        label_visibility="collapsed",
        format_func=lambda kind: ui.plain(f"{names[kind]} ({int(kinds[names[kind]].sum()):,})"),
    )
    places = np.flatnonzero(kinds[names[kind]])
    if not len(places):
        st.caption("There is no such image.")
        return
    gain = (scored.bits[0] - scored.bits[1])[places]
    order = np.argsort(np.abs(gain))[::-1]
    rows = data.pairs(two.view.key, two.key).rows[places[order]].tolist()
    ids, sources = two.view.header.ids, data.pictures(two.view.key, rows[:_SHOWN])
    pictures = []
    for row, source, bits in zip(rows, sources, gain[order], strict=False):
        lines, current = (f"{row + 1:,}", f"{bits:+.1f} bits"), row == two.view.selection.image
        pictures.append(gallery.Picture(row, source, f"{row + 1:,} · {ids[row]}", lines, current))
    gallery.show(pictures, "compare_gallery", ui.go_to_image)
    ui.select_button(rows, "compare_select")
    ui.how_to_read(
        f"The {len(pictures)} images with the largest differences: how many more bits this run's probe gives to the "
        "true label (below 0: the other run's probe). Click one to show it on all pages."
    )
