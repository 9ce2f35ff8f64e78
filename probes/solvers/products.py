"""Products of coefficients with the training rows, in full precision or with bfloat16 copies. Knows rows; not labels or
losses.

Legend: n training rows, r columns of them, C columns of coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORTH_HALF = 2**22
"""Numbers in the rows from which bfloat16 copies pay,"""
_FEW_COLUMNS = 8
"""and columns in a product."""


class Rows:
    """The training rows, which may be several pieces of a matrix. w (C, r + 1) ends in the intercept."""

    def __init__(self, x_nr: Tensor, segments: Sequence[slice], half: Tensor | None) -> None:
        self.pieces = [x_nr[segment] for segment in segments]
        self.half = None if half is None else [half[segment] for segment in segments]
        ends = np.cumsum([0, *(len(piece) for piece in self.pieces)]).tolist()
        self.spans = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self.n = ends[-1]

    def logits(self, w: Tensor) -> Tensor:
        """(C, n): w'x + b."""
        out = w.new_empty(len(w), self.n)
        for span, piece in zip(self.spans, self.pieces, strict=True):
            torch.addmm(w[:, -1:], w[:, :-1], piece.T, out=out[:, span])
        return out

    def pull(self, v: Tensor) -> Tensor:
        """(C, n) -> (C, r + 1): the transpose of `logits`."""
        out = v.new_empty(len(v), self.pieces[0].shape[1] + 1)
        for i, (span, piece) in enumerate(zip(self.spans, self.pieces, strict=True)):
            out[:, :-1].addmm_(v[:, span], piece, beta=min(i, 1))
        out[:, -1] = v.sum(1)
        return out

    def coarse_logits(self, w: Tensor) -> Tensor:
        """`logits`, in bfloat16 where there is a copy of the rows."""
        if self.half is None:
            return self.logits(w)
        out, w16 = w.new_empty(len(w), self.n), w[:, :-1].bfloat16()
        for span, piece in zip(self.spans, self.half, strict=True):
            out[:, span] = w16 @ piece.T
        return out.add_(w[:, -1:])

    def coarse_pull(self, v: Tensor) -> Tensor:
        if self.half is None:
            return self.pull(v)
        out, v16 = v.new_empty(len(v), self.half[0].shape[1] + 1), v.bfloat16()
        for i, (span, piece) in enumerate(zip(self.spans, self.half, strict=True)):
            product = v16[:, span] @ piece
            if i:
                out[:, :-1] += product
            else:
                out[:, :-1] = product
        out[:, -1] = v.sum(1)
        return out


def half_copy(x_nr: Tensor, columns: int = 64) -> Tensor | None:
    """The rows in bfloat16 where products with them are faster so, else None.

    The processor's instructions and the sizes decide, so that one machine always gives the same bytes: a stopwatch
    would let other work on the machine decide.
    """
    if x_nr.dtype != torch.float32 or x_nr.numel() < _WORTH_HALF or columns < _FEW_COLUMNS:
        return None
    return x_nr.bfloat16() if multiplies_bfloat16(x_nr.device) else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products have instructions of their own there; where they are emulated they are slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    features: dict = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
