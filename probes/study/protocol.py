"""How probes of one representation are fitted and held out: folds, strengths, predictions. Knows arrays; not runs,
names, scores or files.

Every image is predicted by probes that saw neither it nor its group. Inside a training fold, inner folds choose each
task's strengths, one for every number that is reported: the one with the most right answers for top-1, the highest mAP
for mAP, the least cross-entropy for bits (numbers: the least squared error, which serves both). `strengths` says which
are tried. Standardisation and basis are fitted on the training fold; the inner folds share them, which was measured to
move no score.

Legend: N rows, n training rows, m held-out rows, D features, r rank of the basis, K classes, S strengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from htc_probe.extract.store import UNKNOWN, Kind
from htc_probe.probes.inputs import folds
from htc_probe.probes.inputs.labels import Labels, by_solver
from htc_probe.probes.scores.metrics import METRIC, Gaussian, Prediction, VonMises, row_bits
from htc_probe.probes.solvers import angles, ridge
from htc_probe.probes.solvers.basis import Basis, Weights
from htc_probe.probes.solvers.newton import Path
from htc_probe.probes.solvers.problems import Target, log_probabilities
from htc_probe.probes.solvers.products import half_copy
from htc_probe.probes.study.strengths import FIRST, LADDER, Search

INNER_FOLDS = 3
BITS = "cross-entropy"
"""The criterion of the strength that bits are counted with; `METRIC` of the kind is that of the task's score."""
_SEARCHED = 1e-5
"""Tolerance of the fits that only compare strengths, which differ by far more."""


@dataclass(frozen=True)
class Settings:
    """What is computed; the command's flags, without files."""

    names: tuple[str, ...] = ("semantic", "detail")
    """Suites or single tasks."""
    layers: str = ""
    representations: tuple[str, ...] = ()
    folds: int = 5
    seed: int = 0
    match_dim: int | None = None
    """Probe the first so many principal directions of the training fold, not whitened."""
    guided: bool = False
    """Begin the search of logistic strengths with those around the one that leave-one-out ridge points at alone."""
    curve: bool = False
    controls: bool = True
    types: str | None = None
    device: str = "cpu"
    jobs: int = 0
    memory: float = 8.0
    """GB that a representation may take while it is probed; larger ones are streamed, and all are held out once."""
    margin: float = 0.02
    """Of the metric: a representation that is known to score so near to v_pooled keeps what that has."""
    ceiling: bool = False

    @property
    def budget(self) -> int:
        """`memory` in bytes."""
        return int(self.memory * 1e9)

    @property
    def of_fits(self) -> tuple[object, ...]:
        """What a fit depends on."""
        return self.seed, self.match_dim, self.guided, self.device, self.budget


class HeldOut(NamedTuple):
    """One task in one fold."""

    prediction: Prediction
    """For the m held-out rows, see `probes.metrics`: at the strength that does best on the task's metric."""
    coded: Prediction
    """The same at the strength of the least cross-entropy: what bits are counted with."""
    strength: float
    coded_strength: float
    at_edge: bool
    """One of the strengths ends the ladder and its neighbour is worse: a still better one may lie outside."""
    gap: float | None
    """Certified: by how many nats the objective may exceed its minimum; None for ridge, which is exact."""


def hold_out(
    x_ND: np.ndarray,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> list[HeldOut]:
    """Probes of all tasks, fitted on the rows `train` and used on the rows `test`, (N,) bool each.

    A number or circular value that is known on no row of `train` is predicted as NaN; a number that does not vary there
    has a scale of NaN. Raises UserError for features that are not finite.
    """
    # Rows of an inner fold lie together, so that folds are views.
    rows = np.flatnonzero(train)
    inner = inner_folds(tasks, groups, train, settings.seed)[rows]
    rows = rows[np.argsort(inner, kind="stable")]
    bounds = np.searchsorted(np.sort(inner), np.arange(INNER_FOLDS + 1))
    parts = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    labels = [task.among(rows) for task in tasks]
    logistic, *numeric = by_solver(labels)
    numbers, turning = ([i for i in own if np.isfinite(labels[i].y).any()] for own in numeric)
    found: dict[int, HeldOut] = {}
    if logistic:
        basis = basis_of(x_ND[rows], settings, torch.float32)
        test_mr = basis.rotate(x_ND[test])
        chosen = _logistic(basis, [labels[i] for i in logistic], parts, test_mr, settings)
        found |= dict(zip(logistic, chosen, strict=True))
    if numbers or turning:
        # Single precision predicts 5e-3 off at weak strengths.
        basis = basis_of(x_ND[rows].astype(np.float64), settings, torch.float64)
        test_mr = basis.rotate(x_ND[test].astype(np.float64))
    if numbers:
        y_nT = np.stack([labels[i].y for i in numbers], 1)
        held_out_SnT = ridge.leave_out(basis, y_nT, ridge.STRENGTHS, np.sort(inner))
        choice = ridge.choose(ridge.residual_variance(held_out_SnT, y_nT), ridge.STRENGTHS)
        mean_mT = ridge.predict(ridge.fit(basis, y_nT, choice.strengths), test_mr)
        found |= dict(zip(numbers, of_numbers(mean_mT, y_nT, choice), strict=True))
    for i in turning:
        probe = angles.fit(basis, labels[i].y, labels[i].period, np.sort(inner))
        found[i] = exact(probe.predict(test_mr), probe.strength, probe.at_edge)
    return [found.get(i) or _of_unknown(task, int(test.sum())) for i, task in enumerate(tasks)]


def inner_folds(tasks: Sequence[Labels], groups: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """(N,) in which inner fold each row of `train` (N,) bool is held out, whoever reads it; -1 of the others."""
    inner_N = np.full(len(train), -1)
    inner_N[train] = folds.assign([task.among(train) for task in tasks], groups[train], INNER_FOLDS, seed)
    return inner_N


def _of_unknown(task: Labels, m: int) -> HeldOut:
    """For a task without a label to learn from."""
    nothing = np.full(m, np.nan)
    said = VonMises(nothing, nothing, task.period) if task.kind == "circular" else Gaussian(nothing, nothing)
    return exact(said, ridge.STRENGTHS[0], False)


def of_numbers(mean_mT: np.ndarray, y_nT: np.ndarray, choice: ridge.Choice) -> Iterator[HeldOut]:
    """Of each column of y, what was learned from, with the error of the inner folds as scale: at least a thousandth of
    the values' own deviation, so that no density is infinite; of equal values none.
    """
    for mean_m, y_n, strength, at_edge, variance in zip(mean_mT.T, y_nT.T, *choice, strict=True):
        scale = max(np.sqrt(variance), 1e-3 * np.nanstd(y_n)) or np.nan
        yield exact(Gaussian(mean_m, np.full(len(mean_m), scale)), strength, at_edge)


def exact(prediction: Gaussian | VonMises, strength: float, at_edge: bool) -> HeldOut:
    """Of a number or an angle: one strength serves its score and its bits, and least squares are solved exactly."""
    return HeldOut(prediction, prediction, float(strength), float(strength), bool(at_edge), None)


def refit(
    x_ND: np.ndarray,
    tasks: Sequence[Labels],
    strengths: Sequence[float],
    settings: Settings = Settings(),  # noqa: B008
) -> list[Weights]:
    """Probes of all rows, each task's at its own strength: to be applied elsewhere, not to be scored."""
    logistic, numbers, turning = by_solver(tasks)
    found: dict[int, Weights] = {}
    if logistic:
        basis = basis_of(x_ND, settings, torch.float32)
        path = Path(basis.train, basis.eigenvalues, targets([tasks[i] for i in logistic]))
        for strength in sorted({strengths[i] for i in logistic}, reverse=True):
            here = [at for at, i in enumerate(logistic) if strengths[i] == strength]
            fit = path.advance(strength, here)
            for at, columns in zip(here, fit.columns, strict=True):
                found[logistic[at]] = basis.on_features(fit.weights[:, columns], fit.intercepts[columns])
    if numbers or turning:
        basis = basis_of(x_ND.astype(np.float64), settings, torch.float64)
    if numbers:
        solved = ridge.fit(basis, np.stack([tasks[i].y for i in numbers], 1), [strengths[i] for i in numbers])
        for at, i in enumerate(numbers):
            found[i] = basis.on_features(solved.weights[:, [at]], solved.intercepts[[at]])
    for i in turning:
        solved = angles.at_strength(basis, tasks[i].y, tasks[i].period, strengths[i])
        found[i] = basis.on_features(*solved)
    return [found[i] for i in range(len(tasks))]


# ---- the search of strengths


def _logistic(
    basis: Basis, labels: Sequence[Labels], parts: Sequence[slice], test_mr: torch.Tensor, settings: Settings
) -> list[HeldOut]:
    columns = sum(max(task.n_classes, 1) if task.kind == "classes" else task.y.shape[1] for task in labels)
    half = half_copy(basis.train, columns)
    questions = targets(labels)
    pointed = [[LADDER.index(one) for one in of] for of in ridge.brackets(basis, questions, LADDER)]
    searches = [Search(of) if settings.guided and of else Search(FIRST, of) for of in pointed]
    problem = basis.train, basis.eigenvalues, questions
    others = [[other for other in parts if other is not part] for part in parts]
    paths = [Path(*problem, segments=segments, half=half, tolerance=_SEARCHED) for segments in others]
    while wanted := by_rung([search.missing() for search in searches]):
        for rung, here in wanted:
            predictions = []
            for path, part in zip(paths, parts, strict=True):
                values = log_probabilities(path.advance(LADDER[rung], here), basis.train[part])
                n = len(basis.train) - (part.stop - part.start)
                predictions.append([smoothed(labels[t], value, n) for t, value in zip(here, values, strict=True)])
            for t, pieces in zip(here, zip(*predictions, strict=True), strict=True):
                searches[t].costs[rung] = costs(labels[t], parts, pieces)
    choices = list(map(rungs, labels, searches))
    last = Path(*problem, half=half)
    predicted: list[dict[int, np.ndarray]] = [{} for _ in labels]
    gaps = np.zeros(len(labels))
    for rung, here in by_rung(choices):
        fit = last.advance(LADDER[rung], here)
        gaps[here] = np.maximum(gaps[here], fit.excess)
        for t, held_out in zip(here, log_probabilities(fit, test_mr), strict=True):
            predicted[t][rung] = smoothed(labels[t], held_out, len(basis.train)).astype(np.float32)
    return list(map(searched, labels, searches, predicted, gaps))


def rungs(task: Labels, search: Search) -> list[int]:
    """The best by each of `_criteria`."""
    return [search.best(criterion) for criterion in _criteria(task.kind)]


def searched(task: Labels, search: Search, predicted: Mapping[int, np.ndarray], gap: float) -> HeldOut:
    """Of a logistic task, from what is predicted at each of its `rungs`."""
    scored, coded = rungs(task, search)
    at_edge = any(map(search.at_edge, _criteria(task.kind)))
    return HeldOut(predicted[scored], predicted[coded], LADDER[scored], LADDER[coded], at_edge, float(gap))


def by_rung(rungs_of: Iterable[Iterable[int]]) -> list[tuple[int, list[int]]]:
    """(rung, the tasks that it is of), strong to weak: weaker fits start from what stronger ones found."""
    tasks: dict[int, list[int]] = {}
    for t, rungs in enumerate(rungs_of):
        for rung in set(rungs):
            tasks.setdefault(rung, []).append(t)
    return sorted(tasks.items())


def _criteria(kind: Kind) -> tuple[str, str]:
    """What strengths of a kind of task are chosen by."""
    return METRIC[kind], BITS


def costs(task: Labels, parts: Sequence[slice], predictions: Sequence[np.ndarray]) -> dict[str, float]:
    """By each of `_criteria`, less is better, of predictions for the rows of each part: bits an image; the share of
    wrong classes, or 1 - mAP, ranked within parts.
    """
    bits, wrong, precision, n = 0.0, 0.0, [], 0
    for part, prediction in zip(parts, predictions, strict=True):
        y = task.y[part]
        if task.kind == "classes":
            known = y >= 0
            y, prediction = y[known], prediction[known]
            wrong += float((prediction.argmax(1) != y).sum())
        else:
            precision.append([_average_precision(*column) for column in zip(y.T, prediction.T, strict=True)])
        bits += float(row_bits(task.kind, y, prediction).sum())
        n += len(y)
    if task.kind == "multilabel":
        by_label_CP = np.array(precision).T
        means = [float(of[np.isfinite(of)].mean()) for of in by_label_CP if np.isfinite(of).any()]
        wrong = n * (1 - float(np.mean(means))) if means else 0.0
    return {METRIC[task.kind]: wrong / max(n, 1), BITS: bits / max(n, 1)}


def _average_precision(y: np.ndarray, scores: np.ndarray) -> float:
    """Of one label's rows (m,): equal scores are counted together, as scikit-learn does; NaN without a positive."""
    known = y != UNKNOWN
    order = np.argsort(-scores[known], kind="stable")
    ranked, positive = -scores[known][order], y[known][order] == 1
    if not positive.any():
        return np.nan
    ends = np.unique(np.searchsorted(ranked, ranked[positive], side="right"))
    hits = np.cumsum(positive)[ends - 1]
    return float((np.diff(hits, prepend=0) * hits / ends).sum() / hits[-1])


def smoothed(task: Labels, values: np.ndarray, n: int) -> np.ndarray:
    """Log probabilities (m, K), or logits (m, C), mixed with the uniform distribution of weight 1 / (n + 1) after n
    training rows: a class that was not seen there costs log2(K (n + 1)) bits, and not infinitely many.
    """
    share = 1 / (n + 1)
    if task.kind == "classes":
        return np.logaddexp(values + np.log1p(-share), np.log(share / task.n_classes))
    upper = np.logaddexp(-np.logaddexp(0, -values) + np.log1p(-share), np.log(share / 2))
    lower = np.logaddexp(-np.logaddexp(0, values) + np.log1p(-share), np.log(share / 2))
    return upper - lower


# ---- small things


def basis_of(x_nD: np.ndarray, settings: Settings, dtype: torch.dtype) -> Basis:
    """Of training rows, with no more directions than `match_dim` says."""
    basis = Basis.fit(x_nD, device=settings.device, dtype=dtype)
    if settings.match_dim is None or settings.match_dim >= len(basis.eigenvalues):
        return basis
    first = slice(settings.match_dim)  # of the largest eigenvalues
    rotation, train = (part[:, first].contiguous() for part in (basis.rotation, basis.train))
    return replace(basis, rotation=rotation, eigenvalues=basis.eigenvalues[first], train=train)


def targets(tasks: Sequence[Labels]) -> list[Target]:
    """As logistic solvers take them."""
    return [Target(task.y, task.n_classes) for task in tasks]
