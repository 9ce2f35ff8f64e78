"""MGVQ codes: how many are used, what they say of labels, and how many of their bits a representation holds.

Knows arrays; not runs, models or files. Everything is in bits. A code here is one variable: a group at a place of the
grid. Codes of an image go together, so means over them are given and never sums: bits of a whole image would count
what codes share more than once.

Legend: N images, V variables, K its values, C classes, D features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from htc_probe.analysis.stats import draws as stats
from htc_probe.analysis.stats import ridge
from htc_probe.probes.scores.intervals import effective_groups, group_sizes

_VALUES = 16
"""At most so many values of a code are told apart, as 2,048 would need too many images. What the value says is at most
what the code says."""
_BINS = 8
_PER_PAIR = 4
"""Groups of images for each value of a code and of a label, that intervals of information hold."""
_SHUFFLES = 20
_SMOOTHING = 50.0  # images that all places together count as, in the frequencies of one place
_SHRINKAGE = (0.01, 0.1, 1.0, 10.0)  # of the covariance, in mean eigenvalues
_PRIOR = (10.0, 100.0)  # images that a class' mean counts as being at the overall mean
_TEMPERATURE = (0.0, 0.3, 0.6, 1.0, 1.6)


class Usage(NamedTuple):
    """How a group's codes are used, each (groups,)."""

    entropy: stats.Intervals
    """Bits of a code, 0 to log2 of the codebook's size; with Miller and Madow's correction."""
    used: np.ndarray
    """Codes that occur at all."""
    draws: float
    """Of a group's codes: effective groups of images, times places. With fewer than there are codes, entropy and
    perplexity are too low: the correction knows nothing of codes that were not seen."""


class Read(NamedTuple):
    """What a representation says of all codes, on held-out images; each (N, places, groups)."""

    bits: np.ndarray
    """Saved by the readout."""
    floor: np.ndarray
    """Code length by the frequencies alone."""


class Information(NamedTuple):
    """What V variables say of a label."""

    bits: np.ndarray
    """(V,) mutual information of each with the label, less what shuffled labels give."""
    chance: np.ndarray
    """(V,) what they give: the bias that was taken off."""
    pointwise: np.ndarray
    """(N, V) float32; their mean is `bits`. NaN where the label is unknown."""
    entropy: float
    """Of the label: the most that can be said."""


def usage(codes_NPG: np.ndarray, size: int, groups_N: stats.Groups, seed: int) -> Usage:
    """Of codes (N, places, groups), each 0 to `size` - 1."""
    N, P, G = codes_NPG.shape
    surprise, used = np.empty((N, G)), np.empty(G, dtype=int)
    for group in range(G):
        counts = np.bincount(codes_NPG[..., group].ravel().astype(int), minlength=size)
        used[group] = (counts > 0).sum()
        bits = -np.log2(np.maximum(counts, 1) / (N * P))
        surprise[:, group] = bits[codes_NPG[..., group]].mean(1)
    draws = effective_groups(group_sizes(groups_N)) * P  # what near-copies of an image add is no draw
    # To first order, an entropy moves with the shares of the codes as the mean of these surprises does.
    found = stats.intervals_of_means(surprise, groups_N, seed)
    more = (used - 1) / (2 * draws * np.log(2))
    return Usage(stats.Intervals(*(np.clip(part + more, 0, np.log2(size)) for part in found)), used, draws)


def values_for(groups_N: stats.Groups) -> int:
    """How many values of a code images of these groups can tell apart, 2 to `_VALUES`. Groups count, not images: four
    near-copies say as much of a code and a label as one of them.
    """
    return max(2, min(_VALUES, int(effective_groups(group_sizes(groups_N))) // (_BINS * _PER_PAIR)))


def most_frequent(codes_NV: np.ndarray, kept: int) -> np.ndarray:
    """(N, V) ints: 0 to kept - 1 for each variable's most frequent values, kept for any other."""
    found = np.full(codes_NV.shape, kept)
    for variable, codes in enumerate(codes_NV.T):
        values, counts = np.unique(codes, return_counts=True)
        for rank, at in enumerate(np.argsort(-counts, kind="stable")[:kept]):
            found[codes == values[at], variable] = rank
    return found


def binned(values_N: np.ndarray, bins: int = _BINS) -> np.ndarray:
    """(N,) ints: which of `bins` equally frequent ranges a number is in; -1 where it is NaN."""
    known = np.isfinite(values_N)
    if not known.any():
        return np.full(len(values_N), -1)
    edges = np.unique(np.quantile(values_N[known], np.arange(1, bins) / bins))
    return np.where(known, np.searchsorted(edges, values_N, side="right"), -1)


def information(values_NV: np.ndarray, labels_N: np.ndarray, groups_N: stats.Groups, seed: int) -> Information:
    """Mutual information of variables (small ints from 0) with labels (ints, -1 unknown).

    Counting alone finds some in any finite sample, more with more values. What remains of it when labels are passed
    around between groups of images is taken off: without bias where a variable says nothing. Where it says something,
    too much may go, by how many groups there are for each pair of a value and a class. In simulations (16 values, 8
    classes) of 0.07, 0.44 and 1.65 bits, 0.07, 0.44 and 1.66 were left with 4; with 1, 0.06, 0.41 and 1.54, the same
    with four copies of every image, and 0.06, 0.42 and 1.57 with groups of uneven sizes: see `values_for`. Intervals
    from `pointwise` are right where variables say something, and too wide (by up to sqrt(2)) where they say nothing,
    given these 4.
    """
    known = labels_N >= 0
    values, groups = values_NV[known], np.asarray(groups_N)[known]
    classes, labels = np.unique(labels_N[known], return_inverse=True)
    n, V = values.shape
    pointwise = np.full(values_NV.shape, np.nan, dtype=np.float32)
    if n < 2:
        return Information(np.full(V, np.nan), np.full(V, np.nan), pointwise, 0.0)
    K = int(values.max()) + 1
    entries = np.ones(n * V, np.float32), (values + np.arange(V) * K).ravel(), np.arange(0, n * V + 1, V)
    hot = sparse.csr_array(entries, shape=(n, V * K))
    label_hot = np.eye(len(classes), dtype=np.float32)[labels]
    share = label_hot.mean(0, dtype=np.float64)

    def gain(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joint shares (V, K, C), and log2 of them over the product of shares; 0 where nothing falls."""
        joint = (hot.T @ label_hot[order]).reshape(V, K, -1).astype(np.float64) / n
        product = joint.sum(2, keepdims=True) * label_hot[order].mean(0, dtype=np.float64)
        return joint, np.log2(np.divide(joint, product, out=np.ones_like(joint), where=joint > 0))

    joint, table = gain(np.arange(n))
    found = (joint * table).sum((1, 2))
    chance = np.mean([np.multiply(*gain(order)).sum((1, 2)) for order in stats.shuffles(groups, seed, _SHUFFLES)], 0)
    pointwise[known] = table[np.arange(V), values, labels[:, None]] - chance
    return Information(found - chance, chance, pointwise, float(-(share * np.log2(share)).sum()))


def readable(
    features_ND: np.ndarray, values_NV: np.ndarray, groups_N: stats.Groups, together_V: np.ndarray, seed: int
) -> np.ndarray:
    """(N, V) float32 bits of each variable that a linear readout of the features saves on held-out images.

    Each image is read by a readout fitted on other groups of images (5 folds). Its code lengths, -log2 of the
    probability that it gives the true value, are subtracted from those of the values' frequencies; the mean is a lower
    bound of the mutual information (Barber & Agakov 2003), and about 0 or below where nothing can be read.

    The readout is linear discriminant analysis with softmax probabilities: closed form, so thousands of variables take
    seconds. How much covariance and class means are shrunk, and how sure it is, are chosen on a fifth of the training
    groups, once for the variables of one number in `together_V` (V,); sure of nothing is among the choices.
    """
    saved = np.full(values_NV.shape, np.nan, dtype=np.float32)
    groups = np.asarray(groups_N)
    for number, (train, test) in enumerate(ridge.folds(groups_N, seed)):
        inner = stats.blocks(groups[train], seed + 1 + number, ridge.FOLDS) == 0
        fit, check = train[~inner], train[inner]
        best = np.full(values_NV.shape[1], -np.inf)
        chosen = np.zeros((values_NV.shape[1], 3))
        if len(fit) and len(check):
            for choice, bits in _readouts(features_ND, values_NV, fit, check, None):
                for kind in np.unique(together_V):
                    mine = together_V == kind
                    score = bits[:, mine].mean()
                    if score > best[mine][0]:
                        best[mine], chosen[mine] = score, choice
        for choice, bits in _readouts(features_ND, values_NV, train, test, {tuple(one) for one in chosen}):
            mine = (chosen == choice).all(1)
            saved[np.ix_(test, mine)] = bits[:, mine]
    return saved


def readable_vectors(
    features_ND: np.ndarray, codes_NPG: np.ndarray, codebook_GKc: np.ndarray, groups_N: stats.Groups, seed: int
) -> Read:
    """The same for all codes at once, read through the vectors that they stand for.

    A ridge map predicts the vector of each place and group. A code's frequency there is then weighted by how much
    likelier its vector is near the prediction (normal, with the covariance of left-out errors) than around the place's
    mean (with the covariance there); directions in which the prediction is no better than the mean do not count.
    Frequencies of a place lean on those of all places. The mean is a lower bound of the mutual information, up to
    errors in the frequencies.
    """
    N, P, G = codes_NPG.shape
    K, c = codebook_GKc.shape[1:]
    vectors = codebook_GKc[np.arange(G), codes_NPG].reshape(N, P * G, c).astype(np.float64)
    bits, floor = np.empty((N, P, G), np.float32), np.empty((N, P, G), np.float32)
    for train, test in ridge.folds(groups_N, seed):
        mean = vectors[train].mean(0)
        off = vectors[train] - mean
        scales, axes = np.linalg.eigh(np.einsum("nva,nvb->vab", off, off) / len(train))
        scales = np.sqrt(np.maximum(scales, 1e-6 * scales.max(1, keepdims=True, initial=1e-12)))
        white = np.einsum("nva,vab->nvb", vectors - mean, axes) / scales
        found = ridge.fit(features_ND[train], white[train])
        said = found.predict(features_ND[test])
        counts = np.zeros((P, G, K), int)
        np.add.at(counts, (np.arange(P)[:, None], np.arange(G), codes_NPG[train]), 1)
        everywhere = (counts.sum(0) + 1) / (counts.sum((0, 2))[..., None] + K)
        log_share = np.log((counts + _SMOOTHING * everywhere) / (len(train) + _SMOOTHING))
        for place, group in np.ndindex(P, G):
            at = place * G + group
            errors, turn = np.linalg.eigh(np.cov(found.left_out[:, at].T, bias=True))
            better = errors < 1
            points = ((codebook_GKc[group] - mean[at]) @ axes[at] / scales[at]) @ turn[:, better]
            guess, spread = said[:, at] @ turn[:, better], np.maximum(errors[better], 1e-3)
            prior = log_share[place, group] + (points**2 @ (1 - 1 / spread)) / 2
            logits = (prior + (guess / spread) @ points.T).astype(np.float32)
            peak = logits.max(1)
            total = np.log(np.exp(logits - peak[:, None]).sum(1)) + peak
            true = codes_NPG[test, place, group]
            floor[test, place, group] = -log_share[place, group, true] / np.log(2)
            bits[test, place, group] = (logits[np.arange(len(test)), true] - total) / np.log(2)
    return Read(bits + floor, floor)


def cells(codebook_GKc: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(groups, K) ints: which of `count` cells of similar vectors a code is in, by k-means within its group."""
    from sklearn.cluster import KMeans

    means = KMeans(min(count, codebook_GKc.shape[1]), n_init=1, random_state=seed)
    return np.stack([means.fit_predict(codes) for codes in codebook_GKc])


def _readouts(
    features_ND: np.ndarray, values_NV: np.ndarray, fit: np.ndarray, use: np.ndarray, wanted: set[tuple] | None
) -> Iterator[tuple[tuple[float, float, float], np.ndarray]]:
    """(shrinkage, prior, temperature) and the bits (use, V) that this readout saves; of all choices, or the wanted."""
    mean = features_ND[fit].mean(0, dtype=np.float64)
    centred = (features_ND[fit] - mean).astype(np.float64)
    n, V = len(fit), values_NV.shape[1]
    axes, sizes, turned = np.linalg.svd(centred, full_matrices=False)
    variances = sizes**2 / n
    K = int(values_NV.max()) + 1
    hot = np.zeros((V * K, n), np.float32)
    hot[(values_NV[fit] + np.arange(V) * K).ravel(), np.repeat(np.arange(n), V)] = 1
    counts = hot.sum(1)
    prior = np.log((counts.reshape(V, K) + 0.5) / (n + K / 2))
    true = values_NV[use][..., None]
    shown = features_ND[use] - mean
    for shrinkage in _SHRINKAGE:
        if wanted is not None and not any(choice[0] == shrinkage for choice in wanted):
            continue
        damp = np.sqrt(variances + shrinkage * max(variances.mean(), np.finfo(float).tiny))
        white_fit = (axes * (sizes / damp)).astype(np.float32)
        white_use = ((shown @ turned.T) / damp).astype(np.float32)
        sums = hot @ white_fit
        for pull in _PRIOR:
            if wanted is not None and not any(choice[:2] == (shrinkage, pull) for choice in wanted):
                continue
            centre = sums / (counts[:, None] + pull)
            evidence = (white_use @ centre.T - (centre**2).sum(1) / 2).reshape(len(use), V, K)
            for temperature in _TEMPERATURE:
                choice = (shrinkage, pull, temperature)
                if wanted is not None and choice not in wanted:
                    continue
                logits = prior + np.float32(temperature) * evidence
                peak = logits.max(2, keepdims=True)
                total = np.log(np.exp(logits - peak).sum(2)) + peak[..., 0]
                said = np.take_along_axis(logits, true, 2)[..., 0] - total
                floor = np.take_along_axis(np.broadcast_to(prior, logits.shape), true, 2)[..., 0]
                base = np.log(np.exp(prior).sum(1))
                yield choice, ((said - floor + base) / np.log(2)).astype(np.float32)
