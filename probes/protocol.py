"""How a probe is scored: grouped folds, strengths chosen inside the training fold, held-out intervals.

Knows arrays; not runs, names or files. Every row is held out exactly once. Intervals come from resampling
groups of held-out predictions: they cover the choice of images, not that of the training sets.

Legend: n rows, D features, C labels of a multi-label task, R resamples, G groups of the whole run.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from extract.store import Kind
from probes import solver

INNER_FOLDS = 3
RESAMPLES = 1000
COVERAGE = 0.95

METRIC: dict[Kind, str] = {"classes": "top-1", "multilabel": "mAP", "number": "R2"}


class Choice(NamedTuple):
    strength: float
    at_edge: bool
    """The best strength ends the grid and its neighbour is worse: a still better one may lie outside."""


class HeldOut(NamedTuple):
    """One outer fold."""

    prediction: np.ndarray
    """For the held-out rows, see `solver.predict_path`."""
    floor: np.ndarray
    """The same without features, see `solver.predict_floor`."""
    choice: Choice
    unconverged: int
    """Fits that stopped at the iteration limit."""


class Score(NamedTuple):
    estimate: float
    lower: float
    upper: float
    """The interval's ends, COVERAGE of the resamples lie between."""
    floor: float
    n: int
    n_groups: int
    fold_scores: tuple[float, ...]
    draws: np.ndarray
    """(R,) the score of every resample; NaN where it is undefined."""


def split(kind: Kind, y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(n,) int: the fold in which each row is held out; no group is split, classes are spread evenly."""
    rows = np.zeros(len(y))
    if kind != "classes":
        pairs = GroupKFold(folds, shuffle=True, random_state=seed).split(rows, y, groups)
    elif len(np.unique(groups)) == len(groups):  # the same law, where the general splitter takes 0.2 s
        pairs = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, y)
    else:
        pairs = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, y, groups)
    fold = np.empty(len(y), dtype=int)
    for number, (_, held_out) in enumerate(pairs):
        fold[held_out] = number
    return fold


def choose_strength(
    kind: Kind, x_nD: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int, strengths: Sequence[float]
) -> Choice:
    """The strength (strong to weak) with the best score over inner folds; of equals the strongest.

    The path ends early after two scores below the best: weaker probes are the slowest to fit and overfit.
    """
    fold = split(kind, y, groups, INNER_FOLDS, seed)
    paths = [
        solver.predict_path(
            kind, x_nD[fold != k], y[fold != k], x_nD[fold == k], strengths, tolerance=solver.COARSE
        )
        for k in range(INNER_FOLDS)
    ]
    scores: list[float] = []
    prediction = np.empty(y.shape, dtype=int if kind == "classes" else float)
    for held_out in zip(*paths, strict=True):
        for k, values in enumerate(held_out):
            prediction[fold == k] = values
        scores.append(evaluate(kind, y, prediction, fold))
        best = int(np.argmax(scores))
        if len(scores) - 1 - best >= 2:
            break
    last = len(strengths) - 1
    neighbour = {0: 1, last: last - 1}.get(best)
    at_edge = neighbour is not None and 0 <= neighbour < len(scores) and scores[neighbour] < scores[best]
    return Choice(strengths[best], at_edge)


def hold_out(
    kind: Kind, x_nD: np.ndarray, y: np.ndarray, groups: np.ndarray, test: np.ndarray, seed: int
) -> HeldOut:
    """One outer fold: the strength chosen and the probe fitted without the rows of `test` (n,) bool."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_x, train_y = x_nD[~test], y[~test]
        choice = choose_strength(kind, train_x, train_y, groups[~test], seed, solver.STRENGTHS[kind])
        (prediction,) = solver.predict_path(kind, train_x, train_y, x_nD[test], [choice.strength])
    floor = solver.predict_floor(kind, train_y, int(test.sum()))
    return HeldOut(prediction, floor, choice, solver.unconverged(caught))


def resample_groups(n_groups: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(R, G) how often each resample draws each group of the run. One draw serves all tasks and
    representations, which keeps every comparison paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples).astype(np.uint16)


def score(
    kind: Kind,
    y: np.ndarray,
    prediction: np.ndarray,
    floor: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray,
    draws_RG: np.ndarray,
) -> Score:
    """Held-out predictions of all folds, and the floor's, against the labels, with an interval."""
    step = max(1, 2**21 // len(y))  # some 16 MB of weights at a time
    draws = np.concatenate(
        [
            weighted(kind, y, prediction, fold, draws_RG[start : start + step][:, groups].astype(np.float64))
            for start in range(0, len(draws_RG), step)
        ]
    )
    lower, upper = interval(draws)
    return Score(
        estimate=evaluate(kind, y, prediction, fold),
        lower=lower,
        upper=upper,
        floor=evaluate(kind, y, floor, fold),
        n=len(y),
        n_groups=len(np.unique(groups)),
        fold_scores=tuple(
            evaluate(kind, y[fold == k], prediction[fold == k], fold[fold == k]) for k in np.unique(fold)
        ),
        draws=draws,
    )


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The percentile interval of resamples (R,)."""
    tail = (1 - COVERAGE) / 2
    lower, upper = np.nanquantile(draws, [tail, 1 - tail])
    return float(lower), float(upper)


def evaluate(kind: Kind, y: np.ndarray, prediction: np.ndarray, fold: np.ndarray) -> float:
    """The metric of the kind, every row counted once."""
    return float(weighted(kind, y, prediction, fold, np.ones((1, len(y))))[0])


def weighted(
    kind: Kind, y: np.ndarray, prediction: np.ndarray, fold: np.ndarray, weights_Rn: np.ndarray
) -> np.ndarray:
    """(R,) the metric with every row counted as often as its weight says.

    classes: the share of rows whose class is right. number: R2, the share of the variance explained.
    multilabel: average precision within each fold (scores of different probes do not rank together), averaged
    over the folds and then over the labels; unknown entries are left out.
    """
    if kind == "classes":
        return weights_Rn @ (y == prediction) / weights_Rn.sum(1)
    if kind == "number":
        total = weights_Rn.sum(1)
        left = weights_Rn @ (y - prediction) ** 2
        centred = y - y.mean()
        spread = weights_Rn @ centred**2 - (weights_Rn @ centred) ** 2 / total
        return 1 - np.divide(left, spread, out=np.full(len(left), np.nan), where=spread > 0)
    per_label = [
        _mean_known(
            [
                average_precision(y[rows, label] == 1, prediction[rows, label], weights_Rn[:, rows])
                for rows in (np.flatnonzero((fold == k) & (y[:, label] != 255)) for k in np.unique(fold))
            ]
        )
        for label in range(y.shape[1])
    ]
    return _mean_known(per_label)


def average_precision(positive: np.ndarray, scores: np.ndarray, weights_Rn: np.ndarray) -> np.ndarray:
    """(R,) precision averaged over the positives, equal scores counted together as in scikit-learn; NaN
    without a positive. A constant score gives the share of positives.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_n = np.searchsorted(-ranked, -ranked, side="right") - 1  # where the block of equal scores ends
    weights = weights_Rn[:, order]
    hits = weights * positive[order]
    above_hits, above = np.cumsum(hits, 1)[:, last_n], np.cumsum(weights, 1)[:, last_n]
    precision = np.divide(above_hits, above, out=np.zeros_like(above), where=above > 0)
    total = hits.sum(1)
    return np.divide((hits * precision).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def _mean_known(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of arrays (R,) entry by entry, NaN entries left out."""
    stacked = np.stack(columns)
    known = np.isfinite(stacked)
    count = known.sum(0)
    total = np.where(known, stacked, 0).sum(0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
