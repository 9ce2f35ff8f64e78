"""Maps of the latents in two dimensions, and how far to trust them. Knows runs and arrays; not models or figures.

A map of many dimensions in two must tear neighbours apart: how many it keeps stands beside it.

Legend: N images, M representations, D features, V codes of an image.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits

from htc_probe.analysis.contents import geometry, reading
from htc_probe.analysis.sections import Map
from htc_probe.analysis.stats import draws
from htc_probe.extract import again
from htc_probe.extract.errors import UserError
from htc_probe.extract.store import Run

_IMAGES = 5000
_LEAST = 5  # images
_COMPONENTS = 50  # what UMAP sees
_UMAP_NEIGHBOURS = 15
_EPOCHS = 200


class Principal(NamedTuple):
    """Principal components of N images."""

    scores: np.ndarray
    """(N, k) float64, largest variance first; the largest score of each is positive."""
    variance: np.ndarray
    """(k,) shares of the whole variance."""


@threadpool_limits.wrap(limits=1)  # sums of several threads round in other ways, and UMAP makes another map of that
def analyse(run: Run, seed: int = 0, *, progress: Callable[[int, int], object] = lambda done, total: None) -> Map:
    """Maps of z_voco (last stored layer), v_d, pooled V and the codes, of at most 5,000 images.

    Features are standardised; codes are alike in as many as are equal. The same seed gives the same maps on the same
    machine, with any number of threads and where images come more than once: those that are equally near are in the
    order of the run. `progress` gets maps done and in all.

    Raises UserError where the run has less than 5 images.
    """
    if len(run) < _LEAST:
        raise UserError(f"{run.path.name} has {len(run)} images; a map needs at least {_LEAST}: extract more images")
    rows = again.sample(run, _IMAGES, seed)
    groups = run.groups(rows)
    features = {name: geometry.standardised(values) for name, values in reading.representations(run, rows).items()}
    if run.shape.codes is not None:
        features["codes"] = run.codes()[rows].reshape(len(rows), -1)
    pca, umap, variance, kept, near, away = [], [], [], [], [], []
    for name, values in features.items():
        first, which = geometry.distinct(values)
        like = equal_codes(values[first]) if name == "codes" else inner_products(values[first])
        found = principal(like, np.bincount(which))
        scores, like = found.scores[which], like[np.ix_(which, which)]
        pca.append(_two(scores))
        umap.append(umap_of(scores, seed))
        variance.append(_two(found.variance[None])[0])
        true = nearest_by(like, groups)
        kept.append([geometry.shared(true, geometry.nearest(at, groups)) for at in (pca[-1], umap[-1])])
        near.append(np.where(true >= 0, rows[true], -1))
        away.append(distances(like, true))
        progress(len(pca), len(features))
    ends = draws.intervals_of_means(np.moveaxis(np.array(kept), 2, 0), groups, seed)
    return Map(
        map_of=list(features),
        rows=rows,
        pca=np.array(pca, np.float32),
        umap=np.array(umap, np.float32),
        pca_variance=np.array(variance),
        pca_kept=draws.Intervals(*(part[:, 0] for part in ends)),
        umap_kept=draws.Intervals(*(part[:, 1] for part in ends)),
        kept_chance=geometry.NEIGHBOURS / (len(rows) - 1),
        nearest_rows=np.array(near, np.int32),
        nearest_distance=np.array(away, np.float32),
    )


def inner_products(features_ND: np.ndarray) -> np.ndarray:
    """(N, N) float32"""
    return features_ND @ features_ND.T


def equal_codes(codes_NV: np.ndarray) -> np.ndarray:
    """(N, N) float32: in how many of their codes two images are equal; the inner products of one-hot codes."""
    N, V = codes_NV.shape
    K = int(codes_NV.max()) + 1
    columns = (codes_NV.astype(np.int64) + np.arange(V) * K).ravel()
    hot = sparse.csr_array((np.ones(N * V, np.float32), columns, np.arange(0, N * V + 1, V)), shape=(N, V * K))
    return (hot @ hot.T).toarray()


def principal(likeness_NN: np.ndarray, counts_N: np.ndarray | None = None, components: int = _COMPONENTS) -> Principal:
    """The leading components from inner products, which need not be centred; fewer where there are not as many.
    `counts_N`: how many images each row stands for, 1 when left out.
    """
    N = len(likeness_NN)
    counts = np.ones(N) if counts_N is None else counts_N
    root = np.sqrt(counts)
    mean = likeness_NN @ counts / counts.sum()
    centred = (likeness_NN - mean - mean[:, None] + mean @ counts / counts.sum()) * root * root[:, None]
    whole = np.trace(centred)
    if components < N - 1:  # from a fixed start, and a seed for where the rank is less, so that it is always the same
        values, vectors = eigsh(centred, components, v0=np.cos(np.arange(N)), which="LA", rng=0)
    else:
        values, vectors = np.linalg.eigh(centred)
    order = [at for at in np.argsort(-values, kind="stable") if values[at] > 1e-6 * max(whole, 0)][:components]
    values, scores = values[order], vectors[:, order] / root[:, None]
    signs = np.sign(scores[np.abs(scores).argmax(0), np.arange(len(order))])
    return Principal(scores * signs * np.sqrt(values), values / whole if whole > 0 else values)


def umap_of(points_NK: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) UMAP (McInnes et al. 2018), started from the first two columns; one thread, as several would make it
    another map each time. Zeros where all points are the same.
    """
    if not points_NK.size:
        return np.zeros((len(points_NK), 2))
    start = _two(points_NK)
    start = 10 * start / np.abs(start).max()
    points = points_NK.astype(np.float32)
    N = len(points)
    near = geometry.nearest(points, np.arange(N), min(_UMAP_NEIGHBOURS, N) - 1)  # UMAP's own search is slower
    near = np.concatenate([np.arange(N)[:, None], near], 1)  # a point is its own first neighbour there
    away = np.linalg.norm(points[near] - points[:, None], axis=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread, and no new points with given neighbours
        from umap import UMAP

        model = UMAP(
            n_neighbors=near.shape[1],
            n_epochs=_EPOCHS,
            init=start.astype(np.float32),
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(near, away),
            force_approximation_algorithm=True,
        )
        return model.fit_transform(points)


def nearest_by(likeness_NN: np.ndarray, groups_N: draws.Groups, k: int = geometry.NEIGHBOURS) -> np.ndarray:
    """(N, k) nearest images of other groups by the distances that inner products give, -1 where there are too few."""
    square = likeness_NN.diagonal().copy()
    return geometry.by_likeness(lambda start, stop: 2 * likeness_NN[start:stop] - square, groups_N, k)


def distances(likeness_NN: np.ndarray, near_NK: np.ndarray) -> np.ndarray:
    """(N, K) float64 distances of the images from these others, over the root mean square distance of two images: 1 is
    as far as two of them are. NaN where an image is -1, and zeros where all images are the same.
    """
    N = len(likeness_NN)
    square = likeness_NN.diagonal().astype(np.float64)
    mean = 2 * (square.sum() - likeness_NN.sum(dtype=np.float64) / N) / (N - 1)  # squared, over pairs of two images
    squared = square[:, None] + square[near_NK] - 2 * likeness_NN[np.arange(N)[:, None], near_NK]
    level = 1e-6 * square.mean()  # rounding of float32 where the images are the same
    scaled = np.sqrt(np.maximum(squared, 0) / mean) if mean > level else np.zeros(near_NK.shape)
    return np.where(near_NK >= 0, scaled, np.nan)


def _two(columns: np.ndarray) -> np.ndarray:
    """The first two columns, zeros for those that are missing."""
    found = np.zeros((len(columns), 2))
    found[:, : columns.shape[1]] = columns[:, :2]
    return found
