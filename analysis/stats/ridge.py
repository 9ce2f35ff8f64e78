"""Ridge regression of many targets at once, and what it explains on held-out images. Knows arrays only.

Legend: N images, D features, P targets (places) of d numbers each, r rank of the features.
"""

from typing import NamedTuple

import numpy as np

from htc_probe.analysis.stats import draws

FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-4, 6)
"""L2 strengths, in mean eigenvalues of the features' scatter."""


class Fit(NamedTuple):
    """One map from features to P targets, each with its own strength."""

    mean_D: np.ndarray
    scale_D: np.ndarray
    weights: np.ndarray
    """(D, P, d) of features with `mean_D` and `scale_D` taken off."""
    offset_Pd: np.ndarray
    left_out: np.ndarray
    """(N, P, d) float32 errors of each image's prediction without itself."""
    strength_P: np.ndarray
    """Those of `STRENGTHS` with the smallest sum of squares of these errors."""

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """(N, P, d)"""
        white = ((features_ND - self.mean_D) / self.scale_D).astype(np.float32)
        return np.tensordot(white, self.weights, 1) + self.offset_Pd


class Errors(NamedTuple):
    """Squares on held-out images, each (N, P), summed over the d numbers; R2 is 1 - sum(left) / sum(whole).

    So that R2 counts every number of a target by its variance: an average of R2s would count noise as much.
    """

    left: np.ndarray
    """Of prediction minus truth."""
    whole: np.ndarray
    """Of truth minus the training images' mean."""

    def r2(self, groups_N: draws.Groups, seed: int) -> draws.Draws:
        """(P + 1,) of every target, and last of all together."""
        left, whole = (np.concatenate([part, part.sum(1, keepdims=True)], 1) for part in self)
        return draws.draws_of_ratios(left, whole, groups_N, seed).complement()


def fit(features_ND: np.ndarray, targets_NPd: np.ndarray) -> Fit:
    """By one singular value decomposition, primal and dual at once; features are scaled to deviation 1."""
    N, P, d = targets_NPd.shape
    mean, scale = features_ND.mean(0, dtype=np.float64), features_ND.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * np.abs(features_ND).max(0), scale, np.inf)  # constant ones get no weight
    offset = targets_NPd.mean(0, dtype=np.float64)
    targets = (targets_NPd - offset).astype(np.float32).reshape(N, P * d)
    axes, sizes, turned = np.linalg.svd((features_ND - mean) / scale, full_matrices=False)
    squares = sizes**2
    level = max(squares.mean(), np.finfo(float).tiny)
    axes32 = axes.astype(np.float32)
    along = axes32.T @ targets
    best, strength, left_out = np.full(P, np.inf), np.full(P, np.nan), np.empty((N, P, d), np.float32)
    for rung in STRENGTHS:
        shrink = squares / (squares + rung * level)
        # An image's own weight in its prediction is taken out of it.
        own = np.minimum(1 / N + (axes**2) @ shrink, 1 - 1e-6)
        errors = targets - axes32 @ (shrink.astype(np.float32)[:, None] * along)
        errors /= (1 - own).astype(np.float32)[:, None]
        errors = errors.reshape(N, P, d)
        total = np.einsum("npd,npd->p", errors, errors)
        better = total < best
        best[better], strength[better] = total[better], rung
        left_out[:, better] = errors[:, better]
    shrunk_rP = sizes[:, None] / (squares[:, None] + strength * level)
    solved = along.reshape(-1, P, d) * shrunk_rP[..., None].astype(np.float32)
    weights = np.tensordot(turned.T.astype(np.float32), solved, 1)
    return Fit(mean, scale, weights, offset, left_out, strength)


def held_out(features_ND: np.ndarray, targets_NPd: np.ndarray, groups_N: draws.Groups, seed: int) -> Errors:
    """Each image predicted by a map fitted on other groups of images (5 folds); strengths are chosen within these."""
    left, whole = np.empty(targets_NPd.shape[:2]), np.empty(targets_NPd.shape[:2])
    for train, test in folds(groups_N, seed):
        fitted = fit(features_ND[train], targets_NPd[train])
        left[test] = ((fitted.predict(features_ND[test]) - targets_NPd[test]) ** 2).sum(2)
        whole[test] = ((targets_NPd[test] - fitted.offset_Pd) ** 2).sum(2)
    return Errors(left, whole)


def folds(groups_N: draws.Groups, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) rows: every image is tested once, with no image of its group in training. Raises ValueError."""
    fold_N = draws.blocks(groups_N, seed, FOLDS)
    if fold_N.max() == 0:
        raise ValueError("all images are of one group; none can be held out")
    return [(np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)) for fold in range(int(fold_N.max()) + 1)]
