"""Many means at once on the same draws of groups, and what only analyses ask: max-T, a jackknife, labels passed around.

Knows arrays; not runs, models or files. How sure a number is, `probes.scores.intervals` says. One draw of groups serves
all quantities of a call, and calls with the same groups and seed, so differences between quantities are paired.

Legend: N images, G groups, R resamples, Q quantities (any shape).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from htc_probe.probes.scores.intervals import (
    COVERAGE,
    RESAMPLES,
    Groups,
    critical,
    group_sums,
    percentiles,
    resample_groups,
)

_BLOCKS = 20  # of the jackknife
_ALIKE = 8  # groups that change places


class Interval(NamedTuple):
    """A number and its 95% interval; NaN ends where there is only one group."""

    estimate: float
    lower: float
    upper: float


class Intervals(NamedTuple):
    """Many of them, as arrays of one shape."""

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def only(self) -> Interval:
        """Of a single quantity."""
        return Interval(*(float(np.asarray(part).item()) for part in self))

    def at(self, *index: int) -> Interval:
        """Of one of them."""
        return Interval(*(float(part[index]) for part in self))


class Draws(NamedTuple):
    """A quantity, and what it is on each resample."""

    estimate: np.ndarray
    """Q"""
    draws: np.ndarray
    """(R, Q)"""
    n_groups: int

    def intervals(self) -> Intervals:
        return Intervals(self.estimate, *percentiles(self.draws, self.n_groups))

    def complement(self) -> "Draws":
        """1 minus it: of what is unexplained, R2."""
        return Draws(1 - self.estimate, 1 - self.draws, self.n_groups)


class MaxT(NamedTuple):
    """One-sided tests of many means against one value, corrected for being many."""

    p: np.ndarray
    """Q: the chance, were no mean above the value, of one such finding among all; at least 1 / (R + 1)."""
    lower: np.ndarray
    """Q: simultaneous lower bounds: with 95% chance all means lie above theirs."""


def interval_of_mean(values_N: np.ndarray, groups_N: Groups, seed: int) -> Interval:
    """The mean of values (N,) and its 95% interval over groups; NaN values are left out."""
    return intervals_of_means(np.asarray(values_N), groups_N, seed).only


def intervals_of_means(values_NQ: np.ndarray, groups_N: Groups, seed: int) -> Intervals:
    """The same of every column of values (N, ...); the fields have the shape of the rest."""
    return draws_of_means(values_NQ, groups_N, seed).intervals()


def draws_of_means(values_NQ: np.ndarray, groups_N: Groups, seed: int) -> Draws:
    """Means of the columns of values (N, ...) on all images and on each resample of groups."""
    known_NQ = np.isfinite(values_NQ)
    if known_NQ.all():  # one count serves all columns
        ones = np.ones((len(values_NQ), *[1] * (values_NQ.ndim - 1)))
        return draws_of_ratios(values_NQ, ones, groups_N, seed)
    return draws_of_ratios(np.where(known_NQ, values_NQ, 0), known_NQ, groups_N, seed)


def draws_of_ratios(over_NQ: np.ndarray, under_NQ: np.ndarray, groups_N: Groups, seed: int) -> Draws:
    """Sums of `over` (N, ...) divided by sums of `under`, which broadcasts to it; NaN where that is 0."""
    over_GQ, under_GQ = (group_sums(np.asarray(values), groups_N) for values in (over_NQ, under_NQ))
    shape, n_groups = over_GQ.shape[1:], len(over_GQ)
    over_GQ, under_GQ = over_GQ.reshape(n_groups, -1), under_GQ.reshape(n_groups, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = over_GQ.sum(0) / under_GQ.sum(0)
        rows = [(weights @ over_GQ) / (weights @ under_GQ) for weights in _resamples(n_groups, seed)]
    return Draws(estimate.reshape(shape), np.concatenate(rows).reshape(RESAMPLES, *shape), n_groups)


def max_t(means: Draws, null: float) -> MaxT:
    """Which of the means lie above `null`, by the largest studentised deviation of each resample (Westfall & Young).

    Means that go together (heads on the same images) are resampled together, which costs less than Holm's correction.
    """
    R = len(means.draws)
    few = np.sqrt(means.n_groups / (means.n_groups - 1)) if means.n_groups > 1 else np.nan
    spread = np.maximum(means.draws.std(0), 1e-12)  # where all images are equal
    deviation = (few * (means.draws - means.estimate) / spread).reshape(R, -1)
    largest = np.nanmax(deviation, axis=1) if deviation.size else np.zeros(R)
    t = (means.estimate - null) / spread
    p = (1 + (largest[:, None] >= t.ravel()).sum(0)) / (R + 1)
    lower = means.estimate - np.quantile(largest, COVERAGE) * spread
    return MaxT(np.where(np.isfinite(t), p.reshape(t.shape), np.nan), lower)


def jackknife(estimate: np.ndarray, without_BQ: np.ndarray) -> Intervals:
    """Intervals of Q estimates from those without each of B blocks of groups (B, Q): Student's t, B - 1 degrees.

    For what resampling would bias: an image drawn twice is its own nearest neighbour.
    """
    B = len(without_BQ)
    spread = np.sqrt((B - 1) / B * ((without_BQ - without_BQ.mean(0)) ** 2).sum(0)) if B > 1 else np.nan
    reach = critical(max(B, 2)) * spread
    return Intervals(np.asarray(estimate), np.asarray(estimate - reach), np.asarray(estimate + reach))


def blocks(groups_N: Groups, seed: int, most: int = _BLOCKS) -> np.ndarray:
    """(N,) block or fold of every image, from 0: whole groups, dealt at random, at most `most` of them."""
    _, group_N = np.unique(np.asarray(groups_N), return_inverse=True)
    n_groups = int(group_N.max()) + 1
    dealt = np.random.default_rng(seed).permutation(n_groups) % most
    return dealt[group_N]


def shuffles(groups_N: Groups, seed: int, times: int) -> Iterator[np.ndarray]:
    """(N,) whose label each image gets when labels pass from group to group: images of a group get those of one group,
    so that labels that they share stay shared. Groups change places with groups of their size, or of about their size
    where fewer than 8 have it: a larger one then gets some labels twice, a smaller one leaves some out.
    """
    _, group_N = np.unique(np.asarray(groups_N), return_inverse=True)
    members = np.argsort(group_N, kind="stable")
    sizes = np.bincount(group_N)
    starts = np.cumsum(sizes) - sizes
    group = group_N[members]
    place = np.arange(len(group)) - starts[group]
    alike = _alike(sizes)
    rng = np.random.default_rng(seed)
    for _ in range(times):
        giver = np.arange(len(sizes))
        for swapped in alike:
            giver[swapped] = swapped[rng.permutation(len(swapped))]
        order = np.empty(len(group), dtype=int)
        order[members] = members[starts[giver[group]] + place % sizes[giver[group]]]
        yield order


def _alike(sizes_G: np.ndarray) -> list[np.ndarray]:
    """Groups of one size, or of neighbouring sizes that together are 8 or more."""
    sets: list[np.ndarray] = []
    for size in np.unique(sizes_G):
        groups = np.flatnonzero(sizes_G == size)
        if sets and min(len(sets[-1]), len(groups)) < _ALIKE:
            sets[-1] = np.concatenate([sets[-1], groups])
        else:
            sets.append(groups)
    return sets


def _resamples(n_groups: int, seed: int) -> Iterator[np.ndarray]:
    """(some, G) float64 at a time, R in all: how often each resample draws each group."""
    drawn = _drawn(n_groups, seed)
    step = max(1, 2**22 // n_groups)
    for start in range(0, RESAMPLES, step):
        yield drawn[start : start + step].astype(float)


_drawn = lru_cache(maxsize=1)(resample_groups)  # an analysis asks for the same draw a hundred times
