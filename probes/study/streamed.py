"""The protocol for features that do not fit into memory: one hold-out, strengths searched from what ridge points at.

Knows streams of rows; not runs, names, scores or files. Legend: N rows, n training rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from htc_probe.extract.store import NUMERIC
from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels
from htc_probe.probes.scores.metrics import Gaussian, VonMises
from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers import survey as stream
from htc_probe.probes.solvers.lbfgs import StreamedPath
from htc_probe.probes.solvers.problems import Fit, Target, log_probabilities
from htc_probe.probes.study.protocol import HeldOut, Settings, by_rung, costs, criteria, exact, inner_folds, smoothed
from htc_probe.probes.study.strengths import LADDER, Search


def hold_out(
    features: stream.Features,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    settings: Settings,
    budget: int = stream.BUDGET,
) -> list[HeldOut]:
    """`protocol.hold_out` with memory of `budget` bytes, labels aside, whatever the number of rows.

    Numbers are probed as there, exactly. Of circular values the strength is that of the least squared error of cosine
    and sine. Logistic probes begin with the strengths within a decade of the one that ridge on the labels prefers and
    go on from there as `strengths` says, each on one inner fold in place of three: a pass over the rows costs minutes.
    Raises UserError for features that are not finite and a budget that is too small.
    """
    inner_N = inner_folds(tasks, groups, train, settings.seed)
    logistic = [i for i, task in enumerate(tasks) if task.kind not in NUMERIC]
    numbers = [i for i, task in enumerate(tasks) if task.kind == "number"]
    turning = [i for i, task in enumerate(tasks) if task.kind == "circular"]
    targets = [Target(tasks[i].y, tasks[i].n_classes) for i in logistic]
    columns = [tasks[i].y[:, None] for i in numbers] + [circular.vectors(tasks[i].y, tasks[i].period) for i in turning]
    y_NT = np.concatenate(columns, 1) if columns else None
    pairs = {i: (len(numbers) + 2 * at, len(numbers) + 2 * at + 1) for at, i in enumerate(turning)}
    survey = stream.survey(
        features,
        inner_N,
        y_NT,
        targets,
        pairs=list(pairs.values()),
        budget=budget,
        seed=settings.seed,
        device=settings.device,
    )
    found: dict[int, HeldOut] = {}
    if y_NT is not None:
        probe = survey.flat(survey.numbers)
        mean_mT = np.concatenate([ridge.predict(probe, x) for x in _rows(features, survey, test)])
        for at, i in enumerate(numbers):
            scale = max(np.sqrt(survey.choice.residual_variance[at]), 1e-3 * np.nanstd(y_NT[train, at]))
            gaussian = Gaussian(mean_mT[:, at], np.full(len(mean_mT), scale))
            found[i] = exact(gaussian, survey.choice.strengths[at], survey.choice.at_edge[at])
        for i, pair in pairs.items():
            at, period = pair[0], tasks[i].period
            kappa = _concentration(survey, np.array(pair), tasks[i])
            said = circular.values_of(mean_mT[:, pair], period)
            turned = VonMises(said, np.full(len(said), kappa), period)
            found[i] = exact(turned, survey.choice.strengths[at], survey.choice.at_edge[at])
    if logistic:
        labels = [tasks[i] for i in logistic]
        searches = _search(features, survey, labels, targets, inner_N)
        choices = [tuple(map(search.best, criteria(task.kind))) for search, task in zip(searches, labels, strict=True)]
        last = StreamedPath(features, survey, targets, train)
        fits = [(rung, here, last.advance(LADDER[rung], here)) for rung, here in by_rung(choices)]
        gaps = np.zeros(len(labels))
        for _, here, fit in fits:
            gaps[here] = np.maximum(gaps[here], fit.gap)
        flat = [(rung, here, survey.flat(fit)) for rung, here, fit in fits]
        predicted = _predict(features, survey, labels, flat, test, survey.n)
        for t, i in enumerate(logistic):
            scored, coded = (predicted[t][rung].astype(np.float32) for rung in choices[t])
            edge = any(map(searches[t].at_edge, criteria(labels[t].kind)))
            strength, coded_strength = (LADDER[rung] for rung in choices[t])
            found[i] = HeldOut(scored, coded, strength, coded_strength, edge, float(gaps[t]))
    return [found[i] for i in range(len(tasks))]


def _concentration(survey: stream.Survey, pair: np.ndarray, task: Labels) -> np.ndarray:
    """Of held-out errors of a circular value, whose cosine and sine are the numbers `pair` of the survey: those on its
    sample, which was trained on, larger by as much as the squared errors of held-out points are.
    """
    points_s2 = ridge.predict(survey.numbers, survey.sample)[:, pair]
    y_s = task.y[survey.rows]
    inside = np.nanmean((points_s2 - circular.vectors(y_s, task.period)) ** 2)
    missed = np.nanmean(1 - circular.cosine(circular.values_of(points_s2, task.period), y_s, task.period))
    return circular.concentration(1 - missed * survey.choice.residual_variance[pair[0]] / max(inside, 1e-12))


def _search(
    features: stream.Features,
    survey: stream.Survey,
    labels: Sequence[Labels],
    targets: Sequence[Target],
    inner_N: np.ndarray,
) -> list[Search]:
    """What each task's strengths cost on the first inner fold. The predictions for its rows are held in memory."""
    held, n = inner_N == 0, int((inner_N > 0).sum())
    part = [task.among(held) for task in labels]
    whole = slice(0, int(held.sum()))
    path = StreamedPath(features, survey, targets, inner_N > 0)
    pointed = [ridge.around(centre, LADDER) if np.isfinite(centre) else LADDER[:1] for centre in survey.centres]
    searches = [Search(map(LADDER.index, strengths)) for strengths in pointed]
    while wanted := by_rung([search.missing() for search in searches]):
        flat = [(rung, here, survey.flat(path.advance(LADDER[rung], here))) for rung, here in wanted]
        for search, task, predictions in zip(
            searches, part, _predict(features, survey, labels, flat, held, n), strict=True
        ):
            search.costs |= {rung: costs(task, [whole], [values]) for rung, values in predictions.items()}
    return searches


def _predict(
    features: stream.Features,
    survey: stream.Survey,
    labels: Sequence[Labels],
    fits: Sequence[tuple[int, list[int], Fit]],
    wanted: np.ndarray,
    n: int,
) -> list[dict[int, np.ndarray]]:
    """Of each task, by rung: the predictions of probes of n rows for the rows where `wanted` (N,), in one pass."""
    pieces: list[dict[int, list[np.ndarray]]] = [{} for _ in labels]
    for x in _rows(features, survey, wanted):
        for rung, here, fit in fits:
            for t, values in zip(here, log_probabilities(fit, x), strict=True):
                pieces[t].setdefault(rung, []).append(smoothed(labels[t], values, n).astype(np.float32))
    return [{rung: np.concatenate(of) for rung, of in by.items()} for by in pieces]


def _rows(features: stream.Features, survey: stream.Survey, wanted: np.ndarray) -> Iterator[torch.Tensor]:
    """The standardised rows where `wanted` (N,) bool is true, tile by tile."""
    first = 0
    for x in survey.standardised(features):
        here = wanted[first : first + len(x)]
        first += len(x)
        if here.any():
            yield x[torch.from_numpy(here)]
