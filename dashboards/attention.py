"""Arithmetic on the attention of <voco>: shares by role, uniform references, patch maps.

Knows arrays; not files, figures or Streamlit. An attention row runs over the S keys that <voco> reads
(prefix, anchors, patches, text after the image, <voco> itself) and sums to 1.

Letters in names: L layers, H heads, S keys, R rows and C columns of the patch grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERCENTILES = (10, 90)
SHOWN_ROLES = ("prefix", "anchor", "patch", "text", "voco")


class Band(NamedTuple):
    """The middle 80 % of images: how much images differ, not how sure a mean is."""

    low: np.ndarray
    """10th percentile."""
    high: np.ndarray
    """90th percentile."""


def band(values: np.ndarray) -> Band:
    """(N, ...) values of N images -> their percentiles, each (...); NaN is left out."""
    low, high = np.nanpercentile(values, PERCENTILES, axis=0)
    return Band(low, high)


def role_mask(roles: Sequence[str], role: str) -> np.ndarray:
    """(S,) bool: which keys have this role."""
    return np.asarray([name == role for name in roles], dtype=bool)


def role_mass(attention: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
    """Share of all attention that each role receives.

    attention: (..., S), rows that sum to 1. Returns role -> (...), for the roles that have a key at all, in
    the order of the keys. The values of one row sum to 1.
    """
    return {
        role: attention[..., role_mask(roles, role)].sum(axis=-1, dtype=np.float32)
        for role in SHOWN_ROLES
        if role in roles
    }


def hybrid_share(anchor_mass: np.ndarray, patch_mass: np.ndarray) -> np.ndarray:
    """Anchors' part of the attention on hybrid tokens, `anchor / (anchor + patch)`, 0 to 1.

    Both inputs have one shape, which the result keeps; NaN where no attention falls on hybrid tokens.
    """
    hybrid = np.asarray(anchor_mass + patch_mass, dtype=np.float64)
    return np.divide(anchor_mass, hybrid, out=np.full_like(hybrid, np.nan), where=hybrid > 0)


def uniform_share(roles: Sequence[str]) -> float:
    """`hybrid_share` under uniform attention: anchors / (anchors + patches), 4/580 in the paper."""
    anchors, patches = roles.count("anchor"), roles.count("patch")
    return anchors / (anchors + patches)


def select(attention: np.ndarray, layer: int | None, head: int | None) -> np.ndarray:
    """(L, H, S) -> (S,): one layer and head (from 0), or the mean over all of them where None."""
    per_head = attention.mean(axis=0) if layer is None else attention[layer]
    return per_head.mean(axis=0) if head is None else per_head[head]


def head_mean(values: np.ndarray, head: int | None) -> np.ndarray:
    """(..., L, H) -> (..., L): one head (from 0), or the mean over heads where None."""
    return values.mean(axis=-1) if head is None else values[..., head]


def patch_map(
    row: np.ndarray, roles: Sequence[str], rows: Sequence[int], cols: Sequence[int]
) -> np.ndarray | None:
    """(S,) attention row -> (R, C) grid of what each patch receives; None where patches have no position.

    Cells of the grid without a patch are NaN.
    """
    patches = role_mask(roles, "patch")
    row_of, col_of = np.asarray(rows)[patches], np.asarray(cols)[patches]
    if not patches.any() or row_of.min() < 0 or col_of.min() < 0:
        return None
    grid = np.full((row_of.max() + 1, col_of.max() + 1), np.nan, dtype=np.float32)
    grid[row_of, col_of] = row[patches]
    return grid
