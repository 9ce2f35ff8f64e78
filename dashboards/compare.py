"""The arithmetic of two runs: this one minus the other, with intervals. Knows arrays; not files, figures or Streamlit.

Images that both runs hold are paired. Intervals are Student's t with the standard error over groups of images, not
percentiles of resamples: those tell no p below 2 / R, too coarse to be corrected for being one of L x H cells.

Letters in names: N images, L layers, H heads, S keys, K classes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from htc_probe.dashboards import attention as att
from htc_probe.extract.store import NUMERIC
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.intervals import COVERAGE, holm
from htc_probe.probes.scores.metrics import UNKNOWN, row_bits

ALPHA = 1 - COVERAGE
ProbeKey = tuple[str, str, int | None]
"""Task, representation, layer of z_voco."""


class Differences(NamedTuple):
    """Some quantities, arrays of one shape (Q): this run minus the other."""

    this: np.ndarray
    other: np.ndarray
    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    """95 % interval, each by itself; NaN where there are fewer than two groups."""
    p: np.ndarray
    """Two-sided, of no difference, each by itself."""
    paired: bool
    """False: the two means vary independently, as far as the interval knows; too wide where images are shared."""

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Differences":
        """`change` done to every array: an index, a reshape."""
        return _made(map(change, self[:6]), self.paired)

    def times(self, factor: float) -> "Differences":
        """In another unit."""
        return _made([*(values * factor for values in self[:5]), self.p], self.paired)

    @property
    def marked(self) -> np.ndarray:
        """(Q) bool: no chance finding at 5 % among all of these (Holm)."""
        adjusted = holm(np.ravel(self.p)).reshape(np.shape(self.p))
        return np.less(adjusted, ALPHA, out=np.zeros(adjusted.shape, dtype=bool), where=np.isfinite(adjusted))


def _made(arrays: Iterable[np.ndarray], paired: bool) -> Differences:
    this, other, estimate, lower, upper, p = arrays
    return Differences(this, other, estimate, lower, upper, p, paired)


NONE = _made([np.array(np.nan)] * 6, True)
"""Where there is nothing to compare."""


class Sample(NamedTuple):
    """Attention of one run over n images, as far as pages ask for it."""

    rows_NLHS: np.ndarray
    """float16"""
    by_layer_NLS: np.ndarray
    """float32, the mean over heads."""
    by_head_NHS: np.ndarray
    """float32, the mean over layers."""
    mass: dict[str, np.ndarray]
    """role -> (n, L, H) float32, share of all attention."""
    values: dict[str, np.ndarray]
    """(n, L, H, ...) of `attention.measure`."""

    def select(self, layer: int | None, head: int | None) -> np.ndarray:
        """(n, S) float32: one layer and head (from 0), or the mean over all of them where None."""
        if layer is None:
            return self.by_head_NHS.mean(1) if head is None else self.by_head_NHS[:, head]
        return self.by_layer_NLS[:, layer] if head is None else self.rows_NLHS[:, layer, head].astype(np.float32)


def sample(blocks: Iterable[np.ndarray], roles: Sequence[str]) -> Sample:
    """Of attention (B, L, H, S), block by block."""
    parts = [
        Sample(
            rows.astype(np.float16),
            rows.mean(2, dtype=np.float32),
            rows.mean(1, dtype=np.float32),
            att.role_mass(rows, roles),
            att.measure(rows.astype(np.float32), roles),
        )
        for rows in blocks
    ]
    arrays = [np.concatenate([part[at] for part in parts]) for at in range(3)]
    named = [{name: np.concatenate([part[at][name] for part in parts]) for name in parts[0][at]} for at in (3, 4)]
    return Sample(arrays[0], arrays[1], arrays[2], named[0], named[1])


def of_images(
    this_NQ: np.ndarray, other_NQ: np.ndarray, groups_N: np.ndarray, other_groups_N: np.ndarray | None = None
) -> Differences:
    """Of the means over images (first axis), paired where there is one array of groups, whose rows are then of the
    same images; NaN values are left out.
    """
    if other_groups_N is not None:
        return of_estimates(_means(this_NQ, groups_N), _means(other_NQ, other_groups_N))
    difference_NQ = np.asarray(this_NQ, dtype=np.float64) - other_NQ
    found = _means(difference_NQ, groups_N)
    known = np.isfinite(difference_NQ)
    with np.errstate(invalid="ignore", divide="ignore"):
        this, other = (np.where(known, values, 0).sum(0) / known.sum(0) for values in (this_NQ, other_NQ))
    return Differences(this, other, *found, paired=True)


class _Estimates(NamedTuple):
    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p: np.ndarray


def of_estimates(this: Sequence[Any], other: Sequence[Any]) -> Differences:
    """Of two estimates with their lower and upper ends (the first three of each), taken as independent."""
    one, two = ([np.asarray(values, dtype=np.float64) for values in ends[:3]] for ends in (this, other))
    reach = np.hypot((one[2] - one[1]) / 2, (two[2] - two[1]) / 2)
    estimate = one[0] - two[0]
    return Differences(one[0], two[0], estimate, estimate - reach, estimate + reach, _p(estimate, reach), paired=False)


def of_interval(this: np.ndarray, other: np.ndarray, found: Sequence[Any]) -> Differences:
    """Of a paired difference with its lower and upper ends that somebody else has found."""
    estimate, lower, upper = (np.asarray(values, dtype=np.float64) for values in found)
    return Differences(
        np.asarray(this), np.asarray(other), estimate, lower, upper, _p(estimate, (upper - lower) / 2), paired=True
    )


def joined(parts: Sequence[Differences]) -> Differences:
    """Along a new first axis."""
    return _made((np.stack([np.asarray(part[at]) for part in parts]) for at in range(6)), parts[0].paired)


def mean_of(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) values whose mean is the mean of the parts' means, and whose spread over images is right for it. The parts
    (N,) are NaN where an image does not count, which may be other images in each.
    """
    total = np.zeros(len(parts[0]))
    for values in parts:
        known = np.isfinite(values)
        mean = values[known].mean() if known.any() else np.nan
        total += mean + np.where(known, values - mean, 0) * (len(values) / max(int(known.sum()), 1))
    return total / len(parts)


class Scored(NamedTuple):
    """Two probes of one task, asked about the same n images; NaN where one of them was not. Larger is better."""

    score: tuple[np.ndarray, np.ndarray]
    """(n,) each: right (1) or not, the share of labels that are right, or 1 - squared error / variance of the labels,
    whose mean is R2. Of circular values 1 - (1 - cosine of the error) / its mean without looking.
    """
    bits: tuple[np.ndarray, np.ndarray]
    """(n,) each: V-information, what the probe saves over knowing how often labels occur."""
    floor: float
    """The mean score without looking: of the commonest answer, or of the mean."""
    asked: np.ndarray
    """(n,) bool: both were."""
    wrong: tuple[np.ndarray, np.ndarray]
    """(n,) bool each: a class, or any label, is wrong; of a number, an error above the deviation of the labels, of a
    circular value above the mean one without looking.
    """


def scored(this: Predicted, other: Predicted, rows: np.ndarray, other_rows: np.ndarray) -> Scored | None:
    """Of the images in `rows` of this run and `other_rows` of the other; None where the two answered other questions:
    other classes, other labels, or no image in common.
    """
    here, at, other_at = _both(this.rows, other.rows, rows, other_rows)
    labels = this.y[at]
    equal = (this.kind, this.classes, this.period) == (other.kind, other.classes, other.period)
    if not len(here) or not equal or not np.array_equal(labels, other.y[other_at], equal_nan=this.kind in NUMERIC):
        return None
    n, scores, bits, wrong = len(rows), [], [], []
    for said, chosen in ((this, at), (other, other_at)):
        if said.kind == "number":
            error = (said.y - said.said)[chosen] ** 2 / labels.var()
            good, bad = 1 - error, error > 1
        elif said.kind == "circular":
            missed = 1 - circular.cosine(said.said, said.y, said.period)[chosen]
            error = missed / circular.errors_of_others(labels, said.period).mean()
            good, bad = 1 - error, error > 1
        else:
            assert said.right is not None
            right, known = said.right[chosen], labels != UNKNOWN
            good = (right & known).sum(1) / known.sum(1) if said.kind == "multilabel" else right.astype(float)
            bad = good < 1
        scores.append(_spread(good, here, n))
        wrong.append(_spread(bad, here, n) == 1)
        bits.append(_spread(_entropy(said, labels) - _bits(said)[chosen], here, n))
    if this.kind == "classes":
        floor = np.bincount(labels).max() / len(labels)
    elif this.kind in NUMERIC:
        floor = 0.0
    else:
        positive = np.where(labels == UNKNOWN, np.nan, labels)
        floor = float(np.mean([max(share, 1 - share) for share in np.nanmean(positive, 0)]))
    asked = np.isfinite(scores[0])
    return Scored((scores[0], scores[1]), (bits[0], bits[1]), float(floor), asked, (wrong[0], wrong[1]))


def _bits(said: Predicted) -> np.ndarray:
    """(n,) that each label costs."""
    if said.kind == "classes":
        return -said.logs[:, 1] / np.log(2)
    assert said.prediction is not None
    return row_bits(said.kind, said.y, said.prediction)


def _entropy(said: Predicted, labels: np.ndarray) -> float:
    """Bits that a label costs someone who knows how often labels occur; of a number, with normal errors, of a circular
    value with von Mises'.
    """
    if said.kind == "number":
        return float(np.log2(2 * np.pi * np.e * labels.var()) / 2)
    if said.kind == "circular":
        missed = circular.errors_of_others(labels, said.period)
        turned = np.arccos(np.clip(1 - missed, -1, 1)) * (said.period / (2 * np.pi))
        return float(circular.bits(turned, circular.concentration(1 - missed.mean()), said.period).mean())
    if said.kind == "classes":
        share = np.bincount(labels) / len(labels)
    else:
        positive = np.nanmean(np.where(labels == UNKNOWN, np.nan, labels), 0)
        share = np.concatenate([positive, 1 - positive])
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def _both(
    scored_n: np.ndarray, other_scored_n: np.ndarray, rows: np.ndarray, other_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pairs have both their rows among the scored ones, which ascend, and where there."""
    at, found = _place(scored_n, rows)
    other_at, other_found = _place(other_scored_n, other_rows)
    here = np.flatnonzero(found & other_found)
    return here, at[here], other_at[here]


def _place(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return at, ascending[at] == wanted


def _spread(values: np.ndarray, here: np.ndarray, n: int) -> np.ndarray:
    """(n,) with the values where they belong, NaN elsewhere."""
    found = np.full(n, np.nan)
    found[here] = values
    return found


def shares(counts_KK: np.ndarray) -> np.ndarray:
    """(K, K) counts by true and chosen class -> shares of each true class; NaN where there is no image of it."""
    counts = np.asarray(counts_KK, dtype=np.float64)
    of = counts.sum(1, keepdims=True)
    return np.divide(counts, of, out=np.full_like(counts, np.nan), where=of > 0)


def of_shares(this_KK: np.ndarray, other_KK: np.ndarray) -> Differences:
    """Of the shares of two tables of counts, with binomial errors taken as independent."""
    found = []
    for counts in (this_KK, other_KK):
        share = shares(counts)
        size = np.asarray(counts, dtype=np.float64).sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Agresti and Coull: two more of each, so that 0 of 5 is not taken as certain.
            near = (np.asarray(counts) + 2) / (size + 4)
            reach = stats.norm.ppf((1 + COVERAGE) / 2) * np.sqrt(near * (1 - near) / (size + 4))
        found.append((share, share - reach, share + reach))
    return of_estimates(*found)


def _means(values_NQ: np.ndarray, groups_N: np.ndarray) -> _Estimates:
    """Means over images, and p of a mean of 0: Student's t, residuals summed by group."""
    values = np.asarray(values_NQ, dtype=np.float64)
    known = np.isfinite(values)
    count = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0).sum(0) / count
    sums_GQ = _group_sums(np.where(known, values - mean, 0), groups_N)
    G = (_group_sums(known, groups_N) > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((sums_GQ**2).sum(0) * (G / np.where(G > 1, G - 1, np.nan))) / count
        reach = stats.t.ppf((1 + COVERAGE) / 2, G - 1) * spread
        p = 2 * stats.t.sf(np.abs(mean) / spread, G - 1)
    return _Estimates(mean, mean - reach, mean + reach, np.where(spread == 0, np.where(mean == 0, 1.0, 0.0), p))


def _group_sums(values_NQ: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """(G, ...) sums of the images of each group."""
    order = np.argsort(groups_N, kind="stable")
    starts = np.flatnonzero(np.diff(groups_N[order], prepend=groups_N[order][:1] - 1))
    if len(starts) == len(groups_N):
        return values_NQ
    return np.add.reduceat(values_NQ[order], starts, axis=0, dtype=np.float64)


def _p(estimate: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Of no difference, from the half width of a 95 % interval."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(estimate) / reach * stats.norm.ppf((1 + COVERAGE) / 2)
    return np.where(reach == 0, np.where(estimate == 0, 1.0, 0.0), 2 * stats.norm.sf(z))
