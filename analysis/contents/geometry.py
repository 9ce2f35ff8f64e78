"""How representations lie: neighbours, likeness (CKA), dimension, angles. Knows arrays; not runs, models or files.

Scales differ between dimensions of a language model by orders of magnitude, so give `standardised` features where a few
massive ones shall not decide. What compares images with each other takes N^2 numbers: give a few thousand images.

Legend: N images, D features, k neighbours, B blocks of the jackknife.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from htc_probe.analysis.stats import draws
from htc_probe.extract.store import NUMERIC, Task, is_labelled
from htc_probe.probes.inputs import circular

NEIGHBOURS = 10
NULL_DRAWS = 200


class Gram(NamedTuple):
    """Inner products of N images, without those of images with themselves, and their sums over blocks of images."""

    off_NN: np.ndarray
    """float32, 0 on the diagonal; divided by the mean squared length, as nothing here depends on the scale."""
    square_N: np.ndarray
    """The diagonal."""
    sums_NB: np.ndarray
    """Row sums of `off_NN` within each block."""
    block_N: np.ndarray


class Angles(NamedTuple):
    """Two subspaces, and two random ones of these dimensions."""

    cosines: np.ndarray
    """(k,) of the principal angles, largest first."""
    null: np.ndarray
    """(draws, k) the same of random subspaces."""

    @property
    def overlap(self) -> float:
        """Mean squared cosine: the share of the smaller subspace that lies in the other, 0 to 1."""
        return float((self.cosines**2).mean())

    @property
    def null_overlaps(self) -> np.ndarray:
        """(draws,)"""
        return (self.null**2).mean(1)


def standardised(features_ND: np.ndarray) -> np.ndarray:
    """(N, D) float32, every feature with mean 0 and deviation 1; constant ones become 0."""
    centred = features_ND - features_ND.mean(0, dtype=np.float64)
    spread = centred.std(0)
    level = np.abs(features_ND).max(0) * 1e-6
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > level).astype(np.float32)


def neighbours(features_ND: np.ndarray, groups_N: draws.Groups, k: int = NEIGHBOURS) -> np.ndarray:
    """(N, k) images with the largest cosine, nearest first, none of the own group; -1 where there are too few."""
    first, which = distinct(features_ND)
    length = np.linalg.norm(features_ND[first], axis=1, keepdims=True)
    blank = np.zeros((len(first), features_ND.shape[1]), np.float32)
    unit = np.divide(features_ND[first], length, out=blank, where=length > 0)
    return by_likeness(lambda start, stop: (unit[which[start:stop]] @ unit.T)[:, which], groups_N, k)


def nearest(points_ND: np.ndarray, groups_N: draws.Groups, k: int = NEIGHBOURS) -> np.ndarray:
    """The same by distance."""
    first, which = distinct(points_ND)
    points = points_ND[first]
    square = (points**2).sum(1)
    return by_likeness(lambda start, stop: (2 * points[which[start:stop]] @ points.T - square)[:, which], groups_N, k)


def distinct(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) where the distinct rows come first, in order, and (N,) which of them each row is.

    A product of matrices rounds by where a row lies, so that rows that are equal would be told apart: what is computed
    of the distinct ones and handed out is the same for all.
    """
    places: dict[bytes, int] = {}
    which = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows_ND + 0], dtype=int)  # -0 is 0
    return np.unique(which, return_index=True)[1], which


def shared(one_NK: np.ndarray, other_NK: np.ndarray) -> np.ndarray:
    """(N,) share of an image's k neighbours that both have; k / (N - 1) by chance."""
    return (one_NK[:, :, None] == other_NK[:, None]).any(2).mean(1)


def vote(near_NK: np.ndarray, labels: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """What the neighbours say of a task: (errors, their sum without features), each (N,), 0 where the label is unknown.

    The score is 1 - sum(errors) / N for classes (majority, the nearer class at a tie) and for labels of a multilabel
    task (share of wrong majorities), and R2 = 1 - sum(errors) / sum(total) for numbers (mean of the neighbours). Of
    circular values it is the same with 1 - cosine of the error, and what is said is the direction of their mean point.
    The second array is 1 or 0 in the first two cases: whether the image counts. Neighbours without a label do not vote.
    """
    near = (near_NK >= 0).reshape(near_NK.shape + (1,) * (labels.ndim - 1))
    around = np.where(near, labels[near_NK], task.unknown(1)[0])
    known_NK = is_labelled(task.kind, around)
    known = is_labelled(task.kind, labels) & known_NK.any(1)
    if task.kind == "circular":
        points = np.where(known_NK[..., None], circular.vectors(around, task.period), 0).sum(1)
        missed = 1 - circular.cosine(circular.values_of(points, task.period), labels, task.period)
        whole = np.zeros(len(labels))
        whole[known] = circular.errors_of_others(labels[known], task.period)
        return np.where(known, missed, 0), whole
    if task.kind == "number":
        said = np.divide(np.where(known_NK, around, 0).sum(1), known_NK.sum(1), out=np.zeros(len(labels)), where=known)
        off = labels - labels[known].mean() if known.any() else labels
        return np.where(known, (labels - said) ** 2, 0), np.where(known, off**2, 0)
    if task.kind == "classes":
        weight = 1 - 1e-3 * np.arange(near_NK.shape[1])  # nearer ones first, at a tie
        votes = np.stack([((around == at) * weight).sum(1) for at in range(len(task.classes))], 1)
        return np.where(known, votes.argmax(1) != labels, 0).astype(float), known.astype(float)
    shown = known_NK[..., None]
    said = (np.where(shown, around, 0).sum(1) * 2 > shown.sum(1)).astype(int)
    return np.where(known, (said != labels).mean(1), 0), known.astype(float)


def floor(labels: np.ndarray, task: Task) -> float:
    """The score of `vote` that needs no features: the majority's, or 0 for numbers and circular values."""
    known = labels[is_labelled(task.kind, labels)]
    if task.kind in NUMERIC or not len(known):
        return 0.0
    if task.kind == "classes":
        return float(np.bincount(known).max() / len(known))
    return float(np.maximum(known.mean(0), 1 - known.mean(0)).mean())


def gram(features_ND: np.ndarray, block_N: np.ndarray) -> Gram:
    """Of N images; `block_N` (N,), from 0, are what the jackknife leaves out one by one."""
    centred = (features_ND - features_ND.mean(0, dtype=np.float64)).astype(np.float32)
    off = centred @ centred.T
    square = off.diagonal().astype(np.float64)
    scale = square.mean() or 1.0
    np.fill_diagonal(off, 0)
    off /= np.float32(scale)
    return Gram(off, square / scale, (off @ _indicator(block_N)).astype(np.float64), block_N)


def cka(grams: Sequence[Gram]) -> draws.Intervals:
    """(R, R) linear CKA of representations of the same images, unbiased (HSIC_1 of Song et al. 2012; 0 on average for
    independent ones, however wide they are), with jackknife intervals. NaN for a constant one.
    """
    R, values = len(grams), {}
    for i, one in enumerate(grams):
        for j in range(i + 1):
            values[i, j] = _hsic(one, grams[j])
    found = np.full((len(values[0, 0]), R, R), np.nan)
    for (i, j), value in values.items():
        whole = values[i, i] * values[j, j]
        known = (values[i, i] > 0) & (values[j, j] > 0)
        found[:, i, j] = np.divide(value, np.sqrt(np.abs(whole)), out=np.full(len(value), np.nan), where=known)
        found[:, j, i] = found[:, i, j]
    return draws.jackknife(found[0], found[1:])


def participation_ratio(one: Gram) -> draws.Interval:
    """(sum of the covariance's eigenvalues)^2 / sum of their squares: D for white features, 1 for a line.

    The denominator is estimated without bias, so that few images do not make it look small.
    """
    kept = _without(one.block_N)
    count = kept.sum(1)
    squares = kept @ one.square_N
    totals = _kept_rows(one, kept).sum(1)
    variance = (squares - (totals + squares) / count) / (count - 1)
    squared = _hsic(one, one)
    found = np.divide(variance**2, squared, out=np.full(len(squared), np.nan), where=squared > 0)
    return draws.jackknife(found[0], found[1:]).only


def two_nn(features_ND: np.ndarray, groups_N: draws.Groups, seed: int) -> draws.Interval:
    """Intrinsic dimension from the ratio of the distances to the two nearest images (Facco et al. 2017), by maximum
    likelihood over all images. Neighbours are of other groups; images that are equal to another are left out.
    """
    x = features_ND.astype(np.float64)
    near = nearest(x, groups_N, 2)
    first, second = (np.linalg.norm(x - x[near[:, at]], axis=1) for at in (0, 1))
    usable = (near[:, 1] >= 0) & (first > 1e-6 * np.sqrt((x**2).sum(1).mean()))
    ratio = np.log(np.divide(second, first, out=np.full(len(x), np.nan), where=usable))
    mean = draws.interval_of_mean(ratio, groups_N, seed)
    with np.errstate(divide="ignore"):
        estimate, lower, upper = 1 / np.array([mean.estimate, mean.upper, mean.lower])
    return draws.Interval(float(estimate), float(lower), float(upper))


def angles(one_Dk: np.ndarray, other_Dk: np.ndarray, seed: int) -> Angles:
    """Between the spans of the columns of two matrices, against random spans of their dimensions."""
    one, other = _basis(one_Dk), _basis(other_Dk)
    (D, first), second = one.shape, other.shape[1]
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(NULL_DRAWS):  # one of them can be the first axes
        turned, _ = np.linalg.qr(rng.standard_normal((D, second)))
        null.append(np.linalg.svd(turned[:first], compute_uv=False))
    cosines = np.linalg.svd(one.T @ other, compute_uv=False)
    return Angles(np.minimum(cosines, 1), np.minimum(null, 1))


def read_out_angles(one_Dk: np.ndarray, other_Dk: np.ndarray, features_ND: np.ndarray, seed: int) -> Angles:
    """The same of what the directions read on images: their cosines are canonical correlations.

    Directions can be orthogonal and read the same, where features go together, and the other way round. Scaling or
    mixing the features changes nothing here.
    """
    centred = features_ND - features_ND.mean(0, dtype=np.float64)
    axes, sizes, _ = np.linalg.svd(centred.T @ centred, hermitian=True)
    used = sizes > 1e-10 * max(sizes.max(initial=0), np.finfo(float).tiny)
    root = axes[:, used] * np.sqrt(sizes[used])  # coordinates in which the features are white
    return angles(root.T @ one_Dk, root.T @ other_Dk, seed)


def by_likeness(likeness: Callable[[int, int], np.ndarray], groups_N: draws.Groups, k: int) -> np.ndarray:
    """The same by `likeness(start, stop)`, (stop - start, N), which is overwritten; equally near: earlier first."""
    _, group = np.unique(np.asarray(groups_N), return_inverse=True)
    N = len(group)
    step = max(1, 2**23 // N)
    found = np.full((N, k), -1)
    some = min(k, N)
    for start in range(0, N, step):
        stop = min(start + step, N)
        like = likeness(start, stop)
        like[group[start:stop, None] == group] = -np.inf
        best = np.argpartition(-like, some - 1, axis=1)[:, :some]
        last = np.take_along_axis(like, best, 1).min(1, keepdims=True)
        tied = (like >= last).sum(1) > some
        best[tied] = np.argsort(-like[tied], axis=1, kind="stable")[:, :some]
        best.sort(1)
        score = np.take_along_axis(like, best, 1)
        order = np.argsort(-score, axis=1, kind="stable")
        best, score = np.take_along_axis(best, order, 1), np.take_along_axis(score, order, 1)
        found[start:stop, :some] = np.where(np.isfinite(score), best, -1)
    return found


def _indicator(block_N: np.ndarray) -> np.ndarray:
    """(N, B) float32: 1 where an image is in a block."""
    return (block_N[:, None] == np.arange(int(block_N.max()) + 1)).astype(np.float32)


def _without(block_N: np.ndarray) -> np.ndarray:
    """(1 + B, N) float64: all images, then all but those of each block."""
    return np.concatenate([np.ones((1, len(block_N))), 1.0 - _indicator(block_N).T])


def _kept_rows(one: Gram, kept: np.ndarray) -> np.ndarray:
    """(1 + B, N) row sums over the images that are kept, 0 for those that are not."""
    whole = one.sums_NB.sum(1)
    return np.concatenate([whole[None], whole - one.sums_NB.T]) * kept


def _hsic(one: Gram, other: Gram) -> np.ndarray:
    """(1 + B,) HSIC_1 (Song et al. 2012, equation 5) on all images, and without each block."""
    blocks = _indicator(one.block_N)
    kept = _without(one.block_N)
    n = kept.sum(1)
    product_NB = ((one.off_NN * other.off_NN) @ blocks).astype(np.float64)
    inside = (product_NB * blocks).sum(0)
    traces = product_NB.sum() - np.concatenate([[0], 2 * product_NB.sum(0) - inside])
    rows, others = _kept_rows(one, kept), _kept_rows(other, kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = rows.sum(1) * others.sum(1) / ((n - 1) * (n - 2))
        return np.where(n > 3, (traces + mean - 2 * (rows * others).sum(1) / (n - 2)) / (n * (n - 3)), np.nan)


def _basis(vectors_Dk: np.ndarray) -> np.ndarray:
    """(D, rank) orthonormal columns with the same span."""
    axes, sizes, _ = np.linalg.svd(vectors_Dk, full_matrices=False)
    return axes[:, sizes > 1e-9 * max(sizes.max(initial=0), np.finfo(float).tiny)]
