"""Ridge probes of numbers, and what ridge tells of logistic ones. Knows arrays and a basis; not tasks, folds or files.

A probe minimises `mean squared error / 2 + strength / 2 * ||w||^2` over the known rows of its target, free intercept:
scikit-learn's Ridge with `alpha = strength * n`, n the known rows that it is fitted on. Targets stand side by side and
NaN is an unknown value; targets that are known on the same rows share one decomposition, any other gets its own.

Held-out predictions come from the fit of all rows, without a fit a block: with H the hat matrix, what a fit without
block B would miss is `(I - H_BB)^-1` times what the fit of all rows misses (Cook 1977 for one row). They are exact but
for the scaler, which has seen the held-out rows too: one scaler a fold moved no accuracy by more than 0.2 points.

float64 throughout: with a float32 decomposition, weak strengths predict 5e-3 off. Legend: n training rows, k of them
known, m other rows, D features, r rank of the basis, q rank over the known rows, T targets, t of them that share a
mask, S strengths, g blocks of b rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htc_probe.probes.solvers.basis import Basis
from htc_probe.probes.solvers.problems import Target, label_columns

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(6, -19, -1))
"""Strong to weak, 10^3 to 10^-9: all are tried of every number, as one decomposition serves all of them."""

COARSE = STRENGTHS[::2]
"""Fine enough where a decade either way is searched again."""

_PIECE = 2**24  # numbers of a copy of rows: 128 MB


class Fit(NamedTuple):
    weights: Tensor
    """(r, T) in the coordinates of the basis."""
    intercepts: Tensor
    """(T,)."""


class Choice(NamedTuple):
    strengths: np.ndarray
    """(T,) of the smallest held-out squared error; of equals the first."""
    at_edge: np.ndarray
    """(T,) bool: it ends the grid, better than its neighbour by a thousandth: a still better one may lie outside."""
    residual_variance: np.ndarray
    """(T,) the mean held-out squared error at that strength, in the target's unit squared; NaN where there is none."""


class _Known(NamedTuple):
    """The rows on which some targets are known, centred and turned onto their own principal axes."""

    targets: np.ndarray
    """(t,) their columns."""
    rows: np.ndarray
    """(k,) indices into the training rows."""
    x: Tensor
    """(k, q) centred; its columns are orthogonal, of squared norm k * eigenvalue."""
    eigenvalues: Tensor
    """(q,) positive, descending."""
    centre: Tensor
    """(r,) of these rows in the basis."""
    turn: Tensor | None
    """(r, q) from the basis to x; None where they are the same."""


def leave_out(basis: Basis, y_nT: np.ndarray, strengths: Sequence[float], blocks_n: np.ndarray) -> np.ndarray:
    """(S, n, T) what every row is predicted to be by the fit on the rows of all other blocks.

    `basis`: of the n training rows, in float64; y: float, NaN where unknown; blocks: int, the fold or the group of
    each row; all different leaves one row out. NaN where y is unknown, and where no known row lies in another block.

    Raises ValueError: shapes that do not fit, infinite values, a target without known rows, strengths not above 0.
    """
    _check(strengths)
    if len(blocks_n) != len(y_nT):
        raise ValueError(f"{len(blocks_n)} blocks for {len(y_nT)} rows: one a row")
    held_out = np.full((len(strengths), *y_nT.shape), np.nan)
    for known in _by_mask(basis, y_nT):
        rows_k1 = known.rows[:, None]
        y_kt = torch.from_numpy(y_nT[rows_k1, known.targets]).to(known.x)
        predicted_Skt = _leave_out(known.x, known.eigenvalues, y_kt, strengths, blocks_n[known.rows])
        held_out[:, rows_k1, known.targets] = predicted_Skt.cpu().numpy()
    return held_out


def residual_variance(held_out_SnT: np.ndarray, y_nT: np.ndarray) -> np.ndarray:
    """(S, T) mean squared error of held-out predictions, NaN where there are none.

    With one row left out at once it is the variance that a Gaussian held-out code needs: the probe of a number leaves
    `log2(2 pi e variance) / 2` bits of it.
    """
    error_SnT = (held_out_SnT - y_nT) ** 2
    count_ST = (~np.isnan(error_SnT)).sum(1)
    return np.divide(np.nansum(error_SnT, 1), count_ST, out=np.full(count_ST.shape, np.nan), where=count_ST > 0)


def choose(variance_ST: np.ndarray, strengths: Sequence[float]) -> Choice:
    """The best strength of every target, from what `residual_variance` gives; strengths run strong to weak."""
    best_T = variance_ST.argmin(0)
    last, targets = len(strengths) - 1, np.arange(variance_ST.shape[1])
    neighbour_T = np.where(best_T == 0, min(1, last), best_T - 1)
    at_end_T = (best_T == 0) | (best_T == last)
    at_edge_T = at_end_T & (variance_ST[neighbour_T, targets] > 1.001 * variance_ST[best_T, targets])
    return Choice(np.asarray(strengths, dtype=float)[best_T], at_edge_T, variance_ST[best_T, targets])


def fit(basis: Basis, y_nT: np.ndarray, strengths_T: Sequence[float] | np.ndarray) -> Fit:
    """The probes of all known rows, each at its own strength. Arguments and errors: see `leave_out`."""
    _check(strengths_T)
    if len(strengths_T) != y_nT.shape[1]:
        raise ValueError(f"{len(strengths_T)} strengths for {y_nT.shape[1]} targets: one a target")
    rank = basis.train.shape[1]
    device = basis.train.device
    weights_rT = torch.zeros(rank, y_nT.shape[1], dtype=torch.float64, device=device)
    intercepts_T = torch.zeros(y_nT.shape[1], dtype=torch.float64, device=device)
    for known in _by_mask(basis, y_nT):
        y_kt = torch.from_numpy(y_nT[known.rows[:, None], known.targets]).to(known.x)
        strength_t = torch.as_tensor(np.asarray(strengths_T, dtype=float)[known.targets], device=device)
        mean_t = y_kt.mean(0)
        weights_qt = known.x.T @ (y_kt - mean_t) / len(y_kt) / (known.eigenvalues[:, None] + strength_t)
        weights_rt = weights_qt if known.turn is None else known.turn @ weights_qt
        weights_rT[:, known.targets] = weights_rt
        intercepts_T[known.targets] = mean_t - known.centre @ weights_rt
    return Fit(weights_rT, intercepts_T)


def predict(fit: Fit, x_mr: Tensor) -> np.ndarray:
    """(m, T) for rows in the coordinates of the basis."""
    return (x_mr.to(fit.weights) @ fit.weights + fit.intercepts).cpu().numpy()


def brackets(basis: Basis, targets: Sequence[Target], grid: Sequence[float]) -> list[tuple[float, ...]]:
    """Of each target, the strengths of `grid` (strong to weak) around which its logistic probe should be searched; none
    where no label varies.

    Least squares on one-hot labels, left out one by one, has its best strength s; the curvature of the logistic loss is
    that of least squares times p (1 - p), so the logistic probe shrinks its directions alike at `mean p (1 - p) * s`.
    Gives the nearest strength of the grid and those within a decade of it, for the s of the least squared error and for
    that of errors cut at half a class beyond right and wrong, which a few rows far out do not decide. A hint: when the
    best of them is the first or the last, search on from there. A basis in float32 will do.

    Labels of one task may be known on different rows. A decomposition each would cost more than the search that it
    saves, so unknown labels count as the mean and predictions are scaled back, exact where all rows are known.
    """
    columns = [label_columns(target) for target in targets]
    y_nC = np.concatenate(columns, 1)
    of_C = np.repeat(np.arange(len(targets)), [part.shape[1] for part in columns])
    known_nC = ~np.isnan(y_nC)
    count_C = known_nC.sum(0)
    mean_C = np.nansum(y_nC, 0) / np.maximum(count_C, 1)
    varies_C = (mean_C > 0) & (mean_C < 1)
    if not varies_C.any():
        return [() for _ in targets]
    y_nC, known_nC, of_C = y_nC[:, varies_C], known_nC[:, varies_C], of_C[varies_C]
    count_C, mean_C = count_C[varies_C], mean_C[varies_C]
    filled_nC = np.where(known_nC, y_nC, mean_C)
    held_out_SnC = leave_out(basis, filled_nC, COARSE, np.arange(len(filled_nC)))
    held_out_SnC = mean_C + (held_out_SnC - mean_C) * (len(filled_nC) / count_C)
    variances = [residual_variance(predicted, y_nC) for predicted in (held_out_SnC, held_out_SnC.clip(-0.5, 1.5))]
    brackets: list[tuple[float, ...]] = []
    for number in range(len(targets)):
        own_C = of_C == number
        if not own_C.any():
            brackets.append(())
            continue
        curvature = float((mean_C * (1 - mean_C))[own_C].mean())
        best = {int(variance_SC[:, own_C].sum(1).argmin()) for variance_SC in variances}
        near = {strength for rung in best for strength in around(curvature * COARSE[rung], grid)}
        brackets.append(tuple(strength for strength in grid if strength in near))
    return brackets


def around(strength: float, grid: Sequence[float]) -> tuple[float, ...]:
    """The strengths of the grid within a decade of the one that is nearest."""
    nearest = min(grid, key=lambda other: abs(np.log(other / strength)))
    return tuple(other for other in grid if abs(np.log10(other / nearest)) < 1 + 1e-9)


def solve(gram_qq: Tensor, xy_qt: Tensor, alpha: float) -> Tensor:
    """(q, t) weights from normal equations: `(x'x + alpha)^-1 x'y`."""
    regular_qq = gram_qq.clone()
    regular_qq.diagonal().add_(alpha)
    return torch.cholesky_solve(xy_qt, torch.linalg.cholesky(regular_qq))


def _check(strengths: Sequence[float] | np.ndarray) -> None:
    if not all(0 < strength < np.inf for strength in strengths):
        raise ValueError(f"strengths {strengths} must lie above 0")


def _by_mask(basis: Basis, y_nT: np.ndarray) -> Iterator[_Known]:
    """One decomposition for all targets that are known on the same rows."""
    train = basis.train.double()
    if y_nT.ndim != 2 or len(y_nT) != len(train):
        raise ValueError(f"y has shape {y_nT.shape}: expected ({len(train)}, targets)")
    if np.isinf(y_nT).any():
        raise ValueError("y holds infinite values; unknown ones are NaN")
    known_nT = ~np.isnan(y_nT)
    masks: dict[bytes, list[int]] = {}
    for target in range(y_nT.shape[1]):
        masks.setdefault(known_nT[:, target].tobytes(), []).append(target)
    for targets in map(np.array, masks.values()):
        rows = np.flatnonzero(known_nT[:, targets[0]])
        if not len(rows):
            raise ValueError(f"target {targets[0]} is known on no row")
        if len(rows) == len(train):
            yield _Known(targets, rows, train, basis.eigenvalues.double(), train.new_zeros(train.shape[1]), None)
            continue
        x_kr = train[rows]
        centre_r = x_kr.mean(0)
        x_kr -= centre_r
        eigenvalues_q, turn_rq = _principal_axes(x_kr)
        yield _Known(targets, rows, x_kr @ turn_rq, eigenvalues_q, centre_r, turn_rq)


def _principal_axes(x_kr: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (q,) of x'x / k above rounding, descending, and their directions (r, q); x is centred."""
    k, r = x_kr.shape
    values, vectors = torch.linalg.eigh((x_kr.T @ x_kr if k > r else x_kr @ x_kr.T) / k)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = values > max(k, r) * torch.finfo(values.dtype).eps * values[:1]
    values, vectors = values[keep], vectors[:, keep]
    return values, vectors if k > r else x_kr.T @ vectors / (k * values).sqrt()


def _leave_out(
    x_kq: Tensor, eigenvalues_q: Tensor, y_kt: Tensor, strengths: Sequence[float], blocks_k: np.ndarray
) -> Tensor:
    """(S, k, t). Works on U = x / |columns|: what a fit leaves of y is the part outside U, and of the part inside
    the share alpha / (k * eigenvalue + alpha) of each direction. So there is no 1 - h to cancel where h is nearly 1.
    """
    k = len(x_kq)
    # Where k - 1 directions stand clear of rounding, every centred vector lies in U and nothing is outside.
    floor = k * torch.finfo(x_kq.dtype).eps * eigenvalues_q[:1]
    fills = int((eigenvalues_q > floor).sum()) >= k - 1
    if fills:
        x_kq, eigenvalues_q = x_kq[:, : k - 1], eigenvalues_q[: k - 1]
    q = x_kq.shape[1]
    norm_q = (k * eigenvalues_q).sqrt()
    mean_t = y_kt.mean(0)
    y_kt = y_kt - mean_t
    inside_qt = x_kq.T @ y_kt / norm_q[:, None]
    held_out_Skt = y_kt.new_full((len(strengths), *y_kt.shape), torch.nan)
    for members_gb in _blocks_by_size(blocks_k):
        b = members_gb.shape[1]
        alpha_S = torch.tensor(strengths, dtype=x_kq.dtype, device=x_kq.device) * (k - b)
        if b == k:
            continue
        if _cost_of_rest(b, k - b, q, len(strengths)) < len(strengths) * (b * b * q + b**3 / 3):
            for block_b in members_gb:
                held_out_Skt[:, block_b] = mean_t + _from_rest(x_kq, norm_q, inside_qt, y_kt, alpha_S, block_b)
            continue
        left_Sq = alpha_S[:, None] / (norm_q**2 + alpha_S[:, None])
        for part_gb in members_gb.split(max(1, _PIECE // max(1, b * q))):
            u_gbq, y_gbt = x_kq[part_gb] / norm_q, y_kt[part_gb]
            outside_gbb, outside_gbt = torch.zeros(()), torch.zeros(())
            if not fills:
                own = u_gbq.square().sum(-1, keepdim=True) if b == 1 else u_gbq @ u_gbq.mT
                outside_gbb = torch.eye(b, dtype=own.dtype, device=own.device) - 1 / k - own
                outside_gbt = y_gbt - u_gbq @ inside_qt
            for s, left_q in enumerate(left_Sq):
                missed_gbt = outside_gbt + u_gbq @ (left_q[:, None] * inside_qt)
                if b == 1:
                    missed_gbt = missed_gbt / (outside_gbb + (u_gbq.square() @ left_q)[..., None])
                else:
                    missed_gbt = torch.linalg.solve(outside_gbb + (u_gbq * left_q) @ u_gbq.mT, missed_gbt)
                held_out_Skt[s, part_gb] = mean_t + y_gbt - missed_gbt
    return held_out_Skt


def _blocks_by_size(blocks_k: np.ndarray) -> Iterator[Tensor]:
    """(g, b) int: the rows of all blocks of one size, a block a row."""
    _, block_k, size_of = np.unique(blocks_k, return_inverse=True, return_counts=True)
    order_k = np.argsort(block_k, kind="stable")
    for size in np.unique(size_of):
        yield torch.from_numpy(order_k[(size_of == size)[block_k[order_k]]].reshape(-1, size))


def _cost_of_rest(b: int, rest: int, q: int, strengths: int) -> float:
    """Multiplications of `_from_rest`, to be compared with those of the block formula."""
    return min(b, rest) * q * q + strengths * q**3 / 3


def _from_rest(
    x_kq: Tensor, norm_q: Tensor, inside_qt: Tensor, y_kt: Tensor, alpha_S: Tensor, block_b: Tensor
) -> Tensor:
    """(S, b, t) predictions of one block from the normal equations of the other rows; y and x are centred.

    For blocks of many more rows than x has columns. The equations are what the block's rows leave of those of all
    rows, or a sum over the other rows where these are fewer, which is also where a difference would cancel.
    """
    k, b = len(x_kq), len(block_b)
    x_bq, y_bt = x_kq[block_b], y_kt[block_b]
    mean_q, mean_t = -x_bq.sum(0) / (k - b), -y_bt.sum(0) / (k - b)
    if k - b < b:
        is_rest_k = torch.ones(k, dtype=torch.bool, device=x_kq.device)
        is_rest_k[block_b] = False
        x_rest, y_rest = x_kq[is_rest_k] - mean_q, y_kt[is_rest_k]
        gram_qq, xy_qt = x_rest.T @ x_rest, x_rest.T @ y_rest
    else:
        gram_qq = torch.diag(norm_q**2) - x_bq.T @ x_bq - (k - b) * torch.outer(mean_q, mean_q)
        xy_qt = norm_q[:, None] * inside_qt - x_bq.T @ y_bt - (k - b) * torch.outer(mean_q, mean_t)
    weights_Sqt = torch.stack([solve(gram_qq, xy_qt, alpha) for alpha in alpha_S.tolist()])
    return mean_t + (x_bq - mean_q) @ weights_Sqt
