"""Folds that split no group and spread the labels of all tasks. Knows arrays; not features, probes or scores.

All tasks share one assignment, so that the features of a fold are prepared once and every comparison is on the same
images. Legend: N rows, G groups, K folds, B label bins of all tasks together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from htc_probe.extract.store import UNKNOWN
from htc_probe.probes.inputs.labels import Labels

_BINS = 5  # of a number, by its quantiles; values that are a quantile are bins of their own


def assign(tasks: Sequence[Labels], groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int: the fold that holds each row. Deterministic in `seed`.

    Groups are dealt one by one, those with the rarest labels first (Sechidis et al., ECML 2011, for groups instead of
    rows): each goes where its labels are missing most, relative to how frequent they are, and of equals to the fold
    with the fewest rows.
    """
    rng = np.random.default_rng(seed)
    names, of_row = np.unique(groups, return_inverse=True)
    bins_NB = np.concatenate([_bins(task) for task in tasks] + [np.ones((len(groups), 1), bool)], 1)
    bins_NB = bins_NB[:, bins_NB.any(0)]
    counts_GB = np.zeros((len(names), bins_NB.shape[1]))
    np.add.at(counts_GB, of_row, bins_NB)
    share_B = 1 / counts_GB.sum(0)
    # A group matters by its rarest label; ties in random order.
    order = np.lexsort((rng.random(len(names)), -(counts_GB * share_B).max(1)))
    weighted_GB = counts_GB * share_B
    filled_KB = np.zeros((folds, bins_NB.shape[1]))
    fold_G = np.empty(len(names), dtype=int)
    for group in order:
        # What is missing of each of the group's labels, plus a little for rows: the last bin holds all of them.
        crowded_K = filled_KB @ weighted_GB[group] + 1e-9 * filled_KB[:, -1]
        fold = int(np.argmin(crowded_K + 1e-12 * rng.random(folds)))
        fold_G[group] = fold
        filled_KB[fold] += weighted_GB[group]
    return fold_G[of_row]


def _bins(task: Labels) -> np.ndarray:
    """(N, bins) bool: which of a task's bins each row is in; none where its label is not known."""
    if task.kind == "classes":
        return task.y[:, None] == np.arange(task.n_classes)
    if task.kind == "multilabel":
        return np.concatenate([task.y == 1, (task.y != 1) & (task.y != UNKNOWN)], 1)
    known = np.isfinite(task.y)
    if not known.any():
        return np.zeros((len(known), 1), bool)
    edges = np.unique(np.quantile(task.y[known], np.linspace(0, 1, _BINS + 1)[1:-1]))
    # Also what lies below a value that most rows have is told from it, as counts of things need.
    bins = np.searchsorted(edges, task.y) + np.searchsorted(edges, task.y, side="right")
    return (bins[:, None] == np.arange(2 * len(edges) + 1)) & known[:, None]
