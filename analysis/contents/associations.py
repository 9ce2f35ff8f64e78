"""Arithmetic on MGVQ codes: which are used, which images hold one, and which go with a label.

Knows arrays; not runs, files, figures or Streamlit.

Letters in names: N images, P places of the code grid, K codes of a group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from htc_probe.extract.store import NUMERIC, Kind
from htc_probe.probes.scores.intervals import COVERAGE

_LEVEL = 1 - COVERAGE
_RANGES = 4  # that a number is cut into


class Held(NamedTuple):
    """The codes of one group that each image holds."""

    codes: np.ndarray
    """(N, P) uint16, ascending within each image."""
    first: np.ndarray
    """(N, P) bool: the first of equal ones, so that an image counts once."""


class Associations(NamedTuple):
    """The codes of a group that images of a class hold, those that are surest to go with it first; each (codes,)."""

    code: np.ndarray
    inside: np.ndarray
    """Images of the class that hold it."""
    outside: np.ndarray
    """Other images that hold it."""
    lift: np.ndarray
    """How many times as often images of the class hold it as others do, with half an image added to each count, so
    that there is a ratio where no other image holds it."""
    lower: np.ndarray
    upper: np.ndarray
    """Ends of its interval; with 95% chance those of all `tests` hold what they are of."""
    p: np.ndarray
    """One-sided, exact (Fisher), times `tests`: the chance of even one such code if none went with any class."""
    n_inside: int
    n_outside: int
    tests: int

    @property
    def found(self) -> np.ndarray:
        """Which of them are more frequent in the class beyond doubt, after correction."""
        return (self.p < _LEVEL) & (self.lift > 1)


def held(codes_NP: np.ndarray) -> Held:
    ordered = np.sort(codes_NP, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return Held(ordered, first)


def shares(codes_NP: np.ndarray, size: int) -> np.ndarray:
    """(K,) how often each of `size` codes occurs, of all places of all images; sums to 1."""
    return np.bincount(codes_NP.ravel(), minlength=size) / codes_NP.size


def entropy(shares_K: np.ndarray) -> float:
    """Bits, 0 to log2(K)."""
    used = shares_K[shares_K > 0]
    return float(-(used * np.log2(used)).sum())


def associations(codes: Held, inside_N: np.ndarray, counted_N: np.ndarray, size: int, tests: int) -> Associations:
    """Which codes images of a class hold more often than others.

    inside_N, counted_N: (N,) bool, the images of the class, and those that are compared. These must not depend on each
    other: one of each group of images, see `one_of_each`. tests: how many pairs of a code and a class are looked at in
    all, among which one is picked because it stands out.
    """
    inside_N = inside_N & counted_N
    n_in, n_out = int(inside_N.sum()), int((counted_N & ~inside_N).sum())

    def images(rows_N: np.ndarray) -> np.ndarray:
        return np.bincount(codes.codes[rows_N][codes.first[rows_N]], minlength=size)

    inside, outside = images(inside_N), images(counted_N & ~inside_N)
    code = np.flatnonzero(inside)
    x, y = inside[code], outside[code]
    p = np.minimum(stats.hypergeom.sf(x - 1, n_in + n_out, x + y, n_in) * tests, 1)
    log = np.log((x + 0.5) / (n_in + 0.5)) - np.log((y + 0.5) / (n_out + 0.5))
    # Katz et al. 1978, with Walter's halves; at the level of one of many.
    spread = np.sqrt(1 / (x + 0.5) - 1 / (n_in + 0.5) + 1 / (y + 0.5) - 1 / (n_out + 0.5))
    reach = stats.norm.isf(_LEVEL / 2 / tests) * spread
    order = np.argsort(reach - log, kind="stable")
    log, reach, code, x, y, p = (values[order] for values in (log, reach, code, x, y, p))
    ends = np.exp(log), np.exp(log - reach), np.exp(log + reach)
    return Associations(code, x, y, *ends, p, n_in, n_out, tests)


def one_of_each(groups: Sequence[str], known_N: np.ndarray) -> np.ndarray:
    """(N,) bool: the first image of each group that has a label."""
    rows = np.flatnonzero(known_N)
    _, first = np.unique(np.asarray(groups, dtype=object)[rows].astype(str), return_index=True)
    chosen = np.zeros(len(known_N), dtype=bool)
    chosen[rows[first]] = True
    return chosen


def answers(labels: np.ndarray, kind: Kind, classes: Sequence[str], unit: str) -> list[str]:
    """Names of what a label can be: its classes, or four equally frequent ranges of a number."""
    if kind not in NUMERIC:
        return list(classes)
    edges = [f"{edge:.3g}" for edge in _edges(labels)]
    if not edges:
        return ["any"]
    between = [f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False)]
    return [f"{name} {unit}".strip() for name in (f"below {edges[0]}", *between, f"{edges[-1]} or more")]


def answering(labels: np.ndarray, kind: Kind, answer: int) -> np.ndarray:
    """(N,) bool: the images whose label is the one numbered `answer` of `answers`."""
    if kind == "multilabel":
        return labels[:, answer] == 1
    if kind in NUMERIC:
        return np.isfinite(labels) & (np.searchsorted(_edges(labels), labels, side="right") == answer)
    return labels == answer


def _edges(numbers_N: np.ndarray) -> np.ndarray:
    numbers = numbers_N[np.isfinite(numbers_N)]
    if not len(numbers):
        return np.empty(0)
    edges = np.unique(np.quantile(numbers, np.arange(1, _RANGES) / _RANGES))
    return edges[edges > numbers.min()]  # else nothing is below


def chosen(codes: Associations, wanted: np.ndarray) -> Associations:
    """Those of the codes that are `wanted` (codes,) bool."""
    return codes._replace(**{name: getattr(codes, name)[wanted] for name in Associations._fields[:7]})
