"""Arithmetic on the attention of <voco>: shares by role, what a head is like, uniform references, patch maps.

Knows arrays; not files, figures or Streamlit. An attention row runs over the S keys that <voco> reads
(prefix, anchors, patches, text after the image, <voco> itself) and sums to 1.

Letters in names: L layers, H heads, S keys, A anchors, P patches, R rows and C columns of the patch grid.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    percentiles = np.nanpercentile if np.isnan(values).any() else np.percentile  # the one takes many times as long
    low, high = percentiles(values, PERCENTILES, axis=0)
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


class Quantity(NamedTuple):
    """A number that each layer and head has, and the scale to draw it on."""

    name: str
    """As `measure` and `htc-analyze attention` call it."""
    title: str
    unit: str
    uniform: float
    """Under attention that is the same for all keys."""
    most: float
    """The largest that it can be; the smallest is 0."""
    anchor: int | None = None
    """From 0, where `name` has one value an anchor."""

    def of(self, values: Mapping[str, np.ndarray], end: str = "") -> np.ndarray:
        """Its (..., L, H) among `values`; `end` is `_lower` or `_upper` where there are intervals."""
        found = values[self.name + end]
        return found if self.anchor is None else found[..., self.anchor]


def quantities(roles: Sequence[str]) -> dict[str, Quantity]:
    """What can be drawn of each layer and head, by its name for people; without anchors only the entropy."""
    S, A, P = len(roles), roles.count("anchor"), roles.count("patch")
    found = {}
    if A:
        share = "share of all attention"
        found = {
            "Anchors": Quantity("anchor_mass", "Attention on the anchors", share, A / S, 1.0),
            "Anchors, lift": Quantity(
                "anchor_lift", "Lift of the anchors over their uniform share", "times uniform", 1.0, (A + P) / A
            ),
        }
        for at in range(A) if A > 1 else ():
            title = f"Attention on anchor {at + 1}"
            found[f"Anchor {at + 1}"] = Quantity("anchor_mass_each", title, share, 1 / S, 1.0, at)
    bits = float(np.log2(S))
    return found | {"Entropy": Quantity("entropy_bits", "Entropy of the attention", "bits", bits, bits)}


def measure(attention: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
    """What rows of attention (..., S) are like, each (...) float32, under the names of `htc-analyze attention`:
    `patch_mass`, `entropy_bits` (0 to log2(S)) and, of a model with anchors, `anchor_mass`, `anchor_mass_each` (..., A)
    and `anchor_lift` (the anchors' part of what falls on hybrid tokens over A / (A + P); NaN where nothing does).
    """
    total = attention.sum(axis=-1)  # 1, but for 16-bit storage, which moves it by up to 5e-4
    patch = attention @ role_mask(roles, "patch").astype(attention.dtype) / total
    logs = np.log2(np.maximum(attention, np.finfo(np.float32).tiny))
    bits = np.log2(total) - np.einsum("...s,...s->...", attention, logs) / total
    found = {"patch_mass": patch, "entropy_bits": np.maximum(bits, 0)}
    if "anchor" in roles:
        each = attention[..., role_mask(roles, "anchor")] / total[..., None]
        mass = each.sum(axis=-1)
        share = np.divide(mass, mass + patch, out=np.full_like(mass, np.nan), where=mass + patch > 0)
        found |= {"anchor_mass": mass, "anchor_mass_each": each, "anchor_lift": share / uniform_share(roles)}
    return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}


def uniform_share(roles: Sequence[str]) -> float:
    """The anchors' part of hybrid tokens, and of uniform attention on them: 4/580 in the paper."""
    anchors, patches = roles.count("anchor"), roles.count("patch")
    return anchors / (anchors + patches)


def evenly(rows: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `rows`, evenly spaced, with the first and the last."""
    at = np.linspace(0, len(rows) - 1, min(len(rows), max(1, most))).round().astype(int)
    return np.asarray(rows)[at]


def first_hybrid(roles: Sequence[str], count: int) -> np.ndarray:
    """(F,) where the first hybrid tokens are among the keys: anchors, then patches."""
    return np.flatnonzero(role_mask(roles, "anchor") | role_mask(roles, "patch"))[:count]


def token_names(roles: Sequence[str], rows: Sequence[int], cols: Sequence[int], count: int) -> list[str]:
    """Of the first hybrid tokens: `anchor 1`, or `patch row,column`, all from 1."""
    anchors = [at for at, role in enumerate(roles) if role == "anchor"]
    return [
        f"anchor {anchors.index(at) + 1}" if roles[at] == "anchor" else f"patch {rows[at] + 1},{cols[at] + 1}"
        for at in first_hybrid(roles, count)
    ]


def below(values: np.ndarray, value: float) -> float:
    """Share of `values` that are smaller, half of those that are equal: 0.5 is the middle."""
    return float((values < value).mean() + (values == value).mean() / 2)


def select(attention: np.ndarray, layer: int | None, head: int | None) -> np.ndarray:
    """(L, H, S) -> (S,): one layer and head (from 0), or the mean over all of them where None."""
    per_head = attention.mean(axis=0) if layer is None else attention[layer]
    return per_head.mean(axis=0) if head is None else per_head[head]


def head_mean(values: np.ndarray, head: int | None) -> np.ndarray:
    """(..., L, H) -> (..., L): one head (from 0), or the mean over heads where None."""
    return values.mean(axis=-1) if head is None else values[..., head]


def patch_map(row: np.ndarray, roles: Sequence[str], rows: Sequence[int], cols: Sequence[int]) -> np.ndarray | None:
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


class Sample(NamedTuple):
    """Attention of one run over n images, as far as pages ask for it."""

    rows_NLHS: np.ndarray
    """float16"""
    by_layer_NLS: np.ndarray
    """float32, the mean over heads."""
    by_head_NHS: np.ndarray
    """float32, the mean over layers."""
    mass: dict[str, np.ndarray]
    """role -> (n, L, H) float32, share of all attention."""
    values: dict[str, np.ndarray]
    """(n, L, H, ...) of `measure`."""

    def select(self, layer: int | None, head: int | None) -> np.ndarray:
        """(n, S) float32: one layer and head (from 0), or the mean over all of them where None."""
        if layer is None:
            return self.by_head_NHS.mean(1) if head is None else self.by_head_NHS[:, head]
        return self.by_layer_NLS[:, layer] if head is None else self.rows_NLHS[:, layer, head].astype(np.float32)


def sample(blocks: Iterable[np.ndarray], roles: Sequence[str]) -> Sample:
    """Of attention (B, L, H, S), block by block."""
    parts = [
        Sample(
            rows.astype(np.float16),
            rows.mean(2, dtype=np.float32),
            rows.mean(1, dtype=np.float32),
            role_mass(rows, roles),
            measure(rows.astype(np.float32), roles),
        )
        for rows in blocks
    ]
    arrays = [np.concatenate([part[at] for part in parts]) for at in range(3)]
    named = [{name: np.concatenate([part[at][name] for part in parts]) for name in parts[0][at]} for at in (3, 4)]
    return Sample(arrays[0], arrays[1], arrays[2], named[0], named[1])
