"""How the page Compare writes numbers of two runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from htc_probe.analysis.compare import Differences
from htc_probe.probes.scores.intervals import holm


def columns_of(lines: Sequence[Differences], names: tuple[str, str]) -> dict[str, list[str]]:
    """Of a table with a line a difference; p is corrected for all of them."""
    return {
        names[0]: [number(line.this) for line in lines],
        names[1]: [number(line.other) for line in lines],
        "difference": [_signed(line.estimate) for line in lines],
        "95% interval": [f"{_signed(line.lower)} to {_signed(line.upper)}" for line in lines],
        "p (Holm)": [_p_value(p) for p in holm(np.array([float(line.p) for line in lines]))],
    }


def number(value: Any) -> str:
    return "" if value is None or not np.isfinite(value) else f"{float(value):.3g}"


def _signed(value: Any) -> str:
    return "" if not np.isfinite(value) else f"{float(value):+.3g}"


def _p_value(value: float) -> str:
    return "" if not np.isfinite(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
