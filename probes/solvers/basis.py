"""Standardised features, rotated into the eigenbasis of their Gram matrix. Knows arrays; not labels, losses or folds.

An L2 penalty does not see a rotation, so a probe in the basis is the probe on the features; Newton's method is far
cheaper there, because the Hessian is nearly diagonal. With no more rows than features the basis spans the rows
instead: by the representer theorem the weights of the optimum lie there.

Any orthonormal basis is exact; the eigenbasis only makes it fast. So a probe may be fitted on some of the rows alone,
and single precision is enough.

Legend: n training rows, m new rows, D features, r rank of the basis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from htc_probe.extract.errors import UserError


class Weights(NamedTuple):
    """A probe on the features as they are: prediction = x @ weights + intercepts."""

    weights: np.ndarray
    """(D, C)"""
    intercepts: np.ndarray
    """(C,)"""


class Scaler(NamedTuple):
    """Standardises features; one that is constant over the training rows becomes 0 everywhere."""

    mean: np.ndarray
    """(D,) float64."""
    factor: np.ndarray
    """(D,) float64: 1 / standard deviation, or 0 for a constant feature."""


@dataclass(frozen=True)
class Basis:
    """Made by `fit`. A row's coordinates are `(x - mean) * factor @ rotation`."""

    scaler: Scaler
    rotation: Tensor
    """(D, r), orthonormal columns; rows of 0 for constant features."""
    eigenvalues: Tensor
    """(r,) mean squares of the training rows' coordinates, descending but for rounding."""
    train: Tensor
    """(n, r), the coordinates of the training rows, in their order."""

    @classmethod
    def fit(cls, x_nD: np.ndarray, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Basis:
        """The basis of the rows of `x_nD` (any real type; float16 is widened first); r is 0 where nothing varies.

        Raises UserError for a value that is not finite, naming row and feature, and for features without rows.
        """
        x = _tensor(x_nD, device)
        n, width = x.shape
        if not n:
            raise UserError(f"features of shape {tuple(x.shape)} have no row; a probe needs one to be fitted on")
        scaler = _fit_scaler(x)
        varies = torch.as_tensor(scaler.factor > 0, device=x.device)
        z = _standardise(x, scaler, dtype)[:, varies]
        if n > z.shape[1]:
            inner = torch.linalg.eigh(z.T @ z / n).eigenvectors.flip(1)
        else:
            inner = z.T @ torch.linalg.eigh(z @ z.T / n).eigenvectors.flip(1)
            lengths = torch.linalg.vector_norm(inner, dim=0)
            # Products of short directions are rounding, so their scaled columns are not orthogonal yet.
            inner = torch.linalg.qr(inner[:, _above_rounding(lengths.square() / n)]).Q
        train = z @ inner
        eigenvalues = train.square().mean(0)
        real = _above_rounding(eigenvalues)
        if not real.all():
            inner, train, eigenvalues = inner[:, real], train[:, real], eigenvalues[real]
        rotation = inner.new_zeros(width, inner.shape[1])
        rotation[varies] = inner
        return cls(scaler, rotation, eigenvalues, train)

    def rotate(self, x_mD: np.ndarray) -> Tensor:
        """(m, r), the coordinates of new rows. Raises UserError for values that are not finite and another width."""
        x = _tensor(x_mD, self.rotation.device)
        if x.shape[1] != len(self.rotation):
            raise UserError(f"rows of {x.shape[1]} features; expected {len(self.rotation)}, as the basis was fitted on")
        return _standardise(x, self.scaler, self.rotation.dtype) @ self.rotation

    def on_features(self, weights_rC: Tensor, intercepts_C: Tensor) -> Weights:
        """A probe in the basis, float64."""
        on_scaled = (self.rotation.double() @ weights_rC.double()).cpu().numpy()
        weights_DC = on_scaled * self.scaler.factor[:, None]
        return Weights(weights_DC, intercepts_C.double().cpu().numpy() - self.scaler.mean @ weights_DC)


_WIDE = {np.dtype(np.float16): torch.float32, np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
"""What features are computed in, by the type they come in; any other is computed in double precision."""


def _tensor(x_nD: np.ndarray, device: str | torch.device) -> Tensor:
    if x_nD.ndim != 2:
        raise UserError(f"features of shape {x_nD.shape}; expected (rows, features)")
    dtype = x_nD.dtype if x_nD.dtype in _WIDE else np.dtype(np.float64)
    x = torch.as_tensor(np.require(x_nD, dtype, ["C", "W"]), device=device).to(_WIDE[dtype])
    finite = x.isfinite()
    if not finite.all():
        row, feature = (~finite).nonzero()[0].tolist()
        raise not_finite(row, feature, x_nD[row, feature])
    return x


def not_finite(row: int, feature: int, value: float) -> UserError:
    return UserError(
        f"row {row}, feature {feature} is {value}; a probe needs finite features: leave the row out, "
        "or extract it again (float16 overflows above 65504)"
    )


def _fit_scaler(x_nD: Tensor) -> Scaler:
    # The mean as the rows can subtract it: what rounding leaves, the deviation knows and the intercept takes up.
    mean = x_nD.mean(0, dtype=torch.float64).to(x_nD.dtype)
    centred = x_nD - mean
    variance = torch.linalg.vector_norm(centred, dim=0, dtype=torch.float64).square() / len(x_nD)
    variance -= centred.mean(0, dtype=torch.float64).square()
    # Exact, where the deviation of equal numbers may round to 1e-17.
    varies = (x_nD.amax(0) > x_nD.amin(0)) & (variance > torch.finfo(x_nD.dtype).tiny ** 2)
    factor = torch.where(varies, variance.rsqrt(), 0)
    return Scaler(mean.double().cpu().numpy(), factor.cpu().numpy())


def _standardise(x: Tensor, scaler: Scaler, dtype: torch.dtype) -> Tensor:
    mean, factor = (torch.as_tensor(part, dtype=x.dtype, device=x.device) for part in scaler)
    return (x - mean).mul_(factor).to(dtype)


def _above_rounding(eigenvalues: Tensor) -> Tensor:
    """Which directions hold more than the rounding of all features; the rest would be noise to a probe."""
    return eigenvalues > torch.finfo(eigenvalues.dtype).eps ** 2 * 30 * eigenvalues.sum()
