"""Two runs: this one minus the other, with intervals. Knows arrays and predictions; not runs, files or figures.

Images that both runs hold are paired. Intervals are Student's t with the standard error over groups of images, not
percentiles of resamples: those tell no p below 2 / R, too coarse to be corrected for being one of L x H cells.

Letters in names: N images, K classes, Q quantities.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from htc_probe.extract.store import NUMERIC, UNKNOWN
from htc_probe.probes.files.predictions import Predicted
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.intervals import COVERAGE, holm, mean_known, p_of_reach, reach_of_shares, student
from htc_probe.probes.scores.metrics import row_bits

ProbeKey = tuple[str, str, int | None]
"""Task, representation, layer of z_voco."""


class Differences(NamedTuple):
    """Some quantities, arrays of one shape (Q): this run minus the other."""

    this: np.ndarray
    other: np.ndarray
    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    """95% interval, each by itself; NaN where there are fewer than two groups."""
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
        """(Q) bool: no chance finding at 5% among all of these (Holm)."""
        adjusted = holm(np.ravel(self.p)).reshape(np.shape(self.p))
        return np.less(adjusted, 1 - COVERAGE, out=np.zeros(adjusted.shape, dtype=bool), where=np.isfinite(adjusted))


def _made(arrays: Iterable[np.ndarray], paired: bool) -> Differences:
    this, other, estimate, lower, upper, p = arrays
    return Differences(this, other, estimate, lower, upper, p, paired)


NONE = _made([np.array(np.nan)] * 6, True)
"""Where there is nothing to compare."""


def of_images(
    this_NQ: np.ndarray, other_NQ: np.ndarray, groups_N: np.ndarray, other_groups_N: np.ndarray | None = None
) -> Differences:
    """Of the means over images (first axis), paired where there is one array of groups, whose rows are then of the
    same images; NaN values are left out.
    """
    if other_groups_N is not None:
        return of_estimates(student(this_NQ, groups_N), student(other_NQ, other_groups_N))
    difference_NQ = np.asarray(this_NQ, dtype=np.float64) - other_NQ
    known_NQ = np.isfinite(difference_NQ)
    this, other = (mean_known(np.where(known_NQ, values, np.nan), 0) for values in (this_NQ, other_NQ))
    return Differences(this, other, *student(difference_NQ, groups_N), paired=True)


def of_estimates(this: Sequence[Any], other: Sequence[Any]) -> Differences:
    """Of two estimates with their lower and upper ends (the first three of each), taken as independent."""
    mine, lower, upper = (np.asarray(part, dtype=np.float64) for part in this[:3])
    theirs, other_lower, other_upper = (np.asarray(part, dtype=np.float64) for part in other[:3])
    reach, estimate = np.hypot((upper - lower) / 2, (other_upper - other_lower) / 2), mine - theirs
    p = p_of_reach(estimate, reach)
    return Differences(mine, theirs, estimate, estimate - reach, estimate + reach, p, paired=False)


def of_interval(this: np.ndarray, other: np.ndarray, difference: Sequence[Any]) -> Differences:
    """Of a paired difference that is given with its lower and upper ends."""
    estimate, lower, upper = (np.asarray(values, dtype=np.float64) for values in difference)
    p = p_of_reach(estimate, (upper - lower) / 2)
    return Differences(np.asarray(this), np.asarray(other), estimate, lower, upper, p, paired=True)


def joined(parts: Sequence[Differences]) -> Differences:
    """Along a new first axis."""
    arrays = zip(*(part[:6] for part in parts), strict=True)
    return _made((np.stack([np.asarray(values) for values in field]) for field in arrays), parts[0].paired)


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
    whose mean is R2. Of circular values 1 - (1 - cosine of the error) / its mean at the floor.
    """
    bits: tuple[np.ndarray, np.ndarray]
    """(n,) each: V-information, what the probe saves over knowing how often labels occur."""
    floor: float
    """The mean score of a predictor that sees no features: the commonest answer, or the mean."""
    asked: np.ndarray
    """(n,) bool: both were."""
    wrong: tuple[np.ndarray, np.ndarray]
    """(n,) bool each: a class, or any label, is wrong; of a number, an error above the deviation of the labels, of a
    circular value above the mean one of the floor.
    """


def scored(this: Predicted, other: Predicted, rows: np.ndarray, other_rows: np.ndarray) -> Scored | None:
    """Of the images in `rows` of this run and `other_rows` of the other; None where the two answered other questions:
    other classes, other labels, or no image in common.
    """
    pairs, chosen, other_chosen = _both(this.rows, other.rows, rows, other_rows)
    labels = this.y[chosen]
    equal = (this.kind, this.classes, this.period) == (other.kind, other.classes, other.period)
    if not len(pairs) or not equal or not np.array_equal(labels, other.y[other_chosen], equal_nan=this.kind in NUMERIC):
        return None
    n, scores, bits, wrong = len(rows), [], [], []
    for probe, answers in ((this, chosen), (other, other_chosen)):
        if probe.kind == "number":
            error = (probe.y - probe.said)[answers] ** 2 / labels.var()
            good, bad = 1 - error, error > 1
        elif probe.kind == "circular":
            missed = 1 - circular.cosine(probe.said, probe.y, probe.period)[answers]
            error = missed / circular.errors_of_others(labels, probe.period).mean()
            good, bad = 1 - error, error > 1
        else:
            assert probe.right is not None
            right, known = probe.right[answers], labels != UNKNOWN
            good = (right & known).sum(1) / known.sum(1) if probe.kind == "multilabel" else right.astype(float)
            bad = good < 1
        scores.append(_spread(good, pairs, n))
        wrong.append(_spread(bad, pairs, n) == 1)
        bits.append(_spread(_entropy(probe, labels) - _bits(probe)[answers], pairs, n))
    if this.kind == "classes":
        floor = np.bincount(labels).max() / len(labels)
    elif this.kind in NUMERIC:
        floor = 0.0
    else:
        positive = np.where(labels == UNKNOWN, np.nan, labels)
        floor = float(np.mean([max(share, 1 - share) for share in np.nanmean(positive, 0)]))
    asked = np.isfinite(scores[0])
    return Scored((scores[0], scores[1]), (bits[0], bits[1]), float(floor), asked, (wrong[0], wrong[1]))


def _bits(probe: Predicted) -> np.ndarray:
    """(n,) that each label costs."""
    if probe.kind == "classes":
        return -probe.logs[:, 1] / np.log(2)
    assert probe.prediction is not None
    return row_bits(probe.kind, probe.y, probe.prediction)


def _entropy(probe: Predicted, labels: np.ndarray) -> float:
    """Bits that a label costs who knows how often labels occur (numbers: normal errors; circular: von Mises')."""
    if probe.kind == "number":
        return float(np.log2(2 * np.pi * np.e * labels.var()) / 2)
    if probe.kind == "circular":
        missed = circular.errors_of_others(labels, probe.period)
        turned = np.arccos(np.clip(1 - missed, -1, 1)) * (probe.period / (2 * np.pi))
        return float(circular.bits(turned, circular.concentration(1 - missed.mean()), probe.period).mean())
    if probe.kind == "classes":
        share = np.bincount(labels) / len(labels)
    else:
        positive = np.nanmean(np.where(labels == UNKNOWN, np.nan, labels), 0)
        share = np.concatenate([positive, 1 - positive])
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def _both(
    scored_n: np.ndarray, other_scored_n: np.ndarray, rows: np.ndarray, other_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pairs have both their rows among the scored ones, which ascend, and where these are among them."""
    place, known = _place(scored_n, rows)
    other_place, other_known = _place(other_scored_n, other_rows)
    pairs = np.flatnonzero(known & other_known)
    return pairs, place[pairs], other_place[pairs]


def _place(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return place, ascending[place] == wanted


def _spread(values: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """(n,) with the values in their places, NaN elsewhere."""
    spread = np.full(n, np.nan)
    spread[places] = values
    return spread


def shares(counts_KK: np.ndarray) -> np.ndarray:
    """(K, K) counts by true and chosen class -> shares of each true class; NaN where there is no image of it."""
    counts = np.asarray(counts_KK, dtype=np.float64)
    totals = counts.sum(1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def of_shares(this_KK: np.ndarray, other_KK: np.ndarray) -> Differences:
    """Of the shares of two tables of counts, with binomial errors taken as independent."""
    ends = []
    for counts_KK in (this_KK, other_KK):
        share = shares(counts_KK)
        reach = reach_of_shares(counts_KK, np.asarray(counts_KK, dtype=np.float64).sum(1, keepdims=True))
        ends.append((share, share - reach, share + reach))
    return of_estimates(*ends)
