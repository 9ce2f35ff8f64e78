"""Charts of what can be read from two runs, by task and representation, this one minus the other.

`read` names representations as they are typed, such as `z_voco` or `z_voco@3`; `measure` is Score, Bits or Retention.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import plotly.graph_objects as go

from htc_probe.analysis import compare
from htc_probe.analysis.compare import Differences
from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.probes import results
from htc_probe.dashboards.charts.source import Nothing
from htc_probe.dashboards.charts.two import Two, two
from htc_probe.dashboards.figures.base import OF, escape
from htc_probe.extract.errors import UserError
from htc_probe.extract.words import counted
from htc_probe.probes.files.results import Confusion, CurvePoint, Interval, Results, Row, SuiteMean, label, of_label
from htc_probe.probes.inputs.representations import shown

_Item = TypeVar("_Item", CurvePoint, Confusion)


MEASURES = "Score", "Bits", "Retention"


def differences(
    run: Path | str, other: Path | str, *, suite: str, read: Sequence[str], measure: str = "Score"
) -> go.Figure:
    """Differences of a suite's tasks and of their mean, by the representations they are `read` from."""
    both = read_of(two(run, other), measure)
    own = {(probe.mine.task, probe.source): (probe, line) for probe, line in both.lines if probe.mine.suite == suite}
    tasks = list(dict.fromkeys(task for task, _ in own))
    if not tasks:
        raise Nothing(f"the runs share no probe of the suite {suite} with this measure")
    series, labels = {}, []
    for source in read:
        parts = [own[task, source][1] if (task, source) in own else compare.NONE for task in tasks]
        known = [own[task, source][0] for task in tasks if (task, source) in own]
        mean = _suite_mean(both, suite, source, known)
        series[shown(source)] = compare.joined([*parts, compare.NONE if mean is None else mean])
    for task in tasks:
        probe = next(probe for (name, _), (probe, _) in own.items() if name == task)
        floors = [f"{value:.2f}" for value in both.floors(probe)]
        floor = floors[0] if floors[0] == floors[1] else " / ".join(floors)
        labels.append(f"{task} ({both.metric(probe)}, floor {floor})")
    scored, unit = both.scored, measure.lower()
    counts = {int(scored[line.key].asked.sum()) if line.key in scored else line.mine.n for line, _ in own.values()}
    images = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    paired = all(line.paired for _, line in own.values())
    subtitle = f"{unit} · {images} images, {'paired' if paired else 'taken as independent'}"
    words = both.two.words(f"What can be read: {suite}", subtitle, unit)
    colours = {shown(source): OF[source] for source in read if source in OF}
    labels.append(f"mean of {counted(len(tasks), 'task')}")
    return figures.differences_by_name(series, labels, colours=colours, **words)


def layers(run: Path | str, other: Path | str, *, measure: str = "Score") -> go.Figure:
    """Differences of all tasks over the layers of z_voco."""
    both = read_of(two(run, other), measure)
    lines = both.lines
    probed = sorted({probe.mine.layer for probe, _ in lines if probe.mine.layer is not None})
    if len(probed) < 2:
        raise Nothing("the runs share probes of one layer of z_voco, or none")
    cells = {(probe.mine.task, probe.mine.layer): line for probe, line in lines if probe.mine.layer is not None}
    tasks = list(dict.fromkeys(task for task, _ in cells))
    by_layer = [[cells.get((task, layer), compare.NONE) for task in tasks] for layer in probed]
    grid = compare.joined([compare.joined(line) for line in by_layer])
    unit, columns = measure.lower(), [str(layer) for layer in probed]
    words = both.two.words("At which layers do the runs differ?", f"{unit} · every task of both runs", unit)
    return figures.difference_heatmap(grid, columns=columns, rows=tasks, axes=("task", "layer"), **words)


def task_layers(run: Path | str, other: Path | str, *, task: str, read: str, measure: str = "Score") -> go.Figure:
    """One task over the layers, in both runs."""
    both = read_of(two(run, other), measure)
    probe = both.probe(task, read)
    same = (task, probe.mine.representation)
    own = [(line.mine.layer, value) for line, value in both.lines if (line.mine.task, line.mine.representation) == same]
    over = {layer: value for layer, value in own if layer is not None}
    if len(over) < 2:
        raise Nothing(f"{read} has no layers to compare")
    unit, axis = measure.lower(), f"layer of {probe.mine.representation}"
    words = both.two.words(f"{escape(task)}, over the layers", f"{unit} · {probe.mine.n:,} images", unit)
    values = compare.joined([over[layer] for layer in sorted(over)])
    return figures.difference_curve(values, sorted(over), axis=axis, **words)


def learning(run: Path | str, other: Path | str, *, task: str, read: str, measure: str = "Score") -> go.Figure:
    """The learning curves of one probe in both runs."""
    both = read_of(two(run, other), measure)
    probe = both.probe(task, read)
    mine, theirs = (
        {point.images: point for point in _like(results.curves, row)}
        for results, row in zip(both.runs, (probe.mine, probe.theirs), strict=True)
    )
    counts = sorted(mine.keys() & theirs.keys())
    bits = measure == "Bits"
    pairs = {
        n: _estimates(*((points[n].bits if bits else points[n].score) for points in (mine, theirs))) for n in counts
    }
    known = {n: value for n, value in pairs.items() if value is not None}
    if len(known) < 2:
        raise Nothing("the runs have no learning curves of this probe")
    title, unit = f"{escape(task)}: the learning curve", "bits" if bits else "score"
    subtitle = f"read from {escape(both.name(probe.source))} · {probe.mine.metric} · taken as independent"
    words, values = both.two.words(title, subtitle, unit), compare.joined(list(known.values()))
    return figures.difference_curve(values, list(known), axis="training images", **words)


def confusion(run: Path | str, other: Path | str, *, task: str, read: str) -> go.Figure:
    """Which classes one probe takes for which, in both runs."""
    both = read_of(two(run, other), "Score")
    counts, classes = confusions(both, both.probe(task, read))
    shares = [compare.shares(table) * 100 for table in counts]
    title = f"{escape(task)}: which classes are confused?"
    images = f"{counts[0].sum():,} and {counts[1].sum():,} held-out images"
    return figures.two_maps(
        *shares,
        **both.two.words(title, f"% of the images of each true class · {images}", "%"),
        labels=(classes, classes),
        axes=("true class", "chosen class"),
        limit=100,
        marked=compare.of_shares(counts[0], counts[1]).marked,
    )


def confusions(read: "Read", probe: "Probe") -> tuple[list[np.ndarray], Sequence[str]]:
    """Counts of both runs by true and chosen class, and the classes. Raises Nothing where the runs differ in them."""
    mine, theirs = (
        next(iter(_like(results.confusions, row)), None)
        for results, row in zip(read.runs, (probe.mine, probe.theirs), strict=True)
    )
    if mine is None or theirs is None or mine.classes != theirs.classes:
        raise Nothing("the runs have no confusion matrices of the same classes")
    return [np.array(found.counts) for found in (mine, theirs)], mine.classes


def read_of(both: Two, measure: str) -> "Read":
    """What the probes that both runs share read of each. Raises Nothing where they share none."""
    if measure not in MEASURES:
        raise UserError(f"measure={measure!r} is not known; expected one of {', '.join(MEASURES)}")
    mine, theirs = results(both.one), results(both.other)
    probes, left_out = _matched(mine, theirs)
    if not probes:
        raise Nothing("The two runs have no probe of the same task and representation.")
    return Read(both, (mine, theirs), probes, _scored(both, probes), measure, left_out)


class Probe(NamedTuple):
    """One question to both runs."""

    mine: Row
    theirs: Row
    source: str
    """Representation; with its layer, unless that is the last."""

    @property
    def key(self) -> compare.ProbeKey:
        return self.mine.task, self.mine.representation, self.mine.layer


class Read(NamedTuple):
    """What the probes that both runs share read of each, in the measure that is looked at."""

    two: Two
    runs: tuple[Results, Results]
    probes: list[Probe]
    scored: Mapping[compare.ProbeKey, compare.Scored]
    """Of the images of both, where it was kept what the probes said of each."""
    measure: str
    left_out: Mapping[str, Sequence[str]]
    """Tasks that are not probed alike in both, by representation."""

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
            return compare.of_images(own, others, data.pairs(self.two.one.key, self.two.other.key).groups)
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

    def probe(self, task: str, source: str) -> Probe:
        """Raises UserError where the runs share none."""
        for probe in self.probes:
            if probe.mine.task == task and source in (probe.source, self.name(probe.source)):
                return probe
        known = ", ".join(dict.fromkeys(self.name(probe.source) for probe in self.probes if probe.mine.task == task))
        raise UserError(f"the runs share no probe of {task} from {source}; expected one of {known or 'other tasks'}")

    def floors(self, probe: Probe) -> tuple[float, float]:
        if self.measure != "Score":
            return 0.0, 0.0
        images = self.scored.get(probe.key)
        return (probe.mine.floor, probe.theirs.floor) if images is None else (images.floor, images.floor)


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
    return data.paired_probes(two.one.key, two.other.key, data.key_of(paths[0]), data.key_of(paths[1]), pairs)


def _estimates(mine: Interval | None, theirs: Interval | None) -> Differences | None:
    """Taken as independent; None where one has no interval."""
    if mine is None or theirs is None or None in mine or None in theirs:
        return None
    return compare.of_estimates(mine, theirs)


def _suite_mean(read: Read, suite: str, source: str, probes: Sequence[Probe]) -> Differences | None:
    """Each task counted once; paired where all of them are."""
    measure, scored, two = read.measure, read.scored, read.two
    if probes and measure != "Retention" and all(probe.key in scored for probe in probes):
        pairs = [scored[probe.key].score if measure == "Score" else scored[probe.key].bits for probe in probes]
        own, others = (compare.mean_of([pair[side] for pair in pairs]) for side in (0, 1))
        return compare.of_images(own, others, data.pairs(two.one.key, two.other.key).groups)
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


def _like(found: Sequence[_Item], row: Row) -> list[_Item]:
    """Those of the same task, representation and layer."""
    key = row.task, row.representation, row.layer
    return [one for one in found if (one.task, one.representation, one.layer) == key]
