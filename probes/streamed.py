"""The protocol for features that do not fit into memory: one hold-out, strengths searched around what ridge points at.

Knows streams of rows; not runs, names, scores or files. Legend: N rows, n training rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from probes import folds, ridge, stream
from probes.codelength import Labels
from probes.logistic import Fit, Target, log_probabilities
from probes.metrics import Gaussian, row_bits
from probes.protocol import INNER_FOLDS, STRENGTHS, HeldOut, Settings, smoothed
from probes.stream_path import StreamedPath


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

    Numbers are probed as there, exactly. Logistic probes try the strengths within a decade of the one that ridge on
    the labels prefers, each on one inner fold in place of three: a pass over the rows costs minutes. Raises UserError
    for features that are not finite and a budget that is too small.
    """
    inner_N = np.full(len(train), -1)
    rows = np.flatnonzero(train)
    inner_N[rows] = folds.assign(
        [task._replace(y=task.y[rows]) for task in tasks], groups[rows], INNER_FOLDS, settings.seed
    )
    logistic = [i for i, task in enumerate(tasks) if task.kind != "number"]
    numbers = [i for i, task in enumerate(tasks) if task.kind == "number"]
    targets = [Target(tasks[i].y, tasks[i].n_classes) for i in logistic]
    y_NT = np.stack([tasks[i].y for i in numbers], 1) if numbers else None
    survey = stream.survey(
        features, inner_N, y_NT, targets, budget=budget, seed=settings.seed, device=settings.device
    )
    found: dict[int, HeldOut] = {}
    if numbers:
        assert y_NT is not None
        probe = survey.flat(survey.numbers)
        mean_mT = np.concatenate([ridge.predict(probe, x) for x in _rows(features, survey, test)])
        for at, i in enumerate(numbers):
            scale = max(np.sqrt(survey.choice.residual_variance[at]), 1e-3 * np.nanstd(y_NT[train, at]))
            gaussian = Gaussian(mean_mT[:, at], np.full(len(mean_mT), scale))
            found[i] = HeldOut(gaussian, float(survey.choice.strengths[at]), bool(survey.choice.at_edge[at]), None)
    if logistic:
        labels = [tasks[i] for i in logistic]
        grids = [ridge.around(centre, STRENGTHS) if np.isfinite(centre) else STRENGTHS[:1] for centre in survey.centres]
        strengths, edges = _choose(features, survey, labels, targets, grids, inner_N)
        last = StreamedPath(features, survey, targets, train)
        fits = {
            strength: last.advance(strength, [t for t, own in enumerate(strengths) if own == strength])
            for strength in sorted(set(strengths), reverse=True)
        }
        probes = {strength: survey.flat(fit) for strength, fit in fits.items()}
        pieces: list[list[np.ndarray]] = [[] for _ in labels]
        for x in _rows(features, survey, test):
            for strength, flat in probes.items():
                here = [t for t, own in enumerate(strengths) if own == strength]
                for t, values in zip(here, log_probabilities(flat, x), strict=True):
                    pieces[t].append(smoothed(labels[t], values, survey.n).astype(np.float32))
        for t, i in enumerate(logistic):
            same = [other for other, own in enumerate(strengths) if own == strengths[t]]
            gap = float(fits[strengths[t]].gap[same.index(t)])
            found[i] = HeldOut(np.concatenate(pieces[t]), strengths[t], edges[t], gap)
    return [found[i] for i in range(len(tasks))]


def _choose(
    features: stream.Features,
    survey: stream.Survey,
    labels: Sequence[Labels],
    targets: Sequence[Target],
    grids: Sequence[tuple[float, ...]],
    inner_N: np.ndarray,
) -> tuple[list[float], list[bool]]:
    """The strength of each task with the least cross-entropy on the first inner fold, and whether it ends STRENGTHS."""
    held = inner_N == 0
    path = StreamedPath(features, survey, targets, inner_N > 0)
    fits: dict[float, tuple[list[int], Fit]] = {}
    for strength in STRENGTHS:
        here = [t for t, grid in enumerate(grids) if strength in grid]
        if here:
            fits[strength] = here, survey.flat(path.advance(strength, here))
    bits = [dict.fromkeys(grid, 0.0) for grid in grids]
    done = 0
    for x in _rows(features, survey, held):
        rows = np.flatnonzero(held)[done : done + len(x)]
        done += len(x)
        for strength, (here, flat) in fits.items():
            for t, values in zip(here, log_probabilities(flat, x), strict=True):
                y = labels[t].y[rows]
                known = y >= 0 if labels[t].kind == "classes" else np.ones(len(y), bool)
                prediction = smoothed(labels[t], values, int((inner_N > 0).sum()))
                bits[t][strength] += float(row_bits(labels[t].kind, y[known], prediction[known]).sum())
    best = [min(of, key=lambda strength, of=of: of[strength]) for of in bits]  # type: ignore[misc]
    return best, [strength in (STRENGTHS[0], STRENGTHS[-1]) for strength in best]


def _rows(features: stream.Features, survey: stream.Survey, wanted: np.ndarray) -> Iterator[torch.Tensor]:
    """The standardised rows where `wanted` (N,) bool is true, tile by tile."""
    first = 0
    for x in survey.standardised(features):
        here = wanted[first : first + len(x)]
        first += len(x)
        if here.any():
            yield x[torch.from_numpy(here)]
