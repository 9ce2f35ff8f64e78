"""The two runs of the page Compare, and how its numbers are written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from htc_probe.analysis.attention.rows import Sample
from htc_probe.analysis.compare import Differences
from htc_probe.dashboards import data
from htc_probe.dashboards.runs import RunFile
from htc_probe.dashboards.views.view import View
from htc_probe.probes.scores.intervals import holm


class Two(NamedTuple):
    """The page's run and the one beside it."""

    view: View
    other: RunFile
    key: data.RunKey
    """Of the other."""
    header: data.Header
    names: tuple[str, str]
    pairs: data.Pairs
    """Among the chosen images, where some are chosen."""

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.view.path, self.other.path

    @property
    def headers(self) -> tuple[data.Header, data.Header]:
        return self.view.header, self.header

    @property
    def same_cells(self) -> bool:
        """Whether layers and heads of the two can be laid on one another."""
        one, two = (header.shape for header in self.headers)
        return (one.layers, one.heads) == (two.layers, two.heads)

    @property
    def anchors(self) -> bool:
        return all(header.shape.anchors for header in self.headers)

    @property
    def images(self) -> str:
        mine, theirs = len(self.pairs.rows), len(self.pairs.other_rows)
        return (
            f"{mine:,} images of both, paired"
            if self.pairs.paired
            else f"{mine:,} and {theirs:,} other images, unpaired"
        )

    @property
    def attention(self) -> tuple[Sample, Sample, data.Pairs]:
        """See `data.paired_attention`."""
        return data.paired_attention(self.view.key, self.key, self.view.selection.chosen)

    def mass(self, head: int | None) -> tuple[np.ndarray, np.ndarray]:
        """See `data.paired_mass`."""
        return data.paired_mass(self.view.key, self.key, self.view.selection.chosen, head)

    def words(self, title: str, subtitle: str, unit: str) -> dict[str, Any]:
        """What every figure of the two is told."""
        return {"title": title, "subtitle": subtitle, "names": self.names, "unit": unit}


def columns_of(lines: Sequence[Differences], names: tuple[str, str]) -> dict[str, list[str]]:
    """Of a table with a line a difference; p is corrected for all of them."""
    return {
        names[0]: [number(line.this) for line in lines],
        names[1]: [number(line.other) for line in lines],
        "difference": [_signed(line.estimate) for line in lines],
        "95 % interval": [f"{_signed(line.lower)} to {_signed(line.upper)}" for line in lines],
        "p (Holm)": [_p_value(p) for p in holm(np.array([float(line.p) for line in lines]))],
    }


def number(value: Any) -> str:
    return "" if value is None or not np.isfinite(value) else f"{float(value):.3g}"


def _signed(value: Any) -> str:
    return "" if not np.isfinite(value) else f"{float(value):+.3g}"


def _p_value(value: float) -> str:
    return "" if not np.isfinite(value) else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
