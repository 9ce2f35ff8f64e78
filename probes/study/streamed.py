"""The protocol for features that do not fit into memory: one hold-out, strengths searched from what ridge points at.

Knows streams of rows; not runs, names, scores or files. Legend: N rows, n training rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from htc_probe.probes.inputs import circular
from htc_probe.probes.inputs.labels import Labels, by_solver
from htc_probe.probes.scores.metrics import VonMises
from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers import survey as stream
from htc_probe.probes.solvers.lbfgs import StreamedPath
from htc_probe.probes.solvers.problems import Fit, log_probabilities
from htc_probe.probes.study import protocol
from htc_probe.probes.study.protocol import HeldOut, Settings, by_rung, costs, smoothed
from htc_probe.probes.study.strengths import LADDER, Search


class _Source(NamedTuple):
    features: stream.Features
    survey: stream.Survey

    def standardised(self, wanted: np.ndarray) -> Iterator[torch.Tensor]:
        """The rows where `wanted` (N,) bool is true, tile by tile."""
        first = 0
        for x in self.survey.standardised(self.features):
            here = wanted[first : first + len(x)]
            first += len(x)
            if here.any():
                yield x[torch.from_numpy(here)]


def hold_out(
    features: stream.Features,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    settings: Settings,
) -> list[HeldOut]:
    """`protocol.hold_out` within the memory of `settings`, labels aside, whatever the number of rows.

    Numbers are probed as there, exactly. Of circular values the strength is that of the least squared error of cosine
    and sine. Logistic probes begin with the strengths within a decade of the one that ridge on the labels prefers and
    go on from there as `strengths` says, each on one inner fold in place of three: a pass over the rows costs minutes.
    Raises UserError for features that are not finite and too little memory.
    """
    inner_N = protocol.inner_folds(tasks, groups, train, settings.seed)
    logistic, numbers, turning = by_solver(tasks)
    labels = [tasks[i] for i in logistic]
    targets = protocol.targets(labels)
    columns = [tasks[i].y[:, None] for i in numbers] + [circular.vectors(tasks[i].y, tasks[i].period) for i in turning]
    y_NT = np.concatenate(columns, 1) if columns else None
    pairs = {i: (len(numbers) + 2 * at, len(numbers) + 2 * at + 1) for at, i in enumerate(turning)}
    budget, seed, device = settings.budget, settings.seed, settings.device
    survey = stream.survey(
        features, inner_N, y_NT, targets, pairs=pairs.values(), budget=budget, seed=seed, device=device
    )
    source = _Source(features, survey)
    found: dict[int, HeldOut] = {}
    if y_NT is not None:
        probe = survey.flat(survey.numbers)
        mean_mT = np.concatenate([ridge.predict(probe, x) for x in source.standardised(test)])
        found |= dict(zip(numbers, protocol.of_numbers(mean_mT, y_NT[train], survey.choice), strict=False))
        for i, pair in pairs.items():
            at, period = pair[0], tasks[i].period
            kappa = np.full(len(mean_mT), _concentration(survey, np.array(pair), tasks[i]))
            turned = VonMises(circular.values_of(mean_mT[:, pair], period), kappa, period)
            found[i] = protocol.exact(turned, survey.choice.strengths[at], survey.choice.at_edge[at])
    if logistic:
        searches = _search(source, labels, inner_N)
        last = StreamedPath(*source, targets, train)
        choices = map(protocol.rungs, labels, searches)
        fits = [(rung, here, last.advance(LADDER[rung], here)) for rung, here in by_rung(choices)]
        gaps = np.zeros(len(labels))
        for _, here, fit in fits:
            gaps[here] = np.maximum(gaps[here], fit.excess)
        predicted = _predict(source, labels, fits, test, survey.n)
        found |= dict(zip(logistic, map(protocol.searched, labels, searches, predicted, gaps), strict=True))
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


def _search(source: _Source, labels: Sequence[Labels], inner_N: np.ndarray) -> list[Search]:
    """What each task's strengths cost on the first inner fold. The predictions for its rows are held in memory."""
    held, n = inner_N == 0, int((inner_N > 0).sum())
    part = [task.among(held) for task in labels]
    path = StreamedPath(*source, protocol.targets(labels), inner_N > 0)
    pointed = [ridge.around(centre, LADDER) if np.isfinite(centre) else LADDER[:1] for centre in source.survey.centres]
    searches = [Search(map(LADDER.index, strengths)) for strengths in pointed]
    while wanted := by_rung([search.missing() for search in searches]):
        fits = [(rung, here, path.advance(LADDER[rung], here)) for rung, here in wanted]
        predicted = _predict(source, labels, fits, held, n)
        for search, task, by_strength in zip(searches, part, predicted, strict=True):
            search.costs |= {rung: costs(task, [slice(None)], [values]) for rung, values in by_strength.items()}
    return searches


def _predict(
    source: _Source, labels: Sequence[Labels], fits: Sequence[tuple[int, list[int], Fit]], wanted: np.ndarray, n: int
) -> list[dict[int, np.ndarray]]:
    """Of each task, by rung: the predictions of probes of n rows for the rows where `wanted` (N,), in one pass."""
    pieces: list[dict[int, list[np.ndarray]]] = [{} for _ in labels]
    flat = [(rung, here, source.survey.flat(fit)) for rung, here, fit in fits]
    for x in source.standardised(wanted):
        for rung, here, fit in flat:
            for t, values in zip(here, log_probabilities(fit, x), strict=True):
                pieces[t].setdefault(rung, []).append(smoothed(labels[t], values, n).astype(np.float32))
    return [{rung: np.concatenate(of) for rung, of in by.items()} for by in pieces]
