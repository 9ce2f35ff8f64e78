"""Features without a label: LEACE, least-squares concept erasure (Belrose et al. 2023, arXiv 2306.03819).

    eraser = Eraser.fit(x[train], labels[train])
    eraser.apply(x[new])                                             # features that linear probes cannot read it from

Knows arrays; not runs, probes or files. On the rows that it was fitted on, no linear probe does better than a constant,
whatever convex loss it is fitted by, and no other affine map that achieves this changes the rows less, in any norm that
comes from an inner product. What a probe that is not linear reads may be left.

It is closed form: from every row goes what the label's least-squares prediction from that row explains of the features.
Legend: n rows, D features, C columns of the label, k directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from htc_probe.extract.errors import UserError
from htc_probe.extract.store import UNKNOWN

_LEAST = 1e-9  # of a column's length: what is predicted of it below this is rounding


@dataclass(frozen=True)
class Eraser:
    """x -> x - (x - mean) reads writes."""

    mean: np.ndarray
    """(D,) of the rows that it was fitted on; it stays their mean."""
    reads: np.ndarray
    """(D, k): what a row says of the label, as k numbers."""
    writes: np.ndarray
    """(k, D): what each of these explains of the features. Along all other directions a row stays as it is."""

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, *, period: float | None = None) -> Eraser:
        """From rows (n, D) and what `run.labels` gives of them; rows and entries whose label is unknown are left out.

        labels: whole numbers (n,), one a class, negative ones unknown; bool or uint8 (n, C), each a yes or no, 255
        unknown; or floats, (n,) or several (n, C), unknown where not finite. With `period` these are angles of that
        period, erased as sine and cosine. K classes have at most K - 1 directions.

        New rows keep what n rows cannot tell, up to an R2 of about D / n: fit on many more rows than features. Raises
        UserError for shapes that do not fit, features that are not finite, and fewer than 2 rows with a label.
        """
        x = np.asarray(features, dtype=np.float64)
        y = np.asarray(labels)
        if x.ndim != 2 or y.shape[:1] != x.shape[:1]:
            raise UserError(f"features {x.shape} and labels {y.shape}; expected (rows, features) and as many labels")
        target_nC, known_nC = _columns(y, period)
        used = known_nC.any(1)
        if used.sum() < 2:
            raise UserError(f"{used.sum()} of {len(x)} rows have a label; erasing needs 2 or more")
        x, target_nC, known_nC = x[used], target_nC[used], known_nC[used]
        if not np.isfinite(x).all():
            row, feature = np.argwhere(~np.isfinite(x))[0]
            value, number = x[row, feature], np.flatnonzero(used)[row]
            raise UserError(f"feature {feature} is {value} in row {number}; an eraser needs finite features")
        mean = x.mean(0)
        varies = np.ptp(x, axis=0) > 0
        centred = np.where(varies, x - mean, 0.0)
        scale = np.where(varies, np.sqrt((centred**2).mean(0)), 1.0)
        # A column's mean is of the rows that have it, and 0 elsewhere adds nothing to its covariance with the features.
        target_nC = np.where(known_nC, target_nC, 0.0)
        target_nC = np.where(known_nC, target_nC - target_nC.sum(0) / np.maximum(known_nC.sum(0), 1), 0.0)
        length = np.sqrt((target_nC**2).sum(0))
        target_nC /= np.where(length > 0, length, 1.0)
        # Of many least-squares predictions, where features depend on each other, the shortest; scaled for its rounding.
        weights_DC = np.linalg.lstsq(centred / scale, target_nC, rcond=None)[0] / scale[:, None]
        axes_nk, sizes, rotation = np.linalg.svd(centred @ weights_DC, full_matrices=False)
        kept = sizes > _LEAST
        return cls(mean, weights_DC @ rotation[kept].T / sizes[kept], axes_nk[:, kept].T @ centred)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """(n, D) float64 rows without the label. Raises UserError for another width."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"features of shape {features.shape}; this eraser takes (rows, {len(self.mean)})")
        x = features.astype(np.float64)
        return x - (x - self.mean) @ self.reads @ self.writes


def _columns(y: np.ndarray, period: float | None) -> tuple[np.ndarray, np.ndarray]:
    """A label as numbers (n, C) float64, and which of them are known (n, C)."""
    if y.dtype.kind == "f" and y.ndim in (1, 2):
        y = y.astype(np.float64).reshape(len(y), -1)
        known = np.isfinite(y)
        if period is not None:
            if not period > 0:
                raise UserError(f"period {period} of an angle; use one above 0, such as 360")
            turn = 2 * np.pi * np.where(known, y, 0) / period
            return np.concatenate([np.sin(turn), np.cos(turn)], 1), np.tile(known, 2)
        return y, known
    if period is not None:
        raise UserError(f"a period is of angles, which are floats (rows,), not {y.dtype} of shape {y.shape}")
    if y.dtype.kind in "iub" and y.ndim == 1:
        known = y >= 0
        classes = np.unique(y[known])
        return (y[:, None] == classes).astype(np.float64), np.tile(known[:, None], len(classes))
    if y.dtype.kind in "ub" and y.ndim == 2:
        return y.astype(np.float64), (y != UNKNOWN) if y.dtype == np.uint8 else np.ones(y.shape, bool)
    raise UserError(
        f"labels are {y.dtype} of shape {y.shape}; expected whole numbers (rows,) for classes, bool or uint8 "
        "(rows, labels), or floats"
    )
