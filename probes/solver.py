"""Linear probes along a path of L2 strengths. Knows arrays; not tasks, folds, scores or files.

Every probe minimises `mean loss + strength / 2 * ||W||^2` with a free intercept, on features standardised
with the mean and deviation of its training rows; loss: cross-entropy in nats, or half the squared error. The
strength is relative to the mean loss, so that it means the same on training sets of different size. In
scikit-learn's terms `C = 1 / (strength * n)` for logistic regression and `alpha = strength * n` for ridge.

Legend: n training rows, m test rows, D features, K classes, C labels of a multi-label task.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from extract.store import Kind

STRENGTHS: dict[Kind, tuple[float, ...]] = {
    "classes": tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4)),
    "multilabel": tuple(10.0**power for power in (2, 1, 0, -1, -2, -3, -4)),
    # One decomposition serves every strength of ridge, so its grid is finer and wider.
    "number": tuple(10.0 ** (power / 2) for power in range(6, -13, -1)),
}
"""Strong to weak, as the paths run."""

TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss
COARSE = 1e-3  # the same while strengths are only compared: a quarter less time, the same choices
MAX_ITERATIONS = 1000


class Scaler(NamedTuple):
    """Standardises features; a feature that is constant over the training rows becomes 0 everywhere."""

    mean_D: np.ndarray
    factor_D: np.ndarray
    """1 / standard deviation, or 0 for a constant feature."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) any float -> (n, D) float64."""
        return (rows.astype(np.float64) - self.mean_D) * self.factor_D


def fit_scaler(rows_nD: np.ndarray) -> Scaler:
    varies = rows_nD.max(0) > rows_nD.min(0)  # exact, where a deviation of equal numbers may round to 1e-17
    deviation = rows_nD.std(0, dtype=np.float64)
    factor = np.divide(1.0, deviation, out=np.zeros(rows_nD.shape[1]), where=varies & (deviation > 0))
    return Scaler(rows_nD.mean(0, dtype=np.float64), factor)


def predict_path(
    kind: Kind,
    train_nD: np.ndarray,
    y: np.ndarray,
    test_mD: np.ndarray,
    strengths: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
) -> Iterator[np.ndarray]:
    """Predictions on the test rows, one array a strength, in the order given (strong to weak runs fastest).

    classes: y (n,) int, gives (m,) the likeliest class; multilabel: y (n, C) of 0, 1 and 255 (unknown, left
    out), gives (m, C) scores that rank; number: y (n,) float, gives (m,) values. Lazy: a strength is fitted
    when asked for. Warns with scikit-learn's ConvergenceWarning. Features that do not vary give the floor's
    prediction.
    """
    scaler = fit_scaler(train_nD)
    if not scaler.factor_D.any():
        constant = predict_floor(kind, y, len(test_mD))
        yield from (constant for _ in strengths)
        return
    train, test = scaler(train_nD), scaler(test_mD)
    if kind == "classes":
        for model in _logistic_path(train, y, strengths, tolerance):
            yield model.predict(test)
    elif kind == "number":
        yield from _ridge_path(train, y, test, strengths)
    else:
        paths = [_label_path(train, y[:, label], test, strengths, tolerance) for label in range(y.shape[1])]
        for columns in zip(*paths, strict=True):
            yield np.stack(columns, 1)


def predict_floor(kind: Kind, y: np.ndarray, m: int) -> np.ndarray:
    """What is predicted without features, from training labels alone: the commonest class (the first of
    equals), every label's share of positives, or the mean.
    """
    if kind == "classes":
        return np.full(m, np.bincount(y).argmax())
    if kind == "number":
        return np.full(m, y.mean())
    known = y != 255
    share_C = ((y == 1) & known).sum(0) / np.maximum(known.sum(0), 1)
    return np.tile(share_C, (m, 1))


def _logistic_path(
    train: np.ndarray, y: np.ndarray, strengths: Sequence[float], tolerance: float
) -> Iterator[LogisticRegression]:
    """The same object again and again, fitted from where the strength before left it."""
    model = LogisticRegression(solver="lbfgs", tol=tolerance, max_iter=MAX_ITERATIONS, warm_start=True)
    for strength in strengths:
        model.set_params(C=1.0 / (strength * len(y)))
        yield model.fit(train, y)


def _label_path(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, strengths: Sequence[float], tolerance: float
) -> Iterator[np.ndarray]:
    known = y != 255
    if len(np.unique(y[known])) < 2:
        yield from (np.zeros(len(test)) for _ in strengths)
        return
    for model in _logistic_path(train[known], y[known], strengths, tolerance):
        yield model.decision_function(test)


def _ridge_path(
    train: np.ndarray, y: np.ndarray, test: np.ndarray, strengths: Sequence[float]
) -> Iterator[np.ndarray]:
    """Ridge for every strength from one eigendecomposition of the smaller Gram matrix."""
    n, width = train.shape
    mean = y.mean()
    if width <= n:
        values, basis = np.linalg.eigh(train.T @ train)
        rotated, target = test @ basis, basis.T @ (train.T @ (y - mean))
    else:
        values, basis = np.linalg.eigh(train @ train.T)
        rotated, target = test @ (train.T @ basis), basis.T @ (y - mean)
    values = np.maximum(values, 0)
    for strength in strengths:
        yield mean + rotated @ (target / (values + strength * n))


def unconverged(caught: Sequence[warnings.WarningMessage]) -> int:
    """How many fits stopped at MAX_ITERATIONS, from what `warnings.catch_warnings(record=True)` caught."""
    return sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
