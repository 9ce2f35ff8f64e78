"""How sure a mean, a score, a difference or a ratio is: everything by whole groups. The only statistics of the project.

Knows arrays, and quantities with their draws (`Sampled`); not labels, metrics, probes, runs or files.
Resampling covers the choice of scored images, given the probes; `over_training_sets` adds that of the images that the
probes of folds learned from. `python -m benchmarks.calibration` tries both together, its table is in docs/probing.md.

Scores have percentile intervals, widened for few groups (`interval`); differences and ratios Student's t with the
bootstrap's standard error. Chosen by simulation of fixed probes, with clustered rows, every metric and easy to skewed
cases: of 1,500 data sets the widened percentiles hold the truth in 93.5 to 95.3% at 300 groups and in 92.4 to 96.1%
at 100, lowest for scores near their ceiling. BCa does no better (93.5 to 95.2 and 92.3 to 95.9%) at the price of a
jackknife, plain percentiles lose 0.5 points at 100 groups, and basic intervals, mirrored to the wrong side of a skewed
score, fall to 89 %. None is right where few rows decide: for R2 of log-normal values from 100 groups it is 76 %.

Legend: N images or rows, G groups, R resamples, H hypotheses, Q quantities (any shape).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 1000
COVERAGE = 0.95
CLEAR = 2
"""So many reaches of its interval the whole must lie above its floor for `kept`."""


Groups = Sequence[str] | np.ndarray
"""The group of each image, by name or number; images of a group are not independent."""


class Sampled(NamedTuple):
    """A quantity and what it would have been on other draws of the same number of groups."""

    estimate: float
    draws: np.ndarray
    """(R,) around the estimate; NaN where a resample leaves it undefined. Draws of the same resamples pair up entry by
    entry.
    """


class Means(NamedTuple):
    """Many means as arrays of one shape, each tested by itself."""

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    """COVERAGE intervals; NaN where there are fewer than two groups."""
    p: np.ndarray
    """Two-sided, of a mean of 0."""


class Difference(NamedTuple):
    """One quantity minus another, on the same images."""

    estimate: float
    lower: float
    upper: float
    """COVERAGE of such intervals hold the true difference."""
    p: float
    """Two-sided, of no difference; below 1 - COVERAGE exactly where the interval leaves out 0."""


class Retention(NamedTuple):
    """(score - floor) / (whole - floor)."""

    estimate: float
    lower: float
    upper: float
    """-inf and inf where not bounded."""
    bounded: bool
    """False: the whole cannot be told from the floor (or is below it), so that no ratio to it is excluded."""


class Equivalence(NamedTuple):
    """Whether a difference is smaller than a margin, or larger."""

    difference: Difference
    within: float
    """Of two one-sided tests (Schuirmann 1987), that the true difference is the margin or more, up or down: the larger
    of the two p-values.
    """
    beyond: float
    """Two-sided, that it is the margin or less. No more than one of the two p-values is below 0.5."""


def resample_groups(n_groups: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(R, G) uint16: how often each resample draws each group of the run. One draw serves all tasks and
    representations, which keeps every comparison paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples).astype(np.uint16)


def group_sums(values_NQ: np.ndarray, groups_N: Groups) -> np.ndarray:
    """(G, ...) float64 sums over the images of each group, in the order of their names. Raises ValueError."""
    groups = np.asarray(groups_N)
    if len(groups) != len(values_NQ):
        raise ValueError(f"{len(values_NQ)} values and {len(groups)} groups: one group an image")
    names, group_N = np.unique(groups, return_inverse=True)
    if len(names) == len(groups):
        return values_NQ[np.argsort(group_N)].astype(np.float64)
    sums = np.zeros((len(names), *values_NQ.shape[1:]))
    np.add.at(sums, group_N, values_NQ)
    return sums


def group_sizes(groups_N: Groups) -> np.ndarray:
    """(G,) int"""
    return np.unique(np.asarray(groups_N), return_counts=True)[1]


def effective_groups(sizes_G: np.ndarray) -> float:
    """How many groups of one size a mean over groups of these sizes (G,) is as sure as (Kish 1965): 1 to G."""
    total = float(sizes_G.sum())
    return total**2 / float((sizes_G.astype(np.float64) ** 2).sum()) if total else 0.0


def mean_known(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over one axis, NaN entries left out; NaN where nothing is known."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def over_training_sets(quantity: Sampled, folds: int, least: float = -np.inf, most: float = np.inf) -> Sampled:
    """The draws of a number of K `folds`, further from it by sqrt(1 + 1 / (K - 1)): the share of the
    images that a fold scores over the share that its probe learned from. Resampling what is scored leaves out that
    other images would have made other probes (Nadeau and Bengio 2003, whose correction for single splits is this share
    too). Chosen by simulation, see `benchmarks.calibration`: without it 5 folds of 400 images cover 91 to 94 %. One
    fold, whose probe is what is asked about, stays as it is. Draws stay between `least` and `most`.
    """
    if folds < 2:
        return quantity
    draws = quantity.estimate + np.sqrt(1 + 1 / (folds - 1)) * (quantity.draws - quantity.estimate)
    return quantity._replace(draws=np.clip(draws, least, most))


def percentiles(draws_RQ: np.ndarray, n_groups: float) -> tuple[np.ndarray, np.ndarray]:
    """COVERAGE intervals: quantiles of draws (R, ...), a little further out than the nominal ones, as resampling
    G groups understates the spread by sqrt((G - 1) / G) and takes it as known. They stay inside the range of the
    quantity. NaN draws are left out; NaN where there is nothing else, or one group.
    """
    if n_groups <= 1:
        return np.full(draws_RQ.shape[1:], np.nan), np.full(draws_RQ.shape[1:], np.nan)
    tail = stats.norm.cdf(-critical(n_groups) * np.sqrt(n_groups / (n_groups - 1)))
    known = np.isfinite(draws_RQ)
    if known.size and known.all():
        lower, upper = np.quantile(draws_RQ, [tail, 1 - tail], axis=0)
        return lower, upper
    ends = np.full((2, *draws_RQ.shape[1:]), np.nan)
    drawn = known.any(0)
    ends[:, drawn] = np.nanquantile(np.where(known, draws_RQ, np.nan)[:, drawn], [tail, 1 - tail], axis=0)
    return ends[0], ends[1]


def interval(draws: np.ndarray, n_groups: float) -> tuple[float, float]:
    """`percentiles` of one score, draws (R,)."""
    lower, upper = percentiles(draws, n_groups)
    return float(lower), float(upper)


def student(values_NQ: np.ndarray, groups_N: Groups) -> Means:
    """Means over images (first axis), by Student's t with residuals summed by group; NaN values are left out."""
    values = np.asarray(values_NQ, dtype=np.float64)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = mean_known(values, 0)
        sums_GQ = group_sums(np.where(known, values - mean, 0), groups_N)
        G = (group_sums(known, groups_N) > 0).sum(0)
        spread = np.sqrt((sums_GQ**2).sum(0) * (G / np.where(G > 1, G - 1, np.nan))) / known.sum(0)
        reach = critical(G) * spread
        p = 2 * stats.t.sf(np.abs(mean) / spread, G - 1)
    return Means(mean, mean - reach, mean + reach, np.where(spread == 0, np.where(mean == 0, 1.0, 0.0), p))


def p_of_reach(estimate: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Two-sided, of 0, from the half width of a COVERAGE interval; errors taken as normal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(estimate) / reach * stats.norm.ppf((1 + COVERAGE) / 2)
    return np.where(reach == 0, np.where(estimate == 0, 1.0, 0.0), 2 * stats.norm.sf(z))


def reach_of_shares(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Half widths of COVERAGE intervals of counts / totals, by Agresti and Coull: two more of each, so that 0 of 5 is
    not taken as certain.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = (counts + 2) / (totals + 4)
        return stats.norm.ppf((1 + COVERAGE) / 2) * np.sqrt(shares * (1 - shares) / (totals + 4))


def mean(quantities: Sequence[Sampled]) -> Sampled:
    """Their mean, entry by entry of the same resamples: of tasks in a suite, or of a control's random draws."""
    return Sampled(float(np.mean([q.estimate for q in quantities])), np.mean([q.draws for q in quantities], axis=0))


def difference(a: Sampled, b: Sampled, n_groups: float) -> Difference:
    """a - b with both on the same resamples of the same `n_groups` groups: between representations, between a task
    and its control (selectivity), or between two cross-entropies (what a representation adds to another,
    I(z; Y | v_d) = H(Y | v_d) - H(Y | v_d, z)).

    Student's t with the bootstrap's standard error, which gives p-values that are small enough to correct over a
    table, where counting R resamples would end at 2 / R. Where only a handful of groups differ, this is too sure: five
    wins and no loss have p = 0.02 here and 0.06 by flipping signs, which is exact.
    """
    estimate = a.estimate - b.estimate
    (spread,) = np.sqrt(np.diag(_covariance([a.draws - b.draws], n_groups)))
    if spread == 0:
        return Difference(estimate, estimate, estimate, 1.0 if estimate == 0 else 0.0)
    reach = critical(n_groups) * spread
    p = 2 * stats.t.sf(abs(estimate) / spread, n_groups - 1)
    return Difference(estimate, estimate - reach, estimate + reach, float(p))


def retention(score: Sampled, whole: Sampled, floor: Sampled, n_groups: float) -> Retention:
    """How much of what `whole` has over the floor `score` has, all on the same resamples of `n_groups` groups.

    Fieller's interval: the ratios r for which score - floor - r (whole - floor) is not significant. Percentiles of the
    ratio's draws would always end somewhere, also where the denominator may be 0 and any ratio fits the data.
    """
    part, base = score.estimate - floor.estimate, whole.estimate - floor.estimate
    ratio = part / base if base else float("nan")
    covariance = _covariance([score.draws - floor.draws, whole.draws - floor.draws], n_groups)
    (var_part, shared), (_, var_base) = covariance * critical(n_groups) ** 2
    square = base**2 - var_base  # of a r**2 - 2 b r + c <= 0
    if not (base > 0 and square > 0):
        return Retention(ratio, -np.inf, np.inf, False)
    middle = part * base - shared
    root = np.sqrt(max(middle**2 - square * (part**2 - var_part), 0))
    return Retention(ratio, float((middle - root) / square), float((middle + root) / square), True)


def kept(score: Sampled, whole: Sampled, floor: Sampled, n_groups: float) -> Sampled | None:
    """`retention` as a quantity that can be averaged and compared, by `difference`, with another one on the same
    resamples; None where the whole is not clearly above its floor (`CLEAR`).

    Draws are linearised (the delta method): of the ratio r of part to whole, ((part - p) - r (whole - w)) / w around r.
    A ratio of draws would go to infinity where the whole of a resample is at its floor. Simulated with equal
    retentions, 1,500 data sets of 300 groups a case: 3 to 5% of differences have p < 0.05; without `CLEAR`, where the
    whole only just stood out from its floor, up to 10 %.
    """
    above = difference(whole, floor, n_groups)
    if not above.estimate > CLEAR * (above.estimate - above.lower):
        return None
    part, base = score.estimate - floor.estimate, above.estimate
    ratio = part / base
    moved = (score.draws - floor.draws - part) - ratio * (whole.draws - floor.draws - base)
    return Sampled(ratio, ratio + moved / base)


def equivalence(a: Sampled, b: Sampled, n_groups: float, margin: float) -> Equivalence:
    """Whether a - b is within `margin` (above 0), by the standard error of `difference`. That a difference is not
    significant says nothing of the kind: with few images none is.
    """
    tested = difference(a, b, n_groups)
    inside = margin - abs(tested.estimate)
    spread = float((tested.upper - tested.lower) / 2 / critical(n_groups))
    # Where no group differs at all, the next one may: as sure as if one had.
    spread = spread or 1 / n_groups
    one_sided = float(stats.t.sf(inside / spread, n_groups - 1))
    return Equivalence(tested, one_sided, min(1.0, 2 * (1 - one_sided)))


def share_interval(share: Sampled, n_groups: float) -> tuple[float, float]:
    """COVERAGE interval of what is between 0 and 1 and stands on few images, such as the recall of one class: Wilson's
    (1927), with as many images as would vary by themselves as much as the draws do. Where these do not vary, as all
    answers are right, or all wrong, every group counts as one image. NaN for a single group.

    n_groups: those that hold such images; where they are uneven, the effective number of them.
    Simulated: with 10 images and a recall of 0.9 it holds the truth in 98%, percentiles of the draws in 65 %.
    """
    known = share.draws[np.isfinite(share.draws)]
    if n_groups < 1 + 1e-9 or not len(known) or not np.isfinite(share.estimate):
        return float("nan"), float("nan")
    p = min(max(share.estimate, 0.0), 1.0)
    variance = known.var() * n_groups / (n_groups - 1)
    images = p * (1 - p) / variance if variance > 1e-12 < p * (1 - p) else n_groups
    square = critical(n_groups) ** 2 / images
    middle = (p + square / 2) / (1 + square)
    reach = np.sqrt(square * (p * (1 - p) + square / 4)) / (1 + square)
    return max(float(middle - reach), 0.0), min(float(middle + reach), 1.0)


def folds_disagree(scores: Sequence[float], whole: Sampled) -> bool:
    """Whether the scores of K folds lie further apart than their images explain: by more than 0.1, and with a chance
    below 1e-4 if all probes were as good. A fold, a Kth of the groups, varies sqrt(K) times as much as the whole.
    """
    known = np.asarray([score for score in scores if np.isfinite(score)])
    spread = np.nanstd(whole.draws) * np.sqrt(len(known))
    if len(known) < 2 or np.ptp(known) <= 0.1:
        return False
    return bool(spread == 0 or stats.chi2.sf((((known - known.mean()) / spread) ** 2).sum(), len(known) - 1) < 1e-4)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (H,) corrected for being H many, whatever their dependence (Holm 1979). NaN ones do not count and
    stay NaN.
    """
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = np.arange(len(order), 0, -1) * p[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def critical(n_groups: float | np.ndarray) -> np.ndarray:
    """How many standard errors a COVERAGE interval reaches to each side, by Student's t."""
    return stats.t.ppf((1 + COVERAGE) / 2, n_groups - 1)


def _covariance(draws: Sequence[np.ndarray], n_groups: float) -> np.ndarray:
    """Of quantities on the same resamples; resampling G groups understates it by (G - 1) / G."""
    known = np.isfinite(draws).all(0)
    return np.atleast_2d(np.cov(np.asarray(draws)[:, known])) * n_groups / (n_groups - 1)
