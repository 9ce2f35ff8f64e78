"""Features that do not fit into memory, read in tiles of rows. Knows rows, labels and a budget in bytes; not runs,
layers or scores.

`survey` reads the features once. It gives the scaler, the eigenbasis, a sample of rows, and ridge probes of all numbers
at every strength and fold: these are exact, because sums of products hold all that least squares asks for.
`lbfgs` goes on from there to logistic probes. Memory does not depend on the number of rows, but for the labels
and a few numbers a row.

Legend: n rows, b of a tile, s of the sample, D features, r rank of the basis, T numbers, t of them known on the same
rows, C columns of labels, S strengths.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.errors import UserError
from htc_probe.probes.solvers import ridge
from htc_probe.probes.solvers.basis import Scaler, not_finite
from htc_probe.probes.solvers.problems import Fit, Target, label_columns
from htc_probe.probes.solvers.products import multiplies_bfloat16

_BUDGET = 4 * 2**30
"""Bytes."""

_TILE = (128, 4096)
"""Rows of a tile, at least and at most."""
_SAMPLE = (1024, 8)
"""Rows of the sample at least, and a feature at most: more of them hardly save a pass."""
PAIRS = 16
"""Passes that a StreamedPath remembers."""


class Features(Protocol):
    """An h5py dataset, a NumPy array or memmap, or anything else that gives rows a slice at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class Plan(NamedTuple):
    """What fits into a budget."""

    tile: int
    """Rows read at once; three tiles are in memory, one in use, one ready and one being read."""
    sample: int
    """Rows kept for Hessians, at most."""
    grams: int
    """Sums of products (D, D) held at once."""


def plan(features: Features, columns: int, folds: int, budget: int) -> Plan:
    """How `survey` and StreamedPath keep within `budget` bytes, labels and torch itself aside.

    `columns`: of all targets side by side that one StreamedPath solves. Raises UserError where it cannot be done.
    """
    width = features.shape[1]
    gram = 8 * width * width
    row = 48 * width + 60 * columns  # three times as stored, three times in double precision
    surveying = (6 + folds) * gram
    probing = gram + (2 * PAIRS + 25) * 4 * width * columns  # in arrays as large as the weights
    fixed, sampled = max(surveying, probing), 8 * width + 40 * columns
    least = fixed + _TILE[0] * row + _SAMPLE[0] * sampled
    if budget < least:
        raise UserError(
            f"{budget / 2**20:.0f} MB are too little to stream {width} features: give at least "
            f"{np.ceil(least / 2**20):.0f} MB"
        )
    tile = int(np.clip(budget // 8 // row, *_TILE))
    tile = min(tile, int((budget - fixed - _SAMPLE[0] * sampled) // row))
    left = budget - tile * row
    sample = int(min(max(_SAMPLE[0], _SAMPLE[1] * width), (left - fixed) // sampled))
    return Plan(tile, sample, int((left - sample * sampled - 6 * gram) // gram))


def tiles(features: Features, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, (b, D)) from first to last, read ahead in a thread of its own."""
    ready: queue.Queue[tuple[int, np.ndarray] | BaseException | None] = queue.Queue(1)
    stopped = threading.Event()

    def put(item: tuple[int, np.ndarray] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for first in range(0, features.shape[0], rows):
                if stopped.is_set():
                    return
                put((first, np.asarray(features[first : first + rows])))
            put(None)
        except BaseException as error:  # raised again where the tile is asked for
            put(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        reader.join()


_AnyFit = TypeVar("_AnyFit", Fit, ridge.Fit)


class Survey(NamedTuple):
    """What one pass over the training rows gives."""

    plan: Plan
    n: int
    """Training rows."""
    scaler: Scaler
    rotation: Tensor
    """(D, r) float32, as in a Basis."""
    eigenvalues: Tensor
    """(r,) float32."""
    rows: np.ndarray
    """(s,) which rows are in the sample, ascending."""
    sample: Tensor
    """(s, r) in the basis; bfloat16 where that is faster."""
    choice: ridge.Choice
    """The strengths of the numbers."""
    variance: np.ndarray
    """(S, T) mean held-out squared error of the numbers."""
    numbers: ridge.Fit
    """Their probes in the basis, on all training rows."""
    centres: tuple[float, ...]
    """Of each label target, what `ridge.around` takes to bracket the strengths of a logistic probe; NaN where no label
    varies."""

    def standardised(self, features: Features) -> Iterator[Tensor]:
        """(b, D) float32 tiles of all rows, in order; what `flat` probes take."""
        for _, tile in tiles(features, self.plan.tile):
            yield self.standardise(torch.from_numpy(tile))

    def flat(self, fit: _AnyFit) -> _AnyFit:
        """The probe for rows of `standardised`, which spares rotating them."""
        return fit._replace(weights=self.rotation.to(fit.weights) @ fit.weights)

    def standardise(self, x_bD: Tensor) -> Tensor:
        mean, factor = (torch.from_numpy(part).to(self.rotation) for part in self.scaler)
        return x_bD.to(self.rotation, copy=True).sub_(mean).mul_(factor)


@dataclass
class _Sums:
    """Sums over some rows, of which x and y are measured from a fixed point; float64."""

    rows: int
    x: Tensor
    """(D,)"""
    xx: Tensor
    """(D, D); while rows are added, right in the upper triangle alone."""
    y: Tensor
    """(t,)"""
    yy: Tensor
    """(t,)"""
    xy: Tensor
    """(D, t)"""

    @classmethod
    def zero(cls, width: int, targets: int, device: torch.device) -> _Sums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(0, zeros(width), zeros(width, width), zeros(targets), zeros(targets), zeros(width, targets))

    def add_rows(self, x_bD: Tensor, y_bt: Tensor) -> None:
        self.rows += len(x_bD)
        self.x += x_bD.sum(0)
        self.y += y_bt.sum(0)
        self.yy += y_bt.square().sum(0)
        self.xy.addmm_(x_bD.T, y_bt)
        step = 512
        for first in range(0, x_bD.shape[1], step):
            self.xx[first : first + step, first:].addmm_(x_bD[:, first : first + step].T, x_bD[:, first:])

    def centred(self, mean_D: Tensor, mean_t: Tensor, factor_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x'x (D, D), x'y (D, t) and y'y (t,) of (x - mean) * factor and y - mean."""
        xx = self.xx - torch.outer(mean_D, self.x)
        xx -= torch.outer(self.x, mean_D)
        xx += self.rows * torch.outer(mean_D, mean_D)
        xx *= factor_D
        xx *= factor_D[:, None]
        xy = self.xy - torch.outer(mean_D, self.y) - torch.outer(self.x - self.rows * mean_D, mean_t)
        yy = self.yy - 2 * mean_t * self.y + self.rows * mean_t.square()
        return xx, xy * factor_D[:, None], yy

    def add(self, other: _Sums, sign: int = 1) -> None:
        self.rows += sign * other.rows
        for name in ("x", "xx", "y", "yy", "xy"):
            getattr(self, name).add_(getattr(other, name), alpha=sign)


@dataclass(frozen=True)
class _Columns:
    """Numbers and labels side by side, as least squares sees them."""

    numbers: np.ndarray
    """(n, T)"""
    labels: Sequence[Target]
    folds: np.ndarray
    """(n,) -1 for rows that are no training rows."""
    mean: np.ndarray
    """(T + C,) over the known training rows."""
    scale_back: np.ndarray
    """(T + C,) training rows a known one, for labels, which count as the mean where unknown; 1 for numbers."""
    cohorts: Sequence[np.ndarray]
    """Columns fitted on the same rows; the first on all training rows."""

    @classmethod
    def of(cls, numbers_nT: np.ndarray, labels: Sequence[Target], folds_n: np.ndarray) -> _Columns:
        training_n = folds_n >= 0
        n = int(training_n.sum())
        counts: list[np.ndarray] = [np.zeros(0)]
        sums: list[np.ndarray] = [np.zeros(0)]
        masks: dict[bytes, list[int]] = {_digest(training_n): []}
        for column, y_n in enumerate(numbers_nT.T):
            known_n = training_n & ~np.isnan(y_n)
            masks.setdefault(_digest(known_n), []).append(column)
            counts.append(known_n.sum(keepdims=True))
            sums.append(y_n[known_n].sum(keepdims=True))
        width = numbers_nT.shape[1]
        for target in labels:
            count, total = label_sums(target, training_n)
            masks[next(iter(masks))].extend(range(width, width + len(count)))
            width += len(count)
            counts.append(count)
            sums.append(total)
        count_C = np.concatenate(counts)
        scale_back = np.where(np.arange(width) < numbers_nT.shape[1], 1.0, n / np.maximum(count_C, 1))
        mean = np.concatenate(sums) / np.maximum(count_C, 1)
        return cls(numbers_nT, labels, folds_n, mean, scale_back, [np.array(c, dtype=int) for c in masks.values()])

    def rows(self, first: int, stop: int) -> np.ndarray:
        """(b, T + C), measured from the mean; NaN for unknown numbers, 0 for unknown labels."""
        cut = slice(first, stop)
        labels = [label_columns(Target(target.y[cut], target.classes)) for target in self.labels]
        y = np.concatenate([self.numbers[cut], *labels], 1) - self.mean
        width = self.numbers.shape[1]
        y[:, width:] = np.nan_to_num(y[:, width:])
        return y


def _digest(mask_n: np.ndarray) -> bytes:
    return hashlib.sha256(mask_n.tobytes()).digest()


def label_sums(target: Target, training_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many training rows are known and how many of them are 1, of each of `problems.label_columns`."""
    count, total = 0, 0
    for first in range(0, len(training_n), _TILE[1]):
        cut = slice(first, first + _TILE[1])
        columns = label_columns(Target(target.y[cut], target.classes))[training_n[cut]]
        count, total = count + (~np.isnan(columns)).sum(0), total + np.nansum(columns, 0)
    return np.asarray(count), np.asarray(total)


def survey(
    features: Features,
    folds_n: np.ndarray,
    numbers_nT: np.ndarray | None = None,
    labels: Sequence[Target] = (),
    *,
    pairs: Collection[tuple[int, int]] = (),
    strengths: Sequence[float] = ridge.STRENGTHS,
    budget: int = _BUDGET,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Survey:
    """One pass over the features; one more for every few sets of rows on which some numbers are known.

    `folds_n`: int, the fold that holds each row out; -1 for rows that are no training rows. `numbers_nT`: float, NaN
    where unknown, probed by ridge at each of `strengths`; `pairs`: two of them that share the strength of their least
    error together. `labels`: what a StreamedPath is to solve; least squares on
    them gives `centres`, with folds in place of single rows left out. `seed` draws the sample.

    Raises UserError: a budget that is too small, a value that is not finite.
    """
    n, width = features.shape
    device = torch.device(device)
    columns = _Columns.of(np.zeros((n, 0)) if numbers_nT is None else numbers_nT, labels, folds_n)
    names = np.unique(folds_n[folds_n >= 0])
    total_columns = len(columns.mean)
    budgeted = plan(features, total_columns, len(names), budget)
    reading = _Reading(features, columns, names, budgeted, device, seed)

    at_once = budgeted.grams // len(names)
    variance_ST = np.full((len(strengths), total_columns), np.nan)
    best_T = np.full(total_columns, np.nan)
    weights_DT = torch.zeros(width, total_columns, dtype=torch.float64, device=device)
    intercept_T = torch.from_numpy(columns.mean).to(device)
    for begin in range(0, len(columns.cohorts), at_once):
        cohorts = columns.cohorts[begin : begin + at_once]
        sums = reading.sums(cohorts)
        for cohort in cohorts:
            by_fold = sums.pop(0)
            total = _Sums.zero(width, len(cohort), device)
            for of_fold in by_fold:
                total.add(of_fold)
            if begin == 0 and cohort is cohorts[0]:
                scaler, factor_D = reading.scaler(total)
                axes_Dr, eigenvalues_r = _principal_axes(total, factor_D)
            back_t = torch.from_numpy(columns.scale_back[cohort]).to(device)
            variance_ST[:, cohort] = _held_out(total, by_fold, factor_D, strengths, back_t)
            for pair in map(list, pairs):
                variance_ST[:, pair] = variance_ST[:, pair].mean(1, keepdims=True)
            best_T[cohort] = ridge.choose(variance_ST[:, cohort], strengths).strengths
            xx, xy, _ = total.centred(total.x / total.rows, total.y / total.rows, factor_D)
            for strength in np.unique(best_T[cohort]):
                chosen = best_T[cohort] == strength
                weights_DT[:, cohort[chosen]] = ridge.solve(xx, xy[:, chosen], strength * total.rows)
            # x is measured from the mean of all training rows, which these may be only some of.
            assert reading.shift is not None
            offset_D = (total.x / total.rows + reading.shift - torch.from_numpy(scaler.mean).to(device)) * factor_D
            intercept_T[cohort] += total.y / total.rows - offset_D @ weights_DT[:, cohort]

    of_numbers = slice(0, columns.numbers.shape[1])
    fit = ridge.Fit(axes_Dr.T @ weights_DT[:, of_numbers], intercept_T[of_numbers])
    numbers = ridge.choose(variance_ST[:, of_numbers], strengths), variance_ST[:, of_numbers], fit
    basis = scaler, axes_Dr.float(), eigenvalues_r.float()
    count, centres = int((folds_n >= 0).sum()), _centres(columns, variance_ST, strengths)
    surveyed = Survey(budgeted, count, *basis, reading.drawn, axes_Dr[:0], *numbers, centres)
    return surveyed._replace(sample=_rotated(surveyed, reading.kept))


def _centres(columns: _Columns, variance_ST: np.ndarray, strengths: Sequence[float]) -> tuple[float, ...]:
    """Of each label target, see `Survey.centres`."""
    centres, first = [], columns.numbers.shape[1]
    for target in columns.labels:
        own = slice(first, first := first + label_columns(target._replace(y=target.y[:1])).shape[1])
        spread_C = columns.mean[own] * (1 - columns.mean[own])
        varies_C = spread_C > 0
        best = ridge.choose(variance_ST[:, own][:, varies_C].sum(1, keepdims=True), strengths).strengths[0]
        centres.append(float(spread_C[varies_C].mean() * best) if varies_C.any() else np.nan)
    return tuple(centres)


class _Reading:
    """Passes over the features that add up sums; the first also looks for extremes and keeps the sample."""

    def __init__(
        self, features: Features, columns: _Columns, names: np.ndarray, budgeted: Plan, device: torch.device, seed: int
    ) -> None:
        self._features, self._columns, self._names, self._plan = features, columns, names, budgeted
        self._device = device
        training = np.flatnonzero(columns.folds >= 0)
        rng = np.random.default_rng(seed)
        self.drawn = np.sort(rng.choice(training, min(budgeted.sample, len(training)), replace=False))
        self.kept: list[np.ndarray] = []
        """The sample's rows as they are stored."""
        self.shift: Tensor | None = None
        """(D,) near the mean, from which x is measured, so that sums of squares do not cancel."""

    def sums(self, cohorts: Sequence[np.ndarray]) -> list[list[_Sums]]:
        """Of each cohort, by fold; one pass."""
        width = self._features.shape[1]
        sums = [[_Sums.zero(width, len(cohort), self._device) for _ in self._names] for cohort in cohorts]
        folds_n, is_first = self._columns.folds, self.shift is None
        for first, tile in tiles(self._features, self._plan.tile):
            stop = first + len(tile)
            folds_b = folds_n[first:stop]
            if not (folds_b >= 0).any():
                continue
            x_bD = torch.from_numpy(tile).to(self._device, torch.float64)
            if is_first:
                self._look(first, tile, x_bD, folds_b)
            assert self.shift is not None
            x_bD -= self.shift
            y_bT = self._columns.rows(first, stop)
            for cohort, by_fold in zip(cohorts, sums, strict=True):
                y_bt = y_bT[:, cohort]
                known_b = ~np.isnan(y_bt[:, :1]).any(1)
                for name, of_fold in zip(self._names, by_fold, strict=True):
                    rows = np.flatnonzero((folds_b == name) & known_b)
                    of_fold.add_rows(x_bD[rows], torch.from_numpy(y_bt[rows]).to(self._device))
        for by_fold in sums:
            for of_fold in by_fold:
                of_fold.xx.triu_().add_(of_fold.xx.triu(1).T)
        return sums

    def _look(self, first: int, tile: np.ndarray, x_bD: Tensor, folds_b: np.ndarray) -> None:
        x_bD = x_bD[np.flatnonzero(folds_b >= 0)]
        if not x_bD.isfinite().all():
            row, feature = np.argwhere(~np.isfinite(tile) & (folds_b >= 0)[:, None])[0]
            raise not_finite(first + row, feature, tile[row, feature])
        if self.shift is None:
            self.shift = x_bD.mean(0)
            self._low, self._high = x_bD.amin(0), x_bD.amax(0)
        self._low, self._high = torch.minimum(self._low, x_bD.amin(0)), torch.maximum(self._high, x_bD.amax(0))
        begin, end = np.searchsorted(self.drawn, [first, first + len(tile)])
        self.kept.append(tile[self.drawn[begin:end] - first])

    def scaler(self, total: _Sums) -> tuple[Scaler, Tensor]:
        """As `Basis` has it, and its factor again on the device."""
        assert self.shift is not None
        mean_D = total.x / total.rows
        variance_D = total.xx.diagonal() / total.rows - mean_D.square()
        factor_D = torch.where((self._high > self._low) & (variance_D > 0), variance_D.rsqrt(), 0)
        return Scaler((mean_D + self.shift).cpu().numpy(), factor_D.cpu().numpy()), factor_D


def _principal_axes(total: _Sums, factor_D: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenbasis of the standardised rows, (D, r), and its eigenvalues (r,), descending; float64."""
    xx, _, _ = total.centred(total.x / total.rows, total.y / total.rows, factor_D)
    values, vectors = torch.linalg.eigh(xx.div_(total.rows))
    real = values > len(values) * torch.finfo(values.dtype).eps * values[-1:]
    return vectors[:, real].flip(1), values[real].flip(0)


def _held_out(
    total: _Sums, by_fold: Sequence[_Sums], factor_D: Tensor, strengths: Sequence[float], back_t: Tensor
) -> np.ndarray:
    """(S, t) mean squared error over the folds, each predicted by the fit on the others.

    `back`: columns whose unknown entries count as the mean, and predictions hence as this much too small, are scored on
    their known entries, as if what is predicted there were as large as on all rows.
    """
    error_St = np.zeros((len(strengths), len(back_t)))
    rows = 0
    for fold in by_fold:
        total.add(fold, sign=-1)
        if total.rows and fold.rows:
            mean_D, mean_t = total.x / total.rows, total.y / total.rows
            xx, xy, _ = total.centred(mean_D, mean_t, factor_D)
            fold_xx, fold_xy, fold_yy = fold.centred(mean_D, mean_t, factor_D)
            rows += fold.rows
            for s, strength in enumerate(strengths):
                w_Dt = ridge.solve(xx, xy, strength * total.rows)
                predicted_t = (w_Dt * (fold_xx @ w_Dt)).sum(0)
                error_St[s] += (fold_yy + back_t * (predicted_t - 2 * (w_Dt * fold_xy).sum(0))).cpu().numpy()
        total.add(fold)
    return error_St / rows if rows else np.full_like(error_St, np.nan)


def _rotated(survey: Survey, kept: list[np.ndarray]) -> Tensor:
    """The sample in the basis; empties `kept`, so that it is not in memory twice."""
    rotation, first = survey.rotation, 0
    out: Tensor | None = None
    while kept:
        x = survey.standardise(torch.from_numpy(kept.pop(0))) @ rotation
        if out is None:
            dtype = torch.bfloat16 if multiplies_bfloat16(x.device) else x.dtype
            out = rotation.new_empty(len(survey.rows), rotation.shape[1], dtype=dtype)
        out[first : (first := first + len(x))] = x
    assert out is not None
    return out
