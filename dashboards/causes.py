"""Arithmetic on what causes what: maps that can be compared, whom a mixed image follows.

Knows arrays; not files, figures or Streamlit.

Letters in names: N images, T hybrid tokens (anchors and patches), C columns of what was read.
"""

from collections.abc import Sequence

import numpy as np

from htc_probe.extract.store import NUMERIC
from htc_probe.probes.inputs import circular

WHOM = ("anchors' image", "patches' image", "neither")


def times_even(values_T: np.ndarray) -> np.ndarray:
    """Each token's part of the sum of sizes, over 1/T; the sign stays. 1 is an even part; all 0 where nothing is."""
    total = np.abs(values_T).sum()
    return values_T * (len(values_T) / total) if total > 0 else np.zeros_like(values_T)


def nearest(rows: Sequence[int], row: int) -> int:
    """The one of `rows` that is the fewest images away from `row`, the earlier of two."""
    return min(rows, key=lambda other: (abs(other - row), other))


def follows(
    swapped_N: np.ndarray, true_N: np.ndarray, partner_N: np.ndarray, kind: str, period: float = 0.0
) -> np.ndarray:
    """(N,) whom the image with the anchors of N and the patches of its partner follows: 0 its own label, 1 the
    partner's, 2 neither, as in `WHOM`; -1 where the two do not differ, are not known, or there is no partner. Of
    numbers and circular values, the donor that is nearer.
    """
    other_N = np.where(partner_N >= 0, true_N[partner_N], np.nan)
    with np.errstate(invalid="ignore"):
        told = np.isfinite(swapped_N) & np.isfinite(true_N) & np.isfinite(other_N) & (true_N != other_N)
        if kind in NUMERIC:
            off, other_off = (
                circular.difference(swapped_N, donor, period) if kind == "circular" else swapped_N - donor
                for donor in (true_N, other_N)
            )
            found = (np.abs(other_off) < np.abs(off)).astype(int)
        else:
            found = np.select([swapped_N == true_N, swapped_N == other_N], [0, 1], 2)
    return np.where(told, found, -1)
