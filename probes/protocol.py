"""How probes of one representation are fitted and held out: folds, strengths, predictions. Knows arrays; not runs,
names, scores or files.

Every image is predicted once, by probes that saw neither it nor its group. Inside a training fold, inner folds choose
each task's strength: the one with the smallest held-out cross-entropy (numbers: squared error). Standardisation and
basis are fitted on the training fold; the inner folds share them, which was measured to move no score.

Legend: N rows, n training rows, m held-out rows, D features, r rank of the basis, K classes, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from probes import folds, ridge
from probes.basis import Basis
from probes.codelength import Labels
from probes.logistic import Path, Target, half_copy, log_probabilities
from probes.metrics import Gaussian, Prediction, row_bits

STRENGTHS = tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4))
"""Of logistic probes, strong to weak; `ridge.STRENGTHS` for numbers."""
INNER_FOLDS = 3
_WORTH_HALF = 2**22  # numbers in the rows from which bfloat16 copies are tried
_PATIENCE = 2  # strengths in a row that may be worse than the best before a path ends


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    dims: int | None = None
    """Probe the first `dims` principal directions of the training fold, not whitened."""
    guided: bool = False
    """Search logistic strengths only around the one that leave-one-out ridge points at."""
    device: str = "cpu"
    budget: int = 8 * 2**30
    """Bytes of memory that a representation may take while it is probed."""


class HeldOut(NamedTuple):
    """One task in one fold."""

    prediction: Prediction
    """For the m held-out rows, see `probes.metrics`."""
    strength: float
    at_edge: bool
    """The best strength ends the grid and its neighbour is worse: a still better one may lie outside."""
    gap: float | None
    """Certified share by which the objective may exceed its minimum; None for ridge, which is exact."""


class Weights(NamedTuple):
    """A probe on the features as they are: prediction = x @ weights + intercepts."""

    weights: np.ndarray
    """(D, C)"""
    intercepts: np.ndarray
    """(C,)"""


def hold_out(
    x_ND: np.ndarray,
    tasks: Sequence[Labels],
    groups: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> list[HeldOut]:
    """Probes of all tasks, fitted on the rows `train` and used on the rows `test`, (N,) bool each.

    A number that is known on no row of `train` is predicted as NaN; one that does not vary there has a scale of NaN.
    Raises UserError for features that are not finite.
    """
    # Rows of an inner fold lie together, so that folds are views.
    rows = np.flatnonzero(train)
    inner = folds.assign([_part(task, rows) for task in tasks], groups[rows], INNER_FOLDS, settings.seed)
    rows = rows[np.argsort(inner, kind="stable")]
    bounds = np.searchsorted(np.sort(inner), np.arange(INNER_FOLDS + 1))
    parts = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    labels = [_part(task, rows) for task in tasks]
    logistic = [i for i, task in enumerate(tasks) if task.kind != "number"]
    numbers = [i for i, task in enumerate(labels) if task.kind == "number" and np.isfinite(task.y).any()]
    found: dict[int, HeldOut] = {}
    if logistic:
        basis = _basis(x_ND[rows], settings, torch.float32)
        test_mr = basis.rotate(x_ND[test])
        chosen = _logistic(basis, [labels[i] for i in logistic], parts, test_mr, settings)
        found |= dict(zip(logistic, chosen, strict=True))
    if numbers:
        # Single precision predicts 5e-3 off at weak strengths.
        basis = _basis(x_ND[rows].astype(np.float64), settings, torch.float64)
        y_nT = np.stack([labels[i].y for i in numbers], 1)
        held_out_SnT = ridge.leave_out(basis, y_nT, ridge.STRENGTHS, np.sort(inner))
        choice = ridge.choose(ridge.residual_variance(held_out_SnT, y_nT), ridge.STRENGTHS)
        fit = ridge.fit(basis, y_nT, choice.strengths)
        mean_mT = ridge.predict(fit, basis.rotate(x_ND[test].astype(np.float64)))
        for at, i in enumerate(numbers):
            # At least a thousandth of the values' own deviation, so that no density is infinite; of equal values none.
            scale = max(np.sqrt(choice.residual_variance[at]), 1e-3 * np.nanstd(y_nT[:, at])) or np.nan
            gaussian = Gaussian(mean_mT[:, at], np.full(len(mean_mT), scale))
            found[i] = HeldOut(gaussian, float(choice.strengths[at]), bool(choice.at_edge[at]), None)
    nothing = np.full(int(test.sum()), np.nan)
    unknown = HeldOut(Gaussian(nothing, nothing), ridge.STRENGTHS[0], False, None)
    return [found.get(i, unknown) for i in range(len(tasks))]


def refit(
    x_ND: np.ndarray, tasks: Sequence[Labels], strengths: Sequence[float], settings: Settings = Settings()  # noqa: B008
) -> list[Weights]:
    """Probes of all rows, each task's at its own strength: to be applied elsewhere, not to be scored."""
    logistic = [i for i, task in enumerate(tasks) if task.kind != "number"]
    numbers = [i for i, task in enumerate(tasks) if task.kind == "number"]
    found: dict[int, Weights] = {}
    if logistic:
        basis = _basis(x_ND, settings, torch.float32)
        path = Path(basis.train, basis.eigenvalues, [_target(tasks[i]) for i in logistic])
        for strength in sorted({strengths[i] for i in logistic}, reverse=True):
            here = [at for at, i in enumerate(logistic) if strengths[i] == strength]
            fit = path.advance(strength, here)
            for at, columns in zip(here, fit.columns, strict=True):
                found[logistic[at]] = _on_features(basis, fit.weights[:, columns], fit.intercepts[columns])
    if numbers:
        basis = _basis(x_ND.astype(np.float64), settings, torch.float64)
        solved = ridge.fit(basis, np.stack([tasks[i].y for i in numbers], 1), [strengths[i] for i in numbers])
        for at, i in enumerate(numbers):
            found[i] = _on_features(basis, solved.weights[:, [at]], solved.intercepts[[at]])
    return [found[i] for i in range(len(tasks))]


# ---- the path of strengths


def _logistic(
    basis: Basis, labels: Sequence[Labels], parts: Sequence[slice], test_mr: torch.Tensor, settings: Settings
) -> list[HeldOut]:
    targets = [_target(task) for task in labels]
    columns = sum(max(task.n_classes, 1) if task.kind == "classes" else task.y.shape[1] for task in labels)
    half = half_copy(basis.train, columns) if basis.train.numel() >= _WORTH_HALF else None

    def path(segments: Sequence[slice]) -> Path:
        return Path(basis.train, basis.eigenvalues, targets, segments=segments, half=half)

    grid = [_around(basis, target, settings) for target in targets]
    paths = [path([other for other in parts if other is not part]) for part in parts]
    bits: list[list[float]] = [[] for _ in targets]
    going = set(range(len(targets)))
    for strength in STRENGTHS:
        here = [t for t in sorted(going) if strength in grid[t]]
        if not here:
            continue
        costs = np.zeros(len(here))
        for one, part in zip(paths, parts, strict=True):
            fit = one.advance(strength, here)
            predictions = log_probabilities(fit, basis.train[part])
            n = len(basis.train) - (part.stop - part.start)
            for at, (t, values) in enumerate(zip(here, predictions, strict=True)):
                costs[at] += _cost(labels[t], part, smoothed(labels[t], values, n))
        for t, cost in zip(here, costs, strict=True):
            bits[t].append(float(cost))
            if len(bits[t]) - 1 - int(np.argmin(bits[t])) >= _PATIENCE:
                going.discard(t)
    best = [int(np.argmin(of)) for of in bits]
    strengths = [grid[t][best[t]] for t in range(len(targets))]
    last = path([slice(0, len(basis.train))])
    found: dict[int, HeldOut] = {}
    for strength in STRENGTHS:
        # Weaker ones start from what stronger ones found.
        fit = last.advance(strength, here := [t for t, own in enumerate(strengths) if own <= strength])
        for at, (t, values) in enumerate(zip(here, log_probabilities(fit, test_mr), strict=True)):
            if strengths[t] == strength:
                edge = _at_edge(bits[t], best[t], grid[t])
                prediction = smoothed(labels[t], values, len(basis.train)).astype(np.float32)
                found[t] = HeldOut(prediction, strength, edge, float(fit.gap[at]))
    return [found[t] for t in range(len(targets))]


def _around(basis: Basis, target: Target, settings: Settings) -> tuple[float, ...]:
    y_nC = ridge.label_columns(target)
    varies = ((y_nC == 0).any(0) & (y_nC == 1).any(0)).any()
    return ridge.bracket(basis, target, STRENGTHS) if settings.guided and varies else STRENGTHS


def _at_edge(costs: Sequence[float], best: int, grid: Sequence[float]) -> bool:
    neighbour = {0: 1, len(grid) - 1: len(grid) - 2}.get(best)
    return neighbour is not None and 0 <= neighbour < len(costs) and costs[neighbour] > costs[best]


def _cost(task: Labels, part: slice, prediction: np.ndarray) -> float:
    """Bits of the labelled rows of a part, summed over it."""
    y = task.y[part]
    known = y >= 0 if task.kind == "classes" else np.ones(len(y), bool)
    return float(row_bits(task.kind, y[known], prediction[known]).sum())


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


def _basis(x_nD: np.ndarray, settings: Settings, dtype: torch.dtype) -> Basis:
    basis = Basis.fit(x_nD, device=settings.device, dtype=dtype)
    if settings.dims is None or settings.dims >= len(basis.eigenvalues):
        return basis
    first = slice(settings.dims)  # of the largest eigenvalues
    return replace(
        basis,
        rotation=basis.rotation[:, first].contiguous(),
        eigenvalues=basis.eigenvalues[first],
        train=basis.train[:, first].contiguous(),
    )


def _part(task: Labels, rows: np.ndarray) -> Labels:
    return task._replace(y=task.y[rows])


def _target(task: Labels) -> Target:
    return Target(task.y, task.n_classes)


def _on_features(basis: Basis, weights_rC: torch.Tensor, intercepts_C: torch.Tensor) -> Weights:
    on_scaled = (basis.rotation.double() @ weights_rC.double()).cpu().numpy()
    weights_DC = on_scaled * basis.scaler.factor[:, None]
    return Weights(weights_DC, intercepts_C.double().cpu().numpy() - basis.scaler.mean @ weights_DC)
