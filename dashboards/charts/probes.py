"""Charts of what linear probes read, and of what they said of single images, as `htc-probe` left it beside the run.

A representation is named as tables name it, such as `pooled V` or `z_voco (layer 4 of 4)`, or as it is typed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from htc_probe.dashboards import data, figures
from htc_probe.dashboards.charts.source import Source, some, source
from htc_probe.extract.errors import UserError
from htc_probe.probes.files.results import Results, label
from htc_probe.probes.inputs.representations import Representation
from htc_probe.probes.show import answers
from htc_probe.probes.show import figures as of_probes
from htc_probe.probes.show.answers import Answers
from htc_probe.probes.show.style import escape
from htc_probe.probes.show.table import key_of, name_in, suites

KINDS: dict[str, Callable[[Results, str], go.Figure | None]] = {
    "scores": of_probes.scores,
    "bits": of_probes.bits,
    "retention": of_probes.retention,
    "kept": of_probes.kept,
    "ceilings": of_probes.ceilings,
}


def scores(run: Path | str, *, suite: str, show: str = "scores") -> go.Figure:
    """What is read of each task of a suite from each representation: `scores`, `bits`, `retention`, what is `kept`
    within the margin, or `ceilings`, what a hidden layer adds.
    """
    if show not in KINDS:
        raise UserError(f"show={show!r} is not a figure of probes; expected one of {', '.join(KINDS)}")
    of = source(run)
    return some(KINDS[show](*_of_suite(of, suite)), f"{show} of the suite {suite} were not measured on {of.path.name}")


def classes(run: Path | str, *, task: str) -> go.Figure:
    """The score of every class of a task."""
    of = source(run)
    return some(of_probes.by_class(results(of), task), f"the probes of {of.path.name} have no classes of {task}")


def gaps(run: Path | str) -> go.Figure:
    """The retention of the semantic suite minus that of the detail suite."""
    of = source(run)
    return some(of_probes.gaps(results(of)), f"retention was not measured of two suites on {of.path.name}")


def compared(run: Path | str, *, suite: str, first: str, second: str) -> go.Figure:
    """The score of the first representation minus that of the second, on the same images."""
    found, _ = _of_suite(source(run), suite)
    a, b = (representation(found, name) for name in (first, second))
    return some(of_probes.compared(found, suite, a, b), f"{first} and {second} were not compared")


def layers(run: Path | str, *, suite: str) -> go.Figure:
    """Scores of z_voco by layer."""
    of = source(run)
    return some(of_probes.layer_curves(*_of_suite(of, suite)), f"only one layer of z_voco was probed on {of.path.name}")


def learning(run: Path | str, *, suite: str) -> go.Figure:
    """Scores by the number of training images."""
    of = source(run)
    found = of_probes.learning_curves(*_of_suite(of, suite))
    return some(found, f"{of.path.name} has no learning curves; htc-probe --curve computes them")


def counts(run: Path | str, *, task: str, read: str) -> go.Figure:
    """Held-out images by true and chosen class, as the scores hold them: all of them."""
    found = results(source(run))
    key = representation(found, read)
    alike = (one for one in found.confusions if (one.task, one.representation, one.layer) == (task, *key))
    matrix = some(next(alike, None), f"there is no confusion matrix of {task} from {read}")
    counts_KK = np.array(matrix.counts)
    subtitle = f"held-out images by true class and chosen class · n = {counts_KK.sum():,}"
    title = f"{escape(task)} from {escape(name_in(found, key))}"
    return figures.confusion(counts_KK, matrix.classes, title=title, subtitle=subtitle)


def confusion(
    run: Path | str,
    *,
    task: str,
    read: str,
    label: str | None = None,
    images: Sequence[int | str] = (),
    true: str | None = None,
    said: str | None = None,
) -> go.Figure:
    """Held-out images by what is true and what the probe said; label: of a task with several. images: those that are
    counted, all where there are none. true, said: the cell that is outlined.
    """
    of = source(run)
    told = told_of(of, task, read, label, images)
    known = (true, said) if true in told.names and said in told.names else None
    mark = None if known is None else (told.names.index(str(true)), told.names.index(str(said)))
    right = float((told.true == told.said).mean()) if len(told.rows) else float("nan")
    title, sample = _titles(of, task, read, label, images, told)
    subtitle = f"{sample} · {right:.1%} right"
    return figures.confusion(told.counts(), told.names, title=title, subtitle=subtitle, mark=mark)


def values(
    run: Path | str, *, task: str, read: str, images: Sequence[int | str] = (), image: int | str | None = None
) -> go.Figure:
    """A number as the probe said it over what is true, a point a held-out image; `image` has a ring."""
    of = source(run)
    told = told_of(of, task, read, None, images)
    if told.sure is not None:
        raise UserError(f"{task} is not a number; charts.probes.confusion shows it")
    unit = next((row.unit for row in results(of).rows if row.task == task), "")
    error = f"{np.abs(told.error).mean():.3g} {escape(unit)}".strip() if len(told.rows) else "unknown"
    # What is said of a circular value lies where the error is the short way round, beyond the period if need be.
    drawn, way = (told.true + told.error, ", the short way round") if told.period else (told.said, "")
    title, sample = _titles(of, task, read, None, images, told)
    mark = None if image is None else of.row(image)
    words = {"unit": unit, "title": title, "subtitle": f"{sample} · mean error {error}{way}"}
    return figures.said_and_true(told.true, drawn, told.rows, mark=mark, **words)


def told_of(of: Source, task: str, read: str, label: str | None, images: Sequence[int | str]) -> Answers:
    """What the probe of a task said of held-out images."""
    key = representation(results(of), read)
    beside = some(data.said_beside(of.path), f"the predictions of the probes are not beside {of.path.name}")
    place = data.key_of(beside)
    some((task, *key) in data.predictions(place) or None, f"the predictions have no probe of {task} from {read}")
    predicted = data.predicted(place, (task, *key), of.shape.images)
    if predicted.kind == "multilabel" and label not in predicted.classes:
        raise UserError(f"{task} has no label {label!r}; expected one of {', '.join(predicted.classes)}")
    told = answers.of(predicted, predicted.classes.index(label) if predicted.kind == "multilabel" and label else 0)
    return told.among(of.rows(images)) if images else told


def _titles(
    of: Source, task: str, read: str, label: str | None, images: Sequence[int | str], told: Answers
) -> tuple[str, str]:
    found = results(of)
    question = task if label is None else f"{task}: {label}"
    title = f"{escape(question)} from {escape(name_in(found, representation(found, read)))}"
    return title, f"{len(told.rows):,}{' selected' if images else ''} held-out images"


def results(of: Source) -> Results:
    beside = some(data.probes_beside(of.path), f"{of.path.name} has no probe scores; make them with: htc-probe")
    return data.probe_results(data.key_of(beside))


def representation(found: Results, name: str) -> Representation:
    """What was probed under this name. Raises UserError where nothing was."""
    keys = [key_of(row) for row in found.rows]
    named = {key[0]: key for key in keys} | {label(*key): key for key in keys}
    named |= {name_in(found, key): key for key in keys}
    if name not in named:
        names = dict.fromkeys(name_in(found, key) for key in keys)
        raise UserError(f"{name} was not probed; expected one of {', '.join(names)}")
    return named[name]


def _of_suite(of: Source, suite: str) -> tuple[Results, str]:
    found = results(of)
    if suite not in suites(found):
        known = ", ".join(suites(found))
        raise UserError(f"{of.path.name} has no probes of a suite {suite!r}; expected one of {known}")
    return found, suite
