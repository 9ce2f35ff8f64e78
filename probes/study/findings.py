"""What a probing finds: rows, comparisons, claims and doubts, of what is read from each representation. Knows plans,
readings and results; not features, solvers or files.

Legend: N images, R resamples, G groups.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from htc_probe.probes.files.results import (
    Baseline,
    Comparison,
    Confusion,
    CurvePoint,
    Interval,
    Results,
    Row,
    SuiteMean,
    finite,
    label,
)
from htc_probe.probes.files.weights import Key, Probe
from htc_probe.probes.inputs.representations import WHOLE, Representation, shown
from htc_probe.probes.inputs.tasks import ProbeTask
from htc_probe.probes.scores import intervals
from htc_probe.probes.scores.controls import may_explain
from htc_probe.probes.scores.intervals import Sampled
from htc_probe.probes.scores.metrics import METRIC, Prediction
from htc_probe.probes.solvers import ridge
from htc_probe.probes.study import claims, protocol
from htc_probe.probes.study.claims import Subject, TaskScores, difference_of, interval_of
from htc_probe.probes.study.plan import CONTROL_DRAWS, Plan
from htc_probe.probes.study.readings import Reading, Readings, read, scores_of, without_features
from htc_probe.probes.study.strengths import FIRST, LADDER
from htc_probe.probes.study.work import Kept

_LOOSE = 1e-3  # nats: a certified gap above it is told


def probe(
    plan: Plan,
    *,
    keep: Path | None = None,
    config: dict | None = None,
    on_cell: Callable[[], None] = lambda: None,
    on_predictions: Callable[[list[Prediction]], None] = lambda _: None,
) -> Results:
    """Fits and scores everything in `plan`. The result does not depend on the number of processes.

    Finished cells are kept in the folder `keep`, and taken from there. `on_cell` is called for each of `plan.cells`,
    `on_predictions` for every representation, with what its probes said of the rows of each task in `plan.asked()`.
    """
    kept = None if keep is None else Kept(keep)
    readings = {rep: read(plan, rep, kept, on_cell, on_predictions) for rep in plan.representations}
    return _results(plan, readings, config or {})


def refit(plan: Plan, results: Results) -> dict[Key, Probe]:
    """The probes of what is compared, on all images that any of them learned from, at the strengths in `results`.

    Without those of principal directions (match_dim), which are other features, of what is streamed, and of joins that
    are only told by what they add to a part.
    """
    strengths = {(row.task, row.representation, row.layer): row.strength for row in results.rows}
    probes: dict[Key, Probe] = {}
    rows = plan.fold == -1 if plan.train is not None else plan.used
    for rep in plan.shown:
        if rep in plan.streamed:
            continue
        x_nD = plan.features(rep)[rows]
        labels = [task.labels.among(rows) for task in plan.tasks]
        fitted = protocol.refit(x_nD, labels, [strengths[task.task.name, *rep] for task in plan.tasks], plan.settings)
        mean_D = x_nD.mean(0, dtype=np.float64)
        for task, (weights_DC, intercepts_C) in zip(plan.tasks, fitted, strict=True):
            kind, period = task.task.kind, task.task.period
            probes[task.task.name, *rep] = Probe(kind, task.classes, weights_DC, intercepts_C, mean_D, period)
    return probes


# ---- what is told

_AllReadings = Mapping[Representation, Readings]


def _results(plan: Plan, readings: _AllReadings, config: dict[str, Any]) -> Results:
    warnings = [*plan.warnings, *(note for given in readings.values() for note in given.warnings)]
    baselines = {baseline.task: baseline for baseline in _baselines(plan)}
    scores = {rep: _scores(given) for rep, given in readings.items()}
    rows = []
    for task in plan.tasks:
        for rep, given in readings.items():
            reading = given.tasks[task.task.name]
            rows.append(_row(task, rep, given.width, reading, scores.get(WHOLE)))
            name = f"{task.task.name} from {shown(*rep, plan.run.shape.layers)}"
            warnings += _doubts(name, rows[-1], reading, baselines.get(task.task.name))
    compared = {rep: scores[rep] for rep in plan.columns}
    ceilings = {rep: told for rep in plan.columns if (told := _ceilings(readings[rep]))}
    used = {rep: {name: reading.ceiling_folds for name, reading in readings[rep].tasks.items()} for rep in ceilings}
    return Results(
        config=config | {"protocol": _protocol(plan)},
        run=plan.identity,
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "torch", "scikit-learn")},
        warnings=tuple(warnings),
        rows=tuple(rows),
        suite_means=tuple(
            _suite_mean(subject, rep, scores[rep], scores.get(WHOLE))
            for subject in claims.suite_means(plan.tasks)
            for rep in plan.representations
        ),
        comparisons=(*_differences(plan.tasks, compared), *_conditional(plan.tasks, compared)),
        code_comparisons=tuple(_code_differences(plan, readings)),
        baselines=tuple(baselines.values()),
        curves=tuple(_curve_points(plan, readings)),
        confusions=tuple(
            Confusion(task.task.name, *rep, task.classes, tuple(map(tuple, counts.tolist())))
            for rep in plan.columns
            for task in plan.tasks
            if (counts := readings[rep].tasks[task.task.name].confusion) is not None
        ),
        kept=tuple(claims.kept(plan.tasks, compared, plan.settings.margin)),
        suite_gaps=tuple(claims.suite_gaps(plan.tasks, compared)),
        by_class=tuple(claims.by_class(plan.tasks, compared)),
        ceilings=tuple(claims.ceilings(plan.tasks, compared, ceilings, used)),
    )


def _scores(readings: Readings) -> TaskScores:
    return {name: reading.scores for name, reading in readings.tasks.items()}


def _ceilings(readings: Readings) -> TaskScores:
    """Empty where no reader with a hidden layer was asked for."""
    return {name: reading.ceiling for name, reading in readings.tasks.items() if reading.ceiling is not None}


def _row(task: ProbeTask, rep: Representation, width: int, reading: Reading, whole: TaskScores | None) -> Row:
    kind, scores = task.task.kind, reading.scores
    metric, groups = METRIC[kind], scores.effective_groups
    score = scores.of[metric]
    gaps = [fold.gap for fold in reading.folds if fold.gap is not None]
    control, code = reading.control, reading.code
    best = None if whole is None else whole[task.task.name]
    about = task.task.suite, task.task.name, kind, task.task.unit, *rep, width, metric
    return Row(
        *about,
        *_with_ends(interval_of(score, groups), score.estimate),
        n=scores.n,
        n_groups=scores.n_groups,
        floor=scores.floor[metric].estimate,
        metrics={name: interval_of(value, groups) for name, value in scores.of.items()},
        bits=scores.of["V-information"].estimate,
        compression=None if code is None else code.compression,
        compression_interval=None if reading.compression is None else interval_of(reading.compression, groups),
        code_bits=None if code is None else code.bits / scores.n,
        control=None if control is None else control.estimate,
        selectivity=None if control is None else difference_of(score, control, groups)[0],
        retention=None if best is None else _retention(score, best.of[metric], best.floor[metric], groups),
        strength=float(np.median([fold.strength for fold in reading.folds])),
        coded_strength=float(np.median([fold.coded_strength for fold in reading.folds])),
        at_edge=2 * sum(fold.at_edge for fold in reading.folds) > len(reading.folds),
        gap=max(gaps) if gaps else None,
        fold_scores=finite(reading.fold_scores),
        classes=task.classes,
    )


def _doubts(name: str, row: Row, reading: Reading, shortcut: Baseline | None) -> Iterator[str]:
    """Why this row, the task and what it is read from being its `name`, should not be trusted."""
    # Stronger than strong is the floor itself, so a score at the floor has nothing to gain outside the ladder.
    if row.at_edge and (row.strength < 1 or row.lower > row.floor) and row.estimate < 0.995:
        end = "weakest" if row.strength < 1 else "strongest"
        yield f"{name}: most folds chose the {end} strength that was tried; the score may be too low"
    if row.gap is not None and row.gap > _LOOSE and row.lower > row.floor and row.estimate < 0.995:
        yield f"{name}: the solver proves its objective only to within {row.gap:.0e} nats of the minimum"
    known = None if shortcut is None else shortcut.score.estimate
    if known is not None and may_explain(row.lower, row.floor, known):
        yield f"{name}: no better than knowing the category alone ({known:.2f}); it may read no more"
    if intervals.folds_disagree(reading.fold_scores, reading.scores.of[row.metric]):
        told = ", ".join(f"{score:.2f}" for score in reading.fold_scores)
        more = "more than their images explain; look for outliers, or groups of another kind"
        yield f"{name}: folds disagree ({told}), {more}"


def _suite_mean(subject: Subject, rep: Representation, scores: TaskScores, whole: TaskScores | None) -> SuiteMean:
    groups, score, floor = subject.groups(scores), subject.score(scores), subject.floor(scores)
    return SuiteMean(
        subject.suite,
        *rep,
        *_with_ends(interval_of(score, groups), score.estimate),
        floor=floor.estimate,
        bits=interval_of(subject.score(scores, "V-information"), groups),
        retention=None if whole is None else _retention(score, subject.score(whole), floor, groups),
        tasks=len(subject.tasks),
    )


_Compared = Mapping[Representation, TaskScores]


def _differences(tasks: Sequence[ProbeTask], compared: _Compared) -> Iterator[Comparison]:
    """Every two columns, by task and by suite; tasks and means are two families for Holm's correction."""
    for family in (claims.single_tasks(tasks), claims.suite_means(tasks)):
        made = []
        for a, b in combinations(compared, 2):
            for subject in family:
                ours, theirs = (subject.score(compared[rep]) for rep in (a, b))
                made.append(_comparison(subject, a, b, subject.metric, ours, theirs, subject.groups(compared[a])))
        yield from claims.corrected(made)


def _conditional(tasks: Sequence[ProbeTask], compared: _Compared) -> list[Comparison]:
    """What a join says of the labels beyond one of its parts: H(Y | part) - H(Y | join), in bits an image."""
    columns = {("z_voco" if rep.layer is not None else rep.name): rep for rep in compared}
    made = []
    for join in compared:
        parts = [columns[name] for name in join.parts if len(join.parts) > 1 and name in columns]
        for part in parts:
            for subject in claims.single_tasks(tasks):
                before, after = (subject.score(compared[rep], "cross-entropy") for rep in (part, join))
                made.append(_comparison(subject, join, part, "bits", before, after, subject.groups(compared[join])))
    return claims.corrected(made)


def _code_differences(plan: Plan, readings: _AllReadings) -> list[Comparison]:
    """Of every two columns, the difference of their compressions of the same images in the same order."""
    made = []
    for a, b in combinations(plan.columns, 2):
        for subject in claims.single_tasks(plan.tasks):
            ours, theirs = (readings[rep].tasks[str(subject.task)] for rep in (a, b))
            if ours.compression is not None and theirs.compression is not None:
                codes = ours.compression, theirs.compression
                made.append(_comparison(subject, a, b, "compression", *codes, ours.scores.effective_groups))
    return claims.corrected(made)


def _comparison(
    subject: Subject, a: Representation, b: Representation, metric: str, more: Sampled, less: Sampled, groups: float
) -> Comparison:
    told, p = difference_of(more, less, groups)
    return Comparison(subject.suite, subject.task, label(*a), label(*b), metric, told, p, p)


def _baselines(plan: Plan) -> Iterator[Baseline]:
    if plan.types is None:
        return
    for task in plan.tasks:
        if task is plan.types:
            continue  # knowing the category, it is no question
        guess = without_features(plan, task.labels, plan.types.labels.y)
        scores = scores_of(plan, task.labels, guess)
        metric = METRIC[task.task.kind]
        told = (interval_of(scores.of[name], scores.effective_groups) for name in (metric, "V-information"))
        yield Baseline(task.task.suite, task.task.name, "category alone", metric, *told)


def _curve_points(plan: Plan, readings: _AllReadings) -> Iterator[CurvePoint]:
    for rep in plan.columns:
        curves = {name: reading.curve for name, reading in readings[rep].tasks.items()}
        for point in range(max(map(len, curves.values()))):
            for task in plan.tasks:
                images, scores = curves[task.task.name][point]
                metric = METRIC[task.task.kind]
                told = (interval_of(scores.of[name], scores.effective_groups) for name in (metric, "V-information"))
                yield CurvePoint(task.task.suite, task.task.name, *rep, images, metric, *told)


def _protocol(plan: Plan) -> dict[str, Any]:
    return asdict(plan.settings) | {
        "inner_folds": protocol.INNER_FOLDS,
        "strengths": [LADDER[rung] for rung in FIRST],
        "ladder": list(LADDER),
        "ridge_strengths": list(ridge.STRENGTHS),
        "resamples": intervals.RESAMPLES,
        "control_draws": CONTROL_DRAWS if plan.types is not None else 0,
        "types": None if plan.types is None else plan.types.task.name,
        "groups": len(np.unique(plan.groups[plan.scored])),
        "images": int(plan.scored.sum()),
        "outer_folds": len(plan.numbers),
    }


def _retention(score: Sampled, whole: Sampled, floor: Sampled, groups: float) -> Interval:
    """Three times None where it is not defined, see `results.NOT_DEFINED`."""
    retention = intervals.retention(score, whole, floor, groups)
    return Interval(*finite(retention[:3])) if retention.bounded else Interval(None, None, None)


def _with_ends(told: Interval, estimate: float) -> tuple[float, float, float]:
    """The score itself for the ends of its interval where no resample has one."""
    lower, upper = (estimate if end is None else end for end in told[1:])
    return estimate, lower, upper
