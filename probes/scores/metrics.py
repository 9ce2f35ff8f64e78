"""How good held-out predictions are, for every resample of groups at once: shares, ranks, errors, and bits.

Knows arrays; not probes, runs, names or files. A prediction is held out, one per row, in one of four forms:

* classes: log probabilities (n, K) in nats;
* multilabel: logits (n, C), each label a question of its own;
* number: a `Gaussian`, mean and deviation of every row;
* circular: a `VonMises`, centre and concentration of every row.

Bits put all kinds on one scale. The cross-entropy H(Y | X) is the mean over rows of -log2 of what the prediction
gave to the label (multilabel: summed over labels, each label's mean over the rows where it is known). The
V-information H(Y) - H(Y | X) is the floor's cross-entropy minus the probe's, on the same rows: bits an image
that the probe saves someone who knows only how often labels occur (Xu et al., ICLR 2020). Of a number the
cross-entropy is that of a density: it moves by log2 when the unit changes and may be negative. The difference
does neither. It is the number of times that the value's uncertainty was halved, with normal errors
-log2(1 - R2) / 2.

Average precision is taken over all orders of rows with equal scores, as ranks are by middle ranks. So a score that
is the same for all, such as the floor's, has that of a random ranking, which in few rows is far above the share of
positives: (P - 1) / (n - 1) + (1 - (P - 1) / (n - 1)) H_n / n of n rows with P positives, H_n = 1 + 1/2 + ... + 1/n.

A circular value is scored by the cosine of its error. Circular R2 is 1 - mean(1 - cosine) / the same of the floor's
prediction, so that 0 is the floor and 1 perfect. Its bits are those of a density too, and log2(period) of one that is
the same all round.

Resampling is exact and works on sums by group: a metric made of sums costs one matrix product for all resamples.
Draws of what is no mean over rows are then moved so that their own mean is the estimate. Copies of rows make them lie
elsewhere: a positive drawn twice helps itself up (mAP 0.1 to 0.7 of their deviation above the estimate), copies rank
as equals (Spearman up to 0.5 below it), a mean is fitted to every draw (R2 at its floor 0.5 below). In simulations
intervals of draws that were not moved missed the truth in up to 12% (mAP, R2) or 60% (Spearman) of data sets.
Legend: n rows, K classes, C labels, G groups of the whole run, R resamples, S sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from htc_probe.extract.store import UNKNOWN, Kind, is_known
from htc_probe.probes.inputs import circular
from htc_probe.probes.scores.intervals import Sampled, effective_groups, mean_known

METRIC: dict[Kind, str] = {"classes": "top-1", "multilabel": "mAP", "number": "R2", "circular": "circular R2"}
"""The one that stands for a task where there is room for one. Larger is better, 1 is perfect."""
_SHARE, _EXPLAINED = (0.0, 1.0), (-np.inf, 1.0)
RANGE: dict[str, tuple[float, float]] = {
    "top-1": _SHARE,
    "balanced accuracy": _SHARE,
    "mAP": _SHARE,
    "R2": _EXPLAINED,
    "Spearman": (-1.0, 1.0),
    "circular R2": _EXPLAINED,
    "mean cosine": (-1.0, 1.0),
    "MAE": (0.0, np.inf),
}
"""What a number can be at all, where that is bounded."""
_BY_CLASS = "by class"
_BIASED = ("balanced accuracy", "mAP", "R2", "Spearman", "circular R2")  # their draws are moved


class Gaussian(NamedTuple):
    """The predicted distribution of a number, in the task's unit."""

    mean: np.ndarray
    """(n,)"""
    scale: np.ndarray
    """(n,) the standard deviation, above 0."""


class VonMises(NamedTuple):
    """The predicted distribution of a circular value, in the task's unit."""

    mean: np.ndarray
    """(n,)"""
    concentration: np.ndarray
    """(n,) from 0, where nothing is known, up."""
    period: float


Prediction = np.ndarray | Gaussian | VonMises


class ByClass(NamedTuple):
    """The recall of every class, or the average precision of every label."""

    of: tuple[Sampled, ...]
    floor: tuple[float, ...]
    """The same of the prediction without features: of classes 1 for the most frequent one and 0 for the others."""
    images: np.ndarray
    """(K,) rows that have the class, or the label."""
    groups_KG: sparse.csr_array
    """How many of them are in each group."""


class Scores(NamedTuple):
    """classes: top-1, balanced accuracy. multilabel: mAP. number: R2, Spearman, MAE. circular: circular R2, mean cosine
    (of the error), MAE (the short way round). All: cross-entropy and V-information, in bits an image.
    """

    of: dict[str, Sampled]
    floor: dict[str, Sampled]
    """The same metrics of the prediction without features."""
    n: int
    """Rows scored: those with a label."""
    n_groups: int
    effective_groups: float
    """See `effective_groups`."""
    by_class: ByClass | None = None
    """Of classes and labels."""


_Metrics = dict[str, np.ndarray]  # (R,) each; of `_BY_CLASS` (K, R)
_Measure = Callable[[np.ndarray], _Metrics]  # of weights (G, R)


def score(
    kind: Kind,
    y: np.ndarray,
    prediction: Prediction,
    floor: Prediction,
    fold: np.ndarray,
    groups: np.ndarray,
    draws_RG: np.ndarray,
    *,
    ranks: bool = True,
) -> Scores:
    """All metrics of a task's held-out predictions and of the floor's, with every resample's. Without `ranks`, those
    that are made of sums alone, which takes a tenth of the time: neither mAP nor Spearman.

    `y` as in a task, unknown rows (-1, NaN, all 255) are left out. fold (n,) tells whose probe predicted a row:
    what only ranks (mAP, Spearman) is taken within a fold and averaged over folds, as scores of different probes
    do not rank together. groups (n,) index the columns of draws_RG, the counts of `intervals.resample_groups`.
    """
    rows = labelled(kind, y)
    y, fold, groups = y[rows], fold[rows], groups[rows]
    used, compact = np.unique(groups, return_inverse=True)
    measures = [_measure(kind, y, take(p, rows), fold, compact, len(used), ranks) for p in (prediction, floor)]
    # The rows as they are go first, so that an estimate and its draws are one computation.
    parts = [[measure(np.ones((len(used), 1)))] for measure in measures]
    step = max(1, 2**20 // len(used))  # some 8 MB of weights at a time
    for start in range(0, len(draws_RG), step):
        weights_GR = np.ascontiguousarray(draws_RG[start : start + step, used].T, dtype=np.float64)
        for part, measure in zip(parts, measures, strict=True):
            part.append(measure(weights_GR))
    told, base = ({name: np.concatenate([p[name] for p in part], -1) for name in part[0]} for part in parts)
    by_class = _by_class(kind, y, compact, told.pop(_BY_CLASS, None), base.pop(_BY_CLASS, None))
    told, base = _related(told, base), _related(base, base)
    return Scores(_sampled(told), _sampled(base), len(y), len(used), effective_groups(np.bincount(compact)), by_class)


def _by_class(
    kind: Kind, y: np.ndarray, groups: np.ndarray, draws_KR: np.ndarray | None, floor_KR: np.ndarray | None
) -> ByClass | None:
    """The first column is the estimate."""
    if draws_KR is None or floor_KR is None:
        return None
    rows, has = (np.arange(len(y)), y) if kind == "classes" else np.nonzero(y == 1)
    counts_KG = sparse.csr_array(
        (np.ones(len(rows)), (has, groups[rows])), shape=(len(draws_KR), int(groups.max()) + 1)
    )
    sampled = tuple(Sampled(float(values[0]), values[1:]) for values in draws_KR)
    return ByClass(sampled, tuple(floor_KR[:, 0].tolist()), counts_KG.sum(1).astype(int), counts_KG)


def evaluate(
    kind: Kind, y: np.ndarray, prediction: Prediction, fold: np.ndarray, floor: Prediction | None = None
) -> dict[str, float]:
    """The metrics of `score`, every row counted once; those that need no floor where it is not given."""
    rows = labelled(kind, y)

    def metrics(predicted: Prediction) -> _Metrics:
        measure = _measure(kind, y[rows], take(predicted, rows), fold[rows], np.arange(len(rows)), len(rows))
        return measure(np.ones((len(rows), 1)))

    told = metrics(prediction)
    if floor is not None:
        told = _related(told, metrics(floor))
    return {name: float(value[0]) for name, value in told.items() if name != _BY_CLASS}


def _related(told: _Metrics, floor: _Metrics) -> _Metrics:
    """With what is measured against the floor."""
    related = told | {"V-information": floor["cross-entropy"] - told["cross-entropy"]}
    if "mean cosine" in told:
        related["circular R2"] = 1 - _ratio(1 - told["mean cosine"], 1 - floor["mean cosine"])
    return related


def row_bits(kind: Kind, y: np.ndarray, prediction: Prediction) -> np.ndarray:
    """(n,) bits that each labelled row costs; their mean is the cross-entropy. Differences between two predictions
    of the same rows are what a paired test by rows or groups takes.
    """
    if kind == "multilabel":
        bits_nC, known_nC = _label_bits(y, _array(prediction))
        return (bits_nC * (len(y) / np.maximum(known_nC.sum(0), 1))).sum(1)
    if isinstance(prediction, Gaussian):
        error = (y - prediction.mean) / prediction.scale
        return np.log2(prediction.scale) + (np.log(2 * np.pi) + error**2) / (2 * np.log(2))
    if isinstance(prediction, VonMises):
        return circular.bits(y - prediction.mean, prediction.concentration, prediction.period)
    return -np.take_along_axis(prediction, y[:, None], 1)[:, 0].astype(np.float64) / np.log(2)


# ---- what each kind measures


def _measure(
    kind: Kind,
    y: np.ndarray,
    prediction: Prediction,
    fold: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    ranks: bool = True,
) -> _Measure:
    """Everything that does not depend on the resample is done here, once."""
    membership = sparse.csr_array((np.ones(len(y)), (groups, np.arange(len(y)))), shape=(n_groups, len(y)))
    if kind == "classes":
        return _measure_classes(y, _array(prediction), membership)
    if kind == "multilabel":
        return _measure_multilabel(y, _array(prediction), fold, groups, membership, ranks)
    if isinstance(prediction, VonMises):
        return _measure_circular(y, prediction, membership)
    assert isinstance(prediction, Gaussian), f"a {type(prediction).__name__} for a number"
    return _measure_number(y, prediction, fold, groups, membership, ranks)


def _measure_classes(y: np.ndarray, log_p_nK: np.ndarray, membership: sparse.csr_array) -> _Measure:
    right = log_p_nK.argmax(1) == y
    sums_SG = (membership @ np.stack([np.ones(len(y)), right, row_bits("classes", y, log_p_nK)], 1)).T

    def by_class(counted_n: np.ndarray) -> sparse.csr_array:
        is_class_nK = sparse.csr_array((counted_n, (np.arange(len(y)), y)), shape=log_p_nK.shape)
        return (membership @ is_class_nK).T.tocsr()

    seen_KG, found_KG = by_class(np.ones(len(y))), by_class(right.astype(np.float64))

    def measure(weights_GR: np.ndarray) -> _Metrics:
        n, hits, bits = sums_SG @ weights_GR
        recall_KR = _ratio(found_KG @ weights_GR, seen_KG @ weights_GR)
        return {
            "top-1": _ratio(hits, n),
            "balanced accuracy": mean_known(recall_KR, 0),
            "cross-entropy": _ratio(bits, n),
            _BY_CLASS: recall_KR,
        }

    return measure


def _measure_multilabel(
    y: np.ndarray,
    logits_nC: np.ndarray,
    fold: np.ndarray,
    groups: np.ndarray,
    membership: sparse.csr_array,
    ranks: bool,
) -> _Measure:
    bits_nC, known_nC = _label_bits(y, logits_nC)
    asked = known_nC.any(0)
    bits_CG, known_CG = ((membership @ v[:, asked].astype(np.float64)).T for v in (bits_nC, known_nC))
    rankings = [
        [
            _Ranking.of(y[rows, label] == 1, logits_nC[rows, label], groups[rows], membership.shape[0])
            for rows in (np.flatnonzero((fold == k) & known_nC[:, label]) for k in np.unique(fold))
            if (y[rows, label] == 1).any()
        ]
        for label in range(y.shape[1] if ranks else 0)
    ]

    sizes_G = membership.sum(1)

    def measure(weights_GR: np.ndarray) -> _Metrics:
        bits = {"cross-entropy": _ratio(bits_CG @ weights_GR, known_CG @ weights_GR).sum(0)}
        if not ranks:
            return bits
        harmonic = np.append(0, np.cumsum(1 / np.arange(1, 1 + (sizes_G @ weights_GR).max())))
        nothing_R = np.full(weights_GR.shape[1], np.nan)
        by_fold = [[nothing_R, *(fold.average_precision(weights_GR, harmonic) for fold in folds)] for folds in rankings]
        precision_CR = np.stack([mean_known(np.stack(folds), 0) for folds in by_fold])
        return {"mAP": mean_known(precision_CR, 0), **bits, _BY_CLASS: precision_CR}

    return measure


def _measure_number(
    y: np.ndarray, prediction: Gaussian, fold: np.ndarray, groups: np.ndarray, membership: sparse.csr_array, ranks: bool
) -> _Measure:
    error, centred = y - prediction.mean, y - y.mean()
    bits = row_bits("number", y, prediction)
    columns = [np.ones(len(y)), centred, centred**2, error**2, np.abs(error), bits]
    sums_SG = (membership @ np.stack(columns, 1)).T
    whole = [np.flatnonzero(fold == k) for k in np.unique(fold)] if ranks else []
    folds = [(groups[rows], _Ties.of(y[rows]), _Ties.of(prediction.mean[rows])) for rows in whole]

    def measure(weights_GR: np.ndarray) -> _Metrics:
        n, total, squares, left, absolute, code = sums_SG @ weights_GR
        unexplained = _ratio(left, squares - _ratio(total**2, n))
        of_sums = {"R2": 1 - unexplained, "MAE": _ratio(absolute, n), "cross-entropy": _ratio(code, n)}
        correlations = [_rank_correlation(weights_GR[rows], a, b) for rows, a, b in folds]
        return of_sums | ({"Spearman": mean_known(np.stack(correlations), 0)} if correlations else {})

    return measure


def _measure_circular(y: np.ndarray, prediction: VonMises, membership: sparse.csr_array) -> _Measure:
    error = circular.difference(prediction.mean, y, prediction.period)
    cosine, bits = circular.cosine(prediction.mean, y, prediction.period), row_bits("circular", y, prediction)
    sums_SG = (membership @ np.stack([np.ones(len(y)), cosine, np.abs(error), bits], 1)).T

    def measure(weights_GR: np.ndarray) -> _Metrics:
        n, *sums = sums_SG @ weights_GR
        return dict(zip(("mean cosine", "MAE", "cross-entropy"), (_ratio(sum_R, n) for sum_R in sums), strict=True))

    return measure


def _label_bits(y: np.ndarray, logits_nC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bits (n, C), 0 where unknown; known (n, C) bool)."""
    known = y != UNKNOWN
    sign = np.where(y == 1, -1.0, 1.0)
    return np.where(known, np.logaddexp(0, sign * logits_nC) / np.log(2), 0), known


# ---- ranks, weighted by resamples


class _Ranking(NamedTuple):
    """Rows from the highest score down, cut above and below every block of equal scores that holds a positive."""

    skipped: sparse.csr_array
    """(B, G) how many rows of each group lie between the block before and this one."""
    rows: sparse.csr_array
    """(B, G) how many lie in the block."""
    positives: sparse.csr_array
    """(B, G) how many of these are positive."""

    @classmethod
    def of(cls, positive: np.ndarray, scores: np.ndarray, groups: np.ndarray, n_groups: int) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        ranked, hit, of_rows = scores[order], positive[order], groups[order]
        values = -np.unique(-ranked[hit])
        starts, ends = (np.searchsorted(-ranked, -values, side=side) for side in ("left", "right"))
        place = np.arange(ends[-1])
        block = np.searchsorted(ends, place, side="right")
        inside = place >= starts[block]

        def counts(chosen: np.ndarray) -> sparse.csr_array:
            cells = block[chosen], of_rows[: ends[-1]][chosen]
            return sparse.csr_array((np.ones(len(cells[0])), cells), shape=(len(ends), n_groups))

        return cls(counts(~inside), counts(inside), counts(inside & hit[: ends[-1]]))

    def average_precision(self, weights_GR: np.ndarray, harmonic: np.ndarray) -> np.ndarray:
        """(R,) precision averaged over the positives, and over all orders of rows with equal scores; NaN without a
        positive. harmonic: 1 + 1/2 + ... + 1/n for n = 0 up to the number of rows.
        """
        rows, hits = self.rows @ weights_GR, self.positives @ weights_GR
        end = np.cumsum(rows + self.skipped @ weights_GR, 0)
        above, hits_above = end - rows, np.cumsum(hits, 0) - hits
        # Of the others in a positive's block this share is positive, wherever in the block it stands.
        share = (hits - 1) / np.maximum(rows - 1, 1)
        mean_inverse = (harmonic[end.astype(int)] - harmonic[above.astype(int)]) / np.maximum(rows, 1)
        precision = share + (hits_above + 1 - share * (above + 1)) * mean_inverse
        return _ratio(np.einsum("br,br->r", hits, precision), hits.sum(0))


class _Ties(NamedTuple):
    """The order of some values, and which of them are equal."""

    order: np.ndarray
    """(n,) the rows from the smallest up."""
    block: np.ndarray
    """(n,) for every row, the number of its block of equal values."""
    starts: np.ndarray
    """(B,) where blocks begin in `order`."""

    @classmethod
    def of(cls, values: np.ndarray) -> "_Ties":
        _, block, counts = np.unique(values, return_inverse=True, return_counts=True)
        return cls(np.argsort(block, kind="stable"), block, np.cumsum(counts) - counts)

    def ranks(self, weights_nR: np.ndarray) -> np.ndarray:
        """(n, R) middle ranks of the rows, each present as often as its weight says; weighted mean 0."""
        inside = np.add.reduceat(weights_nR[self.order], self.starts, 0)
        upto = np.cumsum(inside, 0)
        middle = upto - inside / 2 - upto[-1] / 2  # the mean of middle ranks is half the number of rows
        return middle[self.block]


def _rank_correlation(weights_nR: np.ndarray, a: _Ties, b: _Ties) -> np.ndarray:
    """(R,) Spearman's correlation. A constant prediction `b` ranks nothing: 0; constant labels `a`: NaN."""
    ranks_a, ranks_b = a.ranks(weights_nR), b.ranks(weights_nR)
    weighted = weights_nR * ranks_a
    spread_a = np.einsum("nr,nr->r", weighted, ranks_a)
    covariance = np.einsum("nr,nr->r", weighted, ranks_b)
    spread_b = np.einsum("nr,nr,nr->r", weights_nR, ranks_b, ranks_b)
    correlation = _ratio(covariance, np.sqrt(spread_a * spread_b))
    return np.where((spread_b > 0) | (spread_a == 0), correlation, 0)


# ---- small things


def _sampled(metrics: _Metrics) -> dict[str, Sampled]:
    """The first entry is the estimate."""
    sampled = {}
    for name, values in metrics.items():
        estimate, draws = values[0], values[1:]
        known = draws[np.isfinite(draws)]
        if name in _BIASED and len(known):
            draws = draws + (estimate - known.mean())
        sampled[name] = Sampled(float(estimate), draws)
    return sampled


def labelled(kind: Kind, y: np.ndarray) -> np.ndarray:
    """The rows that have a label."""
    known = is_known(kind, y)
    return np.flatnonzero(known.any(1) if known.ndim > 1 else known)


def take(prediction: Prediction, rows: np.ndarray) -> Prediction:
    if isinstance(prediction, Gaussian):
        return Gaussian(prediction.mean[rows], prediction.scale[rows])
    if isinstance(prediction, VonMises):
        return VonMises(prediction.mean[rows], prediction.concentration[rows], prediction.period)
    return prediction[rows]


def stacked(prediction: Prediction) -> np.ndarray:
    """As one array: of a distribution (2, n)."""
    return np.stack(prediction[:2]) if isinstance(prediction, tuple) else prediction


def unstacked(kind: Kind, values: np.ndarray, period: float) -> Prediction:
    """What `stacked` made an array of."""
    if kind == "number":
        return Gaussian(*values)
    return VonMises(values[0], values[1], period) if kind == "circular" else values


def _array(prediction: Prediction) -> np.ndarray:
    assert isinstance(prediction, np.ndarray), f"a {type(prediction).__name__} for classes or labels"
    return prediction


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where `below` is not positive."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
